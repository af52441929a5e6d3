"""Tasks about Spoken Shapes' scenes: questions with answers, and spoken commands with an action and a target."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.problems import Problems
from xmodal_jax.data.questions import ACTIONS, ANSWERS, QUESTION_KINDS
from xmodal_jax.data.scenes import COLOURS, MAX_OBJECTS, SHAPES, hash_bits
from xmodal_jax.data.shapes import SpokenShapes
from xmodal_jax.data.source import RawBatch, Source, labels_of
from xmodal_jax.data.speech import Utterances, add_noise, speak_all
from xmodal_jax.data.splits import Splits, open_splits


class Questions:
    """One example per scene and question about it, a `Source`.

    The batch holds the scene's ``image`` or ``video`` (whichever ``scenes`` has), ``caption`` the question, ``label``
    int32 ``[B]`` the answer (an index into `ANSWERS`), ``kind`` int32 ``[B]`` (into `QUESTION_KINDS`) and ``scene``
    int32 ``[B]``, the scene's number. Questions of one scene stand side by side.

    Raises:
      ValueError: the scenes are neither pictures nor videos.
    """

    class_names = ANSWERS
    targets = {"label": ANSWERS}

    def __init__(self, scenes: SpokenShapes):
        seen = tuple(m for m in scenes.modalities if m in ("image", "video"))
        if not seen:
            raise ValueError(
                f"questions are about pictures or videos; the scenes have {', '.join(scenes.modalities)}"
            )
        self.scenes = dataclasses.replace(scenes, modalities=seen)
        self.modalities = ("text", *seen)
        asked = self.scenes.questions_for(np.arange(len(scenes)))
        rows = [(i, *question) for i, questions in enumerate(asked) for question in questions]
        self._scene = np.array([row[0] for row in rows], np.int32)
        self._kind = np.array([QUESTION_KINDS.index(row[1]) for row in rows], np.int32)
        self._question = np.array([row[2] for row in rows], object)
        self._label = np.array([ANSWERS.index(row[3]) for row in rows], np.int32)

    def __len__(self) -> int:
        return len(self._scene)

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        seen = self.scenes.batch(self._scene[indices])
        return {m: seen[m] for m in self.scenes.modalities} | {
            "caption": self._question[indices],
            "label": self._label[indices],
            "kind": self._kind[indices],
            "scene": self._scene[indices],
        }


class Commands:
    """One example per scene and object of it that is to be acted on, a `Source`.

    The batch holds the scene's ``image``, the command as ``audio`` int16 with ``audio_mask`` in the scene's voice,
    ``caption`` its words (for a reader: the task is to hear them), and int32 ``[B]`` each ``action`` (an index into
    `ACTIONS`), ``colour`` and ``shape`` of the target (both together only it has in its scene) and ``scene``. The
    command names its target by as little as tells it from the scene's other objects, so that the words alone seldom
    say what it is, and the picture alone never which is meant.
    """

    modalities = ("image", "audio")
    class_names = None
    targets = {"action": ACTIONS, "colour": COLOURS, "shape": SHAPES}

    def __init__(self, scenes: SpokenShapes):
        self.scenes = dataclasses.replace(scenes, modalities=("image",))
        every = np.arange(len(scenes))
        factors, given = self.scenes.factors(every), self.scenes.commands_for(every)
        rows = [(i, *command) for i, commands in enumerate(given) for command in commands]
        self._scene = np.array([row[0] for row in rows], np.int32)
        self._words = np.array([row[1] for row in rows], object)
        self._action = np.array([ACTIONS.index(row[2]) for row in rows], np.int32)
        place = (self._scene, np.array([row[3] for row in rows]))
        self._colour, self._shape = (factors[f][place].astype(np.int32) for f in ("colour", "shape"))
        self._spoken: Utterances | None = None

    def __len__(self) -> int:
        return len(self._scene)

    def __getstate__(self):
        return {**self.__dict__, "_spoken": None}  # another process opens the speech anew

    def prepare(self) -> Utterances:
        """Speaks all commands into the cache, or opens them there; done by itself at the first batch."""
        if self._spoken is None:
            voices = self.scenes.voices(np.arange(len(self.scenes)))
            self._spoken = speak_all(
                self._words.tolist(),
                [voices[i] for i in self._scene.tolist()],
                self.scenes.audio_cache,
                workers=self.scenes.workers,
                max_seconds=self.scenes.max_seconds,
            )
        return self._spoken

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        audio, mask = self.prepare().padded(indices, self.scenes.max_seconds)
        if self.scenes.noise:
            row = indices + MAX_OBJECTS * self.scenes.offset
            seeds = hash_bits(self.scenes.seed, self.scenes.split, row, "command/noise")
            add_noise(audio, mask, self.scenes.noise, seeds)
        return {
            "image": self.scenes.batch(self._scene[indices])["image"],
            "audio": audio,
            "audio_mask": mask,
            "caption": self._words[indices],
            "action": self._action[indices],
            "colour": self._colour[indices],
            "shape": self._shape[indices],
            "scene": self._scene[indices],
        }


def open_task(spec: str, options: DataOptions, problems: Problems, task: type | None = None) -> Splits:
    """The splits of ``spec``; of the embedded data set those of a ``task`` (`Questions`, `Commands`) about its scenes.

    Validation has scenes of its own, so that no picture of it is trained on.

    Raises:
      ValueError: ``task`` is `Commands` and ``spec`` another data set.
    """
    if spec != "shapes" or task is None:
        if task is Commands:
            raise ValueError(f"spoken commands are about the embedded data set: --data shapes, not {spec!r}")
        return open_splits(spec, options, problems)
    names = ["test", "compositions"] + ["voices"] * (task is Commands)
    train = open_source(spec, "train", options, problems=problems)
    validation = dataclasses.replace(train, offset=len(train), size=max(1, min(150, len(train) // 10)))
    tests = {name: task(open_source(spec, name, options, problems=problems)) for name in names}
    return Splits(task(train), task(validation), tests)


def targets_of(source: Source) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each target that ``source``'s batches hold; ``label`` alone unless it says more.

    Raises:
      ValueError: there is nothing to predict.
    """
    if hasattr(source, "targets"):
        return dict(source.targets)
    if source.class_names is not None:
        return {"label": tuple(source.class_names)}
    known = labels_of(source, ("label",)).get("label", np.array([-1]))
    if known.max() < 0:
        raise ValueError("the data set has no labels: classification needs a field label")
    return {"label": tuple(str(k) for k in range(int(known.max()) + 1))}
