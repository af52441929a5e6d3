"""Trained runs put to use: what a run's checkpoint holds, as functions from one modality to another."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from xmodal_jax.data.arrays import ArraySource
from xmodal_jax.data.text import Tokenizer, tokenizer_from
from xmodal_jax.models.seq2seq import Seq2SeqConfig, Writing
from xmodal_jax.models.speech import SpeechConfig, make_speaker
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.writing import Writer

Kind = TypeVar("Kind")


def from_json(kind: type[Kind], value: Any) -> Kind:
    """The inverse of `train.run.to_json` for nested dataclasses of plain values, tuples and None.

    Raises:
      ValueError: a field that ``kind`` does not have.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(args[0], value)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return value
        return from_json(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        each = [args[0]] * len(value) if args[1:] == (...,) else args
        return tuple(from_json(a, v) for a, v in zip(each, value, strict=True))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        unknown = [name for name in value if name not in hints]
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}: the run is of another version")
        return kind(**{name: from_json(hints[name], v) for name, v in value.items()})
    return value


class Heard(NamedTuple):
    """What a run that writes needs of its maker."""

    source: str
    """What it writes about: image, audio or video."""
    tokenizer: Tokenizer
    write: Callable[[Sequence[np.ndarray]], list[str]]
    """Texts about pictures uint8 ``[H, W, C]``, videos uint8 ``[F, H, W, C]`` or sounds int16 ``[T]`` at ``rate``."""
    options: dict[str, Any]
    """How its data were read (``image_size``, ``sample_rate``, …)."""


class Voice(NamedTuple):
    """A run that speaks."""

    tokenizer: Tokenizer
    speakers: tuple[str, ...]
    sample_rate: int
    speak: Callable[..., list[np.ndarray]]
    """``speak(texts, speakers) -> waveforms``, float32 in [-1, 1]."""


def _facts(run: pathlib.Path, seed: int | None, target: str):
    kept = restore_run(run, seed=seed)
    if kept.meta.get("target") != target:
        raise ValueError(
            f"{run} is no run that makes {target}: its checkpoint says {kept.meta.get('target')!r}"
        )
    return kept.params, kept.meta, kept.meta["config"]


def load_writer(run: pathlib.Path, writing: Writing | None = None, *, seed: int | None = None) -> Heard:
    """A captioning or recognition run's newest checkpoint, ready to write (``writing``: as it was told, if None).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run makes something else, or has several seeds and ``seed`` is none of them.
    """
    params, meta, config = _facts(run, seed, "text")
    model = from_json(Seq2SeqConfig, config["model"])
    writing = from_json(Writing, config["writing"]) if writing is None else writing
    tokenizer, source = tokenizer_from(meta["tokenizer"]), meta["source"]
    writer = Writer(model, source, tokenizer, length=meta["length"], ways={"it": writing}, batch_size=32)

    def write(examples):
        # Of whole seconds, so that sets of sounds share a program.
        seconds = -(-max(map(len, examples)) // 16_000) * 16_000
        fields = {source: np.stack(examples)} if source != "audio" else pad_sounds(examples, seconds)
        return writer(params, ArraySource(fields), "it")

    return Heard(source, tokenizer, write, config["input"])


def pad_sounds(sounds: Sequence[np.ndarray], length: int | None = None) -> dict[str, np.ndarray]:
    """``audio`` ``[B, T]`` and ``audio_mask`` of sounds of different lengths."""
    longest = max(map(len, sounds)) if length is None else length
    audio = np.zeros((len(sounds), longest), sounds[0].dtype)
    mask = np.zeros((len(sounds), longest), bool)
    for k, sound in enumerate(sounds):
        audio[k, : len(sound)], mask[k, : len(sound)] = sound[:longest], True
    return {"audio": audio, "audio_mask": mask}


def load_voice(run: pathlib.Path, *, seed: int | None = None, rate: float = 1.0) -> Voice:
    """A synthesis run's newest checkpoint, ready to speak.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run makes something else, or has several seeds and ``seed`` is none of them.
    """
    params, meta, config = _facts(run, seed, "audio")
    model = from_json(SpeechConfig, config["model"])
    tokenizer, names = tokenizer_from(meta["tokenizer"]), tuple(meta["speakers"])
    sizes = dict(vocab_size=tokenizer.vocab_size, length=meta["length"], frames=meta["frames"])
    speak = make_speaker(model, speakers=len(names), rate=rate, **sizes)

    speak = jax.jit(speak)

    def say(texts: Sequence[str], speakers: Sequence[int]) -> list[np.ndarray]:
        long = [text for text, n in zip(texts, tokenizer.lengths(texts), strict=True) if n > meta["length"]]
        if long:
            raise ValueError(f"{run} says texts of up to {meta['length']} tokens: {long[0]!r} is longer")
        ids, mask = tokenizer.encode_batch(list(texts), meta["length"])
        batch = {"text": ids, "text_mask": mask, "speaker": np.asarray(speakers, np.int32)}
        spoken = speak(params, {**batch, "index": np.arange(len(ids), dtype=np.int32)})
        waves, there = jax.device_get((spoken.waveform, spoken.mask))
        return [wave[heard] for wave, heard in zip(waves, there, strict=True)]

    return Voice(tokenizer, names, model.features.sample_rate, say)
