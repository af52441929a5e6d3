"""Text to speech: a non-autoregressive model of log-mel frames with learned durations, pitch and energy, and the
Griffin-Lim vocoder.

`make_speech` is the method; `make_synthesizer` gives a function that synthesises speech with its parameters, and
`make_converter` one that speaks recordings again in another voice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.alignment import expand_durations, monotonic_alignment
from xmodal_jax.core.parts import FilledIn
from xmodal_jax.core.random import batch_keys, fold_in_name
from xmodal_jax.losses.sequence import ctc
from xmodal_jax.models.towers import (
    AudioFeatures,
    compute_log_mel,
    first_example,
    make_encoder,
    presence_masks,
    transform_audio,
)
from xmodal_jax.nets.encoders import TextEncoder, TextTransformerConfig
from xmodal_jax.nets.speech import SpeechNet
from xmodal_jax.preprocess.pitch import fill_gaps, log_energy, token_means, track_pitch
from xmodal_jax.preprocess.vocoder import log_mel_to_waveform
from xmodal_jax.types import Batch, EncoderSlot, ExampleKeys, Key, Method, Params, Tokens

SEMITONE = math.log(2.0) / 12
"""A semitone in the natural logarithm of a frequency."""
DECIBEL = math.log(10.0) / 10
"""A decibel in the natural logarithm of a power."""


@dataclasses.dataclass(frozen=True)
class ProsodyStatistics:
    """Mean and standard deviation of pitch and energy in the training data, by which the network's are standardised.

    They are of all voices together. So the network knows the absolute pitch: where the harmonics lie is the same
    function of it in each voice, and a pitch that is rare in one voice is known from others. The defaults are typical
    of speech.
    """

    pitch_mean: float = 5.0
    """Mean of the natural logarithm of the pitch in Hz, over voiced frames."""
    pitch_scale: float = 0.35
    """Standard deviation of the natural logarithm of the pitch, over voiced frames."""
    energy_mean: float = -6.0
    """Mean of the energy (`preprocess.pitch.log_energy`), the natural logarithm of the power of a frame."""
    energy_scale: float = 3.0
    """Standard deviation of the energy."""
    voice_pitch: tuple[float, ...] = ()
    """Mean of the natural logarithm of the pitch of each voice, over voiced frames; empty: not measured."""

    def __post_init__(self):
        if self.pitch_scale <= 0 or self.energy_scale <= 0:
            raise ValueError(
                f"standard deviations must be above 0, got {self.pitch_scale} and {self.energy_scale}"
            )

    def standardize(self, name: str, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """``(values - mean) / scale``. ``name``: "pitch", of which ``values`` are logarithms, or "energy"."""
        return (values - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """Networks, losses and vocoder of text-to-speech."""

    text: TextEncoder = TextTransformerConfig(dropout=0.1)
    """Text encoder; the decoder has the width of the text encoder."""
    decoder_depth: int = 4
    """Number of convolutional blocks of the decoder."""
    kernel: int = 5
    """Width of the decoder's convolutions, in frames."""
    dropout: float = 0.0
    """Dropout rate in the residual branches of the decoder and the predictors."""
    features: AudioFeatures = AudioFeatures(mels=80, window=1024, hop=200)
    """Settings of the spectrogram that is synthesised. The Griffin-Lim vocoder needs frames that overlap by three
    quarters or more."""
    floor: float = 1e-5
    """Smallest power of a mel band; smaller powers are raised to this value and count as silence."""
    mean: float = -5.0
    """Offset of the spectrogram, in natural-logarithm units: the network synthesises ``(log_mel - mean) / scale``,
    where log_mel is the natural logarithm of the power of a mel band."""
    scale: float = 4.0
    """Divisor of the spectrogram, in natural-logarithm units: the network synthesises ``(log_mel - mean) / scale``,
    where log_mel is the natural logarithm of the power of a mel band."""
    duration_weight: float = 0.1
    """Weight of the duration loss, the squared error of ``log(1 + frames)`` of each token."""
    align_weight: float = 0.1
    """Weight of the two losses of the alignment between text and speech, forward sum and binarization."""
    pitch: bool = True
    """Whether the decoder takes the pitch of each token, which a predictor learns. Speech can then be synthesised
    higher or lower."""
    energy: bool = True
    """Whether the decoder takes the energy of each token, which a predictor learns. Speech can then be synthesised
    louder or softer."""
    prosody_weight: float = 0.1
    """Weight of the losses of pitch and energy, the squared error of the standardised value of each token."""
    min_pitch: float = 60.0
    """Lowest pitch that is searched in recordings, in Hz."""
    max_pitch: float = 500.0
    """Highest pitch that is searched in recordings, in Hz."""
    statistics: FilledIn[ProsodyStatistics] = ProsodyStatistics()
    """Mean and standard deviation of pitch and energy in the training data."""
    vocoder_iterations: int = 60
    """Iterations of the Griffin-Lim vocoder."""

    def __post_init__(self):
        if self.floor <= 0 or self.scale <= 0:
            raise ValueError(f"floor and scale must be above 0, got {self.floor} and {self.scale}")
        if self.features.kind != "log_mel":
            raise ValueError(f"speech synthesis needs features.kind 'log_mel', got {self.features.kind!r}")
        if self.pitch and not 0 < self.min_pitch < self.max_pitch <= self.features.sample_rate / 4:
            raise ValueError(
                f"min_pitch and max_pitch must rise from above 0 to at most a quarter of the sample rate of "
                f"{self.features.sample_rate} Hz, got {self.min_pitch} and {self.max_pitch}"
            )

    @property
    def prosody(self) -> tuple[str, ...]:
        """What the decoder takes beside the text: of "pitch" and "energy"."""
        return tuple(name for name in ("pitch", "energy") if getattr(self, name))


def log_mel_transform(features: AudioFeatures, floor: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A transform of raw batches that replaces waveforms by log-mel frames ``[B, F, mels]`` and their mask.

    Applied once to a whole data set, it saves every training step the computation.
    """
    return transform_audio(lambda x, mask: compute_log_mel(x, mask, features, floor=floor))


def recorded_prosody(
    waveform: Array, mask: Array | None, config: SpeechConfig
) -> dict[str, Float[Array, "batch frames"]]:
    """Pitch and energy of each frame of waveforms ``[B, T]``, those that ``config`` uses, by name.

    ``pitch`` is the fundamental frequency in Hz, 0 in unvoiced frames (`preprocess.pitch.track_pitch`); ``energy`` the
    natural logarithm of the power (`preprocess.pitch.log_energy`). ``mask [B, T]``: True on valid samples; None: all
    are.
    """
    f, prosody = config.features, {}
    if config.pitch:
        limits = dict(f_min=config.min_pitch, f_max=config.max_pitch)
        prosody["pitch"] = track_pitch(
            waveform, mask, sample_rate=f.sample_rate, hop=f.hop, **limits
        ).frequency
    if config.energy:
        prosody["energy"] = log_energy(waveform, mask, window=f.window, hop=f.hop)[0]
    return prosody


PROSODY_BATCH = 64
"""Recordings whose pitch is computed at a time, which bounds the memory for overlapping frames."""


def precompute_speech(config: SpeechConfig) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A transform of raw batches that computes all that training needs of recordings, once for a whole data set.

    It replaces the waveforms ``audio [B, T]`` by log-mel frames (`log_mel_transform`), and adds ``pitch`` and
    ``energy`` ``[B, F]`` of each frame (`recorded_prosody`), if the model takes them.
    """
    to_log_mel = log_mel_transform(config.features, config.floor)
    compute = jax.jit(lambda waveform, mask: recorded_prosody(waveform, mask, config))

    def transform(batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with log-mel frames, pitch and energy."""
        waveform = batch["audio"]
        mask = batch.get("audio_mask", np.ones(waveform.shape, bool))
        parts = [
            jax.device_get(
                compute(waveform[start : start + PROSODY_BATCH], mask[start : start + PROSODY_BATCH])
            )
            for start in range(0, len(waveform), PROSODY_BATCH)
        ]
        prosody = {name: np.concatenate([part[name] for part in parts]) for name in config.prosody}
        return {**to_log_mel(batch), **prosody}

    return transform


class AlignedSpeech(NamedTuple):
    """The prediction of a `make_speech` method: recorded speech aligned with its text and resynthesised."""

    durations: Int[Array, "batch length"]
    """Frames of each token in the best alignment; zeros where a text has more tokens than its speech has frames."""
    predicted_durations: Float[Array, "batch length"]
    """Frames of each token by the duration predictor."""
    error: Float[Array, "batch"]
    """Mean absolute error, in nats, of the log-mel frames that are synthesised with ``durations`` and ``prosody``."""
    prosody: dict[str, Float[Array, "batch length"]]
    """By name, standardised pitch and energy of each token in the recording; those that the model has."""
    predicted_prosody: dict[str, Float[Array, "batch length"]]
    """By name, standardised pitch and energy of each token by the predictors."""


class _Inputs(NamedTuple):
    """What the network takes of a batch."""

    text: Int[Array, "batch length"]
    """Token ids."""
    text_mask: Bool[Array, "batch length"]
    speaker: Int[Array, "batch"]
    """Index of the voice."""
    mel: Float[Array, "batch frames mels"]
    """Standardised log-mel frames."""
    mel_mask: Bool[Array, "batch frames"]


class _Outputs(NamedTuple):
    """Alignment, durations and errors of a batch, from which the losses are computed."""

    token_mask: Bool[Array, "batch length"]
    log_p: Float[Array, "batch frames length"]
    """Log-probability of each token given each frame."""
    durations: Int[Array, "batch length"]
    """Frames of each token in the best alignment."""
    predicted: Float[Array, "batch length"]
    """``log(1 + frames)`` of each token by the duration predictor."""
    errors: Float[Array, "batch"]
    """Mean absolute error of the standardised frames."""
    frame_mask: Bool[Array, "batch frames"]
    """Frames of the examples that could be aligned."""
    prosody: dict[str, Float[Array, "batch length"]]
    """Standardised pitch and energy of each token in the recording."""
    predicted_prosody: dict[str, Float[Array, "batch length"]]
    """The same by the predictors."""
    has_prosody: dict[str, Bool[Array, "batch"]]
    """Examples in which any frame has it: speech without a voiced frame has no pitch."""


@dataclasses.dataclass(frozen=True)
class _Model:
    """The synthesis network for one configuration, and its losses."""

    config: SpeechConfig
    vocab_size: int
    length: int
    """Tokens of a text, with padding."""
    speakers: int

    @property
    def network(self) -> SpeechNet:
        """The Flax module of the whole synthesis network."""
        config = self.config
        ids = jax.ShapeDtypeStruct((1, self.length), jnp.int32)  # the encoder needs only the shape of texts
        return SpeechNet(
            make_encoder("text", config.text, {"text": ids}, vocab_size=self.vocab_size),
            self.vocab_size,
            self.speakers,
            mels=config.features.mels,
            width=config.text.width,
            depth=config.decoder_depth,
            kernel=config.kernel,
            dropout=config.dropout,
            prosody=config.prosody,
        )

    def inputs(self, batch: Batch) -> _Inputs:
        """The network's inputs. The masks are False in examples that lack text or audio, which then have no
        influence."""
        present = presence_masks(batch, ("text", "audio"))
        has_both = present["text"] & present["audio"]
        text_mask = batch.get("text_mask", batch["text"] != 0) & has_both[:, None]
        mel, mel_mask = self.standardized_frames(batch)
        return _Inputs(batch["text"], text_mask, _speaker(batch), mel, mel_mask & has_both[:, None])

    def standardized_frames(self, batch: Batch):
        """``(frames [B, F, mels], mask [B, F])``: log-mel frames, standardised by the configured mean and scale, and 0
        where they are padding.

        The batch's ``audio`` is waveforms ``[B, T]`` (their ``audio_mask [B, T]`` is optional), or log-mel frames that
        `log_mel_transform` computed, which always have a mask ``audio_mask [B, F]``.
        """
        config, frames, mask = self.config, batch["audio"], batch.get("audio_mask")
        if frames.ndim == 2:  # waveforms
            frames, mask = compute_log_mel(frames, mask, config.features, floor=config.floor)
        elif frames.shape[-1] != config.features.mels:
            raise ValueError(
                f"the frames have {frames.shape[-1]} bands, features.mels is {config.features.mels}"
            )
        return jnp.where(mask[:, :, None], (frames - config.mean) / config.scale, 0.0), mask

    def token_prosody(self, batch: Batch, durations: Int[Array, "batch length"], mel_mask: Array):
        """``(values, has_value)``, dicts by name: the mean standardised pitch and energy ``[B, L]`` of each token, and
        which examples ``[B]`` have any. The pitch is the mean over the voiced frames of a token, and tokens without any
        take it from their neighbours.

        ``durations``: frames of each token; ``mel_mask``: which frames are valid.
        """
        values, has_value = {}, {}
        for name, frames in self.frame_prosody(batch).items():
            valid = mel_mask & (frames > 0) if name == "pitch" else mel_mask
            frames = jnp.log(jnp.where(valid, frames, 1.0)) if name == "pitch" else frames
            means, has_frames = token_means(frames, durations, valid)
            standardized = jnp.where(has_frames, self.config.statistics.standardize(name, means), 0.0)
            values[name], has_value[name] = fill_gaps(standardized, has_frames), has_frames.any(axis=1)
        return values, has_value

    def frame_prosody(self, batch: Batch) -> dict[str, Float[Array, "batch frames"]]:
        """Pitch in Hz (0: unvoiced) and energy of each frame, from waveforms or as `precompute_speech` computed
        them."""
        if batch["audio"].ndim == 2:  # waveforms
            return recorded_prosody(batch["audio"], batch.get("audio_mask"), self.config)
        missing = [name for name in self.config.prosody if name not in batch]
        if missing:
            raise ValueError(
                f"the batch has log-mel frames without their {' and '.join(missing)}: compute them by "
                "`precompute_speech`, or set pitch and energy of the configuration to False"
            )
        return {name: batch[name] for name in self.config.prosody}

    def init(self, key: Key, batch: Batch) -> Params:
        return self.network.init(fold_in_name(key, "speech"), *self.inputs(first_example(batch)))["params"]

    def forward(self, params: Params, batch: Batch, keys: ExampleKeys | None) -> _Outputs:
        """Everything that the loss is computed from: the alignment of tokens to frames, the durations that follow
        from it, and the L1 errors of the frames that are decoded with these durations.

        ``keys``: of dropout, one for each example; None: no dropout.
        """
        inputs, network = self.inputs(batch), self.network.bind({"params": params})
        mel = inputs.mel
        log_p, durations = self.align(network, inputs)
        tokens = network.encode(*inputs[:3], keys)
        predicted = network.durations(tokens, keys)
        # The decoder learns with the recording's own pitch and energy, the predictors to predict them from the text.
        prosody, has_prosody = self.token_prosody(batch, durations, inputs.mel_mask)
        predicted_prosody = network.predict_prosody(tokens, keys)
        tokens = network.add_prosody(tokens, prosody)
        frames, frame_mask = network.decode(tokens, durations, mel.shape[1], keys)
        # L1 error of each example: mean over mel bands and over valid frames.
        errors = jnp.where(frame_mask[:, :, None], jnp.abs(frames - mel), 0.0).mean(axis=2).sum(axis=1)
        errors = errors / jnp.maximum(frame_mask.sum(axis=1), 1)
        return _Outputs(
            inputs.text_mask,
            log_p,
            durations,
            predicted,
            errors,
            frame_mask,
            prosody,
            predicted_prosody,
            has_prosody,
        )

    def align(self, network: SpeechNet, inputs: _Inputs):
        """``(log_p, durations)``: the log-probability of each token given each frame ``[B, F, L]``, and the frames of
        each token ``[B, L]`` in the best alignment. ``network``: bound to its parameters."""
        log_p = network.align(inputs.text, inputs.text_mask, inputs.mel, inputs.mel_mask)
        # The search for the best alignment has no gradient; the aligner learns from the forward sum and binarization.
        return log_p, monotonic_alignment(jax.lax.stop_gradient(log_p), inputs.mel_mask, inputs.text_mask)

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        """``(loss, aux)``, as this device's share of the means over the global batch:

        ``mel + duration_weight * duration + prosody_weight * (pitch + energy) + align_weight * (forward_sum +
        binarization)``

        aux: these terms, and ``unaligned``, the fraction of texts that are longer than their speech (more tokens
        than frames).
        """
        key = fold_in_name(key, "speech")
        outputs = self.forward(params, batch, batch_keys(key, batch))
        durations = outputs.durations
        # Each example is weighted by its number of frames or of tokens, so that the means are over frames and tokens.
        # An example that could not be aligned has neither.
        has_frames = durations > 0
        frame_count = outputs.frame_mask.sum(axis=1).astype(jnp.float32)
        token_count = has_frames.sum(axis=1).astype(jnp.float32)
        # The duration predictor's squared error of log(1 + frames), mean over the tokens of each example.
        duration_error = _token_error(outputs.predicted, jnp.log1p(durations.astype(jnp.float32)), has_frames)
        has_text = outputs.token_mask.any(axis=1).astype(jnp.float32)
        # By term, the value [B] and the weight [B] of each example in the mean over the global batch.
        values_and_weights = {
            "mel": (outputs.errors, frame_count),
            "duration": (duration_error, token_count),
            "forward_sum": (_forward_sum(outputs) / jnp.maximum(frame_count, 1.0), frame_count),
            "binarization": (_binarization(outputs) / jnp.maximum(frame_count, 1.0), frame_count),
            "unaligned": (1.0 - (frame_count > 0), has_text),
        }
        for name, target in outputs.prosody.items():
            error = _token_error(outputs.predicted_prosody[name], target, has_frames)
            values_and_weights[name] = (error, jnp.where(outputs.has_prosody[name], token_count, 0.0))
        aux = {
            name: collectives.batch_mean(value, weight, axis_name=axis_name)
            for name, (value, weight) in values_and_weights.items()
        }
        total = aux["mel"] + self.config.duration_weight * aux["duration"]
        total += self.config.prosody_weight * sum(aux[name] for name in self.config.prosody)
        total += self.config.align_weight * (aux["forward_sum"] + aux["binarization"])
        return total, jax.lax.stop_gradient(aux)

    def predict(self, params: Params, batch: Batch) -> AlignedSpeech:
        """Aligned and predicted durations of the batch's speech, and the error of its synthesis in nats."""
        outputs = self.forward(params, batch, keys=None)
        predicted_frames = jnp.expm1(outputs.predicted)  # the network predicts log(1 + frames)
        return AlignedSpeech(
            outputs.durations, predicted_frames, outputs.errors * self.config.scale,
            outputs.prosody, outputs.predicted_prosody,
        )  # fmt: skip

    def synthesize(self, params: Params, batch: Batch, frames: int, waveforms: bool) -> SynthesizedSpeech:
        """Speech for texts; see `make_synthesizer`."""
        text, network = batch["text"], self.network.bind({"params": params})
        mask = batch.get("text_mask", text != 0) & presence_masks(batch, ("text",))["text"][:, None]
        tokens = network.encode(text, mask, _speaker(batch))
        predicted_frames = jnp.expm1(network.durations(tokens))  # the network predicts log(1 + frames)
        prosody = network.predict_prosody(tokens)
        return self.render(network, tokens, predicted_frames, prosody, batch, frames, waveforms)

    def convert(self, params: Params, batch: Batch, frames: int, waveforms: bool) -> SynthesizedSpeech:
        """Recordings spoken again by other voices; see `make_converter`."""
        inputs, network = self.inputs(batch), self.network.bind({"params": params})
        _, durations = self.align(network, inputs)
        prosody, _ = self.token_prosody(batch, durations, inputs.mel_mask)
        # A text that is longer than its recording has no durations, and nothing is said.
        tokens = network.encode(inputs.text, inputs.text_mask & (durations > 0), inputs.speaker)
        return self.render(network, tokens, durations.astype(jnp.float32), prosody, batch, frames, waveforms)

    def render(
        self,
        network: SpeechNet,
        tokens: Tokens,
        token_frames: Float[Array, "batch length"],
        prosody: dict[str, Float[Array, "batch length"]],
        batch: Batch,
        frames: int,
        waveforms: bool,
    ) -> SynthesizedSpeech:
        """Speech of encoded tokens, changed by the controls of the batch.

        Args:
          network: bound to its parameters.
          tokens: from ``network.encode``.
          token_frames: frames of each token, before they are divided by the speed and rounded.
          prosody: standardised pitch and energy of each token, by name, before they are shifted.
          batch: its controls are ``speed``, ``pitch_shift`` and ``energy_shift``, see `make_synthesizer`.
          frames: the largest number of frames.
          waveforms: whether the frames are turned into waveforms.
        """
        config = self.config
        speed = batch.get("speed", jnp.ones(len(token_frames)))[:, None]
        durations = jnp.clip(jnp.round(token_frames / speed), 1, frames)
        durations = jnp.where(tokens.mask, durations, 0).astype(jnp.int32)
        prosody = self.shift_prosody(prosody, batch)
        pitch = self.frame_pitch(prosody["pitch"], durations, frames) if config.pitch else None
        tokens = network.add_prosody(tokens, prosody)
        # The network's frames are (log_mel - mean) / scale. Behind the end of the speech there is silence.
        standardized, frame_mask = network.decode(tokens, durations, frames)
        silence = jnp.log(config.floor)
        log_mel = jnp.where(frame_mask[:, :, None], standardized * config.scale + config.mean, silence)
        if not waveforms:
            return SynthesizedSpeech(None, None, log_mel, frame_mask, durations, pitch)
        waveform = griffin_lim_waveform(log_mel, config)
        # Griffin-Lim's waveform has ``hop`` samples for each frame; a sample is valid if its frame is.
        frame_of_sample = jnp.arange(waveform.shape[1]) // config.features.hop
        valid = frame_of_sample[None, :] < frame_mask.sum(axis=1)[:, None]
        waveform = jnp.where(valid, waveform, 0.0)
        return SynthesizedSpeech(waveform, valid, log_mel, frame_mask, durations, pitch)

    def frame_pitch(
        self, pitch: Float[Array, "batch length"], durations: Int[Array, "batch length"], frames: int
    ) -> Float[Array, "batch frames"]:
        """The pitch in Hz of each frame: that of its token in the middle of the token, and between the middles of two
        tokens interpolated linearly in its logarithm. ``pitch``: standardised, of each token."""
        statistics = self.config.statistics
        middle = jnp.cumsum(durations, axis=1) - durations / 2
        spoken = durations > 0
        # Tokens that are not spoken lie behind all frames, and have the pitch of the last one that is.
        last = jnp.take_along_axis(pitch, jnp.maximum(spoken.sum(axis=1, keepdims=True) - 1, 0), axis=1)
        middle = jnp.where(spoken, middle, 2.0 * frames + jnp.arange(pitch.shape[1]))
        log_pitch = jnp.where(spoken, pitch, last) * statistics.pitch_scale + statistics.pitch_mean
        return jnp.exp(jax.vmap(jnp.interp, (None, 0, 0))(jnp.arange(frames) + 0.5, middle, log_pitch))

    def shift_prosody(self, prosody: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """Standardised pitch and energy, moved by the semitones ``pitch_shift`` and the decibels ``energy_shift``."""
        statistics, shifted = self.config.statistics, {}
        units = {"pitch": SEMITONE / statistics.pitch_scale, "energy": DECIBEL / statistics.energy_scale}
        for name, unit in units.items():
            shift = batch.get(f"{name}_shift")
            if name in prosody:
                shifted[name] = prosody[name] + (0.0 if shift is None else unit * shift[:, None])
            elif shift is not None:
                raise ValueError(
                    f"{name}_shift needs a model that is trained with {name}, and this one is not"
                )
        return shifted


def _speaker(batch: Batch) -> Int[Array, "batch"]:
    """The index of each example's speaker; 0 where the batch names no speakers."""
    return batch.get("speaker", jnp.zeros(batch["text"].shape[0], jnp.int32))


def _token_error(predicted, target, valid) -> Float[Array, "batch"]:
    """The squared error of each example, mean over its ``valid`` tokens ``[B, L]``."""
    squared_error = jnp.where(valid, jnp.square(predicted - target), 0.0)
    return squared_error.sum(axis=1) / jnp.maximum(valid.sum(axis=1).astype(jnp.float32), 1.0)


def _forward_sum(outputs: _Outputs) -> Float[Array, "batch"]:
    """``-log`` of the probability that the frames pass through all tokens in order, computed as a CTC loss.

    The labels of the CTC are the positions 1, 2, ... of the tokens, so that equal tokens count as different. The logit
    of the blank is -1: e times less likely than a token of probability 1 (logit 0).
    """
    mask, log_p = outputs.token_mask, outputs.log_p  # log_p [B, frames, tokens]
    labels = jnp.broadcast_to(jnp.arange(1, mask.shape[1] + 1), mask.shape)  # 0 is the blank
    blank = jnp.full((*log_p.shape[:2], 1), -1.0)
    logits = jnp.concatenate([blank, log_p], axis=2)
    return ctc(logits, outputs.frame_mask, labels, mask & (outputs.durations > 0))


def _binarization(outputs: _Outputs) -> Float[Array, "batch"]:
    """``-log`` of the probability of the best alignment: summed over frames, ``-log p(aligned token | frame)``."""
    aligned_token, _, _ = expand_durations(outputs.durations, outputs.frame_mask.shape[1])  # [B, frames]
    log_p = jnp.take_along_axis(outputs.log_p, aligned_token[:, :, None], axis=2)[:, :, 0]
    return -jnp.where(outputs.frame_mask, log_p, 0.0).sum(axis=1)


def make_speech(config: SpeechConfig, *, vocab_size: int, length: int, speakers: int = 1) -> Method:
    """A method of text-to-speech. Durations need no labels: an alignment of text and speech is learned as well.

    The batch holds ``text`` int32 ``[B, length]`` and its mask, ``audio`` (waveforms, or what `precompute_speech` made
    of them) and, with several speakers, ``speaker`` int32 ``[B]``. The loss is the sum of

    - the mean absolute error of the standardised log-mel frames, where each token lasts as long as in the best
      monotonic alignment (`core.alignment`), and has the mean pitch and energy of its frames in the recording;
    - ``duration_weight`` times the squared error of ``log(1 + frames)`` per token, by the duration predictor;
    - ``prosody_weight`` times the squared errors of standardised pitch (its logarithm, over voiced frames) and energy
      per token, by their predictors;
    - ``align_weight`` times the two losses of the alignment, per frame: ``-log`` of the probability that the frames
      pass through all tokens in order (the forward sum, a CTC with one label per token), and ``-log`` of the
      probability of the best alignment (binarization).

    An example without text or audio, or with more tokens than frames, has no influence. Badlani et al. 2022,
    arXiv:2108.10447, eq. 3-6; durations, pitch and energy: Ren et al. 2021, arXiv:2006.04558, sec. 2.3, and their means
    per token: Łańcucki 2021, arXiv:2006.06873, sec. 2.1.

    aux: ``mel``, ``duration``, ``pitch``, ``energy``, ``forward_sum``, ``binarization``, and ``unaligned``, the
    fraction of examples with more tokens than frames.

    Args:
      config: sizes and losses.
      vocab_size: size of the vocabulary.
      length: tokens of a text, with padding.
      speakers: number of speakers.

    Returns:
      The method; ``predict(params, batch)`` gives an `AlignedSpeech`.
    """
    model = _Model(config, vocab_size, length, speakers)
    slot = EncoderSlot(name="text", path="text", fields=("text",))
    return Method(model.init, model.loss, model.predict, encoders=(slot,))


class SynthesizedSpeech(NamedTuple):
    """The result of a function from `make_synthesizer`."""

    waveform: Float[Array, "batch time"] | None
    """In [-1, 1], zero behind the mask; None without waveforms."""
    mask: Bool[Array, "batch time"] | None
    """Valid samples; None without waveforms."""
    log_mel: Float[Array, "batch frames mels"]
    """The frames of the waveform, in nats."""
    frame_mask: Bool[Array, "batch frames"]
    """Valid frames."""
    durations: Int[Array, "batch length"]
    """Frames of each token."""
    pitch: Float[Array, "batch frames"] | None
    """Pitch in Hz of each frame as the network predicts it, voiced or not; None for models without pitch."""


def make_synthesizer(
    config: SpeechConfig,
    *,
    vocab_size: int,
    length: int,
    frames: int,
    speakers: int = 1,
    waveforms: bool = True,
) -> Callable[[Params, Batch], SynthesizedSpeech]:
    """``synthesize(params, batch)``: speech for the batch's texts in the voices of its speakers, see
    `SynthesizedSpeech`.

    The batch holds ``text`` int32 ``[B, length]`` and ``index`` ``[B]``, which only tells the number of examples.
    Optional are ``text_mask`` ``[B, length]`` (else token 0 is padding), ``speaker`` int32 ``[B]`` (else speaker 0) and
    ``present["text"]`` ``[B]`` (else all texts are present). Three optional fields float32 ``[B]`` control the speech
    of each text:

    - ``speed`` divides the durations: above 1 speaks faster;
    - ``pitch_shift`` is added to the predicted pitch of each token, in semitones;
    - ``energy_shift`` is added to the predicted energy of each token, in decibels.

    Synthesis is deterministic.

    Args:
      config, vocab_size, length, speakers: as for `make_speech`.
      frames: the largest number of frames; longer speech is cut. Speech ends after the durations of all tokens, each of
        at least one frame.
      waveforms: whether Griffin-Lim turns the frames into waveforms; False: for another vocoder.

    Raises:
      ValueError: the batch has a ``pitch_shift`` or an ``energy_shift``, and the model no pitch or no energy.

    Example::

        synthesize = jax.jit(make_synthesizer(config, vocab_size=260, length=64, frames=400))
        batch = {"text": ids, "index": jnp.arange(len(ids)), "pitch_shift": jnp.full(len(ids), 3.0)}
        synthesize(params, batch).waveform
    """
    model = _Model(config, vocab_size, length, speakers)
    return lambda params, batch: model.synthesize(params, batch, frames, waveforms)


def make_converter(
    config: SpeechConfig,
    *,
    vocab_size: int,
    length: int,
    frames: int,
    speakers: int = 1,
    waveforms: bool = True,
) -> Callable[[Params, Batch], SynthesizedSpeech]:
    """``convert(params, batch)``: the batch's recordings, spoken again in the voices of its speakers.

    Durations, pitch and energy of each token are those of the recording, whose text the learned alignment finds in it.
    The batch holds ``text``, ``audio`` (of any voice) and their masks as for `make_speech`, ``speaker`` int32 ``[B]``,
    the voices that shall speak, and the optional controls of `make_synthesizer`. ``pitch_shift`` moves the pitch from
    the range of one voice to that of another. A text of more tokens than its recording has frames gives no speech.

    Args:
      config, vocab_size, length, speakers, frames, waveforms: as for `make_synthesizer`.

    Example::

        convert = jax.jit(make_converter(config, vocab_size=260, length=64, frames=400, speakers=2))
        convert(params, {**batch, "speaker": 1 - batch["speaker"]}).waveform
    """
    model = _Model(config, vocab_size, length, speakers)
    return lambda params, batch: model.convert(params, batch, frames, waveforms)


def griffin_lim_waveform(
    frames: Float[Array, "batch frames mels"], config: SpeechConfig
) -> Float[Array, "batch time"]:
    """Log-mel frames (in nats, as `SynthesizedSpeech` holds them) to a waveform in [-1, 1] by Griffin-Lim, which
    estimates the phases. A waveform that exceeds the range is scaled down."""
    f = config.features
    waveform = log_mel_to_waveform(
        frames,
        sample_rate=f.sample_rate,
        n_fft=f.window,
        hop=f.hop,
        f_max=f.max_hz,
        iterations=config.vocoder_iterations,
    )
    return waveform / jnp.maximum(jnp.abs(waveform).max(axis=1, keepdims=True), 1.0)
