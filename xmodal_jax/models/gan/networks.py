"""The networks of the conditional GAN: its Flax modules, and functions that apply them to parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core.random import fold_in_name
from xmodal_jax.models.conditions import ConditionEncoder, DataSizes
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.inputs import ImageInputs
from xmodal_jax.models.gan.objective import adversarial_loss
from xmodal_jax.nets.encoders import build_encoder
from xmodal_jax.nets.gan import ConditioningAugmentation, ContrastiveEmbeddings, ContrastiveHead, Critic
from xmodal_jax.nets.objects import ObjectEmbeddings
from xmodal_jax.types import Batch, Condition, ExampleKeys, Key, Params

GeneratorCondition = Condition | ObjectEmbeddings
"""A condition as the generator takes it; one that composes objects takes their embeddings."""

LOGIT_PARTS = ("trunk", "critic", "sight")
"""The discriminator's parts that compute the real/fake logit from an image; not the auxiliary heads."""


@dataclasses.dataclass(frozen=True)
class GANNetworks:
    """The modules of generator and discriminator.

    The generator's parameters are a dict of ``net``, ``augmentation`` (of the condition), ``posterior`` and those of
    its condition encoder. The discriminator's are ``trunk``, ``sight`` (a projection of the frozen network's tokens),
    ``critic``, ``reader`` (the predictor of the condition), ``contrast`` and those of its condition encoder. A
    condition encoder has ``text`` or ``classes``, or nothing if the text encoder is frozen or if there is no condition.
    """

    config: GANConfig
    sizes: DataSizes
    frozen_text: bool = False
    """Whether the text encoder keeps its pretrained parameters, which are then in ``frozen["text"]`` (--text-encoder);
    False: each network trains one."""
    token_shape: tuple[int, ...] = ()
    """Number and width of the frozen network's tokens that the discriminator gets; empty: none."""
    word_attention: bool = False
    """Whether a captioner's attention of words to these tokens guides the posterior."""
    axis_name: str | None = None
    """The named axis of devices that the generator's batch norm averages over; None: there is none, and it averages
    over the batch that it gets."""

    # -- modules --

    @functools.cached_property
    def condition_encoder(self) -> ConditionEncoder:
        """Embeds conditions; generator and discriminator each have parameters for it."""
        return self.config.condition.build(self.sizes, frozen_text=self.frozen_text)

    @functools.cached_property
    def generator(self) -> nn.Module:
        return self.config.generator.build(self.sizes.shape, self.axis_name)

    @property
    def conditioning(self) -> ConditioningAugmentation:
        return ConditioningAugmentation(self.config.generator.conditioning)

    @functools.cached_property
    def posterior(self) -> nn.Module:
        encoder = build_encoder("image", self.config.reconstruction.encoder)
        return self.config.generator.build_posterior(encoder)

    @functools.cached_property
    def trunk(self) -> nn.Module:
        return build_encoder("image", self.config.discriminator)

    @property
    def token_projection(self) -> nn.Module:
        return nn.Dense(self.config.discriminator.width)

    @property
    def critic(self) -> Critic:
        return Critic(self.config.condition.head, adversarial_loss(self.config.objective).outputs)

    @property
    def contrastive_head(self) -> ContrastiveHead:
        weights = self.config.contrastive
        return ContrastiveHead(sentences=weights.sentence_weight > 0, words=weights.word_weight > 0)

    # -- parameters --

    def init(self, key: Key) -> tuple[dict[str, Params], dict[str, Any]]:
        """Initial parameters of generator and discriminator, and the generator's batch statistics."""
        generator, statistics = self._init_generator(key)
        return {"generator": generator, "discriminator": self._init_discriminator(key)}, statistics

    def _init_generator(self, key: Key) -> tuple[dict[str, Params], dict[str, Any]]:
        """The generator's parameters, and its batch statistics.

        The parts are the condition encoder, conditioning augmentation ("augmentation"), the generator network ("net")
        and the noise's posterior ("posterior").
        """
        params = self.condition_encoder.init(fold_in_name(key, "generator"))
        condition = self.condition_encoder.example()
        if self.config.generator.conditioning:
            # The augmented vector and its KL divergence, which initialisation does not need.
            (vector, _), variables = self.conditioning.init_with_output(
                fold_in_name(key, "augmentation"), condition.vector, noise=None
            )
            params["augmentation"], condition = variables["params"], condition._replace(vector=vector)
        example = self.config.generator.example_input(self.sizes.shape)
        variables = self.generator.init(fold_in_name(key, "net"), example, condition)
        params["net"] = variables["params"]
        if self.config.reconstruction is not None:
            generator_condition = self._embed_objects(params, condition, count=1)
            inputs = self._posterior_inputs(self._example_inputs(), generator_condition)
            params["posterior"] = self.posterior.init(fold_in_name(key, "posterior"), *inputs)["params"]
        return params, variables.get("batch_stats", {})

    def _init_discriminator(self, key: Key) -> dict[str, Params]:
        """The discriminator's parameters.

        The parts are the condition encoder, the image encoder ("trunk"), the projection of frozen tokens ("sight", if
        the discriminator gets the tokens ``[B, *token_shape]`` of a frozen network besides those of its trunk), the
        critic ("critic"), the predictor of the condition ("reader") and the contrastive head ("contrast"). The names
        are parameter paths and select random streams, so they must stay.
        """
        params = self.condition_encoder.init(fold_in_name(key, "discriminator"))
        condition = self.condition_encoder.example()
        image = jnp.zeros((1, *self.sizes.shape))
        tokens, variables = self.trunk.init_with_output(fold_in_name(key, "trunk"), image)
        params["trunk"] = variables["params"]
        if self.token_shape:
            frozen_tokens = jnp.zeros((1, *self.token_shape))
            params["sight"] = self.token_projection.init(fold_in_name(key, "sight"), frozen_tokens)["params"]
            # The parts below take both networks' tokens, one after the other. Their values do not matter here.
            count, width = tokens.values.shape[1] + self.token_shape[0], tokens.values.shape[2]
            tokens = tokens._replace(values=jnp.zeros((1, count, width)))
        critic = self.critic.init(fold_in_name(key, "critic"), tokens.values, condition.vector)
        params["critic"] = critic["params"]
        if self.config.condition.auxiliary_weight:
            params["reader"] = self.condition_encoder.init_predictor(fold_in_name(key, "reader"), tokens)
        weights = self.config.contrastive
        if weights.sentence_weight or weights.word_weight or weights.image_weight:
            head = self.contrastive_head.init(fold_in_name(key, "contrast"), tokens.values, condition)
            params["contrast"] = head["params"]
        return params

    def _example_inputs(self) -> ImageInputs:
        """Inputs for one example (zeros, and uniform attention of words to tokens), to initialise networks with."""
        image = jnp.zeros((1, *self.sizes.shape))
        if not self.token_shape:
            return ImageInputs(image)
        tokens, attention = jnp.zeros((1, *self.token_shape)), None
        if self.word_attention:
            attention = jnp.full((1, self.sizes.length, self.token_shape[0]), 1.0 / self.token_shape[0])
        return ImageInputs(image, tokens, attention)

    # -- generator --

    def generator_condition(
        self,
        params: Params,
        frozen: Params | None,
        batch: Batch,
        keys: ExampleKeys | None,
        augmentation_keys: ExampleKeys | None = None,
    ) -> tuple[GeneratorCondition, dict[str, Float[Array, "batch"]]]:
        """The batch's condition as the generator takes it, and ``{"kl": [B]}``, the KL divergence of conditioning
        augmentation (an empty dict without this augmentation).

        Conditioning augmentation (StackGAN) replaces the condition's vector by a sample of a normal distribution around
        it; without ``keys`` by its mean, unless there are ``augmentation_keys`` of this sample alone. A generator that
        composes an image of objects takes the objects' embeddings instead of the condition, one set for each image of
        the batch. ``params``: the generator's. ``frozen``: parameters of frozen networks by name (such as "text"), or
        None.
        """
        encoder = self.condition_encoder
        condition = encoder.generator_input(encoder.encode(params, frozen, batch, keys))
        # The number of examples in the batch. An empty condition has no arrays to tell the number of images.
        count = jax.tree.leaves(batch)[0].shape[0]
        if "augmentation" not in params:
            return self._embed_objects(params, condition, count), {}
        noise, sample_keys = None, keys if augmentation_keys is None else augmentation_keys
        if sample_keys is not None:
            size = (self.config.generator.conditioning,)
            noise = jax.vmap(lambda k: jax.random.normal(k, size))(fold_in_name(sample_keys, "conditioning"))
        vector, kl = self.conditioning.apply({"params": params["augmentation"]}, condition.vector, noise)
        return self._embed_objects(params, condition._replace(vector=vector), count), {"kl": kl}

    def _embed_objects(self, params: Params, condition: Condition, count: int) -> GeneratorCondition:
        """For a generator that composes objects, their embeddings in ``count`` images; else the condition unchanged."""
        if not self.config.generator.composes_objects:
            return condition
        return self.generator.apply({"params": params["net"]}, condition, count, method="encode_condition")

    def generate(
        self,
        params: Params,
        statistics: dict[str, Any],
        condition: GeneratorCondition,
        inputs: Float[Array, "batch ..."],
        keys: ExampleKeys | None,
    ) -> tuple[Float[Array, "batch height width channels"], dict[str, Any]]:
        """Images in [-1, 1], and the statistics of the generator's batch norm: updated in training (with ``keys``),
        unchanged without ``keys`` or without a batch norm.

        ``params``: the generator's. ``inputs``: noise ``[B, Z]``, standard normal or inferred from images; of a
        generator that refines images, those of its first stage. ``statistics``: the running means and variances of the
        batch norms; empty: the generator has none.
        """
        variables = {"params": params["net"], "batch_stats": statistics}
        if keys is None or not statistics:
            return self.generator.apply(variables, inputs, condition, keys=keys), statistics
        image, updated = self.generator.apply(
            variables, inputs, condition, keys=keys, mutable=["batch_stats"]
        )
        return image, updated["batch_stats"]

    def infer_noise(
        self,
        params: Params,
        condition: GeneratorCondition,
        inputs: ImageInputs,
        noise: Float[Array, "batch noise"],
        keys: ExampleKeys,
    ) -> tuple[Float[Array, "batch noise"], Float[Array, "batch"]]:
        """A sample ``[B, Z]`` of ``q(v | x)``, the posterior of the generator's noise v given images x, and its KL
        divergence ``[B]`` from N(0, I) in nats.

        ``params``: the generator's, with the posterior's network. ``condition``: of the same examples. ``inputs``: the
        images x, for some generators with a frozen network's tokens. ``noise``: e, standard normal; the sample is
        ``mean + std * e`` (reparametrised). ``keys``: of dropout.
        """
        posterior_inputs = self._posterior_inputs(inputs, condition)
        mean, log_variance = self.posterior.apply(
            {"params": params["posterior"]}, *posterior_inputs, keys=keys
        )
        if isinstance(condition, ObjectEmbeddings):
            # This posterior is of objects' boxes b. The generator maps noise v to b = prior_mean + exp(log_scale) v,
            # so the posterior of v has the mean and variance of (b - prior_mean) exp(-log_scale).
            boxes = mean + jnp.exp(0.5 * log_variance) * noise
            prior_mean, log_scale = self.generator.apply(
                {"params": params["net"]}, condition, boxes, method="prior_moments"
            )
            mean, log_variance = (mean - prior_mean) * jnp.exp(-log_scale), log_variance - 2.0 * log_scale
        # KL(N(mean, variance) || N(0, I)) = 1/2 sum (mean^2 + variance - 1 - log variance)
        kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum(axis=-1)
        return mean + jnp.exp(0.5 * log_variance) * noise, kl

    def _posterior_inputs(self, inputs: ImageInputs, condition: GeneratorCondition) -> tuple[Any, ...]:
        """The arguments of the posterior's network: the images and, for a generator that composes objects, also these
        objects, the frozen network's tokens and the words' attention to them."""
        if not isinstance(condition, ObjectEmbeddings):
            return (inputs.image,)
        tokens = None if inputs.tokens is None else _normalize_rms(inputs.tokens)
        return inputs.image, condition, tokens, inputs.word_attention

    # -- discriminator --

    def encode_condition(
        self, params: Params, frozen: Params | None, batch: Batch, keys: ExampleKeys | None
    ) -> Condition:
        """The batch's condition, by the condition encoder in ``params``."""
        return self.condition_encoder.encode(params, frozen, batch, keys)

    def image_tokens(
        self, params: Params, inputs: ImageInputs, keys: ExampleKeys | None
    ) -> Float[Array, "batch length dim"]:
        """The tokens of the discriminator's image encoder, followed by the frozen network's tokens (if the
        discriminator gets these), projected to the same width. ``params``: the discriminator's. ``keys``: of dropout,
        one for each example, or None."""
        tokens = self.trunk.apply({"params": params["trunk"]}, inputs.image, keys=keys).values
        if inputs.tokens is None:
            return tokens
        frozen_tokens = self.token_projection.apply(
            {"params": params["sight"]}, _normalize_rms(inputs.tokens)
        )
        return jnp.concatenate([tokens, frozen_tokens], axis=1)

    def score(self, params: Params, tokens: Array, vector: Array | None) -> Float[Array, "batch outputs"]:
        """The critic's outputs for image tokens ``[B, length, D]`` and a condition's vector ``[B, D]`` (None: there is
        no condition): a logit, or features (MMD-GANs)."""
        return self.critic.apply({"params": params["critic"]}, tokens, vector)

    def prediction_loss(self, params: Params, tokens: Array, batch: Batch) -> Float[Array, "batch"]:
        """Cross-entropy of the condition as predicted from image tokens, in nats."""
        return self.condition_encoder.prediction_loss(params["reader"], tokens, batch)

    def contrastive_embeddings(
        self, params: Params, tokens: Array, condition: Condition
    ) -> ContrastiveEmbeddings:
        """Embeddings of images and conditions in one space, from the discriminator's image tokens ``[B, length,
        D]``."""
        return self.contrastive_head.apply({"params": params["contrast"]}, tokens, condition)


def _normalize_rms(tokens):
    """Tokens ``[..., D]``, each divided by the root mean square of its elements."""
    return tokens / jnp.sqrt(jnp.square(tokens).mean(axis=-1, keepdims=True) + 1e-6)
