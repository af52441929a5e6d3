"""Text to speech: a non-autoregressive model of log-mel frames with learned durations, and the Griffin-Lim vocoder.

`make_speech` is the method; `make_synthesizer` gives a function that synthesises speech with its parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core import collectives
from xmodal_jax.core.alignment import expand_durations, monotonic_alignment
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
from xmodal_jax.preprocess.vocoder import log_mel_to_waveform
from xmodal_jax.types import Batch, EncoderSlot, ExampleKeys, Key, Method, Params


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
    """Dropout rate in the residual branches of the decoder and the duration predictor."""
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
    vocoder_iterations: int = 60
    """Iterations of the Griffin-Lim vocoder."""

    def __post_init__(self):
        if self.floor <= 0 or self.scale <= 0:
            raise ValueError(f"floor and scale must be above 0, got {self.floor} and {self.scale}")


def log_mel_transform(features: AudioFeatures, floor: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A transform of raw batches that replaces waveforms by log-mel frames ``[B, F, mels]`` and their mask.

    Applied once to a whole data set, it saves every training step the computation.
    """
    return transform_audio(lambda x, mask: compute_log_mel(x, mask, features, floor=floor))


class AlignedSpeech(NamedTuple):
    """The prediction of a `make_speech` method: recorded speech aligned with its text and resynthesised."""

    durations: Int[Array, "batch length"]
    """Frames of each token in the best alignment; zeros where a text has more tokens than its speech has frames."""
    predicted_durations: Float[Array, "batch length"]
    """Frames of each token by the duration predictor."""
    error: Float[Array, "batch"]
    """Mean absolute error, in nats, of the log-mel frames that are synthesised with ``durations``."""


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
        )

    def inputs(self, batch: Batch):
        """``(text, text_mask, speaker, mel, mel_mask)``: token ids ``[B, L]``, the speaker's index ``[B]`` and
        standardised log-mel frames ``[B, F, mels]``. The masks are False in examples that lack text or audio, which
        then have no influence."""
        present = presence_masks(batch, ("text", "audio"))
        has_both = present["text"] & present["audio"]
        text_mask = batch.get("text_mask", batch["text"] != 0) & has_both[:, None]
        mel, mel_mask = self.standardized_frames(batch)
        return batch["text"], text_mask, _speaker(batch), mel, mel_mask & has_both[:, None]

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

    def init(self, key: Key, batch: Batch) -> Params:
        return self.network.init(fold_in_name(key, "speech"), *self.inputs(first_example(batch)))["params"]

    def forward(self, params: Params, batch: Batch, keys: ExampleKeys | None) -> _Outputs:
        """Everything that the loss is computed from: the alignment of tokens to frames, the durations that follow
        from it, and the L1 errors of the frames that are decoded with these durations.

        ``keys``: of dropout, one for each example; None: no dropout.
        """
        text, mask, speaker, mel, mel_mask = self.inputs(batch)
        network = self.network.bind({"params": params})
        log_p = network.align(text, mask, mel, mel_mask)  # log p(token | frame), [B, frames, tokens]
        # The search for the best alignment has no gradient; the aligner learns from the forward sum and binarization.
        durations = monotonic_alignment(jax.lax.stop_gradient(log_p), mel_mask, mask)
        tokens = network.encode(text, mask, speaker, keys)
        frames, frame_mask = network.decode(tokens, durations, mel.shape[1], keys)
        # L1 error of each example: mean over mel bands and over valid frames.
        errors = jnp.where(frame_mask[:, :, None], jnp.abs(frames - mel), 0.0).mean(axis=2).sum(axis=1)
        errors = errors / jnp.maximum(frame_mask.sum(axis=1), 1)
        return _Outputs(mask, log_p, durations, network.durations(tokens, keys), errors, frame_mask)

    def loss(self, params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        """``(loss, aux)``, as this device's share of the means over the global batch:

        ``mel + duration_weight * duration + align_weight * (forward_sum + binarization)``

        aux: these four terms, and ``unaligned``, the fraction of texts that are longer than their speech (more tokens
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
        squared_error = jnp.square(outputs.predicted - jnp.log1p(durations.astype(jnp.float32)))
        squared_error = jnp.where(durations > 0, squared_error, 0.0)
        duration_error = squared_error.sum(axis=1) / jnp.maximum(token_count, 1.0)
        has_text = outputs.token_mask.any(axis=1).astype(jnp.float32)
        # By term, the value [B] and the weight [B] of each example in the mean over the global batch.
        values_and_weights = {
            "mel": (outputs.errors, frame_count),
            "duration": (duration_error, token_count),
            "forward_sum": (_forward_sum(outputs) / jnp.maximum(frame_count, 1.0), frame_count),
            "binarization": (_binarization(outputs) / jnp.maximum(frame_count, 1.0), frame_count),
            "unaligned": (1.0 - (frame_count > 0), has_text),
        }
        aux = {
            name: collectives.batch_mean(value, weight, axis_name=axis_name)
            for name, (value, weight) in values_and_weights.items()
        }
        total = aux["mel"] + self.config.duration_weight * aux["duration"]
        total += self.config.align_weight * (aux["forward_sum"] + aux["binarization"])
        return total, jax.lax.stop_gradient(aux)

    def predict(self, params: Params, batch: Batch) -> AlignedSpeech:
        """Aligned and predicted durations of the batch's speech, and the error of its synthesis in nats."""
        outputs = self.forward(params, batch, keys=None)
        predicted_frames = jnp.expm1(outputs.predicted)  # the network predicts log(1 + frames)
        return AlignedSpeech(outputs.durations, predicted_frames, outputs.errors * self.config.scale)


def _speaker(batch: Batch) -> Int[Array, "batch"]:
    """The index of each example's speaker; 0 where the batch names no speakers."""
    return batch.get("speaker", jnp.zeros(batch["text"].shape[0], jnp.int32))


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

    The batch holds ``text`` int32 ``[B, length]`` and its mask, ``audio`` (waveforms, or the frames of
    `log_mel_transform`) and, with several speakers, ``speaker`` int32 ``[B]``. The loss is the sum of

    - the mean absolute error of the standardised log-mel frames, where each token lasts as long as in the best
      monotonic alignment (`core.alignment`);
    - ``duration_weight`` times the squared error of ``log(1 + frames)`` per token, by the duration predictor;
    - ``align_weight`` times the two losses of the alignment, per frame: ``-log`` of the probability that the frames
      pass through all tokens in order (the forward sum, a CTC with one label per token), and ``-log`` of the
      probability of the best alignment (binarization).

    An example without text or audio, or with more tokens than frames, has no influence. Badlani et al. 2022,
    arXiv:2108.10447, eq. 3-6; durations: Ren et al. 2021, arXiv:2006.04558, sec. 2.3.

    aux: ``mel``, ``duration``, ``forward_sum``, ``binarization``, and ``unaligned``, the fraction of examples with more
    tokens than frames.

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

    waveform: Float[Array, "batch time"]
    """In [-1, 1], zero behind the mask."""
    mask: Bool[Array, "batch time"]
    """Valid samples."""
    log_mel: Float[Array, "batch frames mels"]
    """The frames of the waveform, in nats."""
    frame_mask: Bool[Array, "batch frames"]
    """Valid frames."""
    durations: Int[Array, "batch length"]
    """Frames of each token."""


def make_synthesizer(
    config: SpeechConfig,
    *,
    vocab_size: int,
    length: int,
    frames: int,
    speakers: int = 1,
    speed: float = 1.0,
) -> Callable[[Params, Batch], SynthesizedSpeech]:
    """``synthesize(params, batch)``: speech for the batch's texts in the voices of its speakers, see
    `SynthesizedSpeech`.

    The batch holds ``text`` int32 ``[B, length]`` and ``index`` ``[B]``, which only tells the number of examples.
    Optional are ``text_mask`` ``[B, length]`` (else token 0 is padding), ``speaker`` int32 ``[B]`` (else speaker 0) and
    ``present["text"]`` ``[B]`` (else all texts are present). Synthesis is deterministic.

    Args:
      config, vocab_size, length, speakers: as for `make_speech`.
      frames: the largest number of frames; longer speech is cut. Speech ends after the durations of all tokens, each of
        at least one frame.
      speed: divides the durations; above 1 speaks faster.

    Raises:
      ValueError: ``speed`` is not positive.

    Example::

        synthesize = jax.jit(make_synthesizer(config, vocab_size=260, length=64, frames=400))
        synthesize(params, {"text": ids, "index": jnp.arange(len(ids))}).waveform
    """
    if speed <= 0:
        raise ValueError(f"the speed of speech must be positive, got {speed}")
    network = _Model(config, vocab_size, length, speakers).network

    def synthesize(params: Params, batch: Batch) -> SynthesizedSpeech:
        """The waveform ``[B, frames * hop]`` in [-1, 1], the log-mel frames ``[B, frames, mels]`` in nats and the
        durations ``[B, length]`` in frames, for the batch's texts, with masks of what is no padding."""
        text = batch["text"]
        mask = batch.get("text_mask", text != 0) & presence_masks(batch, ("text",))["text"][:, None]
        bound = network.bind({"params": params})
        tokens = bound.encode(text, mask, _speaker(batch))
        # The network predicts log(1 + frames) of each token.
        predicted_frames = jnp.round(jnp.expm1(bound.durations(tokens)) / speed)
        durations = jnp.where(mask, jnp.clip(predicted_frames, 1, frames), 0).astype(jnp.int32)
        # The network's frames are (log_mel - mean) / scale. Behind the end of the speech there is silence.
        standardized, frame_mask = bound.decode(tokens, durations, frames)
        silence = jnp.log(config.floor)
        log_mel = jnp.where(frame_mask[:, :, None], standardized * config.scale + config.mean, silence)
        waveform = vocode(log_mel, config)
        # A sample of the waveform is valid if its frame is: frames begin every ``hop`` samples.
        frame_of_sample = jnp.arange(waveform.shape[1]) // config.features.hop
        valid = frame_of_sample[None, :] < frame_mask.sum(axis=1)[:, None]
        return SynthesizedSpeech(jnp.where(valid, waveform, 0.0), valid, log_mel, frame_mask, durations)

    return synthesize


def vocode(frames: Float[Array, "batch frames mels"], config: SpeechConfig) -> Float[Array, "batch time"]:
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
