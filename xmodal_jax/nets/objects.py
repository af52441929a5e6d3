"""A generator that composes an image of objects: each is drawn by itself and put where the noise has it.

Its words say what each object is (`Objects`), so that a new combination of known words is a new object of known parts;
the noise says where it is, as the condition lets it (`Layout`). `ObjectPosterior` finds the noise of a real image by
looking for each of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import keep_rows
from xmodal_jax.nets.transformer import MLP, TransformerBlock
from xmodal_jax.types import Condition, ExampleKeys

PLACE = 3
"""Numbers that say where an object is: right, down, large."""
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
    GRU's place. Returns the slots and the last round's ``a`` ``[B, K, N]``, rows of which sum to 1.
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
    ) -> tuple[Float[Array, "batch count dim"], Float[Array, "batch count length"]]:
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
            share = share / (share.sum(axis=-1, keepdims=True) + 1e-3)
            slots = slots + out(jnp.einsum("bkl,bld->bkd", share.astype(value.dtype), value))
            slots = keep_rows(slots + mlp(norm_mlp(slots)))
        return slots, share


class Contents(NamedTuple):
    """What a condition says of each of K objects."""

    looks: Float[Array, "batch count width"]
    """What it is."""
    roles: Float[Array, "batch count width"]
    """Which of them it is, and how it stands to the others."""
    share: Float[Array, "batch count length"] | None
    """How much of what is said of it each word says; rows sum to 1. None: there are no words."""


class Objects(nn.Module):
    """`Contents` of ``count`` objects, as the condition has it.

    With words the objects compete for them (`SlotAttention`), each at first for those near its own share of the
    sentence: what is named first is the first object. ``window``: neighbours that a word is seen together with. What an
    object looks like is made of its words alone, in the same way for all, so that none can learn not to be drawn;
    which of them it is, and the whole sentence, only its role knows.
    """

    count: int
    width: int
    window: int = 7
    nearness: float = 0.4
    dtype: Any = None

    @nn.compact
    def __call__(self, condition: Condition, batch: int) -> Contents:
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
        start = self.param("start", nn.initializers.normal(1.0), (self.count, self.width))
        roles = jnp.broadcast_to(start[None], (batch, self.count, self.width))
        if condition.vector is not None:
            roles = roles + dense("vector")(condition.vector)[:, None]
        if condition.words is None:
            looks = norm("norm")(roles).astype(jnp.float32)
            return Contents(looks, looks, None)
        words, mask = condition.words
        if mask is None:
            mask = jnp.ones(words.shape[:2], bool)
        words = norm("norm_words")(words) * mask[..., None]
        beside = nn.Conv(words.shape[-1], (self.window,), dtype=self.dtype, name="beside")(words)
        words = words + nn.gelu(beside)
        at = (jnp.cumsum(mask, axis=-1) - 0.5) / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
        own = (jnp.arange(self.count) + 0.5) / self.count
        apart = (at[:, None, :] - own[None, :, None]) * self.count / self.nearness
        read = SlotAttention(dtype=self.dtype, name="read")
        roles, share = read(roles, words, mask, -0.5 * jnp.square(apart))
        said = jnp.einsum("bkl,bld->bkd", share.astype(words.dtype), dense("said")(words))
        said = said + MLP(2.0, self.dtype, name="mlp")(norm("norm_said")(said))
        looks, roles = norm("norm")(said), norm("norm_roles")(roles)
        return Contents(looks.astype(jnp.float32), roles.astype(jnp.float32), share)


class Layout(nn.Module):
    r"""Where objects are, each given those before it.

    ``place_k = mean_k + exp(log_scale_k) noise_k``, with mean and log-scale made of all objects ``[B, K, D]`` and of
    ``place_1 ... place_{k-1}`` by causal self-attention: of standard normal noise a product of Gaussians (a masked
    autoregressive flow of one layer, Papamakarios et al. 2017, arXiv:1705.07057, eq. 3).
    """

    width: int
    heads: int = 4
    dtype: Any = None

    def setup(self):
        self.among = TransformerBlock(self.heads, dtype=self.dtype)
        self.before = nn.Dense(self.width, dtype=self.dtype)
        self.after = TransformerBlock(self.heads, causal=True, dtype=self.dtype)
        self.norm = nn.LayerNorm(dtype=self.dtype)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.moments = nn.Dense(2 * PLACE, kernel_init=small)

    def expected(
        self, objects: Float[Array, "batch count dim"], places: Float[Array, "batch count 3"]
    ) -> tuple[Float[Array, "batch count 3"], Float[Array, "batch count 3"]]:
        """Mean and log-scale of each place, given those before it."""
        return self._after(self.among(objects), places)

    def __call__(
        self, objects: Float[Array, "batch count dim"], noise: Float[Array, "batch count 3"]
    ) -> Float[Array, "batch count 3"]:
        """The places that the noise makes."""
        objects, places = self.among(objects), jnp.zeros_like(noise)
        for k in range(noise.shape[1]):
            mean, log_scale = self._after(objects, places)
            places = places.at[:, k].set(mean[:, k] + jnp.exp(log_scale[:, k]) * noise[:, k])
        return places

    def _after(self, objects, places):
        before = self.before(jnp.pad(places[:, :-1], [(0, 0), (1, 0), (0, 0)]))
        x = self.norm(self.after(objects + before.astype(objects.dtype)))
        mean, log_scale = jnp.split(self.moments(x.astype(jnp.float32)), 2, axis=-1)
        return mean, 2.0 * jnp.tanh(0.5 * log_scale)  # no scale runs away


class ObjectGenerator(nn.Module):
    r"""Objects over a background of one colour.

    The noise is split into as many equal parts as there are objects, and one for the background, which comes first.
    Object k is a square of ``cells`` by ``cells`` colours and opacities, each a mixture of ``planes``, both made of
    what it is, and of what of its noise is left over by its place: the first `PLACE` dimensions, from which `Layout`
    makes its centre and size. Each is resampled into the image (`placing`) and covers those before it:
    ``image = (1 - opacity_k) image + opacity_k colour_k``, after AIR (Eslami et al. 2016, arXiv:1603.08575) and GIRAFFE
    (Niemeyer & Geiger 2021, arXiv:2011.12100).
    """

    shape: tuple[int, int, int]
    width: int = 64
    objects: int = 3
    heads: int = 4
    cells: int = 16
    planes: int = 8
    hidden: int = 128
    dtype: Any = None

    def setup(self):
        dense = lambda features: nn.Dense(features, dtype=self.dtype)
        self.content = Objects(self.objects, self.width, dtype=self.dtype)
        self.layout = Layout(self.width, self.heads, dtype=self.dtype)
        self.variety = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.look = [dense(self.hidden) for _ in range(2)]
        self.plane = dense(self.cells**2 * self.planes)
        self.mix = dense((self.planes + 1) * (self.shape[-1] + 1))
        self.background = [dense(self.width), dense(self.shape[-1])]

    def contents(self, condition: Condition, batch: int) -> Contents:
        """What the objects of ``batch`` images are."""
        return self.content(condition, batch)

    def expected(
        self, contents: Contents, found: Float[Array, "batch noise"]
    ) -> tuple[Float[Array, "batch noise"], Float[Array, "batch noise"]]:
        """Mean and log-scale of where objects are, given those before them in ``found``; of all else 0.

        ``found`` is laid out as the noise is, with places where that has their noise, so that the noise of what is
        found is ``(found - mean) exp(-log_scale)``.
        """
        _, own = self._split(found)
        moments = self.layout.expected(contents.looks + contents.roles, own[..., :PLACE])
        fill = lambda x: jnp.pad(x, [(0, 0), (1, 0), (0, own.shape[-1] - PLACE)]).reshape(found.shape)
        return fill(moments[0]), fill(moments[1])

    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition | Contents,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        contents = condition if isinstance(condition, Contents) else self.content(condition, len(noise))
        behind, own = self._split(noise)
        looks = contents.looks
        if own.shape[-1] > PLACE:
            looks = looks + self.variety(own[..., PLACE:]).astype(looks.dtype)
        rows, columns = self._places(contents, own)
        drawn = jnp.einsum("bkip,bkpqc,bkjq->bkijc", rows, self._draw(looks), columns)
        color = nn.sigmoid(self.background[1](nn.gelu(self.background[0](behind))).astype(jnp.float32))
        image = color[:, None, None, :]
        for k in range(self.objects):
            image = image * (1.0 - drawn[:, k, ..., -1:]) + drawn[:, k, ..., :-1]
        return keep_rows(2.0 * image - 1.0)

    def _split(self, noise):
        """The background's and the objects'."""
        behind, *own = jnp.split(noise, self.objects + 1, axis=-1)
        return behind, jnp.stack(own, axis=1)

    def _places(self, contents, own):
        """How each object's rows and columns lie on the image's."""
        at = bound(self.layout(contents.looks + contents.roles, own[..., :PLACE]))
        centre, half = 0.5 + 0.5 * at[..., :2], 0.3 / math.sqrt(self.objects) * jnp.exp(0.5 * at[..., 2])
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


def bound(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x / sqrt(1 + x^2)``, in (-1, 1): its slope falls slower than tanh's, so that what lies at the border can be
    moved."""
    return x / jnp.sqrt(1.0 + jnp.square(x))


def grid(count: int, height: int, width: int) -> Float[Array, "count 2"]:
    """Middles (right, down) in [-1, 1] of the cells, row by row, of the grid of ``count`` cells nearest to square on an
    image. Raises ``ValueError``: there is no such grid."""
    rows = max(round(math.sqrt(count * height / width)), 1)
    if count % rows:
        raise ValueError(f"{count} tokens of an image of {height} x {width} are no grid: use another encoder")
    middles = lambda n: (jnp.arange(n) + 0.5) / n * 2.0 - 1.0
    down, right = jnp.meshgrid(middles(rows), middles(count // rows), indexing="ij")
    return jnp.stack([right.ravel(), down.ravel()], axis=-1)


def grounding(
    share: Float[Array, "batch count length"], attended: Float[Array, "batch length places"]
) -> Float[Array, "batch count places"]:
    r"""Where objects are, by where their words are seen: logits over N places.

    ``log(N a_kn + 0.1)`` with ``a_k = sum_l w_kl attended_l / sum_l w_kl`` and ``w_kl = share_kl sum_n attended_ln
    log(N attended_ln)``: a word counts by the nats that its row (which sums to 1) is away from anywhere, so that words
    like "of" do not.
    """
    count = attended.shape[-1]
    nats = (attended * jnp.log(count * attended + 1e-6)).sum(axis=-1)
    weight = share * (nats[:, None, :] + 1e-3)
    mean = jnp.einsum("bkl,bln->bkn", weight / weight.sum(axis=-1, keepdims=True), attended)
    return jnp.log(count * mean + 0.1)


class ObjectPosterior(nn.Module):
    """Of an image mean and log-variance ``[B, features]`` of what an `ObjectGenerator` would make it of: laid out as
    its noise, with the objects' places where that has their noise (`ObjectGenerator.expected`).

    Its objects, and what is none of them, compete for the image's tokens (`SlotAttention`, after SAVi, Kipf et al.
    2022, arXiv:2111.12594): ``encoder``'s, of `nets.encoders`, and others that are known of the image, ``seen``. An
    object's place starts from the middle of what it looks at (as in invariant slot attention, Biza et al. 2023,
    arXiv:2302.04973, sec. 3), and where it is ``attended``, how much each word is seen in each of ``seen``, it looks
    there (`grounding`).

    Raises:
      ValueError: tokens are no grid.
    """

    encoder: nn.Module
    features: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        contents: Contents,
        seen: Float[Array, "batch places seen"] | None = None,
        attended: Float[Array, "batch length places"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        tokens = self.encoder(images, keys=keys).values.astype(jnp.float32)
        middles = grid(tokens.shape[1], *images.shape[1:3])
        if seen is not None:
            tokens = jnp.concatenate([tokens, nn.Dense(tokens.shape[-1], name="sight")(seen)], axis=1)
            middles = jnp.concatenate([middles, grid(seen.shape[1], *images.shape[1:3])])
        bias = None
        if attended is not None and contents.share is not None:
            there = grounding(contents.share, attended) * self.param("trust", nn.initializers.ones, ())
            # The encoder's own tokens lie as those do, or are free.
            own = tokens.shape[1] - there.shape[2]
            own = there if own == there.shape[2] else jnp.zeros((*there.shape[:2], own))
            bias = jnp.pad(jnp.concatenate([own, there], axis=2), [(0, 0), (1, 0), (0, 0)])
        start = jnp.pad(contents.looks, [(0, 0), (1, 0), (0, 0)])
        start = nn.Dense(start.shape[-1], name="start")(start)
        x, share = SlotAttention(name="find")(start, tokens, None, bias)
        x = nn.LayerNorm(name="norm")(x)
        moments = nn.Dense(2 * self.features // x.shape[1], kernel_init=small, name="moments")(x)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        middle = jnp.einsum("bkl,lc->bkc", share, middles)
        start_at = middle / jnp.sqrt(1.0 - 0.9 * jnp.square(middle))  # bound's inverse, or nearly
        mean = mean.at[..., :2].add(start_at)
        return mean.reshape(len(x), -1), log_variance.reshape(len(x), -1) - 2.0  # of little doubt at first
