"""A trained classifier by several modalities (`experiments/fusion.py`) on new data."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from PIL import Image

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import modality_fields
from xmodal_jax.evaluation.attention import AttendedInput, AttentionInputs
from xmodal_jax.inference.inputs import broadcast_inputs, collect_inputs
from xmodal_jax.inference.model import BATCH_SIZE, Classification, RestoredRun, TrainedModel
from xmodal_jax.inference.outputs import to_picture
from xmodal_jax.models.fusion import FusionConfig, make_fusion, make_token_attention
from xmodal_jax.models.towers import encoder_of, max_audio_seconds
from xmodal_jax.train.run import from_json
from xmodal_jax.types import kind_of


class FusionModel(TrainedModel):
    """A trained classifier by several modalities, of which any may be missing.

    ::

        model = load("runs/fusion")
        model.answer(image="scene.png", text=["what colour is the star?", "how many rings are there?"])
        # ["red", "two"]: one image for all questions
        model.classify(image="scene.png")["label"].scores  # [1, classes]: probabilities without any question

    A modality with a single input has it for every example, if others have several. An example lacks the modalities
    that are left out, and those whose input in a list is None.
    """

    kind = "fusion"

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        super().__init__(run, tuple(run.checkpoint.metadata["modalities"]))
        self.config = from_json(FusionConfig, self.metadata["config"]["model"])
        """Configuration of the network."""
        self.classes: dict[str, tuple[str, ...]] = {
            target: tuple(names) for target, names in self.metadata["classes"].items()
        }
        """The names of the classes of each target."""
        self.actions = ("classify", "answer") + ("attention",) * self.config.fusion.has_attention
        counts = {target: len(names) for target, names in self.classes.items()}
        vocab_size = self.format.transform.vocab_size
        self.method = make_fusion(self.config, self.format.modalities, counts, vocab_size=vocab_size)
        """The method that was trained, whose ``predict`` gives the logits of each target."""
        self._attend = make_token_attention(
            self.config, self.format.modalities, counts, vocab_size=vocab_size
        )
        for modality in self.format.modalities:
            if kind_of(modality) == "audio":
                self.format = self.format.limit_audio(max_audio_seconds(encoder_of(self.config, modality)))

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        classes = [f"  {target}: {', '.join(names)}" for target, names in self.classes.items()]
        return "\n".join([super().describe(), "classes:", *classes])

    def classify(self, *, batch_size: int = BATCH_SIZE, **inputs: Any) -> dict[str, Classification]:
        """Classifies examples: for each target, by its name, the most probable class and all probabilities.

        Args:
          batch_size: number of examples that are computed at a time.
          inputs: inputs of any of the modalities: ``image=…``, ``text=…``.

        Raises:
          ValueError: the numbers of inputs differ, an example has no modality at all, or an input cannot be used.
        """
        source = self._read(inputs)
        if source is None:
            none = {target: np.zeros((0, len(names)), np.float32) for target, names in self.classes.items()}
            return {target: Classification.from_scores(self.classes[target], x) for target, x in none.items()}
        output = self.predict(self.method.predict, source, batch_size=batch_size)
        return {
            target: Classification.from_scores(names, np.asarray(jax.nn.softmax(output.logits[target])))
            for target, names in self.classes.items()
        }

    def answer(self, **inputs: Any) -> list[str] | list[dict[str, str]]:
        """The most probable class of each example; for a run with several targets, a dict by target for each
        example."""
        names = {target: result.names for target, result in self.classify(**inputs).items()}
        if len(names) == 1:
            return next(iter(names.values()))
        return [dict(zip(names, example, strict=True)) for example in zip(*names.values(), strict=True)]

    def attention(self, **inputs: Any) -> list[dict[str, AttendedInput]]:
        """The attention of the classifier to the parts of each example: tokens of a text, patches of an image, frames
        of a sound; for each example a dict by modality.

        ::

            (example,) = model.attention(image="scene.png", text="what colour is the star?")
            overlay(*example["image"]).save("where.png")

        The content is what the model gets, such as the square part of an image. Modalities that the example lacks, or
        that the fusion has no attention to, are left out.

        Raises:
          ValueError: the fusion has no attention; or as in `classify`.
        """
        if not self.config.fusion.has_attention:
            raise ValueError(f"{self.path}: the fusion {self.config.fusion.name!r} has no attention")
        source, examples = self._read(inputs), []
        for start in range(0, 0 if source is None else len(source), BATCH_SIZE):
            raw = source.batch(np.arange(start, min(start + BATCH_SIZE, len(source))))
            part = ArraySource(raw)
            weights = self.predict(self._attend, part)
            attended = AttentionInputs(
                numeric_fields(self.prepare(raw)),
                self._clean(raw),
                self.config,
                self.format.transform.tokenizer,
            )
            present = part.presence()
            examples += [
                {m: attended.attended(m, k, w[k]) for m, w in weights.items() if present[m][k]}
                for k in range(len(part))
            ]
        return examples

    def _read(self, inputs: dict[str, Any]):
        """Wraps the inputs as a data set; None: the lists are empty."""
        by_modality = broadcast_inputs(collect_inputs(self.format, inputs))
        if not by_modality:
            raise ValueError(f"give inputs of at least one modality: {', '.join(self.format.modalities)}")
        return self.read(by_modality) if any(len(values) for values in by_modality.values()) else None

    def _clean(self, raw: dict[str, Any]) -> dict[str, Any]:
        """The raw batch with its texts cleaned as the tokenizer gets them."""
        tokenize = self.format.transform.tokenize
        if tokenize is None or tokenize.clean is None:
            return raw
        captions = [modality_fields(m)[-1] for m in self.format.modalities if kind_of(m) == "text"]
        return raw | {c: [tokenize.clean(text) for text in raw[c]] for c in captions if c in raw}


def overlay(picture: Image.Image | np.ndarray, weights: np.ndarray) -> Image.Image:
    """Darkens a picture where it gets little attention.

    Args:
      picture: a Pillow image or pixels uint8 ``[H, W, C]``, of any size.
      weights: attention ``[h, w]``, as in `AttendedInput.weights`; it is enlarged to the size of the picture.

    Raises:
      ValueError: the weights have another number of axes.
    """
    if not isinstance(picture, Image.Image):
        picture = to_picture(np.asarray(picture))
    weights = np.asarray(weights, np.float32)
    if weights.ndim != 2:
        raise ValueError(f"the attention to a picture has the shape [h, w], got {weights.shape}")
    relative = Image.fromarray(weights / max(float(weights.max()), 1e-12))
    brightness = 0.15 + 0.85 * np.asarray(relative.resize(picture.size, Image.Resampling.BILINEAR))
    rgb = np.asarray(picture.convert("RGB"), np.float32)
    return Image.fromarray(np.round(rgb * np.clip(brightness, 0.0, 1.0)[..., None]).astype(np.uint8))
