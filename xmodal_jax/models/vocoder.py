"""A neural vocoder: log-mel frames to a waveform, by filters of a harmonic and of a noise source.

`make_vocoder` is the method; `make_vocode` gives the function that turns log-mel frames into waveforms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.core import collectives
from xmodal_jax.core.checks import check_at_least
from xmodal_jax.core.random import batch_keys, fold_in_name
from xmodal_jax.losses.spectral import SpectralTerms, log_mel_distance, multi_resolution_stft_loss
from xmodal_jax.models.towers import AudioFeatures, compute_log_mel, presence_masks
from xmodal_jax.nets.vocoder import VocoderFrames, VocoderNet
from xmodal_jax.preprocess.audio import hann, hz_to_mel, mel_filters, stft, to_float_waveform
from xmodal_jax.preprocess.excitation import harmonic_source, noise_source
from xmodal_jax.preprocess.pitch import fill_gaps, track_pitch
from xmodal_jax.preprocess.vocoder import istft
from xmodal_jax.types import Batch, ExampleKeys, Key, Method, Params


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Networks, spectrogram and losses of a neural vocoder."""

    features: AudioFeatures = AudioFeatures(mels=80, window=1024, hop=200)
    """Settings of the spectrogram that is turned into sound, the same as those of the model that synthesises it."""
    floor: float = 1e-5
    """Smallest power of a mel band; smaller powers are raised to this value and count as silence."""
    mean: float = -5.0
    """Offset of the network's inputs, in natural-logarithm units: they are ``(log_mel - mean) / scale``."""
    scale: float = 4.0
    """Divisor of the network's inputs, in natural-logarithm units: they are ``(log_mel - mean) / scale``."""
    width: int = 192
    """Width of the network's blocks."""
    depth: int = 4
    """Number of the network's blocks."""
    kernel: int = 7
    """Width of the network's convolutions, in frames; odd."""
    window: int = 512
    """Length in samples of the frames that the filters are applied to; more than the distance between frames,
    ``features.hop``. Shorter frames follow quick changes of a sound, longer ones sharp resonances."""
    pitch_range: tuple[float, float] = (60.0, 500.0)
    """Lowest and highest pitch of a voice, in Hz."""
    pitches: int = 128
    """Number of classes that the range of the pitch is divided into, evenly in logarithm."""
    crop: int = 64
    """Frames of a recording that a training step draws at random; shorter recordings are padded."""
    resolutions: tuple[tuple[int, int], ...] = ((256, 64), (512, 128), (1024, 256))
    """Resolutions of the loss: for each the length of a frame and the distance between frames, in samples."""
    magnitude_floor: float = 5e-3
    """Smallest magnitude of the spectra that the loss compares, for a waveform in [-1, 1]; smaller ones are raised to
    this value."""
    mel_weight: float = 1.0
    """Weight of the mean absolute error of the log-mel frames."""
    pitch_weight: float = 0.1
    """Weight of the loss of pitch and voicing."""

    def __post_init__(self):
        """Checks the sizes."""
        check_at_least(self, 1, "width", "depth")
        check_at_least(self, 2, "pitches", "crop")
        if self.floor <= 0 or self.scale <= 0:
            raise ValueError(f"floor and scale must be above 0, got {self.floor} and {self.scale}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if self.window <= self.features.hop:
            raise ValueError(
                f"window must be longer than features.hop, so that frames overlap, got {self.window} and "
                f"{self.features.hop}"
            )
        low, high = self.pitch_range
        if not 0 < low < high <= self.features.sample_rate / 4:
            raise ValueError(
                f"pitch_range must be the lowest and the highest pitch, up to a quarter of the sample rate, got "
                f"{self.pitch_range}"
            )
        if self.features.kind != "log_mel":
            raise ValueError(f"a vocoder needs features.kind 'log_mel', got {self.features.kind!r}")


class ReconstructedAudio(NamedTuple):
    """The prediction of a `make_vocoder` method: recordings, resynthesised from their log-mel frames."""

    waveform: Float[Array, "batch time"]
    """In [-1, 1], zero behind the mask."""
    mask: Bool[Array, "batch time"]
    """Valid samples."""


@dataclasses.dataclass(frozen=True)
class _Model:
    """The vocoder for one configuration, and its losses."""

    config: VocoderConfig

    @property
    def network(self) -> VocoderNet:
        """The Flax module."""
        c = self.config
        return VocoderNet(c.window // 2 + 1, c.pitches, width=c.width, depth=c.depth, kernel=c.kernel)

    def frames_of(self, params: Params, log_mel, mask) -> VocoderFrames:
        """The network's prediction for log-mel frames in nats. The filters' logarithms are added to the envelope."""
        c = self.config
        frames = self.network.apply({"params": params}, (log_mel - c.mean) / c.scale, mask)
        envelope = spectral_envelope(log_mel, c.features, bins=c.window // 2 + 1)
        # A filter that raises the envelope more than e^4 = 55 times is a mistake, and would be a very loud one.
        raised = lambda x: envelope + jnp.minimum(x, 4.0)
        return frames._replace(harmonic=raised(frames.harmonic), noise=raised(frames.noise))

    def synthesize(self, frames: VocoderFrames, mask, pitch, voiced, keys: ExampleKeys | None):
        """The waveform ``[B, (F - 1) * hop]`` of filtered sources, zero behind the valid frames, and the mask of its
        samples.

        ``keys``: of the noise, one for each example; None: always the same noise.
        """
        c, hop = self.config, self.config.features.hop
        count = mask.shape[1]
        valid = jnp.arange((count - 1) * hop)[None, :] < (mask.sum(axis=1)[:, None] - 1) * hop
        noise_keys = jax.random.key(0)[None] if keys is None else fold_in_name(keys, "noise")
        pulses = harmonic_source(pitch, voiced & mask, sample_rate=c.features.sample_rate, hop=hop)
        noise = noise_source(noise_keys, frames=count, hop=hop)
        sources = [stft(jnp.where(valid, x, 0.0), n_fft=c.window, hop=hop) for x in (pulses, noise)]
        harmonic = jnp.exp(frames.harmonic) * jax.lax.complex(jnp.cos(frames.phase), jnp.sin(frames.phase))
        spectrum = harmonic * sources[0] + jnp.exp(frames.noise) * sources[1]
        waveform = istft(spectrum, mask, n_fft=c.window, hop=hop)
        return jnp.where(valid, waveform, 0.0), valid

    def vocode(self, params: Params, log_mel, mask, pitch=None):
        """``(waveform, mask)`` of log-mel frames in nats; see `make_vocode`."""
        frames = self.frames_of(params, log_mel, mask)
        if pitch is None:
            pitch = self.predicted_pitch(frames)
        else:
            pitch = jnp.clip(fill_gaps(pitch, mask & (pitch > 0)), *self.config.pitch_range)
        waveform, valid = self.synthesize(frames, mask, pitch, frames.voicing_logit > 0, keys=None)
        return waveform / jnp.maximum(jnp.abs(waveform).max(axis=1, keepdims=True), 1.0), valid

    @property
    def pitch_classes(self) -> np.ndarray:
        """The pitch in Hz of each class, ``[pitches]``."""
        return np.geomspace(*self.config.pitch_range, self.config.pitches).astype(np.float32)

    def predicted_pitch(self, frames: VocoderFrames) -> Float[Array, "batch frames"]:
        """The pitch in Hz: the geometric mean of the most probable class and its neighbours, by their probabilities (as
        Kim et al. 2018, arXiv:1802.06182, eq. 2, who take all classes)."""
        classes = np.arange(self.config.pitches)[None, None]
        best = frames.pitch_logits.argmax(axis=-1)[..., None]
        near = jnp.where(jnp.abs(classes - best) <= 3, frames.pitch_logits, -jnp.inf)
        return jnp.exp(jax.nn.softmax(near, axis=-1) @ np.log(self.pitch_classes))

    def pitch_losses(self, frames: VocoderFrames, mask, pitch, voiced):
        """``(pitch [B], voicing [B])``: cross-entropies of the pitch's class, mean over voiced frames, and of voicing,
        mean over all valid frames.

        The target of the pitch is spread over classes like a normal distribution of standard deviation 1 (Kim et al.
        2018, eq. 3).
        """
        low, high = np.log(self.config.pitch_range)
        position = (jnp.log(pitch) - low) / (high - low) * (self.config.pitches - 1)  # in classes
        distance = np.arange(self.config.pitches)[None, None] - position[..., None]
        target = jax.nn.softmax(-0.5 * jnp.square(distance), axis=-1)
        entropy = -(target * jax.nn.log_softmax(frames.pitch_logits, axis=-1)).sum(axis=-1)
        wrong = jax.nn.softplus(jnp.where(voiced, -frames.voicing_logit, frames.voicing_logit))
        return _mean_over(entropy, mask & voiced), _mean_over(wrong, mask)

    def crop(self, batch: Batch, keys: ExampleKeys):
        """A random crop of each recording: ``(log_mel [B, F, mels], frame_mask, waveform [B, (F - 1) * hop], mask,
        pitch, voiced)``, where F is ``config.crop``.

        Frames and pitch are computed with the samples beside the crop, so that its ends sound like its middle.
        """
        c, hop = self.config, self.config.features.hop
        audio, mask = recordings(batch)
        inner = (c.crop - 1) * hop
        # Frames that overlap the crop's ends; those of the pitch are about 40 ms and a period long, or two periods.
        period = c.features.sample_rate / c.pitch_range[0]
        longest = max(c.features.window, 0.04 * c.features.sample_rate + 2 * period, 4 * period)
        margin = math.ceil(longest / (2 * hop))
        length = mask.sum(axis=1)
        audio = jnp.pad(audio, [(0, 0), (margin * hop, margin * hop + inner)])
        draws = jax.vmap(jax.random.uniform)(fold_in_name(keys, "crop"))
        start = jnp.floor(draws * (jnp.maximum(length - inner, 0) + 1)).astype(jnp.int32)
        cut = lambda x, begin: jax.lax.dynamic_slice_in_dim(x, begin, inner + 2 * margin * hop)
        wide = jax.vmap(cut)(audio, start)
        log_mel, _ = compute_log_mel(wide, None, c.features, floor=c.floor)
        limits = dict(f_min=c.pitch_range[0], f_max=c.pitch_range[1])
        pitch = track_pitch(
            wide, sample_rate=c.features.sample_rate, hop=hop, **limits
        ).frequency  # 0: unvoiced
        log_mel, pitch = (x[:, margin : margin + c.crop] for x in (log_mel, pitch))
        remaining = (length - start)[:, None]
        frame_mask = (np.arange(c.crop)[None, :] * hop <= remaining) & (length > 0)[:, None]
        samples = wide[:, margin * hop : margin * hop + inner]
        sample_mask = np.arange(inner)[None, :] < remaining
        voiced = pitch > 0
        return log_mel, frame_mask, samples, sample_mask, jnp.where(voiced, pitch, limits["f_min"]), voiced

    def init(self, key: Key, batch: Batch) -> Params:
        frames = jnp.zeros((1, self.config.crop, self.config.features.mels), jnp.float32)
        return self.network.init(fold_in_name(key, "vocoder"), frames)["params"]

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name=None):
        """The loss of random crops, with the recordings' own pitch; see `make_vocoder`."""
        c = self.config
        keys = batch_keys(fold_in_name(key, "vocoder"), batch)
        log_mel, frame_mask, target, mask, pitch, voiced = self.crop(batch, keys)
        frames = self.frames_of(params, log_mel, frame_mask)
        waveform, _ = self.synthesize(frames, frame_mask, pitch, voiced, keys)
        spectral: SpectralTerms = multi_resolution_stft_loss(
            waveform, target, mask, resolutions=c.resolutions, floor=c.magnitude_floor
        )
        mel, mel_mask = compute_log_mel(waveform, mask, c.features, floor=c.floor)
        true_mel, _ = compute_log_mel(target, mask, c.features, floor=c.floor)
        pitch_loss, voicing_loss = self.pitch_losses(frames, frame_mask, pitch, voiced)
        sample_count, frame_count = (x.sum(axis=1).astype(jnp.float32) for x in (mask, frame_mask))
        voiced_count = (frame_mask & voiced).sum(axis=1).astype(jnp.float32)
        values_and_weights = {
            "convergence": (spectral.convergence, sample_count),
            "log_magnitude": (spectral.log_magnitude, sample_count),
            "mel": (log_mel_distance(mel, true_mel, mel_mask), sample_count),
            "pitch": (pitch_loss, voiced_count),
            "voicing": (voicing_loss, frame_count),
        }
        aux = {
            name: collectives.batch_mean(value, weight, axis_name=axis_name)
            for name, (value, weight) in values_and_weights.items()
        }
        total = aux["convergence"] + aux["log_magnitude"] + c.mel_weight * aux["mel"]
        total += c.pitch_weight * (aux["pitch"] + aux["voicing"])
        return total, jax.lax.stop_gradient(aux)

    def predict(self, params: Params, batch: Batch) -> ReconstructedAudio:
        """The batch's recordings, resynthesised from their log-mel frames."""
        audio, mask = recordings(batch)
        log_mel, frame_mask = compute_log_mel(audio, mask, self.config.features, floor=self.config.floor)
        return ReconstructedAudio(*self.vocode(params, log_mel, frame_mask))


def recordings(batch: Batch) -> tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]:
    """``(audio, mask)`` of a batch's recordings: floats, 0 where they are padding; the mask is False throughout where
    an example lacks audio."""
    audio = to_float_waveform(batch["audio"])
    mask = batch.get("audio_mask", jnp.ones(audio.shape, bool))
    mask = mask & presence_masks(batch, ("audio",))["audio"][:, None]
    return jnp.where(mask, audio, 0.0), mask


def spectral_envelope(
    log_mel: Float[Array, "batch frames mels"], features: AudioFeatures, *, bins: int
) -> Float[Array, "batch frames bins"]:
    """Logarithm of the magnitude of the filter that gives a source of variance 1 the band powers of log-mel frames.

    A mel band's power divided by the sum of its filter is the mean power of the bins in it; between the centres of
    bands its logarithm is interpolated linearly in mels. ``bins``: frequencies from 0 to half the sample rate.
    """
    rate, window = features.sample_rate, features.window
    filters = np.asarray(mel_filters(rate, window, features.mels, f_max=features.max_hz), np.float64)
    top = hz_to_mel(rate / 2 if features.max_hz is None else features.max_hz)
    centres = np.linspace(0.0, top, features.mels + 2)[1:-1]  # of the bands, in mels
    frequency = hz_to_mel(np.linspace(0.0, rate / 2, bins))
    interpolate = np.stack([np.interp(frequency, centres, row) for row in np.eye(features.mels)])
    # The power of noise of variance 1 in a bin is the sum of the squared window. A filter can be too narrow to hold a
    # bin: its sum is then that of the continuous filter, whose area is 1.
    gain = np.maximum(filters.sum(axis=0), window / rate) * np.square(hann(window).astype(np.float64)).sum()
    return 0.5 * (log_mel - np.log(gain).astype(np.float32)[None, None]) @ interpolate.astype(np.float32)


def _mean_over(x: Float[Array, "batch frames"], mask: Bool[Array, "batch frames"]) -> Float[Array, "batch"]:
    """The mean of each row over the frames of its mask; 0 where there are none."""
    return jnp.where(mask, x, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def make_vocoder(config: VocoderConfig) -> Method:
    """A method that learns to turn log-mel frames into waveforms, from recordings alone.

    A network over the frames predicts two filters for each frame, as log-magnitude and phase of its spectrum (Siuzdak
    2023, arXiv:2306.00814, sec. 3.2), the pitch, and whether there is one. The first filter is applied to pulses of
    that pitch, the second to noise, by products of spectra,

        ``S = exp(m_h + i p) stft(pulses) + exp(m_n) stft(noise)``,

    and an inverse STFT makes the waveform of S. Harmonics and noise as sources: Wang et al. 2019, arXiv:1904.12088;
    with an inverse STFT and a predicted pitch: Li et al. 2023, arXiv:2309.09493. The pulses carry the phase from one
    frame to the next, which log-mel frames hardly tell.

    The batch holds ``audio`` ``[B, T]``, int16 or floats in [-1, 1], and optionally ``audio_mask`` ``[B, T]``. Each
    step draws a crop of ``config.crop`` frames from each recording and compares it with its resynthesis, which takes
    the pitch that `preprocess.pitch.track_pitch` finds in the recording. The loss is the sum of

    - spectral convergence and the distance of log-magnitudes at several resolutions (`losses.spectral`; Yamamoto et al.
      2020, arXiv:1910.11480, eq. 6), means over valid samples;
    - ``mel_weight`` times the mean absolute error of the log-mel frames;
    - ``pitch_weight`` times the cross-entropies of the pitch, as a class of its logarithm, and of voicing.

    An example without audio has no influence. aux: ``convergence``, ``log_magnitude``, ``mel``, ``pitch``, ``voicing``.

    Returns:
      The method; ``predict(params, batch)`` gives a `ReconstructedAudio`.

    Example::

        method = make_vocoder(VocoderConfig())
        params = method.init(key, batch)
        loss, aux = method.loss(params, batch, key)
    """
    model = _Model(config)
    return Method(model.init, model.loss, model.predict)


def make_vocode(
    config: VocoderConfig,
) -> Callable[..., tuple[Float[Array, "batch time"], Bool[Array, "batch time"]]]:
    """``vocode(params, log_mel, mask, pitch=None)``: the waveforms of log-mel frames by a trained `make_vocoder`.

    ``log_mel`` are frames ``[B, F, mels]`` in nats with the settings of ``config.features``, F at least 2; ``mask``
    ``[B, F]`` is True on valid frames, which come first. ``pitch`` ``[B, F]`` in Hz is that of the voiced frames,
    such as a synthesiser predicts it, limited to ``config.pitch_range``, and interpolated where it is 0; None: the
    pitch that the network finds in the frames (the harmonics of a synthesised spectrogram are often too blurred for
    it). The network decides which frames are voiced. The results are waveforms ``[B, (F - 1) * hop]`` in [-1, 1]
    and the mask of their valid samples. Padding has no influence, and the same frames always give the same
    waveform. A waveform that exceeds the range is scaled down.

    Example::

        vocode = jax.jit(make_vocode(config))
        waveform, valid = vocode(params, speech.log_mel, speech.frame_mask)
    """
    return _Model(config).vocode


def spectrogram_differences(config: VocoderConfig, features: AudioFeatures, floor: float) -> list[str]:
    """The settings in which the spectrogram of a vocoder differs from another one, such as "hop 200 instead of 160"
    where the vocoder has 200; empty: it can turn the other one's frames into sound."""
    ours = vars(config.features) | {"floor": config.floor}
    others = vars(features) | {"floor": floor}
    return [f"{name} {ours[name]} instead of {others[name]}" for name in ours if ours[name] != others[name]]
