"""The networks of a VAE of one or several modalities.

All modalities of one kind and size form a group, whose encoders (and decoders) are one network with stacked parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.vae.modalities import Masked, ModalityConfig, NetworkInputs
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.flows import AutoregressiveFlow
from xmodal_jax.nets.vae import MLP, Expert, Moments, to_log_scale
from xmodal_jax.probability.distributions import FAMILIES, Normal, Posterior, kl, repeat_leading, sample
from xmodal_jax.probability.posteriors import masked_product
from xmodal_jax.probability.priors import Prior
from xmodal_jax.types import ExampleKeys, Params, kind_of

Apply = Callable[..., Any]
"""``apply(method, *args, **options)``: a method of a network, by name, with its parameters."""


class ModalityGroup(NamedTuple):
    """Modalities of one kind and size."""

    kind: str
    size: Size
    names: tuple[str, ...]
    """The modalities."""

    @property
    def name(self) -> str:
        """The group's name in parameter paths: kind, shape of an example and, for tokens and labels, the number of
        their values, such as ``image_28_28_3`` or ``text_20_500``."""
        values = [self.size.values] if self.size.values else []
        return "_".join(map(str, [self.kind, *self.size.shape, *values]))


def pretrained_path(group: str, part: str) -> str:
    """A regular expression that matches the parameter paths of a group's pretrained encoders.

    ``group`` (the group's name) and ``part`` ("experts", or "trunks" of the joint encoder) are regular expressions too.
    """
    return f"(^|/)({part})_{group}/features/encoder/"


def make_groups(sizes: Mapping[str, Size]) -> tuple[ModalityGroup, ...]:
    """The modalities of ``sizes`` (the size of an example of each), grouped by kind and size.

    The groups are in the order of their first modalities.
    """
    groups: dict[tuple, list[str]] = {}
    for name, size in sizes.items():
        groups.setdefault((kind_of(name), size), []).append(name)
    return tuple(ModalityGroup(kind, size, tuple(names)) for (kind, size), names in groups.items())


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network, and which optional parts it has."""

    latent: int = 64
    """Dimensions of the shared latent; 0: encoders return features alone."""
    private: int = 0
    """Dimensions of the private latent of each modality; 0: there is none."""
    hidden: int = 256
    """Units of the hidden layer between an encoder and its posterior, and of the hidden layers of the joint encoder, of
    flows, and of the networks between the levels of a hierarchy of latents."""
    family: str = "normal"
    """Family of posteriors and priors, a key of `probability.distributions.FAMILIES`."""
    scale: str = "exp"
    """How an encoder's output becomes the scale of a posterior, one of `nets.vae.SCALES`."""
    joint: bool = False
    """Whether there is an encoder of all modalities together."""
    clusters: int = 1
    """Components of the mixture that is the prior of the shared latent; 1: no mixture."""
    learn_prior: bool = False
    """Whether the scales of the shared latent's prior are learned; else they are 1."""
    learn_auxiliary: bool = False
    """Whether the scales of the auxiliary priors of private latents are learned; else they are 1."""
    flows: int = 0
    """Number of layers of the normalizing flow that shapes the posterior of the latent given one modality; each
    modality has a flow. 0: there are no flows."""
    top: int = 0
    """Dimensions of the top-level latent above those of the modalities; 0: there is none."""
    levels: int = 1
    """Levels of the hierarchy of latents; 1: no hierarchy."""
    arrays: tuple[tuple[str, Callable[[int], tuple[int, ...]]], ...] = ()
    """Learned arrays that the model's objective reads, initially 0: the name of each, which is its parameter path, and
    its shape as a function of the number of modalities."""


def stack_modalities(module: type, *methods: str) -> Any:
    """The Flax module, vectorised over modalities: parameters, inputs and outputs get a leading axis over modalities,
    in ``__call__`` and in the further ``methods``. By its name `core.trees.stack_rank` has to know that the module's
    parameters are stacked."""
    return nn.vmap(
        module, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, out_axes=0,
        methods=["__call__", *methods],
    )  # fmt: skip


class Decoder(nn.Module):
    """Builds its decoder when it is called, within `stack_modalities`: each modality then has its own parameters."""

    modality: ModalityConfig
    """The configuration of the kind of data."""
    size: Size

    @nn.compact
    def __call__(self, z, tokens, keys):
        """The decoder's outputs for latents ``z [N, D]``; ``tokens [N, L]``: those that an autoregressive decoder
        continues, or None."""
        return self.modality.build_decoder(self.size)(z, tokens, keys=keys)


class _Features(nn.Module):
    """Wraps a network of features in a class, since `stack_modalities` takes classes."""

    features: nn.Module

    def __call__(self, inputs, mask, keys):
        return self.features(inputs, mask, keys)


class EncoderOutputs(NamedTuple):
    """The posterior of each modality alone, over the modalities in the network's order."""

    experts: Posterior | None
    """``[M, B, D]``; None in a hierarchy of latents, whose experts depend on the level above."""
    private: Posterior | None
    """``[M, B, P]``; None without private latents."""
    features: Float[Array, "m batch hidden"]
    """The encoders' features, from which the posteriors are computed."""


class TopDownPass(NamedTuple):
    """Latents of a hierarchy, R for each example (the axis ``rows``): samples, or one for each subset of the modalities
    that they are inferred from."""

    latents: Float[Array, "rows batch latent"]
    """The latents of the first level, which are decoded."""
    divergences: Float[Array, "rows batch levels"]
    """KL divergence of each level's posterior from its prior, from the deepest level on."""
    log_ratio: Float[Array, "rows batch"]
    """``log p(z) - log q(z)`` of the latents of all levels."""
    deepest: Float[Array, "rows batch latent"]
    """The latents of the deepest level."""


def modality_keys(keys: ExampleKeys | None, names: tuple[str, ...]):
    """Keys ``[M, B]``, different for each modality; None without keys."""
    return None if keys is None else jnp.stack([fold_in_name(keys, name) for name in names])


def _sample_keys(keys, samples: int):
    """Keys ``[samples * B]``, different for each latent sample, from keys ``[B]`` of the examples; None without
    keys."""
    if keys is None:
        return None
    # `fold_in` of each example's key with the number of the sample: [samples, B], then flattened.
    keys_of_sample = lambda number: jax.vmap(jax.random.fold_in, (0, None))(keys, number)  # [B]
    return jax.vmap(keys_of_sample)(jnp.arange(samples)).reshape(-1)


class Network(nn.Module):
    """Encoders, decoders and priors of the modalities in ``groups``; arrays over modalities are in the order of
    ``names``."""

    config: NetworkConfig
    modalities: Mapping[str, ModalityConfig]
    """The configuration of each kind of data."""
    groups: tuple[ModalityGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, group after group."""
        return tuple(name for group in self.groups for name in group.names)

    def setup(self):
        """Encoders ("experts") and decoders of every group of modalities, and the feature networks ("trunks") of the
        joint encoder; attribute names are parameter paths."""
        c = self.config
        experts, trunks, decoders = {}, {}, {}
        for group in self.groups:
            modality = self.modalities[group.kind]
            latent = c.latent if c.levels == 1 else 0  # in a hierarchy, other layers compute the posteriors
            features = modality.features(group.size, c.hidden)
            experts[group.name] = stack_modalities(Expert)(features, latent, c.private)
            if c.joint:
                # A new module: if both shared one module, they would share its parameters.
                features = modality.features(group.size, c.hidden)
                trunks[group.name] = stack_modalities(_Features)(features)
            decoders[group.name] = stack_modalities(Decoder)(modality, group.size)
        self.experts, self.trunks, self.decoders = experts, trunks, decoders
        self._setup_optional_parts()
        self._setup_priors()

    def _setup_optional_parts(self):
        """The parts that only some models have, see `NetworkConfig`; attribute names are parameter paths."""
        c = self.config
        if c.joint:
            self.joint_moments = Moments(c.latent, c.hidden)
        if c.flows:
            # "inverse": this method of the flow is vectorised over modalities too, besides ``__call__``.
            self.flow_of_each = stack_modalities(AutoregressiveFlow, "inverse")(c.latent, c.flows, c.hidden)
        if c.top:
            # message_of_each: a modality's latent to its message. gathered: the mean message to the moments of the
            # top-level latent. code_of_each: the top-level latent to the mean of a modality's latent.
            self.message_of_each = stack_modalities(MLP)(c.hidden, c.hidden)
            self.gathered = Moments(c.top, c.hidden)
            self.code_of_each = stack_modalities(MLP)(c.latent, c.hidden)
        if c.levels > 1:
            above = range(c.levels - 1)
            # rises: each modality's features of a level from those of the level below. deepest: its expert at the
            # deepest level. falls: context of a level from the latents above. priors and level_experts: the level's
            # prior and experts given the context.
            self.rises = [stack_modalities(MLP)(c.hidden, c.hidden) for _ in above]
            self.deepest = stack_modalities(Moments)(c.latent)
            self.falls = [MLP(c.hidden, c.hidden) for _ in above]
            self.priors = [Moments(c.latent) for _ in above]
            self.level_experts = [stack_modalities(Moments)(c.latent, c.hidden) for _ in above]

    def _setup_priors(self):
        """Parameters of the priors that are learned, and the model's `NetworkConfig.arrays`; their names are parameter
        paths.

        The initial means of the mixture's components are random, so that the components differ; logits and raw scales
        (which `to_log_scale` maps to scales) start at 0.
        """
        c, zeros = self.config, nn.initializers.zeros_init()
        if c.clusters > 1:
            uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
            self.cluster_means = self.param("cluster_means", uniform, (c.clusters, c.latent))
            self.cluster_logits = self.param("cluster_logits", zeros, (c.clusters,))
        if c.learn_prior:
            self.prior_raw = self.param("prior_raw", zeros, (c.latent,))
        if c.private and c.learn_auxiliary:
            self.auxiliary_raw = self.param("auxiliary_raw", zeros, (len(self.names), c.private))
        self.learned_arrays = {
            name: self.param(name, zeros, shape(len(self.names))) for name, shape in c.arrays
        }

    def _encode_groups(self, encoders, inputs: NetworkInputs, keys: ExampleKeys | None):
        """The outputs of all ``encoders`` for a batch, arrays with a leading axis of modalities in the order of
        `names`.

        ``keys``: of dropout, one for each example, or None. ``encoders``: one for each group (modalities of one kind
        and size) by the group's name, with stacked parameters. `names` lists the modalities group after group: the
        order in which the outputs are concatenated.
        """
        outputs = []
        for group in self.groups:
            x, mask = stack_group(group, inputs.inputs)
            outputs.append(encoders[group.name](x, mask, modality_keys(keys, group.names)))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)

    def encode(self, inputs: NetworkInputs, keys: ExampleKeys | None = None) -> EncoderOutputs:
        """The posterior of each modality alone; ``keys``: of dropout, one for each example, or None."""
        outputs = self._encode_groups(self.experts, inputs, keys)
        family = FAMILIES[self.config.family]

        def posterior(mean, raw):
            """The distribution of this mean and raw scale, ``[M, B, D]``; None where the encoders do not output
            them."""
            return None if mean is None else family(mean, to_log_scale(raw, self.config.scale))

        experts = posterior(outputs.mean, outputs.raw)
        private = posterior(outputs.private_mean, outputs.private_raw)
        return EncoderOutputs(experts, private, outputs.features)

    def encode_joint(self, inputs: NetworkInputs, keys: ExampleKeys | None = None) -> Normal:
        """The joint encoder's posterior ``[B, D]``.

        Its inputs are the features of all modalities (0 where one is missing) and the mask of present modalities; it
        has one hidden layer. ``keys``: of dropout, one for each example, or None.
        """
        keys = None if keys is None else fold_in_name(keys, "joint")
        features = self._encode_groups(self.trunks, inputs, keys)
        features = jnp.where(inputs.present[:, :, None], features, 0.0)  # [M, B, H]
        flat = jnp.moveaxis(features, 0, 1).reshape(features.shape[1], -1)  # [B, M * H]
        mean, raw = self.joint_moments(jnp.concatenate([flat, inputs.present.T.astype(flat.dtype)], axis=-1))
        return Normal(mean, to_log_scale(raw, "exp"))

    def decode(
        self,
        group: ModalityGroup,
        z: Float[Array, "g samples batch latent"],
        tokens=None,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "g samples batch ..."]:
        """The outputs of a group's decoders, for R latent samples of each of B examples. The first axis G is that of
        the group's modalities.

        ``tokens [G, R, B, L]``: the texts that autoregressive decoders continue, or None. ``keys``: of dropout, one for
        each example, or None. Decoders take examples along one axis,
        so samples and examples are merged into it.
        """
        count, samples, batch = z.shape[:3]
        group_keys = modality_keys(keys, group.names)  # of dropout: [G, B], then [G, R * B]
        group_keys = None if group_keys is None else jax.vmap(_sample_keys, (0, None))(group_keys, samples)
        tokens = None if tokens is None else tokens.reshape(count, samples * batch, -1)
        out = self.decoders[group.name](z.reshape(count, samples * batch, -1), tokens, group_keys)
        return out.reshape(count, samples, batch, *out.shape[2:])

    def split_groups(self, z: Float[Array, "m ..."]) -> list[tuple[ModalityGroup, Float[Array, "g ..."]]]:
        """An array ``[M, ...]`` over all modalities, split into one array for each group, with the group.

        `names` lists the modalities group after group, so that each group is one slice of the first axis.
        """
        ends = np.cumsum([len(group.names) for group in self.groups])
        return list(zip(self.groups, jnp.split(z, ends[:-1]), strict=True))

    def log_likelihood(
        self,
        z: Float[Array, "m samples batch latent"],
        inputs: NetworkInputs,
        keys: ExampleKeys | None = None,
        weighted: bool = True,
    ) -> Float[Array, "m samples batch"]:
        """``log p(x_m | z_m)`` of each modality in nats, for R latent samples of each example; 0 where x_m is missing.

        ``inputs``: the batch, whose targets are the x_m. ``keys``: of dropout, None: no dropout. ``weighted``: whether
        it is multiplied by the weight of the modality's kind of data.
        """
        terms, samples = [], z.shape[1]
        for group, latents in self.split_groups(z):
            modality = self.modalities[group.kind]
            # A leading axis over the modalities of the group, over which `vmap` maps. ``tokens``: those that the
            # decoder continues, for texts (teacher forcing); None for other data.
            x, mask = stack_group(group, inputs.targets)
            tokens = jax.vmap(functools.partial(modality.decoder_tokens, samples=samples))(x)
            outputs = self.decode(group, latents, tokens, keys)
            log_likelihood = jax.vmap(modality.log_likelihood)(outputs, x, mask)
            terms.append(modality.weight * log_likelihood if weighted else log_likelihood)
        return jnp.where(inputs.present[:, None], jnp.concatenate(terms), 0.0)

    def prior(self) -> Prior:
        """The priors of all latents: mean 0 and scale 1, apart from what is learned.

        The shared latents' prior has ``clusters`` components. Private latents also have auxiliary priors, one for each
        modality.
        """
        c, family = self.config, FAMILIES[self.config.family]
        # ``family(mean, log_scale)``: log-scale 0 is scale 1.
        components = family(jnp.zeros((c.clusters, c.latent)), jnp.zeros((c.clusters, c.latent)))
        logits = jnp.zeros((c.clusters,))
        if c.clusters > 1:
            components, logits = components._replace(mean=self.cluster_means), self.cluster_logits
        if c.learn_prior:
            log_scale = jnp.broadcast_to(to_log_scale(self.prior_raw, c.scale)[None], components.mean.shape)
            components = components._replace(log_scale=log_scale)
        if not c.private:
            return Prior(components, logits)
        private = family(jnp.zeros((c.private,)), jnp.zeros((c.private,)))
        zeros = jnp.zeros((len(self.names), c.private))
        log_scale = to_log_scale(self.auxiliary_raw, c.scale) if c.learn_auxiliary else zeros
        return Prior(components, logits, private=private, auxiliary=family(zeros, log_scale))

    def learned_array(self, name: str) -> Array:
        """The array of this name in `NetworkConfig.arrays`."""
        return self.learned_arrays[name]

    def init_all(self, inputs: NetworkInputs, keys: ExampleKeys) -> None:
        """Calls every part once, to initialise its parameters: on latents of zeros, as only shapes matter."""
        c, count, batch = self.config, *inputs.present.shape
        outputs = self.encode(inputs, keys)
        if c.joint:
            self.encode_joint(inputs, keys)
        self.log_likelihood(jnp.zeros((count, 1, batch, c.latent + c.private)), inputs, keys)
        self.prior()
        if c.flows:
            self.flow(jnp.zeros((batch, c.latent)))
        if c.top:
            message = self.message(jnp.zeros((count, batch, c.latent)))
            self.encode_top(message[0])  # any [B, H] serves in place of the mean message
            self.decode_top(jnp.zeros((batch, c.top)))
        if c.levels > 1:
            self.top_down_pass(outputs.features, inputs.present[None], keys)

    # A latent above those of the modalities (Nexus).

    def message(self, latents: Float[Array, "m batch latent"]) -> Float[Array, "m batch hidden"]:
        """The message of each modality's latent to the level above."""
        return self.message_of_each(latents)

    def encode_top(self, message: Float[Array, "batch hidden"]) -> Normal:
        """The posterior ``[B, T]`` of the top-level latent, from the mean of the messages."""
        mean, raw = self.gathered(message)
        return Normal(mean, to_log_scale(raw, "exp"))

    def decode_top(self, top: Float[Array, "*rows batch top"]) -> Float[Array, "m *rows batch latent"]:
        """The mean of each modality's latent given the top-level latent, by one network for each modality."""
        return self.code_of_each(jnp.broadcast_to(top[None], (len(self.names), *top.shape)))

    # Flows (JNF).

    def flow(self, z: Float[Array, "batch latent"]) -> tuple[Array, Array]:
        """Latents in the base space of each modality's flow, ``[M, B, D]``, and ``log |det|`` ``[M, B]``."""
        return self.flow_of_each(jnp.broadcast_to(z[None], (len(self.names), *z.shape)))

    def inverse_flow(self, base: Float[Array, "m batch latent"]) -> Float[Array, "m batch latent"]:
        """The inverse of each modality's `flow`."""
        return self.flow_of_each.inverse(base)

    # A hierarchy of latents (MHVAE).

    def top_down_pass(
        self,
        features: Float[Array, "m batch hidden"],
        mask: Bool[Array, "rows m batch"],
        keys: ExampleKeys | None,
        deepest: Float[Array, "rows batch latent"] | None = None,
    ) -> TopDownPass:
        """Latents of all levels, from the deepest to the first, which is decoded.

        The prior of the deepest level is N(0, 1); that of every other level depends on the latents one level deeper. A
        level's posterior is the product of its prior and the experts of the modalities under the mask; where the mask
        is empty it is the prior.

        Args:
          features: the encoder's, of each modality.
          mask: which modalities each of the R latents (axis ``rows``) of an example is inferred from.
          keys: of the samples; None: means instead of samples.
          deepest: the latents of the deepest level, if they are known.
        """
        rows = mask.shape[0]
        features_by_level = [features]  # the first level first
        for rise in self.rises:
            features_by_level.append(rise(features_by_level[-1]))
        zeros = jnp.zeros((rows, mask.shape[-1], self.config.latent))
        prior, divergences, z = (
            Normal(zeros, zeros),
            [],
            None,
        )  # the deepest level's prior: mean 0, log-scale 0
        ratio = jnp.zeros(zeros.shape[:2])  # log p(z) - log q(z), summed over the levels
        for level in range(self.config.levels, 0, -1):
            if level == self.config.levels:
                # The features' experts [M, B, D] are the same for all R latents: [R, M, B, D].
                mean, raw = repeat_leading(self.deepest(features_by_level[-1]), rows)
                experts = Normal(mean, to_log_scale(raw, "exp"))
            else:
                prior, experts = self._prior_and_experts(level, z, features_by_level[level - 1])
            q = masked_product(experts, mask, prior)
            z = q.mean
            if keys is not None:
                z = sample(q, keys, f"level_{level}")
            if level == self.config.levels:
                deepest = z if deepest is None else deepest
                z = deepest  # where it is given, it replaces the sample
            divergences.append(kl(q, prior).sum(axis=-1))
            ratio = ratio + (prior.log_prob(z) - q.log_prob(z)).sum(axis=-1)
        return TopDownPass(z, jnp.stack(divergences, axis=-1), log_ratio=ratio, deepest=deepest)

    def _prior_and_experts(
        self,
        level: int,
        deeper: Float[Array, "rows batch latent"],
        features: Float[Array, "m batch hidden"],
    ) -> tuple[Normal, Normal]:
        """Prior ``[rows, B, D]`` and experts ``[rows, M, B, D]`` of a level above the deepest one, given the latents
        one level ``deeper`` and the modalities' features at this level."""
        # Levels count from 1 at the first; the lists of networks have one entry for each level but the deepest.
        context = self.falls[level - 1](deeper)
        mean, raw = self.priors[level - 1](context)
        prior = Normal(mean, to_log_scale(raw, "exp"))
        # The context is the same for all modalities, the features are the same for all R latents of an example.
        expert_inputs = [
            jnp.broadcast_to(context[None], (len(features), *context.shape)),
            jnp.moveaxis(jnp.broadcast_to(features[None], (len(deeper), *features.shape)), 1, 0),
        ]
        # Concatenated [M, R, B, 2 H]. The moments [M, R, B, D] get the axis R first, as `masked_product` takes them.
        moments = self.level_experts[level - 1](jnp.concatenate(expert_inputs, axis=-1))
        mean, raw = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), moments)
        return prior, Normal(mean, to_log_scale(raw, "exp"))


def stack_group(group: ModalityGroup, arrays: Mapping[str, Masked]) -> Masked:
    """The arrays (and masks) of a group's modalities with a leading axis over them."""
    return jax.tree.map(lambda *x: jnp.stack(x), *[arrays[name] for name in group.names])


def bind(network: nn.Module, params: Params) -> Apply:
    """``apply(method, *args, **options)``: the network's methods with these parameters."""
    return lambda method, *args, **options: network.apply({"params": params}, *args, method=method, **options)
