"""How near synthesised speech is to a recording."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def mel_distance(
    a: Float[np.ndarray, "frames_a mels"], b: Float[np.ndarray, "frames_b mels"]
) -> tuple[float, Int[np.ndarray, "pairs 2"]]:
    """``(distance, path)``: the mean over the warping path of the mean absolute difference of two log-mel spectrograms,
    and the pairs of frames that dynamic time warping (Sakoe and Chiba 1978, by librosa, Euclidean) lays together.

    Raises:
      ValueError: an empty spectrogram, or different numbers of bands.
    """
    import librosa  # here: it takes seconds to import

    if not len(a) or not len(b) or a.shape[1] != b.shape[1]:
        raise ValueError(f"two spectrograms of equally many bands are needed, got {a.shape} and {b.shape}")
    _, path = librosa.sequence.dtw(np.asarray(a, np.float64).T, np.asarray(b, np.float64).T)
    path = path[::-1]
    return float(np.abs(a[path[:, 0]] - b[path[:, 1]]).mean()), path
