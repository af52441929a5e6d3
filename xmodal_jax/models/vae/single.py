"""Autoencoders of one modality: an encoder, a decoder and an objective, bound into functions that train, encode,
reconstruct, generate and, where there is a density, estimate likelihoods.

The models are in `models.vae.single_models`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import collectives, parts
from xmodal_jax.core.random import batch_keys, example_keys, fold_in_name
from xmodal_jax.losses import adversarial
from xmodal_jax.losses.autoencoder import draw_latents, prior_log_ratio
from xmodal_jax.losses.elbo import importance_bound, kl_with_free_bits
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms
from xmodal_jax.models.towers import first_example
from xmodal_jax.models.vae.generation import decode_all
from xmodal_jax.models.vae.modalities import NetworkInputs, preprocess, used_configs
from xmodal_jax.models.vae.networks import (
    Apply,
    ModalityGroup,
    Network,
    NetworkConfig,
    bind,
)
from xmodal_jax.models.vae.single_models import AutoencoderConfig, AutoencoderModel
from xmodal_jax.nets.decoders import MLPDecoder, Size
from xmodal_jax.nets.vae import Moments, to_log_scale
from xmodal_jax.probability.distributions import Normal, Posterior, standard_noise
from xmodal_jax.types import GAN, Batch, ExampleKeys, Key, Method, Params

Variables = dict[str, Any]


class VAE(NamedTuple):
    """An autoencoder of one modality as pure functions.

    ``params`` are the parameters that ``method.predict`` takes. For a model that is trained against a critic they are a
    dict with the autoencoder's parameters under ``generator`` (see `train.gan_step.evaluated`).
    """

    method: Method | GAN
    encode: Callable[..., Array]
    """``encode(params, batch, key=None) -> [B, D]``: a sample of each example's posterior, drawn from ``key`` and the
    example's index; without a key the posterior's mean."""
    decode: Callable[..., Array]
    """``decode(params, z [N, D], labels=None, key=None) -> [N, ...]``: images in [0, 1], token ids, log-mel frames or
    classes. Texts and classes are drawn from ``key``; without a key they are the likeliest ones. A conditional model
    needs ``labels``: ``[N]``, or a batch with the field ``label``."""
    sample: Callable[..., Array]
    """``sample(params, key, count, labels=None)``: decoded samples of the prior; a conditional model needs ``labels
    [count]``."""
    sample_prior: Callable[..., Array]
    """``sample_prior(params, key, count, labels=None) -> [count, D]``: samples of the prior, those that ``sample``
    decodes; a conditional model needs ``labels [count]``."""
    log_likelihood: Callable[..., Array]
    """``log_likelihood(params, batch, key, samples) -> [B]``: the importance-weighted estimate of ``log p(x)`` (in a
    conditional model of ``log p(x | label)``) in nats, from ``samples`` latents of each example's posterior; 0 where x
    is missing. In expectation it is a lower bound. The modality's reconstruction weight is not applied. (With the
    likelihood "bernoulli" it is no density of pixels between 0 and 1.) Raises ValueError for a model without a
    posterior density q(z | x)."""
    reconstruct: Callable[..., Array]
    """``reconstruct(params, batch)``: data decoded from the mean latents."""


def make_vae(config: AutoencoderConfig, modality: str, size: Size, *, classes: int = 0) -> VAE:
    r"""The model of ``config`` over one modality of this size (see `models.vae.modalities.sizes_of`).

    The loss is the mean of the model's objective (`losses.autoencoder`) over the global batch. Its aux has
    ``reconstruction`` (the weighted negative log-likelihood, in nats) and, where the objective has them, ``kl`` and
    ``mmd``. An example that lacks the modality has no influence; in a conditional model this also holds for an example
    without a label.

    The models jsd_vae and aae are trained against a critic D of latents. The autoencoder is the GAN's generator: its
    latents are the generated data, and samples of the prior are the real data. It minimises
    :math:`-\log p(x \mid z) + \beta L_G(z)`, with these adversarial losses :math:`L_G`:

    - jsd_vae: the f-GAN bound (`losses.adversarial.jsd_bound`), constant 2 log 2 included: with the best critic it is
      twice the Jensen-Shannon divergence;
    - aae: :math:`-\log D(z)` (Makhzani et al. 2016, arXiv:1511.05644, sec. 2; but one optimizer step trains the
      autoencoder for both terms, where the paper alternates between them).

    The aux of such a model has ``reconstruction``, ``g_loss`` (:math:`L_G`), ``d_loss``, and the critic's mean logits
    ``d_prior`` (of samples of the prior, the real data) and ``d_code`` (of the encoder's latents, the generated data).
    Pretraining minimises the reconstruction loss alone.

    Args:
      config: the model and its options.
      modality: name of the modality.
      size: of an example.
      classes: number of classes of the labels, for a conditional model.

    Raises:
      ValueError: if the model does not fit the kind of data, or a number of classes or tokens is missing.
    """
    _check(config, modality, size, classes)
    model = _Model(config, modality, size, classes if config.conditional else 0)
    method = Method(model.init, model.loss, model.predict)
    if config.critic_objective is not None:
        method = _AdversarialTraining(model).method()
    return VAE(
        method,
        encode=model.encode,
        decode=model.decode,
        sample=model.sample,
        sample_prior=model.sample_prior,
        log_likelihood=model.log_likelihood,
        reconstruct=model.reconstruct,
    )


def _check(config: AutoencoderConfig, modality: str, size: Size, classes: int) -> None:
    """Raises ValueError if the model does not fit the kind of data, or a number of classes or tokens is missing.

    ``size``: of an example of ``modality``. ``classes``: number of classes of the label, for a conditional model.
    """
    modality_config = config.for_modality(modality)
    kind = modality_config.kind
    # Tokens and labels take one of ``size.values`` values.
    if not modality_config.real_valued and size.values < 2:
        raise ValueError(f"size.values must say how many values {kind} takes, got {size.values}")
    if config.conditional and (kind == "label" or classes < 2):
        raise ValueError(
            "cvae is conditioned on the label: it needs another modality and classes of 2 at least, "
            f"got {kind} and {classes}"
        )
    config.check_modality(modality_config)


class LatentHeads(nn.Module):
    """The layers between encoder and decoder: the posterior ``[B, D]`` from features and condition, and the prior.

    A condition ``[B, 0]`` stands for no condition. The prior is N(0, 1), unless it is learned from the condition.
    """

    latent: int
    hidden: int
    scale: str
    """How the posterior's scale is computed, one of `nets.vae.SCALES`."""
    deterministic: bool
    """Whether the posterior is a point: its scale is 0."""
    conditional: bool
    """Whether there is a condition, the label."""
    learned_prior: bool
    """Whether the prior's mean and scale are computed from the condition."""

    def setup(self):
        """The layers of the posterior and, where it is learned, of the prior; their names are parameter paths."""
        if self.deterministic:
            self.point_layer = nn.Dense(self.latent, name="point")
        else:
            # Encoder features alone need no hidden layer (0 units); features with a condition need one to combine them.
            self.moments_layer = Moments(
                self.latent, self.hidden if self.conditional else 0, name="posterior"
            )
        if self.learned_prior:
            self.prior_layer = Moments(self.latent, self.hidden, name="prior")

    def posterior(
        self, features: Float[Array, "batch hidden"], condition: Float[Array, "batch classes"]
    ) -> Normal:
        """``q(z | x, c)``, from features of x and the one-hot label c; a deterministic posterior ignores c.

        A deterministic posterior is a point: a normal distribution of scale 0, whose log-scale is -inf.
        """
        if self.deterministic:
            mean = self.point_layer(features)
            return Normal(mean, log_scale=jnp.full_like(mean, -jnp.inf))
        # ``raw`` becomes the log-scale by the function that ``self.scale`` names.
        mean, raw = self.moments_layer(jnp.concatenate([features, condition], axis=-1))
        return Normal(mean, to_log_scale(raw, self.scale))

    def prior(self, condition: Float[Array, "batch classes"]) -> Normal:
        """``p(z | c)``: N(0, 1), unless it is learned from the one-hot label c."""
        if self.learned_prior:
            mean, raw = self.prior_layer(condition)
            return Normal(mean, to_log_scale(raw, self.scale))
        zeros = jnp.zeros((condition.shape[0], self.latent))
        return Normal(zeros, zeros)  # mean 0 and log-scale 0

    def __call__(self, features, condition):
        return self.posterior(features, condition), self.prior(condition)


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
    """Implements the functions of `VAE` for one configuration, modality and size."""

    config: AutoencoderConfig
    modality: str
    size: Size
    classes: int
    """Number of classes of the labels that the model is conditioned on; 0: there is no condition."""

    @functools.cached_property
    def network(self) -> Network:
        """Encoder and decoder."""
        kind = self.config.for_modality(self.modality).kind
        group = ModalityGroup(kind, self.size, names=(self.modality,))
        modalities = used_configs(self.config, {self.modality: self.size})
        # latent=0: encoders return features alone; the layers of the latent are in `LatentHeads`.
        return Network(NetworkConfig(latent=0, hidden=self.config.hidden), modalities, (group,))

    @functools.cached_property
    def heads(self) -> LatentHeads:
        """Posterior and prior."""
        c = self.config
        return LatentHeads(
            c.latent, c.hidden, scale=c.posterior_scale, deterministic=not c.stochastic,
            conditional=c.conditional, learned_prior=c.learn_prior,
        )  # fmt: skip

    def bind_network(self, params: Params) -> Apply:
        """``apply(method, *args)`` of encoder and decoder with these parameters."""
        return bind(self.network, params["network"])

    def bind_heads(self, params: Params) -> Apply:
        """``apply(method, *args)`` of posterior and prior with these parameters."""
        return bind(self.heads, params["heads"])

    def autoencoder_params(self, params: Params) -> Params:
        """The autoencoder's parameters, apart from those of a critic."""
        return params if self.config.critic_objective is None else params["generator"]

    def encode_condition(self, labels: Any, count: int) -> Float[Array, "batch classes"]:
        """The condition ``[B, classes]``: one-hot labels. ``[B, 0]`` in a model without a condition.

        ``labels``: ``[B]``, or a batch with the field ``label``; ``count``: B.
        """
        if not self.classes:
            return jnp.zeros((count, 0))
        if labels is None:
            raise ValueError("a conditional VAE needs `labels`, one per latent")
        labels = labels["label"] if isinstance(labels, Mapping) else labels
        return jax.nn.one_hot(jnp.asarray(labels), self.classes)

    def preprocess(self, batch: Batch, keys: ExampleKeys | None = None) -> NetworkInputs:
        """The batch as the network takes it; with ``keys``, with augmentation and input corruption, as in training."""
        inputs = preprocess(self.config, (self.modality,), batch, keys)
        if self.config.conditional:
            # An example without a label does not count: its label is -1, or ``present`` marks it as missing. (A batch
            # without ``present["label"]`` lacks no label.)
            known = jnp.asarray(batch["label"]) >= 0
            known &= batch.get("present", {}).get("label", known)
            inputs = inputs._replace(present=inputs.present & known[None])  # [1 modality, B]
        if keys is not None:
            x, mask = inputs.inputs[self.modality]  # the encoder's input; the decoder's target stays clean
            x = self.config.corrupt(self.config.for_modality(self.modality), x, keys)
            inputs = inputs._replace(inputs={self.modality: (x, mask)})
        return inputs

    @staticmethod
    def concatenate_condition(
        z: Float[Array, "samples batch dim"], condition: Float[Array, "batch classes"]
    ) -> Float[Array, "1 samples batch latent"]:
        """Latents as the decoder takes them: each followed by its example's condition (``[B, 0]``: nothing).

        The first axis of the result is that of modalities, of which there is one here.
        """
        condition = jnp.broadcast_to(condition[None], (*z.shape[:2], condition.shape[-1]))
        return jnp.concatenate([z, condition], axis=-1)[None]

    # Training

    def init(self, key: Key, batch: Batch) -> Params:
        """Initial parameters of encoder and decoder ("network") and of posterior and prior ("heads"); of ``batch`` only
        shapes matter."""
        example = first_example(batch)
        # One random key, as for the example with the index 0.
        inputs, keys = self.preprocess(example), example_keys(key, jnp.zeros(1, jnp.int32))
        condition = self.encode_condition(example, count=1)
        z = self.concatenate_condition(
            jnp.zeros((1, 1, self.config.latent)), condition
        )  # one sample, one example

        def call_all_parts(network: Network):
            """Calls the decoder and then the encoder, since Flax creates the parameters of the parts that are called.
            Returns the encoder's outputs."""
            network.log_likelihood(z, inputs, keys)
            return network.encode(inputs, keys)

        outputs, variables = self.network.init_with_output(
            fold_in_name(key, "network"), method=call_all_parts
        )
        # The first axis of the features is that of modalities; here there is one.
        heads = self.heads.init(fold_in_name(key, "heads"), outputs.features[0], condition)
        return {"network": variables["params"], "heads": heads["params"]}

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: collectives.AxisName = None):
        """The objective's loss and metrics: their means over the examples of the global batch that count, plus terms
        that are one number of the whole batch (MMD). Under ``axis_name``, this device's shares of these means. ``key``
        draws latents, dropout and corruption, together with the examples' indices."""
        keys = batch_keys(key, batch)
        inputs = self.training_inputs(params, batch, keys, axis_name)
        # The weight of the divergence depends on the training step, which the batch holds.
        terms = self.config.objective(inputs, beta=self.config.divergence_weight(batch))
        mean_share = functools.partial(
            collectives.batch_mean, weights=inputs.present.astype(jnp.float32), axis_name=axis_name
        )
        total = mean_share(terms.loss)
        aux = {name: mean_share(x) for name, x in terms.metrics.items()}
        # MMD: one number for the whole batch, not a mean of terms [B].
        for name, (device_share, weight) in terms.batch_terms.items():
            total, aux[name] = total + weight * device_share, device_share
        return total, jax.lax.stop_gradient(aux)

    def training_inputs(
        self, params: Params, batch: Batch, keys: ExampleKeys, axis_name: collectives.AxisName
    ) -> ObjectiveInputs:
        """The objective's inputs in training: posterior, prior and likelihood, with dropout, corruption and free bits
        (unlike `evaluation_inputs`).

        ``keys [B]``: one random key for each example, for latents, dropout and corruption. ``axis_name``: the axis of
        devices over which the mean divergence for free bits is taken, or None.
        """
        return self._objective_inputs(
            params, batch, keys, train_keys=keys, free_bits=self.config.free_bits, weighted=True,
            axis_name=axis_name,
        )  # fmt: skip

    def evaluation_inputs(
        self, params: Params, batch: Batch, keys: ExampleKeys | None, *, weighted: bool = True
    ) -> ObjectiveInputs:
        """Posterior, prior and likelihood of a batch as in `training_inputs`, but without dropout, corruption and free
        bits: for latents and likelihoods after training.

        ``keys [B]`` draw the latents; None: latents are the posteriors' means. ``weighted``: whether log-likelihoods
        are multiplied by the modality's reconstruction weight, as in the loss.
        """
        return self._objective_inputs(
            params, batch, keys, train_keys=None, free_bits=0.0, weighted=weighted, axis_name=None
        )

    def _objective_inputs(
        self,
        params: Params,
        batch: Batch,
        keys: ExampleKeys | None,
        *,
        train_keys: ExampleKeys | None,
        free_bits: float,
        weighted: bool,
        axis_name: collectives.AxisName,
    ) -> ObjectiveInputs:
        """Posterior, prior and likelihood of a batch, as an objective takes them.

        ``free_bits``: nats of each latent dimension's divergence that cost nothing; 0: all of it counts. ``axis_name``:
        the axis of devices that the batch is split over, or None. ``keys`` draw latents (None: means). ``train_keys``
        draw dropout, augmentation and input corruption (None: none of these). ``weighted``: whether log-likelihoods are
        multiplied by the modality's reconstruction weight.
        """
        inputs = self.preprocess(batch, train_keys)
        condition = self.encode_condition(batch, inputs.present.shape[1])
        network, heads = self.bind_network(params), self.bind_heads(params)
        # The first axis of the network's arrays is that of modalities; here there is one.
        features = network("encode", inputs, train_keys).features[0]
        posterior, prior = heads("posterior", features, condition), heads("prior", condition)

        def log_likelihood(z: Float[Array, "samples batch dim"]) -> Float[Array, "samples batch"]:
            """``log p(x | z, c)`` of R latent samples for each of B examples, in nats. Closes over the examples x
            (``inputs``) and their conditions c."""
            z = self.concatenate_condition(z, condition)  # [1 modality, R, B, D']
            return network("log_likelihood", z, inputs, train_keys, weighted)[0]  # of the one modality

        def kl_to_prior(q: Posterior, present: Array) -> Array:
            """``KL(q || p(z | c))``, with free bits; ``present [B]``: which examples count in their mean."""
            return kl_with_free_bits(q, prior, free_bits=free_bits, present=present, axis_name=axis_name)

        return ObjectiveInputs(
            present=inputs.present[0], log_likelihood=log_likelihood, kl_to_prior=kl_to_prior, prior=prior,
            keys=keys, posterior=posterior, axis_name=axis_name,
        )  # fmt: skip

    # Inference and generation

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """``{"latent": [B, D]}``: the mean latents."""
        return {"latent": self.encode(params, batch)}

    def encode(self, params: Params, batch: Batch, key: Key | None = None) -> Float[Array, "batch dim"]:
        """One sample of the posterior for each example; without a key the posterior's mean. See `VAE`."""
        keys = None if key is None else batch_keys(key, batch)
        inputs = self.evaluation_inputs(self.autoencoder_params(params), batch, keys)
        return inputs.posterior.mean if keys is None else draw_latents(inputs, count=1)[0]  # [1 sample, B, D]

    def decode(self, params: Params, z: Array, labels: Any = None, key: Key | None = None) -> Array:
        """Data ``[N, ...]`` decoded from latents ``z [N, D]``, see `VAE`. ``labels``: of a conditional model. ``key``:
        draws texts and classes; None: the likeliest ones."""
        # One sample: `z` becomes [1 modality, 1 sample, N, D], and the modality's decoded data are [1 sample, N, ...].
        z = self.concatenate_condition(z[None], self.encode_condition(labels, z.shape[0]))
        apply = self.bind_network(self.autoencoder_params(params))
        return decode_all(self.network, apply, z, key)[self.modality][0]

    def sample_prior(
        self, params: Params, key: Key, count: int, labels: Any = None
    ) -> Float[Array, "count dim"]:
        """``count`` samples of the prior; ``labels [count]``: of a conditional model. See `VAE`."""
        heads = self.bind_heads(self.autoencoder_params(params))
        # Without a condition there are ``count`` priors N(0, 1); with one there are as many as labels.
        prior = heads("prior", self.encode_condition(labels, count))
        if prior.mean.shape[0] != count:
            raise ValueError(f"one label for each of {count} samples, got {prior.mean.shape[0]}")
        # The number of a sample takes the place of an example's index. "prior" selects the random stream.
        noise = standard_noise(example_keys(key, jnp.arange(count)), "prior", (self.config.latent,))
        return prior.reparametrize(noise)

    def sample(self, params: Params, key: Key, count: int, labels: Any = None) -> Array:
        """``count`` decoded samples of the prior; ``labels [count]``: of a conditional model. See `VAE`."""
        z = self.sample_prior(params, key, count, labels)
        return self.decode(params, z, labels, fold_in_name(key, "decode"))

    def reconstruct(self, params: Params, batch: Batch) -> Array:
        """Data decoded from the mean latents of a batch, with its labels as the condition."""
        return self.decode(params, self.encode(params, batch), labels=batch if self.classes else None)

    def log_likelihood(self, params: Params, batch: Batch, key: Key, samples: int) -> Float[Array, "batch"]:
        """The importance-weighted estimate ``log 1/K sum_k w_k`` of ``log p(x)``, with K = ``samples``; 0 where x is
        missing. ``key`` and the examples' indices determine the samples. See `VAE`."""
        if not self.config.has_likelihood:
            models = parts.parts_of(AutoencoderModel)
            with_likelihood = ", ".join(name for name, model in models.items() if model.has_likelihood)
            raise ValueError(
                f"{self.config.name} has no posterior density q(z | x), which importance weights need; log p(x) can be "
                f"estimated with {with_likelihood}"
            )
        keys = batch_keys(key, batch)
        # Models with a likelihood have no critic: all of `params` are the autoencoder's.
        inputs = self.evaluation_inputs(params, batch, keys, weighted=False)

        def log_weight(k: Array) -> Float[Array, "batch"]:
            """``log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x)``, for one latent z_k of each example, drawn
            with the example's key and k. Closes over ``inputs``: the batch's posterior, prior and likelihood."""
            sample_keys = jax.vmap(jax.random.fold_in, (0, None))(inputs.keys, k)
            z = draw_latents(inputs._replace(keys=sample_keys), count=1)  # [1 sample, B, D]
            log_weights = inputs.log_likelihood(z) + prior_log_ratio(inputs.posterior, inputs.prior, z)
            return log_weights[0]  # [1 sample, B] -> [B]

        # 8 latents at a time, as thousands of decodings of a batch may not fit into memory at once.
        estimate = importance_bound(jax.lax.map(log_weight, jnp.arange(samples), batch_size=8))
        return jnp.where(inputs.present, estimate, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class _AdversarialTraining:
    """The functions of `GAN` for an autoencoder that is trained against a critic of its latents.

    It has no frozen networks, so its functions do not take the argument ``frozen`` of `GAN`.
    """

    model: _Model

    def method(self) -> GAN:
        """The training method: the critic is the discriminator, the autoencoder the generator of latents."""
        return GAN(
            init=self.init,
            generate=self.generate,
            d_loss=self.d_loss,
            g_loss=self.g_loss,
            constrain=lambda params: params,  # the critic's parameters are not clipped
            predict=self.model.predict,
            d_steps=self.model.config.critic_steps,
            pretrain_generator=self.pretrain_generator,
        )

    @property
    def critic(self) -> MLPDecoder:
        """The network from a latent to one logit, with two hidden layers."""
        return MLPDecoder(shape=(1,), width=self.model.config.hidden, depth=2)

    @property
    def objective(self) -> adversarial.Adversarial:
        """The adversarial losses of critic and autoencoder."""
        return adversarial.OBJECTIVES[self.model.config.critic_objective]

    def logits(self, critic_params: Params, latents: Float[Array, "batch dim"]) -> Float[Array, "batch"]:
        """The critic's logits: positive for latents that it takes for samples of the prior."""
        return self.critic.apply({"params": critic_params}, latents)[:, 0]  # [B, 1] -> [B]

    def prior_latents(self, keys: ExampleKeys) -> Float[Array, "batch dim"]:
        """A sample of the prior for each example. It is N(0, 1): models with a critic have no learned prior."""
        return standard_noise(keys, "prior", (self.model.config.latent,))

    def present_and_mean_share(self, batch: Batch, axis_name: collectives.AxisName):
        """Which examples have the modality, and a function from terms ``[B]`` to this device's share of their mean over
        these examples of the global batch."""
        present = self.model.preprocess(batch).present[0]  # of the one modality
        weights = present.astype(jnp.float32)
        return present, functools.partial(collectives.batch_mean, weights=weights, axis_name=axis_name)

    def terms(
        self, generator: Params, batch: Batch, keys: ExampleKeys, axis_name: collectives.AxisName
    ) -> ObjectiveTerms:
        """The terms of the model's objective, which for models with a critic is the reconstruction loss ``loss [B]``
        alone, and the latents ``latent [B, D]`` that it was computed from.

        ``generator``: the autoencoder's parameters. ``keys``: one for each example. `g_loss` adds the adversarial loss.
        """
        inputs = self.model.training_inputs(generator, batch, keys, axis_name)
        config = self.model.config
        # This objective has no divergence, so `divergence_weight` returns 0, which is not used. The adversarial loss
        # takes the place of the divergence; `g_loss` multiplies it by the constant ``config.beta``.
        return config.objective(inputs, beta=config.divergence_weight(batch))

    def init(self, key: Key, batch: Batch) -> tuple[Params, Variables]:
        """Parameters of autoencoder ("generator") and critic ("discriminator"); there are no variables."""
        latents = jnp.zeros((1, self.model.config.latent))
        critic = self.critic.init(fold_in_name(key, "critic"), latents)["params"]
        return {"generator": self.model.init(key, batch), "discriminator": critic}, {}

    def generate(self, generator, variables, batch: Batch, key: Key, *, axis_name=None):
        """The encoder's latents ``[B, D]`` and the reconstruction loss ``[B]`` of each example; the variables.

        ``generator``: the autoencoder's parameters. ``variables``: empty, returned unchanged, as `GAN` demands.
        """
        keys = fold_in_name(batch_keys(key, batch), "generate")
        terms = self.terms(generator, batch, keys, axis_name)
        return {"latent": terms.latent, "reconstruction": terms.loss}, variables

    def d_loss(self, discriminator, variables, batch: Batch, generated, key: Key, step, *, axis_name=None):
        """The critic's loss, and its aux with the variables. Samples of the prior are real, the encoder's latents are
        fake.

        ``discriminator``: the critic's parameters. ``generated``: from `generate`. ``step`` is not used. The loss is
        this device's share of the mean over the global batch.
        """
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "discriminate")
        present, mean_share = self.present_and_mean_share(batch, axis_name)
        real = self.logits(discriminator, self.prior_latents(keys))
        fake = self.logits(discriminator, generated["latent"])
        terms = self.objective.discriminator(real, fake, present=present, axis_name=axis_name)  # [B]
        loss = mean_share(terms)
        aux = {"d_loss": loss, "d_prior": mean_share(real), "d_code": mean_share(fake)}
        return loss, (jax.lax.stop_gradient(aux), variables)

    def g_loss(self, generated, discriminator, variables, batch: Batch, key: Key, *, axis_name=None):
        """The autoencoder's loss (reconstruction plus ``beta`` times the adversarial loss of its latents) and its
        aux, as a function of ``generated`` (from `generate`).

        ``discriminator``: the critic's parameters. The losses are this device's shares of means over the global batch.
        """
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "persuade")
        present, mean_share = self.present_and_mean_share(batch, axis_name)
        real = self.logits(discriminator, self.prior_latents(keys))
        fake = self.logits(discriminator, generated["latent"])
        terms = self.objective.generator(fake, real, present=present, axis_name=axis_name)  # [B]
        aux = {"reconstruction": mean_share(generated["reconstruction"]), "g_loss": mean_share(terms)}
        loss = aux["reconstruction"] + self.model.config.beta * aux["g_loss"]
        return loss, jax.lax.stop_gradient(aux)

    def pretrain_generator(self, generator, variables, batch: Batch, key: Key, *, axis_name=None):
        """The reconstruction loss alone, without the critic, of an autoencoder with the parameters ``generator``; its
        aux and the variables (empty)."""
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "rehearse")
        terms = self.terms(generator, batch, keys, axis_name)
        _, mean_share = self.present_and_mean_share(batch, axis_name)
        loss = mean_share(terms.loss)
        return loss, ({"reconstruction": jax.lax.stop_gradient(loss)}, variables)
