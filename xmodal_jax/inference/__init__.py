"""Trained runs on new files: each is a function from one modality to another, and several make a chain.

::

    from xmodal_jax.inference import load_translator

    caption = load_translator("runs/captioning-20250131-101500")
    texts = caption.apply(images)  # uint8 [N, H, W, C] of the size that the run was trained on
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "load": "Translator load_translator",
        "translate": "TranslationInput apply_chain find_chain find_inputs read_inputs write_outputs",
    },
)
