"""Distance between synthesised speech and a recording: spectrograms along their warping path, and pitch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def dynamic_time_warping(
    cost: Float[np.ndarray, "frames_a frames_b"],
) -> tuple[float, Int[np.ndarray, "pairs 2"]]:
    """``(total, path)``: the path of least total cost from the first pair of frames to the last, as pairs of indices.

    Each step advances by one frame in either sequence or in both. Sakoe and Chiba 1978 (symmetric, without weights).

    Example::

        dynamic_time_warping(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]))  # (0.0, [[0, 0], [1, 1], [1, 2]])
    """
    rows, columns = cost.shape
    # total[i, j]: the least cost of aligning the first i frames of one sequence with the first j of the other.
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(
        rows + columns - 1
    ):  # the entries with i + j = diagonal do not depend on each other
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        cheapest_before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = cost[i, j] + cheapest_before
    # From the end back to the start, each time to the cheapest predecessor.
    i, j, path = rows, columns, []
    while i > 0:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: total[cell])
    return float(total[-1, -1]), np.array(path[::-1])


def mel_distance(
    a: Float[np.ndarray, "frames_a mels"], b: Float[np.ndarray, "frames_b mels"]
) -> tuple[float, Int[np.ndarray, "pairs 2"]]:
    """``(distance, path)``: the mean absolute difference of two log-mel spectrograms along their warping path.

    The path is that of `dynamic_time_warping` with Euclidean distances between frames; it holds pairs of frame numbers.

    Raises:
      ValueError: an empty spectrogram, or different numbers of bands.
    """
    if not len(a) or not len(b) or a.shape[1] != b.shape[1]:
        raise ValueError(f"two spectrograms of equally many bands are needed, got {a.shape} and {b.shape}")
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # ||x_i - y_j||^2 = ||x_i||^2 + ||y_j||^2 - 2 x_i y_j for each pair of frames
    square = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None, :] - 2 * x @ y.T
    _, path = dynamic_time_warping(np.sqrt(np.maximum(square, 0.0)))
    return float(np.abs(x[path[:, 0]] - y[path[:, 1]]).mean()), path


class PitchAgreement(NamedTuple):
    """How well the pitch of two utterances agrees, from `pitch_agreement`."""

    correlation: float
    """Pearson correlation of the logarithm of the pitch; nan where it is not defined."""
    error_cents: float
    """Root mean square of the pitch interval, in cents (hundredths of a semitone); nan without voiced pairs."""
    voicing_error: float
    """Fraction of the pairs of frames of which one is voiced and the other is not."""


def pitch_agreement(
    a: Float[np.ndarray, "frames_a"], b: Float[np.ndarray, "frames_b"], path: Int[np.ndarray, "pairs 2"]
) -> PitchAgreement:
    """Compares the pitch of two utterances on the pairs of frames of a warping path.

    Correlation and error are over the pairs whose frames are both voiced: the correlation of ``log a`` and ``log b``,
    and ``sqrt(mean((1200 log2(a / b))^2))``. The correlation does not depend on the register of a voice, nor on how
    wide its pitch moves; the error does on both.

    Args:
      a, b: pitch of each frame in Hz, 0 where unvoiced.
      path: pairs of frame numbers, such as those of `mel_distance`.

    Raises:
      ValueError: the path is empty.

    Example::

        pitch_agreement(np.array([100.0, 200.0]), np.array([110.0, 220.0]), np.array([[0, 0], [1, 1]]))
        # correlation 1, error 165 cents, voicing error 0
    """
    if not len(path):
        raise ValueError("a path of at least one pair of frames is needed")
    x, y = np.asarray(a, np.float64)[path[:, 0]], np.asarray(b, np.float64)[path[:, 1]]
    voicing_error = float(((x > 0) != (y > 0)).mean())
    both = (x > 0) & (y > 0)
    if not both.any():
        return PitchAgreement(np.nan, np.nan, voicing_error)
    x, y = np.log(x[both]), np.log(y[both])
    error_cents = 1200 / np.log(2) * float(np.sqrt(np.square(x - y).mean()))
    # A constant pitch has no correlation with another; rounding leaves it a spread of about 1e-16.
    if min(np.ptp(x), np.ptp(y)) < 1e-9:
        return PitchAgreement(np.nan, error_cents, voicing_error)
    return PitchAgreement(float(np.corrcoef(x, y)[0, 1]), error_cents, voicing_error)
