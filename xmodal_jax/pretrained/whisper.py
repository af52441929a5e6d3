"""The encoder of Whisper (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import Conv, zero_behind
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import Style
from xmodal_jax.pretrained.encoder import Options, PretrainedEncoder, Sizes, activation
from xmodal_jax.pretrained.rules import CONV, Rule, block, embedding, layers, norm
from xmodal_jax.types import ExampleKeys, Tokens

NAMES = {
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
"""Of `preprocess.audio.whisper_log_mel`: a frame each 160 samples at 16 kHz."""


class Whisper(PretrainedEncoder):
    """Log-mel frames ``[B, F, mels]`` to ``[B, ceil(F / 2), D]``: two convolutions, the second of stride 2, positions,
    and pre-norm blocks.

    Frames are those of `preprocess.audio.whisper_log_mel` (16 kHz, 100 a second; time before bands). ``mask [B, F]`` is
    True on content, which must be a prefix; behind it nothing has influence. None means all: then silence is attended
    to as well, as in ``transformers``, which pads every recording to 30 seconds and takes no mask. The positions are
    fixed sines, which come with the checkpoint and get no gradient. Its makers pool nothing: ``pool`` is the mean of
    the content.

    Raises:
      ValueError: the frames have another number of bands, or there are more than positions for them.
    """

    sizes: Sizes
    mels: int
    positions: int

    def setup(self):
        width, dtype = self.sizes.width, self.sizes.options.dtype
        self.first = Conv(width, (3,), padding=1, dtype=dtype)
        self.second = Conv(width, (3,), strides=2, padding=1, dtype=dtype)
        self.places = nn.Embed(self.positions, width)
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        self.mean = Pool("mean")

    def example(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, 1, self.mels)),)

    def __call__(
        self,
        inputs: Float[Array, "batch frames mels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
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
        # As its other convolution, the second must see zeros where the content ends, and not what the first made there.
        x = zero_behind(nn.gelu(self.first(zero_behind(inputs, mask)), approximate=False), mask)
        x = nn.gelu(self.second(x), approximate=False)
        place = jax.lax.stop_gradient(self.places(jnp.arange(x.shape[1])))
        x = x + place[None].astype(x.dtype)
        self.record(x)
        x = self.dropout(x, keys)
        mask = None if mask is None else mask[:, ::2]
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """``[B, D]``: the mean of the content."""
        return self.mean(tokens)


def make(config: SimpleNamespace, options: Options) -> Whisper:
    """The encoder of a ``config.json``."""
    return Whisper(
        sizes=Sizes(
            width=config.d_model,
            depth=config.encoder_layers,
            heads=config.encoder_attention_heads,
            hidden=config.encoder_ffn_dim,
            style=Style(activation=activation(config.activation_function), epsilon=1e-5),
            options=options,
        ),
        mels=config.num_mel_bins,
        positions=config.max_source_positions,
    )


def rules(module: Whisper) -> list[Rule]:
    """Its parameters in a checkpoint."""
    sizes = module.sizes
    return [
        Rule("conv1.weight", "first/kernel", CONV),
        Rule("conv1.bias", "first/bias"),
        Rule("conv2.weight", "second/kernel", CONV),
        Rule("conv2.bias", "second/bias"),
        *embedding("embed_positions", "places"),
        *layers(
            lambda k, ours: block(f"layers.{k}", ours, NAMES, no_bias=("key",)),
            sizes.depth,
            sizes.options.scan_layers,
        ),
        *norm("layer_norm", "transformer/norm"),
    ]
