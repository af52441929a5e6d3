"""The table of encoders: a new one touches this file and its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from xmodal_jax.nets.audio import AudioTransformer
from xmodal_jax.nets.image import ConvNet, FlatMLP, PlainConvNet, ResNet, ViT
from xmodal_jax.nets.pooling import POOLS, Pool
from xmodal_jax.nets.text import TextDecoder, TextTransformer
from xmodal_jax.nets.transformer import TransformerStyle
from xmodal_jax.nets.video import FrameTransformer, StackedFrames, TubeletViT

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The size and kind of one encoder; an encoder ignores the fields that are said to belong to others.

    ``DEFAULTS[modality]`` is sized for two CPU cores.
    """

    name: str
    """Which encoder: a key of ``ENCODERS[modality]``, or "hf" for a pretrained one (``--image-encoder hf:PATH``)."""
    architecture: str | None = None
    """Of a pretrained encoder its whole configuration, as JSON; its sizes then come from there. Not for the command
    line: ``hf:PATH`` fills it in."""
    width: int = 128
    """Size of a token (for ResNets: output channels, 512 for 18 and 34, 2048 for 50 in the paper)."""
    depth: int = 2
    """Transformer blocks; for "convnet" the residual convolutions of the last stage, for "mlp" its layers."""
    heads: int = 4
    """Attention heads; must divide the width. Also of the pool "attention"."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLP over the width."""
    patch: int = 8
    """Side of a square patch of an image or video, pixels."""
    tubelet: int = 2
    """Frames in a tubelet ("tubelet" only)."""
    downsample: int = 8
    """How many log-mel frames become one token, a power of 2 (audio only)."""
    positions: str = "learned"
    """Position embedding, "learned" or "sincos" (audio is always "sincos")."""
    norm: str = "group"
    """Normalization of "convnet" (also within "stacked" and "frames") and "dcgan": "group" or "none"."""
    token_positions: bool = False
    """Adds sine-cosine positions to the tokens of "convnet" (and "stacked"), for what attends to them."""
    stem: str = "small"
    """Stem of ResNets: "small" (images up to 64 pixels) or "imagenet"."""
    epsilon: float = 1e-6
    """Of the layer norms of a transformer."""
    causal: bool = False
    """Tokens see only earlier ones (text only)."""
    dropout: float = 0.0
    """Probability of zeroing an element of the embedded input and of each residual branch."""
    drop_path: float = 0.0
    """Probability of dropping a whole residual branch of an example (stochastic depth)."""
    pool: str = "mean"
    """How tokens become one vector: "mean", "cls" or "attention"; "cls" also prepends the class token of the library's
    own encoders. "own": as a pretrained encoder was trained to."""
    dtype: str = "float32"
    """Dtype of activations and matmuls: "float32", "bfloat16" or "float16". Parameters are always float32."""
    remat: bool = False
    """Recompute each block in the backward pass, for memory."""
    scan_layers: bool = False
    """One compiled block looped over stacked parameters (transformers only), for a short compilation."""
    attention: str | None = None
    """None, "xla" or "cudnn" (NVIDIA GPU and 16-bit dtype): see ``nets.attention.attention``."""

    def __post_init__(self):
        for field in ("width", "depth", "heads", "patch", "tubelet", "downsample"):
            if getattr(self, field) < 1:
                raise ValueError(f"EncoderConfig.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"EncoderConfig.{field} must lie in [0, 1), got {getattr(self, field)}")
        for field, allowed in (
            ("pool", (*POOLS, "own")),
            ("dtype", tuple(DTYPES)),
            ("positions", ("learned", "sincos")),
            ("norm", ("group", "none")),
            ("stem", ("small", "imagenet")),
            ("attention", (None, "xla", "cudnn")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"EncoderConfig.{field} must be one of {allowed}, got {getattr(self, field)!r}"
                )
        if (self.name == "hf") != (self.architecture is not None):
            raise ValueError(
                'EncoderConfig.name "hf" and EncoderConfig.architecture belong together: give a pretrained encoder by '
                "--image-encoder hf:PATH (or --text-encoder, --audio-encoder, --video-encoder)"
            )
        if self.pool == "own" and self.architecture is None:
            raise ValueError('EncoderConfig.pool "own" is that of a pretrained encoder: give one by hf:PATH')
        if self.downsample & (self.downsample - 1):
            raise ValueError(f"EncoderConfig.downsample must be a power of 2, got {self.downsample}")


def compute_dtype(config: EncoderConfig):
    """The dtype of activations, for modules: None where it is that of parameters and inputs."""
    # None leaves float32 parameters and inputs as they are, also float64 in a user's own code.
    return None if config.dtype == "float32" else DTYPES[config.dtype]


def _transformer_options(config: EncoderConfig) -> dict:
    if config.width % config.heads:
        raise ValueError(f"heads={config.heads} must divide width={config.width}")
    return dict(
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        dropout=config.dropout,
        drop_path=config.drop_path,
        class_token=config.pool == "cls",
        dtype=compute_dtype(config),
        remat=config.remat,
        scan_layers=config.scan_layers,
        implementation=config.attention,
        style=TransformerStyle(epsilon=config.epsilon),
    )


def _conv_options(config: EncoderConfig) -> dict:
    if config.pool == "cls":
        raise ValueError(f"{config.name!r} has no class token: choose pool='mean' or 'attention'")
    if config.scan_layers:
        raise ValueError(f"the layers of {config.name!r} differ in shape: scan_layers must be False")
    return dict(
        width=config.width,
        dropout=config.dropout,
        drop_path=config.drop_path,
        dtype=compute_dtype(config),
        remat=config.remat,
    )


def _text(config: EncoderConfig, *, vocab_size: int, max_length: int) -> nn.Module:
    if config.causal and config.pool == "cls":
        raise ValueError("a causal transformer's first token sees nothing: choose pool='mean' or 'attention'")
    return TextTransformer(
        vocab_size,
        max_length,
        causal=config.causal,
        positions=config.positions,
        **_transformer_options(config),
    )


def _convnet(config: EncoderConfig) -> nn.Module:
    own = dict(depth=config.depth, norm=config.norm, token_positions=config.token_positions)
    return ConvNet(**own, **_conv_options(config))


def _plain(config: EncoderConfig) -> nn.Module:
    return PlainConvNet(norm=config.norm, **_without_options(config))


def _mlp(config: EncoderConfig) -> nn.Module:
    return FlatMLP(depth=config.depth, **_without_options(config))


def _without_options(config: EncoderConfig) -> dict:
    options = _conv_options(config)
    if options.pop("drop_path") or options.pop("remat"):
        raise ValueError(f"{config.name!r} has no residual branches: drop_path must be 0 and remat False")
    return options


def _resnet(layers: int) -> Callable[..., nn.Module]:
    return lambda config: ResNet(layers, stem=config.stem, **_conv_options(config))


def _vit(config: EncoderConfig) -> nn.Module:
    return ViT(patch=config.patch, positions=config.positions, **_transformer_options(config))


def _audio(config: EncoderConfig) -> nn.Module:
    return AudioTransformer(downsample=config.downsample, **_transformer_options(config))


def _tubelet(config: EncoderConfig) -> nn.Module:
    return TubeletViT(
        tubelet=(config.tubelet, config.patch), positions=config.positions, **_transformer_options(config)
    )


def _stacked(config: EncoderConfig) -> nn.Module:
    return StackedFrames(_convnet(config))


def _frames(config: EncoderConfig) -> nn.Module:
    image = ConvNet(width=config.width, dtype=compute_dtype(config), remat=config.remat, norm=config.norm)
    return FrameTransformer(image, positions=config.positions, **_transformer_options(config))


ENCODERS: Mapping[str, Mapping[str, Callable[..., nn.Module]]] = {
    "text": {"transformer": _text},
    "image": {
        "convnet": _convnet,
        "dcgan": _plain,
        "mlp": _mlp,
        "resnet18": _resnet(18),
        "resnet34": _resnet(34),
        "resnet50": _resnet(50),
        "vit": _vit,
    },
    "audio": {"transformer": _audio},
    "video": {"tubelet": _tubelet, "frames": _frames, "stacked": _stacked},
}
"""``ENCODERS[modality][name](config, **shape_info) -> module``."""

DEFAULTS: Mapping[str, EncoderConfig] = {
    "text": EncoderConfig("transformer"),
    "image": EncoderConfig("convnet", norm="none"),
    "audio": EncoderConfig("transformer", downsample=16),
    "video": EncoderConfig("tubelet"),
}

SHAPE_INFO: Mapping[str, tuple[str, ...]] = {
    "text": ("vocab_size", "max_length"),
    "image": (),
    "audio": (),
    "video": (),
}
"""What :func:`build_encoder` must be told of the data; all other shapes are read from the inputs at init."""


def build_encoder(modality: str, config: EncoderConfig | None = None, **shape_info: int) -> nn.Module:
    """The encoder ``module(inputs, mask=None, *, keys=None) -> Tokens``; None is the default config.

    Raises:
      ValueError: unknown modality or name, missing or unknown ``shape_info``, or fields that do not fit.
    """
    if modality not in ENCODERS:
        raise ValueError(f"modality must be one of {sorted(ENCODERS)}, got {modality!r}")
    config = DEFAULTS[modality] if config is None else config
    if config.name not in ENCODERS[modality]:
        raise ValueError(f"{modality} encoders are {sorted(ENCODERS[modality])}, got {config.name!r}")
    if set(shape_info) != set(SHAPE_INFO[modality]):
        raise ValueError(
            f"build_encoder({modality!r}) needs shape information {SHAPE_INFO[modality]}, "
            f"got {sorted(shape_info)}"
        )
    return ENCODERS[modality][config.name](config, **shape_info)


def build_decoder(
    config: EncoderConfig, *, vocab_size: int, max_length: int, cross: bool = True, text_depth: int = 0
) -> TextDecoder:
    """The text decoder of a config (of "transformer"; always causal); ``text_depth``: see `TextDecoder`.

    Raises:
      ValueError: another name, or a pool that only an encoder has.
    """
    if config.name != "transformer" or config.pool == "cls":
        raise ValueError(
            f"a decoder is a 'transformer' without a class token, got name={config.name!r}, pool={config.pool!r}"
        )
    options = _transformer_options(config)
    del options["class_token"]
    own = dict(positions=config.positions, cross=cross, text_depth=text_depth)
    return TextDecoder(vocab_size, max_length, **own, **options)


def build_pool(config: EncoderConfig) -> Pool:
    """The pool of a config: ``Tokens -> [B, width]``."""
    return Pool(config.pool, heads=config.heads, dtype=compute_dtype(config))
