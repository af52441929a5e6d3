"""Tasks about Spoken Shapes' scenes: questions with answers, and spoken commands with an action and a target."""

from __future__ import annotations

import dataclasses

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, as_training_sees, open_source
from xmodal_jax.data.shapes.questions import ACTIONS, ANSWERS, QUESTION_KINDS
from xmodal_jax.data.shapes.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIZES, TEXTURES, hash_bits
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import Utterances, add_noise, synthesize_all
from xmodal_jax.data.source import RawBatch, Source, read_fields
from xmodal_jax.data.splits import Splits, open_splits


class _SceneTask:
    """Examples about scenes, several to each and side by side: what all tasks share.

    ``scene``: int32 ``[N]``, the scene of each example. A task says what the examples of a scene share (`of_scenes`)
    and what is each one's own (`of_examples`).
    """

    scene: np.ndarray

    @classmethod
    def to_train(cls, scenes: SpokenShapes) -> _SceneTask:
        """The task as training has it."""
        return cls(scenes)

    def __len__(self) -> int:
        return len(self.scene)

    def of_scenes(self, scenes: np.ndarray) -> RawBatch:
        raise NotImplementedError

    def of_examples(self, indices: np.ndarray) -> RawBatch:
        raise NotImplementedError

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        return self.of_scenes(self.scene[indices]) | self.of_examples(indices)


class ByScene:
    """A task's scenes, each with all its examples, a `Source`: a picture is read (and encoded) once for all of them.

    Fields that the examples share are as in the task, ``[B, ...]``; each one's own get a second axis, ``[B, Q, ...]``,
    Q being the most that a scene has. Where a scene has fewer, the rest is empty: -1 for classes and kinds, no
    caption, nothing under the masks.
    """

    def __init__(self, task: _SceneTask):
        self.task, self.modalities, self.class_names = task, task.modalities, task.class_names
        self.targets = task.targets
        numbers, first, counts = np.unique(task.scene, return_index=True, return_counts=True)
        place = np.arange(counts.max())[None, :]
        self._rows = np.where(place < counts[:, None], first[:, None] + place, -1)
        self._scene = numbers

    def __len__(self) -> int:
        return len(self._scene)

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        rows = self._rows[indices]
        own = self.task.of_examples(np.maximum(rows, 0).ravel())
        for name, value in own.items():
            own[name] = value = value.reshape(*rows.shape, *value.shape[1:])
            number = value.ndim == 2  # a class or kind of each example, as against a sequence
            value[rows < 0] = "" if value.dtype == object else -1 if number else 0
        return self.task.of_scenes(self._scene[indices]) | own


class Questions(_SceneTask):
    """One example per scene and question about it, a `Source`.

    The batch holds the scene's ``image`` or ``video`` (whichever ``scenes`` has), ``caption`` the question, ``label``
    int32 ``[B]`` the answer (an index into `ANSWERS`), ``kind`` int32 ``[B]`` (into `QUESTION_KINDS`) and ``scene``
    int32 ``[B]``, the scene's number. Questions of one scene stand side by side. ``both_ways``: relations are asked
    both ways, as training does (see `questions.scene_questions`).

    Raises:
      ValueError: the scenes are neither pictures nor videos.
    """

    class_names = ANSWERS
    targets = {"label": ANSWERS}

    def __init__(self, scenes: SpokenShapes, *, both_ways: bool = False):
        seen = tuple(m for m in scenes.modalities if m in ("image", "video"))
        if not seen:
            raise ValueError(
                f"questions are about pictures or videos; the scenes have {', '.join(scenes.modalities)}"
            )
        self.scenes = dataclasses.replace(scenes, modalities=seen)
        self.modalities = ("text", *seen)
        asked = self.scenes.questions_for(np.arange(len(scenes)), both_ways=both_ways)
        rows = [(i, *question) for i, questions in enumerate(asked) for question in questions]
        self.scene = np.array([row[0] for row in rows], np.int32)
        self._kind = np.array([QUESTION_KINDS.index(row[1]) for row in rows], np.int32)
        self._question = np.array([row[2] for row in rows], object)
        self._label = np.array([ANSWERS.index(row[3]) for row in rows], np.int32)

    @classmethod
    def to_train(cls, scenes: SpokenShapes) -> Questions:
        return cls(scenes, both_ways=True)

    def of_scenes(self, scenes: np.ndarray) -> RawBatch:
        seen = self.scenes.batch(scenes)
        return {m: seen[m] for m in self.scenes.modalities} | {"scene": scenes}

    def of_examples(self, indices: np.ndarray) -> RawBatch:
        return {
            "caption": self._question[indices],
            "label": self._label[indices],
            "kind": self._kind[indices],
        }


class Commands(_SceneTask):
    """One example per scene and object of it that is to be acted on, a `Source`.

    The batch holds the scene's ``image``, the command as ``audio`` int16 with ``audio_mask`` in the scene's voice,
    ``caption`` its words (for a reader: the task is to hear them), and int32 ``[B]`` each ``action`` (an index into
    `ACTIONS`), ``scene``, and how the target looks: ``colour``, ``shape``, ``size``, ``texture``. The command names its
    target by one to three of these, enough to tell it from the scene's other objects, so that the words alone never say
    all that it is, and the picture alone never which is meant.
    """

    modalities = ("image", "audio")
    class_names = None
    targets = {"action": ACTIONS, "colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}

    def __init__(self, scenes: SpokenShapes):
        self.scenes = dataclasses.replace(scenes, modalities=("image",))
        every = np.arange(len(scenes))
        factors, given = self.scenes.factors(every), self.scenes.commands_for(every)
        rows = [(i, *command) for i, commands in enumerate(given) for command in commands]
        self.scene = np.array([row[0] for row in rows], np.int32)
        self._words = np.array([row[1] for row in rows], object)
        self._action = np.array([ACTIONS.index(row[2]) for row in rows], np.int32)
        place = (self.scene, np.array([row[3] for row in rows]))
        self._looks = {f: factors[f][place].astype(np.int32) for f in self.targets if f != "action"}
        self._spoken: Utterances | None = None

    def __getstate__(self):
        return {**self.__dict__, "_spoken": None}  # another process opens the speech anew

    def prepare(self) -> Utterances:
        """Speaks all commands into the cache, or opens them there; done by itself at the first batch."""
        if self._spoken is None:
            voices = self.scenes.voices(np.arange(len(self.scenes)))
            self._spoken = synthesize_all(
                self._words.tolist(),
                [voices[i] for i in self.scene.tolist()],
                self.scenes.audio_cache,
                workers=self.scenes.workers,
                max_seconds=self.scenes.max_seconds,
            )
        return self._spoken

    def of_scenes(self, scenes: np.ndarray) -> RawBatch:
        return {"image": self.scenes.batch(scenes)["image"], "scene": scenes}

    def of_examples(self, indices: np.ndarray) -> RawBatch:
        audio, mask = self.prepare().padded(indices, self.scenes.max_seconds)
        if self.scenes.noise:
            row = indices + MAX_OBJECTS * self.scenes.offset
            seeds = hash_bits(self.scenes.seed, self.scenes.split, row, "command/noise")
            add_noise(audio, mask, self.scenes.noise, seeds)
        return {
            "audio": audio,
            "audio_mask": mask,
            "caption": self._words[indices],
            "action": self._action[indices],
            **{name: value[indices] for name, value in self._looks.items()},
        }


def open_task(
    spec: str, options: DataOptions, bad_examples: BadExamples, task: type[_SceneTask] | None = None
) -> Splits:
    """The splits of ``spec``; of the embedded data set those of a ``task`` (`Questions`, `Commands`) about its scenes.

    Of a task, training goes by scene (see `ByScene`), and validation has scenes of its own, so that no picture of it is
    trained on.

    Raises:
      ValueError: ``task`` is `Commands` and ``spec`` another data set.
    """
    if spec != "shapes" or task is None:
        if task is Commands:
            raise ValueError(f"spoken commands are about the embedded data set: --data shapes, not {spec!r}")
        return open_splits(spec, options, bad_examples)
    names = ["test", "compositions"] + ["voices"] * (task is Commands)
    complete = dataclasses.replace(options, missing=0.0, incomplete="keep")
    train = open_source(spec, "train", complete, bad_examples=bad_examples)
    validation = dataclasses.replace(train, offset=len(train), size=max(1, min(150, len(train) // 10)))
    tests = {name: task(open_source(spec, name, options, bad_examples=bad_examples)) for name in names}
    return Splits(as_training_sees(ByScene(task.to_train(train)), options), task(validation), tests)


def targets_of(source: Source) -> dict[str, tuple[str, ...]]:
    """The names of the classes of each target that ``source``'s batches hold; ``label`` alone unless it says more.

    Raises:
      ValueError: there is nothing to predict.
    """
    if hasattr(source, "targets"):
        return dict(source.targets)
    if source.class_names is not None:
        return {"label": tuple(source.class_names)}
    known = read_fields(source, ("label",)).get("label", np.array([-1]))
    if known.max() < 0:
        raise ValueError("the data set has no labels: classification needs a field label")
    return {"label": tuple(str(k) for k in range(int(known.max()) + 1))}
