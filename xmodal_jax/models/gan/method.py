"""The conditional GAN: images of a class, a sentence or its words."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives, trees
from xmodal_jax.core.collectives import AxisName
from xmodal_jax.core.random import batch_index, batch_keys, fold_in_name
from xmodal_jax.core.schedules import batch_progress
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import penalties
from xmodal_jax.losses.adversarial import clip_weights
from xmodal_jax.losses.contrastive import info_nce
from xmodal_jax.losses.word_region import word_region_loss
from xmodal_jax.models.conditions import DataSizes, interpolate_conditions
from xmodal_jax.models.contrastive import matching_ids
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.first_stage import FirstStage
from xmodal_jax.models.gan.inputs import FrozenCaptioner, FrozenEncoder, ImageInputs
from xmodal_jax.models.gan.networks import LOGIT_PARTS, GANNetworks
from xmodal_jax.models.gan.objective import FeatureLoss, LogitLoss, Mismatched, adversarial_loss
from xmodal_jax.models.gan.penalties import Penalty, PenaltyInputs
from xmodal_jax.models.towers import presence_masks
from xmodal_jax.nets.spectral import spectral_normalize, spectral_vectors
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.types import GAN, Batch, Condition, ExampleKeys, Key, Params

Aux = dict[str, Float[Array, ""]]
Variables = dict[str, Any]
FIRST_STAGE = "first_stage"
"""The name of the first stage's parameters among those of frozen networks."""
LECAM_DECAY = 0.99
"""Decay of the moving averages of logits, for the LeCam regularisation."""


def make_gan(
    config: GANConfig,
    *,
    shape: tuple[int, int, int],
    vocab_size: int = 0,
    length: int = 0,
    classes: int = 0,
    text: Params | None = None,
    captioner: FrozenCaptioner | None = None,
    image_encoder: FrozenEncoder | None = None,
    first_stage: FirstStage | None = None,
) -> GAN:
    """The conditional GAN of ``config`` for images of ``shape`` (height, width, channels); see `ConditionalGAN`.

    Args:
      vocab_size: tokens of the captions' vocabulary, for the conditions "sentence" and "words".
      length: tokens of a caption, for the same.
      classes: number of classes, for the condition "class".
      text: parameters of a frozen text encoder; None: each network trains one.
      captioner: a frozen captioner, used as ``config.features`` says; None: there is none.
      image_encoder: a frozen image encoder, used as ``config.features`` says; its features take precedence over those
        of the captioner. None: there is none.
      first_stage: the GAN whose images the generator refines; None: it generates from noise.

    Raises:
      ValueError: the condition needs captions or labels and there are none, or parts of the configuration do not fit.

    Example::

        gan = make_gan(GANConfig(condition=ClassCondition()), shape=(32, 32, 3), classes=10)
        params, variables = gan.init(key, batch)
    """
    _check_frozen(config, captioner, image_encoder)
    sizes = DataSizes(shape, vocab_size, length, classes)
    _check_first_stage(config, first_stage, shape)
    networks = GANNetworks(config, sizes, frozen_text=text is not None)
    config.condition.build(
        sizes
    )  # raises ValueError where the data lack the labels or captions of the condition
    if config.features is not None and config.features.projected:
        # The discriminator needs the number and width of the frozen network's tokens. Only a captioner has an
        # attention of words to them.
        extractor = captioner if image_encoder is None else image_encoder
        pixels = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        token_shape = jax.eval_shape(extractor.encode, extractor.params, pixels).shape[
            1:
        ]  # [1, N, D] -> (N, D)
        networks = dataclasses.replace(
            networks, token_shape=token_shape, word_attention=image_encoder is None
        )
    frozen = {
        "text": text,
        "captioner": None if captioner is None else captioner.params,
        "image_encoder": None if image_encoder is None else image_encoder.params,
        FIRST_STAGE: None if first_stage is None else first_stage.params,
    }
    frozen = {name: params for name, params in frozen.items() if params is not None}
    first = None
    if first_stage is not None:
        first_networks = GANNetworks(first_stage.config, sizes._replace(shape=first_stage.shape))
        first = ConditionalGAN(first_stage.config, first_networks)
    gan = ConditionalGAN(config, networks, captioner, image_encoder, first).as_gan(frozen or None)
    return gan if first is None or not first_stage.by_seed else gan._replace(frozen_by_seed=(FIRST_STAGE,))


def _check_first_stage(config: GANConfig, first_stage: FirstStage | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the generator needs a first stage and there is none, or the reverse, or where its images
    have another size than the generator expects."""
    if config.generator.refines_images != (first_stage is not None):
        needs = "needs a trained" if config.generator.refines_images else "has no"
        raise ValueError(f"the generator {config.generator.name} {needs} first stage (first_stage)")
    if first_stage is not None and first_stage.shape != config.generator.first_shape(shape):
        raise ValueError(
            f"the first stage has images of {first_stage.shape} (height, width, channels); for images of {shape} and "
            f"scale {config.generator.scale} they must have {config.generator.first_shape(shape)}"
        )


def _check_frozen(
    config: GANConfig, captioner: FrozenCaptioner | None, image_encoder: FrozenEncoder | None
) -> None:
    """Raises ValueError where ``config.features`` needs a frozen network and there is none, or a frozen network is
    given that no loss would use."""
    if captioner is None and image_encoder is None:
        if config.features is not None:
            raise ValueError(
                "features needs a frozen captioner (--redescribe) or image encoder (--image-encoder)"
            )
        return
    if config.features is None:
        raise ValueError(
            "a frozen captioner (--redescribe) or image encoder (--image-encoder) is used only with features: choose"
            " --model.features frozen"
        )
    if captioner is not None and not config.condition.reads_text:
        raise ValueError(f"a captioner scores captions, and the condition is {config.condition.name!r}")
    if image_encoder is not None and not (config.features.projected or config.features.perceptual_weight):
        raise ValueError("a frozen image encoder needs projected or perceptual_weight: else nothing uses it")


class DiscriminatorPass(NamedTuple):
    """One forward pass of the discriminator on real and generated images: what the terms of its loss are made of."""

    params: Params
    """The discriminator's parameters, after spectral normalisation if there is one."""
    condition: Condition
    """The batch's condition, by the discriminator's condition encoder."""
    real_image: Float[Array, "batch height width channels"]
    """Real images, without augmentation."""
    fake_image: Float[Array, "batch height width channels"]
    """Generated images, without augmentation."""
    augment: Callable[..., ImageInputs]
    """``augment(image, *, keys)``: the discriminator's inputs of images; ``keys`` are those below."""
    real: ImageInputs
    """Real images, augmented, with their frozen features."""
    fake: ImageInputs
    """Generated images, augmented, with their frozen features."""
    real_keys: ExampleKeys
    """Random keys of augmentation and dropout for the real images."""
    fake_keys: ExampleKeys
    """Random keys of augmentation and dropout for the generated images."""
    real_tokens: Float[Array, "batch length dim"]
    """The discriminator's tokens of the real images."""
    real_scores: Float[Array, "batch outputs"]
    """The discriminator's outputs for real images: one logit, or features (MMD-GANs)."""
    fake_scores: Float[Array, "batch outputs"]
    """The discriminator's outputs for generated images."""
    present: Bool[Array, "batch"]
    """Which examples count."""


@dataclasses.dataclass(frozen=True, eq=False)
class ConditionalGAN:
    r"""The functions of `types.GAN` for a conditional GAN of images.

    The batch holds ``image`` uint8, and ``text`` ``[B, length]`` with its mask, or ``label`` (-1 is unknown), as the
    condition needs. An example that lacks one of them has no influence. ``index`` is the example's position in the
    stream of all examples drawn, consecutive within a batch: random keys are derived from it. ``group`` (optional) is
    the number of the picture that ``image`` shows, -1 if it is unknown. Several examples may show one picture, such as
    the captions of a photo; they have equal numbers, and none is a negative (a wrong pair) of another.

    With real images x, generated images y and their condition c, the discriminator minimises the mean over the global
    batch of

    .. math:: L_D(x, y \mid c) + w_p P + w_l R_{LeCam} + w_r \, CE(c \mid x) + w_s \, NCE(x, c)
              + w_w \, NCE_{words}(x, c)

    and the generator the mean of

    .. math:: L_G(y, x \mid c) + w_r \, CE(c \mid y) + w_s \, NCE(y, c) + w_w \, NCE_{words}(y, c)
              + w_d \, CE_{captioner}(c \mid y) + w_v \, V(y, x) + w_f \, (1 - \cos(f(y), f(x)))
              + w_i \, NCE(y, x) + w_k \, KL(q(v \mid c) \| N(0, I))

    Every term but the adversarial loss is optional. The metric that logs a term begins with ``d_`` in the
    discriminator's aux and with ``g_`` in the generator's:

    - :math:`L_D, L_G`: adversarial loss (``d_loss``, ``g_loss``), by ``objective``.
    - P: gradient penalty (``d_penalty``), of weight ``penalty.weight``, and a second one (``d_second_penalty``) of
      weight ``second_penalty.weight``; :math:`R_{LeCam}` of weight ``lecam`` is not logged.
    - CE: auxiliary loss as in AC-GAN, by which the discriminator predicts the class or the caption from an image
      (``d_read``, ``g_read``: nats of the class, or per token), of weight ``condition.auxiliary_weight``.
    - NCE: contrastive losses (InfoNCE) with the weights of ``contrastive``: of images and conditions (``d_sentence``,
      ``g_sentence``; the metrics have these names for class conditions as well), of image regions and words
      (``d_word``, ``g_word``), and of generated and real images (``g_image``): each generated image with the real image
      of the same example, and with the real images of the same picture.
    - :math:`CE_{captioner}`: redescription, a frozen captioner's cross-entropy of the caption (``g_redescription``,
      nats per token), of weight ``features.redescription_weight``.
    - V: the negative ELBO per pixel and channel, with a weighted KL divergence, of weight ``reconstruction.weight``.
      Its parts are logged: ``g_reconstruction``, the reconstruction error in nats per pixel and channel, and
      ``g_posterior_kl``, the divergence without its weight in nats per image. Every second image is a reconstruction,
      and only those have this term.
    - f: features of a frozen network. The perceptual loss (``g_perceptual``) of reconstructions has the weight
      ``features.perceptual_weight``.
    - KL: the divergence of conditioning augmentation's distribution from N(0, I) (``g_kl``, nats per dimension), of
      weight ``generator.conditioning_weight``.

    The discriminator's aux also has ``d_real`` and ``d_fake`` (means of its first output) and ``ada`` (the probability
    of augmentation).

    ``variables`` holds ``batch_stats`` of the generator, ``spectral`` (vectors of the power iteration), ``logits``
    (moving averages, for LeCam) and ``augment_probability`` (ADA, or by a schedule); ``frozen`` holds the parameters of
    those of the frozen networks ``text``, ``captioner``, ``image_encoder`` and ``first_stage`` that are used; None:
    there are none.

    A generator that refines images (`nets.gan.StackGANGeneratorConfig`) gets those that the frozen generator of a first
    stage makes of the same condition and of the noise. No gradient goes there.
    """

    config: GANConfig
    networks: GANNetworks
    captioner: FrozenCaptioner | None = None
    """A trained captioner that scores generated images (redescription) or whose tokens are features of images; None:
    neither."""
    image_encoder: FrozenEncoder | None = None
    """A pretrained encoder whose tokens are the features of images; None: those of the captioner, if there is one."""
    first_stage: ConditionalGAN | None = None
    """The GAN whose images the generator refines; None: it generates from noise."""

    def as_gan(self, frozen: dict[str, Params] | None) -> GAN:
        """The methods below as a `types.GAN`; ``frozen``: the parameters of frozen networks, by name."""
        has_reconstruction = self.config.reconstruction is not None
        return GAN(
            init=self.init,
            generate=self.generate,
            d_loss=self.d_loss,
            g_loss=self.g_loss,
            constrain=self.constrain,
            predict=self.predict,
            d_steps=self.config.d_steps,
            pretrain_generator=self.pretrain_generator if has_reconstruction else None,
            frozen=frozen,
            predict_first_stage=None if self.first_stage is None else self.predict_first_stage,
        )

    @functools.cached_property
    def adversarial(self) -> LogitLoss | FeatureLoss:
        """The adversarial loss of ``config.objective``, for both networks."""
        return adversarial_loss(self.config.objective)

    def init(self, key: Key, batch: Batch) -> tuple[dict[str, Params], Variables]:
        """Initial parameters of generator and discriminator, and the variables (state without gradients): with spectral
        normalisation, LeCam or adaptive augmentation each its own.

        ``batch`` is not used: the configuration and the data's sizes determine all shapes.
        """
        params, batch_stats = self.networks.init(key)
        variables: Variables = {"batch_stats": batch_stats}
        if self.config.spectral:
            variables["spectral"] = spectral_vectors(
                fold_in_name(key, "spectral"), _logit_params(params["discriminator"])
            )
        if self.config.lecam:
            variables["logits"] = {"real": jnp.float32(0.0), "fake": jnp.float32(0.0)}
        if self.config.augmentation is not None:
            variables |= self.config.augmentation.initial_variables()
        return params, variables

    def predict(self, params: Params, batch: Batch) -> Float[Array, "batch height width channels"]:
        """Images in [-1, 1], generated from the batch's conditions and its ``noise [B, Z]``; see `types.GAN`.

        If the batch also holds ``toward_NAME`` for the fields of a second condition (``toward_label``, or
        ``toward_text`` and ``toward_text_mask``), the condition is interpolated linearly: ``blend [B]`` is the weight
        of the second one, from 0 to 1.
        """
        # ``params``: parameters of the "generator", the "variables", and parameters of "frozen" networks if there are
        # any.
        generator, frozen = params["generator"], params.get("frozen")
        batch_stats = params.get("variables", {}).get("batch_stats", {})  # empty ones are not in checkpoints
        # Without random keys there is no dropout, and batch norm uses its running statistics. The second result of
        # `generator_condition` (a KL divergence) and of `generate` (new statistics) only matter in training.
        condition, _ = self.networks.generator_condition(generator, frozen, batch, keys=None)
        second_fields = {k.removeprefix("toward_"): v for k, v in batch.items() if k.startswith("toward_")}
        if second_fields:
            second_batch = {**batch, **second_fields}
            second_condition, _ = self.networks.generator_condition(
                generator, frozen, second_batch, keys=None
            )
            condition = interpolate_conditions(condition, second_condition, fraction=batch["blend"])
        inputs = batch["noise"] if self.first_stage is None else self.predict_first_stage(params, batch)
        images, _ = self.networks.generate(generator, batch_stats, condition, inputs, keys=None)
        return images

    def predict_first_stage(
        self, params: Params, batch: Batch
    ) -> Float[Array, "batch height width channels"]:
        """The images of the first stage that `predict` refines; its arguments are those of `predict`."""
        frozen = params["frozen"]
        # A frozen text encoder that both stages share is not stored twice.
        return self.first_stage.predict({"frozen": frozen, **frozen[FIRST_STAGE]}, batch)

    def constrain(self, discriminator: Params) -> Params:
        """The discriminator's parameters; with ``config.clip`` the weights behind its logit are clipped to
        [-clip, clip], as in WGAN."""
        if not self.config.clip:
            return discriminator
        return {**discriminator, **clip_weights(_logit_params(discriminator), self.config.clip)}

    # -- generator --

    def generate(
        self,
        generator: Params,
        variables: Variables,
        batch: Batch,
        key: Key,
        *,
        frozen: Params | None = None,
        axis_name: AxisName = None,
    ) -> tuple[dict[str, Array], Variables]:
        """One image for each of the batch's conditions, and the updated variables.

        The images are generated from random noise. With ``config.reconstruction`` every second one is generated from
        noise that is inferred from the real image. ``frozen``: parameters of frozen networks by name. Random keys
        depend on ``key`` and the examples' indices. The result is a dict of ``image``, ``kl [B]`` of conditioning
        augmentation and ``posterior_kl [B]`` of the inferred noise; the last two only where the configuration has them.
        """
        keys = fold_in_name(batch_keys(key, batch), "generate")
        reconstruct_mask = self._reconstruct_mask(batch)
        return self._generate(generator, variables, batch, keys, reconstruct_mask, frozen, axis_name)

    def pretrain_generator(
        self,
        generator: Params,
        variables: Variables,
        batch: Batch,
        key: Key,
        *,
        frozen: Params | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, ""], tuple[Aux, Variables]]:
        """The reconstruction loss of all real images, which needs no discriminator; and its aux with the updated
        variables.

        Every image is generated from noise that is inferred from the real image. ``generator``: its parameters.
        ``variables``: state without gradients. ``frozen``: parameters of frozen networks by name, or None.
        ``axis_name``: the axis of devices. Loss and aux are this device's shares of means over the global batch.
        """
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "rehearse")
        reconstruct_mask = jnp.ones(len(batch_index(batch)), bool)  # all images
        generated, variables = self._generate(
            generator, variables, batch, keys, reconstruct_mask, frozen, axis_name
        )
        loss, aux = self._reconstruction_loss(generated, batch, self._present(batch), axis_name)
        return loss, (aux, variables)

    def _generate(self, generator, variables, batch, keys, reconstruct_mask, frozen, axis_name):
        """Images generated from random noise or, where ``reconstruct_mask [B]`` is True, from noise inferred from the
        batch's real images; and the updated variables. See `generate` for the entries of the first result.

        ``generator``: its parameters. ``variables``: state without gradients, here ``batch_stats``. ``keys [B]``: one
        random key for each example. ``frozen``: parameters of frozen networks by name, or None. ``axis_name``: the axis
        of devices, or None.
        """
        networks = dataclasses.replace(self.networks, axis_name=axis_name)
        size = (self.config.generator.noise,)
        noise = jax.vmap(lambda k: jax.random.normal(k, size))(fold_in_name(keys, "noise"))
        # At first ``generated`` holds only the KL divergence of conditioning augmentation, {"kl": [B]}; without this
        # augmentation it is empty. ``posterior_kl`` and the images are added below.
        condition, generated = networks.generator_condition(generator, frozen, batch, keys)
        if self.config.reconstruction is not None:
            inputs = self._posterior_inputs(batch, frozen)
            posterior_keys = fold_in_name(keys, "posterior")
            inferred, kl = networks.infer_noise(generator, condition, inputs, noise, posterior_keys)
            noise = jnp.where(reconstruct_mask[:, None], inferred, noise)  # [B, Z]
            generated = {
                **generated,
                "posterior_kl": kl,
            }  # [B], also of the images that are not reconstructed
        inputs = noise if self.first_stage is None else self._first_stage_images(frozen, batch, noise, keys)
        image, batch_stats = networks.generate(generator, variables["batch_stats"], condition, inputs, keys)
        return {**generated, "image": image}, {**variables, "batch_stats": batch_stats}

    def _first_stage_images(self, frozen: Params, batch: Batch, noise: Array, keys: ExampleKeys) -> Array:
        """The first stage's images ``[B, height, width, channels]`` of the batch's conditions and of ``noise [B, Z]``,
        without a gradient.

        As in its own training its conditioning augmentation is sampled, but batch norm uses running statistics, and
        there is no dropout. ``frozen``: parameters of frozen networks by name. ``keys``: one for each example.
        """
        first, params = self.first_stage.networks, {"frozen": frozen, **frozen[FIRST_STAGE]}
        condition, _ = first.generator_condition(
            params["generator"], params["frozen"], batch, keys=None,
            augmentation_keys=fold_in_name(keys, FIRST_STAGE),
        )  # fmt: skip
        statistics = params.get("variables", {}).get("batch_stats", {})
        images, _ = first.generate(params["generator"], statistics, condition, noise, keys=None)
        return jax.lax.stop_gradient(images)

    def _posterior_inputs(self, batch: Batch, frozen: Params | None) -> ImageInputs:
        """The real images from which the generator's noise is inferred, with the frozen network's tokens if the
        discriminator gets these too.

        A generator that composes objects from words also needs to know where in the image each word is: the captioner's
        attention of the words to these tokens.
        """
        inputs = self._with_frozen_features(to_float(batch["image"]), frozen)
        objects_from_words = self.config.generator.composes_objects and self.config.condition.uses_words
        if self.networks.word_attention and objects_from_words:
            attention = self.captioner.attention(frozen["captioner"], inputs.tokens, batch["text"])
            inputs = inputs._replace(word_attention=attention)
        return inputs

    def _reconstruct_mask(self, batch: Batch) -> Bool[Array, "batch"]:
        """Which images are reconstructed: every second one.

        ``index`` is an example's position in the stream of all examples, consecutive within a batch. The
        discriminator's n-th step gets the examples whose index is n modulo ``d_steps``. Dividing by ``d_steps`` makes
        it every second example of each step. With ``d_steps`` = 2, step 0 gets the indices 0, 2, 4, 6: divided by 2
        they are 0, 1, 2, 3, and the examples 0 and 4 are reconstructed.
        """
        return (batch_index(batch) // self.config.d_steps) % 2 == 0

    def _reconstruction_loss(self, generated, batch, has_reconstruction, axis_name):
        """The weighted negative ELBO, and its parts as aux: means over the images where ``has_reconstruction [B]``.

        ``generated``: the result of `generate`, with ``image`` and ``posterior_kl``. All means are this device's
        shares.
        """
        options = self.config.reconstruction
        mean_share = functools.partial(_mean_share, present=has_reconstruction, axis_name=axis_name)
        squared_error = jnp.square(generated["image"] - to_float(batch["image"])).sum(axis=(1, 2, 3))
        kl, size = (
            generated["posterior_kl"],
            math.prod(self.networks.sizes.shape),
        )  # size: pixels times channels
        # -log p(x | v), up to a constant, of normal pixels with the standard deviation `pixel_scale`.
        nats = squared_error / (2.0 * options.pixel_scale**2)
        negative_elbo = mean_share(nats + options.kl_weight * kl) / size
        aux = {"g_posterior_kl": mean_share(kl), "g_reconstruction": mean_share(nats) / size}
        return options.weight * negative_elbo, jax.lax.stop_gradient(aux)

    def g_loss(
        self,
        generated: dict[str, Array],
        discriminator: Params,
        variables: Variables,
        batch: Batch,
        key: Key,
        *,
        frozen: Params | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, ""], Aux]:
        """The generator's loss and its aux, as a function of ``generated`` (from `generate`); equation in the class.

        The loss and every entry of aux are scalars: this device's shares of means over the global batch.
        ``discriminator``: its parameters. ``variables``: state without gradients, such as the vectors of spectral
        normalisation. ``frozen``: parameters of frozen networks by name, or None. ``axis_name``: the axis of devices.
        """
        networks, present = dataclasses.replace(self.networks, axis_name=axis_name), self._present(batch)
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "persuade")
        mean_share = functools.partial(_mean_share, present=present, axis_name=axis_name)
        # Only the discriminator's step updates the vectors of the power iteration.
        params, _ = self._normalize_weights(discriminator, variables, iterations=0)
        # keys=None: no dropout in the discriminator's condition encoder, which the generator's loss does not train: its
        # output is a fixed target here, with which the images are compared.
        condition = networks.encode_condition(params, frozen, batch, keys=None)
        fake = self._discriminator_inputs(generated["image"], variables, frozen, keys)
        fake_tokens = networks.image_tokens(params, fake, keys)
        fake_scores = networks.score(params, fake_tokens, condition.vector)
        # Few objectives need scores of real images; the compiler removes them where they are not used.
        real_keys = fold_in_name(keys, "real")
        real = self._discriminator_inputs(to_float(batch["image"]), variables, frozen, real_keys)
        real_tokens = networks.image_tokens(params, real, real_keys)
        real_scores = networks.score(params, real_tokens, condition.vector)
        loss = self.adversarial.generator(fake_scores, real_scores, present, axis_name)
        aux = {"g_loss": loss}
        terms = self._condition_losses(params, fake_tokens, condition, batch, present, axis_name)
        for name, (value, weight) in terms.items():  # value: a scalar, this device's share of a mean
            aux[f"g_{name}"], loss = value, loss + weight * value
        loss, aux = self._add_feature_and_reconstruction_losses(
            loss, aux, generated, fake, batch, present, frozen, axis_name
        )
        if self.config.contrastive.image_weight:
            aux["g_image"] = self._image_contrastive_loss(
                networks, params, fake_tokens, real_tokens, condition, batch, present, axis_name
            )
            loss = loss + self.config.contrastive.image_weight * aux["g_image"]
        if self.config.generator.conditioning:
            aux["g_kl"] = mean_share(generated["kl"])
            loss = loss + self.config.generator.conditioning_weight * aux["g_kl"]
        return loss, jax.lax.stop_gradient(aux)

    def _image_contrastive_loss(
        self, networks, params, fake_tokens, real_tokens, condition, batch, present, axis_name
    ) -> Float[Array, ""]:
        """InfoNCE of generated and real images: each generated image should be nearer to the real image of the same
        example than to real images of other pictures.

        An example is a picture with a condition. The positives of a generated image are the real image of the same
        example and, from the batch, all real images of the same picture (equal ``group``); the other real images are
        its negatives. ``params``: the discriminator's, whose contrastive head embeds the images. ``fake_tokens``,
        ``real_tokens``: the discriminator's tokens ``[B, length, D]`` of generated and real images.
        """
        # The head embeds images and conditions together; only the images' embeddings are used here.
        fake_embedding = networks.contrastive_embeddings(params, fake_tokens, condition).image
        real_embedding = networks.contrastive_embeddings(params, real_tokens, condition).image
        # ids=None: examples match by ``group`` (their picture) alone. Another picture of the same condition is a
        # negative, while in `_condition_losses` equal conditions are positives.
        terms = info_nce(
            fake_embedding, real_embedding, present=present, match=matching_ids(ids=None, batch=batch),
            duplicates="positive", axis_name=axis_name, temperature=self.config.contrastive.temperature,
        )  # fmt: skip
        return _mean_share(terms, present, axis_name)

    def _add_feature_and_reconstruction_losses(
        self, loss, aux, generated, fake, batch, present, frozen, axis_name
    ):
        """``loss`` plus redescription, reconstruction and perceptual loss, and ``aux`` with their metrics.

        Redescription and perceptual loss are computed from the frozen network's features of the generated images.
        ``generated``: from `generate`. ``fake``: the generated images as the discriminator gets them (`ImageInputs`).
        ``present [B]``: which examples count. ``frozen``: parameters of frozen networks by name.
        """
        image, feature_config = generated["image"], self.config.features
        perceptual_weight = 0.0 if feature_config is None else feature_config.perceptual_weight
        if self.captioner is not None or perceptual_weight:
            # `_check_frozen` has made sure that ``config.features`` is not None here.
            # The frozen network's tokens [B, N, D] of the generated images. ``fake`` already holds them if the
            # discriminator gets frozen features, and gets images without augmentation. Then they are shared, so that
            # the frozen network is evaluated and differentiated once.
            shares_features = feature_config.projected and self.config.augmentation is None
            tokens = fake.tokens if shares_features else self._image_features(image, frozen)
        if self.captioner is not None:
            mask = batch.get("text_mask", batch["text"] != 0)  # token 0 is padding
            if self.image_encoder is None:
                captioner_tokens = tokens  # already the captioner's
            else:
                captioner_tokens = self.captioner.encode(frozen["captioner"], image)
            # Cross-entropy of the real caption given the generated image, [B], in nats per token.
            nats = self.captioner.cross_entropy(frozen["captioner"], captioner_tokens, batch["text"], mask)
            aux["g_redescription"] = _mean_share(nats, present, axis_name)
            loss = loss + feature_config.redescription_weight * aux["g_redescription"]
        # Only reconstructions are compared with their real images: the other generated images come from random noise.
        has_reconstruction = present & self._reconstruct_mask(batch)
        if self.config.reconstruction is not None:
            reconstruction_loss, reconstruction_aux = self._reconstruction_loss(
                generated, batch, has_reconstruction, axis_name
            )
            aux, loss = aux | reconstruction_aux, loss + reconstruction_loss
        if perceptual_weight:  # then there are reconstructions: `GANConfig` refuses this weight without them
            real_tokens = self._image_features(to_float(batch["image"]), frozen)
            # The cosine of corresponding tokens [B, length, D] of both images, averaged over the tokens.
            cosine = (l2_normalize(tokens) * l2_normalize(real_tokens)).sum(axis=-1).mean(axis=-1)
            aux["g_perceptual"] = _mean_share(1.0 - cosine, has_reconstruction, axis_name)
            loss = loss + perceptual_weight * aux["g_perceptual"]
        return loss, aux

    # -- discriminator --

    def d_loss(
        self,
        discriminator: Params,
        variables: Variables,
        batch: Batch,
        generated: dict[str, Array],
        key: Key,
        step: Array,
        *,
        frozen: Params | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, ""], tuple[Aux, Variables]]:
        """The discriminator's loss, and its aux with the updated variables; equation in the class.

        The loss and every entry of aux are scalars: this device's shares of means over the global batch.
        ``generated``: from `generate`. ``step``: number of the training step. ``discriminator``: its parameters.
        ``variables``: state without gradients. ``frozen``: parameters of frozen networks by name, or None.
        ``axis_name``: the axis of devices.
        """
        networks, present = dataclasses.replace(self.networks, axis_name=axis_name), self._present(batch)
        # The name of a key only selects the random stream.
        keys = fold_in_name(batch_keys(key, batch), "discriminate")
        mean_share = functools.partial(_mean_share, present=present, axis_name=axis_name)
        params, variables = self._normalize_weights(discriminator, dict(variables))
        forward = self._forward_real_and_fake(
            networks, params, variables, batch, generated, keys, present, frozen
        )
        mismatched = self._score_mismatched(networks, forward, batch, axis_name)
        real, fake = forward.real_scores, forward.fake_scores
        loss = self.adversarial.discriminator(real, fake, mismatched, present, axis_name)
        # The first output is the logit; of MMD-GANs, whose critic outputs features, it is the first feature.
        aux = {"d_loss": loss, "d_real": mean_share(real[:, 0]), "d_fake": mean_share(fake[:, 0])}
        progress = batch_progress(batch)
        for name, penalty in self.config.penalties.items():
            penalty_keys = fold_in_name(keys, name)
            aux[f"d_{name}"] = self._penalty(penalty, networks, forward, penalty_keys, step, axis_name)
            loss = loss + penalty.weight_at(progress) * aux[f"d_{name}"]
        if self.config.lecam:
            lecam, variables["logits"] = self._lecam(
                real[:, 0], fake[:, 0], variables["logits"], mean_share, axis_name
            )
            loss = loss + self.config.lecam * lecam
        if "augment_probability" in variables:  # of ADA, or of a schedule
            probability = variables["augment_probability"]
            # Metrics are summed over devices, so each device logs its share of the probability.
            aux["ada"] = probability / collectives.axis_size(axis_name)
            variables["augment_probability"] = self.config.augmentation.next_probability(
                probability, real[:, 0], present, progress, axis_name
            )
        terms = self._condition_losses(
            params, forward.real_tokens, forward.condition, batch, present, axis_name
        )
        for name, (value, weight) in terms.items():  # value: a scalar, this device's share of a mean
            aux[f"d_{name}"], loss = value, loss + weight * value
        return loss, (jax.lax.stop_gradient(aux), variables)

    def _forward_real_and_fake(self, networks, params, variables, batch, generated, keys, present, frozen):
        """The discriminator's scores of real and of generated images, with the inputs they were computed from.

        ``params``: the discriminator's, after spectral normalisation if there is one. ``variables``: hold the
        probability of augmentation (ADA). ``networks``: the functions of the networks. ``generated``: from `generate`.
        ``keys [B]``: one random key for each example. ``present [B]``: which examples count. ``frozen``: parameters of
        frozen networks by name.
        """
        condition = networks.encode_condition(params, frozen, batch, keys)
        # The names of the keys only select the random streams; "made" is that of the generated images.
        real_keys, fake_keys = fold_in_name(keys, "real"), fold_in_name(keys, "made")
        augment = functools.partial(self._discriminator_inputs, variables=dict(variables), frozen=frozen)
        real_image, fake_image = to_float(batch["image"]), generated["image"]
        real, fake = augment(real_image, keys=real_keys), augment(fake_image, keys=fake_keys)
        real_tokens = networks.image_tokens(params, real, real_keys)
        real_scores = networks.score(params, real_tokens, condition.vector)
        fake_scores = networks.score(params, networks.image_tokens(params, fake, fake_keys), condition.vector)
        return DiscriminatorPass(
            params=params, condition=condition, real_image=real_image, fake_image=fake_image, augment=augment,
            real=real, fake=fake, real_keys=real_keys, fake_keys=fake_keys, real_tokens=real_tokens,
            real_scores=real_scores, fake_scores=fake_scores, present=present,
        )  # fmt: skip

    def _score_mismatched(self, networks, forward: DiscriminatorPass, batch, axis_name) -> Mismatched | None:
        """Scores of each real image with a wrong condition: that of the previous example in the global batch.

        None without ``condition.matching_aware``. A pair does not count if either example is absent, if both have
        equal conditions, or if they show the same picture (equal ``group``; -1 is an unknown picture): then the
        previous example's condition also fits this image. ``forward``: the pass on the images with their right
        conditions.
        """
        if not self.config.condition.matching_aware:
            return None
        of_previous = functools.partial(collectives.roll_batch, axis_name=axis_name)
        wrong_condition = of_previous(forward.condition.vector)
        condition_ids = self.networks.condition_encoder.ids(batch)
        scores = networks.score(forward.params, forward.real_tokens, wrong_condition)
        counts = forward.present & of_previous(forward.present)
        counts &= condition_ids != of_previous(condition_ids)
        if "group" in batch:
            counts &= (batch["group"] != of_previous(batch["group"])) | (batch["group"] < 0)
        return Mismatched(scores, counts)

    def _penalty(
        self, penalty: Penalty, networks, forward: DiscriminatorPass, keys, step, axis_name
    ) -> Float[Array, ""]:
        """A gradient penalty without its weight, this device's share of its mean. With ``penalty.every`` = n it is
        computed at every n-th step only and multiplied by n; at the other steps it is 0.

        ``forward``: the discriminator's pass on real and generated images, from which real and fake inputs, the
        condition and the parameters are. ``keys``: one random key for each example.
        """

        def critic(inputs: ImageInputs, vector=None, keys=None):
            """The number ``[B]`` whose gradient is penalised: the logit, or the witness function of an MMD-GAN.

            ``inputs``: images and frozen tokens to score. ``vector``: the condition's; None: the batch's. The penalty
            ma_gp passes it, to differentiate by it. ``keys``: of dropout; None: those of the real images. The penalty
            r2 passes those of the generated images. They are also those of the augmentation, which is the same as in
            the forward pass, where the gradient is taken before it.
            """
            vector = forward.condition.vector if vector is None else vector
            keys = forward.real_keys if keys is None else keys
            if penalty.before_augmentation:
                inputs = forward.augment(inputs.image, keys=keys)
            tokens = networks.image_tokens(forward.params, inputs, keys)
            outputs = networks.score(forward.params, tokens, vector)
            return self.adversarial.critic_value(
                outputs, forward.real_scores, forward.fake_scores, forward.present, axis_name
            )

        def penalty_value():
            """The penalty, averaged over the examples of the global batch that are present."""
            real, fake = forward.real, forward.fake
            if penalty.before_augmentation:
                real, fake = ImageInputs(forward.real_image), ImageInputs(forward.fake_image)
            inputs = PenaltyInputs(
                critic, real, fake, vector=forward.condition.vector,
                fake_keys=forward.fake_keys, keys=fold_in_name(keys, "penalty"),
                present=forward.present, axis_name=axis_name,
            )  # fmt: skip
            return _mean_share(penalty.terms(inputs), forward.present, axis_name)

        if penalty.every == 1:
            return penalty_value()
        # Both branches of `cond` must have one dtype and one sharding. The penalty is a share that differs between
        # devices, while a literal 0.0 is the same on all devices, which `shard_map` treats as another type. So zero is
        # computed from such a share.
        zero = lambda: 0.0 * _mean_share(forward.real_scores[:, 0], forward.present, axis_name)
        return penalty.every * jax.lax.cond(step % penalty.every == 0, penalty_value, zero)

    @staticmethod
    def _lecam(real, fake, averages, mean_share, axis_name):
        """The LeCam regularisation of the logits ``real [B]`` and ``fake [B]``, and the updated moving averages of
        their means.

        ``averages``: ``{"real", "fake"}``, the moving averages before this step. ``mean_share(terms [B])``: this
        device's share of the mean over the global batch.
        """
        value = mean_share(penalties.lecam(real, fake, averages["real"], averages["fake"]))
        # The sum of the devices' shares is the mean over the global batch, equal on all devices.
        real_mean = collectives.psum(mean_share(real), axis_name)
        fake_mean = collectives.psum(mean_share(fake), axis_name)
        means = jax.lax.stop_gradient({"real": real_mean, "fake": fake_mean})
        return value, trees.update_ema(averages, means, LECAM_DECAY)

    # -- both --

    def _present(self, batch: Batch) -> Bool[Array, "batch"]:
        """Which examples count: those that have an image and a condition (with classes, a known label)."""
        encoder = self.networks.condition_encoder
        present = presence_masks(batch, encoder.modalities)
        return present["image"] & present[encoder.condition_modality] & encoder.is_known(batch)

    def _normalize_weights(self, params: Params, variables: Variables, *, iterations: int = 1):
        """The discriminator's parameters after spectral normalisation (of ``params``), and the variables with the
        vectors of the power iteration, which estimates the largest singular values, after ``iterations`` more steps (0:
        unchanged). Without ``config.spectral`` both are returned unchanged."""
        if not self.config.spectral:
            return params, variables
        normalized, vectors = spectral_normalize(
            _logit_params(params), variables["spectral"], iterations=iterations
        )
        return {**params, **normalized}, {**variables, "spectral": vectors}

    def _discriminator_inputs(self, image, variables, frozen, keys) -> ImageInputs:
        """Images ``[B, height, width, channels]`` as the discriminator takes them: augmented, and with features of the
        frozen network. ``keys``: of the augmentation; ``variables``: hold its probability (ADA)."""
        if self.config.augmentation is not None:
            image = self.config.augmentation.apply(image, variables, keys)
        return self._with_frozen_features(image, frozen)

    def _with_frozen_features(self, image, frozen) -> ImageInputs:
        """Images, with features of the frozen network if the discriminator gets those (``features.projected``)."""
        projected = self.config.features is not None and self.config.features.projected
        return ImageInputs(image, self._image_features(image, frozen) if projected else None)

    def _image_features(self, image, frozen) -> Float[Array, "batch length dim"]:
        """Tokens of the frozen image encoder or, without one, of the frozen captioner."""
        if self.image_encoder is not None:
            return self.image_encoder.encode(frozen["image_encoder"], image)
        return self.captioner.encode(frozen["captioner"], image)

    def _condition_losses(self, params, tokens, condition, batch, present, axis_name):
        """Auxiliary and contrastive losses between images and their conditions, as ``{name: (value, weight)}``.

        ``params``: the discriminator's, with the predictor of conditions and the contrastive head. ``tokens [B, length,
        D]``: the discriminator's tokens of real images in its loss, of generated images in the generator's loss. The
        names are parts of metric names; "read" is the auxiliary loss. A value is this device's share of the mean over
        the examples that are ``present [B]``.
        """
        networks, weights, losses = self.networks, self.config.contrastive, {}
        mean_share = functools.partial(_mean_share, present=present, axis_name=axis_name)
        if self.config.condition.auxiliary_weight:
            nats = networks.prediction_loss(params, tokens, batch)
            losses["read"] = mean_share(nats), self.config.condition.auxiliary_weight
        if weights.sentence_weight or weights.word_weight:
            embedded = networks.contrastive_embeddings(params, tokens, condition)
            # Examples with equal conditions, or of one picture, are no negatives of each other.
            ids = matching_ids(networks.condition_encoder.ids(batch), batch)
            pairs = dict(present=present, match=ids, duplicates="positive", axis_name=axis_name)
        if weights.sentence_weight:
            terms = info_nce(embedded.image, embedded.condition, temperature=weights.temperature, **pairs)
            losses["sentence"] = mean_share(terms), weights.sentence_weight
        if weights.word_weight:
            # It has its own inverse temperatures, gamma 1 to 3 of AttnGAN, instead of ``weights.temperature``.
            terms = word_region_loss(embedded.words, condition.words.mask, embedded.regions, **pairs)
            losses["word"] = mean_share(terms), weights.word_weight
        return losses


def _mean_share(
    terms: Float[Array, "batch"], present: Bool[Array, "batch"], axis_name: AxisName
) -> Float[Array, ""]:
    """This device's share of the mean over the present examples of the global batch."""
    return collectives.batch_mean(terms, present.astype(jnp.float32), axis_name=axis_name)


def _logit_params(discriminator: Params) -> dict[str, Any]:
    """The parameters of the layers that compute the real/fake logit from an image (of MMD-GANs the features), without
    the auxiliary heads and the condition encoder. Spectral normalisation and clipping change these alone."""
    return {name: discriminator[name] for name in LOGIT_PARTS if name in discriminator}
