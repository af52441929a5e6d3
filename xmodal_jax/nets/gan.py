"""Generators of images, and what a discriminator adds to an image encoder of `nets.encoders`.

A generator maps noise ``[B, Z]`` and a `Condition` to images ``[B, H, W, C]`` in (-1, 1). ``keys`` is None in
evaluation: batch norm then uses its running statistics, which lie in the collection ``batch_stats``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import AxisName, keep_rows
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.nets.attention import MultiHeadAttention
from xmodal_jax.nets.conv import Conv, ConvTranspose
from xmodal_jax.nets.image import coordinate_channels
from xmodal_jax.nets.objects import PLACE, ObjectGenerator
from xmodal_jax.types import Condition, ExampleKeys, Tokens

MODULATIONS = ("fusion", "rms", "batch_norm")


def _start(noise, condition: Condition):
    return noise if condition.vector is None else jnp.concatenate([noise, condition.vector], axis=-1)


def halvings(size: tuple[int, int], smallest: int = 4) -> int:
    """How often both sides can be halved without going below ``smallest``."""
    count = 0
    while all(side % 2 == 0 and side // 2 >= smallest for side in size):
        size, count = (size[0] // 2, size[1] // 2), count + 1
    return count


def stages_of(shape: tuple[int, int, int], part: str) -> int:
    """`halvings` of an image's shape for the ``part`` ("generator", "decoder") that needs one at least.

    Raises:
      ValueError: there is none.
    """
    stages = halvings(shape[:2])
    if not stages:
        raise ValueError(
            f"a picture of {shape[0]} x {shape[1]} pixels cannot be halved: choose the {part} 'mlp'"
        )
    return stages


def batch_norm(keys, axis_name: AxisName, *, dtype=None, affine: bool = True, name: str) -> nn.BatchNorm:
    """Over the global batch: the same on any number of devices."""
    return nn.BatchNorm(
        use_running_average=keys is None, momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=dtype,
        use_scale=affine, use_bias=affine, name=name,
    )  # fmt: skip


def leaky(x):
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
        x = _start(noise, condition)
        for k in range(self.depth):
            x = leaky(keep_rows(nn.Dense(self.width, dtype=self.dtype, name=f"hidden_{k}")(x)))
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype, name="pixels")(x).astype(jnp.float32)
        return jnp.tanh(x).reshape(len(x), *self.shape)


class DCGANGenerator(nn.Module):
    """Transposed convolutions 4x4 of stride 2 with batch norm and ReLU (Radford et al. 2016, arXiv:1511.06434).

    ``width`` channels before the last one, twice as many at each smaller size; the first is the image's after
    `halvings`: 4 to 7 pixels of the shorter side, more only where an odd number ends it.

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
        height, width, channels = self.shape
        stages = stages_of(self.shape, "generator")
        features = self.width * 2 ** (stages - 1)
        x = nn.Dense(features * height * width // 4**stages, use_bias=False, dtype=self.dtype, name="start")(
            _start(noise, condition)
        )
        x = x.reshape(len(x), height // 2**stages, width // 2**stages, features)
        for k in range(stages):
            x = nn.relu(batch_norm(keys, self.axis_name, dtype=self.dtype, name=f"norm_{k}")(x))
            last = k == stages - 1
            out = channels if last else self.width * 2 ** (stages - 2 - k)
            up = ConvTranspose(out, (4, 4), 2, use_bias=last, dtype=self.dtype, name=f"up_{k}")
            x = keep_rows(up(x))
        return jnp.tanh(x.astype(jnp.float32))


class Modulation(nn.Module):
    """Scales and shifts channels as a vector says, then leaky ReLU.

    "fusion": two affine maps, each followed by leaky ReLU, ``gamma(c) x + beta(c)``, with one hidden layer per map
    (deep fusion, DF-GAN, Tao et al. 2022, arXiv:2008.05865, eq. 3-5); "batch_norm": conditional batch norm (de Vries
    et al. 2017, arXiv:1707.00683, eq. 5); "rms": each pixel divided by the root mean square of its channels first
    (Karras et al. 2018, arXiv:1710.10196, sec. 4.2), then one affine map. All start as ``gamma = 1, beta = 0``.
    """

    kind: str = "rms"
    axis_name: AxisName = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, vector, keys: ExampleKeys | None):
        features = x.shape[-1]
        if self.kind == "batch_norm":
            x = batch_norm(keys, self.axis_name, dtype=self.dtype, affine=False, name="norm")(x)
        elif self.kind == "rms":
            mean = jnp.square(x.astype(jnp.float32)).mean(axis=-1, keepdims=True)
            x = (x * lax.rsqrt(mean + 1e-6)).astype(x.dtype)
        elif self.kind != "fusion":
            raise ValueError(f"modulation must be one of {MODULATIONS}, got {self.kind!r}")
        zeros = nn.initializers.zeros_init()
        for k in range(2 if self.kind == "fusion" else 1):
            hidden = vector
            if self.kind == "fusion":
                hidden = nn.relu(nn.Dense(features, dtype=self.dtype, name=f"hidden_{k}")(vector))
            both = nn.Dense(2 * features, kernel_init=zeros, dtype=self.dtype, name=f"affine_{k}")(hidden)
            gamma, beta = jnp.split(both[:, None, None, :], 2, axis=-1)
            x = leaky(x * (1.0 + gamma) + beta)
        return x


def enlarge(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height2 width2 channels"]:
    """Every pixel four times (nearest). As a broadcast, whose gradient is a sum and not a scatter."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class ResidualPixels(nn.Module):
    """Residual blocks modulated by a vector, at twice the size each: the part that generators and decoders share.

    Dense to the smallest size (the image's after `halvings`), then at every size up to half the image's a block of two
    modulated 3x3 convolutions, then a transposed convolution 4x4 of stride 2 to pixels, the mirror of
    `nets.image.ConvNet`'s stem.
    ``width`` channels at the two smallest sizes, half as many at each further one. The vector reaches every block
    (`Modulation`). At the ``attention`` smallest sizes each place, which knows where it is, attends to words (AttnGAN,
    Xu et al. 2018, arXiv:1711.10485, sec. 3.1, with multi-head attention).

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
    """What it is to its user, for errors."""

    def paint(
        self, code: Float[Array, "batch code"], words: Tokens | None, keys: ExampleKeys | None
    ) -> Float[Array, "batch height width channels"]:
        """Pixels without an activation."""
        height, width, channels = self.shape
        stages = stages_of(self.shape, self.part)
        vector = leaky(nn.Dense(2 * self.width, dtype=self.dtype, name="style")(code))
        height, width = height // 2**stages, width // 2**stages
        x = nn.Dense(height * width * self.width, dtype=self.dtype, name="start")(vector)
        x = x.reshape(len(x), height, width, self.width)
        modulate = lambda name: Modulation(self.modulation, self.axis_name, self.dtype, name=name)
        for k in range(stages):
            features = max(self.width // 2 ** max(k - 1, 0), 8)
            x = enlarge(x) if k else x
            if x.shape[-1] != features:
                x = nn.Dense(features, use_bias=False, dtype=self.dtype, name=f"shortcut_{k}")(x)
            if words is not None and k < self.attention:
                x = x + self._attend(x, words, f"attention_{k}")
            branch = x
            for layer in range(2):
                branch = modulate(f"modulation_{k}_{layer}")(branch, vector, keys)
                branch = Conv(features, (3, 3), dtype=self.dtype, name=f"conv_{k}_{layer}")(branch)
            x = keep_rows(x + branch)
        x = modulate("modulation_out")(x, vector, keys)
        x = ConvTranspose(channels, (4, 4), 2, dtype=self.dtype, name="pixels")(x)
        return x.astype(jnp.float32)

    def _attend(self, x, words: Tokens, name: str):
        batch, height, width, features = x.shape
        query = nn.Dense(features, dtype=self.dtype, name=f"{name}_query")(
            jnp.concatenate([x, coordinate_channels(x)], axis=-1)
        )
        query = query.reshape(batch, height * width, features)
        place = self.param(f"{name}_places", nn.initializers.normal(0.02), (height * width, features))
        query = nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(query + place[None].astype(query.dtype))
        seen = MultiHeadAttention(self.heads, dtype=self.dtype, name=name)(query, words.values, words.mask)
        return seen.reshape(x.shape)


class ResidualGenerator(ResidualPixels):
    """`ResidualPixels` of noise and a condition, in [-1, 1]."""

    @nn.compact
    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        return jnp.tanh(self.paint(_start(noise, condition), condition.words, keys))


class ConditioningAugmentation(nn.Module):
    """A vector drawn around the condition's, ``mu(c) + sigma(c) e``, and ``KL(N(mu, sigma^2) || N(0, I))`` per
    dimension ``[B]``, in nats (StackGAN, Zhang et al. 2017, arXiv:1612.03242, eq. 2). ``noise``: e; None takes the
    mean."""

    features: int

    @nn.compact
    def __call__(self, vector: Float[Array, "batch dim"], noise: Float[Array, "batch dim2"] | None):
        mean, log_variance = jnp.split(nn.Dense(2 * self.features, name="moments")(vector), 2, axis=-1)
        kl = -0.5 * (1.0 + log_variance - jnp.square(mean) - jnp.exp(log_variance)).mean(axis=-1)
        drawn = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
        return drawn, kl


class Posterior(nn.Module):
    """Of an image the mean and log-variance ``[B, features]`` of the noise that would make it (VAE-GAN, Larsen et al.
    2016, arXiv:1512.09300). ``encoder``: of `nets.encoders`."""

    encoder: nn.Module
    features: int
    hidden: int = 128

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, keys: ExampleKeys | None = None
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
        tokens = self.encoder(images, keys=keys).values.astype(jnp.float32)
        x = leaky(nn.Dense(self.hidden, name="hidden")(tokens.reshape(len(tokens), -1)))
        mean, log_variance = jnp.split(nn.Dense(2 * self.features, name="moments")(x), 2, axis=-1)
        return mean, log_variance


HEADS = ("projection", "concat", "none")


class Critic(nn.Module):
    """An image's tokens ``[B, N, D]`` and its condition ``[B, C]`` to ``[B, outputs]``.

    "projection": ``w h + <V c, h> / sqrt(dim)`` of the pooled, activated tokens h (Miyato & Koyama 2018,
    arXiv:1802.05637, eq. 3); "concat": the condition beside every token, one hidden layer, then all tokens to the
    output (one-way output, DF-GAN, sec. 3.3); "none": "concat" without a condition.

    Raises:
      ValueError: an unknown kind, no condition where one is needed, or several outputs of "projection".
    """

    kind: str = "concat"
    outputs: int = 1
    hidden: int = 128

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch length dim"], vector: Float[Array, "batch condition"] | None
    ) -> Float[Array, "batch outputs"]:
        if self.kind not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {self.kind!r}")
        if (vector is None) != (self.kind == "none"):
            raise ValueError(f"the head {self.kind!r} {'needs' if vector is None else 'takes no'} condition")
        tokens = tokens.astype(jnp.float32)
        if self.kind == "projection":
            if self.outputs != 1:
                raise ValueError(f"projection has one output, not {self.outputs}: choose the head concat")
            h = leaky(nn.Dense(self.hidden, name="hidden")(tokens.mean(axis=1)))
            match = h * nn.Dense(self.hidden, use_bias=False, name="condition")(vector)
            return nn.Dense(1, name="out")(h) + match.sum(axis=1, keepdims=True) / math.sqrt(self.hidden)
        if vector is not None:
            beside = jnp.broadcast_to(vector[:, None, :], (*tokens.shape[:2], vector.shape[-1]))
            tokens = jnp.concatenate([tokens, beside], axis=-1)
        h = leaky(nn.Dense(self.hidden, name="hidden")(tokens))
        return nn.Dense(self.outputs, name="out")(h.reshape(len(h), -1))


class TextReader(nn.Module):
    """Token ids to one vector of the sentence and one for each word. Without a ``pool`` the encoder's own makes the
    sentence's."""

    encoder: nn.Module
    pool: nn.Module | None

    def __call__(
        self, ids, mask, *, keys: ExampleKeys | None = None
    ) -> tuple[Float[Array, "batch dim"], Tokens]:
        words = self.encoder(ids, mask, keys=keys)
        pool = self.encoder.pool if self.pool is None else self.pool
        return pool(words), words


class Compared(NamedTuple):
    """Unit vectors of a shared space."""

    image: Float[Array, "batch dim"]
    condition: Float[Array, "batch dim"] | None
    regions: Float[Array, "batch regions dim"] | None
    words: Float[Array, "batch length dim"] | None


class Contrast(nn.Module):
    """An image's tokens and its condition, as a whole and by regions and words, into one space."""

    features: int = 64
    whole: bool = True
    parts: bool = False

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch length dim"], condition: Condition) -> Compared:
        project = lambda name, x: l2_normalize(
            nn.Dense(self.features, use_bias=False, name=name)(x.astype(jnp.float32))
        )
        image = project("image", tokens.mean(axis=1))
        sentence = project("condition", condition.vector) if self.whole else None
        if not self.parts:
            return Compared(image, sentence, None, None)
        return Compared(image, sentence, project("regions", tokens), project("words", condition.words.values))


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The kind and size of a generator."""

    name: Literal["residual", "objects", "dcgan", "mlp"] = "residual"
    """Modulated residual blocks, objects that are drawn one by one and put in their places, transposed convolutions
    with batch norm, or fully connected."""
    noise: int = 64
    """Dimensions of the noise. Of "objects" each has as many as the background: three for its place and size, and those
    left for its look."""
    width: int = 64
    """Channels: of "residual" at the smallest sizes, of "objects" for each one, of "dcgan" before the last layer, of
    "mlp" in hidden layers."""
    depth: int = 2
    """Hidden layers ("mlp")."""
    modulation: Literal["rms", "fusion", "batch_norm"] = "rms"
    """How noise and condition reach the blocks ("residual"); see `Modulation`."""
    attention: int = 2
    """At how many sizes, the smallest first, places attend to the caption's words ("residual", with words)."""
    heads: int = 4
    """Heads of that attention, or of that among the objects."""
    objects: int = 3
    """How many objects an image is composed of at most ("objects")."""
    conditioning: int = 0
    """Dimensions of the sentence after conditioning augmentation; 0: the sentence as it is."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of activations and matmuls. Parameters and pixels are always float32."""

    def __post_init__(self):
        for name, least in (
            ("noise", 1),
            ("width", 1),
            ("depth", 1),
            ("heads", 1),
            ("attention", 0),
            ("objects", 1),
            ("conditioning", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"GeneratorConfig.{name} must be at least {least}, got {getattr(self, name)}"
                )
        if self.name == "objects" and (self.noise % (self.objects + 1) or self.width % self.heads):
            raise ValueError(
                f"GeneratorConfig of objects: noise ({self.noise}) must be a multiple of objects + 1"
                f" ({self.objects + 1}), and width ({self.width}) one of heads ({self.heads})"
            )
        if self.name == "objects" and self.noise < PLACE * (self.objects + 1):
            raise ValueError(
                f"GeneratorConfig of {self.objects} objects: noise must be at least {PLACE * (self.objects + 1)},"
                f" {PLACE} dimensions for each and the background, got {self.noise}"
            )


def build_generator(config: GeneratorConfig, shape: tuple[int, int, int], axis_name: AxisName) -> nn.Module:
    """``module(noise, condition, *, keys) -> images`` of ``shape`` (height, width, channels)."""
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    if config.name == "mlp":
        return MLPGenerator(shape, config.width, config.depth, dtype)
    if config.name == "dcgan":
        return DCGANGenerator(shape, config.width, axis_name, dtype)
    if config.name == "objects":
        return ObjectGenerator(shape, config.width, config.objects, config.heads, dtype=dtype)
    return ResidualGenerator(
        shape, config.width, config.modulation, config.attention, config.heads, axis_name, dtype
    )
