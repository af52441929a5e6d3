"""Features of frozen encoders, pretrained or of another run, computed once for a whole data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import RawBatch
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.towers import Tower, encoder_of, features_field, make_tower, preprocess_modality
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.transfer.pretrained import PretrainedEncoders, copy_from_run
from xmodal_jax.types import MODALITIES, EncoderSlot, Params, kind_of

CHUNK = 64
"""Examples whose features are computed at a time."""


class _FrozenTower(NamedTuple):
    """A frozen encoder and its parameters."""

    embed: Callable[[Params, Mapping[str, Any]], jax.Array]
    """``embed(params, batch) -> [B, width]``: the pooled features, float32."""
    params: Params


def frozen_features(
    pretrained: PretrainedEncoders, model: ContrastiveConfig, transform: FittedTransforms | TokenizeTransform
) -> Callable[[RawBatch], RawBatch]:
    """A transform of raw batches that adds the features of frozen encoders, for a contrastive model. The other
    encoders, which start from random parameters, are trained as always.

    The features of a modality are in the field that `models.towers.features_field` names. With them the model's towers
    compute only their projections in training.

    Args:
      pretrained: the encoders that the flags name, of checkpoints or of other runs.
      model: the configuration of the contrastive model, for its heads and audio features.
      transform: from a batch with captions to the batch with token ids.
    Raises:
      ValueError: there are no frozen encoders, or the pool of one is trained.
    """
    frozen = {name for name in (*pretrained.folders, *pretrained.runs) if name in MODALITIES}
    if not frozen or pretrained.lr_multiplier != 0.0:
        raise ValueError(
            "--cache-features keeps the features of frozen encoders: give --image-encoder (or another) or --init-from, "
            "and --encoder-lr-multiplier 0"
        )
    for name in sorted(frozen):
        if encoder_of(model, name).pool == "attention":
            raise ValueError(
                f"--cache-features: the pool 'attention' of {name} is trained, so that features change: give "
                f"--model.{name}.pool mean, or leave --cache-features out"
            )

    # Cached: the encoders are loaded for the first batch, and the later ones have the same shapes.
    @functools.cache
    def load_towers(inputs: tuple[tuple[str, tuple[int, ...], str], ...]) -> dict[str, _FrozenTower]:
        """The frozen encoders, by modality; ``inputs``: the name, the shape of one example and the dtype of each."""
        example = {field: np.zeros((1, *shape), dtype) for field, shape, dtype in inputs}
        return {name: _load_tower(pretrained, name, model, example, transform) for name in example}

    def encoded_modalities(batch: Mapping[str, Any]) -> list[str]:
        """The modalities of a batch whose kind has a frozen encoder, such as "image" and "image_sketch"."""
        return [m for m in batch if m.partition("_")[0] in frozen and not m.endswith("_mask")]

    def add_features(batch: RawBatch) -> RawBatch:
        """The batch with the features of each modality that has a frozen encoder."""
        inputs = numeric_fields(transform(batch))
        arrays = {name: np.asarray(inputs[name]) for name in encoded_modalities(inputs)}
        towers = load_towers(tuple((name, x.shape[1:], x.dtype.str) for name, x in arrays.items()))
        features = {
            features_field(name): _embed_in_chunks(tower, name, inputs) for name, tower in towers.items()
        }
        return {**batch, **features}

    return add_features


def _load_tower(
    pretrained: PretrainedEncoders,
    name: str,
    model: ContrastiveConfig,
    example: Mapping[str, np.ndarray],
    transform: FittedTransforms | TokenizeTransform,
) -> _FrozenTower:
    """The frozen encoder of a modality with its trained parameters; ``example``: a batch of one example, for the shapes
    of its inputs.

    ``name``: the modality. ``pretrained``: the encoders that the flags name. ``model``: the model's configuration, for
    its heads and audio features. ``transform``: has the tokenizer.
    """
    kind, tokenizer = kind_of(name), transform.tokenizer
    config, head = encoder_of(model, name), model.head_of(name)
    vocab_size = 0 if tokenizer is None else tokenizer.vocab_size
    tower = make_tower(name, config, example, vocab_size=vocab_size, head=head, embed_dim=model.embed_dim)
    if kind in pretrained.folders:
        shapes, checkpoint = parameter_shapes(tower.encoder), open_checkpoint(pretrained.folders[kind])
        params, _ = read_parameters(checkpoint, kind, tower.encoder, shapes)
    else:
        slot = EncoderSlot(name=kind, path=f"{name}/encoder", fields=(name,))
        initial = _zeros_of(tower, name, model, example)
        params = copy_from_run(pretrained.runs[kind], slot, initial, tokenizer)

    @jax.jit
    def embed(params, batch):
        """The features ``[B, width]`` of the modality's inputs in a batch, float32."""
        inputs, mask = preprocess_modality(name, batch, model.features)
        return tower.apply({"params": {"encoder": params}}, inputs, mask, method="pooled")

    return _FrozenTower(embed, params)


def _zeros_of(tower: Tower, name: str, model: ContrastiveConfig, example: Mapping[str, np.ndarray]) -> Params:
    """Parameters of a tower's encoder that are all 0, for their shapes; see `_load_tower` for the arguments."""

    def init(key, batch):
        inputs, mask = preprocess_modality(name, batch, model.features)
        return tower.init(key, inputs, mask, method="pooled")["params"]["encoder"]

    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(init, jax.random.key(0), dict(example))
    )


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
