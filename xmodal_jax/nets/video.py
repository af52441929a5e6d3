"""Encoders of video: frames ``[B, F, H, W, C]`` in [-1, 1] to tokens."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.nets.conv import apply_mask
from xmodal_jax.nets.pooling import Pool
from xmodal_jax.nets.transformer import TransformerEncoder
from xmodal_jax.types import ExampleKeys, Tokens


def cut_tubelets(
    video: Float[Array, "batch frames height width channels"],
    mask: Bool[Array, "batch frames"] | None,
    tubelet: tuple[int, int],
) -> tuple[Float[Array, "batch tokens values"], Bool[Array, "batch tokens"] | None, tuple[int, int, int]]:
    """Cuts videos into tubelets, blocks of ``t`` frames and ``p x p`` pixels.

    Args:
      video: the frames.
      mask: True on valid frames; None: all.
      tubelet: ``(t, p)``.
    Returns:
      ``(tubelets, mask, grid)``: the tubelets ``[B, N, t p p C]`` in row-major order of their grid; their mask (a
      tubelet is valid if one of its frames is); and the grid (frames, rows, columns).
    Raises:
      ValueError: the tubelet does not divide the video.
    """
    batch, frames, height, width, channels = video.shape
    t, p = tubelet
    if frames % t or height % p or width % p:
        raise ValueError(f"tubelet {t} x {p} x {p} must divide the video's {frames} x {height} x {width}")
    grid = (frames // t, height // p, width // p)
    x = video.reshape(batch, grid[0], t, grid[1], p, grid[2], p, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    x = x.reshape(batch, grid[0] * grid[1] * grid[2], t * p * p * channels)
    if mask is not None:
        valid_times = mask.reshape(batch, grid[0], t).any(axis=2)
        mask = jnp.repeat(valid_times, grid[1] * grid[2], axis=1)
    return x, mask, grid


class TubeletViT(TransformerEncoder):
    """A transformer over tubelets of ``(t, p, p)``: ``[B, F, H, W, C] -> [B, (1 +) F/t * H/p * W/p, width]``.

    ``mask [B, F]`` is True on valid frames; others are set to zero, and a tubelet is valid if one of its frames is. The
    size of the video is fixed at initialization. ViViT, Arnab et al. 2021, arXiv:2103.15691, model 1.

    Raises:
      ValueError: the tubelet does not divide the video.
    """

    tubelet: tuple[int, int] = (2, 8)

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames height width channels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of videos, one for each tubelet, after a class token if there is one, and which of them are valid.

        ``mask`` is True on valid frames. ``keys``: one per example, for dropout in training.
        """
        x, mask, grid = cut_tubelets(apply_mask(inputs, mask), mask, self.tubelet)
        x = nn.Dense(self.width, dtype=self.dtype, name="tubelets")(x)
        return self.encode(x, mask, grid, keys)  # positions, class token, transformer


class StackedFrames(nn.Module):
    """An image encoder applied to all frames at once, stacked as channels: its tokens of ``[B, H, W, F C]``.

    For short clips with little motion: it costs as much as a single image, and keeps the spatial layout. The number of
    frames is fixed at initialization. ``mask [B, F]`` is True on valid frames; others are set to zero, and a video
    without valid frames has no valid tokens. Early fusion of Karpathy et al. 2014, Large-scale Video Classification
    with Convolutional Neural Networks, section 3.1.
    """

    image_encoder: nn.Module

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames height width channels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The image encoder's tokens of images ``[B, H, W, F C]``, the frames stacked as channels.

        ``mask`` is True on valid frames; the tokens of a video without valid frames are masked.
        """
        x = apply_mask(inputs, mask).transpose(0, 2, 3, 1, 4)
        values = self.image_encoder(x.reshape(*x.shape[:3], -1), keys=keys).values
        token_mask = None if mask is None else jnp.broadcast_to(mask.any(axis=1)[:, None], values.shape[:2])
        return Tokens(values, token_mask)


class FrameTransformer(TransformerEncoder):
    """An image encoder applied to each frame and mean-pooled, then a transformer over time.

    ``[B, F, H, W, C] -> [B, (1 +) F, width]``. ``image_encoder`` is any image encoder of this package. ``mask [B, F]``
    is True on valid frames.
    """

    image_encoder: nn.Module

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames height width channels"],
        mask: Bool[Array, "batch frames"] | None = None,
        *,
        keys: ExampleKeys | None = None,
    ) -> Tokens:
        """The tokens of videos, one for each frame, after a class token if there is one, and which of them are valid.

        ``mask`` is True on valid frames. ``keys``: one per example, for dropout in training.
        """
        batch, frames = inputs.shape[:2]
        x = apply_mask(inputs, mask).reshape(batch * frames, *inputs.shape[2:])
        frame_keys = None
        if keys is not None:
            # A key for each frame of each example, [B * F]: the index of the frame folded into the example's key.
            fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
            frame_keys = jax.vmap(fold, in_axes=(0, None))(keys, jnp.arange(frames)).reshape(-1)
        x = Pool("mean", name="pool")(self.image_encoder(x, keys=frame_keys))
        x = nn.Dense(self.width, dtype=self.dtype, name="project")(x.reshape(batch, frames, -1))
        return self.encode(x, mask, grid=(frames,), keys=keys)  # positions, class token, transformer
