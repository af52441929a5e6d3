"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477) and HuBERT (Hsu et al. 2021, arXiv:2106.07447)."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.nets.conv import Conv, apply_mask
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import ACTIVATIONS
from xmodal_jax.preprocess.audio import normalize_frames
from xmodal_jax.pretrained.encoder import (
    EncoderOptions,
    PretrainedEncoder,
    TransformerSizes,
    activation,
    check_processor,
    read_sizes,
)
from xmodal_jax.pretrained.rules import CONV, FLAT, Rule, block, dense, layers, norm
from xmodal_jax.types import ExampleKeys, Tokens

LAYER_NAMES = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "mlp_norm": "final_layer_norm",
}
PREFIXES = ("", "wav2vec2.", "hubert.")
IGNORED = (
    r"(^|\.)masked_spec_embed$",
    r"^lm_head\.",
    r"^quantizer\.",
    r"^project_(q|hid)\.",
    r"^(projector|classifier|tdnn)\.",
    r"^feature_extractor\.(weight|bias)$",
    r"^objective\.weight$",
    r"^layer_weights$",
)
"""Parameters of the pretraining objective, and heads of other tasks."""
SAMPLE_RATE = 16_000
"""Samples per second, as in both papers."""


class Wav2Vec2(PretrainedEncoder):
    """wav2vec 2.0 or HuBERT: a waveform ``[B, T]`` at 16 kHz to ``[B, N, D]``.

    Its parts: convolutions without padding (in the papers they make frames of 400 samples, 320 apart), a linear layer,
    a grouped convolution whose output serves as position embedding, and a transformer.

    The waveform has floating-point samples in [-1, 1]; with ``standardize`` its valid part is first brought to mean 0
    and variance 1. ``mask [B, T]`` is True on valid samples, which must be a prefix; None means all. A frame is valid
    if all its samples are. The values of invalid samples have no influence, but with ``extractor_norm="group"`` their
    number does: the statistics of that norm include the zeros of the padding, as in ``transformers``. The papers define
    no pooling; ``pool`` is the mean of the valid frames.

    Raises:
      ValueError: the waveform is shorter than one frame.
    """

    sizes: TransformerSizes
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    """Sizes of the convolutions' kernels: in samples for the first, then in frames of the previous one."""
    strides: tuple[int, ...]
    extractor_norm: Literal["group", "layer"] = "group"
    """"group" normalizes each channel over time, after the first convolution; "layer" each frame over channels, after
    every convolution."""
    extractor_bias: bool = False
    extractor_activation: str = "gelu"
    projection_norm: bool = True
    position_frames: int = 128
    """Size of the kernel of the convolution for positions, in frames."""
    position_groups: int = 16
    standardize: bool = True

    def setup(self):
        """Creates the layers in the order in which they are applied."""
        dtype, epsilon = self.sizes.options.dtype, 1e-5
        geometry = zip(self.channels, self.kernels, self.strides, strict=True)
        self.convs = [
            Conv(
                channels, (size,), strides=stride, padding="VALID", use_bias=self.extractor_bias, dtype=dtype
            )
            for channels, size, stride in geometry
        ]
        if self.extractor_norm == "group":
            # Flax's fast variance, E[x^2] - E[x]^2, loses digits if a channel's mean is large compared with its
            # standard deviation.
            self.norms = [
                nn.GroupNorm(self.channels[0], epsilon=epsilon, dtype=dtype, use_fast_variance=False)
            ]
        else:
            self.norms = [nn.LayerNorm(epsilon=epsilon, dtype=dtype) for _ in self.channels]
        if self.projection_norm:
            self.before = self.sizes.norm()  # the layer norm before the projection
        self.projection = nn.Dense(self.sizes.width, dtype=dtype)
        # A grouped convolution as one convolution per group, mapped over axis 2 of [B, N, groups, channels]: the
        # gradient of XLA's grouped convolution takes nine times as long on a CPU.
        Groups = nn.vmap(
            Conv, in_axes=2, out_axes=2, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        size = self.position_frames
        # "places" names parameters: the convolution that embeds positions.
        self.places = Groups(
            self.sizes.width // self.position_groups,
            (size,),
            padding=[(size // 2, size - 1 - size // 2)],
            dtype=dtype,
        )
        if self.sizes.style.norm == "post":
            self.norm = self.sizes.norm()
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        self.mean = Pool("mean")

    @property
    def shortest(self) -> int:
        """Number of samples in one frame, the shortest possible input."""
        # The number of inputs that one output needs, from the last convolution back to the first.
        samples = 1
        for size, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + size
        return samples

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, self.shortest)),)

    def __call__(
        self,
        inputs: Float[Array, "batch time"],
        mask: Bool[Array, "batch time"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of waveforms, one for each frame, with their mask; ``mask`` is True on valid samples."""
        if inputs.shape[1] < self.shortest:
            raise ValueError(
                f"{inputs.shape[1]} samples given, the pretrained model makes a frame of {self.shortest} "
                f"({1000 * self.shortest / SAMPLE_RATE:g} ms at {SAMPLE_RATE} Hz)"
            )
        x = inputs[:, :, None]  # one channel
        x = normalize_frames(x, mask, eps=1e-7) if self.standardize else apply_mask(x, mask)
        activate = ACTIVATIONS[self.extractor_activation]
        for k, conv in enumerate(self.convs):  # with extractor_norm="group" only the first has a norm
            x = conv(x)
            x = activate(self.norms[k](x) if k < len(self.norms) else x)
        mask = None if mask is None else self._frame_mask(mask.sum(axis=1), x.shape[1])
        x = apply_mask(self.projection(self.before(x) if self.projection_norm else x), mask)
        # The grouped convolution of the frames is their position embedding.
        groups = x.reshape(*x.shape[:2], self.position_groups, -1)
        x = x + activate(self.places(groups).reshape(x.shape))
        if self.sizes.style.norm == "post":
            x = self.norm(x)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def _frame_mask(self, lengths: Int[Array, "batch"], frames: int) -> Bool[Array, "batch frames"]:
        """True on the frames that lie completely within the first ``lengths`` samples of their waveforms."""
        # The number of outputs of each convolution without padding.
        for size, stride in zip(self.kernels, self.strides, strict=True):
            lengths = (lengths - size) // stride + 1
        return jnp.arange(frames)[None] < lengths[:, None]

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The mean of the valid frames, ``[B, D]``."""
        return self.mean(tokens)


def make(config: SimpleNamespace, options: EncoderOptions) -> Wav2Vec2:
    """The encoder that a parsed ``config.json`` describes, without parameters.

    Raises:
      ValueError: the configuration asks for a part that this encoder does not have.
    """
    unsupported = {
        "conv_pos_batch_norm": "a batch norm before the convolution for positions",
        "add_adapter": "an adapter behind the encoder",
        "adapter_attn_dim": "adapters in the attention's layers",
    }
    for field, part in unsupported.items():
        if getattr(config, field, None):
            raise ValueError(f"config.json asks for {part} ({field}), which cannot be loaded")
    if config.feat_extract_norm not in ("group", "layer"):
        raise ValueError(
            f"config.json has feat_extract_norm {config.feat_extract_norm!r}: neither 'group' nor 'layer'"
        )
    check_processor(config, sampling_rate=16_000)
    processor = getattr(config, "processor", SimpleNamespace())
    return Wav2Vec2(
        sizes=read_sizes(config, options, norm="pre" if config.do_stable_layer_norm else "post"),
        channels=tuple(config.conv_dim),
        kernels=tuple(config.conv_kernel),
        strides=tuple(config.conv_stride),
        extractor_norm=config.feat_extract_norm,
        extractor_bias=config.conv_bias,
        extractor_activation=activation(config.feat_extract_activation),
        projection_norm=getattr(config, "feat_proj_layer_norm", True),
        position_frames=config.num_conv_pos_embeddings,
        position_groups=config.num_conv_pos_embedding_groups,
        standardize=getattr(processor, "do_normalize", True),
    )


def rules(module: Wav2Vec2) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    sizes = module.sizes
    extractor = []
    for k in range(len(module.channels)):
        name = f"feature_extractor.conv_layers.{k}"
        extractor.append(Rule(f"{name}.conv.weight", f"convs_{k}/kernel", CONV))
        if module.extractor_bias:
            extractor.append(Rule(f"{name}.conv.bias", f"convs_{k}/bias"))
        if k == 0 or module.extractor_norm == "layer":
            extractor += norm(f"{name}.layer_norm", f"norms_{k}")
    if module.projection_norm:
        extractor += norm("feature_projection.layer_norm", "before")
    # The weight of the convolution for positions is stored as a magnitude and a direction (weight normalization).
    position = "encoder.pos_conv_embed.conv"
    return [
        *extractor,
        *dense("feature_projection.projection", "projection"),
        Rule(
            (
                f"{position}.parametrizations.weight.original0",
                f"{position}.parametrizations.weight.original1",
            ),
            "places/kernel",
            transform=functools.partial(apply_weight_norm, groups=module.position_groups),
            invert=split_weight_norm,
        ),
        Rule(f"{position}.bias", "places/bias", FLAT),
        *layers(
            lambda k, path: block(f"encoder.layers.{k}", path, LAYER_NAMES),
            sizes.depth,
            sizes.options.scan_layers,
        ),
        *norm("encoder.layer_norm", "norm" if sizes.style.norm == "post" else "transformer/norm"),
    ]


def apply_weight_norm(magnitude: np.ndarray, direction: np.ndarray, *, groups: int) -> np.ndarray:
    """The kernel of a grouped convolution with weight normalization (Salimans and Kingma 2016, arXiv:1602.07868).

    Args:
      magnitude: ``[1, 1, K]``, the norm of each tap.
      direction: ``[groups * out, in, K]``, the taps before they get this norm.
      groups: number of groups.
    Returns:
      ``[groups, K, in, out]``.
    """
    magnitude, direction = magnitude.astype(np.float32), direction.astype(np.float32)
    # w = g v / |v|, with a norm for each tap.
    kernel = direction * (magnitude / np.linalg.norm(direction, axis=(0, 1), keepdims=True))
    return kernel.reshape(groups, -1, *kernel.shape[1:]).transpose(0, 3, 2, 1)


def split_weight_norm(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(magnitude, direction)`` from which `apply_weight_norm` makes this kernel, ``[groups, K, in, out]``."""
    transposed = kernel.transpose(0, 3, 2, 1)
    direction = transposed.reshape(-1, *transposed.shape[2:])
    return np.linalg.norm(direction, axis=(0, 1), keepdims=True), direction
