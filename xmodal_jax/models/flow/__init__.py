"""Flow matching: `FlowConfig` is what a model is made of, `make_flow` makes it.

::

    from xmodal_jax.models.flow import ClassCondition, FlowConfig, make_flow

    flow = make_flow(FlowConfig(condition=ClassCondition()), shape=(32, 32, 3), classes=10)
    params = flow.init(key, batch)
    loss, aux = flow.loss(params, batch, key)
    images = flow.sample(params, {"label": labels}, noise)  # in [-1, 1]

Of several modalities: `MultimodalFlowConfig` and `make_multimodal_flow`, autoencoders and a flow over their codes.
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "codes": "CodeConfig CodeModel make_codes",
        "conditions": "ClassCondition NoCondition SentenceCondition WordsCondition",
        "config": "FlowConfig OptimalTransport",
        "method": "FlowModel make_flow",
        "multimodal": "CodeFlow CodeFlowConfig MultimodalFlow MultimodalFlowConfig make_multimodal_flow",
        "objectives": "FlowMatching MeanFlow Shortcut",
        "samplers": "AdaptiveSampler EulerSampler HeunSampler JumpSampler MidpointSampler",
    },
)
