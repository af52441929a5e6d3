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
    """A frozen encoder and its parameters."""

    embed: Callable[[Params, Mapping[str, Any]], jax.Array]
    """``embed(params, batch) -> [B, width]``: the pooled features, float32."""
    params: Params


def frozen_features(
    pretrained: PretrainedEncoders, model: ContrastiveConfig, tokenize: Callable[[RawBatch], RawBatch]
) -> Callable[[RawBatch], RawBatch]:
    """A transform of raw batches that adds the features of frozen pretrained encoders, for a contrastive model.

    The features of a modality are in the field that `models.towers.features_field` names. With them the model's towers
    compute only their projections in training.

    Args:
      pretrained: the encoders that the flags name, with the folders of their checkpoints.
      model: the configuration of the contrastive model, for its heads and audio features.
      tokenize: from a batch with captions to the batch with token ids.
    Raises:
      ValueError: there are no frozen pretrained encoders, or one has another pool than the checkpoint's.
    """
    if not pretrained.folders or pretrained.lr_multiplier != 0.0:
        raise ValueError(
            "--cache-features keeps the features of frozen pretrained encoders: give --image-encoder (or another) and "
            "--encoder-lr-multiplier 0"
        )
    with_other_pool = [name for name in pretrained.folders if pretrained.configs[name].pool != "own"]
    if with_other_pool:
        raise ValueError(
            f"--cache-features needs the encoders' own pools: leave --model.{with_other_pool[0]}.pool out"
        )

    # Cached: the encoders are loaded for the first batch, and the later ones have the same shapes.
    @functools.cache
    def load_towers(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, _FrozenTower]:
        """The frozen encoders, by modality; ``shapes``: the shape of one example of each modality."""
        example = {field: np.zeros((1, *shape), np.uint8) for field, shape in shapes}
        return {name: _load_tower(pretrained, name, model, example) for name in example}

    def encoded_modalities(batch: Mapping[str, Any]) -> list[str]:
        """The modalities of a batch whose kind has a frozen encoder, such as "image" and "image_sketch"."""
        return [m for m in batch if m.partition("_")[0] in pretrained.folders and not m.endswith("_mask")]

    def add_features(batch: RawBatch) -> RawBatch:
        """The batch with the features of each modality that has a frozen encoder."""
        inputs = numeric_fields(tokenize(batch))
        shapes = tuple((name, np.shape(inputs[name])[1:]) for name in encoded_modalities(inputs))
        features = {
            features_field(name): _embed_in_chunks(tower, name, inputs)
            for name, tower in load_towers(shapes).items()
        }
        return {**batch, **features}

    return add_features


def _load_tower(
    pretrained: PretrainedEncoders, name: str, model: ContrastiveConfig, example: Mapping[str, np.ndarray]
) -> _FrozenTower:
    """The frozen encoder of a modality with its checkpoint's parameters; ``example``: a batch of one example, for the
    shapes of its inputs.

    ``name``: the modality. ``pretrained``: the encoders that the flags name. ``model``: the model's configuration, for
    its head and audio features.
    """
    kind = kind_of(name)
    config = pretrained.configs[kind]
    # vocab_size=0: there is no tokenizer here whose size has to fit the encoder.
    module = make_encoder(name, config, example, vocab_size=0, head=tower_head(config, model.head))
    checkpoint = open_checkpoint(pretrained.folders[kind])
    params, _ = read_parameters(checkpoint, kind, module, parameter_shapes(module))

    @jax.jit
    def embed(params, batch):
        """The features ``[B, width]`` of the modality's inputs in a batch, float32."""
        inputs, mask = preprocess_modality(name, batch, model.features)
        return module.apply({"params": params}, inputs, mask, method="embed").astype(jnp.float32)

    return _FrozenTower(embed, params)


def _embed_in_chunks(tower: _FrozenTower, name: str, batch: Mapping[str, Any]) -> np.ndarray:
    """The features of the modality ``name`` of a batch, ``[B, width]``, computed for `CHUNK` examples at a time.

    ``tower``: the frozen encoder with its parameters.
    """
    inputs = {field: batch[field] for field in (name, f"{name}_mask") if field in batch}
    chunks = []
    for start in range(0, len(batch[name]), CHUNK):
        chunk = {field: values[start : start + CHUNK] for field, values in inputs.items()}
        chunks.append(tower.embed(tower.params, chunk))
    return np.concatenate([np.asarray(features) for features in chunks])
