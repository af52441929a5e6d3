"""SigLIP (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786).

Each is an image and a text encoder with a shared embedding space. SigLIP 2 for fixed image sizes has SigLIP's
architecture; for any aspect ratio (model type "siglip2", NaFlex) it resamples its positions in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.attention import attention
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import check_no_mask
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import MLP
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained import images
from xmodal_jax.pretrained.clip import blocks, cut_grid_patches, embed_words, patch_grids
from xmodal_jax.pretrained.encoder import EncoderOptions, PretrainedEncoder, TransformerSizes, read_sizes
from xmodal_jax.pretrained.images import Scale, Size
from xmodal_jax.pretrained.rules import FLAT, Rule, dense, embedding, linear, norm, patches
from xmodal_jax.types import ExampleKeys, Tokens

GEMMA_WORDS = 256_000
"""Size of the vocabulary of Gemma, which SigLIP 2 uses: its padding id is 0, which the configurations lack."""


class ProbePool(nn.Module):
    """Pooling by attention: one learned query attends to all tokens, then ``x + MLP(LN(x))``.

    Tokens ``[B, N, D]`` become ``[B, D]``. It is the MAP head of Zhai et al. 2022, arXiv:2106.04560, section 2.2.
    """

    sizes: TransformerSizes

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The pooled tokens, ``[B, D]``: the attention of a learned query (the probe) to the tokens, then an MLP."""
        values, mask = tokens
        sizes, dtype = self.sizes, self.sizes.options.dtype
        probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, sizes.width), jnp.float32)
        # One layer for queries, keys and values, as in the checkpoint: [B, N, 3, heads, dim]. The query comes from the
        # probe, keys and values from the tokens.
        qkv = nn.DenseGeneral((3, sizes.heads, sizes.width // sizes.heads), dtype=dtype, name="qkv")
        q, (k, v) = qkv(probe)[:, :, 0], jnp.moveaxis(qkv(values)[:, :, 1:], 2, 0)
        x = attention(jnp.broadcast_to(q, (values.shape[0], *q.shape[1:])), k, v, mask)  # [B, 1, heads, dim]
        x = nn.DenseGeneral(sizes.width, axis=(-2, -1), dtype=dtype, name="out")(x)
        y = nn.LayerNorm(epsilon=sizes.style.epsilon, dtype=dtype, name="norm")(x)
        mlp = MLP(sizes.hidden / sizes.width, dtype, activation=sizes.style.activation, name="mlp")
        return (x + mlp(y))[:, 0]  # the only query's


class SiglipImage(PretrainedEncoder):
    """SigLIP's image encoder: pixels ``[B, H, W, 3]`` in [-1, 1] to one token per patch, ``[B, N, D]``, row by row.

    It consists of pre-norm blocks over the sum of patches and positions, and a layer norm. ``pool`` is `ProbePool`; its
    result is already the embedding in the shared space, so that ``project`` is the identity. Without that head in the
    checkpoint, ``pool`` is the mean of the tokens, as in the classifier of ``transformers``, and there is no
    ``project``.

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
    flexible: bool = False
    """Whether it is the encoder for any aspect ratio (NaFlex)."""
    has_head: bool = True
    """Whether the checkpoint has the parameters of `ProbePool`."""

    def setup(self):
        """The layers; the pool only if ``options.head`` asks for it."""
        width, options = self.sizes.width, self.sizes.options
        shape = (math.prod(self.grid), width)  # one position per patch
        self.patches = nn.Dense(width, dtype=options.dtype)
        # "places" names parameters: the embeddings of positions.
        self.places = self.param("places", nn.initializers.normal(0.02), shape, jnp.float32)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.pooler = ProbePool(self.sizes) if self.has_head else Pool("mean")

    def example_inputs(self) -> tuple[Array, ...]:
        return (images.example_image(self.grid, self.patch),)

    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of images ``[B, N, D]``, one for each patch; ``mask`` must be None."""
        check_no_mask(mask)
        # ``self.scale`` is the mean and standard deviation of each channel in the checkpoint's training.
        x = self.patches(cut_grid_patches(standardize(inputs, *self.scale), self.grid, self.patch))
        x = x + self.places[None].astype(x.dtype)
        self.record_hidden_state(x)
        return Tokens(self.transformer(self.dropout(x, keys), keys=keys), mask=None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The pooled tokens, ``[B, D]``."""
        return self.pooler(tokens)

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """The identity."""
        return pooled


class SiglipText(PretrainedEncoder):
    """SigLIP's text encoder: token ids ``[B, L]`` to ``[B, P, D]``.

    Bidirectional pre-norm blocks over the sum of the embeddings of words and positions, and a layer norm.

    ``mask [B, L]`` is True on valid tokens; None means all. The published encoders were trained with all texts padded
    to their ``P`` positions, and attend to the padding. ``attends_to_padding`` does the same: the inputs are padded to
    ``P``, invalid positions hold the padding's id, and attention has no mask; the returned mask is True on valid
    tokens as before. Without it, ``P`` is ``L`` and attention uses the mask.

    ``pool`` is a linear layer on the last position, padding or not; the result is already the embedding in the shared
    space, so that ``project`` is the identity.

    Raises:
      ValueError: there are more tokens than positions.
    """

    has_projection: ClassVar[bool] = True

    sizes: TransformerSizes
    vocab_size: int
    positions: int
    """Number of positions, the most tokens of a text."""
    pad: int
    """Id of the padding token."""
    projection: int
    """Size of the shared embedding space."""
    attends_to_padding: bool = True
    """Whether texts are padded to all positions and attention has no mask, as in the pretraining."""

    def setup(self):
        """The layers; the dense layer of the pool only if ``options.head`` asks for it."""
        width, options = self.sizes.width, self.sizes.options
        # "words" and "places" name parameters: the embeddings of tokens and of positions.
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.pooler = nn.Dense(self.projection, dtype=options.dtype)

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
        """The tokens of texts with the mask of valid tokens; both are padded to all ``positions`` if
        ``attends_to_padding``."""
        # The published encoders learned from texts padded to all positions, without a mask, and pool the last position.
        padding = self.positions - inputs.shape[1]
        if self.attends_to_padding and padding > 0:
            mask = jnp.ones(inputs.shape, bool) if mask is None else mask
            inputs, mask = (jnp.pad(x, [(0, 0), (0, padding)]) for x in (inputs, mask))
        if self.attends_to_padding and mask is not None:
            inputs = jnp.where(mask, inputs, self.pad)
        x = embed_words(inputs, self.words, self.places)
        self.record_hidden_state(x)
        x = self.transformer(self.dropout(x, keys), None if self.attends_to_padding else mask, keys=keys)
        return Tokens(x, mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch shared"]:
        """The embedding in the shared space, ``[B, E]``."""
        return self.pooler(tokens.values[:, -1])

    def project(self, pooled: Float[Array, "batch shared"]) -> Float[Array, "batch shared"]:
        """The identity."""
        return pooled


def make_image_encoder(
    config: SimpleNamespace, options: EncoderOptions, *, image_size: Size | None = None
) -> SiglipImage:
    """The image encoder that a parsed ``config.json`` of SigLIP, or of its image encoder alone, describes.

    ``image_size``: height and width of the data's images; None: those of the checkpoint.

    Raises:
      ValueError: ``options.head`` needs a projection that the checkpoint lacks, or the patch does not divide
        ``image_size``.
    """
    vision_config = getattr(config, "vision_config", config)
    if options.head == "project" and not vision_config.vision_use_head:
        raise ValueError(
            "config.json says vision_use_head=false: the checkpoint has no embedding in a shared space, ask for "
            "head='pool' (the mean of its tokens) or 'none'"
        )
    flexible = vision_config.model_type.startswith("siglip2")
    if flexible:  # the configuration has the number of patches of a square image instead of an image size
        patch = vision_config.patch_size
        size = (math.isqrt(vision_config.num_patches) * patch,) * 2
    else:
        size, patch = images.image_and_patch_size(vision_config)
    grid, trained = patch_grids(size, patch, image_size)
    return SiglipImage(
        sizes=read_sizes(vision_config, options),
        patch=patch,
        grid=grid,
        trained_grid=trained,
        scale=images.pixel_scale(config, images.HALF),
        flexible=flexible,
        has_head=vision_config.vision_use_head,
    )


def make_text_encoder(config: SimpleNamespace, options: EncoderOptions) -> SiglipText:
    """The text encoder that a parsed ``config.json`` of SigLIP, or of its text encoder alone, describes.

    ``options``: head, dropout, dtype.
    """
    text_config = getattr(config, "text_config", config)
    return SiglipText(
        sizes=read_sizes(text_config, options),
        vocab_size=text_config.vocab_size,
        positions=text_config.max_position_embeddings,
        pad=0 if text_config.vocab_size == GEMMA_WORDS else text_config.pad_token_id,
        projection=text_config.projection_size,
    )


def image_rules(module: SiglipImage) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    make_resampler = make_linear_resampler if module.flexible else images.make_resampler
    layout = linear() if module.flexible else patches(module.patch, module.patch)
    resample = make_resampler(module.trained_grid, module.grid)
    return [
        Rule("embeddings.patch_embedding.weight", "patches/kernel", layout),
        Rule("embeddings.patch_embedding.bias", "patches/bias"),
        Rule("embeddings.position_embedding.weight", "places", transform=resample),
        *blocks(module.sizes),
        *norm("post_layernorm", "transformer/norm"),
        Rule("head.probe", "pooler/probe"),
        Rule("head.attention.in_proj_weight", "pooler/qkv/kernel", linear()),
        Rule("head.attention.in_proj_bias", "pooler/qkv/bias", FLAT),
        Rule("head.attention.out_proj.weight", "pooler/out/kernel", linear(inputs=2)),
        Rule("head.attention.out_proj.bias", "pooler/out/bias"),
        *norm("head.layernorm", "pooler/norm"),
        *dense("head.mlp.fc1", "pooler/mlp/up"),
        *dense("head.mlp.fc2", "pooler/mlp/down"),
    ]


def text_rules(module: SiglipText) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    return [
        *embedding("embeddings.token_embedding", "words"),
        *embedding("embeddings.position_embedding", "places"),
        *blocks(module.sizes),
        *norm("final_layer_norm", "transformer/norm"),
        *dense("head", "pooler"),
    ]


def make_linear_resampler(old: Size, new: Size) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function that resamples a table of positions ``[rows * columns, D]`` from the grid ``old`` to ``new``, in
    float32; None if the grids are equal.

    It is bilinear with half-pixel centres and, where the grid shrinks, antialiased: like PyTorch's ``interpolate`` with
    ``antialias=True``, which SigLIP 2 uses.
    """
    return images.make_resampler(old, new, weights=linear_weights)


def linear_weights(old: int, new: int) -> np.ndarray:
    """The weights ``[new, old]`` that resample ``old`` values of one axis to ``new`` linearly, antialiased if the axis
    shrinks: the triangular kernel is then as wide as the spacing of the new samples."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5  # of the new samples on the old axis
    distance = np.abs(centres[:, None] - np.arange(old)[None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
