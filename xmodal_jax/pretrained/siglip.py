"""SigLIP (Zhai et al. 2023, arXiv:2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786): an image and a
text encoder trained to be compared.

The SigLIP 2 of fixed image sizes are of SigLIP's architecture; that of any aspect ratio ("siglip2", NaFlex) resamples
its positions otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.attention import attention
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import no_mask
from xmodal_jax.nets.transformer import MLP
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained import images
from xmodal_jax.pretrained.clip import (
    blocks,
    embed_words,
    image_grids,
    seen_patches,
)
from xmodal_jax.pretrained.encoder import Options, PretrainedEncoder, Sizes, sizes_of
from xmodal_jax.pretrained.images import Scale, Size
from xmodal_jax.pretrained.rules import FLAT, Rule, dense, embedding, linear, norm, patches
from xmodal_jax.types import ExampleKeys, Tokens

GEMMA_WORDS = 256_000
"""The size of Gemma's vocabulary, SigLIP 2's: its padding is 0, which the configurations do not say."""


class ProbePool(nn.Module):
    """``Tokens [B, N, D] -> [B, D]``: attention of one learned query, then ``x + MLP(LN(x))`` (MAP head, Zhai et al.
    2022, arXiv:2106.04560, sec. 2.2)."""

    sizes: Sizes

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        values, mask = tokens
        sizes, dtype = self.sizes, self.sizes.options.dtype
        probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, sizes.width), jnp.float32)
        # One layer for all three, as in the checkpoint; its queries of the tokens go unused.
        qkv = nn.DenseGeneral((3, sizes.heads, sizes.width // sizes.heads), dtype=dtype, name="qkv")
        q, (k, v) = qkv(probe)[:, :, 0], jnp.moveaxis(qkv(values)[:, :, 1:], 2, 0)
        x = attention(jnp.broadcast_to(q, (len(values), *q.shape[1:])), k, v, mask)
        x = nn.DenseGeneral(sizes.width, axis=(-2, -1), dtype=dtype, name="out")(x)
        y = nn.LayerNorm(epsilon=sizes.style.epsilon, dtype=dtype, name="norm")(x)
        mlp = MLP(sizes.hidden / sizes.width, dtype, activation=sizes.style.activation, name="mlp")
        return (x + mlp(y))[:, 0]


class SiglipImage(PretrainedEncoder):
    """Images ``[B, H, W, 3]`` in [-1, 1] to ``[B, N, D]``, row by row: pre-norm blocks over the sum of patches and
    positions, and a norm.

    ``pool``: `ProbePool`, which is also the place in the shared space: ``project`` changes nothing.

    Raises:
      ValueError: an image of another ``grid`` of patches, or a mask.
    """

    sizes: Sizes
    patch: int
    grid: Size
    trained_grid: Size
    """That of the checkpoint, from which positions are resampled."""
    scale: Scale
    flexible: bool = False
    """NaFlex."""

    def setup(self):
        width, options = self.sizes.width, self.sizes.options
        shape = (math.prod(self.grid), width)
        self.patches = nn.Dense(width, dtype=options.dtype)
        self.places = self.param("places", nn.initializers.normal(0.02), shape, jnp.float32)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.pooler = ProbePool(self.sizes)

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
        x = x + self.places[None].astype(x.dtype)
        self.record(x)
        return Tokens(self.transformer(self.dropout(x, keys), keys=keys), None)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``."""
        return self.pooler(tokens)

    def project(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """``[B, D]``, as it is."""
        return pooled


class SiglipText(PretrainedEncoder):
    """Ids ``[B, L]`` to ``[B, P, D]``: bidirectional pre-norm blocks over the sum of words and positions, and a norm.

    ``mask [B, L]`` is True on content; None means all. The published encoders were trained with all texts padded to
    their ``P`` positions, and without a mask of that padding. With ``padded`` it is so here: what is beyond the mask
    and positions beyond ``L`` hold the padding's id and are attended to; the mask of the tokens still says what is
    content. Without it ``P = L``, and the mask is that of attention.

    ``pool``: a linear layer on the last position, padding or not, which is also the place in the shared space:
    ``project`` changes nothing.

    Raises:
      ValueError: more tokens than positions.
    """

    sizes: Sizes
    vocab_size: int
    positions: int
    pad: int
    projection: int
    padded: bool = True

    def setup(self):
        width, options = self.sizes.width, self.sizes.options
        self.words = nn.Embed(self.vocab_size, width)
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(options.dropout)
        self.transformer = self.sizes.transformer()
        if options.head != "none":
            self.pooler = nn.Dense(self.projection, dtype=options.dtype)

    def example(self) -> tuple[Array, ...]:
        return (jnp.ones((1, 1), jnp.int32),)

    def __call__(
        self,
        inputs: Int[Array, "batch length"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        missing = self.positions - inputs.shape[1]
        if self.padded and missing > 0:
            mask = jnp.ones(inputs.shape, bool) if mask is None else mask
            inputs, mask = (jnp.pad(x, [(0, 0), (0, missing)]) for x in (inputs, mask))
        if self.padded and mask is not None:
            inputs = jnp.where(mask, inputs, self.pad)
        x = embed_words(inputs, self.words, self.places)
        self.record(x)
        x = self.transformer(self.dropout(x, keys), None if self.padded else mask, keys=keys)
        return Tokens(x, mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch shared"]:
        """``[B, E]``."""
        return self.pooler(tokens.values[:, -1])

    def project(self, pooled: Float[Array, "batch shared"]) -> Float[Array, "batch shared"]:
        """``[B, E]``, as it is."""
        return pooled


def make_image(config: SimpleNamespace, options: Options, *, image_size: Size | None = None) -> SiglipImage:
    """The image encoder of a ``config.json``, of both encoders or of its own, for images of ``(height, width)``; None:
    of the size that it was trained with.

    Raises:
      ValueError: a pool is asked for that the checkpoint lacks, or the patch does not divide the images' sides.
    """
    tower = getattr(config, "vision_config", config)
    if options.head != "none" and not tower.vision_use_head:
        raise ValueError(
            "config.json says vision_use_head=false: the checkpoint has no pool, ask for head='none'"
        )
    flexible = tower.model_type.startswith("siglip2")
    if flexible:  # a square of patches, and no image size
        patch = tower.patch_size
        size = (math.isqrt(tower.num_patches) * patch,) * 2
    else:
        size, patch = images.own_size(tower)
    grid, trained = image_grids(size, patch, image_size)
    return SiglipImage(
        sizes=sizes_of(tower, options),
        patch=patch,
        grid=grid,
        trained_grid=trained,
        scale=images.pixel_scale(config, images.HALF),
        flexible=flexible,
    )


def make_text(config: SimpleNamespace, options: Options) -> SiglipText:
    """The text encoder of a ``config.json``, of both encoders or of its own."""
    tower = getattr(config, "text_config", config)
    return SiglipText(
        sizes=sizes_of(tower, options),
        vocab_size=tower.vocab_size,
        positions=tower.max_position_embeddings,
        pad=0 if tower.vocab_size == GEMMA_WORDS else tower.pad_token_id,
        projection=tower.projection_size,
    )


def image_rules(module: SiglipImage) -> list[Rule]:
    """Its parameters in a checkpoint."""
    resample = resample_smoothly if module.flexible else images.resample
    layout = linear() if module.flexible else patches(module.patch, module.patch)
    change = resample(module.trained_grid, module.grid)
    return [
        Rule("embeddings.patch_embedding.weight", "patches/kernel", layout),
        Rule("embeddings.patch_embedding.bias", "patches/bias"),
        Rule("embeddings.position_embedding.weight", "places", change=change),
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
    """Its parameters in a checkpoint."""
    return [
        *embedding("embeddings.token_embedding", "words"),
        *embedding("embeddings.position_embedding", "places"),
        *blocks(module.sizes),
        *norm("final_layer_norm", "transformer/norm"),
        *dense("head", "pooler"),
    ]


def resample_smoothly(old: Size, new: Size) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes a table of positions ``[rows * columns, D]`` of a grid one of another grid, in float32; None where
    they are equal.

    Bilinear with half-pixel centres and, where the grid shrinks, antialiasing: as PyTorch's ``interpolate`` with
    ``antialias=True``, by which SigLIP 2 does it.
    """
    return images.resample(old, new, weights=linear_weights)


def linear_weights(old: int, new: int) -> np.ndarray:
    """``[new, old]``: the weight of each old sample in each new one, a triangle as wide as the wider of their steps."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)[None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
