"""CLIP and SigLIP from a Hugging Face folder, used as they are: a run that was not trained here."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.splits import make_tokenizer
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.heads import OwnHeadConfig
from xmodal_jax.pretrained.images import largest_image_side
from xmodal_jax.pretrained.load import parse_config
from xmodal_jax.train.checkpoint import RestoredCheckpoint
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.pretrained import resolve_pretrained

MODALITIES = ("text", "image")
DEFAULT_TEXT_LENGTH = 77
"""Tokens of a text where a checkpoint names no number: those of CLIP."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Untrained(StartConfig):
    """The options of a contrastive run that would begin with both towers of a checkpoint."""

    model: ContrastiveConfig = ContrastiveConfig(head=OwnHeadConfig())


def restore_pretrained(name: str) -> RestoredCheckpoint:
    """Both towers of CLIP or SigLIP with their projections and temperature, as a contrastive run of no steps.

    Images are resized as the checkpoint's processor says, and texts have its own tokens.

    Args:
      name: a folder in Hugging Face layout, or a model of the hub, such as ``openai/clip-vit-base-patch32``.

    Raises:
      FileNotFoundError: there is no such folder or model.
      ValueError: it has no shared embedding space of images and texts.
    """
    spec = f"hf:{name}"
    config, pretrained = resolve_pretrained(_Untrained(text_encoder=spec, image_encoder=spec))
    model = config.model
    side = largest_image_side(parse_config(model.image.architecture)) or 224
    tokenizer = make_tokenizer(spec, [])
    limits = (model.text.max_tokens, tokenizer.max_tokens, DEFAULT_TEXT_LENGTH)
    length = min(limit for limit in limits if limit is not None)
    method = make_contrastive(model, MODALITIES, vocab_size=tokenizer.vocab_size)
    batch = {
        "image": np.zeros((1, side, side, 3), np.uint8),
        "text": np.zeros((1, length), np.int32),
        "text_mask": np.ones((1, length), bool),
        "index": np.zeros(1, np.int32),
    }
    attached = pretrained.attach(method, tokenizer)
    initial = jax.eval_shape(method.init, jax.random.key(0), batch)
    params = attached.load_pretrained(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), initial), batch)
    return RestoredCheckpoint(params, _metadata(config, tokenizer.files(), side, length), step=0)


def _metadata(config: _Untrained, tokenizer: dict[str, str], side: int, length: int) -> dict[str, Any]:
    """What the checkpoint of such a run would hold beside its parameters."""
    return {
        "kind": "contrastive",
        "config": {"data": "", "model": to_json(config.model), "input": to_json(config.input)},
        "modalities": MODALITIES,
        "tokenizer": tokenizer,
        "max_length": length,
        "shapes": {"image": (side, side, 3), "text": (length,)},
        "seeds": [0],
    }
