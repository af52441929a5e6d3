"""Preprocessing on the device, inside the jitted training step: audio, pitch, images, augmentation, and the vocoder."""

from xmodal_jax.preprocess.audio import (
    hann,
    log_mel,
    mel_filters,
    normalize_frames,
    spec_augment,
    stft,
    to_float_waveform,
    whisper_log_mel,
)
from xmodal_jax.preprocess.excitation import harmonic_source, noise_source
from xmodal_jax.preprocess.gan_augment import AdaConfig, ada_augment, ada_update, diff_augment
from xmodal_jax.preprocess.image import (
    AugmentConfig,
    augment,
    color_jitter,
    random_flip,
    random_grayscale,
    random_resized_crop,
    random_translate,
    resize,
    standardize,
    to_float,
)
from xmodal_jax.preprocess.measured import MeasuredAugmentConfig, augment_measured, jitter
from xmodal_jax.preprocess.pitch import Pitch, fill_gaps, log_energy, token_means, yin
from xmodal_jax.preprocess.vocoder import griffin_lim, istft, log_mel_to_waveform, mel_to_power
from xmodal_jax.preprocess.waveform import (
    WaveformAugmentConfig,
    add_noise,
    add_silence,
    augment_waveform,
    change_speed,
    reverberate,
    telephone,
)

__all__ = [
    "yin",
    "token_means",
    "log_energy",
    "fill_gaps",
    "Pitch",
    "AdaConfig",
    "MeasuredAugmentConfig",
    "AugmentConfig",
    "WaveformAugmentConfig",
    "ada_augment",
    "ada_update",
    "add_noise",
    "add_silence",
    "augment",
    "augment_measured",
    "augment_waveform",
    "change_speed",
    "color_jitter",
    "diff_augment",
    "griffin_lim",
    "hann",
    "harmonic_source",
    "jitter",
    "istft",
    "log_mel",
    "log_mel_to_waveform",
    "mel_filters",
    "mel_to_power",
    "noise_source",
    "normalize_frames",
    "random_flip",
    "random_grayscale",
    "random_resized_crop",
    "random_translate",
    "resize",
    "reverberate",
    "spec_augment",
    "standardize",
    "stft",
    "telephone",
    "to_float",
    "to_float_waveform",
    "whisper_log_mel",
]
