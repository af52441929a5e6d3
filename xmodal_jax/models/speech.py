"""Text to speech: log-mel frames all at once, from tokens that last as long as training has found them to, and a
waveform from these by Griffin-Lim.

`make_speech` is the method, `make_synthesizer` what speaks with its parameters, in one compiled program.
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
from xmodal_jax.core.random import example_keys, fold_in_name, named_keys
from xmodal_jax.losses.sequence import ctc
from xmodal_jax.models.towers import (
    AudioFeatures,
    init_inputs,
    log_mel_of,
    make_encoder,
    once_per_batch,
    presence,
)
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.nets.speech import SpeechNet
from xmodal_jax.preprocess.vocoder import log_mel_to_waveform
from xmodal_jax.types import Batch, Key, Method, Params


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """Sizes and losses of the synthesis."""

    text: EncoderConfig = EncoderConfig("transformer", dropout=0.1)
    """Text encoder; its width is that of the decoder as well."""
    decoder_depth: int = 4
    """Convolutional blocks of the decoder."""
    kernel: int = 5
    """Frames that a convolution of the decoder sees."""
    dropout: float = 0.0
    """Of the decoder's and the durations' residual branches."""
    features: AudioFeatures = AudioFeatures(mels=80, window=1024, hop=200)
    """The spectrogram that is synthesised. Griffin-Lim wants frames that overlap by three quarters or more."""
    floor: float = 1e-5
    """Least power of a mel band: what is quieter counts as silence."""
    mean: float = -5.0
    """Log-mel frames are shifted by this and divided by ``scale``, so that the network's are of unit size."""
    scale: float = 4.0
    """See ``mean``."""
    duration_weight: float = 0.1
    """Weight of the squared error of ``log(1 + frames)`` per token."""
    align_weight: float = 0.1
    """Weight of the alignment's two losses."""
    vocoder_iterations: int = 60
    """Of Griffin-Lim."""


def frames_of(features: AudioFeatures, floor: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A change of raw batches: waveforms to log-mel frames ``[B, F, mels]``, as they are synthesised, with their mask;
    computed once and not again at every step that reads them."""
    return once_per_batch(lambda x, mask: log_mel_of(x, mask, features, floor=floor))


def _mel(batch: Batch, config: SpeechConfig):
    """Standardised frames and their mask, of waveforms or of what `frames_of` made of them."""
    frames, mask = batch["audio"], batch.get("audio_mask")
    if frames.ndim == 2:
        frames, mask = log_mel_of(frames, mask, config.features, floor=config.floor)
    elif frames.shape[-1] != config.features.mels:
        raise ValueError(f"the frames have {frames.shape[-1]} bands, features.mels is {config.features.mels}")
    return jnp.where(mask[:, :, None], (frames - config.mean) / config.scale, 0.0), mask


def _speaker(batch: Batch) -> Int[Array, "batch"]:
    return batch.get("speaker", jnp.zeros(batch["text"].shape[0], jnp.int32))


def _net(config: SpeechConfig, vocab_size: int, length: int, speakers: int) -> SpeechNet:
    shape = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return SpeechNet(
        make_encoder("text", config.text, {"text": shape}, vocab_size=vocab_size), vocab_size, speakers,
        config.features.mels, config.text.width, config.decoder_depth, config.kernel, config.dropout,
    )  # fmt: skip


class Aligned(NamedTuple):
    """What `make_speech`'s ``predict`` gives: how the model hears the batch's own speech."""

    durations: Int[Array, "batch length"]
    """Frames of each token by the best alignment; zeros where a text is longer than its speech."""
    said: Float[Array, "batch length"]
    """Frames that the model would itself give each token."""
    error: Float[Array, "batch"]
    """Mean absolute difference of the log-mel frames, synthesised with ``durations``, from the true ones, in nats."""


class _Computed(NamedTuple):
    mask: Array
    """Which tokens there are, ``[B, L]``."""
    log_p: Array
    """Of each frame over the tokens, ``[B, F, L]``."""
    durations: Array
    said: Array
    """``log(1 + frames)`` of each token as the model would have it."""
    errors: Array
    """Of the standardised frames, ``[B]``."""
    there: Array
    """Which frames there are, of examples that could be aligned."""


def make_speech(config: SpeechConfig, *, vocab_size: int, length: int, speakers: int = 1) -> Method:
    """Speech from text, with durations that need no labels: an alignment is learned beside it.

    The batch holds ``text`` int32 ``[B, length]`` and its mask, ``audio`` (waveforms or frames, see `frames_of`) and,
    with several voices, ``speaker`` int32 ``[B]``. The loss is the sum of

    - the mean absolute error of the (standardised) log-mel frames, each token lasting as long as the best monotonic
      alignment says (`core.alignment`);
    - ``duration_weight`` times the squared error of ``log(1 + frames)`` that the durations' predictor makes per token;
    - ``align_weight`` times ``-log`` of the probability that the frames pass through all tokens in order (the forward
      sum, CTC with a label per token), per frame, and of that of the best alignment, per frame.

    An example with a modality missing, or with more tokens than frames, has no influence. Badlani et al. 2022,
    arXiv:2108.10447, eq. 3-6; durations: Ren et al. 2021, arXiv:2006.04558, sec. 2.3.

    aux: ``mel``, ``duration``, ``forward_sum``, ``binarization``, ``unaligned`` (share of examples that are too short).
    """
    net = _net(config, vocab_size, length, speakers)

    def inputs(batch):
        there = presence(batch, ("text", "audio"))
        there = there["text"] & there["audio"]
        mask = batch.get("text_mask", batch["text"] != 0) & there[:, None]
        mel, mel_mask = _mel(batch, config)
        return batch["text"], mask, _speaker(batch), mel, mel_mask & there[:, None]

    def init(key: Key, batch: Batch) -> Params:
        return net.init(fold_in_name(key, "speech"), *inputs(init_inputs(batch)))["params"]

    def compute(params: Params, batch: Batch, keys) -> _Computed:
        text, mask, speaker, mel, mel_mask = inputs(batch)
        bound = net.bind({"params": params})
        log_p = bound.align(text, mask, mel, mel_mask)
        durations = monotonic_alignment(jax.lax.stop_gradient(log_p), mel_mask, mask)
        tokens = bound.encode(text, mask, speaker, keys)
        made, there = bound.decode(tokens, durations, mel.shape[1], keys)
        errors = jnp.where(there[:, :, None], jnp.abs(made - mel), 0.0).mean(axis=2).sum(axis=1)
        errors = errors / jnp.maximum(there.sum(axis=1), 1)
        return _Computed(mask, log_p, durations, bound.durations(tokens, keys), errors, there)

    def loss(params: Params, batch: Batch, key: Key, *, axis_name: str | None = None):
        (key,) = named_keys(key, "speech")
        mask, log_p, durations, said, errors, there = compute(
            params, batch, example_keys(key, batch["index"])
        )
        frames, tokens = (x.sum(axis=1).astype(jnp.float32) for x in (there, durations > 0))
        each = jnp.maximum(frames, 1.0)
        late = jnp.square(said - jnp.log1p(durations.astype(jnp.float32)))
        late = jnp.where(durations > 0, late, 0.0).sum(axis=1) / jnp.maximum(tokens, 1.0)
        # CTC with a label of its own for each token, and a blank that is e times less likely than a certain token.
        labels = jnp.broadcast_to(jnp.arange(1, mask.shape[1] + 1), mask.shape)
        blank = jnp.full((*log_p.shape[:2], 1), -1.0)
        total = ctc(jnp.concatenate([blank, log_p], axis=2), there, labels, mask & (durations > 0)) / each
        token, _, _ = expand_durations(durations, there.shape[1])
        best = jnp.take_along_axis(log_p, token[:, :, None], axis=2)[:, :, 0]
        binary = -jnp.where(there, best, 0.0).sum(axis=1) / each
        wanted = mask.any(axis=1).astype(jnp.float32)
        aux = {
            "mel": (errors, frames),
            "duration": (late, tokens),
            "forward_sum": (total, frames),
            "binarization": (binary, frames),
            "unaligned": (1.0 - (frames > 0), wanted),
        }
        aux = {name: collectives.batch_mean(*pair, axis_name=axis_name) for name, pair in aux.items()}
        value = aux["mel"] + config.duration_weight * aux["duration"]
        value += config.align_weight * (aux["forward_sum"] + aux["binarization"])
        return value, jax.lax.stop_gradient(aux)

    def predict(params: Params, batch: Batch) -> Aligned:
        found = compute(params, batch, None)
        return Aligned(found.durations, jnp.expm1(found.said), found.errors * config.scale)

    return Method(init, loss, predict)


class SynthesizedSpeech(NamedTuple):
    """What `make_synthesizer` gives."""

    waveform: Float[Array, "batch time"]
    """In [-1, 1], silent behind the mask."""
    mask: Bool[Array, "batch time"]
    """Which samples are speech."""
    log_mel: Float[Array, "batch frames mels"]
    """The frames that the waveform was made from, in nats."""
    frame_mask: Bool[Array, "batch frames"]
    durations: Int[Array, "batch length"]
    """Frames of each token."""


def make_synthesizer(
    config: SpeechConfig, *, vocab_size: int, length: int, frames: int, speakers: int = 1, rate: float = 1.0
) -> Callable[[Params, Batch], SynthesizedSpeech]:
    """``speak(params, batch) -> SynthesizedSpeech``: the batch's ``text`` (with ``text_mask``), said by ``speaker``.

    ``frames``: the longest speech; what is longer is cut off. ``rate``: above 1 speaks faster. The end is where the
    durations of all tokens, at least one frame each, are over.
    """
    if rate <= 0:
        raise ValueError(f"the rate of speech must be positive, got {rate}")
    net = _net(config, vocab_size, length, speakers)

    def speak(params: Params, batch: Batch) -> SynthesizedSpeech:
        text = batch["text"]
        mask = batch.get("text_mask", text != 0) & presence(batch, ("text",))["text"][:, None]
        bound = net.bind({"params": params})
        tokens = bound.encode(text, mask, _speaker(batch))
        lasting = jnp.round(jnp.expm1(bound.durations(tokens)) / rate)
        durations = jnp.where(mask, jnp.clip(lasting, 1, frames), 0).astype(jnp.int32)
        made, frame_mask = bound.decode(tokens, durations, frames)
        silence = jnp.log(config.floor)
        made = jnp.where(frame_mask[:, :, None], made * config.scale + config.mean, silence)
        waveform = vocode(made, config)
        sample = jnp.arange(waveform.shape[1]) // config.features.hop
        heard = sample[None, :] < frame_mask.sum(axis=1)[:, None]
        return SynthesizedSpeech(jnp.where(heard, waveform, 0.0), heard, made, frame_mask, durations)

    return speak


def vocode(frames: Float[Array, "batch frames mels"], config: SpeechConfig) -> Float[Array, "batch time"]:
    """Log-mel frames to a waveform in [-1, 1]; one that would be louder is made quieter."""
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
