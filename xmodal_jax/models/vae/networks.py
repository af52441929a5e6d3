"""The networks of a multimodal VAE: all modalities of one kind and shape are one network with stacked parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.towers import make_encoder
from xmodal_jax.nets.decoders import DecoderConfig, Size, build_latent_decoder
from xmodal_jax.nets.encoders import EncoderConfig, PretrainedEncoderConfig
from xmodal_jax.nets.flows import AutoregressiveFlow
from xmodal_jax.nets.vae import MLP, Expert, Features, Moments, PooledFeatures, log_scale_of
from xmodal_jax.probability.distributions import FAMILIES, Normal, Posterior, kl, sample
from xmodal_jax.probability.likelihoods import (
    dense_log_likelihood,
    label_log_likelihood,
    token_log_likelihood,
)
from xmodal_jax.probability.posteriors import masked_product
from xmodal_jax.probability.priors import Prior
from xmodal_jax.types import ExampleKeys, kind_of


@dataclasses.dataclass(frozen=True)
class ModalityConfig:
    """How modalities of one kind are read, made and compared."""

    encoder: EncoderConfig | None
    """None for labels, which need none."""
    decoder: DecoderConfig
    likelihood: str
    """"laplace", "normal" or "bernoulli" (images in [0, 1], log-mel frames), or "categorical" (text, labels)."""
    scale: float = 1.0
    """Laplace's b or the normal's standard deviation."""
    weight: float = 1.0
    """Of its log-likelihood."""


class Group(NamedTuple):
    """Modalities of one kind and size."""

    kind: str
    size: Size
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its parameters."""
        values = [self.size.values] if self.size.values else []
        return "_".join(map(str, [self.kind, *self.size.shape, *values]))

    def features(self, encoder: EncoderConfig | None, hidden: int) -> Features | PooledFeatures:
        """What its modalities are read by."""
        if isinstance(encoder, PretrainedEncoderConfig):
            return PooledFeatures(self.encoder(encoder), hidden)
        sizes: dict[str, int] = {}
        if self.kind == "text":
            sizes = dict(vocab_size=self.size.values, max_length=self.size.shape[0])
        elif self.kind == "label":
            sizes = dict(classes=self.size.values)
        return Features(self.kind, encoder, hidden, **sizes)

    def encoder(self, config: EncoderConfig) -> nn.Module:
        """A pretrained encoder of its modalities with what pools its tokens."""
        example = {self.kind: jax.ShapeDtypeStruct((1, *self.size.shape), jnp.float32)}
        return make_encoder(self.kind, config, example, vocab_size=self.size.values, far="pool")


def encoder_place(group: str, part: str) -> str:
    """A regular expression of where the pretrained encoders of a group lie among the parameters; both are such."""
    return f"(^|/)({part})_{group}/features/encoder/"


def make_groups(sizes: Mapping[str, Size]) -> tuple[Group, ...]:
    """The modalities, together where kind and size agree; in the order in which they come first."""
    groups: dict[tuple, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault((kind_of(name), size), []).append(name)
    return tuple(Group(kind, size, tuple(names)) for (kind, size), names in groups.items())


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes, and which of its parts a network has."""

    latent: int = 64
    private: int = 0
    hidden: int = 256
    family: str = "normal"
    scale: str = "exp"
    joint: bool = False
    clusters: int = 1
    learn_prior: bool = False
    learn_auxiliary: bool = False
    flows: int = 0
    """Layers of a flow for each modality."""
    top: int = 0
    """Dimensions of a code above the modalities' own."""
    levels: int = 1
    """Levels of latent variables."""


def stacked(module: type, *others: str) -> Any:
    """The module with a leading axis on parameters, inputs and outputs, in its ``__call__`` and its ``others``."""
    return nn.vmap(
        module, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, out_axes=0,
        methods=["__call__", *others],
    )  # fmt: skip


class _Decoder(nn.Module):
    """A decoder that is built where it is stacked."""

    kind: str
    config: DecoderConfig
    size: Size

    @nn.compact
    def __call__(self, z, told, keys):
        return build_latent_decoder(self.kind, self.config, self.size)(z, told, keys=keys)


class _Trunk(nn.Module):
    """Features that are stacked."""

    features: nn.Module

    def __call__(self, inputs, mask, keys):
        return self.features(inputs, mask, keys)


class Seen(NamedTuple):
    """A batch as the network takes it: of each modality by name what its encoder is given (with its mask) and what its
    decoder is to say (with the mask of what counts)."""

    inputs: dict[str, tuple[Array, Array | None]]
    targets: dict[str, tuple[Array, Array | None]]
    present: Bool[Array, "m batch"]


class Latents(NamedTuple):
    """What the encoders say, over the modalities in the network's order."""

    experts: Posterior | None
    """``[M, B, D]``; None where there are several levels of them."""
    private: Posterior | None
    """``[M, B, P]``."""
    features: Float[Array, "m batch hidden"]


class TopDownPass(NamedTuple):
    """Latent variables of several levels, in several rows."""

    latents: Float[Array, "rows batch latent"]
    """What the decoders are given."""
    divergences: Float[Array, "rows batch levels"]
    """KL of each level's posterior to its prior, from the deepest."""
    log_ratio: Float[Array, "rows batch"]
    """``log p(z) - log q(z)`` of all levels."""
    deepest: Float[Array, "rows batch latent"]


def member_keys(keys: ExampleKeys | None, names: tuple[str, ...]):
    """Keys ``[M, B]``, each modality's own; None where there are none."""
    return None if keys is None else jnp.stack([fold_in_name(keys, name) for name in names])


def _row_keys(keys, rows: int):
    """Keys ``[B]`` as keys ``[rows * B]``, each its own."""
    if keys is None:
        return None
    return jax.vmap(lambda row: jax.vmap(jax.random.fold_in, (0, None))(keys, row))(jnp.arange(rows)).reshape(
        -1
    )


class Network(nn.Module):
    """Encoders, decoders and priors of the modalities in ``groups``; arrays over modalities are in the order of
    ``names``."""

    config: NetworkConfig
    kinds: Mapping[str, ModalityConfig]
    groups: tuple[Group, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, group after group."""
        return tuple(name for group in self.groups for name in group.names)

    def setup(self):
        c, count = self.config, len(self.names)
        experts, trunks, decoders = {}, {}, {}
        for group in self.groups:
            kind = self.kinds[group.kind]
            features = group.features(kind.encoder, c.hidden)
            latent = c.latent if c.levels == 1 else 0
            experts[group.name] = stacked(Expert)(features, latent, c.private)
            if c.joint:
                # Anew: one module given to two owners would be one set of parameters.
                trunks[group.name] = stacked(_Trunk)(group.features(kind.encoder, c.hidden))
            decoders[group.name] = stacked(_Decoder)(group.kind, kind.decoder, group.size)
        self.experts, self.trunks, self.decoders = experts, trunks, decoders
        if c.joint:
            self.joint_moments = Moments(c.latent, c.hidden)
        if c.flows:
            self.flow_of_each = stacked(AutoregressiveFlow, "inverse")(c.latent, c.flows, c.hidden)
        if c.top:
            self.message_of_each = stacked(MLP)(c.hidden, c.hidden)
            self.gathered = Moments(c.top, c.hidden)
            self.code_of_each = stacked(MLP)(c.latent, c.hidden)
        if c.levels > 1:
            self.rises = [stacked(MLP)(c.hidden, c.hidden) for _ in range(c.levels - 1)]
            self.deepest = stacked(Moments)(c.latent)
            self.falls = [MLP(c.hidden, c.hidden) for _ in range(c.levels - 1)]
            self.priors = [Moments(c.latent) for _ in range(c.levels - 1)]
            self.level_experts = [stacked(Moments)(c.latent, c.hidden) for _ in range(c.levels - 1)]
        zeros = nn.initializers.zeros_init()
        if c.clusters > 1:
            spread = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
            self.cluster_means = self.param("cluster_means", spread, (c.clusters, c.latent))
            self.cluster_logits = self.param("cluster_logits", zeros, (c.clusters,))
        if c.learn_prior:
            self.prior_raw = self.param("prior_raw", zeros, (c.latent,))
        if c.private and c.learn_auxiliary:
            self.auxiliary_raw = self.param("auxiliary_raw", zeros, (count, c.private))

    def _stack(self, group: Group, of: Mapping[str, tuple[Array, Array | None]]):
        members = [of[name] for name in group.names]
        return jax.tree.map(lambda *x: jnp.stack(x), *members)

    def _features_of(self, modules, seen: Seen, keys: ExampleKeys | None):
        """Of every group what its module says, joined in the order of the modalities."""
        found = []
        for group in self.groups:
            inputs, mask = self._stack(group, seen.inputs)
            found.append(modules[group.name](inputs, mask, member_keys(keys, group.names)))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *found)

    def encode(self, seen: Seen, keys: ExampleKeys | None = None) -> Latents:
        """Every modality's expert."""
        said = self._features_of(self.experts, seen, keys)
        family = FAMILIES[self.config.family]

        def posterior(mean, raw):
            return None if mean is None else family(mean, log_scale_of(raw, self.config.scale))

        experts = posterior(said.mean, said.raw)
        return Latents(experts, posterior(said.private_mean, said.private_raw), said.features)

    def join(self, seen: Seen, keys: ExampleKeys | None = None) -> Normal:
        """The posterior ``[B, D]`` of an encoder that sees all modalities at once: the features of each (zeros
        where it is missing), which are there, and one hidden layer."""
        keys = None if keys is None else fold_in_name(keys, "joint")
        features = self._features_of(self.trunks, seen, keys)
        features = jnp.where(seen.present[:, :, None], features, 0.0)
        beside = jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)
        mean, raw = self.joint_moments(
            jnp.concatenate([beside, seen.present.T.astype(beside.dtype)], axis=-1)
        )
        return Normal(mean, log_scale_of(raw, "exp"))

    def decode(
        self, group: Group, z: Float[Array, "g rows batch latent"], ids=None, keys: ExampleKeys | None = None
    ) -> Float[Array, "g rows batch ..."]:
        """What the decoders of a group say of codes. ``ids [G, rows, B, L]``: the texts that an autoregressive decoder
        goes on from."""
        count, rows, batch = z.shape[:3]
        own = member_keys(keys, group.names)
        own = None if own is None else jax.vmap(_row_keys, (0, None))(own, rows)
        ids = None if ids is None else ids.reshape(count, rows * batch, -1)
        out = self.decoders[group.name](z.reshape(count, rows * batch, -1), ids, own)
        return out.reshape(count, rows, batch, *out.shape[2:])

    def parts(self, z: Float[Array, "m ..."]) -> list[tuple[Group, Float[Array, "g ..."]]]:
        """Each group's part of an array over all modalities."""
        ends = np.cumsum([len(group.names) for group in self.groups])
        return list(zip(self.groups, jnp.split(z, ends[:-1]), strict=True))

    def log_likelihood(
        self,
        z: Float[Array, "m rows batch latent"],
        seen: Seen,
        keys: ExampleKeys | None = None,
        weighted: bool = True,
    ) -> Float[Array, "m rows batch"]:
        """``log p(x_m | z_m)``, times its weight if ``weighted``, 0 where x_m is missing."""
        found = []
        for group, codes in self.parts(z):
            kind = self.kinds[group.kind]
            x, mask = self._stack(group, seen.targets)
            ids = None
            if group.kind == "text":
                ids = jnp.broadcast_to(x[:, None], (len(x), codes.shape[1], *x.shape[1:]))
            out = self.decode(group, codes, ids, keys)
            if group.kind == "text":
                terms = jax.vmap(token_log_likelihood)(out, x, mask)
            elif group.kind == "label":
                terms = jax.vmap(label_log_likelihood)(out, x)
            else:
                density = functools.partial(dense_log_likelihood, kind.likelihood, scale=kind.scale)
                terms = jax.vmap(density)(out, x)
            found.append(kind.weight * terms if weighted else terms)
        return jnp.where(seen.present[:, None], jnp.concatenate(found), 0.0)

    def prior(self) -> Prior:
        """The distributions that latent variables come from."""
        c, family = self.config, FAMILIES[self.config.family]
        components = family(jnp.zeros((c.clusters, c.latent)), jnp.zeros((c.clusters, c.latent)))
        logits = jnp.zeros((c.clusters,))
        if c.clusters > 1:
            components, logits = components._replace(mean=self.cluster_means), self.cluster_logits
        if c.learn_prior:
            scale = jnp.broadcast_to(log_scale_of(self.prior_raw, c.scale)[None], components.mean.shape)
            components = components._replace(log_scale=scale)
        if not c.private:
            return Prior(components, logits)
        private = family(jnp.zeros((c.private,)), jnp.zeros((c.private,)))
        zeros = jnp.zeros((len(self.names), c.private))
        scale = log_scale_of(self.auxiliary_raw, c.scale) if c.learn_auxiliary else zeros
        return Prior(components, logits, private, family(zeros, scale))

    def everything(self, seen: Seen, keys: ExampleKeys) -> None:
        """Calls every part once, to initialise it."""
        c, count, batch = self.config, *seen.present.shape
        latents = self.encode(seen, keys)
        if c.joint:
            self.join(seen, keys)
        self.log_likelihood(jnp.zeros((count, 1, batch, c.latent + c.private)), seen, keys)
        self.prior()
        if c.flows:
            self.flow(jnp.zeros((batch, c.latent)))
        if c.top:
            self.encode_top(self.message(jnp.zeros((count, batch, c.latent)))[0])
            self.decode_top(jnp.zeros((batch, c.top)))
        if c.levels > 1:
            self.top_down_pass(latents.features, seen.present[None], keys)

    # Nexus

    def message(self, codes: Float[Array, "m batch latent"]) -> Float[Array, "m batch hidden"]:
        """What each modality's code tells the level above."""
        return self.message_of_each(codes)

    def encode_top(self, message: Float[Array, "batch hidden"]) -> Normal:
        """The posterior of the code above ``[B, T]``."""
        mean, raw = self.gathered(message)
        return Normal(mean, log_scale_of(raw, "exp"))

    def decode_top(self, top: Float[Array, "*rows batch top"]) -> Float[Array, "m *rows batch latent"]:
        """The mean of each modality's code given the code above."""
        return self.code_of_each(jnp.broadcast_to(top[None], (len(self.names), *top.shape)))

    # JNF

    def flow(self, z: Float[Array, "batch latent"]) -> tuple[Array, Array]:
        """A code to where each modality's expert is a normal distribution, and ``log |det|``: ``[M, B, D]``, ``[M,
        B]``."""
        return self.flow_of_each(jnp.broadcast_to(z[None], (len(self.names), *z.shape)))

    def unflow(self, base: Float[Array, "m batch latent"]) -> Float[Array, "m batch latent"]:
        """The inverse of `flow`, of each modality's own."""
        return self.flow_of_each.inverse(base)

    # MHVAE

    def top_down_pass(
        self,
        features: Float[Array, "m batch hidden"],
        there: Bool[Array, "rows m batch"],
        keys: ExampleKeys | None,
        deepest: Float[Array, "rows batch latent"] | None = None,
    ) -> TopDownPass:
        """From the deepest level to the first, each level's posterior the product of its prior and of the experts that
        are ``there``: with none of them a draw from the prior. ``deepest``: the deepest code, where it is known. Means
        and no draws without ``keys``."""
        rows, count = there.shape[:2]
        risen = [features]
        for rise in self.rises:
            risen.append(rise(risen[-1]))
        lift = lambda x: jnp.broadcast_to(x[None], (rows, *x.shape))
        zeros = jnp.zeros((rows, there.shape[-1], self.config.latent))
        prior, divergences, z = Normal(zeros, zeros), [], None
        ratio = jnp.zeros(zeros.shape[:2])
        for level in range(self.config.levels, 0, -1):
            if level == self.config.levels:
                mean, raw = jax.tree.map(lift, self.deepest(risen[-1]))
            else:
                below = self.falls[level - 1](z)
                mean, raw = self.priors[level - 1](below)
                prior = Normal(mean, log_scale_of(raw, "exp"))
                beside = [
                    jnp.broadcast_to(below[None], (count, *below.shape)),
                    jnp.moveaxis(lift(risen[level - 1]), 1, 0),
                ]
                moments = self.level_experts[level - 1](jnp.concatenate(beside, axis=-1))
                mean, raw = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), moments)
            q = masked_product(Normal(mean, log_scale_of(raw, "exp")), there, prior)
            z = q.mean
            if keys is not None:
                z = sample(q, keys, f"level_{level}")
            if level == self.config.levels:
                top = z = z if deepest is None else deepest
            divergences.append(kl(q, prior).sum(axis=-1))
            ratio = ratio + (prior.log_prob(z) - q.log_prob(z)).sum(axis=-1)
        return TopDownPass(z, jnp.stack(divergences, axis=-1), ratio, top)
