"""Features of frozen pretrained encoders, computed once for a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import RawBatch
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.towers import features_field, make_encoder, preprocess_modality, tower_head
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.transfer.pretrained import PretrainedEncoders
from xmodal_jax.types import Params, kind_of

CHUNK = 64
"""Examples whose features are computed at a time."""


class _FrozenTower(NamedTuple):
    """A frozen encoder with its pool."""

    embed: Callable[[Params, Mapping[str, Any]], jax.Array]
    """``embed(params, batch) -> [B, width]``, float32."""
    params: Params


def frozen_features(
    pretrained: PretrainedEncoders, model: ContrastiveConfig, tokenize: Callable[[RawBatch], RawBatch]
) -> Callable[[RawBatch], RawBatch]:
    """A transform of raw batches that adds the features of a contrastive model's frozen encoders, each in the field
    `models.towers.features_field`: the model's towers then have only their projections to compute.

    Raises:
      ValueError: there are no frozen pretrained encoders, or one has another pool than its own.
    """
    if not pretrained.folders or pretrained.lr_multiplier != 0.0:
        raise ValueError(
            "--cache-features keeps the features of frozen pretrained encoders: give --image-encoder (or another) and "
            "--encoder-lr-multiplier 0"
        )
    others = [name for name in pretrained.folders if pretrained.configs[name].pool != "own"]
    if others:
        raise ValueError(
            f"--cache-features needs the encoders' own pools: leave --model.{others[0]}.pool out"
        )

    @functools.cache
    def make_towers(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, _FrozenTower]:
        example = {field: np.zeros((1, *shape), np.uint8) for field, shape in shapes}
        return {name: _load_tower(pretrained, name, model, example) for name in example}

    def pretrained_fields(batch: Mapping[str, Any]) -> list[str]:
        return [m for m in batch if m.partition("_")[0] in pretrained.folders and not m.endswith("_mask")]

    def add_features(batch: RawBatch) -> RawBatch:
        """The batch with the features of each modality that has a frozen encoder."""
        inputs = numeric_fields(tokenize(batch))
        shapes = tuple((name, np.shape(inputs[name])[1:]) for name in pretrained_fields(inputs))
        features = {
            features_field(name): _embed_in_chunks(tower, name, inputs)
            for name, tower in make_towers(shapes).items()
        }
        return {**batch, **features}

    return add_features


def _load_tower(
    pretrained: PretrainedEncoders, name: str, model: ContrastiveConfig, example: Mapping[str, np.ndarray]
) -> _FrozenTower:
    """The frozen encoder of a modality with its checkpoint's parameters, for inputs like those of ``example``."""
    kind = kind_of(name)
    config = pretrained.configs[kind]
    module = make_encoder(name, config, example, vocab_size=0, head=tower_head(config, model.head))
    checkpoint = open_checkpoint(pretrained.folders[kind])
    params, _ = read_parameters(checkpoint, kind, module, parameter_shapes(module))

    @jax.jit
    def embed(params, batch):
        inputs, mask = preprocess_modality(name, batch, model.features)
        return module.apply({"params": params}, inputs, mask, method="embed").astype(jnp.float32)

    return _FrozenTower(embed, params)


def _embed_in_chunks(tower: _FrozenTower, name: str, batch: Mapping[str, Any]) -> np.ndarray:
    """The features of all examples of a batch, ``[B, width]``, computed for `CHUNK` examples at a time."""
    inputs = {field: batch[field] for field in (name, f"{name}_mask") if field in batch}
    starts = range(0, len(batch[name]), CHUNK)
    chunks = [tower.embed(tower.params, {k: v[i : i + CHUNK] for k, v in inputs.items()}) for i in starts]
    return np.concatenate([np.asarray(chunk) for chunk in chunks])
