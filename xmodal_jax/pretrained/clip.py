"""CLIP (Radford et al. 2021, arXiv:2103.00020): an image and a text encoder with a shared embedding space."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import check_no_mask, cut_patches
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained import images
from xmodal_jax.pretrained.encoder import EncoderOptions, PretrainedEncoder, TransformerSizes, read_sizes
from xmodal_jax.pretrained.files import Checkpoint
from xmodal_jax.pretrained.images import Scale, Size
from xmodal_jax.pretrained.rules import Rule, block, dense, embedding, layers, norm, patches, prefixed
from xmodal_jax.types import ExampleKeys, Tokens

LAYER_NAMES = {
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
"""Projections and the loss's parameters, which belong to both encoders; buffers; a head of another task."""
IMAGE_IGNORED, TEXT_IGNORED = (r"^text_model\.", *IGNORED), (r"^vision_model\.", *IGNORED)
LEGACY_EOS = 2
"""The end-of-text id in early configurations. It is wrong: those models end a text with the largest id."""


class ClipImage(PretrainedEncoder):
    """CLIP's image encoder: pixels ``[B, H, W, 3]`` in [-1, 1] to ``[B, 1 + N, D]``.

    The tokens are the class token, then the patches row by row. The encoder consists of pre-norm blocks over the
    normalized sum of patches and positions, without a norm at the end. ``pool`` is the class token after a layer norm,
    ``project`` a linear layer without bias.

    Raises:
      ValueError: the images do not have ``grid`` patches, or there is a mask.
    """

    has_projection: ClassVar[bool] = True

    sizes: TransformerSizes
    patch: int
    """Side of a patch, in pixels."""
    grid: Size
    """Rows and columns of patches in the data's images."""
    trained_grid: Size
    """Rows and columns of patches in the checkpoint; its positions are resampled to ``grid``."""
    scale: Scale
    """Mean and standard deviation of each channel, by which pixels are standardised."""
    projection: int
    """Size of the shared embedding space."""

    def setup(self):
        """The layers; the last norm and the projection only if ``options.head`` asks for them."""
        width, options = self.sizes.width, self.sizes.options
        init = nn.initializers.normal(0.02)
        self.patches = nn.Dense(width, use_bias=False, dtype=options.dtype)
        self.class_token = self.param("class_token", init, (width,), jnp.float32)
        # "places" names parameters: the embeddings of positions.
        self.places = self.param("places", init, (1 + math.prod(self.grid), width), jnp.float32)
        self.first_norm = self.sizes.norm()
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.last_norm = self.sizes.norm()
        if options.head == "project":
            self.projector = nn.Dense(self.projection, use_bias=False, dtype=options.dtype)

    @property
    def prefix_tokens(self) -> int:
        return 1

    def example_inputs(self) -> tuple[Array, ...]:
        return (images.example_image(self.grid, self.patch),)

    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of images ``[B, 1 + N, D]``: the class token, then the patches; ``mask`` must be None."""
        check_no_mask(mask)
        # ``self.scale`` is the mean and standard deviation of each channel in the checkpoint's training.
        x = self.patches(cut_grid_patches(standardize(inputs, *self.scale), self.grid, self.patch))
        token = jnp.broadcast_to(self.class_token.astype(x.dtype)[None, None], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1)
        x = self.first_norm(x + self.places[None].astype(x.dtype))
        self.record_hidden_state(x)
        return Tokens(self.transformer(self.dropout(x, keys), keys=keys), mask=None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The normalized class token, ``[B, D]``."""
        return self.last_norm(tokens.values[:, 0])

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch shared"]:
        """The embedding in the shared space, ``[B, E]``."""
        return self.projector(pooled)


class ClipText(PretrainedEncoder):
    """CLIP's text encoder: token ids ``[B, L]`` to ``[B, L, D]``.

    It consists of causal pre-norm blocks over the sum of the embeddings of words and positions, and a layer norm.
    ``mask [B, L]`` is True on valid tokens; None means all. ``pool`` is the last valid token; `embed` takes the first
    ``eos`` as the end of the text, if there is one (an ``eos`` of 2 stands for the largest id in the text, see
    `LEGACY_EOS`). ``project`` is a linear layer without bias.

    Raises:
      ValueError: there are more tokens than positions.
    """

    has_projection: ClassVar[bool] = True

    sizes: TransformerSizes
    vocab_size: int
    positions: int
    """Number of positions, the most tokens of a text."""
    eos: int
    """Id of the end-of-text token."""
    projection: int
    """Size of the shared embedding space."""

    def setup(self):
        """The layers; the projection only if ``options.head`` asks for it."""
        width, options = self.sizes.width, self.sizes.options
        # "words" and "places" name parameters: the embeddings of tokens and of positions.
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer(causal=True)
        if options.head == "project":
            self.projector = nn.Dense(self.projection, use_bias=False, dtype=options.dtype)

    @property
    def max_tokens(self) -> int:
        return self.positions

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)

    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of texts ``[B, L, D]`` with ``mask``, True on valid tokens."""
        x = embed_words(inputs, self.words, self.places)
        self.record_hidden_state(x)
        return Tokens(self.transformer(self.dropout(x, keys), mask, keys=keys), mask)

    def embed(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens | Array:
        """The tokens ``[B, L, D]``, the pooled token ``[B, D]`` or its projection, depending on ``options.head``.

        The pooled token is the first end-of-text token, or the last valid token if there is none. ``inputs`` are token
        ids, ``mask`` is True on valid ones.
        """
        tokens, head = self(inputs, mask, keys=keys), self.sizes.options.head
        if head == "none":
            return tokens
        valid = jnp.ones(inputs.shape, bool) if mask is None else mask
        ids = jnp.where(valid, inputs, -1)
        # Old configurations state a wrong id of the end-of-text token; it is then the largest id of a text.
        is_end = ids == (ids.max(axis=1, keepdims=True) if self.eos == LEGACY_EOS else self.eos)
        # True up to the first end-of-text token, inclusive: no such token comes before.
        in_text = jnp.cumsum(is_end, axis=1) - is_end == 0
        pooled = self.pool(Tokens(tokens.values, valid & in_text))
        return pooled if head == "pool" else self.project(pooled)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The last valid token, ``[B, D]``."""
        values, mask = tokens
        if mask is None:
            return values[:, -1]
        last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)  # [B], index of the last True
        return jnp.take_along_axis(values, last[:, None, None], axis=1)[:, 0]

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch shared"]:
        """The embedding in the shared space, ``[B, E]``."""
        return self.projector(pooled)


def patch_grids(size: Size, patch: int, image_size: Size | None) -> tuple[Size, Size]:
    """``(grid, trained_grid)``: rows and columns of patches in the data's images and in the checkpoint's images.

    Patches need not cover the checkpoint's images: with 384 pixels, patches of 14 pixels leave a border. They have to
    cover images of another size.

    Args:
      size: height and width of the checkpoint's images.
      patch: side of a patch, in pixels.
      image_size: height and width of the data's images; None: as the checkpoint's.
    Raises:
      ValueError: the patch does not divide the sides of ``image_size``.
    """
    trained = (size[0] // patch, size[1] // patch)
    if image_size is None or tuple(image_size) == size:
        return trained, trained
    return images.patch_grid(image_size, patch), trained


def cut_grid_patches(
    pixels: Float[Array, "batch height width channels"], grid: Size, patch: int
) -> Float[Array, "batch patches values"]:
    """The patches of images row by row (see `nets.image.cut_patches`), without a border that they do not cover.

    Raises:
      ValueError: the images do not have ``grid`` patches.
    """
    (height, width), (rows, columns) = pixels.shape[1:3], grid
    if (height // patch, width // patch) != grid:
        raise ValueError(
            f"the encoder was made for images of {rows * patch} x {columns * patch} pixels, got {height} x {width}"
        )
    return cut_patches(pixels[:, : rows * patch, : columns * patch], patch)


def embed_words(
    ids: Int[Array, "batch length"], words: nn.Embed, positions: nn.Embed
) -> Float[Array, "batch length dim"]:
    """The sum of the embeddings of words and of positions.

    Raises:
      ValueError: there are more tokens than positions.
    """
    length, limit = ids.shape[1], positions.num_embeddings
    if length > limit:
        raise ValueError(f"{length} tokens given, the pretrained model has {limit} positions")
    return words(jnp.clip(ids, 0, words.num_embeddings - 1)) + positions(jnp.arange(length))[None]


def make_image_encoder(
    config: SimpleNamespace, options: EncoderOptions, *, image_size: Size | None = None
) -> ClipImage:
    """The image encoder that a parsed ``config.json`` of CLIP, or of its image encoder alone, describes.

    ``image_size``: height and width of the data's images; None: those of the checkpoint.

    ``options``: head, dropout, dtype.
    """
    vision_config = getattr(config, "vision_config", config)
    size, patch = images.image_and_patch_size(vision_config)
    grid, trained = patch_grids(size, patch, image_size)
    return ClipImage(
        sizes=read_sizes(vision_config, options, final_norm=False),
        patch=patch,
        grid=grid,
        trained_grid=trained,
        scale=images.pixel_scale(config, images.CLIP),
        projection=config.projection_dim,
    )


def make_text_encoder(config: SimpleNamespace, options: EncoderOptions) -> ClipText:
    """The text encoder that a parsed ``config.json`` of CLIP, or of its text encoder alone, describes.

    ``options``: head, dropout, dtype.
    """
    text_config = getattr(config, "text_config", config)
    return ClipText(
        sizes=read_sizes(text_config, options),
        vocab_size=text_config.vocab_size,
        positions=text_config.max_position_embeddings,
        eos=text_config.eos_token_id,
        projection=config.projection_dim,
    )


def blocks(sizes: TransformerSizes) -> list[Rule]:
    """The rules that map a checkpoint's arrays to the transformer layers of a CLIP or SigLIP encoder."""
    return layers(
        lambda k, path: block(f"encoder.layers.{k}", path, LAYER_NAMES),
        sizes.depth,
        sizes.options.scan_layers,
    )


def with_projection(
    rules: list[Rule], *, prefix: str, projection: str, sizes: TransformerSizes
) -> list[Rule]:
    """An encoder's rules, with those of its projection (the layer ``projection`` of the checkpoint) if it has one.

    In a checkpoint with the projection, the names of the encoder's arrays have the prefix ``prefix``, but that of the
    projection does not. (In a checkpoint of the encoder alone no name has a prefix.)

    ``sizes``: the encoder's, whose ``options.head`` says whether the projection is a part of the module.
    """
    if sizes.options.head != "project":
        return rules
    return [*prefixed(rules, prefix), *dense(projection, "projector", bias=False)]


def image_rules(module: ClipImage) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    # before=1: the first position is that of the class token, which is in no grid and stays as it is.
    resample = images.make_resampler(module.trained_grid, module.grid, before=1)
    rules = [
        Rule("embeddings.class_embedding", "class_token"),
        Rule("embeddings.patch_embedding.weight", "patches/kernel", patches(module.patch, module.patch)),
        Rule("embeddings.position_embedding.weight", "places", transform=resample),
        *norm("pre_layrnorm", "first_norm"),
        *blocks(module.sizes),
        *norm("post_layernorm", "last_norm"),
    ]
    return with_projection(rules, prefix="vision_model.", projection="visual_projection", sizes=module.sizes)


def text_rules(module: ClipText) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    rules = [
        *embedding("embeddings.token_embedding", "words"),
        *embedding("embeddings.position_embedding", "places"),
        *blocks(module.sizes),
        *norm("final_layer_norm", "transformer/norm"),
    ]
    return with_projection(rules, prefix="text_model.", projection="text_projection", sizes=module.sizes)


def read_loss_parameters(checkpoint: Checkpoint) -> dict[str, float]:
    """The learned parameters of the contrastive loss in a checkpoint of CLIP or SigLIP, those that it has.

    ``logit_scale`` is the logarithm of the inverse temperature; SigLIP has ``logit_bias`` too.
    """
    entries = {name: checkpoint.arrays.get(name) for name in ("logit_scale", "logit_bias")}
    return {name: entry.read().astype(np.float32).item() for name, entry in entries.items() if entry}
