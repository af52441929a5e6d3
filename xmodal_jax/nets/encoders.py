"""The table of encoders: each is a part of a configuration (`core.parts`) that builds its module.

``ENCODERS[modality]`` is the union of the encoders of a modality. A new one touches this file and its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from xmodal_jax.core import parts
from xmodal_jax.core.checks import check_rates, check_sizes
from xmodal_jax.core.parts import FilledIn
from xmodal_jax.nets.audio import AudioTransformer
from xmodal_jax.nets.custom import as_encoder, import_object
from xmodal_jax.nets.image import ConvNet, FlatMLP, PlainConvNet, ResNet, ViT
from xmodal_jax.nets.measured import FeatureTransformer, SeriesTransformer, VectorMLP
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.r3gan import R3GANEncoder
from xmodal_jax.nets.text import TextDecoder, TextTransformer
from xmodal_jax.nets.transformer import TransformerStyle
from xmodal_jax.nets.video import FrameTransformer, StackedFrames, TubeletViT

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

RATES = ("dropout", "drop_path", "token_dropout")
"""The options of encoders and decoders that are dropout rates."""


@dataclasses.dataclass(frozen=True)
class ModuleConfig:
    """The options that all encoders and text decoders share."""

    name: ClassVar[str]
    """Name by which the command line chooses the part."""

    width: int = 128
    """Dimensions of a token."""
    dropout: float = 0.0
    """Dropout rate of the embedded input and of each residual branch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type of activations and matrix products. Parameters are always float32."""

    def __post_init__(self):
        """Checks options with a list of choices, that sizes are at least 1, and the range of dropout rates."""
        parts.check_choices(self)
        check_sizes(self)
        check_rates(self, *(name for name in RATES if hasattr(self, name)))

    @property
    def compute_dtype(self):
        """The dtype of activations, as an argument of Flax modules; None for "float32".

        With None a module computes in the dtype of its parameters and inputs: float32 here, but float64 where a user's
        own code has float64 inputs.
        """
        return None if self.dtype == "float32" else DTYPES[self.dtype]


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModuleConfig):
    """Base of the encoders that can be chosen by name. Every subclass has the field ``pool``."""

    def build(self, **shape_info: int) -> nn.Module:
        """The encoder ``module(inputs, mask=None, *, keys=None) -> Tokens``."""
        raise NotImplementedError

    @property
    def pool_heads(self) -> int:
        """Attention heads of the pool "attention"."""
        raise NotImplementedError

    @property
    def frames_per_token(self) -> int:
        """Audio frames, or frames of a video, that one token stands for."""
        return 1

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens that come before those of positions in the input: 1 with a class token, else 0.

        Not for `PretrainedEncoderConfig`, whose checkpoint decides it: see `models.towers.prefix_tokens`.
        """
        return int(self.pool == "cls")


# Transformers


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModuleConfig):
    """The options of a transformer."""

    depth: int = 2
    """Number of transformer blocks."""
    heads: int = 4
    """Number of attention heads; must divide the width."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLP of each block, as a multiple of the width."""
    epsilon: float = 1e-6
    """Constant added to the variance in layer norms."""
    drop_path: float = 0.0
    """Probability of dropping a whole residual branch of an example (stochastic depth)."""
    remat: bool = False
    """Whether to recompute each block in the backward pass, which takes less memory and more time."""
    scan_layers: bool = False
    """Whether the blocks are one compiled block in a loop over stacked parameters, which shortens the compilation."""
    attention: Literal["xla", "cudnn"] | None = None
    """Implementation of attention: "cudnn" is the flash kernel of NVIDIA GPUs, for 16-bit dtypes; "xla" is
    ``jax.nn.dot_product_attention`` on any device; None: this library's matrix products, which are fastest on a CPU."""

    def transformer_options(self) -> dict[str, Any]:
        """These options as keyword arguments of the Flax module (a `nets.transformer.SizedTransformer`).

        Raises:
          ValueError: the heads do not divide the width.
        """
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return dict(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
            drop_path=self.drop_path,
            remat=self.remat,
            scan_layers=self.scan_layers,
            dtype=self.compute_dtype,
            implementation=self.attention,
            style=TransformerStyle(epsilon=self.epsilon),
        )


@dataclasses.dataclass(frozen=True)
class TransformerEncoderConfig(TransformerConfig, EncoderConfig):
    """The options of an encoder that is a transformer."""

    pool: Literal["mean", "cls", "attention"] | None = None
    """How the tokens become one vector: by their mean, by a class token that is prepended (cls), or by attention of a
    learned query. None: by their mean, or as in its pretraining if a pretrained encoder takes this one's place."""

    def transformer_options(self) -> dict[str, Any]:
        return dict(**super().transformer_options(), class_token=self.pool == "cls")

    @property
    def pool_heads(self) -> int:
        return self.heads


@dataclasses.dataclass(frozen=True)
class TextTransformerConfig(TransformerEncoderConfig):
    """A transformer over the tokens of a text."""

    name: ClassVar[str] = "transformer"

    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding of the tokens: learned, or fixed sines and cosines (sincos)."""
    causal: bool = False
    """Whether tokens attend to earlier tokens only."""
    embedding_std: float = 0.02
    """Standard deviation of the initial word embeddings. The first block adds vectors of about 0.3 to them: at 0.02
    the words of a sentence are hardly told apart at first, at 1 they are, which takes fewer steps of training."""
    token_dropout: float = 0.0
    """Probability that a token is replaced by the unknown token in training (word dropout); for tokenizers that are
    trained on the data."""

    def build(self, *, vocab_size: int, max_length: int) -> TextTransformer:
        """The text encoder for this vocabulary and these lengths of texts.

        Raises:
          ValueError: the transformer is causal and has a class token, which would attend to itself alone.
        """
        if self.causal and self.pool == "cls":
            raise ValueError(
                "a causal transformer's first token sees nothing: choose pool='mean' or 'attention'"
            )
        return TextTransformer(
            vocab_size,
            max_length,
            causal=self.causal,
            positions=self.positions,
            embedding_std=self.embedding_std,
            token_dropout=self.token_dropout,
            **self.transformer_options(),
        )


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerEncoderConfig):
    """A vision transformer over square patches of an image."""

    name: ClassVar[str] = "vit"

    patch: int = 8
    """Side of a square patch in pixels; must divide the sides of the image."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding of the tokens: learned, or fixed sines and cosines (sincos)."""

    def build(self) -> ViT:
        return ViT(patch=self.patch, positions=self.positions, **self.transformer_options())


@dataclasses.dataclass(frozen=True)
class AudioTransformerConfig(TransformerEncoderConfig):
    """Convolutions over the frames of a spectrogram, then a transformer; its positions are sines and cosines."""

    name: ClassVar[str] = "transformer"

    downsample: int = 8
    """Number of log-mel frames that become one token, a power of 2."""

    def __post_init__(self):
        super().__post_init__()
        if self.downsample & (self.downsample - 1):
            raise ValueError(f"AudioTransformerConfig.downsample must be a power of 2, got {self.downsample}")

    def build(self) -> AudioTransformer:
        return AudioTransformer(downsample=self.downsample, **self.transformer_options())

    @property
    def frames_per_token(self) -> int:
        return self.downsample


@dataclasses.dataclass(frozen=True)
class TubeletViTConfig(TransformerEncoderConfig):
    """A transformer over blocks of frames and pixels of a video (tubelets)."""

    name: ClassVar[str] = "tubelet"

    tubelet: int = 2
    """Number of video frames in a tubelet; must divide the number of frames of the video."""
    patch: int = 8
    """Side of a tubelet in pixels; must divide the sides of the video frames."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding of the tokens: learned, or fixed sines and cosines (sincos)."""

    def build(self) -> TubeletViT:
        tubelet = (self.tubelet, self.patch)
        return TubeletViT(tubelet=tubelet, positions=self.positions, **self.transformer_options())

    @property
    def frames_per_token(self) -> int:
        return self.tubelet


@dataclasses.dataclass(frozen=True)
class FrameTransformerConfig(TransformerEncoderConfig):
    """A convolutional network on each frame of a video, then a transformer over the frames."""

    name: ClassVar[str] = "frames"

    norm: Literal["group", "none"] = "group"
    """Normalization in the convolutional network: group normalization, or none."""
    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding of the video frames: learned, or fixed sines and cosines (sincos)."""

    def build(self) -> FrameTransformer:
        image = ConvNet(width=self.width, dtype=self.compute_dtype, remat=self.remat, norm=self.norm)
        return FrameTransformer(image, positions=self.positions, **self.transformer_options())


@dataclasses.dataclass(frozen=True)
class FeatureTransformerConfig(TransformerEncoderConfig):
    """A transformer whose tokens are the features of a vector; missing values are masked tokens."""

    name: ClassVar[str] = "transformer"

    def build(self) -> FeatureTransformer:
        return FeatureTransformer(**self.transformer_options())


@dataclasses.dataclass(frozen=True)
class SeriesTransformerConfig(TransformerEncoderConfig):
    """Convolutions over the steps of a series, then a transformer; its positions are sines and cosines."""

    name: ClassVar[str] = "transformer"

    downsample: int = 4
    """Number of steps of a series that become one token, a power of 2."""

    def __post_init__(self):
        super().__post_init__()
        if self.downsample & (self.downsample - 1):
            raise ValueError(
                f"SeriesTransformerConfig.downsample must be a power of 2, got {self.downsample}"
            )

    def build(self) -> SeriesTransformer:
        return SeriesTransformer(downsample=self.downsample, **self.transformer_options())

    @property
    def frames_per_token(self) -> int:
        return self.downsample


# Networks of convolutions and dense layers


@dataclasses.dataclass(frozen=True)
class PlainEncoderConfig(EncoderConfig):
    """The options of an encoder that is not a transformer."""

    pool: Literal["mean", "attention"] | None = None
    """How the tokens become one vector: by their mean, or by attention of a learned query. None: by their mean, or as
    in its pretraining if a pretrained encoder takes this one's place."""
    heads: int = 4
    """Number of attention heads of the pool "attention"; must divide the width."""

    @property
    def pool_heads(self) -> int:
        return self.heads

    def plain_options(self) -> dict[str, Any]:
        """These options as keyword arguments of the Flax module."""
        return dict(width=self.width, dropout=self.dropout, dtype=self.compute_dtype)


@dataclasses.dataclass(frozen=True)
class ResidualEncoderConfig(PlainEncoderConfig):
    """The options of an encoder with residual blocks of convolutions."""

    drop_path: float = 0.0
    """Probability of dropping a whole residual branch of an example (stochastic depth)."""
    remat: bool = False
    """Whether to recompute each block in the backward pass, which takes less memory and more time."""

    def plain_options(self) -> dict[str, Any]:
        return dict(**super().plain_options(), drop_path=self.drop_path, remat=self.remat)


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(ResidualEncoderConfig):
    """A small residual network of convolutions, made for two CPU cores."""

    name: ClassVar[str] = "convnet"

    depth: int = 2
    """Number of residual convolutions in the last stage."""
    norm: Literal["group", "none"] = "group"
    """Normalization before each convolution: group normalization, or none."""
    token_positions: bool = False
    """Whether sine-cosine position embeddings are added to the tokens, which a model that attends to them needs."""

    def build(self) -> nn.Module:
        """The network with these options."""
        return ConvNet(
            depth=self.depth,
            norm=self.norm,
            token_positions=self.token_positions,
            **self.plain_options(),
        )


@dataclasses.dataclass(frozen=True)
class DCGANEncoderConfig(PlainEncoderConfig):
    """The discriminator of DCGAN: convolutions of stride 2."""

    name: ClassVar[str] = "dcgan"

    norm: Literal["group", "none"] = "group"
    """Normalization after each convolution but the first: group normalization, or none."""

    def build(self) -> PlainConvNet:
        return PlainConvNet(norm=self.norm, **self.plain_options())


@dataclasses.dataclass(frozen=True)
class R3GANEncoderConfig(PlainEncoderConfig):
    """The discriminator of R3GAN: residual blocks without normalization, which give one token."""

    name: ClassVar[str] = "r3gan"

    width: int = 64
    """Channels at the smallest resolutions, and dimensions of the token (768 in the paper)."""
    depth: int = 1
    """Residual blocks at each resolution (2 in the paper)."""
    group_size: int = 16
    """Channels of each group of a block's 3x3 convolution; a power of 2 is fast."""
    wide_stages: int = 2
    """Number of resolutions, the smallest (4x4 pixels) first, with the full width; each further one has half as many
    channels. In the paper 4, for images of 32 and 64 pixels all."""

    def build(self) -> R3GANEncoder:
        return R3GANEncoder(
            depth=self.depth,
            group_size=self.group_size,
            wide_stages=self.wide_stages,
            **self.plain_options(),
        )


@dataclasses.dataclass(frozen=True)
class MLPEncoderConfig(PlainEncoderConfig):
    """Dense layers on all pixels at once, which gives one token."""

    name: ClassVar[str] = "mlp"

    depth: int = 2
    """Number of dense layers."""

    def build(self) -> FlatMLP:
        return FlatMLP(depth=self.depth, **self.plain_options())


@dataclasses.dataclass(frozen=True)
class VectorMLPConfig(PlainEncoderConfig):
    """Dense layers on all features of a vector at once, which gives one token."""

    name: ClassVar[str] = "mlp"

    dropout: float = 0.2
    """Dropout rate of the output of each layer."""
    depth: int = 2
    """Number of dense layers."""
    norm: Literal["layer", "none"] = "layer"
    """Normalization before each layer but the first: layer norm, or none."""
    indicators: bool = False
    """Whether the network also gets which values are there (1) and which are missing (0). The values themselves are 0
    where they are missing, the mean of their feature."""

    def build(self) -> VectorMLP:
        return VectorMLP(
            depth=self.depth,
            norm=self.norm == "layer",
            indicators=self.indicators,
            **self.plain_options(),
        )


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ResidualEncoderConfig):
    """The options of a ResNet with group norm. Its width is the number of output channels: in the paper 512 for 18 and
    34 layers, and 2048 for 50."""

    layers: ClassVar[int]
    """Number of layers of the network: 18, 34 or 50."""

    stem: Literal["small", "imagenet"] = "small"
    """First layers: "small" keeps the resolution (images up to 64 pixels), "imagenet" divides it by 4."""

    def build(self) -> ResNet:
        return ResNet(self.layers, stem=self.stem, **self.plain_options())


@dataclasses.dataclass(frozen=True)
class ResNet18Config(ResNetConfig):
    """ResNet-18 with group norm."""

    name: ClassVar[str] = "resnet18"
    layers: ClassVar[int] = 18


@dataclasses.dataclass(frozen=True)
class ResNet34Config(ResNetConfig):
    """ResNet-34 with group norm."""

    name: ClassVar[str] = "resnet34"
    layers: ClassVar[int] = 34


@dataclasses.dataclass(frozen=True)
class ResNet50Config(ResNetConfig):
    """ResNet-50 with group norm."""

    name: ClassVar[str] = "resnet50"
    layers: ClassVar[int] = 50


@dataclasses.dataclass(frozen=True)
class StackedFramesConfig(ConvNetConfig):
    """The convolutional network "convnet" on all frames of a video at once, which are its input channels."""

    name: ClassVar[str] = "stacked"

    def build(self) -> StackedFrames:
        return StackedFrames(super().build())


# Pretrained


@dataclasses.dataclass(frozen=True)
class PretrainedEncoderConfig(EncoderConfig):
    """A pretrained encoder, whose sizes come from its checkpoint."""

    name: ClassVar[str] = "hf"
    chosen_by: ClassVar[str] = "--image-encoder hf:PATH (or --text-encoder, --audio-encoder, --video-encoder)"
    """The flags that choose this part (see `core.parts`): its name alone, without a checkpoint, is not enough."""

    # Fields of the type `FilledIn` have no flag: the program sets them when it opens the checkpoint.
    architecture: FilledIn[str | None] = None
    """Content of the checkpoint's config.json as text; None until the checkpoint is opened, which fills it in."""
    width: FilledIn[int | None] = None
    """Dimensions of a token; None until the checkpoint is opened, which fills it in."""
    depth: FilledIn[int | None] = None
    """Number of transformer blocks, filled in when the checkpoint is opened; None for networks that are no
    transformers."""
    heads: FilledIn[int | None] = None
    """Number of attention heads, filled in when the checkpoint is opened; None for networks that are no
    transformers."""
    frames_per_token: FilledIn[int] = 1
    """Number of audio or video frames that one token stands for, filled in when the checkpoint is opened."""
    max_tokens: FilledIn[int | None] = None
    """The most tokens of a text that the encoder can read, filled in when the checkpoint is opened; None for encoders
    of other modalities."""
    pool: Literal["own", "mean", "cls", "attention"] = "own"
    """How the tokens become one vector: as in the encoder's pretraining (own), by their mean, by the first token (cls),
    or by attention of a learned query."""
    drop_path: float = 0.0
    """Probability of dropping a whole residual branch of an example (stochastic depth)."""
    remat: bool = False
    """Whether to recompute each block in the backward pass, which takes less memory and more time."""
    scan_layers: bool = False
    """For transformers: whether the blocks are one compiled block in a loop over stacked parameters, which shortens the
    compilation."""
    attention: Literal["xla", "cudnn"] | None = None
    """Implementation of attention: "cudnn" is the flash kernel of NVIDIA GPUs, for 16-bit dtypes; "xla" is
    ``jax.nn.dot_product_attention`` on any device; None: this library's matrix products, which are fastest on a CPU."""

    @property
    def pool_heads(self) -> int:
        return self.heads or 4  # networks that are no transformers have no number of heads to take

    @classmethod
    def in_place_of(cls, config: ModuleConfig) -> PretrainedEncoderConfig:
        """The configuration of a pretrained encoder that replaces ``config`` and keeps the options that both have.

        Sizes, such as width and depth, come from the checkpoint and not from ``config``.

        Where ``config`` chooses no pool (None), it is "own", the pool of the encoder's pretraining.
        """
        if isinstance(config, cls):
            return config
        shared_options = ("dropout", "drop_path", "dtype", "remat", "scan_layers", "attention")
        options = {name: getattr(config, name) for name in shared_options if hasattr(config, name)}
        return cls(**options, pool=getattr(config, "pool", None) or "own")


@dataclasses.dataclass(frozen=True)
class CustomEncoderConfig(EncoderConfig):
    """An encoder of your own: a Flax module, or a pair of pure functions (see `nets.custom`)."""

    name: ClassVar[str] = "module"
    chosen_by: ClassVar[str] = "--image-encoder module:PACKAGE.MODULE:NAME (or another modality's flag)"
    """The flags that choose this part (see `core.parts`): its name alone, without a module, is not enough."""

    module: FilledIn[Any] = None
    """The module or the pair of functions ``(init, apply)``; or, as ``PACKAGE.MODULE:NAME``, where to import a module,
    its class or such a pair from."""
    width: FilledIn[int | None] = None
    """The module decides it."""
    pool: Literal["mean", "attention"] | None = None
    """How the tokens become one vector: by their mean, or by attention of a learned query. None: by their mean."""
    heads: int = 4
    """Number of attention heads of the pool "attention"; must divide the width."""

    @property
    def pool_heads(self) -> int:
        return self.heads

    def build(self, **shape_info: int) -> nn.Module:
        """The encoder; a class of modules is built with those of ``shape_info`` that it has fields for."""
        module = import_object(self.module) if isinstance(self.module, str) else self.module
        return as_encoder(module, **shape_info)

    @classmethod
    def in_place_of(cls, config: ModuleConfig) -> CustomEncoderConfig:
        """A configuration without a module yet that replaces ``config``."""
        return config if isinstance(config, cls) else cls()


ImageBackbone = (
    ConvNetConfig
    | DCGANEncoderConfig
    | MLPEncoderConfig
    | R3GANEncoderConfig
    | ResNet18Config
    | ResNet34Config
    | ResNet50Config
    | ViTConfig
)
"""The image encoders that start from random parameters."""
TextEncoder = TextTransformerConfig | PretrainedEncoderConfig | CustomEncoderConfig
ImageEncoder = ImageBackbone | PretrainedEncoderConfig | CustomEncoderConfig
AudioEncoder = AudioTransformerConfig | PretrainedEncoderConfig | CustomEncoderConfig
VideoEncoder = (
    TubeletViTConfig
    | FrameTransformerConfig
    | StackedFramesConfig
    | PretrainedEncoderConfig
    | CustomEncoderConfig
)
VectorEncoder = VectorMLPConfig | FeatureTransformerConfig | CustomEncoderConfig
SeriesEncoder = SeriesTransformerConfig | CustomEncoderConfig

ENCODERS: Mapping[str, Any] = {
    "text": TextEncoder,
    "image": ImageEncoder,
    "audio": AudioEncoder,
    "video": VideoEncoder,
    "vector": VectorEncoder,
    "series": SeriesEncoder,
}
"""The union of the encoders of each modality."""

DEFAULTS: Mapping[str, EncoderConfig] = {
    "text": TextTransformerConfig(),
    "image": ConvNetConfig(norm="none"),  # without group norm, to save time on a CPU
    "audio": AudioTransformerConfig(downsample=16),
    "video": TubeletViTConfig(),
    "vector": VectorMLPConfig(),
    "series": SeriesTransformerConfig(),
}
"""An encoder of each modality that is sized for two CPU cores."""

SHAPE_INFO: Mapping[str, tuple[str, ...]] = {"text": ("vocab_size", "max_length")}
"""The sizes of the data that `build_encoder` needs, where it needs any; all others are read from the inputs at
initialisation."""


def build_encoder(modality: str, config: EncoderConfig | None = None, **shape_info: int) -> nn.Module:
    """The Flax module of an encoder, ``module(inputs, mask=None, *, keys=None) -> Tokens``.

    ``config``: None is the default encoder of the modality. ``shape_info``: ``vocab_size`` and ``max_length`` for text;
    nothing for the other modalities.

    ::

        module = build_encoder("image", ViTConfig(patch=4))
        params = module.init(key, images)["params"]

    Raises:
      ValueError: an unknown modality, a config of another modality or of a pretrained encoder, or missing or unknown
        ``shape_info``.
    """
    if modality not in ENCODERS:
        raise ValueError(f"modality must be one of {sorted(ENCODERS)}, got {modality!r}")
    config = DEFAULTS[modality] if config is None else config
    if isinstance(config, CustomEncoderConfig):
        return config.build(**shape_info)
    table = parts.parts_of(ENCODERS[modality])  # {name: class} of the modality's encoders
    if type(config) not in table.values():
        raise ValueError(f"{modality} encoders are {sorted(table)}, got {config!r}")
    if isinstance(config, PretrainedEncoderConfig):
        # ``chosen_by``: the options of the command line that choose a pretrained encoder.
        raise ValueError(f"a pretrained encoder is built from its checkpoint: {config.chosen_by}")
    if set(shape_info) != set(SHAPE_INFO.get(modality, ())):
        raise ValueError(
            f"build_encoder({modality!r}) needs shape information {SHAPE_INFO.get(modality, ())}, "
            f"got {sorted(shape_info)}"
        )
    return config.build(**shape_info)


def build_pool(config: EncoderConfig) -> Pool:
    """The pool of an encoder, "mean" where it chooses none: ``Tokens -> [B, width]``."""
    return Pool(config.pool or "mean", heads=config.pool_heads, dtype=config.compute_dtype)


# Text decoders


@dataclasses.dataclass(frozen=True)
class TextDecoderConfig(TransformerConfig):
    """A causal transformer with cross-attention to the tokens of the source, such as an image."""

    name: ClassVar[str] = "transformer"

    positions: Literal["learned", "sincos"] = "learned"
    """Position embedding of the tokens: learned, or fixed sines and cosines (sincos)."""
    max_tokens: FilledIn[int | None] = None
    """The most tokens of a text that a pretrained decoder can write, filled in when its checkpoint is opened; None: any
    number."""


def max_text_tokens(config: Any) -> int | None:
    """The most tokens of a text that all pretrained encoders and decoders within a configuration can take; None: any
    number. ``config``: a dataclass, whose fields may be dataclasses, or any other value."""
    if not dataclasses.is_dataclass(config):
        return None
    # The limits within each field, and that of the dataclass itself if it is such an encoder or decoder.
    limits = [max_text_tokens(getattr(config, field.name)) for field in dataclasses.fields(config)]
    limits.append(getattr(config, "max_tokens", None))
    return min((limit for limit in limits if limit is not None), default=None)


def build_decoder(
    config: TextDecoderConfig, *, vocab_size: int, max_length: int, cross: bool = True, text_depth: int = 0
) -> TextDecoder:
    """The text decoder of a configuration.

    Args:
      config: its options.
      vocab_size, max_length: number of token ids, and the most tokens of a text.
      cross: whether it attends to the tokens of a source, such as an image; False: a language model.
      text_depth: number of the first layers without cross-attention, which see the text alone.
    """
    return TextDecoder(
        vocab_size,
        max_length,
        positions=config.positions,
        cross=cross,
        text_depth=text_depth,
        **config.transformer_options(),
    )
