"""Judges: evaluation classifiers, one for each modality, trained together. They predict the class of generated data,
and their features are used to compare generated with real data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.random import batch_keys
from xmodal_jax.models.towers import first_example
from xmodal_jax.models.vae.modalities import ModalityConfig, ModalityConfigs, NetworkInputs, preprocess
from xmodal_jax.models.vae.networks import (
    ModalityGroup,
    make_groups,
    modality_keys,
    stack_group,
    stack_modalities,
)
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.types import Batch, Method


class JudgeOutputs(NamedTuple):
    """Logits and features of the judges (classifiers); the axis M is in the order of `Judges.modalities`."""

    logits: Float[Array, "batch m classes"]
    features: Float[Array, "batch m hidden"]


class Judges(NamedTuple):
    """Classifiers that are trained together and share no parameters."""

    method: Method
    """``method.predict(params, batch)`` returns `JudgeOutputs`."""
    modalities: tuple[str, ...]


class _Classifier(nn.Module):
    """The classifier of one modality: features ``[B, hidden]`` and a linear layer. Returns logits and features."""

    features: nn.Module
    classes: int

    @nn.compact
    def __call__(self, inputs, mask, keys):
        """``keys``: of dropout, one for each example; None: no dropout."""
        h = self.features(inputs, mask, keys)
        return nn.Dense(self.classes, name="classes")(h), h


class _Classifiers(nn.Module):
    """The classifiers of all modalities; modalities of one kind and size form a group, with stacked parameters."""

    modalities: Mapping[str, ModalityConfig]
    """The configuration of each kind of data."""
    groups: tuple[ModalityGroup, ...]
    hidden: int
    classes: int

    @nn.compact
    def __call__(self, inputs: NetworkInputs, keys) -> JudgeOutputs:
        """Logits ``[B, M, classes]`` and features ``[B, M, hidden]`` of each modality.

        The names of the modules are parameter paths.
        """
        outputs = []
        for k, group in enumerate(self.groups):
            features = self.modalities[group.kind].features(group.size, self.hidden, name=f"Features_{k}")
            classifiers = stack_modalities(_Classifier)(
                features, self.classes, name=f"classifiers_{group.name}"
            )
            x, mask = stack_group(group, inputs.inputs)
            outputs.append(classifiers(x, mask, modality_keys(keys, group.names)))
        # Concatenates the groups along the axis of modalities, and moves this axis behind that of examples.
        logits, features = jax.tree.map(lambda *x: jnp.moveaxis(jnp.concatenate(x), 0, 1), *outputs)
        return JudgeOutputs(logits, features)


def make_judges(
    configs: ModalityConfigs,
    sizes: Mapping[str, Size],
    classes: int,
    *,
    hidden: int = 128,
    encoders: Mapping[str, EncoderConfig | None] | None = None,
) -> Judges:
    """Classifiers of ``classes``, one for each modality in ``sizes``.

    The loss is the mean cross-entropy of the modalities that are present, of examples whose ``label`` is known.

    Args:
      configs: how data are preprocessed.
      sizes: the size of an example of each modality, see `models.vae.modalities.sizes_of`.
      classes: number of classes.
      hidden: number of each classifier's features.
      encoders: the classifiers' encoder by kind of data (None for labels, which need none); None: each kind's
        ``judge_encoder``.
    """
    groups, configs_by_kind = make_groups(sizes), {}
    for kind in {group.kind for group in groups}:
        config = configs.for_modality(kind)
        encoder = config.judge_encoder if encoders is None else encoders[kind]
        # Labels need no encoder: theirs is None.
        configs_by_kind[kind] = config if encoder is None else dataclasses.replace(config, encoder=encoder)
    network = _Classifiers(configs_by_kind, groups, hidden, classes)
    names = tuple(name for group in groups for name in group.names)

    def init(key, batch: Batch):
        return network.init(key, preprocess(configs, names, first_example(batch)), keys=None)["params"]

    def loss(params, batch: Batch, key, *, axis_name=None):
        """The mean cross-entropy over the present modalities of the examples with a known label; aux: the accuracy.

        Under ``axis_name`` both are this device's shares of the means.
        """
        keys = batch_keys(key, batch)
        inputs = preprocess(configs, names, batch, keys)
        logits = network.apply({"params": params}, inputs, keys).logits
        labels = jnp.broadcast_to(batch["label"][:, None], logits.shape[:2])  # [B, M]
        # An unknown label (-1) has weight 0; any class serves as its target.
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        weights = (inputs.present.T & (labels >= 0)).astype(jnp.float32)

        def mean_share(values):
            """This device's share of the weighted mean of ``values [B, M]`` over the global batch."""
            return collectives.batch_mean(values.reshape(-1), weights.reshape(-1), axis_name=axis_name)

        correct = (logits.argmax(axis=-1) == labels).astype(jnp.float32)
        return mean_share(nats), {"accuracy": mean_share(correct)}

    def predict(params, batch: Batch) -> JudgeOutputs:
        return network.apply({"params": params}, preprocess(configs, names, batch), keys=None)

    return Judges(Method(init, loss, predict), names)
