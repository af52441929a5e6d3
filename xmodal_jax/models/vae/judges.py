"""Classifiers of every modality alone, all at once: what tells the class of a generated modality, and whose
features compare generated with real data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.random import example_keys
from xmodal_jax.models.towers import init_inputs
from xmodal_jax.models.vae.modalities import Reading, see
from xmodal_jax.models.vae.networks import (
    Group,
    Seen,
    make_groups,
    member_keys,
    stacked,
)
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import (
    AudioTransformerConfig,
    ConvNetConfig,
    EncoderConfig,
    TextTransformerConfig,
)
from xmodal_jax.types import Batch, Method


class Verdict(NamedTuple):
    """What the judges say of a batch, over the modalities in the order of `Judges.modalities`."""

    logits: Float[Array, "batch m classes"]
    features: Float[Array, "batch m hidden"]


class Judges(NamedTuple):
    """Classifiers that learn together but share nothing."""

    method: Method
    """Its ``predict(params, batch)`` gives a `Verdict`."""
    modalities: tuple[str, ...]


class _One(nn.Module):
    features: nn.Module
    classes: int

    @nn.compact
    def __call__(self, inputs, mask, keys):
        h = self.features(inputs, mask, keys)
        return nn.Dense(self.classes, name="classes")(h), h


class _All(nn.Module):
    encoders: Mapping[str, EncoderConfig | None]
    groups: tuple[Group, ...]
    hidden: int
    classes: int

    @nn.compact
    def __call__(self, seen: Seen, keys) -> Verdict:
        found = []
        for group in self.groups:
            features = group.features(self.encoders[group.kind], self.hidden)
            members = [seen.inputs[name] for name in group.names]
            inputs, mask = jax.tree.map(lambda *x: jnp.stack(x), *members)
            found.append(
                stacked(_One)(features, self.classes, name=group.name)(
                    inputs, mask, member_keys(keys, group.names)
                )
            )
        logits, features = jax.tree.map(lambda *x: jnp.moveaxis(jnp.concatenate(x), 0, 1), *found)
        return Verdict(logits, features)


ENCODERS: Mapping[str, EncoderConfig | None] = {
    "image": ConvNetConfig(width=64, norm="none"),
    "text": TextTransformerConfig(width=64),
    "audio": AudioTransformerConfig(width=64, downsample=16),
    "label": None,
}
"""What judges see with; other networks than those they judge."""


def make_judges(
    config: Reading,
    sizes: Mapping[str, Size],
    classes: int,
    *,
    hidden: int = 128,
    encoders: Mapping[str, EncoderConfig | None] = ENCODERS,
) -> Judges:
    """Classifiers of ``classes``, one for each modality in ``sizes``; ``config`` says how data are read.

    The loss is the mean cross-entropy of the modalities that are present, of examples whose ``label`` is known.
    """
    groups = make_groups(sizes)
    network = _All({g.kind: encoders[g.kind] for g in groups}, groups, hidden, classes)
    names = tuple(name for group in groups for name in group.names)

    def init(key, batch: Batch):
        one = init_inputs(batch)
        return network.init(key, see(config, names, one), None)["params"]

    def loss(params, batch: Batch, key, *, axis_name=None):
        keys = example_keys(key, batch["index"])
        seen = see(config, names, batch, keys)
        logits = network.apply({"params": params}, seen, keys).logits
        labels = jnp.broadcast_to(batch["label"][:, None], logits.shape[:2])
        terms = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        counts = (seen.present.T & (labels >= 0)).astype(jnp.float32)
        mean: Callable = lambda x: collectives.batch_mean(
            x.reshape(-1), counts.reshape(-1), axis_name=axis_name
        )
        right = (logits.argmax(axis=-1) == labels).astype(jnp.float32)
        return mean(terms), {"accuracy": mean(right)}

    def predict(params, batch: Batch) -> Verdict:
        return network.apply({"params": params}, see(config, names, batch), None)

    return Judges(Method(init, loss, predict), names)
