"""Images from texts, from classes, or from noise alone: a trained GAN or flow on new data."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from xmodal_jax.core.text_files import shorten
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.inference.inputs import as_list, check_count, positions_of, warn_unknown_words
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.inference.outputs import to_picture
from xmodal_jax.models.flow import AdaptiveSampler, FlowConfig, HeunSampler, make_flow
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.preprocess.image import to_pixels
from xmodal_jax.train.run import from_json
from xmodal_jax.transfer.first_stage import first_stage_from_json


class ImageSynthesizer(TrainedModel):
    """A trained GAN that synthesizes images from texts, from classes, or from noise alone.

    ::

        load("runs/text_to_image_gan").synthesize(["a red star", "a blue ring"], seed=1)[0].save("star.png")
    """

    kind = "text_to_image_gan"
    actions = ("synthesize",)

    config_class: ClassVar[type] = GANConfig
    """The class of the run's option ``model``."""

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        config = from_json(self.config_class, metadata["config"]["model"])
        self.reads_text: bool = config.condition.name != "none" and config.condition.reads_text
        """Whether images are conditioned on texts."""
        super().__init__(run, self._input_modalities())
        class_names = metadata.get("class_names") or [str(k) for k in range(metadata["classes"])]
        by_class = config.condition.name != "none" and not self.reads_text
        self.class_names: tuple[str, ...] = tuple(class_names) if by_class else ()
        """The classes that images are conditioned on; empty where the condition is a text or there is none."""
        tokenize = self.format.transform.tokenize
        sizes = dict(shape=tuple(metadata["shape"]), classes=metadata["classes"])
        if tokenize is not None:
            sizes |= dict(vocab_size=self.format.transform.vocab_size, length=metadata.get("length", 0))
        self.method, self.noise = self._make_method(config, sizes)
        self._generate = ImageGenerator(
            self.method, tokenize, noise=self.noise, batch_size=BATCH_SIZE, few_shapes=True
        )

    method: Any
    """The method that was trained, whose ``predict`` generates."""
    noise: int
    """Dimensions of the noise."""

    def _input_modalities(self) -> tuple[str, ...]:
        """The modalities that the model takes as inputs."""
        return ("text",) if self.reads_text else ()

    def _make_method(self, config: Any, sizes: dict[str, Any]) -> tuple[Any, int]:
        """``(method, dimensions of the noise)``; ``sizes``: those of the data that the method needs."""
        without_features = dataclasses.replace(config, features=None)  # only training needs them
        first_stage = first_stage_from_json(self.metadata.get("first_stage"))
        return make_gan(without_features, **sizes, first_stage=first_stage), config.generator.noise

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
          N Pillow images. A text with words that the run does not know is named by a warning.

        Raises:
          ValueError: conditions were given to a run that takes none, or the reverse; or a class is unknown.
        """
        fields, number = self._fields(conditions, count)
        if not number:
            return []
        noise = self._check_noise(noise, number, seed)
        source = ArraySource({**fields, "index": np.arange(number)})
        pixels = self._generate(self.params, self._generate.conditions(source), noise)
        return [to_picture(x) for x in pixels]

    def _check_noise(self, noise: np.ndarray | None, number: int, seed: int) -> np.ndarray:
        """``noise`` as float32 ``[number, Z]``; None: drawn by ``seed``. Raises ValueError: it has another shape."""
        if noise is None:
            return self._generate.sample_noise(number, seed)
        noise = np.asarray(noise, np.float32)
        if noise.shape != (number, self.noise):
            raise ValueError(f"noise has the shape {noise.shape}, needed is {(number, self.noise)}")
        return noise

    @property
    def _takes_conditions(self) -> bool:
        """Whether images are synthesized from texts or classes."""
        return self.reads_text or bool(self.class_names)

    @property
    def _kind_of_conditions(self) -> str:
        """What the conditions are, for messages."""
        return "texts" if self.reads_text else f"the classes {', '.join(self.class_names)}"

    def _fields(self, conditions: Any, count: int | None) -> tuple[dict[str, np.ndarray], int]:
        """The conditions as fields of a batch, and the number of images."""
        if self._takes_conditions != (conditions is not None) or (
            self._takes_conditions and count is not None
        ):
            if self._takes_conditions:
                expected = f"{self._kind_of_conditions}: give a list of them as conditions, and no count"
            else:
                expected = "noise alone: give their number as count, and no conditions"
            raise ValueError(f"{self.path} synthesizes images from {expected}")
        if not self._takes_conditions:
            check_count("count", count, least=0)
            return {}, 1 if count is None else count
        if self.reads_text:
            texts = as_list("text", conditions)
            warn_unknown_words(texts, self.format.transform.tokenize)
            fields = self.read({"text": texts}).batch(np.arange(len(texts))) if len(texts) else {}
            return fields, len(texts)
        names = as_list("text", conditions)
        return {"label": positions_of(names, self.class_names, "class", "classes")}, len(names)


class FlowSynthesizer(ImageSynthesizer):
    """A trained flow that synthesizes images, and changes given ones.

    ::

        model = load("runs/text_to_image_flow")
        model.synthesize(["a red star"], seed=1)[0].save("star.png")
        model.edit(["photo.png"], ["a blue star"], strength=0.6)[0].save("blue.png")
    """

    kind = "text_to_image_flow"
    config_class = FlowConfig
    actions = ("synthesize", "edit", "inpaint")

    def _input_modalities(self) -> tuple[str, ...]:
        return ("text", "image") if self.reads_text else ("image",)

    def _make_method(self, config: FlowConfig, sizes: dict[str, Any]) -> tuple[Any, int]:
        self.flow = make_flow(config, **sizes)
        # Adaptive steps cannot keep what is known.
        is_adaptive = isinstance(config.sampler, AdaptiveSampler)
        fixed_steps = (
            HeunSampler(config.sampler.guidance, config.sampler.guidance_interval) if is_adaptive else None
        )
        # Functions that `predict` compiles once.
        self._edit = lambda params, batch: to_pixels(
            self.flow.edit(params, batch, batch["noise"], start=batch["start"])
        )
        self._inpaint = lambda params, batch: to_pixels(
            self.flow.inpaint(
                params, batch, batch["noise"], known=batch["known"][..., None], sampler=fixed_steps
            )
        )
        return self.flow.method, self.flow.dimensions

    def edit(
        self, images: Any, conditions: Any = None, *, strength: float = 0.5, seed: int = 0
    ) -> list[Image.Image]:
        """Changes images toward texts or classes: noise is mixed in, and the flow goes on from there.

        Args:
          images: paths, Pillow images or arrays.
          conditions: a text or class for each image, whichever the run was trained on; None: for a run without.
          strength: how much noise is mixed in: 0 changes nothing, 1 synthesizes anew.
          seed: seed of the noise.

        Returns:
          N Pillow images.

        Raises:
          ValueError: the strength is not in [0, 1], or there are not as many conditions as images.
        """
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength must lie in [0, 1], got {strength}")
        start = lambda number: {"start": np.full(number, 1.0 - strength, np.float32)}
        return self._change(self._edit, images, conditions, seed, start)

    def inpaint(self, images: Any, mask: Any, conditions: Any = None, *, seed: int = 0) -> list[Image.Image]:
        """Synthesizes a part of images anew, which fits the rest and the texts or classes.

        A run whose sampler is adaptive uses Heun's method with its default steps here.

        Args:
          images: paths, Pillow images or arrays.
          mask: bool ``[H, W]``, or one for each image ``[N, H, W]``: True where the image is synthesized. H and W are
            those of the run's images.
          conditions: a text or class for each image, whichever the run was trained on; None: for a run without.
          seed: seed of the noise.

        Returns:
          N Pillow images.

        Raises:
          ValueError: the mask has another shape, or there are not as many conditions as images.
        """
        height, width, _ = self.flow.shape
        values = np.asarray(mask)

        def known(number: int) -> dict[str, np.ndarray]:
            """The masks of what is kept, one for each image."""
            is_array = values.dtype.kind in "biuf"
            if not is_array or values.shape not in ((height, width), (number, height, width)):
                got = f"an array of the shape {values.shape}" if is_array else shorten(mask)
                raise ValueError(
                    f"mask is {got}, needed is an array of booleans of the shape {(height, width)}, or {number} of "
                    "them: True where the image is synthesized"
                )
            return {"known": np.broadcast_to(~values.astype(bool), (number, height, width))}

        return self._change(self._inpaint, images, conditions, seed, known)

    def _change(
        self, predict: Any, images: Any, conditions: Any, seed: int, further: Any
    ) -> list[Image.Image]:
        """The images after ``predict``; ``further(number)`` are further fields of a batch for this many images."""
        images = as_list("image", images)
        if self._takes_conditions != (conditions is not None):
            raise ValueError(
                f"{self.path} changes images toward {self._kind_of_conditions}: give one for each image as conditions"
                if self._takes_conditions
                else f"{self.path} was trained without texts and classes: give images and no conditions"
            )
        fields, count = self._fields(conditions, None if self._takes_conditions else len(images))
        if count != len(images):
            raise ValueError(
                f"there are {len(images)} images and {count} conditions: give one for each image"
            )
        if not count:
            return []
        inputs = self.read({"image": images}).batch(np.arange(count))
        noise = self._check_noise(None, count, seed)
        source = ArraySource(
            {**fields, **inputs, **further(count), "noise": noise, "index": np.arange(count)}
        )
        pixels = self.predict(predict, source)
        return [to_picture(x) for x in pixels]
