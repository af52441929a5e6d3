"""Spoken Shapes: the embedded data set of scenes as images, videos, captions and speech, with factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xmodal_jax.data.shapes.commands import scene_commands
from xmodal_jax.data.shapes.drawing import scene_images, scene_videos
from xmodal_jax.data.shapes.grammar import Meaning, realise_all, scene_meanings
from xmodal_jax.data.shapes.questions import Question, scene_questions
from xmodal_jax.data.shapes.scenes import COLOURS, SHAPES, SPLITS, Factors, hash_bits, sample_factors, uniform
from xmodal_jax.data.shapes.speech import (
    ENGLISH,
    TRAIN_VOICES,
    Utterances,
    Voice,
    add_noise,
    synthesize_all,
)
from xmodal_jax.data.source import RawBatch, Source

_MODALITIES = ("text", "image", "image_sketch", "audio", "video")


@dataclass(frozen=True)
class SpokenShapes(Source):
    """Scenes of one to three shapes. Example ``i`` depends on (seed, split, i) alone.

    ::

        scenes = SpokenShapes("test", size=100, modalities=("text", "image"))
        batch = scenes.batch(np.arange(8))  # caption [8], image [8, 32, 32, 3], label [8], factors

    Splits: ``train``; ``test``, other scenes; ``compositions``, scenes that each contain a shape-colour pair of no
    other split; ``voices``, other scenes in voices of no other split.

    Raises:
      ValueError: a field outside its range.
    """

    split: str = "train"
    size: int = field(default=10_000, kw_only=True)
    """Number of examples."""
    modalities: tuple[str, ...] = field(default=("text", "image", "audio"), kw_only=True)
    """Some of text, image, image_sketch (the same scene in dark lines on white paper), audio and video. With ``video``
    the captions also tell how objects move, and ``image`` is the first frame."""
    image_size: int = field(default=32, kw_only=True)
    """Side of images and frames in pixels, 16..128."""
    frames: int = field(default=8, kw_only=True)
    """Frames of a video."""
    seed: int = field(default=0, kw_only=True)
    """Random seed of the scenes, captions and voices, 0 or more."""
    offset: int = field(default=0, kw_only=True)
    """Example ``i`` is number ``i + offset`` of the endless stream of the split."""
    audio_cache: Path | None = field(default=None, kw_only=True)
    """Folder where speech is kept, about 70 kB an example; None: ``$XMODAL_CACHE``, else ``~/.cache/xmodal_jax``."""
    max_seconds: float = field(default=4.0, kw_only=True)
    """Length of ``audio``; captions that would take longer are spoken faster."""
    noise: float = field(default=0.0, kw_only=True)
    """RMS of added white noise over RMS of the speech: 0 adds none, 0.1 is a signal-to-noise ratio of 20 dB."""
    workers: int | None = field(default=None, kw_only=True)
    """Number of processes that synthesise speech in parallel; None: one per CPU core. It does not change the audio."""
    _memo: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        """Checks the options."""
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {self.split!r}")
        if not self.modalities or not set(self.modalities) <= set(_MODALITIES):
            raise ValueError(f"modalities must be some of {', '.join(_MODALITIES)}; got {self.modalities!r}")
        if not 16 <= self.image_size <= 128:
            raise ValueError(f"image_size must lie in 16..128, got {self.image_size}")
        minima = {"size": 1, "frames": 1, "seed": 0, "offset": 0, "max_seconds": 0.5, "noise": 0}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")

    def __getstate__(self):
        # Another process opens the speech anew: mapped files must not be copied to it.
        return {**self.__dict__, "_memo": {}}

    @property
    def test_splits(self) -> tuple[str, ...]:
        return ("test", "compositions", "voices") if "audio" in self.modalities else ("test", "compositions")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes: ``label`` is the shape of a scene's only object, -1 where there are several."""
        return SHAPES

    @property
    def speaker_names(self) -> tuple[str, ...]:
        """The training voices; ``speaker`` is an index into them, and beyond them in the split ``voices``."""
        return tuple(voice.name for voice in TRAIN_VOICES)

    @property
    def class_prompts(self) -> list[list[str]]:
        """For each shape a prompt in each colour, such as "a red circle"."""
        article = lambda word: "an" if word[0] in "aeiou" else "a"
        return [[f"{article(colour)} {colour} {shape}" for colour in COLOURS] for shape in SHAPES]

    def __len__(self) -> int:
        return self.size

    def _index(self, indices) -> np.ndarray:
        """The numbers of the examples in the split's endless stream of scenes, int64 ``[B]``; IndexError outside
        0..len-1."""
        indices = np.atleast_1d(self._resolve_indices(indices))
        if indices.size and (indices.min() < 0 or indices.max() >= self.size):
            raise IndexError(f"indices must lie in 0..{self.size - 1}, got {indices.min()}..{indices.max()}")
        return indices + self.offset

    @property
    def _has_motion(self) -> bool:
        return "video" in self.modalities

    def factors(self, indices=None) -> Factors:
        """The factors of `scenes.sample_factors`, and ``voice`` int32 ``[B]``, an index into `speech.VOICES`.

        ``indices``: of the examples; None: of all.
        """
        index = self._index(indices)
        draws = uniform(self.seed, self.split, index, "voice")
        voice = ENGLISH.choose(draws, unseen=self.split == "voices")
        return sample_factors(self.seed, self.split, index) | {"voice": voice}

    def class_labels(self, indices=None) -> np.ndarray:
        """The shape of a scene's only object, int32 ``[B]``, -1 where there are several; no image is rendered."""
        factors = self.factors(indices)
        return np.where(factors["num_objects"] == 1, factors["shape"][:, 0], -1).astype(np.int32)

    def meanings(self, indices=None) -> list[Meaning]:
        return scene_meanings(self.factors(indices), motion=self._has_motion)

    def captions(self, indices=None, phrasing: int = 0) -> np.ndarray:
        """The captions of the examples, object ``[B]`` of str, in random words: others for each ``phrasing``."""
        index = self._index(indices)
        bits = hash_bits(self.seed, self.split, index, f"phrasing/{phrasing}")
        return realise_all(self.meanings(indices), bits)

    def caption(self, i: int, phrasing: int = 0) -> str:
        """One caption."""
        return self.captions([i], phrasing)[0]

    def meaning(self, i: int) -> Meaning:
        """The meaning of one caption."""
        return self.meanings([i])[0]

    def questions_for(self, indices, *, both_ways: bool = False) -> list[list[Question]]:
        """For each example a list of questions ``(kind, question, answer)``; about motion only if there is video.

        See `questions.scene_questions`, also for ``both_ways``. Answers are words of `questions.ANSWERS`. ``indices``:
        of the examples.
        """
        index = self._index(indices)
        # The foil of each scene (see `scene_questions`) is a random scene of the same split: its 62-bit number lies far
        # beyond those of the examples.
        foil_index = hash_bits(self.seed, self.split, index, "foil") >> np.uint64(2)
        foils = sample_factors(self.seed, self.split, foil_index)
        return scene_questions(
            self.factors(indices), foils, self.seed, self.split, index,
            motion=self._has_motion, both_ways=both_ways,
        )  # fmt: skip

    def questions(self, i: int) -> list[Question]:
        """The questions about one example."""
        return self.questions_for([i])[0]

    def commands_for(self, indices) -> list[list[tuple[str, str, int]]]:
        """For each example ``(command, action, target)``, one for each object; see `commands.scene_commands`."""
        return scene_commands(self.factors(indices), self.seed, self.split, self._index(indices))

    def commands(self, i: int) -> list[tuple[str, str, int]]:
        """The commands for one example."""
        return self.commands_for([i])[0]

    def voices(self, indices) -> list[Voice]:
        """The voice of each example: one of `speech.VOICES` with pitch and speed varied a little at random."""
        index = self._index(indices)
        pitch, speed = (uniform(self.seed, self.split, index, f"voice/{k}") for k in ("pitch", "rate"))
        return ENGLISH.vary(self.factors(indices)["voice"], pitch, speed)

    def prepare_speech(self) -> Utterances:
        """The speech of all examples, synthesised into the cache folder unless it is there already.

        The first batch with audio calls this, if it has not been called before. Call it before data-loading processes
        start, so that the speech is synthesised once, with a progress bar.
        """
        if "speech" not in self._memo:
            indices = np.arange(self.size)
            self._memo["speech"] = synthesize_all(
                self.captions(indices).tolist(), self.voices(indices), self.audio_cache,
                workers=self.workers, max_seconds=self.max_seconds,
            )  # fmt: skip
        return self._memo["speech"]

    def _audio(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(audio, mask)``: int16 speech with noise, padded to ``[B, max_seconds * 16000]``, and True on speech."""
        audio, mask = self.prepare_speech().padded(indices, self.max_seconds)
        if self.noise:
            seeds = hash_bits(self.seed, self.split, self._index(indices), "noise")
            add_noise(audio, mask, self.noise, seeds)
        return audio, mask

    def caption_batch(self, indices) -> RawBatch:
        """As `Source.caption_batch`; nothing is drawn or spoken."""
        return {"caption": self.captions(indices)} if "text" in self.modalities else {}

    def batch(self, indices) -> RawBatch:
        """The examples ``indices`` ``[B]``, in that order.

        Of the ``modalities``: ``caption`` object ``[B]``; ``image`` and ``image_sketch`` uint8 ``[B, S, S, 3]``;
        ``video`` uint8 ``[B, F, S, S, 3]``; ``audio`` int16 ``[B, max_seconds * 16000]`` with ``audio_mask`` and
        ``speaker`` int32 ``[B]`` (an index into `speech.VOICES`). Always: ``label`` int32 ``[B]`` and ``factors``.

        Raises:
          IndexError: outside 0..len-1.
        """
        indices = np.atleast_1d(np.asarray(indices, np.int64))
        factors = self.factors(indices)
        batch: RawBatch = {"label": self.class_labels(indices), "factors": factors}
        if "text" in self.modalities:
            batch["caption"] = self.captions(indices)
        if "video" in self.modalities:
            batch["video"] = scene_videos(factors, self.image_size, self.frames)
        if "image" in self.modalities:
            batch["image"] = (
                batch["video"][:, 0] if "video" in batch else scene_images(factors, self.image_size)
            )
        if "image_sketch" in self.modalities:
            batch["image_sketch"] = scene_images(factors, self.image_size, sketched=True)
        if "audio" in self.modalities:
            batch["audio"], batch["audio_mask"] = self._audio(indices)
            batch["speaker"] = factors["voice"]
        return batch
