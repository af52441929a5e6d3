"""Pictures drawn for whole data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.types import GAN


class Artist:
    """Pictures of what captions or labels ask for, by a GAN's ``predict``, compiled once."""

    def __init__(self, gan: GAN, tokenize: TokenizeTransform | None, *, noise: int, batch_size: int = 100):
        self._predict, self.tokenize, self.noise, self.batch_size = gan.predict, tokenize, noise, batch_size
        self._to_pixels = jax.jit(lambda x: jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8))
        self._draw = lambda params, batch: self._to_pixels(self._predict(params, batch))

    def draw_noise(self, count: int, seed: int) -> np.ndarray:
        """``[count, noise]``, standard normal."""
        return np.random.default_rng(seed).standard_normal((count, self.noise), np.float32)

    def asked(self, source: Source) -> dict[str, np.ndarray]:
        """Captions and labels of a data set, as the model takes them."""
        fields = read_fields(source, ("caption", "label"))
        if self.tokenize is not None:
            fields = dict(self.tokenize(fields))
        kept = {k: v for k, v in fields.items() if k in ("text", "text_mask", "label")}
        return {"index": np.arange(len(source), dtype=np.int32), **kept}

    def __call__(self, params: Any, asked: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """uint8 ``[N, H, W, C]``, one picture for each row of ``asked`` and ``noise``."""
        source = ArraySource({**asked, "noise": noise})
        index = lambda batch: {**batch, "index": np.arange(len(batch["noise"]), dtype=np.int32)}
        return predict_all(self._draw, params, source, batch_size=self.batch_size, transform=index)


class Studio:
    """An artist with the captions of splits."""

    def __init__(self, artist: Artist, scripts: Mapping[str, ReferenceTexts], *, seed: int):
        self.artist, self.seed = artist, seed
        self.asked = {name: artist.asked(script.source) for name, script in scripts.items()}

    def __call__(self, params: Any, split: str, more: int = 0) -> np.ndarray:
        """A picture for every caption of a split; ``more``: another one."""
        asked = self.asked[split]
        count = len(next(iter(asked.values())))
        return self.artist(params, asked, self.artist.draw_noise(count, self.seed + more))
