"""Tasks about scenes of Spoken Shapes as sources: questions to answer, and spoken commands to understand."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from xmodal_jax.data.shapes.commands import ACTIONS
from xmodal_jax.data.shapes.questions import ANSWERS, QUESTION_KINDS
from xmodal_jax.data.shapes.scenes import COLOURS, MAX_OBJECTS, SHAPES, SIZES, TEXTURES, hash_bits
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import Utterances, add_noise, synthesize_all
from xmodal_jax.data.source import RawBatch, Source


class SceneTask(Source):
    """Examples about scenes, several for each scene; the examples of a scene have consecutive indices.

    A batch holds fields that the examples of a scene share (`scene_fields`) and fields in which they differ
    (`example_fields`).
    """

    target_classes: ClassVar[Mapping[str, tuple[str, ...]]]
    test_splits: ClassVar[tuple[str, ...]]
    needs_scenes: ClassVar[bool]
    """Whether no other data set can take the place of the scenes."""

    scene: np.ndarray
    """The number of each example's scene, int32 ``[N]``."""

    @classmethod
    def for_training(cls, scenes: SpokenShapes) -> SceneTask:
        """The examples that training uses."""
        return cls(scenes)

    def __len__(self) -> int:
        return len(self.scene)

    @abc.abstractmethod
    def scene_fields(self, scenes: np.ndarray) -> RawBatch:
        """The batch fields that all examples of a scene share (such as its image), for the scene numbers ``[B]``."""

    @abc.abstractmethod
    def example_fields(self, indices: np.ndarray) -> RawBatch:
        """The batch fields in which examples of a scene differ (such as a question), for ``indices`` ``[B]``."""

    def groups(self, indices: np.ndarray | None = None) -> np.ndarray:
        return self.scene[self._resolve_indices(indices)]

    def batch(self, indices: np.ndarray) -> RawBatch:
        indices = np.asarray(indices, np.int64)
        return self.scene_fields(self.scene[indices]) | self.example_fields(indices)


class GroupedByScene(Source):
    """The scenes of a task, each with all its examples, so that an image is read (and encoded) once for all of them.

    Fields that the examples of a scene share stay ``[B, ...]``; the others get a second axis, ``[B, Q, ...]``, where Q
    is the largest number of examples of one scene. Scenes with fewer examples are padded: with -1 in classes and kinds,
    ``""`` in captions, False in masks.
    """

    def __init__(self, task: SceneTask):
        """Finds the examples of each scene, which are next to each other in ``task``."""
        self.task, self.modalities, self.class_names = task, task.modalities, task.class_names
        self.target_classes, self.test_splits = task.target_classes, task.test_splits
        scenes, first_example, counts = np.unique(task.scene, return_index=True, return_counts=True)
        self._scene = scenes
        # The examples of each scene, [scene, Q], padded with -1.
        position = np.arange(counts.max())[None, :]
        self._examples = np.where(position < counts[:, None], first_example[:, None] + position, -1)

    def __len__(self) -> int:
        return len(self._scene)

    def batch(self, indices: np.ndarray) -> RawBatch:
        """The scenes ``indices``: shared fields ``[B, ...]``, the fields of their examples ``[B, Q, ...]``."""
        indices = np.asarray(indices, np.int64)
        examples = self._examples[indices]  # [B, Q], padded with -1
        fields = self.task.example_fields(np.maximum(examples, 0).ravel())
        for name, value in fields.items():
            fields[name] = value = value.reshape(*examples.shape, *value.shape[1:])
            # "" for captions; -1 for classes, which are [B, Q]; 0 for sequences and their masks, [B, Q, L].
            padding = "" if value.dtype == object else (-1 if value.ndim == 2 else 0)
            value[examples < 0] = padding
        return self.task.scene_fields(self._scene[indices]) | fields


class Questions(SceneTask):
    """Questions about scenes: one example for each question about a scene.

    A batch holds the scene's images and videos (those that ``scenes`` has, such as ``image_sketch``), the question as
    ``caption``, the answer as ``label`` int32 ``[B]`` (an index into `ANSWERS`), ``kind`` int32 ``[B]`` (into
    `QUESTION_KINDS`) and the scene's number, ``scene`` int32 ``[B]``. ``both_ways``: see `questions.scene_questions`;
    training uses it.

    Raises:
      ValueError: the scenes have neither images nor videos.
    """

    class_names = ANSWERS
    target_classes = {"label": ANSWERS}
    test_splits = ("test", "compositions")
    needs_scenes = False

    def __init__(self, scenes: SpokenShapes, *, both_ways: bool = False):
        """Generates all questions; images and videos are rendered batch by batch.

        ``both_ways``: whether to ask each question about a relation once more with the two objects exchanged.
        """
        visual = tuple(m for m in scenes.modalities if m.partition("_")[0] in ("image", "video"))
        if not visual:
            raise ValueError(
                f"questions are about pictures or videos; the scenes have {', '.join(scenes.modalities)}"
            )
        self.scenes = dataclasses.replace(scenes, modalities=visual)
        self.modalities = ("text", *visual)
        by_scene = self.scenes.questions_for(np.arange(len(scenes)), both_ways=both_ways)
        # (scene, kind, question, answer) of each example.
        examples = [(i, *question) for i, questions in enumerate(by_scene) for question in questions]
        self.scene = np.array([scene for scene, *_ in examples], np.int32)
        self._kind = np.array([QUESTION_KINDS.index(kind) for _, kind, _, _ in examples], np.int32)
        self._question = np.array([question for _, _, question, _ in examples], object)
        self._label = np.array([ANSWERS.index(answer) for *_, answer in examples], np.int32)

    @classmethod
    def for_training(cls, scenes: SpokenShapes) -> Questions:
        return cls(scenes, both_ways=True)

    def class_labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        return self._label[self._resolve_indices(indices)]

    def scene_fields(self, scenes: np.ndarray) -> RawBatch:
        batch = self.scenes.batch(scenes)
        return {m: batch[m] for m in self.scenes.modalities} | {"scene": scenes}

    def example_fields(self, indices: np.ndarray) -> RawBatch:
        """The question as ``caption``, the answer as ``label`` and the ``kind`` of question, each ``[B]``."""
        return {
            "caption": self._question[indices],
            "label": self._label[indices],
            "kind": self._kind[indices],
        }


class Commands(SceneTask):
    """Spoken commands about scenes: one example for each object of a scene, the target of its command.

    A batch holds the scene's ``image``, the command as ``audio`` int16 with ``audio_mask`` in the scene's voice, its
    words as ``caption`` (for reports: the task is to understand the speech), and int32 ``[B]`` each the ``action`` (an
    index into `ACTIONS`), the ``scene``, and the target's properties ``colour``, ``shape``, ``size`` and ``texture``.
    The command names its target by one to three of these, enough to tell it from the scene's other objects: the words
    alone never give all four properties, and the image alone never tells which object is meant.
    """

    modalities = ("image", "audio")
    target_classes = {
        "action": ACTIONS,
        "colour": COLOURS,
        "shape": SHAPES,
        "size": SIZES,
        "texture": TEXTURES,
    }
    test_splits = ("test", "compositions", "voices")
    needs_scenes = True

    def __init__(self, scenes: SpokenShapes):
        """Generates the words of all commands; images and speech follow with the batches."""
        if others := [m for m in scenes.modalities if "_" in m]:
            raise ValueError(f"commands are about the image alone: leave {others[0]!r} out of --modalities")
        self.scenes = dataclasses.replace(scenes, modalities=("image",))
        scene_numbers = np.arange(len(scenes))
        factors = self.scenes.factors(scene_numbers)
        by_scene = self.scenes.commands_for(scene_numbers)
        # (scene, words, action, number of the target object) of each example.
        examples = [(i, *command) for i, commands in enumerate(by_scene) for command in commands]
        self.scene = np.array([scene for scene, *_ in examples], np.int32)
        self._words = np.array([words for _, words, _, _ in examples], object)
        self._action = np.array([ACTIONS.index(action) for _, _, action, _ in examples], np.int32)
        target = (self.scene, np.array([number for *_, number in examples]))
        properties = [name for name in self.target_classes if name != "action"]
        self._properties = {name: factors[name][target].astype(np.int32) for name in properties}
        self._speech: Utterances | None = None

    def __getstate__(self):
        return {**self.__dict__, "_speech": None}  # another process opens the speech anew

    def prepare_speech(self) -> Utterances:
        """The speech of all commands, synthesised into the cache folder unless it is there already. The first batch
        calls this, if it has not been called before."""
        if self._speech is None:
            voices = self.scenes.voices(np.arange(len(self.scenes)))
            self._speech = synthesize_all(
                self._words.tolist(),
                [voices[i] for i in self.scene.tolist()],
                self.scenes.audio_cache,
                workers=self.scenes.workers,
                max_seconds=self.scenes.max_seconds,
            )
        return self._speech

    def scene_fields(self, scenes: np.ndarray) -> RawBatch:
        return {"image": self.scenes.batch(scenes)["image"], "scene": scenes}

    def example_fields(self, indices: np.ndarray) -> RawBatch:
        """The command as ``audio`` with ``audio_mask`` and as ``caption``; its ``action``, and its target's
        properties."""
        audio, mask = self.prepare_speech().padded(indices, self.scenes.max_seconds)
        if self.scenes.noise:
            # Shifted by the scenes' offset in their stream, so that no two sources draw the same noise.
            number = indices + MAX_OBJECTS * self.scenes.offset
            seeds = hash_bits(self.scenes.seed, self.scenes.split, number, "command/noise")
            add_noise(audio, mask, self.scenes.noise, seeds)
        return {
            "audio": audio,
            "audio_mask": mask,
            "caption": self._words[indices],
            "action": self._action[indices],
            **{name: value[indices] for name, value in self._properties.items()},
        }
