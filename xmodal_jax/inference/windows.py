"""Windows of recordings of any length: speech between pauses, and overlapping windows where it lasts longer.

A recording comes in blocks of samples, and at no time are the samples of more than two windows held.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """How a recording is cut into windows; all numbers are in samples.

    Example::

        layout = WindowLayout.from_seconds(window=4.0, overlap=2.0, stride=800, sample_rate=16_000)
        windows = split_windows([np.zeros(160_000, np.int16)], layout, sample_rate=16_000)
        [window.start for window in windows]  # [0, 32000, 64000, 96000]
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
        margin = max(1, int(overlap * sample_rate / (2 * stride) + 1e-6)) if 0 <= overlap < window else tokens
        if 2 * margin >= tokens:
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
        context on the right. Tokens of the first window wait for as long as it lasts."""
        return self.window - self.overlap // 2


class Window(NamedTuple):
    """A window of a recording."""

    samples: np.ndarray
    """Int16 ``[window]``, padded with zeros at its end."""
    length: int
    """Number of samples that are no padding."""
    start: int
    """Its first sample, as a position in the recording."""
    keep: slice
    """Which of its tokens are kept."""
    ends_speech: bool
    """Whether a pause follows, or the end of the recording."""


FRAMES_PER_SECOND = 100
"""Rate at which `PauseDetector` measures the level."""
FLOOR_SECONDS = 10.0
"""Seconds over which `PauseDetector` takes the lowest level as that of the background."""
SMOOTHED_FRAMES = 5
"""Frames over which the power is averaged to find the background."""
LOWEST_DB = -85.0
"""The lowest level of a background, in dB relative to full scale: digital silence counts as this."""
SPEECH_DB = 12.0
"""How much louder than the background speech is, in dB."""
PADDING_SECONDS = 0.02
"""Seconds before and after speech that belong to it: levels rise and fall gradually."""


class PauseDetector:
    """Tells speech from pauses by the level of the samples: the mean power of a frame without its mean, as some
    recordings have an offset.

    A frame of 10 ms is speech if it is at least `SPEECH_DB` louder than the background: the lowest level, averaged over
    50 ms, of the last `FLOOR_SECONDS` (as the noise floor of Martin 2001, IEEE Transactions on Speech and Audio
    Processing 9(5), without its smoothing). What precedes a recording counts as silent. So for the first
    `FLOOR_SECONDS` of a steady noise, or of a recording without a pause, every frame is speech.
    """

    def __init__(self):
        """Nothing has been heard so far."""
        silence = 10 ** (LOWEST_DB / 10)
        self._powers = collections.deque([silence] * SMOOTHED_FRAMES, SMOOTHED_FRAMES)
        self._memory, self._count = int(FLOOR_SECONDS * FRAMES_PER_SECOND), 0
        # Averages that are lower than all later ones, with the frames that they end with: the first is the lowest.
        self._lowest = collections.deque([(0, silence)])

    def is_speech(self, frame: np.ndarray) -> bool:
        """Whether the next frame, int16 ``[sample_rate / 100]``, is speech."""
        power = max(float(np.var(frame, dtype=np.float64)) / 32768**2, 10 ** (LOWEST_DB / 10))
        self._powers.append(power)
        average = sum(self._powers) / SMOOTHED_FRAMES
        while self._lowest and self._lowest[-1][1] >= average:
            self._lowest.pop()
        self._lowest.append((self._count, average))
        while self._lowest[0][0] <= self._count - self._memory:
            self._lowest.popleft()
        self._count += 1
        return power >= self._lowest[0][1] * 10 ** (SPEECH_DB / 10)


def split_windows(
    blocks: Iterable[np.ndarray], layout: WindowLayout, *, sample_rate: int, pause: float = math.inf
) -> Iterator[Window]:
    """The windows of a recording that comes in blocks, int16 ``[t]`` of any lengths.

    Speech between two pauses is one window if it is not longer than that; otherwise it is covered by overlapping
    windows, of whose tokens those of the middle are kept: half of each overlap is dropped from either window. The last
    window ends where the speech ends, and is as long as the others. Of pauses there are no windows. A window is given
    as soon as it is complete; at most the samples of two windows are held, besides a block.

    Args:
      blocks: the recording.
      layout: lengths of windows and overlaps.
      sample_rate: samples per second.
      pause: seconds without speech (`PauseDetector`) that make a pause; infinite: all of the recording is speech.
    """
    splitter = _Splitter(layout, sample_rate, pause)
    frame = sample_rate // FRAMES_PER_SECOND
    rest = np.zeros(0, np.int16)
    for block in blocks:
        # In pieces of at most a second: a block may be as long as the recording.
        for piece in np.split(block, range(sample_rate, len(block), sample_rate)):
            samples = np.concatenate([rest, piece])
            count = len(samples) // frame * frame
            for k in range(0, count, frame):
                yield from splitter.push(samples[k : k + frame])
            rest = samples[count:]
    yield from splitter.finish(rest)


class _Splitter:
    """The state of `split_windows`, which is given one frame at a time.

    Positions are samples of the recording; tokens are counted from the beginning of the speech between two pauses.
    """

    def __init__(self, layout: WindowLayout, sample_rate: int, pause: float):
        self.layout, self.pause = layout, pause * sample_rate
        self.padding = int(PADDING_SECONDS * sample_rate)
        self.detector = PauseDetector() if math.isfinite(pause) else None
        self.held: collections.deque[np.ndarray] = (
            collections.deque()
        )  # the samples from `held_from` to `now`
        self.held_from = self.now = 0
        self.speech_start: int | None = None  # None: there is no speech
        self.speech_end = 0  # end of the last frame with speech
        self.next_start = 0  # beginning of the next window
        self.token_count = 0  # tokens that are kept already

    def push(self, frame: np.ndarray) -> Iterator[Window]:
        """The windows that are complete with the next frame."""
        self.held.append(frame)
        self.now += len(frame)
        if self.detector is None or self.detector.is_speech(frame):
            if self.speech_start is None:
                self._begin_speech(self.now - len(frame))
            self.speech_end = self.now
        if self.speech_start is None:
            self._drop(self.now - self.padding)
        elif self.now - self.speech_end >= self.pause:
            yield self._end_speech()
        elif self.now >= self.next_start + self.layout.window:
            start, end = self.next_start, self.next_start + self.layout.window
            kept_to = (end - self.speech_start) // self.layout.stride - self.layout.margin
            yield self._window(start, end, kept_to)
            self._drop(start)  # the last window may begin anywhere after this one
            self.next_start, self.token_count = start + self.layout.step, kept_to

    def finish(self, rest: np.ndarray) -> Iterator[Window]:
        """The last window, after ``rest``, the samples after the last frame."""
        self.held.append(rest)
        self.now += len(rest)
        if self.detector is None:
            if self.speech_start is None:  # the recording is shorter than a frame
                self._begin_speech(0)
            self.speech_end = self.now
        if self.speech_start is not None:
            yield self._end_speech()

    def _begin_speech(self, position: int) -> None:
        """Speech begins a little before a position, but not before what has been recognised."""
        self.speech_start = self.next_start = max(position - self.padding, self.held_from)
        self.token_count = 0

    def _end_speech(self) -> Window:
        """The last window of this speech, as long as the others if the speech is."""
        end, stride = min(self.speech_end + self.padding, self.now), self.layout.stride
        excess = max(0, end - self.speech_start - self.layout.window)  # of the speech over a window
        start = self.speech_start + -(-excess // stride) * stride
        # Samples before the last window but one are not held.
        oldest = self.speech_start if not self.token_count else self.next_start - self.layout.step
        window = self._window(max(start, oldest), end, None)
        self._drop(max(end, self.speech_start + self.token_count * stride))
        self.speech_start = None
        return window

    def _window(self, start: int, end: int, kept_to: int | None) -> Window:
        """The window of these samples. Of the tokens of this speech those from ``token_count`` to ``kept_to`` are kept;
        None: to the last one, as speech ends."""
        first = (start - self.speech_start) // self.layout.stride
        samples = np.concatenate(self.held)[start - self.held_from : end - self.held_from]
        keep = slice(self.token_count - first, None if kept_to is None else kept_to - first)
        padded = np.pad(samples, (0, self.layout.window - len(samples)))
        return Window(padded, len(samples), start, keep, kept_to is None)

    def _drop(self, position: int) -> None:
        """Forgets what precedes a position."""
        while self.held and self.held_from + len(self.held[0]) <= position:
            self.held_from += len(self.held.popleft())
        if self.held and self.held_from < position:
            self.held[0] = self.held[0][position - self.held_from :]
            self.held_from = position
