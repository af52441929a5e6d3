"""Images from texts, from classes, or from noise alone: a trained GAN on new data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.inference.inputs import as_list, check_count, positions_of
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.inference.outputs import to_picture
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.train.run import from_json


class ImageSynthesizer(TrainedModel):
    """A trained GAN that synthesizes images from texts, from classes, or from noise alone.

    ::

        load("runs/text_to_image_gan").synthesize(["a red star", "a blue ring"], seed=1)[0].save("star.png")
    """

    kind = "text_to_image_gan"
    actions = ("synthesize",)

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        config = from_json(GANConfig, metadata["config"]["model"])
        self.reads_text: bool = config.condition.name != "none" and config.condition.reads_text
        """Whether images are conditioned on texts."""
        super().__init__(run, ("text",) if self.reads_text else ())
        class_names = metadata.get("class_names") or [str(k) for k in range(metadata["classes"])]
        by_class = config.condition.name != "none" and not self.reads_text
        self.class_names: tuple[str, ...] = tuple(class_names) if by_class else ()
        """The classes that images are conditioned on; empty where the condition is a text or there is none."""
        tokenize = self.format.transform.tokenize
        sizes = {"vocab_size": self.format.transform.vocab_size, "length": metadata.get("length", 0)}
        self.gan = make_gan(
            dataclasses.replace(config, features=None),  # only training needs them
            shape=tuple(metadata["shape"]),
            classes=metadata["classes"],
            **(sizes if tokenize is not None else {}),
        )
        """The method that was trained, whose ``predict`` generates."""
        self.noise: int = config.generator.noise
        """Dimensions of the noise."""
        self._generate = ImageGenerator(
            self.gan, tokenize, noise=config.generator.noise, batch_size=BATCH_SIZE, few_shapes=True
        )

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        classes = f"\nclasses: {', '.join(self.class_names)}" if self.class_names else ""
        return super().describe() + classes

    def synthesize(
        self,
        conditions: Any = None,
        *,
        count: int | None = None,
        seed: int = 0,
        noise: np.ndarray | None = None,
    ) -> list[Image.Image]:
        """Synthesizes an image for each text or class, or ``count`` images from noise alone.

        Args:
          conditions: texts or names of classes, whichever the run was trained on; None: for a run without conditions.
          count: number of images of a run without conditions; None: one.
          seed: seed of the noise. The images of one call get different noise; the same seed gives the same images.
          noise: float32 ``[N, Z]`` to use instead, such as the same row for several texts; None: drawn by ``seed``.

        Returns:
          N Pillow images.

        Raises:
          ValueError: conditions were given to a run that takes none, or the reverse; or a class is unknown.
        """
        fields, number = self._fields(conditions, count)
        if not number:
            return []
        if noise is None:
            noise = self._generate.sample_noise(number, seed)
        noise = np.asarray(noise, np.float32)
        if noise.shape != (number, self._generate.noise):
            raise ValueError(f"noise has the shape {noise.shape}, needed is {(number, self._generate.noise)}")
        source = ArraySource({**fields, "index": np.arange(number)})
        pixels = self._generate(self.params, self._generate.conditions(source), noise)
        return [to_picture(x) for x in pixels]

    def _fields(self, conditions: Any, count: int | None) -> tuple[dict[str, np.ndarray], int]:
        """The conditions as fields of a batch, and the number of images."""
        takes_conditions = self.reads_text or bool(self.class_names)
        if takes_conditions != (conditions is not None) or (takes_conditions and count is not None):
            if takes_conditions:
                kind = "texts" if self.reads_text else f"the classes {', '.join(self.class_names)}"
                expected = f"{kind}: give a list of them as conditions, and no count"
            else:
                expected = "noise alone: give their number as count, and no conditions"
            raise ValueError(f"{self.path} synthesizes images from {expected}")
        if not takes_conditions:
            check_count("count", count, least=0)
            return {}, 1 if count is None else count
        if self.reads_text:
            texts = as_list("text", conditions)
            fields = self.read({"text": texts}).batch(np.arange(len(texts))) if len(texts) else {}
            return fields, len(texts)
        names = as_list("text", conditions)
        return {"label": positions_of(names, self.class_names, "class", "classes")}, len(names)
