"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DINOv2 (Oquab et al. 2024, arXiv:2304.07193).

DINOv2 with registers is that of Darcet et al. 2024, arXiv:2309.16588.
"""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import check_no_mask, cut_patches
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained.encoder import EncoderOptions, PretrainedEncoder, TransformerSizes, read_sizes
from xmodal_jax.pretrained.images import (
    HALF,
    IMAGENET,
    Scale,
    Size,
    example_image,
    image_and_patch_size,
    make_resampler,
    patch_grid,
    pixel_scale,
)
from xmodal_jax.pretrained.rules import Rule, block, dense, layers, norm, patches
from xmodal_jax.types import ExampleKeys, Tokens

LAYER_NAMES = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "layernorm_after",
}
DINOV2_LAYER_NAMES = {
    **LAYER_NAMES,
    "attention_norm": "norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "mlp_norm": "norm2",
}
PREFIXES = ("", "vit.")
DINOV2_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
IGNORED = (r"^classifier\.", r"^decoder\.", r"^(\w+\.)?embeddings\.mask_token$")
"""Heads of classification and of masked image modeling."""


class ViT(PretrainedEncoder):
    """ViT or DINOv2: pixels ``[B, H, W, 3]`` in [-1, 1] to ``[B, 1 + registers + rows * columns, D]``.

    It consists of pre-norm blocks over a class token, registers and patches, and a layer norm. All tokens but the
    registers have learned positions, which are resampled from the checkpoint's grid to that of the images. ``pool`` is
    the class token; in ViT a linear layer and ``tanh`` follow, unless the checkpoint (that of a classifier) lacks them.

    Raises:
      ValueError: the images have another size than the encoder was made for, or there is a mask.
    """

    sizes: TransformerSizes
    patch: int
    trained_grid: Size
    """Rows and columns of patches in the checkpoint."""
    grid: Size
    """Rows and columns of patches in the data's images."""
    scale: Scale
    registers: int = 0
    pooler: int | None = None
    """Features of the linear layer of ``pool``; None: it has no such layer."""
    qkv_bias: bool = True

    def setup(self):
        """The layers; the pooler's dense layer only if ``options.head`` asks for pooling and the checkpoint has it."""
        width, init = self.sizes.width, nn.initializers.normal(0.02)
        self.patches = nn.Dense(width, dtype=self.sizes.options.dtype)
        self.class_token = self.param("class_token", init, (1, 1, width), jnp.float32)
        length = 1 + self.grid[0] * self.grid[1]  # the class token and the patches
        self.positions = self.param("positions", init, (1, length, width), jnp.float32)
        if self.registers:
            shape = (1, self.registers, width)
            self.register_tokens = self.param("register_tokens", init, shape, jnp.float32)
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        if self.sizes.options.head == "pool" and self.pooler:
            self.dense = nn.Dense(self.pooler, dtype=self.sizes.options.dtype)

    @property
    def prefix_tokens(self) -> int:
        return 1 + self.registers

    def example_inputs(self) -> tuple[Array, ...]:
        return (example_image(self.grid, self.patch),)

    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of images: class token, registers, patches; ``mask`` must be None."""
        check_no_mask(mask)
        (height, width), (rows, columns), p = inputs.shape[1:3], self.grid, self.patch
        if (height, width) != (rows * p, columns * p):
            raise ValueError(
                f"the encoder was made for images of {rows * p} x {columns * p} pixels, got {height} x {width}"
            )
        x = standardize(inputs, *self.scale)  # by the mean and deviation of each channel in the pretraining
        x = self.patches(cut_patches(x, p))
        x = self._prepend(self.class_token, x) + self.positions.astype(x.dtype)
        if self.registers:  # between the class token and the patches
            x = jnp.concatenate([x[:, :1], self._prepend(self.register_tokens, x[:, 1:])], axis=1)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, keys=keys), mask=None)

    def _prepend(self, tokens: Array, x: Array) -> Array:
        """``tokens`` ``[1, K, D]`` before the tokens ``x`` ``[B, N, D]`` of each example."""
        tokens = jnp.broadcast_to(tokens.astype(x.dtype), (x.shape[0], *tokens.shape[1:]))
        return jnp.concatenate([tokens, x], axis=1)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The class token, ``[B, D]``; in ViT after a linear layer and tanh."""
        class_token = tokens.values[:, 0]
        return jnp.tanh(self.dense(class_token)) if self.pooler else class_token


def make(config: SimpleNamespace, options: EncoderOptions, *, image_size: Size | None = None) -> ViT:
    """The ViT that a parsed ``config.json`` describes; ``image_size``: height and width of the data's images, None for
    those of the checkpoint.

    ``options``: head, dropout, dtype.
    """
    has_pooler = getattr(config, "has_pooler", True)
    if has_pooler and config.pooler_act != "tanh":
        raise ValueError(f"only a pooler with tanh can be loaded for ViT, got {config.pooler_act!r}")
    return ViT(
        sizes=read_sizes(config, options),
        scale=pixel_scale(config, HALF),
        pooler=(config.pooler_output_size or config.hidden_size) if has_pooler else None,
        qkv_bias=config.qkv_bias,
        **_grids(config, image_size),
    )


def make_dinov2(config: SimpleNamespace, options: EncoderOptions, *, image_size: Size | None = None) -> ViT:
    """The DINOv2 that a parsed ``config.json`` describes; ``image_size``: height and width of the data's images.

    None: the checkpoint's size, which is 518 pixels for the published models. That makes 1369 patches; 224 pixels make
    256.

    ``options``: head, dropout, dtype.
    """
    gated, hidden = config.use_swiglu_ffn, int(config.hidden_size * config.mlp_ratio)
    # `read_sizes` needs two fields that the configuration lacks; ``transformers`` derives them in this way. A gated MLP
    # (SwiGLU) has 2/3 of the hidden width, rounded up to a multiple of 8, since it has three matrices instead of two.
    completed = SimpleNamespace(**vars(config))
    completed.intermediate_size = (hidden * 2 // 3 + 7) // 8 * 8 if gated else hidden
    completed.hidden_act = "silu" if gated else config.hidden_act
    return ViT(
        sizes=read_sizes(completed, options, gated=gated, layer_scale=float(config.layerscale_value)),
        scale=pixel_scale(config, IMAGENET),
        registers=getattr(config, "num_register_tokens", 0),
        qkv_bias=config.qkv_bias,
        **_grids(config, image_size),
    )


def _grids(config: SimpleNamespace, image_size: Size | None) -> dict:
    """The fields ``patch``, ``trained_grid`` and ``grid`` of `ViT`."""
    size, patch = image_and_patch_size(config)
    return dict(patch=patch, trained_grid=patch_grid(size, patch), grid=patch_grid(image_size or size, patch))


def rules(module: ViT) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to ViT's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """

    def layer(k, path):
        """The rules of layer ``k``, whose parameters are at ``path``."""
        return block(f"encoder.layer.{k}", path, LAYER_NAMES, no_bias=_no_bias(module))

    return [*_rules(module, layer), *dense("pooler.dense", "dense")]


def rules_dinov2(module: ViT) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to DINOv2's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    gated = module.sizes.style.gated
    names = dict(DINOV2_LAYER_NAMES)
    if gated:
        names |= {"up": "mlp.weights_in", "down": "mlp.weights_out"}

    def layer(k, path):
        """The rules of layer ``k`` at ``path``, with its layer scales."""
        name = f"encoder.layer.{k}"
        layer_rules = block(name, path, names, no_bias=_no_bias(module))
        scales = [
            Rule(f"{name}.layer_scale1.lambda1", f"{path}/attention_scale"),
            Rule(f"{name}.layer_scale2.lambda1", f"{path}/mlp_scale"),
        ]
        return scales + (_split_gated(layer_rules) if gated else layer_rules)

    return _rules(module, layer)


def _no_bias(module: ViT) -> tuple[str, ...]:
    """The attention layers that have no bias in the checkpoint, see `rules.attention`."""
    return () if module.qkv_bias else ("query", "key", "value")


def _rules(module: ViT, layer) -> list[Rule]:
    """The rules of a ViT or DINOv2; ``layer(k, path)`` gives those of layer ``k``, in which the two differ."""
    # With registers, ``transformers`` resamples the positions with antialiasing.
    # before=1: the first position is that of the class token, which is in no grid and stays as it is.
    resample = make_resampler(module.trained_grid, module.grid, before=1, antialias=module.registers > 0)
    projection, kernel = "embeddings.patch_embeddings.projection", patches(module.patch, module.patch)
    registers = [Rule("embeddings.register_tokens", "register_tokens")] if module.registers else []
    return [
        Rule("embeddings.cls_token", "class_token"),
        Rule("embeddings.position_embeddings", "positions", transform=resample),
        *registers,
        Rule(f"{projection}.weight", "patches/kernel", kernel),
        Rule(f"{projection}.bias", "patches/bias"),
        *layers(layer, module.sizes.depth, module.sizes.options.scan_layers),
        *norm("layernorm", "transformer/norm"),
    ]


def _split_gated(layer_rules: list[Rule]) -> list[Rule]:
    """The rules of a layer whose MLP is a SwiGLU. The checkpoint has one array for two parameters: its first half is
    ``up``, which goes through the activation, the second half is ``gate``."""
    rules = []
    for rule in layer_rules:
        if "/mlp/up/" not in rule.path:
            rules.append(rule)
            continue
        for half, parameter in enumerate(("up", "gate")):
            path = rule.path.replace("/mlp/up/", f"/mlp/{parameter}/")
            rules.append(rule._replace(path=path, transform=_take_half(half), invert=_refuse_to_write))
    return rules


def _take_half(index: int):
    return lambda whole: np.split(whole, 2)[index]


def _refuse_to_write(half: np.ndarray):
    raise NotImplementedError(
        "a SwiGLU cannot be written to a checkpoint: one of its arrays is two parameters here"
    )
