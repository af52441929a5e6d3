"""Starting from trained encoders, computing their features once, and exporting trained runs.

::

    from xmodal_jax.transfer import resolve_pretrained

    config, pretrained = resolve_pretrained(config)              # --image-encoder hf:PATH, --init-from RUN
    method = pretrained.attach(method, tokenizer)                # training starts from their parameters
    optimizer = pretrained.set_learning_rates(optimizer, method)
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "export": "export_run",
        "features": "frozen_features",
        "frozen": "FrozenNetworks load_frozen_networks",
        "pretrained": "PretrainedEncoders TrainedRun resolve_pretrained load_trained_run find_folders",
    },
)
