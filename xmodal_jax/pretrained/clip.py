"""CLIP (Radford et al. 2021, arXiv:2103.00020): an image and a text encoder trained to be compared."""

from __future__ import annotations

import math
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import cut_patches, no_mask
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained import images
from xmodal_jax.pretrained.encoder import Options, PretrainedEncoder, Sizes, sizes_of
from xmodal_jax.pretrained.files import Checkpoint
from xmodal_jax.pretrained.images import Scale, Size
from xmodal_jax.pretrained.rules import Rule, block, dense, embedding, layers, norm, patches, prefixed
from xmodal_jax.types import ExampleKeys, Tokens

NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "mlp_norm": "layer_norm2",
}
IMAGE_PREFIXES, TEXT_PREFIXES = ("", "vision_model."), ("", "text_model.")
IGNORED = (r"^(visual|text)_projection\.", r"^logit_(scale|bias)$", r"\.position_ids$", r"^classifier\.")
"""What belongs to both encoders, buffers, and a head of another task."""
IMAGE_IGNORED, TEXT_IGNORED = (r"^text_model\.", *IGNORED), (r"^vision_model\.", *IGNORED)
LEGACY_EOS = 2
"""What early configurations say for the end of text, wrongly: there it is the largest id."""


class ClipImage(PretrainedEncoder):
    """Images ``[B, H, W, 3]`` in [-1, 1] to ``[B, 1 + N, D]``: the class token, then the patches row by row.

    Pre-norm blocks over the normed sum of patches and positions, without a norm at the end. ``pool``: the norm of the
    class token. ``project``: a linear layer without bias.

    Raises:
      ValueError: an image of another ``grid`` of patches, or a mask.
    """

    sizes: Sizes
    patch: int
    grid: Size
    trained_grid: Size
    """That of the checkpoint, from which positions are resampled."""
    scale: Scale
    projection: int

    def setup(self):
        width, options = self.sizes.width, self.sizes.options
        start = nn.initializers.normal(0.02)
        self.patches = nn.Dense(width, use_bias=False, dtype=options.dtype)
        self.class_token = self.param("class_token", start, (width,), jnp.float32)
        self.places = self.param("places", start, (1 + math.prod(self.grid), width), jnp.float32)
        self.first_norm = self.sizes.norm()
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.last_norm = self.sizes.norm()
        if options.head == "project":
            self.projector = nn.Dense(self.projection, use_bias=False, dtype=options.dtype)

    @property
    def leading(self) -> int:
        return 1

    def example(self) -> tuple[Array, ...]:
        return (images.example_image(self.grid, self.patch),)

    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        no_mask(mask)
        x = self.patches(seen_patches(standardize(inputs, *self.scale), self.grid, self.patch))
        token = jnp.broadcast_to(self.class_token.astype(x.dtype)[None, None], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        x = self.first_norm(x + self.places[None].astype(x.dtype))
        self.record(x)
        return Tokens(self.transformer(self.dropout(x, keys), keys=keys), None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``."""
        return self.last_norm(tokens.values[:, 0])

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch shared"]:
        """``[B, E]``."""
        return self.projector(pooled)


class ClipText(PretrainedEncoder):
    """Ids ``[B, L]`` to ``[B, L, D]``: causal pre-norm blocks over the sum of words and positions, and a norm.

    ``mask [B, L]`` is True on content; None means all. ``pool``: the last token of the content, which for `embed` ends
    with the first ``eos`` in it, if there is one (``eos`` 2 stands for the largest id of the content). ``project``: a
    linear layer without bias.

    Raises:
      ValueError: more tokens than positions.
    """

    sizes: Sizes
    vocab_size: int
    positions: int
    eos: int
    projection: int

    def setup(self):
        width, options = self.sizes.width, self.sizes.options
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer(causal=True)
        if options.head == "project":
            self.projector = nn.Dense(self.projection, use_bias=False, dtype=options.dtype)

    def example(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)

    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        x = embed_words(inputs, self.words, self.places)
        self.record(x)
        return Tokens(self.transformer(self.dropout(x, keys), mask, keys=keys), mask)

    def embed(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens | Array:
        tokens, head = self(inputs, mask, keys=keys), self.sizes.options.head
        if head == "none":
            return tokens
        content = jnp.ones(inputs.shape, bool) if mask is None else mask
        ids = jnp.where(content, inputs, -1)
        ends = ids == (ids.max(axis=1, keepdims=True) if self.eos == LEGACY_EOS else self.eos)
        before = jnp.cumsum(ends, axis=1) - ends == 0  # up to the first, itself included
        pooled = self.pool(Tokens(tokens.values, content & before))
        return pooled if head == "pool" else self.project(pooled)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``."""
        values, mask = tokens
        if mask is None:
            return values[:, -1]
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        return jnp.take_along_axis(values, last[:, None, None], axis=1)[:, 0]

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch shared"]:
        """``[B, E]``."""
        return self.projector(pooled)


def image_grids(size: Size, patch: int, image_size: Size | None) -> tuple[Size, Size]:
    """The grid of patches of the data's images, and that of a checkpoint's, of ``size``: what its patches leave at the
    right and the bottom, as those of 14 pixels do of 384, is not seen.

    Raises:
      ValueError: the patch does not divide the sides of another image size.
    """
    trained = (size[0] // patch, size[1] // patch)
    if image_size is None or tuple(image_size) == size:
        return trained, trained
    return images.grid_of(image_size, patch), trained


def seen_patches(
    pixels: Float[Array, "batch height width channels"], grid: Size, patch: int
) -> Float[Array, "batch patches values"]:
    """The patches of images row by row (see `nets.image.cut_patches`), without what they leave.

    Raises:
      ValueError: the images have another grid of them.
    """
    (height, width), (rows, columns) = pixels.shape[1:3], grid
    if (height // patch, width // patch) != grid:
        raise ValueError(
            f"the encoder was made for images of {rows * patch} x {columns * patch} pixels, got {height} x {width}"
        )
    return cut_patches(pixels[:, : rows * patch, : columns * patch], patch)


def embed_words(
    ids: Int[Array, "batch length"], words: nn.Embed, places: nn.Embed
) -> Float[Array, "batch length dim"]:
    """The sum of the embeddings of words and of their places.

    Raises:
      ValueError: more tokens than positions.
    """
    length, positions = ids.shape[1], places.num_embeddings
    if length > positions:
        raise ValueError(f"{length} tokens given, the pretrained model has {positions} positions")
    return words(jnp.clip(ids, 0, words.num_embeddings - 1)) + places(jnp.arange(length))[None]


def make_image(config: SimpleNamespace, options: Options, *, image_size: Size | None = None) -> ClipImage:
    """The image encoder of a ``config.json``, of both encoders or of its own, for images of ``(height, width)``; None:
    of the size that it was trained with."""
    tower = getattr(config, "vision_config", config)
    size, patch = images.own_size(tower)
    grid, trained = image_grids(size, patch, image_size)
    return ClipImage(
        sizes=sizes_of(tower, options, final_norm=False),
        patch=patch,
        grid=grid,
        trained_grid=trained,
        scale=images.pixel_scale(config, images.CLIP),
        projection=config.projection_dim,
    )


def make_text(config: SimpleNamespace, options: Options) -> ClipText:
    """The text encoder of a ``config.json``, of both encoders or of its own."""
    tower = getattr(config, "text_config", config)
    return ClipText(
        sizes=sizes_of(tower, options),
        vocab_size=tower.vocab_size,
        positions=tower.max_position_embeddings,
        eos=tower.eos_token_id,
        projection=config.projection_dim,
    )


def blocks(sizes: Sizes) -> list[Rule]:
    """The layers of either encoder in a checkpoint."""
    return layers(
        lambda k, ours: block(f"encoder.layers.{k}", ours, NAMES), sizes.depth, sizes.options.scan_layers
    )


def with_projection(tower: list[Rule], prefix: str, theirs: str, sizes: Sizes) -> list[Rule]:
    """An encoder's rules and, where it ends in its projection, that: it stands beside the encoder, whose names then
    have the prefix. (Those of an encoder saved on its own have none.)"""
    if sizes.options.head != "project":
        return tower
    return [*prefixed(tower, prefix), *dense(theirs, "projector", bias=False)]


def image_rules(module: ClipImage) -> list[Rule]:
    """Its parameters in a checkpoint."""
    change = images.resample(module.trained_grid, module.grid, before=1)
    tower = [
        Rule("embeddings.class_embedding", "class_token"),
        Rule("embeddings.patch_embedding.weight", "patches/kernel", patches(module.patch, module.patch)),
        Rule("embeddings.position_embedding.weight", "places", change=change),
        *norm("pre_layrnorm", "first_norm"),
        *blocks(module.sizes),
        *norm("post_layernorm", "last_norm"),
    ]
    return with_projection(tower, "vision_model.", "visual_projection", module.sizes)


def text_rules(module: ClipText) -> list[Rule]:
    """Its parameters in a checkpoint."""
    tower = [
        *embedding("embeddings.token_embedding", "words"),
        *embedding("embeddings.position_embedding", "places"),
        *blocks(module.sizes),
        *norm("final_layer_norm", "transformer/norm"),
    ]
    return with_projection(tower, "text_model.", "text_projection", module.sizes)


def loss_arrays(checkpoint: Checkpoint) -> dict[str, float]:
    """What a checkpoint of two encoders learned for its loss: ``logit_scale``, the logarithm of the inverse
    temperature, and SigLIP's ``logit_bias``; those that it has."""
    found = {name: checkpoint.arrays.get(name) for name in ("logit_scale", "logit_bias")}
    return {name: entry.read().astype(np.float32).item() for name, entry in found.items() if entry}
