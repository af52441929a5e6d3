"""VideoMAE (Tong et al. 2022, arXiv:2203.12602): a ViT over tubelets of a video."""

from __future__ import annotations

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import apply_mask
from xmodal_jax.nets.dropout import Dropout
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import sincos_positions
from xmodal_jax.nets.video import cut_tubelets
from xmodal_jax.preprocess.image import standardize
from xmodal_jax.pretrained.encoder import EncoderOptions, PretrainedEncoder, TransformerSizes, read_sizes
from xmodal_jax.pretrained.images import IMAGENET, Scale, Size, image_and_patch_size, patch_grid, pixel_scale
from xmodal_jax.pretrained.rules import Rule, block, layers, norm, patches, prefixed
from xmodal_jax.pretrained.vit import LAYER_NAMES
from xmodal_jax.types import ExampleKeys, Tokens

PREFIXES = ("", "videomae.")
IGNORED = (r"^(classifier|fc_norm)\.", r"^(decoder|encoder_to_decoder)\.", r"^mask_token$")
"""Heads of classification and of masked autoencoding."""
CLASSIFIER = "VideoMAEForVideoClassification"
"""The architecture of a checkpoint that was fine-tuned for classification."""


class VideoMAE(PretrainedEncoder):
    """VideoMAE's encoder: frames ``[B, F, H, W, 3]`` in [-1, 1] to ``[B, F/t * H/p * W/p, D]``.

    It consists of pre-norm blocks over tubelets of ``t`` frames and ``p x p`` pixels, and a layer norm unless the
    checkpoint pools by the mean.

    Position embeddings are sines and cosines of a tubelet's index in the sequence, computed for as many tubelets as
    there are. So videos may have any size and length that the tubelets divide; but with another image size than the
    checkpoint's, an index stands for another row and column. ``mask [B, F]`` is True on valid frames. The other frames
    are set to zero, and a tubelet is valid if one of its frames is.

    ``pool`` is the input of the classifier in ``transformers`` (whose ``VideoMAEModel`` has no pool). If the checkpoint
    pools by the mean, it is the mean of the tokens and a layer norm, which has parameters only in the checkpoint of a
    classifier; otherwise, in checkpoints of pretraining alone, it is the first token.

    Raises:
      ValueError: the tubelet does not divide the video.
    """

    sizes: TransformerSizes
    patch: int
    tubelet: int
    scale: Scale
    mean_pool: bool
    classifier: bool
    """Whether the checkpoint is that of a classifier."""
    qv_bias: bool = True

    def setup(self):
        """The layers; the norm after the mean only if ``options.head`` asks for pooling and the checkpoint has it."""
        self.patches = nn.Dense(self.sizes.width, dtype=self.sizes.options.dtype)
        self.dropout = Dropout(self.sizes.options.dropout)
        self.transformer = self.sizes.transformer()
        self.mean = Pool("mean")
        if self.sizes.options.head == "pool" and self.mean_pool:
            has_params = self.classifier  # only a classifier's checkpoint has the norm's scale and bias
            self.fc_norm = nn.LayerNorm(epsilon=1e-5, use_scale=has_params, use_bias=has_params)

    def example_inputs(self) -> tuple[Array, ...]:
        return (jnp.zeros((1, self.tubelet, self.patch, self.patch, 3)),)

    def __call__(
        self,
        inputs: Float[Array, "batch frames height width channels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of videos, one for each tubelet, with their mask; ``mask`` is True on valid frames."""
        video = standardize(apply_mask(inputs, mask), *self.scale)
        x, mask, _ = cut_tubelets(video, mask, (self.tubelet, self.patch))
        length = x.shape[1]
        x = self.patches(x)
        # In the checkpoint's table a sine and its cosine alternate; here all sines come first.
        table = sincos_positions(length, self.sizes.width).reshape(length, 2, -1).swapaxes(1, 2)
        x = x + jnp.asarray(table.reshape(1, length, -1), x.dtype)
        self.record_hidden_state(x)
        x = self.dropout(x, keys)
        return Tokens(self.transformer(x, mask, keys=keys), mask)

    def pool(self, tokens: Tokens) -> Float[Array, "batch dim"]:
        """The normalized mean of the tokens or, without ``mean_pool``, the first token: ``[B, D]``."""
        return self.fc_norm(self.mean(tokens)) if self.mean_pool else tokens.values[:, 0]


def make(
    config: SimpleNamespace,
    options: EncoderOptions,
    *,
    image_size: Size | None = None,
    frames: int | None = None,
) -> VideoMAE:
    """The encoder that a parsed ``config.json`` describes, without parameters.

    ``image_size`` (height, width) and ``frames`` are those of the data's videos; None: the checkpoint's. The encoder
    does not depend on them, but they have to be multiples of a tubelet's size.

    Raises:
      ValueError: they are not multiples of a tubelet's size.
    """
    size, patch = image_and_patch_size(config)
    patch_grid(image_size or size, patch)  # raises an error if the patch does not divide it
    count = config.num_frames if frames is None else frames
    if count % config.tubelet_size:
        raise ValueError(
            f"the encoder's tubelets of {config.tubelet_size} frames must divide a video's, got {count}: choose "
            f"another --frames, such as {max(1, round(count / config.tubelet_size)) * config.tubelet_size}"
        )
    return VideoMAE(
        sizes=read_sizes(config, options, final_norm=not config.use_mean_pooling),
        patch=patch,
        tubelet=config.tubelet_size,
        scale=pixel_scale(config, IMAGENET),
        mean_pool=config.use_mean_pooling,
        classifier=CLASSIFIER in (config.architectures or ()),
        qv_bias=config.qv_bias,
    )


def rules(module: VideoMAE) -> list[Rule]:
    """The rules that map the arrays of a checkpoint to the encoder's parameters.

    Each names first an array (or layer) of the checkpoint, then the path of the parameter.
    """
    size = (module.tubelet, module.patch, module.patch)
    projection = "embeddings.patch_embeddings.projection"
    no_bias = ("key",) if module.qv_bias else ("query", "key", "value")

    def layer(k, path):
        """The rules of layer ``k`` at ``path``."""
        name = f"encoder.layer.{k}"
        # VideoMAE's names of the biases of queries and values, by the names that ViT has for them.
        bias_names = {
            f"{name}.{LAYER_NAMES['query']}.bias": f"{name}.attention.attention.q_bias",
            f"{name}.{LAYER_NAMES['value']}.bias": f"{name}.attention.attention.v_bias",
        }
        layer_rules = block(name, path, LAYER_NAMES, no_bias=no_bias)
        return [rule._replace(name=bias_names.get(rule.name, rule.name)) for rule in layer_rules]

    rules = [
        Rule(f"{projection}.weight", "patches/kernel", patches(*size)),
        Rule(f"{projection}.bias", "patches/bias"),
        *layers(layer, module.sizes.depth, module.sizes.options.scan_layers),
    ]
    if not module.mean_pool:
        rules += norm("layernorm", "transformer/norm")
    if module.sizes.options.head != "pool" or not module.classifier:
        return rules
    # In a classifier's checkpoint all names have the prefix "videomae." except that of the norm of the pool.
    return [*prefixed(rules, PREFIXES[1]), *(norm("fc_norm", "fc_norm") if module.mean_pool else [])]
