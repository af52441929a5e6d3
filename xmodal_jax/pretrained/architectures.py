"""The table of pretrained architectures. A new architecture needs a new file and an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn

from xmodal_jax.pretrained import bert, clip, gpt2, resnet, siglip, videomae, vit, wav2vec2, whisper
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.rules import Rule


class Architecture(NamedTuple):
    """How a ``model_type`` of a ``config.json`` is loaded as the encoder of one modality."""

    make: Callable[[SimpleNamespace, EncoderOptions], nn.Module]
    """Makes the module from a parsed ``config.json``."""
    rules: Callable[[nn.Module], list[Rule]]
    """Makes the rules that map a checkpoint's arrays to the parameters of the module."""
    prefixes: tuple[str, ...] = ("",)
    """Prefixes that the names in a checkpoint may have; the first that occurs is removed."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names in a checkpoint that are not needed: heads of other tasks, buffers."""
    pooler: str | None = None
    """The ending of the name of an array that a checkpoint without layers for ``pool`` lacks; None: no checkpoint lacks
    them, or there are no such layers."""


_POOLER = "pooler.dense.weight"
_BERT = Architecture(bert.make, bert.rules, bert.PREFIXES, bert.IGNORED, _POOLER)
_CLIP_IMAGE = Architecture(clip.make_image_encoder, clip.image_rules, clip.IMAGE_PREFIXES, clip.IMAGE_IGNORED)
_CLIP_TEXT = Architecture(clip.make_text_encoder, clip.text_rules, clip.TEXT_PREFIXES, clip.TEXT_IGNORED)
_SIGLIP_IMAGE = Architecture(
    siglip.make_image_encoder, siglip.image_rules, clip.IMAGE_PREFIXES, clip.IMAGE_IGNORED
)
_SIGLIP_TEXT = Architecture(
    siglip.make_text_encoder, siglip.text_rules, clip.TEXT_PREFIXES, clip.TEXT_IGNORED
)
_WAV2VEC2 = Architecture(wav2vec2.make, wav2vec2.rules, wav2vec2.PREFIXES, wav2vec2.IGNORED)
_WHISPER = Architecture(whisper.make, whisper.rules, whisper.PREFIXES, whisper.IGNORED)
_DINOV2 = Architecture(vit.make_dinov2, vit.rules_dinov2, vit.DINOV2_PREFIXES, vit.IGNORED)
_RESNET = Architecture(resnet.make, resnet.rules, resnet.PREFIXES, resnet.IGNORED)
_VIDEOMAE = Architecture(videomae.make, videomae.rules, videomae.PREFIXES, videomae.IGNORED)
_VIT = Architecture(vit.make, vit.rules, vit.PREFIXES, vit.IGNORED, _POOLER)

ARCHITECTURES: Mapping[str, Mapping[str, Architecture]] = {
    "text": {
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        **dict.fromkeys(("clip", "clip_text_model"), _CLIP_TEXT),
        **dict.fromkeys(("siglip", "siglip_text_model", "siglip2", "siglip2_text_model"), _SIGLIP_TEXT),
    },
    "image": {
        **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
        "resnet": _RESNET,
        "vit": _VIT,
        **dict.fromkeys(("clip", "clip_vision_model"), _CLIP_IMAGE),
        **dict.fromkeys(("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"), _SIGLIP_IMAGE),
    },
    "audio": {"hubert": _WAV2VEC2, "wav2vec2": _WAV2VEC2, "whisper": _WHISPER},
    "video": {"videomae": _VIDEOMAE},
    "decoder": {"gpt2": Architecture(gpt2.make, gpt2.rules, gpt2.PREFIXES, gpt2.IGNORED)},
}
"""``ARCHITECTURES[modality][model_type]``; the modality "decoder" stands for decoders of text."""


def architecture(modality: str, model_type: str) -> Architecture:
    """The architecture of a ``model_type`` as the encoder of a modality.

    Raises:
      ValueError: there is none; the message lists those of the modality.
    """
    known = ARCHITECTURES.get(modality, {})
    if model_type not in known:
        other = [m for m, table in ARCHITECTURES.items() if model_type in table]
        hint = f"; it is an encoder of {' and '.join(other)}" if other else ""
        raise ValueError(
            f"config.json says model_type {model_type!r}; pretrained encoders of {modality} are "
            f"{', '.join(sorted(known))}{hint}"
        )
    return known[model_type]
