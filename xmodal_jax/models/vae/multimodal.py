"""Multimodal VAEs: encoders, decoders and an objective, bound into functions that train, translate between any
subsets of the modalities, generate, and estimate likelihoods.

The models are in `models.vae.multimodal_models`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.random import batch_keys, example_keys
from xmodal_jax.losses.elbo import importance_bound, kl_with_free_bits
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms, Weight
from xmodal_jax.models.towers import Encoders, first_example
from xmodal_jax.models.vae.generation import decode_all
from xmodal_jax.models.vae.inference import LatentSamples, add_private, with_exact_prior
from xmodal_jax.models.vae.modalities import NetworkInputs, preprocess, used_configs
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEConfig
from xmodal_jax.models.vae.networks import Apply, Network, TopDownPass, bind, make_groups
from xmodal_jax.nets.decoders import Size
from xmodal_jax.probability.distributions import Posterior, standard_like
from xmodal_jax.probability.mixtures import Mixture, as_mixture
from xmodal_jax.probability.posteriors import mask_experts
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params, Stage

INITIAL_STAGE_PREFIXES = ("decoders", "trunks", "joint")
"""The first parts of the names of the parameters that the initial stage trains, those of the joint VAE: its decoders,
and its encoder of all modalities together (feature networks ``trunks_…`` and the layer ``joint_moments``). In the
second stage the training step leaves them unchanged (see `types.Stage`)."""


class MultimodalVAE(NamedTuple):
    """A multimodal VAE as pure functions.

    The axes of arrays:

    - M: modalities; B: examples; R: samples of the latents of each example;
    - N: samples of the prior or of another density, which belong to no example;
    - D: dimensions of the shared latents;
    - D': dimensions of the latents that one modality is decoded from. They are the shared latents, followed by the
      modality's private ones if it has any; in a hierarchy of latents they are those of the first level.
    """

    method: Method
    modalities: tuple[str, ...]
    """The modalities, in the order of every axis M."""
    infer: Callable[..., LatentSamples]
    """``infer(params, batch, observed, key, samples=1)``: samples of the latents given the modalities that are both
    ``observed [M]`` and present. They are drawn from ``key`` and the examples' indices; with key None they are means.
    The result has ``z [M, R, B, D']``, ``log_ratio [R, B]`` and ``shared [R, B, D]``, see `LatentSamples`; for several
    subsets of the modalities, ``observed [S, M]``, all three have a leading axis S."""
    decode: Callable[..., dict[str, Array]]
    """``decode(params, z [M, R, B, D'], key)``: data ``[R, B, ...]`` by name of the modality: images in [0, 1], token
    ids, log-mel frames or classes. Texts and classes are drawn from ``key``; with key None they are the likeliest
    ones."""
    decoder_latents: Callable[..., Array]
    """``decoder_latents(params, shared [N, D], key) -> z [M, 1, N, D']``: the latents that each modality is decoded
    from, given shared latents, such as samples of the prior or a traversal; the axis of length 1 is that of samples.
    Private latents are drawn from their prior; with key None they are its mean."""
    sample_prior: Callable[..., Array] | None
    """``sample_prior(params, key, count) -> shared [count, D]``: samples of the prior of the shared latents. None where
    they have none (mmvm, whose prior depends on the data), and for a conditional VAE of one modality whose prior is
    learned (`adapter.as_multimodal`): that prior is p(z | label), and here there is no label. A density that is fitted
    to latents (`evaluation.latent_density`) can be sampled in its place."""
    log_likelihood: Callable[..., Array]
    """``log_likelihood(params, batch, key, observed, targets, samples)``: the importance-weighted estimate ``[B]`` of
    ``log p(x_targets)`` in nats, from samples of ``q(z | x_observed)``; missing targets are left out. A model without a
    prior of the latents raises ValueError."""
    posterior: Callable[..., Mixture] | None = None
    """``posterior(params, inputs, observed)``: the density ``q(z | x_observed)`` of the shared latents, of inputs that
    `modalities.preprocess` made; for several subsets ``observed [S, M]`` every array has a leading axis S. None where
    that density is not known: in a hierarchy of latents (mhvae), where the latents of the modalities are sampled in
    between (nexus), where several modalities are combined by Monte Carlo (jnf), and without a prior (mmvm), which it
    would be of nothing observed."""
    decoder_samples: Callable[..., Array] | None = None
    """``decoder_samples(params, inputs, shared [R, B, D], observed, keys) -> z [M, R, B, D']``: the latents that each
    modality is decoded from, given shared ones. The private latents of an observed modality are drawn from its
    posterior, those of the others from their prior p(w)."""
    sample: Callable[..., dict[str, Array]] | None = None
    """``sample(params, z [M, R, B, D'], key)``: as ``decode``, but drawn from the likelihood ``p(x_m | z)``, with its
    noise; images are clipped to [0, 1]."""
    class_latents: Callable[..., Array] | None = None
    """``class_latents(params, labels [N], key) -> z [M, 1, N, D']``: samples of the prior of each class, as ``decode``
    takes them. None where the model is not conditioned on the class."""


def make_multimodal_vae(
    config: MultimodalVAEConfig, sizes: Mapping[str, Size], *, encoders: Encoders | None = None
) -> MultimodalVAE:
    """The model of ``config`` over the modalities in ``sizes`` (see `models.vae.modalities.sizes_of`).

    ``encoders``: encoders of your own by kind of data, such as ``{"vector": MyModule()}`` (see
    `models.towers.Encoders`); modalities of one kind and size have copies with parameters of their own.

    Raises:
      ValueError: if there are fewer than two modalities, or ``encoders`` name a kind that none has.
    """
    if len(sizes) < 2:
        names = ", ".join(sizes) or "none"
        raise ValueError(
            f"a multimodal VAE needs two modalities at least, got {names}: name them by --modalities"
        )
    # rescale: whether the weights of log-likelihoods make up for the modalities' numbers of elements.
    used = used_configs(config, sizes, rescale=config.rescale, encoders=encoders)
    network = Network(config.network_config(), used, make_groups(sizes))
    model = _Model(config, network)
    method = Method(model.init, model.loss, model.predict, model.initial_stage)
    return MultimodalVAE(
        method,
        network.names,
        infer=model.infer,
        decode=model.decode,
        decoder_latents=model.decoder_latents,
        sample_prior=model.sample_prior if config.has_prior else None,
        log_likelihood=model.log_likelihood,
        posterior=model.posterior if model.has_posterior else None,
        decoder_samples=model.decoder_samples,
        sample=model.sample,
    )


class _NetworkMethods(NamedTuple):
    """The network's methods that some objectives call, bound to its parameters and to the batch's features.

    Axes: M modalities, B examples, R samples of each example; D dimensions of the shared latent, D' of a modality's
    latent, H hidden units.

    ``flow`` and ``inverse_flow`` serve JNF (joint normalizing flows); ``message``, ``encode_top`` and ``decode_top``
    serve Nexus (a latent above those of the modalities); ``top_down_pass`` serves MHVAE (a hierarchy of latents);
    ``learned_array`` serves any model that declares arrays in `NetworkConfig.arrays`.
    """

    apply: Apply
    features: Float[Array, "m batch hidden"]

    def flow(self, z: Array) -> tuple[Array, Array]:
        """``(base [M, B, D], log_det [M, B])``: ``z [B, D]`` mapped by each modality's flow to its base space, in which
        the posterior is normal, and the logarithm of the absolute determinant of the flow's Jacobian."""
        return self.apply("flow", z)

    def inverse_flow(self, base: Array) -> Array:
        """The latents ``[M, B, D]`` that each modality's flow maps to ``base [M, B, D]``, its base space."""
        return self.apply("inverse_flow", base)

    def message(self, latents: Array) -> Array:
        """The message ``[M, B, H]`` of each modality's latent ``[M, B, D']`` to the top level."""
        return self.apply("message", latents)

    def encode_top(self, message: Array) -> Posterior:
        """The posterior of the top-level (shared) latent ``[B, D]``, from the mean ``[B, H]`` of the messages."""
        return self.apply("encode_top", message)

    def decode_top(self, top: Array) -> Array:
        """The mean of each modality's latent, ``[M, B, D']``, given the top-level latent ``[B, D]``."""
        return self.apply("decode_top", top)

    def top_down_pass(self, mask: Array, keys: ExampleKeys | None) -> TopDownPass:
        """Latents of all levels of the hierarchy: R for each example, inferred from the modalities where ``mask [R, M,
        B]`` is True. They are samples drawn with ``keys``, or means without keys."""
        return self.apply("top_down_pass", self.features, mask, keys)

    def learned_array(self, name: str) -> Array:
        """The learned array of this name that the model's network has."""
        return self.apply("learned_array", name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """The functions of `MultimodalVAE` for one configuration and its network."""

    config: MultimodalVAEConfig
    network: Network

    def bind(self, params: Params) -> Apply:
        """``apply(method, *args)`` of the network with these parameters."""
        return bind(self.network, params)

    def preprocess(self, batch: Batch, keys: ExampleKeys | None = None) -> NetworkInputs:
        """The batch as the network takes it; with ``keys``, augmented as in training."""
        return preprocess(self.config, self.network.names, batch, keys)

    def init(self, key: Key, batch: Batch) -> Params:
        """The network's initial parameters; of the batch only shapes matter."""
        example = first_example(batch)
        keys = example_keys(
            key, jnp.zeros(1, jnp.int32)
        )  # one random key, as for the example with the index 0
        inputs = self.preprocess(example)
        return self.network.init(key, inputs, keys, method="init_all")["params"]

    # Training

    @property
    def initial_stage(self) -> Stage | None:
        """The first stage of training in models with two stages, which trains the joint VAE; else None."""
        if not self.config.initial_fraction:
            return None
        # A parameter's path is such as "decoders_image_28_28_1/Dense_0/kernel": what is before the first "_" decides.
        is_trained = lambda path: path.split("/")[0].split("_")[0] in INITIAL_STAGE_PREFIXES
        return Stage(self.initial_loss, self.config.initial_fraction, is_trained)

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
        """The loss and its metrics, as this device's shares; in a model with two stages those of the second stage, with
        frozen decoders."""
        # The training step (`train.step.make_step`) does not update the parameters that the initial stage has trained:
        # decoders and joint encoder. The decoders' gradients are stopped here too, to spare their computation, and
        # since gradient clipping would count them in the norm. (No objective of a second stage has gradients of the
        # joint encoder.) ``decoder_params`` has all parameters; only the decoders' are used.
        decoder_params = jax.lax.stop_gradient(params) if self.config.initial_fraction else None
        return self._mean_loss(
            self.config.objective, params, batch, key, decoder_params=decoder_params, axis_name=axis_name
        )

    def initial_loss(self, params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
        """The loss of the initial stage and its metrics."""
        return self._mean_loss(
            self.config.initial_objective, params, batch, key, decoder_params=None, axis_name=axis_name
        )

    def _mean_loss(
        self,
        objective: Callable[[ObjectiveInputs, Weight], ObjectiveTerms],
        params: Params,
        batch: Batch,
        key: Key,
        *,
        decoder_params: Params | None,
        axis_name: collectives.AxisName,
    ) -> tuple[Array, dict[str, Array]]:
        """The loss and the metrics of ``objective(inputs, weight of the divergence)``: this device's shares of their
        means over the global batch.

        An example counts if it has at least one modality. ``decoder_params``: parameters of frozen decoders; None: the
        decoders are trained with ``params``.
        """
        keys = batch_keys(key, batch)
        inputs = self.preprocess(batch, keys)
        terms = objective(
            self.training_inputs(params, inputs, keys, decoder_params, axis_name),
            # A function of the training step, which the batch holds.
            self.config.divergence_weight(batch),
        )
        weight = inputs.present.any(axis=0).astype(jnp.float32)  # any of the modalities [M, B]
        mean_share = functools.partial(collectives.batch_mean, weights=weight, axis_name=axis_name)
        loss = mean_share(terms.loss)
        return loss, {name: mean_share(jax.lax.stop_gradient(x)) for name, x in terms.metrics.items()}

    def training_inputs(
        self,
        params: Params,
        inputs: NetworkInputs,
        keys: ExampleKeys,
        decoder_params: Params | None,
        axis_name: collectives.AxisName,
    ) -> ObjectiveInputs:
        """The objective's inputs in training: posteriors, prior and likelihoods, with dropout and free bits (unlike
        `evaluation_inputs`).

        ``keys [B]``: one random key for each example. ``decoder_params``: parameters of frozen decoders; None: the
        decoders use ``params``. ``axis_name``: the axis of devices over which free bits are averaged, or None.
        """
        return self._objective_inputs(
            params, inputs, keys, train_keys=keys, free_bits=self.config.free_bits,
            decoder_params=decoder_params, axis_name=axis_name,
        )  # fmt: skip

    def evaluation_inputs(
        self, params: Params, inputs: NetworkInputs, keys: ExampleKeys | None
    ) -> ObjectiveInputs:
        """Posteriors, prior and likelihoods of a batch as in `training_inputs`, but without dropout and free bits.

        ``keys [B]`` draw the latents; None: latents are the posteriors' means.
        """
        return self._objective_inputs(
            params, inputs, keys, train_keys=None, free_bits=0.0, decoder_params=None, axis_name=None
        )

    def _objective_inputs(
        self,
        params: Params,
        inputs: NetworkInputs,
        keys: ExampleKeys | None,
        *,
        train_keys: ExampleKeys | None,
        free_bits: float,
        decoder_params: Params | None,
        axis_name: collectives.AxisName,
    ) -> ObjectiveInputs:
        """Posteriors, prior and likelihoods of a preprocessed batch, as an objective takes them.

        ``free_bits``: nats of each latent dimension's divergence that cost nothing; 0: all of it counts. ``axis_name``:
        the axis of devices that the batch is split over, or None. ``keys`` draw latents (None: means). ``train_keys``
        draw dropout (None: no dropout). ``decoder_params``: parameters of frozen decoders; None: ``params``.
        """
        apply = self.bind(params)
        decode_apply = apply if decoder_params is None else self.bind(decoder_params)
        outputs = apply("encode", inputs, train_keys)
        # The encoder's outputs for a missing modality are arbitrary and may overflow: a standard distribution replaces
        # them.
        mask_missing = lambda q: None if q is None else mask_experts(q, inputs.present)
        experts, private = mask_missing(outputs.experts), mask_missing(outputs.private)
        prior = apply("prior")
        joint = apply("encode_joint", inputs, train_keys) if self.network.config.joint else None

        def log_likelihood(z: Float[Array, "m samples batch latent"]) -> Float[Array, "m samples batch"]:
            """``log p(x_m | z_m)`` of each modality, for R latent samples of each example of the batch ``inputs``."""
            return decode_apply("log_likelihood", z, inputs, train_keys)

        def kl_to_standard_normal(q: Posterior, present: Array) -> Array:
            """``KL(q || N(0, 1))`` of a posterior in closed form, with free bits. ``present``: which examples count."""
            return kl_with_free_bits(
                q, standard_like(q), free_bits=free_bits, present=present, axis_name=axis_name
            )

        # Objectives whose prior is N(0, 1) call `kl_to_prior`. Those with a learned prior or a mixture, for which the
        # KL divergence has no closed form, call `prior.log_prob` instead.
        return ObjectiveInputs(
            present=inputs.present, log_likelihood=log_likelihood, kl_to_prior=kl_to_standard_normal,
            prior=prior, keys=keys, posterior=joint, experts=experts, private=private,
            networks=_NetworkMethods(apply, outputs.features), axis_name=axis_name,
        )  # fmt: skip

    # Inference and generation

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """``{"latent": [B, D]}``: the mean of the shared latents, given all modalities that are present."""
        all_observed = jnp.ones(len(self.network.names), bool)
        latents = self.infer(params, batch, all_observed, key=None, samples=1)
        return {"latent": latents.shared[0]}  # [1 sample, B, D]

    def infer(
        self,
        params: Params,
        batch: Batch,
        observed: Any,
        key: Key | None,
        samples: int = 1,
        *,
        exact_prior: bool = False,
    ) -> LatentSamples:
        """Samples of the latents given the ``observed [M]`` modalities, see `MultimodalVAE`. With several masks
        ``observed [S, M]`` all arrays have a leading axis S.

        ``key``: None: means instead of samples. ``samples``: R of each example. ``exact_prior``: for models with
        private latents, from which distribution those of a modality that is not observed are drawn. False: from the
        modality's auxiliary prior r(w_m), from which MMVAE+ draws them in training to decode a modality from the
        latents of another one. True: from the prior p(w) of the generative model, as an estimate of the likelihood
        needs.
        """
        inputs = self.preprocess(batch)
        keys = None if key is None else batch_keys(key, batch)
        objective_inputs = self.evaluation_inputs(params, inputs, keys)
        if exact_prior:
            objective_inputs = with_exact_prior(objective_inputs)

        def infer_from(observed: Bool[Array, "m"]) -> LatentSamples:
            """The samples given one subset of the modalities."""
            observed_and_present = observed[:, None] & inputs.present  # [M, B]
            return self.config.infer(objective_inputs, observed_and_present, keys, samples)

        observed = jnp.asarray(observed)
        if observed.ndim == 1:
            return infer_from(observed)
        # Subsets are computed one after the other, so that memory does not grow with their number.
        return jax.lax.map(infer_from, observed)

    @property
    def has_posterior(self) -> bool:
        """Whether the density of the shared latents' posterior is known."""
        return type(self.config).shared_posterior is not MultimodalVAEConfig.shared_posterior

    def posterior(self, params: Params, inputs: NetworkInputs, observed: Any) -> Mixture:
        """The density of the shared latents given the ``observed`` modalities, see `MultimodalVAE`."""
        objective_inputs = self.evaluation_inputs(params, inputs, keys=None)

        def given_subset(observed: Bool[Array, "m"]) -> Mixture:
            """The density given one subset of the modalities, as far as they are present."""
            q = self.config.shared_posterior(objective_inputs, observed[:, None] & inputs.present)
            return q if isinstance(q, Mixture) else as_mixture(q)

        observed = jnp.asarray(observed)
        return given_subset(observed) if observed.ndim == 1 else jax.vmap(given_subset)(observed)

    def decoder_samples(
        self, params: Params, inputs: NetworkInputs, shared: Array, observed: Any, keys: ExampleKeys
    ) -> Array:
        """Shared latents and, where the model has them, private ones, see `MultimodalVAE`."""
        objective_inputs = with_exact_prior(self.evaluation_inputs(params, inputs, keys))
        observed = jnp.asarray(observed)[:, None] & inputs.present
        return add_private(objective_inputs, shared, observed, keys, jnp.zeros(shared.shape[:2])).z

    def sample(self, params: Params, z: Array, key: Key) -> dict[str, Array]:
        """Data of every modality drawn from their likelihoods, see `MultimodalVAE`."""
        return decode_all(self.network, self.bind(params), z, key, with_noise=True)

    def decode(self, params: Params, z: Array, key: Key | None) -> dict[str, Array]:
        """Data ``[R, B, ...]`` of every modality, from latents ``z [M, R, B, D']``; see `MultimodalVAE`."""
        return decode_all(self.network, self.bind(params), z, key)

    def decoder_latents(self, params: Params, shared: Array, key: Key | None) -> Array:
        """``[M, 1, N, D']``: the latents that the modalities are decoded from, given ``shared [N, D]``; see
        `MultimodalVAE`."""
        # These latents belong to no example: their number takes the place of an example's index. `sample_prior` makes
        # its keys in the same way, but the two functions draw from different named streams of a key: even with one
        # ``key`` their noise is independent.
        keys = None if key is None else example_keys(key, jnp.arange(shared.shape[0]))
        return self.config.decoder_latents(self.network, self.bind(params), shared, keys)

    def sample_prior(self, params: Params, key: Key, count: int) -> Array:
        """``[count, D]``: samples of the prior of the shared latents."""
        keys = example_keys(key, jnp.arange(count))
        return self.config.sample_prior(self.bind(params), keys, count)

    def log_likelihood(
        self, params: Params, batch: Batch, key: Key, observed: Any, targets: Any, samples: int
    ) -> Float[Array, "batch"]:
        """The importance-weighted estimate ``log 1/K sum_k w_k`` of ``log p(x_targets)``, see `MultimodalVAE`.

        ``observed``, ``targets``: masks ``[M]`` of modalities: from which latents are inferred, and whose likelihood is
        estimated. K is ``samples``, and ``w_k = p(x_targets | z_k) p(z_k) / q(z_k | x_observed)`` with ``z_k`` from q.

        Raises:
          ValueError: if the latents have no prior.
        """
        if not self.config.has_prior:
            raise ValueError(f"{self.config.name} has no likelihood: its latents have no prior p(z)")
        inputs = self.preprocess(batch)
        latents = self.infer(params, batch, observed, key, samples, exact_prior=True)
        # The log-likelihood of a modality that is no target is 0, as if the modality were missing.
        inputs = inputs._replace(present=inputs.present & jnp.asarray(targets)[:, None])
        apply = self.bind(params)
        log_p_of_each = apply("log_likelihood", latents.z, inputs, keys=None, weighted=False)  # [M, K, B]
        log_p_of_targets = log_p_of_each.sum(axis=0)
        log_prior_over_posterior = latents.log_ratio  # log p(z_k) - log q(z_k | x_observed), [K, B]
        return importance_bound(log_p_of_targets + log_prior_over_posterior)
