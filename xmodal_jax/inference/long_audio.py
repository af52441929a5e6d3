"""Transcripts of recordings of any length: overlapping windows, whose best labels are joined by time and decoded once.

The recogniser's CTC head gives a label or a blank for every token of its encoder, at a known time. A recording is cut
into overlapping windows of one length. Of each window the tokens of its middle are kept, those that have enough context
on both sides: half of each overlap is dropped from either window. What is kept are the tokens of the whole recording,
each once, so that no word is lost or doubled where two windows meet. `WordDecoder` turns them into words with times.

Everything here takes samples and labels as they come, and holds one batch of windows at most.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.text import Tokenizer

BLANK = 0
"""The label of CTC between words."""


class Word(NamedTuple):
    """A word of a transcript."""

    text: str
    """The word, with the punctuation marks that follow it."""
    start: float
    """When it begins, in seconds from the beginning of the recording."""
    end: float
    """When it ends, in seconds."""
    confidence: float
    """Geometric mean of the probabilities of its labels in CTC's best path, in (0, 1]. Models are often too sure: use it
    to compare words, not as the probability that the word is right."""


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


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """How a recording is cut into windows; all numbers are in samples.

    Example::

        layout = WindowLayout.from_seconds(window=4.0, overlap=2.0, stride=800, sample_rate=16_000)
        [window.first_token for window in split_windows([np.zeros(160_000, np.int16)], layout)]  # [0, 40, 80, ...]
    """

    window: int
    """Samples of a window, a multiple of the stride."""
    overlap: int
    """Samples that two windows share, an even multiple of the stride; half of them are context only."""
    stride: int
    """Samples from one token of the encoder to the next."""

    @classmethod
    def from_seconds(cls, *, window: float, overlap: float, stride: int, sample_rate: int) -> WindowLayout:
        """The layout with lengths in seconds, rounded down to whole tokens; the overlap is one token on both sides at
        least.

        Raises:
          ValueError: the overlap is not shorter than the window.
        """
        tokens = int(window * sample_rate / stride + 1e-6)
        margin = max(1, int(overlap * sample_rate / (2 * stride) + 1e-6))
        if not overlap >= 0 or 2 * margin >= tokens:
            raise ValueError(
                f"windows overlap by less than their length: a window of {window:g} s cannot overlap the next one by "
                f"{overlap:g} s (tokens are {stride / sample_rate:g} s apart)"
            )
        return cls(tokens * stride, 2 * margin * stride, stride)

    @property
    def step(self) -> int:
        """Samples from the beginning of a window to that of the next."""
        return self.window - self.overlap

    @property
    def margin(self) -> int:
        """Tokens that are dropped at either end of a window."""
        return self.overlap // (2 * self.stride)

    @property
    def wait(self) -> int:
        """Samples that follow a token, at most, until the window that it is kept from is complete: the step, and the
        context on the right."""
        return self.window - self.overlap // 2


class Window(NamedTuple):
    """A window of a recording."""

    samples: np.ndarray
    """Int16 ``[window]``, padded with zeros at its end."""
    length: int
    """Number of samples that are no padding."""
    first_token: int
    """Position of its first token among those of the recording."""
    keep: slice
    """Which of its tokens are kept."""
    is_last: bool
    """Whether the recording ends with it."""


def split_windows(blocks: Iterable[np.ndarray], layout: WindowLayout) -> Iterator[Window]:
    """The windows of a recording that comes in blocks, int16 ``[t]`` of any lengths.

    A window is given as soon as it is complete. The last one ends where the recording ends: it begins so that it is as
    long as the others, as a short one would be recognised without context. A recording that is not longer than a
    window is one. At most the samples of two windows are held, besides a block.
    """
    held, begin, start = np.zeros(0, np.int16), 0, 0  # the samples from `begin` on; the next window begins at `start`
    kept = 0  # tokens kept so far
    for block in blocks:
        # In pieces: a block may be as long as the recording.
        for piece in np.split(block, range(layout.step, len(block), layout.step)):
            held = np.concatenate([held, piece])
            while begin + len(held) >= start + layout.window:
                held, begin = held[start - begin :], start
                first = start // layout.stride
                end = (start + layout.window) // layout.stride - layout.margin
                yield Window(held[: layout.window], layout.window, first, slice(kept - first, end - first), False)
                kept, start = end, start + layout.step
    length = begin + len(held)
    # The first sample of the last window: a multiple of the stride, so that tokens have the same times in all windows.
    last = max(0, -(-(length - layout.window) // layout.stride)) * layout.stride
    samples = held[last - begin :]
    first = last // layout.stride
    padded = np.pad(samples, (0, layout.window - len(samples)))
    yield Window(padded, len(samples), first, slice(kept - first, None), True)


@dataclasses.dataclass
class _Label:
    """A label of the best path: its id, the first and the last of its tokens, and their log-probabilities."""

    id: int
    first: int
    last: int
    log_probs: list[float]


class WordDecoder:
    """Turns the best label of each token into words, as the tokens come.

    Repetitions of a label are merged and blanks removed (CTC's best path, Graves et al. 2006, section 3.2). A word ends
    where the tokenizer's text has a space, or where there is no label for ``pause`` seconds. It lasts from half a token
    before the first token of its labels to half a token after the last one.

    Args:
      tokenizer: of the labels.
      token_seconds: from one token to the next.
      offset: time of the middle of the first token.
      pause: seconds without a label that end a word. So a word is given at most this much later than its end.

    Example::

        decoder = WordDecoder(tokenizer, token_seconds=0.05)
        words = [*decoder.push(labels, log_probs), *decoder.finish()]
    """

    def __init__(self, tokenizer: Tokenizer, *, token_seconds: float, offset: float = 0.0, pause: float = 1.0):
        """Nothing has been said so far."""
        self._tokenizer, self._token_seconds, self._offset = tokenizer, token_seconds, offset
        self._pause = pause / token_seconds  # in tokens
        self._not_words = np.array([tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id])
        self._labels: list[_Label] = []  # of the word that has not ended
        self._previous, self._count = BLANK, 0

    def push(self, labels: np.ndarray, log_probs: np.ndarray) -> list[Word]:
        """The words that have ended with the next tokens.

        Args:
          labels: int ``[n]``, the most probable label of each, 0 for a blank.
          log_probs: float ``[n]``, their log-probabilities in nats.
        """
        words = []
        labels = np.where(np.isin(labels, self._not_words), BLANK, labels)  # they are no part of a text
        for label, log_prob in zip(labels.tolist(), log_probs.tolist(), strict=True):
            if label != BLANK and label == self._previous:
                self._labels[-1].last = self._count
                self._labels[-1].log_probs.append(log_prob)
            elif label != BLANK:
                if self._begins_word(label):
                    words += self._end_word()
                self._labels.append(_Label(label, self._count, self._count, [log_prob]))
            elif self._labels and self._count - self._labels[-1].last >= self._pause:
                words += self._end_word()
            self._previous, self._count = label, self._count + 1
        return words

    def finish(self, seconds: float = math.inf) -> list[Word]:
        """The last word, if there is one. ``seconds``: length of the recording, which no word is longer than."""
        return [word._replace(end=min(word.end, seconds)) for word in self._end_word()]

    def _begins_word(self, label: int) -> bool:
        """Whether a label is the beginning of another word than that of the labels so far."""
        ids = [known.id for known in self._labels]
        if not self._tokenizer.decode(ids).strip():
            return False  # nothing but a space so far, which a byte-level tokenizer may have a label for
        text = self._tokenizer.decode([*ids, label])
        return len(text.split()) > 1 or text[-1].isspace()

    def _end_word(self) -> list[Word]:
        """The word of the labels so far, of which none are left then; nothing if they have no text."""
        labels, self._labels = self._labels, []
        text = self._tokenizer.decode([label.id for label in labels]).strip() if labels else ""
        if not text:
            return []
        # A label that is only a space is no part of the word.
        spoken = [label for label in labels if self._tokenizer.decode([label.id]).strip()] or labels
        start, end = (
            self._offset + (token + side) * self._token_seconds
            for token, side in ((spoken[0].first, -0.5), (spoken[-1].last, 0.5))
        )
        confidence = math.exp(np.mean([x for label in spoken for x in label.log_probs]))
        return [Word(text, max(0.0, start), end, min(confidence, 1.0))]


class LabelPredictor(NamedTuple):
    """A recogniser as a function of windows."""

    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    """``predict(samples, lengths)``, of int16 ``[B, window]`` and the numbers ``[B]`` of samples that are no padding, is
    ``(labels, log_probs, counts)``: the most probable label of each token ``[B, N]``, its log-probability, and the
    number of tokens ``[B]`` of each window."""
    layout: WindowLayout
    """How recordings are cut."""
    decoder: Callable[..., WordDecoder]
    """Makes the decoder of a recording."""
    sample_rate: int
    """Samples per second."""


def transcribe_recordings(
    recordings: Sequence[Iterable[np.ndarray]], recogniser: LabelPredictor, *, batch_size: int
) -> list[Transcript]:
    """The transcripts of recordings that come in blocks, int16 ``[t]``.

    The windows of all recordings, one recording after the other, are recognised in batches of ``batch_size``.
    """
    decoders = [recogniser.decoder() for _ in recordings]
    words: list[list[Word]] = [[] for _ in recordings]
    for k, window, labels in keep_tokens(recordings, recogniser.layout, recogniser.predict, batch_size):
        words[k] += _decode(decoders[k], window, labels, recogniser)
    return [Transcript.from_words(of_recording) for of_recording in words]


def stream_words(blocks: Iterable[np.ndarray], recogniser: LabelPredictor) -> Iterator[Word]:
    """The words of one recording that comes in blocks, int16 ``[t]``, each as soon as it is known: those of
    `transcribe_recordings`."""
    decoder = recogniser.decoder()
    for _, window, labels in keep_tokens([blocks], recogniser.layout, recogniser.predict, 1):
        yield from _decode(decoder, window, labels, recogniser)


def keep_tokens(
    recordings: Sequence[Iterable[np.ndarray]],
    layout: WindowLayout,
    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]],
    batch_size: int,
) -> Iterator[tuple[int, Window, tuple[np.ndarray, ...]]]:
    """What a network says of the tokens of recordings, each token once.

    Args:
      recordings: in blocks, int16 ``[t]``.
      layout: how they are cut into windows.
      predict: see `LabelPredictor`; it returns any arrays ``[B, N, ...]`` of tokens, and the numbers of tokens ``[B]``.
      batch_size: windows at a time; the last batch is padded.

    Yields:
      For each window the number of its recording, the window, and its part of the arrays, ``[n, ...]``.
    """
    numbered = ((k, window) for k, blocks in enumerate(recordings) for window in split_windows(blocks, layout))
    for batch in iter(lambda: list(itertools.islice(numbered, batch_size)), []):
        samples = np.zeros((batch_size, layout.window), np.int16)
        lengths = np.zeros(batch_size, np.int32)
        for row, (_, window) in enumerate(batch):
            samples[row], lengths[row] = window.samples, window.length
        *arrays, counts = map(np.asarray, predict(samples, lengths))
        for row, (k, window) in enumerate(batch):
            yield k, window, tuple(array[row, : counts[row]][window.keep] for array in arrays)


def _decode(
    decoder: WordDecoder, window: Window, labels: tuple[Any, Any], recogniser: LabelPredictor
) -> list[Word]:
    """The words that have ended with a window, all of them with the last one."""
    words = decoder.push(*labels)
    if window.is_last:
        samples = window.first_token * recogniser.layout.stride + window.length
        words += decoder.finish(samples / recogniser.sample_rate)
    return words
