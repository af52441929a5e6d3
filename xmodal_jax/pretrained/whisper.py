"""The encoder of Whisper (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import Conv, apply_mask
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import TransformerStyle
from xmodal_jax.pretrained.encoder import (
    EncoderOptions,
    PretrainedEncoder,
    TransformerSizes,
    activation,
    check_processor,
)
from xmodal_jax.pretrained.rules import CONV, Rule, block, embedding, layers, norm
from xmodal_jax.types import ExampleKeys, Tokens

LAYER_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "mlp_norm": "final_layer_norm",
}
PREFIXES = ("", "encoder.", "model.encoder.")
IGNORED = (r"^(model\.)?decoder\.", r"^proj_out\.", r"^(projector|classifier)\.", r"^layer_weights$")
"""The decoder, and heads of other tasks."""
FRAMES_PER_SECOND = 100
"""Frames of `preprocess.audio.whisper_log_mel` in a second: one every 160 samples at 16 kHz."""


class Whisper(PretrainedEncoder):
    """Whisper's encoder: log-mel frames ``[B, F, mels]`` to ``[B, ceil(F / 2), D]``.

    It consists of two convolutions, the second of stride 2, position embeddings, and pre-norm blocks. The frames are
    those of `preprocess.audio.whisper_log_mel`, 100 per second, with the time axis before the mel bands.

    ``mask [B, F]`` is True on valid frames, which must be a prefix; invalid ones have no influence. None means that all
    are valid. The model then attends to silence as well, as in ``transformers``, which pads every recording to 30
    seconds and takes no mask. The position embeddings are fixed sines that come with the checkpoint; they get no
    gradient. The paper defines no pooling; ``pool`` is the mean of the valid tokens.

    Raises:
      ValueError: the frames have another number of bands, or there are more of them than positions.
    """

    sizes: TransformerSizes
    mels: int
    positions: int

    def setup(self):
        """Two convolutions over the frames (the second halves them), positions, transformer and the mean pool."""
        width, dtype = self.sizes.width, self.sizes.options.dtype
        self.first = Conv(width, (3,), padding=1, dtype=dtype)
        self.second = Conv(width, (3,), strides=2, padding=1, dtype=dtype)
        # "places" names parameters: the embeddings of positions.
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        self.mean = Pool("mean")

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, 1, self.mels)),)

    def __call__(
        self,
        inputs: Float[Array, "batch frames mels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of log-mel frames, one for every two frames, with their mask; ``mask`` is True on valid frames."""
        _, frames, mels = inputs.shape
        if mels != self.mels:
            raise ValueError(
                f"frames of {mels} bands given, the pretrained model takes {self.mels} mel bands"
            )
        if frames > 2 * self.positions:
            raise ValueError(
                f"{frames} frames ({frames / FRAMES_PER_SECOND:g} seconds) given, the pretrained model has positions "
                f"for {2 * self.positions / FRAMES_PER_SECOND:g} seconds"
            )
        # The padding is set to zero before each convolution; the first one makes it nonzero again by its bias.
        x = apply_mask(nn.gelu(self.first(apply_mask(inputs, mask)), approximate=False), mask)
        x = nn.gelu(self.second(x), approximate=False)
        # Fixed sines and cosines, which the checkpoint stores.
        position = jax.lax.stop_gradient(self.places(jnp.arange(x.shape[1])))
        x = x + position[None].astype(x.dtype)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        mask = None if mask is None else mask[:, ::2]
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The mean of the valid tokens, ``[B, D]``."""
        return self.mean(tokens)


def make(config: SimpleNamespace, options: EncoderOptions) -> Whisper:
    """The encoder that a parsed ``config.json`` of Whisper describes, without parameters.

    Raises:
      ValueError: its processor makes other frames than `preprocess.audio.whisper_log_mel`.
    """
    check_processor(config, sampling_rate=16_000, n_fft=400, hop_length=160, do_normalize=False)
    return Whisper(
        sizes=TransformerSizes(
            width=config.d_model,
            depth=config.encoder_layers,
            heads=config.encoder_attention_heads,
            hidden=config.encoder_ffn_dim,
            style=TransformerStyle(activation=activation(config.activation_function), epsilon=1e-5),
            options=options,
        ),
        mels=config.num_mel_bins,
        positions=config.max_source_positions,
    )


def rules(module: Whisper) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    sizes = module.sizes
    return [
        Rule("conv1.weight", "first/kernel", CONV),
        Rule("conv1.bias", "first/bias"),
        Rule("conv2.weight", "second/kernel", CONV),
        Rule("conv2.bias", "second/bias"),
        *embedding("embed_positions", "places"),
        *layers(
            lambda k, path: block(f"layers.{k}", path, LAYER_NAMES, no_bias=("key",)),
            sizes.depth,
            sizes.options.scan_layers,
        ),
        *norm("layer_norm", "transformer/norm"),
    ]
