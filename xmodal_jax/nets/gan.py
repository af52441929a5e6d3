"""Generators of images, and the heads of a discriminator on top of an image encoder of `nets.encoders`.

A generator is a module ``(noise [B, Z], condition, *, keys=None) -> images [B, H, W, C]`` with values in [-1, 1]
(those of `R3GANGenerator` may lie outside in training). One that refines the images of another (`StackGANGenerator`)
has these in place of the noise. In evaluation ``keys`` is None, and batch norm uses the running statistics of the
collection ``batch_stats``. The table of generators is the union `Generator`; to add one, write its module and its
configuration here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.collectives import AxisName, shard_examples
from xmodal_jax.core.parts import FilledIn
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.conv import Conv, ConvTranspose
from xmodal_jax.nets.image import (
    concatenate_condition,
    coordinate_channels,
    upsample_nearest,
    upsampling_stages,
)
from xmodal_jax.nets.norm import batch_norm
from xmodal_jax.nets.objects import BOX_SIZE, ObjectGenerator, ObjectPosterior
from xmodal_jax.nets.r3gan import R3GANGenerator
from xmodal_jax.nets.stackgan import StackGANGenerator
from xmodal_jax.types import Condition, ExampleKeys, Tokens

MODULATIONS = ("fusion", "rms", "batch_norm")


def leaky_relu(x):
    """Leaky ReLU of slope 0.2."""
    return nn.leaky_relu(x, 0.2)


class MLPGenerator(nn.Module):
    """``depth`` hidden layers of ``width`` (leaky ReLU), then all pixels at once."""

    shape: tuple[int, int, int]
    width: int = 512
    depth: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images in (-1, 1) from the noise, joined with the condition's vector.

        ``keys``, which all generators take, is unused.
        """
        x = concatenate_condition(noise, condition)
        for k in range(self.depth):
            x = leaky_relu(shard_examples(nn.Dense(self.width, dtype=self.dtype, name=f"hidden_{k}")(x)))
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype, name="pixels")(x).astype(jnp.float32)
        return jnp.tanh(x).reshape(x.shape[0], *self.shape)


class DCGANGenerator(nn.Module):
    """Transposed convolutions 4x4 of stride 2 with batch norm and ReLU (Radford et al. 2016, arXiv:1511.06434).

    The last layer has ``width`` input channels, each layer before it twice as many. The smallest feature map is the
    image's size after `halvings`: a shorter side of 4 to 7 pixels, or more where an odd side cannot be halved.

    Raises:
      ValueError: the sides cannot be halved.
    """

    shape: tuple[int, int, int]
    width: int = 64
    axis_name: AxisName = None
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images in (-1, 1): a dense layer makes a small feature map, each transposed convolution doubles its size.

        The dense layer takes the noise, joined with the condition's vector. ``keys`` is None in evaluation, where batch
        norm uses its running statistics.
        """
        height, width, channels = self.shape
        stages = upsampling_stages(self.shape, "generator")
        features = self.width * 2 ** (stages - 1)  # of the smallest feature map
        size = features * height * width // 4**stages
        start = nn.Dense(size, use_bias=False, dtype=self.dtype, name="start")
        x = start(concatenate_condition(noise, condition))
        x = x.reshape(x.shape[0], height // 2**stages, width // 2**stages, features)
        for k in range(stages):
            x = nn.relu(batch_norm(keys, self.axis_name, dtype=self.dtype, name=f"norm_{k}")(x))
            last = k == stages - 1
            out = channels if last else self.width * 2 ** (stages - 2 - k)
            up = ConvTranspose(out, (4, 4), strides=2, use_bias=last, dtype=self.dtype, name=f"up_{k}")
            x = shard_examples(up(x))
        return jnp.tanh(x.astype(jnp.float32))


class Modulation(nn.Module):
    """Scales and shifts channels by functions of a vector, then applies leaky ReLU.

    ``kind``: "fusion": two affine maps ``gamma(c) x + beta(c)``, each with one hidden layer and followed by leaky ReLU
    (deep fusion, DF-GAN, Tao et al. 2022, arXiv:2008.05865, eq. 3-5); "batch_norm": conditional batch norm (de Vries
    et al. 2017, arXiv:1707.00683, eq. 5); "rms": each pixel divided by the root mean square of its channels first
    (Karras et al. 2018, arXiv:1710.10196, sec. 4.2), then one affine map. All start as ``gamma = 1, beta = 0``.
    """

    kind: str = "rms"
    axis_name: AxisName = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, vector, keys: ExampleKeys | None):
        """``leaky_relu((1 + gamma) x + beta)``, with ``gamma`` and ``beta`` of each channel computed from ``vector [B,
        D]`` (noise and condition).

        The feature map ``x [B, H, W, C]`` is first normalised ("batch_norm" or "rms"); "fusion" has no normalisation,
        and two such layers. ``keys`` is None in evaluation, where batch norm uses its running statistics.
        """
        features = x.shape[-1]
        if self.kind == "batch_norm":
            x = batch_norm(keys, self.axis_name, dtype=self.dtype, affine=False, name="norm")(x)
        elif self.kind == "rms":
            mean_square = jnp.square(x.astype(jnp.float32)).mean(axis=-1, keepdims=True)
            x = (x * lax.rsqrt(mean_square + 1e-6)).astype(x.dtype)
        elif self.kind != "fusion":
            raise ValueError(f"modulation must be one of {MODULATIONS}, got {self.kind!r}")
        zeros = nn.initializers.zeros_init()
        for k in range(2 if self.kind == "fusion" else 1):
            hidden = vector
            if self.kind == "fusion":
                hidden = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"hidden_{k}")(vector))
            affine = nn.Dense(2 * features, kernel_init=zeros, dtype=self.dtype, name=f"affine_{k}")(hidden)
            gamma, beta = jnp.split(affine[:, None, None, :], 2, axis=-1)
            x = leaky_relu(x * (1.0 + gamma) + beta)
        return x


class ResidualPixels(nn.Module):
    """Residual blocks of doubling size, modulated by a vector; the base of a generator and of a decoder of images.

    A dense layer makes the smallest feature map (the image's size after `halvings`). Every size up to half the image's
    has a block of two modulated 3x3 convolutions. The last layer, a transposed convolution 4x4 of stride 2, makes
    pixels; it mirrors `nets.image.ConvNet`'s stem. The two smallest sizes have ``width`` channels, each further one
    half as many. The vector modulates every block (`Modulation`). At the ``attention`` smallest sizes each position,
    with its coordinates, attends to words (AttnGAN, Xu et al. 2018, arXiv:1711.10485, sec. 3.1, with multi-head
    attention).

    Raises:
      ValueError: the sides cannot be halved, or an unknown modulation.
    """

    shape: tuple[int, int, int]
    width: int = 64
    modulation: str = "rms"
    attention: int = 0
    heads: int = 4
    axis_name: AxisName = None
    dtype: Any = None
    part: ClassVar[str] = "generator"
    """The module's name in error messages."""

    def to_pixels(
        self, latents: Float[Array, "batch latent"], words: Tokens | None, keys: ExampleKeys | None
    ) -> Float[Array, "batch height width channels"]:
        """The images for the vectors ``latents``, before an output activation, float32.

        ``words``: tokens that the first ``attention`` stages attend to; None: no attention. ``keys`` is None in
        evaluation, where batch norm uses its running statistics.
        """
        height, width, channels = self.shape
        stages = upsampling_stages(self.shape, self.part)
        vector = leaky_relu(nn.Dense(2 * self.width, dtype=self.dtype, name="style")(latents))
        height, width = height // 2**stages, width // 2**stages
        x = nn.Dense(height * width * self.width, dtype=self.dtype, name="start")(vector)
        x = x.reshape(x.shape[0], height, width, self.width)
        # A layer (x, vector, keys) that normalises and activates x, with scales and shifts computed from the vector.
        modulate = lambda name: Modulation(self.modulation, self.axis_name, self.dtype, name=name)
        for k in range(stages):
            # ``width`` channels at the two smallest sizes, then half as many at each next one, but at least 8.
            features = max(self.width // 2 ** max(k - 1, 0), 8)
            x = upsample_nearest(x) if k else x
            if x.shape[-1] != features:
                x = nn.Dense(features, use_bias=False, dtype=self.dtype, name=f"shortcut_{k}")(x)
            if words is not None and k < self.attention:
                x = x + self._attend(x, words, f"attention_{k}")
            branch = x
            for layer in range(2):
                branch = modulate(f"modulation_{k}_{layer}")(branch, vector, keys)
                branch = Conv(features, (3, 3), dtype=self.dtype, name=f"conv_{k}_{layer}")(branch)
            x = shard_examples(x + branch)
        x = modulate("modulation_out")(x, vector, keys)
        x = ConvTranspose(channels, (4, 4), strides=2, dtype=self.dtype, name="pixels")(x)
        return x.astype(jnp.float32)

    def _attend(self, x, words: Tokens, name: str):
        """The attention of each pixel of the feature map ``x [B, H, W, C]`` to the words, ``[B, H, W, C]``.

        A pixel's query comes from its features, its coordinates and a learned embedding of its position.
        """
        batch, height, width, features = x.shape
        to_query = nn.Dense(features, dtype=self.dtype, name=f"{name}_query")
        query = to_query(jnp.concatenate([x, coordinate_channels(x)], axis=-1))
        query = query.reshape(batch, height * width, features)
        positions = self.param(f"{name}_places", nn.initializers.normal(0.02), (height * width, features))
        norm = nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")
        query = norm(query + positions[None].astype(query.dtype))  # the same positions in all images
        attention = MultiHeadAttention(self.heads, dtype=self.dtype, name=name)
        return attention(query, words.values, words.mask).reshape(x.shape)


class ResidualGenerator(ResidualPixels):
    """`ResidualPixels` as a generator of images in [-1, 1]."""

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images in (-1, 1) from the noise, joined with the condition's vector; pixels may attend to its words.

        ``keys`` is None in evaluation, where batch norm uses its running statistics.
        """
        return jnp.tanh(self.to_pixels(concatenate_condition(noise, condition), condition.words, keys))


class ConditioningAugmentation(nn.Module):
    """Samples ``mu(c) + sigma(c) e`` given the condition's vector c (StackGAN, Zhang et al. 2017, arXiv:1612.03242).

    Returns the sample ``[B, features]`` and ``KL(N(mu, sigma^2) || N(0, I))`` (eq. 2) per dimension ``[B]``, in nats.
    ``noise``: e, standard normal; None returns mu.
    """

    features: int

    @nn.compact
    def __call__(self, vector: Float[Array, "batch dim"], noise: Float[Array, "batch dim2"] | None):
        """``(sample, kl)``: ``mu + sigma noise``, and ``KL(N(mu, sigma^2) || N(0, 1))``, averaged over dimensions.

        ``mu`` and ``log sigma^2`` are linear in the condition's ``vector``. ``noise`` is standard normal,
        ``[B, features]``; None: the sample is ``mu``. The sample has the same shape, ``kl`` is ``[B]``, in nats.
        """
        mean, log_variance = jnp.split(nn.Dense(2 * self.features, name="moments")(vector), 2, axis=-1)
        kl = -0.5 * (1.0 + log_variance - jnp.square(mean) - jnp.exp(log_variance)).mean(axis=-1)
        sample = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
        return sample, kl


class NoisePosterior(nn.Module):
    """The posterior of the noise given an image: mean and log-variance ``[B, features]`` (VAE-GAN, Larsen et al. 2016,
    arXiv:1512.09300). ``encoder``: an image encoder of `nets.encoders`."""

    encoder: nn.Module
    features: int
    """Number of noise values."""
    hidden: int = 128
    """Units of the hidden layer between the encoder's tokens and the posterior."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, keys: ExampleKeys | None = None
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
        """``(mean, log_variance)``, ``[B, noise]`` each: the Gaussian posterior of the noise that an image comes from.

        By an image encoder and one hidden layer. ``keys``: one per example, for dropout in training.
        """
        tokens = self.encoder(images, keys=keys).values.astype(jnp.float32)
        x = leaky_relu(nn.Dense(self.hidden, name="hidden")(tokens.reshape(tokens.shape[0], -1)))
        mean, log_variance = jnp.split(nn.Dense(2 * self.features, name="moments")(x), 2, axis=-1)
        return mean, log_variance


HEADS = ("projection", "concat", "linear", "none")


class Critic(nn.Module):
    """Scores an image's tokens ``[B, N, D]`` and a condition ``[B, C]``: ``[B, outputs]``, such as one logit.

    ``kind``: "projection": ``w h + <V c, h> / sqrt(dim)`` of the pooled, activated tokens h (Miyato & Koyama 2018,
    arXiv:1802.05637, eq. 3); "concat": the condition is concatenated to every token; one hidden
    layer, then a dense layer over all tokens (one-way output, DF-GAN, sec. 3.3); "none": "concat" without a condition;
    "linear": ``<U h, V c> / sqrt(dim)`` of the pooled tokens h, or ``w h`` without a condition, with neither a hidden
    layer nor biases (R3GAN, Huang et al. 2024, arXiv:2501.05441).

    Raises:
      ValueError: an unknown kind, a missing or superfluous condition, or several outputs of "projection" or "linear".
    """

    kind: str = "concat"
    outputs: int = 1
    hidden: int = 128
    """Units of the hidden layer."""

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length dim"], vector: Float[Array, "batch condition"] | None
    ) -> Float[Array, "batch outputs"]:
        """Scores ``[B, outputs]`` of images, given by their ``tokens``, under the condition's ``vector`` (None with the
        kind "none", and with "linear" where there is no condition).

        "projection": ``w h + <V c, h> / sqrt(dim)`` with ``h`` the pooled tokens and ``c`` the condition. "concat" and
        "none": a hidden layer over each token (joined with the condition), then a dense layer over all tokens.
        "linear": ``<U h, V c> / sqrt(dim)``, or ``w h`` without a condition.
        """
        if self.kind not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {self.kind!r}")
        if self.kind == "linear":
            return self._linear(tokens.astype(jnp.float32), vector)
        if (vector is None) != (self.kind == "none"):
            raise ValueError(f"the head {self.kind!r} {'needs' if vector is None else 'takes no'} condition")
        tokens = tokens.astype(jnp.float32)
        if self.kind == "projection":
            self._check_one_output()
            h = leaky_relu(nn.Dense(self.hidden, name="hidden")(tokens.mean(axis=1)))
            # V c and h, multiplied element by element; the sum over dimensions is <V c, h>.
            products = h * nn.Dense(self.hidden, use_bias=False, name="condition")(vector)
            return nn.Dense(1, name="out")(h) + products.sum(axis=1, keepdims=True) / math.sqrt(self.hidden)
        if vector is not None:
            repeated = jnp.broadcast_to(vector[:, None, :], (*tokens.shape[:2], vector.shape[-1]))
            tokens = jnp.concatenate([tokens, repeated], axis=-1)
        h = leaky_relu(nn.Dense(self.hidden, name="hidden")(tokens))
        return nn.Dense(self.outputs, name="out")(h.reshape(h.shape[0], -1))

    def _linear(self, tokens, vector):
        """The scores of the kind "linear", linear in the tokens and in the condition's vector."""
        self._check_one_output()
        features = 1 if vector is None else self.hidden
        h = nn.Dense(features, use_bias=False, name="out")(tokens.mean(axis=1))
        if vector is None:
            return h
        products = h * nn.Dense(features, use_bias=False, name="condition")(vector)
        return products.sum(axis=1, keepdims=True) / math.sqrt(features)

    def _check_one_output(self) -> None:
        """Raises ValueError if there are several outputs, which an inner product cannot have."""
        if self.outputs != 1:
            raise ValueError(f"{self.kind} has one output, not {self.outputs}: choose the head concat")


class SentenceEncoder(nn.Module):
    """Encodes token ids ``[B, L]`` as one vector per sentence and one per word. ``pool`` computes the sentence's vector
    from those of the words; None uses the pool of a pretrained ``encoder``."""

    encoder: nn.Module
    pool: nn.Module | None

    def __call__(
        self, ids, mask, *, keys: ExampleKeys | None = None
    ) -> tuple[Float[Array, "batch dim"], Tokens]:
        """``(sentence, words)``: one vector per sentence ``[B, D]``, and the tokens ``[B, L, D]`` of its words.

        ``ids [B, L]`` are token ids, ``mask [B, L]`` is True on valid ones. ``keys``: for dropout in training.
        """
        words = self.encoder(ids, mask, keys=keys)
        pool = self.encoder.pool if self.pool is None else self.pool
        return pool(words), words


class ContrastiveEmbeddings(NamedTuple):
    """Unit vectors of an image and its condition in one space, for contrastive losses."""

    image: Float[Array, "batch dim"]
    condition: Float[Array, "batch dim"] | None
    """Of the class or sentence; None without a contrastive loss of them."""
    regions: Float[Array, "batch regions dim"] | None
    """Of each image token (region); None without a contrastive loss of words."""
    words: Float[Array, "batch length dim"] | None
    """Of each word; None without a contrastive loss of words."""


class ContrastiveHead(nn.Module):
    """Projects an image's tokens and its condition into one space."""

    features: int = 64
    sentences: bool = True
    """Whether the condition's vector is projected."""
    words: bool = False
    """Whether image tokens (regions) and words are projected."""

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length dim"], condition: Condition
    ) -> ContrastiveEmbeddings:
        """Unit vectors of the images and sentences, and with ``self.words`` of image tokens (regions) and of words.

        ``tokens`` are the images', from the discriminator; ``condition`` has the sentence's vector and its words.
        """

        def project(name, x):
            """``x [..., D]`` by a linear map to unit vectors ``[..., features]``."""
            dense = nn.Dense(self.features, use_bias=False, name=name)
            return l2_normalize(dense(x.astype(jnp.float32)))

        image = project("image", tokens.mean(axis=1))
        sentence = project("condition", condition.vector) if self.sentences else None
        if not self.words:
            return ContrastiveEmbeddings(image, sentence, regions=None, words=None)
        regions, words = project("regions", tokens), project("words", condition.words.values)
        return ContrastiveEmbeddings(image, sentence, regions, words)


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The options that all generators have."""

    noise: int = 64
    """Dimensions of the generator's noise."""
    conditioning: int = 0
    """Dimension of the vector that conditioning augmentation samples from ``N(mu(c), sigma(c)^2)``, given the
    condition's vector c (StackGAN); 0: the condition is used without augmentation."""
    conditioning_weight: float = 1.0
    """Weight of the KL divergence of conditioning augmentation, in nats per dimension (2 in the authors' code of
    StackGAN)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of activations and matrix products. Parameters and pixels are always float32."""
    composes_objects: ClassVar[bool] = False
    """Whether the generator first encodes the condition as `nets.objects.ObjectEmbeddings`."""
    refines_images: ClassVar[bool] = False
    """Whether the generator refines the images of another one, its first stage, which get the noise."""
    doubles_sides: ClassVar[bool] = True
    """Whether images grow by stages that double their sides, so that these must be even."""

    def __post_init__(self):
        check_at_least(self, 1, "noise")
        check_at_least(self, 0, "conditioning", "conditioning_weight")

    def build(self, shape: tuple[int, int, int], axis_name: AxisName = None) -> nn.Module:
        """The generator ``module(noise, condition, *, keys=None) -> images`` of ``shape`` (height, width, channels)."""
        raise NotImplementedError

    def example_input(self, shape: tuple[int, int, int]) -> Array:
        """A first argument of the module (zeros) for one image of ``shape``, to initialise it with."""
        return jnp.zeros((1, self.noise))

    def without_conditioning(self) -> GeneratorConfig:
        """These options without conditioning augmentation, for images without a condition."""
        return dataclasses.replace(self, conditioning=0)

    def build_posterior(self, encoder: nn.Module) -> nn.Module:
        """The posterior of this generator's noise, on top of an image ``encoder``."""
        return NoisePosterior(encoder, self.noise)

    @property
    def compute_dtype(self) -> Any:
        """``dtype`` for modules; None is the dtype of inputs and parameters."""
        return None if self.dtype == "float32" else jnp.dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class ResidualGeneratorConfig(GeneratorConfig):
    """Residual blocks, modulated by noise and condition."""

    name: ClassVar[str] = "residual"
    width: int = 64
    """Channels at the two smallest resolutions."""
    modulation: Literal["rms", "fusion", "batch_norm"] = "rms"
    """How noise and condition modulate the blocks: after RMS normalisation, by deep fusion (DF-GAN), or by conditional
    batch norm."""
    attention: int = 2
    """Number of resolutions, the smallest first, at which positions attend to the words of the caption (condition
    "words"); 0: no attention."""
    heads: int = 4
    """Number of heads of the attention to the words of the caption."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width", "heads")
        check_at_least(self, 0, "attention")

    def build(self, shape, axis_name: AxisName = None) -> ResidualGenerator:
        sizes = (self.width, self.modulation, self.attention, self.heads)
        return ResidualGenerator(shape, *sizes, axis_name, self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class ObjectGeneratorConfig(GeneratorConfig):
    """Objects that are drawn one by one over a background of one colour."""

    name: ClassVar[str] = "objects"
    doubles_sides: ClassVar[bool] = False
    composes_objects: ClassVar[bool] = True
    noise: int = 64
    """Dimensions of the generator's noise, split equally among the background and the objects: three numbers of an
    object's noise are its position and size, the rest its appearance."""
    width: int = 64
    """Dimensions of the embedding of an object."""
    objects: int = 3
    """Number of objects that an image is composed of."""
    heads: int = 4
    """Number of heads of the attention among objects."""

    def __post_init__(self):
        """Checks the sizes: noise and width must be divisible among the objects and the heads."""
        super().__post_init__()
        check_at_least(self, 1, "width", "objects", "heads")
        parts = self.objects + 1  # of the noise: one for the background, one for each object
        if self.noise % parts or self.noise < BOX_SIZE * parts:
            raise ValueError(
                f"noise must be a multiple of objects + 1 ({parts}), at least {BOX_SIZE * parts}: {BOX_SIZE} dimensions"
                f" for each object and for the background; got {self.noise}"
            )
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")

    def build(self, shape, axis_name: AxisName = None) -> ObjectGenerator:
        return ObjectGenerator(shape, self.width, self.objects, self.heads, dtype=self.compute_dtype)

    def build_posterior(self, encoder: nn.Module) -> ObjectPosterior:
        return ObjectPosterior(encoder, self.noise)


@dataclasses.dataclass(frozen=True)
class DCGANGeneratorConfig(GeneratorConfig):
    """Transposed convolutions with batch norm (DCGAN)."""

    name: ClassVar[str] = "dcgan"
    width: int = 64
    """Input channels of the last layer; each layer before has twice as many as the next."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width")

    def build(self, shape, axis_name: AxisName = None) -> DCGANGenerator:
        return DCGANGenerator(shape, self.width, axis_name, self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class R3GANGeneratorConfig(GeneratorConfig):
    """Residual blocks without normalisation (R3GAN)."""

    name: ClassVar[str] = "r3gan"
    width: int = 64
    """Channels at the smallest resolutions (768 in the paper)."""
    depth: int = 1
    """Residual blocks at each resolution (2 in the paper)."""
    group_size: int = 16
    """Channels of each group of a block's 3x3 convolution; a power of 2 is fast."""
    wide_stages: int = 2
    """Number of resolutions, the smallest (4x4 pixels) first, with the full width; each further one has half as many
    channels. In the paper 4, for images of 32 and 64 pixels all."""
    basis_features: int = 256
    """Channels of the learned feature map that noise and condition scale, at least those of ``width`` (as many in the
    paper). With few of them images of a class hardly differ."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width", "depth", "group_size", "wide_stages", "basis_features")

    def build(self, shape, axis_name: AxisName = None) -> R3GANGenerator:
        sizes = (self.width, self.depth, self.group_size, self.wide_stages)
        return R3GANGenerator(shape, *sizes, self.compute_dtype, self.basis_features)


@dataclasses.dataclass(frozen=True)
class MLPGeneratorConfig(GeneratorConfig):
    """Fully connected layers."""

    name: ClassVar[str] = "mlp"
    doubles_sides: ClassVar[bool] = False
    width: int = 64
    """Units of each hidden layer."""
    depth: int = 2
    """Number of hidden layers."""

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, 1, "width", "depth")

    def build(self, shape, axis_name: AxisName = None) -> MLPGenerator:
        return MLPGenerator(shape, self.width, self.depth, self.compute_dtype)


FirstStageGenerator = (
    ResidualGeneratorConfig
    | ObjectGeneratorConfig
    | DCGANGeneratorConfig
    | R3GANGeneratorConfig
    | MLPGeneratorConfig
)
"""The generators of images from noise, by name."""


@dataclasses.dataclass(frozen=True)
class StackGANGeneratorConfig(GeneratorConfig):
    """Convolutions that refine the images of a trained generator of fewer pixels (StackGAN)."""

    name: ClassVar[str] = "stackgan"
    refines_images: ClassVar[bool] = True
    noise: FilledIn[int] = 0
    """Dimensions of the noise: those of the first stage."""
    conditioning: int = 64
    """Dimension of the vector that the second stage's own conditioning augmentation samples; 0: the condition is used
    without augmentation. That of the first stage is an option of ``first``."""
    conditioning_weight: float = 2.0
    """Weight of the KL divergence of the second stage's conditioning augmentation, in nats per dimension."""
    width: int = 32
    """Channels at the first stage's resolution, before it is halved; each halving doubles them (128 in the authors'
    code)."""
    blocks: int = 2
    """Residual blocks at the smallest resolution (2 to 4 in the authors' code)."""
    scale: int = 4
    """Sides of the images as a multiple of the sides of the first stage's images; a power of 2."""
    skip: bool = True
    """Whether the second stage adds to the first stage's image, upsampled, and so begins with it. False, as in the
    paper: it draws the whole image anew."""
    first: FirstStageGenerator = ResidualGeneratorConfig(conditioning=64, conditioning_weight=2.0)
    """Generator of the first stage; with --first-stage that of the run."""

    def __post_init__(self):
        object.__setattr__(self, "noise", self.first.noise)
        super().__post_init__()
        check_at_least(self, 1, "width")
        check_at_least(self, 0, "blocks")
        if self.scale < 2 or self.scale & (self.scale - 1):
            raise ValueError(f"scale must be a power of 2, at least 2, got {self.scale}")

    def first_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of the first stage's images where those of the second have ``shape`` (height, width, channels).

        Raises:
          ValueError: ``scale`` does not divide the sides, or the first stage's generator cannot make images of the
            sides that remain.
        """
        height, width, channels = shape
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"pictures of {height} x {width} pixels are no multiple of {self.scale} (--model.generator.scale): "
                "choose another --image-size"
            )
        first = height // self.scale, width // self.scale, channels
        if self.first.doubles_sides:
            upsampling_stages(first, "generator")
        return first

    def without_conditioning(self) -> StackGANGeneratorConfig:
        return dataclasses.replace(self, conditioning=0, first=self.first.without_conditioning())

    def example_input(self, shape: tuple[int, int, int]) -> Array:
        return jnp.zeros((1, *self.first_shape(shape)))

    def build(self, shape, axis_name: AxisName = None) -> StackGANGenerator:
        return StackGANGenerator(shape, self.width, self.blocks, axis_name, self.compute_dtype, self.skip)


Generator = FirstStageGenerator | StackGANGeneratorConfig
"""The generators, by name."""
