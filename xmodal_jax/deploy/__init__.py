"""Trained runs for other programs: plain weights, Hugging Face folders, StableHLO and ONNX.

::

    from xmodal_jax.deploy import export_formats

    export_formats("runs/contrastive", "exported", formats=("stablehlo",))  # JAX alone runs exported/stablehlo
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "export": "export_formats FORMATS",
        "card": "make_card write_card",
        "measure": "measure_losses",
        "onnx_files": "write_onnx",
        "programs": "Field Program programs_of",
        "stablehlo": "write_stablehlo",
    },
)
