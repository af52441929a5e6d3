"""Distance between synthesised speech and a recording: dynamic time warping of log-mel spectrograms."""

from __future__ import annotations

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
