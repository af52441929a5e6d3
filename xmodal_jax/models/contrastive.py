"""A shared embedding space over any two or more modalities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import alignment, contrastive
from xmodal_jax.models.towers import (
    AudioFeatures,
    Augment,
    Projection,
    features_field,
    init_inputs,
    make_tower,
    prepare,
    presence,
    tower_head,
)
from xmodal_jax.nets.encoders import DEFAULTS, AudioEncoder, ImageEncoder, TextEncoder, VideoEncoder
from xmodal_jax.types import MODALITIES, Batch, EncoderSlot, Key, Method, Params

Objective = Literal["info_nce", "sigmoid", "triplet", "mmd", "coral", "cca"]

MAX_SCALE = 100.0
"""Largest inverse temperature (CLIP)."""


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Towers, heads and objective."""

    embed_dim: int = 128
    """Dimensions of the shared space."""
    head: Projection = "linear"
    """Projection from a tower's pooled features; "own": that of pretrained encoders which were trained to be compared
    (CLIP, SigLIP), with their dimensions and temperature."""
    objective: Objective = "info_nce"
    """InfoNCE (CLIP), sigmoid (SigLIP), triplet with the hardest negative (VSE++), or an alignment of distributions."""
    alignment: Literal["none", "mmd", "coral", "cca"] = "none"
    """A second objective added to the first."""
    alignment_weight: float = 0.1
    """Its weight."""
    temperature: float = 0.07
    """Initial temperature; learned, and never below 1/100."""
    form: contrastive.Implementation = "auto"
    """How InfoNCE and the sigmoid loss are computed, with the same result: with the matrix of logits (global), a tile
    of it at a time (tiled), tiled and passed from device to device (ring, for pmap), or as its size suggests (auto)."""
    margin: float = 0.2
    """Margin of the triplet loss."""
    duplicates: Literal["ignore", "exclude", "positive"] = "positive"
    """Examples of one batch with the same text: negatives all the same, left out, or positives as well."""
    anchor: str | None = None
    """Align only the pairs that hold this modality (the others meet through it); None: all pairs."""
    text: TextEncoder = DEFAULTS["text"]
    """Text tower."""
    image: ImageEncoder = DEFAULTS["image"]
    """Image tower."""
    audio: AudioEncoder = DEFAULTS["audio"]
    """Audio tower."""
    video: VideoEncoder = DEFAULTS["video"]
    """Video tower."""
    features: AudioFeatures = AudioFeatures()
    """Spectrogram that the audio tower sees."""
    augment: Augment = Augment()
    """Random changes in training."""

    def __post_init__(self):
        if self.anchor is not None and self.anchor not in MODALITIES:
            raise ValueError(f"anchor must be one of {', '.join(MODALITIES)}, got {self.anchor!r}")
        if self.temperature <= 1 / MAX_SCALE:
            raise ValueError(f"temperature must be above {1 / MAX_SCALE}, got {self.temperature}")

    def pairs(self, modalities: tuple[str, ...]) -> list[tuple[str, str]]:
        """The pairs of modalities that are aligned."""
        pairs = [p for p in itertools.combinations(modalities, 2) if self.anchor is None or self.anchor in p]
        if not pairs:
            raise ValueError(
                f"nothing to align: modalities {modalities}, anchor {self.anchor}; at least two are needed"
            )
        return pairs


def make_contrastive(config: ContrastiveConfig, modalities: tuple[str, ...], *, vocab_size: int) -> Method:
    """The method over ``modalities``.

    ``predict(params, batch)`` gives the normalised embedding ``[B, embed_dim]`` of each modality in the batch. The loss
    is the mean over pairs of modalities of the pair's objective, each over the global batch's examples that
    hold both. aux: ``scale`` (inverse temperature) and ``<a>_<b>``, the objective of each pair. Where the batch holds a
    tower's features (`models.towers.features_field`), they stand for its encoder, augmentation and dropout.
    """
    pairs = config.pairs(modalities)

    def towers(batch):
        return {
            m: make_tower(
                m,
                getattr(config, m),
                batch,
                vocab_size=vocab_size,
                head=config.head,
                embed_dim=config.embed_dim,
            )
            for m in modalities
            if m in batch
        }

    def init(key: Key, batch: Batch) -> Params:
        row, params = init_inputs(batch), {}
        for name, tower in towers(batch).items():
            inputs, mask = prepare(name, row, config.features)
            params[name] = tower.init(fold_in_name(key, name), inputs, mask)["params"]
        scale = 1.0 / config.temperature
        loss = {"log_scale": jnp.float32(math.log(10.0 if config.objective == "sigmoid" else scale))}
        if config.objective == "sigmoid":
            loss["bias"] = jnp.float32(-10.0)
        return {**params, "loss": loss}

    def embed(params, batch, keys=None):
        out = {}
        for name, tower in towers(batch).items():
            if features_field(name) in batch:
                x = tower.apply({"params": params[name]}, batch[features_field(name)], method="place")
            else:
                inputs, mask = prepare(name, batch, config.features, config.augment, keys)
                x = tower.apply({"params": params[name]}, inputs, mask, keys=keys)
            out[name] = l2_normalize(x)
        return out

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "contrastive")
        embeddings = embed(params, batch, example_keys(key, batch["index"]))
        present = presence(batch, modalities)
        match = text_ids(batch["text"]) if "text" in batch and config.duplicates != "ignore" else None
        scale = jnp.minimum(jnp.exp(params["loss"]["log_scale"]), MAX_SCALE)
        terms = {}
        for a, b in pairs:
            both = present[a] & present[b]
            x, y = embeddings[a], embeddings[b]
            value = _objective(config, config.objective, x, y, both, match, scale, params["loss"], axis_name)
            if config.alignment != "none":
                extra = _objective(
                    config, config.alignment, x, y, both, match, scale, params["loss"], axis_name
                )
                value = value + config.alignment_weight * extra
            terms[f"{a}_{b}"] = value
        total = sum(terms.values()) / len(terms)
        share = jax.lax.stop_gradient(scale) / collectives.axis_size(axis_name)
        return total, {**terms, "scale": share}

    slots = [
        EncoderSlot(m, f"{m}/encoder", (m,), tower_head(getattr(config, m), config.head)) for m in modalities
    ]
    return Method(init, loss, embed, encoders=tuple(slots))


def _objective(config, name, x, y, both, match, scale, loss_params, axis_name):
    """This device's share of one pair's objective."""
    if name in ("mmd", "coral", "cca"):
        fn = {"mmd": alignment.mmd, "coral": alignment.coral, "cca": alignment.deep_cca}[name]
        return fn(x, y, present=both, axis_name=axis_name)
    if name == "info_nce":
        per_example = contrastive.info_nce(
            x,
            y,
            temperature=1.0 / scale,
            present=both,
            match=match,
            duplicates=config.duplicates,
            axis_name=axis_name,
            implementation=config.form,
        )
    elif name == "sigmoid":
        per_example = contrastive.sigmoid_loss(
            x,
            y,
            temperature=1.0 / scale,
            bias=loss_params["bias"],
            implementation=config.form,
            present=both,
            match=match,
            duplicates=config.duplicates,
            axis_name=axis_name,
        )
    else:
        per_example = contrastive.triplet_loss(
            x,
            y,
            margin=config.margin,
            present=both,
            match=match,
            duplicates="ignore" if config.duplicates == "ignore" else "exclude",
            axis_name=axis_name,
        )
    return collectives.batch_mean(per_example, both.astype(jnp.float32), axis_name=axis_name)


def text_ids(tokens: Int[Array, "batch length"]) -> Int[Array, "batch"]:
    """A number for each token sequence, equal for equal sequences (and else equal with probability 2^-32)."""
    tokens = tokens.astype(jnp.uint32)
    multiplier = jnp.uint32(0x9E3779B1)
    digest = jnp.zeros(tokens.shape[0], jnp.uint32)
    for position in range(tokens.shape[1]):
        digest = (digest ^ (tokens[:, position] + jnp.uint32(1))) * multiplier
        digest = digest ^ (digest >> 15)
    return digest.astype(jnp.int32)
