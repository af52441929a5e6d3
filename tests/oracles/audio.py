"""Log-mel frames in plain NumPy and float64, one frame at a time; nothing of xmodal_jax is imported."""

import numpy as np


def slaney_hz(mel):
    return mel * 200.0 / 3.0 if mel < 15.0 else 1000.0 * 6.4 ** ((mel - 15.0) / 27.0)


def slaney_mel(hz):
    return hz * 3.0 / 200.0 if hz < 1000.0 else 15.0 + 27.0 * np.log(hz / 1000.0) / np.log(6.4)


def mel_filters(sample_rate, n_fft, n_mels):
    top = slaney_mel(sample_rate / 2)
    edges = [slaney_hz(top * i / (n_mels + 1)) for i in range(n_mels + 2)]
    filters = np.zeros((n_fft // 2 + 1, n_mels))
    for m in range(n_mels):
        low, centre, high = edges[m : m + 3]
        for f in range(n_fft // 2 + 1):
            hz = f * sample_rate / n_fft
            if low < hz <= centre:
                filters[f, m] = (hz - low) / (centre - low)
            elif centre < hz < high:
                filters[f, m] = (high - hz) / (high - centre)
            filters[f, m] *= 2.0 / (high - low)
    return filters


def log_mel(samples, sample_rate, n_fft, hop, n_mels, floor=1e-10):
    """``[1 + len(samples) // hop, n_mels]`` by the definition of the DFT, zeros outside the signal."""
    filters = mel_filters(sample_rate, n_fft, n_mels)
    n = np.arange(n_fft)
    window = np.sin(np.pi * n / n_fft) ** 2
    dft = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), n) / n_fft)
    frames = []
    for t in range(1 + len(samples) // hop):
        frame = np.zeros(n_fft)
        for i in range(n_fft):
            place = t * hop - n_fft // 2 + i
            if 0 <= place < len(samples):
                frame[i] = samples[place]
        frames.append(np.log(np.maximum(np.abs(dft @ (window * frame)) ** 2 @ filters, floor)))
    return np.stack(frames)
