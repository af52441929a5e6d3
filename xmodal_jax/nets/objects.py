"""A generator that composes an image of objects, each drawn separately at a position that the noise determines.

The words of a condition determine the appearance of each object (`ObjectEncoder`), so that the generator can draw new
combinations of known words. The noise determines where objects are, by a distribution that depends on the condition
(`Layout`). `ObjectPosterior` infers the noise of a real image by attending to each object.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import shard_examples
from xmodal_jax.nets.transformer import MLP, TransformerBlock
from xmodal_jax.types import Condition, ExampleKeys

BOX_SIZE = 3
"""Numbers of an object's box: horizontal and vertical position of its centre, and its size."""
MARGIN = 4
"""Transparent cells that are added at either end of an object, so that it fades out: enough for cells of a fifth of a
pixel."""


def resampling_weights(
    centre: Float[Array, "*batch"], half: Float[Array, "*batch"], *, pixels: int, cells: int
) -> Float[Array, "*batch {pixels} {cells}"]:
    r"""Weights ``w [..., pixels, cells]`` that resample a row of an object's ``cells`` to a row of an image's
    ``pixels``.

    The pixels cover [0, 1], the cells ``[centre - half, centre + half]``. Linear interpolation between the middles
    ``c_j`` of cells, at the middles ``x_i`` of pixels: ``w_ij = t_ij / sum_k t_ik`` with ``t_ij = max(0, 1 - |x_i -
    c_j| / s)``. s is the distance between neighbouring cells, or between pixels where that is larger, so that shrinking
    does not alias. The sum over k has `MARGIN` more cells at either end: a pixel's weights add up to 1 well inside of
    the object, to 0 outside, and fall off smoothly in between, so that positions can be learned. (The filter bank of
    DRAW, Gregor et al. 2015, arXiv:1502.04623, eq. 19-26, with triangles in place of Gaussians.)

    ``centre`` and ``half``: the middle and half the length of the object along this axis, as fractions of the image's
    side.
    """

    def middles(low, high, axis):
        """``low + 0.5, ..., high - 0.5``: the middles of pixels or cells, with axes of size 1 to broadcast.

        They are those of ``centre``, and one more at ``axis``: -1 for pixels ``[..., n, 1]``, -2 for cells ``[..., 1,
        n]``.
        """
        return jnp.expand_dims(jnp.arange(low, high) + 0.5, [*range(centre.ndim), axis])

    cell_size = 2.0 * half[..., None, None] / cells
    # c [..., 1, cells + 2 MARGIN]
    cell_middles = (centre - half)[..., None, None] + middles(-MARGIN, cells + MARGIN, -2) * cell_size
    s = jnp.maximum(cell_size, 1.0 / pixels)
    # t [..., pixels, cells + 2 MARGIN]
    triangle = jnp.maximum(1.0 - jnp.abs(middles(0, pixels, -1) / pixels - cell_middles) / s, 0.0)
    return triangle[..., MARGIN:-MARGIN] / (triangle.sum(axis=-1, keepdims=True) + 1e-6)


class SlotAttention(nn.Module):
    r"""Slots ``[B, K, D]`` compete for inputs ``[B, N, E]`` (Locatello et al. 2020, arXiv:2006.15055, algorithm 1).

    In each round ``a`` is the softmax over the slots of ``q(slots) k(inputs)^T / sqrt(D) + bias``, with rows divided by
    their sum; then ``slots += o(a v(inputs))`` and ``slots += MLP(slots)``, both after a layer norm. As each input is
    divided among the slots, no two slots take the same inputs. Unlike in the paper the initial slots are an argument,
    not random, and residual updates replace the GRU. Returns the slots and the last ``a`` ``[B, K, N]``, whose rows sum
    to 1.
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
        """``(slots, attention)`` after all rounds: the updated slots, and their attention to the inputs, with rows that
        sum to 1.

        In each round the slots compete for the inputs (a softmax over slots); each is then updated by the weighted mean
        of its inputs. ``mask`` is True on valid inputs. ``bias`` is added to the logits of the attention.
        """
        width = slots.shape[-1]
        dense = lambda name: nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
        inputs = norm("norm_inputs")(inputs)
        key, value, query, out = dense("key")(inputs), dense("value")(inputs), dense("query"), dense("out")
        norm_slots, norm_mlp, mlp = norm("norm_slots"), norm("norm_mlp"), MLP(2.0, self.dtype, name="mlp")
        for _ in range(self.rounds):
            logits = jnp.einsum("bkd,bld->bkl", query(norm_slots(slots)), key).astype(jnp.float32)
            logits = logits / math.sqrt(width)
            # A softmax over slots, which compete for each input, then a mean over inputs for each slot.
            attention = jax.nn.softmax(logits if bias is None else logits + bias, axis=1)
            if mask is not None:
                attention = attention * mask[:, None, :]
            attention = attention / (attention.sum(axis=-1, keepdims=True) + 1e-3)
            slots = slots + out(jnp.einsum("bkl,bld->bkd", attention.astype(value.dtype), value))
            slots = shard_examples(slots + mlp(norm_mlp(slots)))
        return slots, attention


class ObjectEmbeddings(NamedTuple):
    """A condition as embeddings of K objects."""

    appearance: Float[Array, "batch count width"]
    """Embedding of how an object looks."""
    role: Float[Array, "batch count width"]
    """Embedding of where an object is: which of the objects it is, and its relation to the others."""
    attention: Float[Array, "batch count length"] | None
    """Attention of an object to the words; rows sum to 1. None: there are no words."""


class ObjectEncoder(nn.Module):
    """Encodes a condition as `ObjectEmbeddings` of ``count`` objects.

    With words the objects compete for them (`SlotAttention`). Object k starts at the words around the k-th part of the
    sentence, so that the first object is the one mentioned first; ``nearness`` is the width of that prior, ``window``
    the number of neighbours that a word is convolved with. The appearance of an object depends on its words alone, by
    the same function for all objects, so that none can learn not to be drawn. Only its role depends on its number and
    on the whole sentence.
    """

    count: int
    width: int
    window: int = 7
    nearness: float = 0.4
    dtype: Any = None

    @nn.compact
    def __call__(self, condition: Condition, batch: int) -> ObjectEmbeddings:
        """The embeddings of ``count`` objects for each of ``batch`` images, from a class or sentence and its words.

        ``condition.vector [B, D]`` is the embedding of the class or sentence, ``condition.words`` its word tokens
        ``[B, L, D]`` and their mask; either may be None. The batch size cannot be read off a condition without both.
        """
        dense = lambda name: nn.Dense(self.width, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
        start = self.param("start", nn.initializers.normal(1.0), (self.count, self.width))
        # A learned vector of each object, the same in all images.
        role = jnp.broadcast_to(start[None], (batch, self.count, self.width))
        if condition.vector is not None:
            role = role + dense("vector")(condition.vector)[:, None]
        if condition.words is None:  # appearance and role are the same
            appearance = norm("norm")(role).astype(jnp.float32)
            return ObjectEmbeddings(appearance, role=appearance, attention=None)
        words, mask = condition.words
        if mask is None:
            mask = jnp.ones(words.shape[:2], bool)
        words = norm("norm_words")(words) * mask[..., None]
        neighbours = nn.Conv(words.shape[-1], (self.window,), dtype=self.dtype, name="beside")(words)
        words = words + nn.gelu(neighbours)
        # A Gaussian prior: object k attends to words near (k + 1/2) / count of the sentence. Positions lie in [0, 1].
        word_position = (jnp.cumsum(mask, axis=-1) - 0.5) / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
        object_position = (jnp.arange(self.count) + 0.5) / self.count
        distance = (word_position[:, None, :] - object_position[None, :, None]) * self.count / self.nearness
        attend = SlotAttention(dtype=self.dtype, name="read")
        role, attention = attend(role, words, mask, bias=-0.5 * jnp.square(distance))
        # The appearance is computed from the attended words alone.
        attended = jnp.einsum("bkl,bld->bkd", attention.astype(words.dtype), dense("said")(words))
        attended = attended + MLP(2.0, self.dtype, name="mlp")(norm("norm_said")(attended))
        appearance, role = norm("norm")(attended), norm("norm_roles")(role)
        return ObjectEmbeddings(appearance.astype(jnp.float32), role.astype(jnp.float32), attention)


class Layout(nn.Module):
    r"""An autoregressive distribution of the boxes of objects.

    ``box_k = mean_k + exp(log_scale_k) noise_k``. Mean and log-scale are functions of all objects ``[B, K, D]`` and of
    ``box_1 ... box_{k-1}``, by causal self-attention. With standard normal noise the boxes are distributed as a product
    of conditional Gaussians (a masked autoregressive flow of one layer, Papamakarios et al. 2017, arXiv:1705.07057,
    eq. 3).
    """

    width: int
    heads: int = 4
    dtype: Any = None

    def setup(self):
        """Attention among objects (``among``), embedding of the previous box (``before``), causal attention
        (``after``)."""
        self.among = TransformerBlock(self.heads, dtype=self.dtype)
        self.before = nn.Dense(self.width, dtype=self.dtype)
        self.after = TransformerBlock(self.heads, causal=True, dtype=self.dtype)
        self.norm = nn.LayerNorm(dtype=self.dtype)
        # Small weights: at first the boxes are about the noise itself, mean 0 and scale 1.
        small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.moments = nn.Dense(2 * BOX_SIZE, kernel_init=small)

    def moments_of(
        self, objects: Float[Array, "batch count dim"], boxes: Float[Array, "batch count 3"]
    ) -> tuple[Float[Array, "batch count 3"], Float[Array, "batch count 3"]]:
        """``(mean, log_scale)`` of each object's box, given the boxes before it."""
        return self._next(self.among(objects), boxes)

    def __call__(
        self, objects: Float[Array, "batch count dim"], noise: Float[Array, "batch count 3"]
    ) -> Float[Array, "batch count 3"]:
        """The boxes that the noise is mapped to, one after the other: ``box_k = mean_k + exp(log_scale_k) noise_k``.

        ``objects`` are the embeddings of the K objects, ``noise`` is standard normal. ``mean_k`` and ``log_scale_k``
        depend on the objects and on the boxes before ``k``.
        """
        objects, boxes = self.among(objects), jnp.zeros_like(noise)
        for k in range(noise.shape[1]):
            mean, log_scale = self._next(objects, boxes)
            boxes = boxes.at[:, k].set(mean[:, k] + jnp.exp(log_scale[:, k]) * noise[:, k])
        return boxes

    def _next(self, objects, boxes):
        """``(mean, log_scale)`` of the Gaussian that each box is drawn from, ``[B, K, 3]`` each, given the objects
        ``[B, K, D]`` and the boxes before it.

        A box has 3 numbers: the horizontal and the vertical position of its centre, and its size. ``before`` is a dense
        layer, ``after`` a block of causal attention, see `setup`.
        """
        # Shifted by one: object k gets the box of object k - 1, the first one zeros.
        previous = self.before(jnp.pad(boxes[:, :-1], [(0, 0), (1, 0), (0, 0)]))
        x = self.norm(self.after(objects + previous.astype(objects.dtype)))
        mean, log_scale = jnp.split(self.moments(x.astype(jnp.float32)), 2, axis=-1)
        return mean, 2.0 * jnp.tanh(0.5 * log_scale)  # bounded, as an unbounded scale diverges


class ObjectGenerator(nn.Module):
    r"""Draws objects over a background of one colour.

    The noise is split into equal parts, one for the background, which comes first, and one for each object. The first
    `BOX_SIZE` numbers of an object's part become its centre and size (`Layout`); the rest changes its appearance. An
    object is a square of ``cells`` by ``cells`` colours and opacities, each a mixture of ``planes``, made of its
    appearance alone. Each object is resampled into the image (`resampling_weights`) and covers those before it:
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
    """Units of the hidden layers from an object's appearance to its cells."""
    dtype: Any = None

    def setup(self):
        """Condition encoder, layout, and the layers that draw an object and the background."""
        dense = lambda features: nn.Dense(features, dtype=self.dtype)
        self.content = ObjectEncoder(self.objects, self.width, dtype=self.dtype)
        self.layout = Layout(self.width, self.heads, dtype=self.dtype)
        self.variety = nn.Dense(
            self.width, use_bias=False, dtype=self.dtype
        )  # noise to a change of appearance
        self.look = [dense(self.hidden) for _ in range(2)]  # appearance to hidden features
        self.plane = dense(self.cells**2 * self.planes)  # hidden features to planes of cells
        self.mix = dense((self.planes + 1) * (self.shape[-1] + 1))  # weights of the planes in each channel
        self.background = [dense(self.width), dense(self.shape[-1])]  # noise to one colour

    def encode_condition(self, condition: Condition, batch: int) -> ObjectEmbeddings:
        """The condition as embeddings of the objects of ``batch`` images."""
        return self.content(condition, batch)

    def prior_moments(
        self, objects: ObjectEmbeddings, boxes_and_noise: Float[Array, "batch noise"]
    ) -> tuple[Float[Array, "batch noise"], Float[Array, "batch noise"]]:
        """``(mean, log_scale)`` of the prior of ``boxes_and_noise``: of each object's box given the boxes before it.

        ``boxes_and_noise`` has the layout of the generator's noise, but holds an object's box where the noise has the
        numbers that become the box. The noise that the generator maps to it is ``(boxes_and_noise - mean)
        exp(-log_scale)``. Mean and log-scale are 0 for all numbers that are not part of a box.
        """
        _, object_parts = self._split(boxes_and_noise)  # the objects' parts, [B, K, Z]; not the background's
        embeddings = objects.appearance + objects.role
        mean, log_scale = self.layout.moments_of(embeddings, object_parts[..., :BOX_SIZE])

        def fill_with_zeros(moment):
            """``[B, K, 3]`` of the boxes to ``[B, noise]``, with 0 for the background and the rest of each object."""
            padding = [(0, 0), (1, 0), (0, object_parts.shape[-1] - BOX_SIZE)]
            return jnp.pad(moment, padding).reshape(boxes_and_noise.shape)

        return fill_with_zeros(mean), fill_with_zeros(log_scale)

    def __call__(
        self,
        noise: Float[Array, "batch noise"],
        condition: Condition | ObjectEmbeddings,
        *,
        keys: ExampleKeys | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images in [-1, 1] of the objects, drawn one after the other over a background of one colour.

        ``condition`` may be encoded already, by `encode_condition`. ``keys``, which all generators take, is unused.
        """
        is_encoded = isinstance(condition, ObjectEmbeddings)
        objects = condition if is_encoded else self.content(condition, noise.shape[0])
        background_noise, object_noise = self._split(noise)  # [B, Z] and [B, K, Z]
        appearance = objects.appearance
        if object_noise.shape[-1] > BOX_SIZE:
            appearance = appearance + self.variety(object_noise[..., BOX_SIZE:]).astype(appearance.dtype)
        row_weights, column_weights = self._resampling(objects, object_noise)
        # Each object's cells [B, K, p, q, C], resampled to the image [B, K, i, j, C]; the last channel is the opacity.
        layers = jnp.einsum("bkip,bkpqc,bkjq->bkijc", row_weights, self._draw(appearance), column_weights)
        hidden = nn.gelu(self.background[0](background_noise))
        color = nn.sigmoid(self.background[1](hidden).astype(jnp.float32))
        image = color[:, None, None, :]
        for k in range(self.objects):
            image = image * (1.0 - layers[:, k, ..., -1:]) + layers[:, k, ..., :-1]
        return shard_examples(2.0 * image - 1.0)

    def _split(self, noise):
        """``noise [B, (1 + K) Z]`` as the background's part ``[B, Z]`` and the parts ``[B, K, Z]`` of the K objects."""
        background, *objects = jnp.split(noise, self.objects + 1, axis=-1)
        return background, jnp.stack(objects, axis=1)

    def _resampling(self, objects, object_noise):
        """``(row weights, column weights)``: how each object's rows and columns of cells are resampled to the image's.

        ``[B, K, height, cells]`` and ``[B, K, width, cells]``, from the box that the object's noise is mapped to.
        ``object_noise`` is ``[B, K, Z]``; its first `BOX_SIZE` numbers become the box.
        """
        box = bound(self.layout(objects.appearance + objects.role, object_noise[..., :BOX_SIZE]))
        # In units of the image's sides: centres lie within the image; with more objects each starts smaller.
        centre = 0.5 + 0.5 * box[..., :2]
        half = 0.3 / math.sqrt(self.objects) * jnp.exp(0.5 * box[..., 2])
        height, width, _ = self.shape
        row_weights = resampling_weights(centre[..., 1], half, pixels=height, cells=self.cells)
        column_weights = resampling_weights(centre[..., 0], half, pixels=width, cells=self.cells)
        return row_weights, column_weights

    def _draw(self, appearance) -> Float[Array, "batch count cells cells channels"]:
        """The cells of each object: its colours multiplied by its opacity, and its opacity as the last channel.

        Both are mixtures of ``planes`` of cells and a constant; planes and mixture come from the object's
        ``appearance [B, K, D]``.
        """
        h = appearance
        for layer in self.look:
            h = shard_examples(nn.leaky_relu(layer(h), 0.2))
        planes = self.plane(h).reshape(*h.shape[:2], self.cells**2, self.planes)
        planes = jnp.concatenate([planes, jnp.ones_like(planes[..., :1])], axis=-1)
        mix = self.mix(appearance).reshape(*h.shape[:2], self.planes + 1, self.shape[-1] + 1)
        values = (planes @ mix).astype(jnp.float32)
        # Objects start as discs, opaque inside and transparent outside, so that their position has a gradient.
        squares = jnp.square(
            (jnp.arange(self.cells) + 0.5) / self.cells * 2.0 - 1.0
        )  # coordinates in [-1, 1]
        radius = jnp.sqrt(squares[:, None] + squares[None, :])
        disc = 3.0 * (0.7 - radius).reshape(1, 1, -1, 1)
        opacity = nn.sigmoid(values[..., -1:] + disc)
        layers = jnp.concatenate([nn.sigmoid(values[..., :-1]) * opacity, opacity], axis=-1)
        return layers.reshape(*h.shape[:2], self.cells, self.cells, -1)


def bound(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """``x / sqrt(1 + x^2)``, in (-1, 1). Its slope falls more slowly than that of tanh, so that an object at the border
    of the image can still move."""
    return x / jnp.sqrt(1.0 + jnp.square(x))


def token_positions(count: int, height: int, width: int) -> Float[Array, "count 2"]:
    """The position (right, down) in [-1, 1] of each of an image's ``count`` tokens.

    The tokens are taken to be the cells of a grid, row by row, that has the image's aspect ratio; a position is the
    middle of a cell.

    Raises:
      ValueError: ``count`` is not divisible into such rows.
    """
    rows = max(round(math.sqrt(count * height / width)), 1)
    if count % rows:
        raise ValueError(f"{count} tokens of an image of {height} x {width} are no grid: use another encoder")
    middles = lambda n: (jnp.arange(n) + 0.5) / n * 2.0 - 1.0
    down, right = jnp.meshgrid(middles(rows), middles(count // rows), indexing="ij")
    return jnp.stack([right.ravel(), down.ravel()], axis=-1)


def grounding_logits(
    attention: Float[Array, "batch count length"], word_attention: Float[Array, "batch length places"]
) -> Float[Array, "batch count places"]:
    r"""Logits over the N image tokens of where each object is, from a captioner's attention for the object's words.

    ``attention`` is the attention ``w_kl`` of object k to word l; ``word_attention`` the captioner's attention ``a_ln``
    from word l to image token n, with rows that sum to 1.

    The logits are ``log(N m_kn + 0.1)``, with the weighted mean over words ``m_k = sum_l v_kl a_l / sum_l v_kl`` and
    the weights ``v_kl = w_kl KL(a_l || uniform)``, with ``KL(a_l || uniform) = sum_n a_ln log(N a_ln)``. Words like
    "of", which attend to all image tokens alike, thus have no weight.
    """
    token_count = word_attention.shape[-1]  # N
    kl_to_uniform = (word_attention * jnp.log(token_count * word_attention + 1e-6)).sum(axis=-1)
    v = attention * (kl_to_uniform[:, None, :] + 1e-3)
    m = jnp.einsum("bkl,bln->bkn", v / v.sum(axis=-1, keepdims=True), word_attention)
    return jnp.log(token_count * m + 0.1)


class ObjectPosterior(nn.Module):
    """The posterior of an `ObjectGenerator`'s noise given an image: mean and log-variance ``[B, features]``.

    They have the layout of the noise, but with the objects' boxes where the noise has the boxes' noise; see
    `ObjectGenerator.prior_moments`. The objects, and the background, compete for the image's tokens (`SlotAttention`,
    after SAVi, Kipf et al. 2022, arXiv:2111.12594): those of ``encoder`` (of `nets.encoders`), and ``tokens`` of a
    frozen network. The mean of an object's box starts at the centre of its attention (as in invariant slot attention,
    Biza et al. 2023, arXiv:2302.04973, sec. 3). ``word_attention``, the attention of each word to each of ``tokens``,
    guides it (`grounding_logits`).

    Raises:
      ValueError: the tokens are no grid.
    """

    encoder: nn.Module
    features: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        objects: ObjectEmbeddings,
        tokens: Float[Array, "batch places dim"] | None = None,
        word_attention: Float[Array, "batch length places"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch features"]]:
        """``(mean, log_variance)`` of the boxes and the noise of each image's background and objects.

        Slots, one for the background and one for each object, compete for the tokens of the image.

        Args:
          images: pixels in [-1, 1].
          objects: embeddings of the objects that the image's condition names.
          tokens: of the image, by a frozen network; None: only those of the encoder.
          word_attention: attention of each word to each of ``tokens``, which guides the slots; None: no guidance.
          keys: one key per example, for the encoder's dropout in training.
        """
        small = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        inputs = self.encoder(images, keys=keys).values.astype(jnp.float32)
        positions = token_positions(inputs.shape[1], *images.shape[1:3])
        if tokens is not None:
            inputs = jnp.concatenate([inputs, nn.Dense(inputs.shape[-1], name="sight")(tokens)], axis=1)
            positions = jnp.concatenate([positions, token_positions(tokens.shape[1], *images.shape[1:3])])
        bias = None
        if word_attention is not None and objects.attention is not None:
            trust = self.param(
                "trust", nn.initializers.ones, ()
            )  # how much the slots follow the word attention
            bias = self._attention_bias(grounding_logits(objects.attention, word_attention) * trust, inputs)
        slots = jnp.pad(objects.appearance, [(0, 0), (1, 0), (0, 0)])  # the background's slot is the first
        slots = nn.Dense(slots.shape[-1], name="start")(slots)
        x, attention = SlotAttention(name="find")(slots, inputs, mask=None, bias=bias)
        x = nn.LayerNorm(name="norm")(x)
        # Each slot gives the moments of its part of the boxes and noise.
        moments = nn.Dense(2 * self.features // x.shape[1], kernel_init=small, name="moments")(x)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        # Start from the centre of each slot's attention, as a box before `bound`: about the inverse of that function.
        centre = jnp.einsum("bkl,lc->bkc", attention, positions)
        mean = mean.at[..., :2].add(centre / jnp.sqrt(1.0 - 0.9 * jnp.square(centre)))
        return mean.reshape(x.shape[0], -1), log_variance.reshape(
            x.shape[0], -1
        ) - 2.0  # a small variance at first

    @staticmethod
    def _attention_bias(logits, inputs):
        """The bias ``[B, 1 + K, inputs]`` of the slots' attention, from ``logits [B, K, N]`` of where objects are.

        ``inputs`` are the encoder's tokens, then the N tokens of a frozen network, which the logits are for. If there
        are as many of both, they have the same positions and the same bias; else the encoder's tokens have none. The
        first slot, the background's, has none either.
        """
        encoder_count = inputs.shape[1] - logits.shape[2]
        same_grid = encoder_count == logits.shape[2]
        encoder_bias = logits if same_grid else jnp.zeros((*logits.shape[:2], encoder_count))
        bias = jnp.concatenate([encoder_bias, logits], axis=2)
        return jnp.pad(bias, [(0, 0), (1, 0), (0, 0)])
