"""A generator that composes an image of objects: each is drawn by itself and put where the noise has it.

The condition alone says what each object is (`Objects`), so that a new combination of known words is a new object of
known parts; the noise says where it is. `ObjectPosterior` finds the noise of a real image by looking for each of them.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.nets.transformer import MLP, TransformerBlock
from xmodal_jax.types import Condition, ExampleKeys

BEYOND = 4
"""Cells beyond either end of an object that count where it fades out: enough down to cells of a fifth of a pixel."""


def placing(
    centre: Float[Array, "*batch"], half: Float[Array, "*batch"], *, pixels: int, cells: int
) -> Float[Array, "*batch {pixels} {cells}"]:
    r"""How much each of a row of ``pixels`` is of each of a row of ``cells``.

    The pixels share [0, 1], the cells ``[centre - half, centre + half]``. Linear interpolation between the middles of
    cells, ``w_ij = t_ij / sum_k t_ik`` with ``t_ij = max(0, 1 - |x_i - c_j| / s)``: s is the distance of two cells, or
    of two pixels where that is larger, so that shrinking does not alias. The sum over k has ``BEYOND`` more cells at
    either end: well inside a row of weights adds up to 1, outside to 0, and between it falls off, smoothly in both
    arguments, so that objects can learn their places. (The filter bank of DRAW, Gregor et al. 2015, arXiv:1502.04623,
    eq. 19-26, with triangles in place of Gaussians.)
    """
    middles = lambda low, high, axis: jnp.expand_dims(
        jnp.arange(low, high) + 0.5, [*range(centre.ndim), axis]
    )
    step = 2.0 * half[..., None, None] / cells
    of = (centre - half)[..., None, None] + middles(-BEYOND, cells + BEYOND, -2) * step
    spread = jnp.maximum(step, 1.0 / pixels)
    near = jnp.maximum(1.0 - jnp.abs(middles(0, pixels, -1) / pixels - of) / spread, 0.0)
    return near[..., BEYOND:-BEYOND] / (near.sum(axis=-1, keepdims=True) + 1e-6)


class SlotAttention(nn.Module):
    r"""Slots ``[B, K, D]`` compete for inputs ``[B, N, E]`` (Locatello et al. 2020, arXiv:2006.15055, algorithm 1).

    Each round, with ``a = softmax`` over the slots of ``q(slots) k(inputs)^T / sqrt(D) + bias`` and its rows divided by
    their sum, ``slots += o(a v(inputs))`` and ``slots += MLP(slots)``, each of a layer norm. As every input is shared
    out among the slots, no two of them take the same ones. The slots are given, not drawn, and what is added takes the
    GRU's place.
    """

    rounds: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        slots: Float[Array, "batch count dim"],
        inputs: Float[Array, "batch length features"],
        mask: Bool[Array, "batch length"] | None = None,
        bias: Float[Array, "batch count length"] | None = None,
    ) -> Float[Array, "batch count dim"]:
        width = slots.shape[-1]
        dense = lambda name: nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
        inputs = norm("norm_inputs")(inputs)
        key, value, query, out = dense("key")(inputs), dense("value")(inputs), dense("query"), dense("out")
        norm_slots, norm_mlp, mlp = norm("norm_slots"), norm("norm_mlp"), MLP(2.0, self.dtype, name="mlp")
        for _ in range(self.rounds):
            logits = jnp.einsum("bkd,bld->bkl", query(norm_slots(slots)), key).astype(jnp.float32)
            logits = logits / math.sqrt(width)
            share = jax.nn.softmax(logits if bias is None else logits + bias, axis=1)
            if mask is not None:
                share = share * mask[:, None, :]
            share = (share / (share.sum(axis=-1, keepdims=True) + 1e-3)).astype(value.dtype)
            slots = slots + out(jnp.einsum("bkl,bld->bkd", share, value))
            slots = keep_rows(slots + mlp(norm_mlp(slots)))
        return slots


class Objects(nn.Module):
    """What each of ``count`` objects is, ``[B, count, width]``, as the condition has it.

    With words the objects compete for them (`SlotAttention`), each at first for those near its own share of the
    sentence: what is named first is the first object. ``window``: neighbours that a word is seen together with.
    """

    count: int
    width: int
    window: int = 7
    nearness: float = 0.6
    dtype: Any = None

    @nn.compact
    def __call__(self, condition: Condition, batch: int) -> Float[Array, "batch count width"]:
        start = self.param("start", nn.initializers.normal(1.0), (self.count, self.width))
        x = jnp.broadcast_to(start[None], (batch, self.count, self.width))
        if condition.vector is not None:
            x = x + nn.Dense(self.width, dtype=self.dtype, name="vector")(condition.vector)[:, None]
        if condition.words is not None:
            words, mask = condition.words
            if mask is None:
                mask = jnp.ones(words.shape[:2], bool)
            words = nn.LayerNorm(dtype=self.dtype, name="norm_words")(words) * mask[..., None]
            beside = nn.Conv(words.shape[-1], (self.window,), dtype=self.dtype, name="beside")(words)
            words = words + nn.gelu(beside)
            at = (jnp.cumsum(mask, axis=-1) - 0.5) / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
            own = (jnp.arange(self.count) + 0.5) / self.count
            apart = (at[:, None, :] - own[None, :, None]) * self.count / self.nearness
            x = SlotAttention(dtype=self.dtype, name="read")(x, words, mask, -0.5 * jnp.square(apart))
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x).astype(jnp.float32)


class ObjectGenerator(nn.Module):
    r"""Objects over a background of one colour.

    The noise is split into as many equal parts as there are objects, and one for the background. Object k is a square
    of ``cells`` by ``cells`` colours and opacities, each a mixture of ``planes``, both made of what it is (and of the
    first ``look_noise`` dimensions of its noise); its centre and size are made of all objects and their noise by
    self-attention, so that they can keep the order that the condition asks for. Each is resampled into the image
    (`placing`) and covers those before it: ``image = (1 - opacity_k) image + opacity_k colour_k``, after AIR (Eslami
    et al. 2016, arXiv:1603.08575) and GIRAFFE (Niemeyer & Geiger 2021, arXiv:2011.12100).

    Raises:
      ValueError: the noise cannot be split.
    """

    shape: tuple[int, int, int]
    width: int = 64
    objects: int = 3
    look_noise: int = 0
    heads: int = 4
    cells: int = 16
    planes: int = 8
    hidden: int = 128
    dtype: Any = None

    def setup(self):
        dense = lambda features: nn.Dense(features, dtype=self.dtype)
        self.content = Objects(self.objects, self.width, dtype=self.dtype)
        self.chance = dense(self.width)
        if self.look_noise:
            self.variety = dense(self.width)
        self.arrange = [TransformerBlock(self.heads, dtype=self.dtype) for _ in range(2)]
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.centre, self.size = dense(2), dense(1)
        self.look = [dense(self.hidden) for _ in range(2)]
        self.plane = dense(self.cells**2 * self.planes)
        self.mix = dense((self.planes + 1) * (self.shape[-1] + 1))
        self.background = [dense(self.width), dense(self.shape[-1])]

    def contents(self, condition: Condition, batch: int) -> Float[Array, "batch count width"]:
        """What each object is."""
        return self.content(condition, batch)

    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        behind, *own = jnp.split(noise, self.objects + 1, axis=-1)
        own = jnp.stack(own, axis=1)
        content = self.content(condition, len(noise))
        looks = content
        if self.look_noise:
            looks = looks + self.variety(own[..., : self.look_noise])
        rows, columns = self._places(content, own)
        drawn = jnp.einsum("bkip,bkpqc,bkjq->bkijc", rows, self._draw(looks), columns)
        color = nn.sigmoid(self.background[1](nn.gelu(self.background[0](behind))).astype(jnp.float32))
        image = color[:, None, None, :]
        for k in range(self.objects):
            image = image * (1.0 - drawn[:, k, ..., -1:]) + drawn[:, k, ..., :-1]
        return keep_rows(2.0 * image - 1.0)

    def _places(self, content, own):
        """How each object's rows and columns lie on the image's."""
        x = content + self.chance(own)
        for block in self.arrange:
            x = block(x)
        x = self.norm(x)
        # Into (-1, 1), with a slope that falls slower than tanh's: what lies at the border can be moved.
        bound = lambda x: x.astype(jnp.float32) / jnp.sqrt(1.0 + jnp.square(x.astype(jnp.float32)))
        centre = 0.5 + 0.5 * bound(self.centre(x))
        half = 0.3 / math.sqrt(self.objects) * jnp.exp(0.5 * bound(self.size(x))[..., 0])
        height, width, _ = self.shape
        rows = placing(centre[..., 1], half, pixels=height, cells=self.cells)
        return rows, placing(centre[..., 0], half, pixels=width, cells=self.cells)

    def _draw(self, looks) -> Float[Array, "batch count cells cells channels"]:
        """Each object's colours times its opacity, and its opacity."""
        h = looks
        for layer in self.look:
            h = keep_rows(nn.leaky_relu(layer(h), 0.2))
        planes = self.plane(h).reshape(*h.shape[:2], self.cells**2, self.planes)
        planes = jnp.concatenate([planes, jnp.ones_like(planes[..., :1])], axis=-1)
        mix = self.mix(looks).reshape(*h.shape[:2], self.planes + 1, self.shape[-1] + 1)
        values = (planes @ mix).astype(jnp.float32)
        # At first a disc: what is drawn has an inside, and with it a place.
        across = jnp.square((jnp.arange(self.cells) + 0.5) / self.cells * 2.0 - 1.0)
        disc = 3.0 * (0.7 - jnp.sqrt(across[:, None] + across[None, :])).reshape(1, 1, -1, 1)
        opacity = nn.sigmoid(values[..., -1:] + disc)
        drawn = jnp.concatenate([nn.sigmoid(values[..., :-1]) * opacity, opacity], axis=-1)
        return drawn.reshape(*h.shape[:2], self.cells, self.cells, -1)


class ObjectPosterior(nn.Module):
    """Of an image the mean and log-variance ``[B, features]`` of an `ObjectGenerator`'s noise that would make it.

    Its objects, and what is none of them, compete for the image's tokens (`SlotAttention`, after SAVi, Kipf et al.
    2022, arXiv:2111.12594): ``encoder``'s, of `nets.encoders`, and others that are known of the image.
    """

    encoder: nn.Module
    features: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        objects: Float[Array, "batch count dim"],
        seen: Float[Array, "batch length seen"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
        tokens = self.encoder(images, keys=keys).values.astype(jnp.float32)
        if seen is not None:
            tokens = jnp.concatenate([tokens, nn.Dense(tokens.shape[-1], name="sight")(seen)], axis=1)
        rest = jnp.zeros_like(objects[:, :1])
        x = nn.Dense(objects.shape[-1], name="start")(jnp.concatenate([rest, objects], axis=1))
        x = nn.LayerNorm(name="norm")(SlotAttention(name="find")(x, tokens))
        both = nn.Dense(2 * self.features // x.shape[1], name="moments")(x)
        moments = both.reshape(len(x), x.shape[1], 2, -1)
        return moments[:, :, 0].reshape(len(x), -1), moments[:, :, 1].reshape(len(x), -1)
