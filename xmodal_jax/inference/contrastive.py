"""A shared embedding space on new data: embeddings, similarities, zero-shot classes, search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import Source
from xmodal_jax.inference.inputs import collect_inputs
from xmodal_jax.inference.model import BATCH_SIZE, Classification, Task, TrainedModel
from xmodal_jax.metrics.classification import class_embeddings
from xmodal_jax.models.contrastive import MAX_SCALE, ContrastiveConfig, make_contrastive
from xmodal_jax.train.run import from_json
from xmodal_jax.types import KINDS, kind_of

PROMPTS = ("{}",)
"""The default prompt of a class: its name alone."""


class ContrastiveModel(TrainedModel):
    """A trained shared embedding space.

    ::

        model = load("runs/contrastive")
        photos = model.embed(images=["a.png", "b.png"])  # [2, dim], unit vectors
        model.similarity(photos, model.embed(texts=["a red star"]))  # [2, 1]
    """

    kind = "contrastive"
    actions = ("embed", "similarity", "classify")

    def __init__(self, task: Task):
        """See `inference.load`."""
        super().__init__(task, tuple(task.restored.metadata["modalities"]))
        config = from_json(ContrastiveConfig, self.metadata["config"]["model"])
        vocab_size = self.format.transform.vocab_size
        self._method = make_contrastive(config, self.format.modalities, vocab_size=vocab_size)

    @property
    def dim(self) -> int:
        """Number of dimensions of the embeddings."""
        modality = self.format.modalities[0]
        dtype = {"u": np.uint8, "i": np.int32}.get(KINDS[kind_of(modality)].dtypes[0], np.float32)
        shape = (1, *self.format.shapes[modality])
        batch = {modality: jax.ShapeDtypeStruct(shape, dtype), "index": jax.ShapeDtypeStruct((1,), np.int32)}
        if (mask := f"{modality}_mask") in self.format.shapes:
            batch[mask] = jax.ShapeDtypeStruct((1, *self.format.shapes[mask]), bool)
        return jax.eval_shape(self._method.predict, self.params, batch)[modality].shape[-1]

    @property
    def scale(self) -> float | None:
        """The trained inverse temperature, by which similarities are logits; None: the objective has none."""
        log_scale = self.params.get("loss", {}).get("log_scale")
        return None if log_scale is None else min(float(np.exp(log_scale)), MAX_SCALE)

    def embed(self, *, batch_size: int = BATCH_SIZE, **inputs: Any) -> np.ndarray:
        """Unit embeddings float32 ``[N, dim]`` of inputs of one modality: ``images=…``, ``texts=…``, ``audio=…``.

        Raises:
          ValueError: there are inputs of no or of several modalities, or one cannot be used.
        """
        by_modality = collect_inputs(self.format, inputs)
        if len(by_modality) != 1:
            raise ValueError(
                f"embed takes inputs of one modality ({', '.join(self.format.modalities)}), got "
                f"{', '.join(by_modality) or 'none'}"
            )
        (modality,) = by_modality
        if not len(by_modality[modality]):
            return np.zeros((0, self.dim), np.float32)
        return self.embed_source(self.read(by_modality), batch_size=batch_size)[modality]

    def embed_source(self, source: Source, *, batch_size: int = BATCH_SIZE) -> dict[str, np.ndarray]:
        """Unit embeddings ``[N, dim]`` of each modality of a data set that is in the run's format, such as one that
        `data.open_source` opened with the run's options."""
        return self.predict(self._method.predict, source, batch_size=batch_size)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine similarities float32 ``[N, M]`` of embeddings ``a [N, dim]`` and ``b [M, dim]``."""
        return np.asarray(_products(jnp.asarray(a), jnp.asarray(b)))

    def classify(
        self, classes: Sequence[str], prompts: Sequence[str] = PROMPTS, **inputs: Any
    ) -> Classification:
        """The class of each input, without training on the classes: the one whose description is the most similar.

        ::

            model.classify(["cat", "dog"], ["a photo of a {}", "a {} outdoors"], images=["a.png"]).names  # ["cat"]

        Args:
          classes: the names of the classes.
          prompts: templates with ``{}`` where the name goes; the embeddings of a class's prompts are averaged.
          inputs: inputs of one modality, as in `embed`.

        Raises:
          ValueError: there are no classes, a prompt has no ``{}``, or the run has no texts.
        """
        if not classes or isinstance(classes, str):
            raise ValueError(f"classes is a list of names, got {classes!r}")
        if isinstance(prompts, str) or not prompts or any("{}" not in prompt for prompt in prompts):
            raise ValueError(
                f"prompts is a list of texts with {{}} where the name of the class goes, got {prompts!r}"
            )
        text = self._text_modality()
        texts = [prompt.replace("{}", str(name)) for name in classes for prompt in prompts]
        text_embeddings = self.embed(**{text: texts}).reshape(len(classes), len(prompts), -1)
        scores = self.similarity(self.embed(**inputs), np.asarray(class_embeddings(text_embeddings)))
        if self.scale is not None:
            scores = np.asarray(jax.nn.softmax(self.scale * scores, axis=1))
        return Classification.from_scores(classes, scores)

    def _text_modality(self) -> str:
        """The first modality of texts."""
        for modality in self.format.modalities:
            if kind_of(modality) == "text":
                return modality
        raise ValueError(
            f"classes are described by texts, and the run has none, only {self.format.modalities}"
        )


@jax.jit
def _products(a, b):
    return jnp.matmul(a, b.T, precision="highest")
