"""Images generated for whole data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.preprocess.image import to_pixels
from xmodal_jax.types import GAN, Method

CONDITION_FIELDS = ("text", "text_mask", "label")


def image_sizes(source: Source, tokenize: TokenizeTransform | None) -> dict[str, Any]:
    """The sizes of a data set that `models.gan.make_gan` needs: ``shape`` of an image, the number of ``classes``, and
    ``vocab_size`` and ``length`` of captions, where they are tokenized."""
    sizes = dict(shape=source.batch([0])["image"].shape[1:], classes=len(source.class_names or ()))
    if tokenize is not None:
        sizes |= dict(vocab_size=tokenize.tokenizer.vocab_size, length=tokenize.max_length)
    return sizes


class ImageGenerator:
    """Generates images for captions or labels by the ``predict`` of a GAN or a flow, which is compiled once.

    Example::

        generator = ImageGenerator(gan, tokenize, noise=64)
        conditions = generator.conditions(source)
        images = generator(params, conditions, generator.sample_noise(len(source), seed=0))
    """

    def __init__(
        self,
        method: GAN | Method,
        tokenize: TokenizeTransform | None,
        *,
        noise: int,
        batch_size: int = 100,
        few_shapes: bool = False,
    ):
        """``method``: its ``predict(params, batch)`` makes images in [-1, 1] from the batch's conditions and ``noise``.
        ``tokenize``: how captions become tokens; None: there are none. ``noise``: dimensions of the noise.
        ``batch_size``: images at a time. ``few_shapes``: see `predict_all`."""
        self._predict, self.tokenize, self.noise = method.predict, tokenize, noise
        self._batches = dict(batch_size=batch_size, few_shapes=few_shapes)
        self._to_pixels = jax.jit(to_pixels)
        # One function object, which `predict_all` compiles once: images in [-1, 1], then uint8.
        self._generate = lambda params, batch: self._to_pixels(self._predict(params, batch))
        first = _enlarged_first_stage(method)
        self.first_stage: ImageGenerator | None = (
            None if first is None else ImageGenerator(first, tokenize, noise=noise, **self._batches)
        )
        """Generates the images of a GAN's first stage, enlarged to the size of the second's; None: it has one stage."""

    def sample_noise(self, count: int, seed: int) -> np.ndarray:
        """Standard normal noise ``[count, noise]``."""
        return np.random.default_rng(seed).standard_normal((count, self.noise), np.float32)

    def conditions(self, source: Source) -> dict[str, np.ndarray]:
        """The tokenized captions (if there is a tokenizer) and the labels of a data set, with the examples' ``index``:
        the fields of a batch that the GAN takes."""
        fields = read_fields(source, ("caption", "label"))
        if self.tokenize is not None:
            fields = dict(self.tokenize(fields))  # adds "text" and "text_mask"
        conditions = {name: fields[name] for name in CONDITION_FIELDS if name in fields}
        return {"index": np.arange(len(source), dtype=np.int32), **conditions}

    def __call__(self, params: Any, conditions: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        """Images uint8 ``[N, H, W, C]``, one for each example of ``conditions`` and ``noise``. ``params``: what
        `types.GAN.predict` takes."""
        source = ArraySource({**conditions, "noise": noise})
        add_index = lambda batch: {**batch, "index": np.arange(len(batch["noise"]), dtype=np.int32)}
        return predict_all(self._generate, params, source, transform=add_index, **self._batches)


def _enlarged_first_stage(method: GAN | Method) -> GAN | None:
    """The first stage of a GAN as a method of its own, whose images are enlarged to those of the second by cubic
    interpolation; None: the method has one stage."""
    if not isinstance(method, GAN) or method.predict_first_stage is None:
        return None

    def predict(params: Any, batch: Any) -> jax.Array:
        shape = jax.eval_shape(method.predict, params, batch).shape
        return jax.image.resize(method.predict_first_stage(params, batch), shape, "cubic")

    return method._replace(predict=predict, predict_first_stage=None)


class SplitImageGenerator:
    """Generates an image for each of the texts of a split."""

    def __init__(self, generator: ImageGenerator, splits: Mapping[str, ReferenceTexts], *, seed: int):
        """``seed``: of the noise."""
        self.generator, self.seed = generator, seed
        self.conditions = {name: generator.conditions(split.source) for name, split in splits.items()}

    def __call__(self, params: Any, split: str, sample: int = 0) -> np.ndarray:
        """Images uint8 ``[N, H, W, C]`` for all texts of a split. Each number ``sample`` selects other noise."""
        return self._generate(self.generator, params, split, sample)

    def first_stage(self, params: Any, splits: Iterable[str]) -> dict[str, np.ndarray]:
        """The images of a GAN's first stage by split, enlarged, which the second stage turns into those that this
        object generates; empty if there is one stage."""
        first = self.generator.first_stage
        return {} if first is None else {name: self._generate(first, params, name) for name in splits}

    def _generate(self, generator: ImageGenerator, params: Any, split: str, sample: int = 0) -> np.ndarray:
        """The images that ``generator`` makes for all texts of a split."""
        conditions = self.conditions[split]
        count = len(next(iter(conditions.values())))
        noise = self.generator.sample_noise(count, self.seed + sample)
        return generator(params, conditions, noise)
