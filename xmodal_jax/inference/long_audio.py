"""Transcripts of recordings of any length: windows, whose best labels are joined by time and decoded once.

The recogniser's CTC head gives a label or a blank for every token of its encoder, at a known time. Of each window
(`windows.split_windows`) the tokens of its middle are kept, those that have enough context on both sides. What is kept
are the tokens of the whole recording, each once: where two windows meet, words are right as far as both windows agree
on their labels. `WordDecoder` turns them into words with times.

Everything here takes samples and labels as they come, and holds one batch of windows at most.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.text import Tokenizer
from xmodal_jax.inference.windows import Window, WindowLayout, split_windows

BLANK = 0
"""CTC's label of a token at which no label is said."""


class Word(NamedTuple):
    """A word of a transcript."""

    text: str
    """The word, with the punctuation marks that follow it."""
    start: float
    """When it begins, in seconds from the beginning of the recording."""
    end: float
    """When it ends, in seconds."""
    confidence: float
    """Geometric mean of the probabilities of its labels in CTC's best path, in (0, 1]. Models are often too sure: it
    compares words, and is not the probability that the word is right."""


class Transcript(NamedTuple):
    """What is said in a recording."""

    text: str
    """The words, separated by spaces."""
    words: tuple[Word, ...]
    """The words with their times, in order."""

    @classmethod
    def from_words(cls, words: Iterable[Word]) -> Transcript:
        """The transcript of these words."""
        words = tuple(words)
        return cls(" ".join(word.text for word in words), words)


@dataclasses.dataclass
class _Label:
    """A label of the best path: its id, the times of its first and its last token, and their log-probabilities."""

    id: int
    first: float
    last: float
    log_probs: list[float]


class WordDecoder:
    """Turns the best label of each token into words, as the tokens come.

    Repetitions of a label are merged and blanks removed (CTC's best path, Graves et al. 2006, section 3.2). A word ends
    where the tokenizer's text has a space, and where there is no label for ``pause`` seconds. It lasts from half a
    token before the first token of its labels to half a token after the last one.

    Args:
      tokenizer: of the labels.
      token_seconds: from one token to the next.
      pause: seconds without a label that end a word. So a word is given at most this much later than its end.

    Example::

        decoder = WordDecoder(tokenizer, token_seconds=0.05)
        words = [*decoder.push(labels, log_probs, start=0.0), *decoder.finish()]
    """

    def __init__(self, tokenizer: Tokenizer, *, token_seconds: float, pause: float = 1.0):
        """Nothing has been said so far."""
        self._tokenizer, self._token_seconds = tokenizer, token_seconds
        self._pause = pause - 1e-6  # times are rounded
        self._not_words = np.array([tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id])
        self._labels: list[_Label] = []  # of the word that has not ended
        self._previous = BLANK

    def push(self, labels: np.ndarray, log_probs: np.ndarray, start: float) -> list[Word]:
        """The words that have ended with the next tokens.

        Args:
          labels: int ``[n]``, the most probable label of each, 0 for a blank.
          log_probs: float ``[n]``, their log-probabilities in nats.
          start: time of the middle of the first of these tokens, in seconds.
        """
        words = []
        labels = np.where(np.isin(labels, self._not_words), BLANK, labels)  # they are no part of a text
        for k, (label, log_prob) in enumerate(zip(labels.tolist(), log_probs.tolist(), strict=True)):
            time = start + k * self._token_seconds
            if label != BLANK and label == self._previous:
                self._labels[-1].last = time
                self._labels[-1].log_probs.append(log_prob)
            elif label != BLANK:
                if self._begins_word(label):
                    words += self._end_word()
                self._labels.append(_Label(label, time, time, [log_prob]))
            elif self._labels and time - self._labels[-1].last >= self._pause:
                words += self._end_word()
            self._previous = label
        return words

    def finish(self, seconds: float = math.inf) -> list[Word]:
        """The word that has not ended, if there is one, which ends here. ``seconds``: when speech ends."""
        self._previous = BLANK
        return [word._replace(end=min(word.end, seconds)) for word in self._end_word()]

    def _begins_word(self, label: int) -> bool:
        """Whether a label is the beginning of another word than that of the labels so far."""
        ids = [known.id for known in self._labels]
        if not self._tokenizer.decode(ids).strip():
            return False  # nothing but a space so far, which a byte-level tokenizer may have a label for
        text = self._tokenizer.decode([*ids, label])
        return len(text.split()) > 1 or text[-1].isspace()

    def _end_word(self) -> list[Word]:
        """Takes the labels so far and returns their word; no word if they have no text."""
        labels, self._labels = self._labels, []
        text = self._tokenizer.decode([label.id for label in labels]).strip() if labels else ""
        if not text:
            return []
        # A label that is only a space is no part of the word.
        spoken = [label for label in labels if self._tokenizer.decode([label.id]).strip()] or labels
        start, end = spoken[0].first - self._token_seconds / 2, spoken[-1].last + self._token_seconds / 2
        confidence = math.exp(np.mean([x for label in spoken for x in label.log_probs]))
        return [Word(text, round(max(0.0, start), 6), round(end, 6), min(confidence, 1.0))]


class LabelPredictor(NamedTuple):
    """A recogniser as a function of windows, and how recordings are cut."""

    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]
    """``predict(samples, lengths)``, of int16 ``[B, window]`` and the numbers ``[B]`` of samples without padding, is
    ``(labels, log_probs, counts)``: the most probable label of each token ``[B, N]``, its log-probability, and the
    number of tokens ``[B]`` of each window."""
    layout: WindowLayout
    """Lengths of windows and overlaps."""
    decoder: Callable[..., WordDecoder]
    """Makes the decoder of a recording."""
    sample_rate: int
    """Samples per second."""
    offset: float = 0.0
    """Time of the middle of a window's first token, in seconds from the window's beginning."""
    pause: float = math.inf
    """Seconds without speech at which recordings are cut; infinite: they are not."""

    def keep_tokens(
        self, recordings: Sequence[Iterable[np.ndarray]], batch_size: int
    ) -> Iterator[tuple[int, Window, tuple[np.ndarray, ...]]]:
        """The predictions for the tokens of recordings, each token once.

        Args:
          recordings: in blocks, int16 ``[t]``.
          batch_size: windows at a time; the last batch is padded.

        Yields:
          For each window the number of its recording, the window, and its part of the arrays of `predict`, ``[n,
          ...]``.
        """
        split = functools.partial(
            split_windows, layout=self.layout, sample_rate=self.sample_rate, pause=self.pause
        )
        numbered = ((k, window) for k, blocks in enumerate(recordings) for window in split(blocks))
        for batch in iter(lambda: list(itertools.islice(numbered, batch_size)), []):
            samples = np.zeros((batch_size, self.layout.window), np.int16)
            lengths = np.zeros(batch_size, np.int32)
            for row, (_, window) in enumerate(batch):
                samples[row], lengths[row] = window.samples, window.length
            *arrays, counts = map(np.asarray, self.predict(samples, lengths))
            for row, (k, window) in enumerate(batch):
                yield k, window, tuple(array[row, : counts[row]][window.keep] for array in arrays)

    def decode(self, decoder: WordDecoder, window: Window, labels: tuple[Any, Any]) -> list[Word]:
        """The words that have ended with a window, all of them where speech ends with it."""
        words = decoder.push(*labels, start=self.first_time(window))
        if window.ends_speech:
            words += decoder.finish((window.start + window.length) / self.sample_rate)
        return words

    def first_time(self, window: Window) -> float:
        """The time of the middle of the first token of a window that is kept, in seconds."""
        return (window.start + window.keep.start * self.layout.stride) / self.sample_rate + self.offset


def transcribe_recordings(
    recordings: Sequence[Iterable[np.ndarray]], recogniser: LabelPredictor, *, batch_size: int
) -> list[Transcript]:
    """The transcripts of recordings that come in blocks, int16 ``[t]``.

    The windows of all recordings, one recording after the other, are recognised in batches of ``batch_size``.
    """
    decoders = [recogniser.decoder() for _ in recordings]
    words: list[list[Word]] = [[] for _ in recordings]
    for k, window, labels in recogniser.keep_tokens(recordings, batch_size):
        words[k] += recogniser.decode(decoders[k], window, labels)
    return [Transcript.from_words(of_recording) for of_recording in words]


def stream_words(blocks: Iterable[np.ndarray], recogniser: LabelPredictor) -> Iterator[Word]:
    """The words of one recording that comes in blocks, int16 ``[t]``, each as soon as it is known: those of
    `transcribe_recordings`."""
    decoder = recogniser.decoder()
    for _, window, labels in recogniser.keep_tokens([blocks], batch_size=1):
        yield from recogniser.decode(decoder, window, labels)
