"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DINOv2 (Oquab et al. 2024, arXiv:2304.07193), with registers
(Darcet et al. 2024, arXiv:2309.16588) or without."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.image import cut_patches, no_mask
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained.encoder import Options, PretrainedEncoder, Sizes, sizes_of
from xmodal_jax.pretrained.images import (
    HALF,
    IMAGENET,
    Scale,
    Size,
    example_image,
    grid_of,
    own_size,
    pixel_scale,
    resample,
)
from xmodal_jax.pretrained.rules import Rule, block, dense, layers, norm, patches
from xmodal_jax.types import ExampleKeys, Tokens

NAMES = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "layernorm_after",
}
DINOV2_NAMES = {**NAMES, "attention_norm": "norm1", "up": "mlp.fc1", "down": "mlp.fc2", "mlp_norm": "norm2"}
PREFIXES = ("", "vit.")
DINOV2_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
IGNORED = (r"^classifier\.", r"^decoder\.", r"^(\w+\.)?embeddings\.mask_token$")
"""Heads of classification and of masked image modeling."""


class ViT(PretrainedEncoder):
    """Pixels ``[B, H, W, 3]`` in [-1, 1] to ``[B, 1 + registers + rows * columns, D]``: pre-norm blocks over a class
    token, registers and patches, and a layer norm.

    All but the registers have learned positions, of the checkpoint's grid resampled to that of the images. ``pool``:
    the class token, in ViT followed by ``tanh`` of a linear layer.

    Raises:
      ValueError: images of another size than the encoder was made for, or a mask.
    """

    sizes: Sizes
    patch: int
    trained: Size
    """Rows and columns of patches in the checkpoint."""
    grid: Size
    """Rows and columns of patches here."""
    scale: Scale
    registers: int = 0
    pooler: int | None = None
    """Features of the linear layer of the pool; None: there is none."""
    qkv_bias: bool = True

    def setup(self):
        width, start = self.sizes.width, nn.initializers.normal(0.02)
        self.patches = nn.Dense(width, dtype=self.sizes.options.dtype)
        self.class_token = self.param("class_token", start, (1, 1, width), jnp.float32)
        length = 1 + self.grid[0] * self.grid[1]
        self.positions = self.param("positions", start, (1, length, width), jnp.float32)
        if self.registers:
            shape = (1, self.registers, width)
            self.register_tokens = self.param("register_tokens", start, shape, jnp.float32)
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        if self.sizes.options.head == "pool" and self.pooler:
            self.dense = nn.Dense(self.pooler, dtype=self.sizes.options.dtype)

    @property
    def leading(self) -> int:
        return 1 + self.registers

    def example(self) -> tuple[Array, ...]:
        return (example_image(self.grid, self.patch),)

    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch length"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        no_mask(mask)
        (height, width), (rows, columns), p = inputs.shape[1:3], self.grid, self.patch
        if (height, width) != (rows * p, columns * p):
            raise ValueError(
                f"the encoder was made for images of {rows * p} x {columns * p} pixels, got {height} x {width}"
            )
        x = standardize(inputs, *self.scale)
        x = self.patches(cut_patches(x, p))
        x = self._before(self.class_token, x) + self.positions.astype(x.dtype)
        if self.registers:
            x = jnp.concatenate([x[:, :1], self._before(self.register_tokens, x[:, 1:])], axis=1)
        self.record(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, keys=keys), None)

    def _before(self, tokens: Array, x: Array) -> Array:
        tokens = jnp.broadcast_to(tokens.astype(x.dtype), (len(x), *tokens.shape[1:]))
        return jnp.concatenate([tokens, x], axis=1)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``."""
        first = tokens.values[:, 0]
        return jnp.tanh(self.dense(first)) if self.pooler else first


def make(config: SimpleNamespace, options: Options, *, image_size: Size | None = None) -> ViT:
    """The ViT of a ``config.json`` for images of ``(height, width)``, by default those of the checkpoint."""
    if config.pooler_act != "tanh":
        raise ValueError(f"a pooler of ViT with tanh can be loaded, got {config.pooler_act!r}")
    return ViT(
        sizes=sizes_of(config, options),
        scale=pixel_scale(config, HALF),
        pooler=config.pooler_output_size or config.hidden_size,
        qkv_bias=config.qkv_bias,
        **_grids(config, image_size),
    )


def make_dinov2(config: SimpleNamespace, options: Options, *, image_size: Size | None = None) -> ViT:
    """The DINOv2 of a ``config.json`` for images of ``(height, width)``, by default those of the checkpoint: 518 of the
    published, in 1369 patches, where 224 has 256."""
    gated, hidden = config.use_swiglu_ffn, int(config.hidden_size * config.mlp_ratio)
    full = SimpleNamespace(**vars(config))
    full.intermediate_size = (hidden * 2 // 3 + 7) // 8 * 8 if gated else hidden
    full.hidden_act = "silu" if gated else config.hidden_act
    return ViT(
        sizes=sizes_of(full, options, gated=gated, layer_scale=float(config.layerscale_value)),
        scale=pixel_scale(config, IMAGENET),
        registers=getattr(config, "num_register_tokens", 0),
        qkv_bias=config.qkv_bias,
        **_grids(config, image_size),
    )


def _grids(config: SimpleNamespace, image_size: Size | None) -> dict:
    own, patch = own_size(config)
    return dict(patch=patch, trained=grid_of(own, patch), grid=grid_of(image_size or own, patch))


def rules(module: ViT) -> list[Rule]:
    """The parameters of ViT in a checkpoint."""
    layer = lambda k, ours: block(f"encoder.layer.{k}", ours, NAMES, no_bias=_no_bias(module))
    return [*_rules(module, layer), *dense("pooler.dense", "dense")]


def rules_dinov2(module: ViT) -> list[Rule]:
    """The parameters of DINOv2 in a checkpoint."""
    gated = module.sizes.style.gated
    names = {**DINOV2_NAMES, "up": "mlp.weights_in", "down": "mlp.weights_out"} if gated else DINOV2_NAMES

    def layer(k, ours):
        theirs = f"encoder.layer.{k}"
        found = block(theirs, ours, names, no_bias=_no_bias(module))
        scales = [
            Rule(f"{theirs}.layer_scale1.lambda1", f"{ours}/attention_scale"),
            Rule(f"{theirs}.layer_scale2.lambda1", f"{ours}/mlp_scale"),
        ]
        return scales + (_halved(found) if gated else found)

    return _rules(module, layer)


def _no_bias(module: ViT) -> tuple[str, ...]:
    return () if module.qkv_bias else ("query", "key", "value")


def _rules(module: ViT, layer) -> list[Rule]:
    # With registers, theirs reads positions with antialiasing.
    change = resample(module.trained, module.grid, before=1, antialias=module.registers > 0)
    projection, kernel = "embeddings.patch_embeddings.projection", patches(module.patch, module.patch)
    registers = [Rule("embeddings.register_tokens", "register_tokens")] if module.registers else []
    return [
        Rule("embeddings.cls_token", "class_token"),
        Rule("embeddings.position_embeddings", "positions", change=change),
        *registers,
        Rule(f"{projection}.weight", "patches/kernel", kernel),
        Rule(f"{projection}.bias", "patches/bias"),
        *layers(layer, module.sizes.depth, module.sizes.options.scan_layers),
        *norm("layernorm", "transformer/norm"),
    ]


def _halved(found: list[Rule]) -> list[Rule]:
    """The rules of a SwiGLU: ``weights_in`` is what goes through the activation, then what it is multiplied by."""
    rules = []
    for rule in found:
        if "/mlp/up/" not in rule.ours:
            rules.append(rule)
            continue
        for half, part in enumerate(("up", "gate")):
            ours = rule.ours.replace("/mlp/up/", f"/mlp/{part}/")
            rules.append(rule._replace(ours=ours, change=_half(half), restore=_not_written))
    return rules


def _half(index: int):
    return lambda whole: np.split(whole, 2)[index]


def _not_written(half: np.ndarray):
    raise NotImplementedError(
        "a SwiGLU cannot be written to a checkpoint: one array of theirs is two of ours"
    )
