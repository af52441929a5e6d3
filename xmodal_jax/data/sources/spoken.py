"""``--data spoken:FILE``: the lines of a text file in synthetic voices, for words with few recordings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from xmodal_jax.core.text_files import normalise, read_lines
from xmodal_jax.data.shapes.scenes import uniform
from xmodal_jax.data.shapes.speech import (
    Utterances,
    Voice,
    synthesize_all,
    voices_of,
)
from xmodal_jax.data.source import RawBatch, Source

SPLITS = ("train", "test", "voices")
_MODALITIES = ("text", "audio")


class SpokenLines(Source):
    """Texts with synthetic speech: the lines of a text file (UTF-8), without blank and repeated ones.

    Splits: ``train``; ``test``, lines that training does not have; ``voices``, the test lines in voices that training
    does not have. A tenth of the lines are test lines, chosen by a hash of the line, so that a line keeps its split
    when the file grows. Examples take the lines in the order of their hashes, which is as good as random, and begin
    again after the last line, in other voices. Example ``i`` depends on the file and (seed, split, i) alone.

    Args:
      path: the text file.
      split: one of `SPLITS`.
      size: number of examples; None: one for each line.
      modalities: some of text and audio; None: both.
      max_seconds: length of ``audio``; lines that would take longer are spoken faster.
      seed: random seed of the voices.
      voice_language: language that the lines are spoken in, by its name in eSpeak NG, see `speech.voices_of`.
      audio_cache: folder where speech is kept; None: `speech.default_cache_dir`.
      workers: number of processes that synthesise speech in parallel; None: one per CPU core. It does not change the
        audio.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not UTF-8; too few lines; or another split or modality.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        size: int | None = None,
        modalities: tuple[str, ...] | None = None,
        max_seconds: float = 4.0,
        seed: int = 0,
        voice_language: str = "en",
        audio_cache: Path | None = None,
        workers: int | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        unknown = [m for m in modalities or () if m not in _MODALITIES]
        if unknown:
            raise ValueError(f"spoken lines have text and audio, no {unknown[0]}: leave it out of modalities")
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: --data spoken:FILE needs a text file, a line for each text"
            )
        stripped = {normalise(line.strip()) for line in read_lines(path)}
        lines = stripped - {""}
        # One line in ten, by its hash, is for the test splits.
        in_split = [line for line in lines if (_hash(line) % 10 == 0) == (split != "train")]
        self.lines = sorted(in_split, key=_hash)
        if not self.lines:
            raise ValueError(
                f"{path} has {len(lines)} lines, none of which is for {split} (one in ten is for test): add more"
            )
        self.split, self.size, self.seed = split, size or len(self.lines), seed
        self.modalities = tuple(modalities or _MODALITIES)
        self.max_seconds, self._cache, self._workers = max_seconds, audio_cache, workers
        self._voices = voices_of(voice_language)
        self._speech: Utterances | None = None

    def __getstate__(self):
        # Another process opens the speech anew: mapped files must not be copied to it.
        return {**self.__dict__, "_speech": None}

    @property
    def test_splits(self) -> tuple[str, ...]:
        return ("test", "voices") if "audio" in self.modalities else ("test",)

    @property
    def speaker_names(self) -> tuple[str, ...]:
        """The training voices; ``speaker`` is an index into them, and beyond them in the split ``voices``."""
        return tuple(voice.name for voice in self._voices.train)

    def __len__(self) -> int:
        return self.size

    def _texts(self, indices: np.ndarray) -> list[str]:
        return [self.lines[i % len(self.lines)] for i in indices.tolist()]

    def _speakers(self, indices: np.ndarray) -> np.ndarray:
        draws = uniform(self.seed, self.split, indices, "line/voice")
        return self._voices.choose(draws, unseen=self.split == "voices")

    def voices(self, indices: np.ndarray) -> list[Voice]:
        """The voice of each example: its speaker's voice with pitch and speed varied a little at random."""
        pitch, speed = (uniform(self.seed, self.split, indices, f"line/{k}") for k in ("pitch", "rate"))
        return self._voices.vary(self._speakers(indices), pitch, speed)

    def prepare_speech(self) -> Utterances:
        """The speech of all examples, synthesised into the cache folder unless it is there already. The first batch
        with audio calls this, if it has not been called before."""
        if self._speech is None:
            indices = np.arange(self.size)
            self._speech = synthesize_all(
                self._texts(indices), self.voices(indices), self._cache,
                workers=self._workers, max_seconds=self.max_seconds,
            )  # fmt: skip
        return self._speech

    def batch(self, indices) -> RawBatch:
        """``caption`` object ``[B]``; ``audio`` int16 ``[B, max_seconds * 16000]`` with ``audio_mask``; ``speaker``
        int32 ``[B]``.

        Raises:
          IndexError: outside 0..len-1.
        """
        indices = np.atleast_1d(np.asarray(indices, np.int64))
        if indices.size and (indices.min() < 0 or indices.max() >= self.size):
            raise IndexError(f"indices must lie in 0..{self.size - 1}, got {indices.min()}..{indices.max()}")
        batch: RawBatch = {}
        if "text" in self.modalities:
            batch["caption"] = np.array(self._texts(indices), object)
        if "audio" in self.modalities:
            batch["audio"], batch["audio_mask"] = self.prepare_speech().padded(indices, self.max_seconds)
            batch["speaker"] = self._speakers(indices)
        return batch


def _hash(line: str) -> int:
    return int.from_bytes(hashlib.sha256(line.encode()).digest())
