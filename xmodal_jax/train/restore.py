"""Trained runs put to use: what a run's checkpoint holds, as a function from one modality to another."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.arrays import ArraySource
from xmodal_jax.data.text import Tokenize, Tokenizer, load_hf_tokenizer, tokenizer_from
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.gan import GANConfig, make_gan
from xmodal_jax.models.gan_network import Captioner, Watcher
from xmodal_jax.models.seq2seq import Seq2SeqConfig, Writing, make_describer
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.models.towers import make_encoder, pretrained_config
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.pretrained.files import open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.checkpoint import Kept, restore_run
from xmodal_jax.train.config import PretrainedConfig
from xmodal_jax.train.drawing import Artist
from xmodal_jax.train.speaking import Speaker
from xmodal_jax.train.transfer import as_pretrained, find_folders
from xmodal_jax.train.writing import Writer

BATCH = 32
"""Examples that are translated at once."""


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `train.run.to_json` for a ``kind`` of value: nested dataclasses of plain values, tuples, paths and
    None.

    Raises:
      ValueError: a field that ``kind`` does not have.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(args[0], value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else from_json(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        each = [args[0]] * len(value) if args[1:] == (...,) else args
        return tuple(from_json(a, v) for a, v in zip(each, value, strict=True))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        unknown = [name for name in value if name not in hints]
        if unknown:
            raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}: the run is of another version")
        return kind(**{name: from_json(hints[name], v) for name, v in value.items()})
    return pathlib.Path(value) if kind is pathlib.Path else value


class Translator(NamedTuple):
    """A trained run as a function."""

    source: str
    """The modality that it takes."""
    target: str
    """The modality that it makes: text, audio or image."""
    apply: Callable[..., list]
    """Examples to examples: texts; pictures or videos, uint8, of ``shape``; sounds ``[T]``, int16 or floats in [-1, 1].
    One that speaks takes the numbers of the ``speakers`` as second argument (by default the first of them). One that
    draws makes another picture each time the same text is among the examples."""
    sample_rate: int
    """Of the sounds that it takes or makes, Hz."""
    shape: tuple[int, ...] = ()
    """Of the pictures ``[H, W, C]`` or videos ``[F, H, W, C]`` that it was trained on."""
    speakers: tuple[str, ...] = ()
    """Whose voices it has."""


def load_translator(
    run: pathlib.Path,
    *,
    writing: Writing | None = None,
    rate: float = 1.0,
    noise: int = 0,
    seed: int | None = None,
) -> Translator:
    """A run's newest checkpoint: of captioning, recognition (``writing``: how text is generated, None for as the run
    was told), synthesis (``rate``: above 1 speaks faster) or drawing (``noise``: a seed for what the text leaves open).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run makes something else, or has several seeds and ``seed`` is none of them.
    """
    kept = restore_run(run, seed=seed)
    match kept.meta.get("target"):
        case "text":
            return _writer(kept, writing)
        case "audio":
            return _speaker(kept, rate, run)
        case "image" if kept.meta.get("tokenizer"):
            return _artist(kept, noise)
    raise ValueError(
        f"{run} translates nothing: give a run of captioning.py, speech_recognition.py, speech_synthesis.py, or of "
        "text_to_image_gan.py with captions"
    )


def _writer(kept: Kept, writing: Writing | None) -> Translator:
    config, meta = kept.meta["config"], kept.meta
    model, source = from_json(Seq2SeqConfig, config["model"]), meta["source"]
    ways = {"it": from_json(Writing, config["writing"]) if writing is None else writing}
    writer = Writer(
        model, source, tokenizer_from(meta["tokenizer"]), length=meta["length"], ways=ways, batch_size=BATCH
    )
    rate = model.features.sample_rate

    def apply(examples: Sequence[np.ndarray]) -> list[str]:
        # Of whole seconds, so that sets of sounds share a program.
        fields = _padded(examples, rate) if source == "audio" else {source: np.stack(examples)}
        return writer(kept.params, ArraySource(fields), "it")

    return Translator(source, "text", apply, rate, shape=tuple(meta["shape"]))


class PictureWriter(NamedTuple):
    """What a captioning run of pictures has learned."""

    config: Seq2SeqConfig
    params: Any
    tokenizer: Tokenizer
    length: int
    shape: tuple[int, int, int]
    """Of the pictures."""


def load_picture_writer(run: pathlib.Path, *, seed: int | None = None) -> PictureWriter:
    """The newest checkpoint of a captioning run.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run captions no pictures.
    """
    kept = restore_run(run, seed=seed)
    meta = kept.meta
    if (meta.get("source"), meta.get("target")) != ("image", "text"):
        raise ValueError(f"{run} captions no pictures and cannot judge pictures: give a run of captioning.py")
    config = from_json(Seq2SeqConfig, meta["config"]["model"])
    tokenizer, shape = tokenizer_from(meta["tokenizer"]), tuple(meta["shape"])
    return PictureWriter(config, kept.params, tokenizer, meta["length"], shape)


class Described(NamedTuple):
    """A trained captioner, and how it reads texts."""

    captioner: Captioner
    tokenize: Tokenize


def load_captioner(run: pathlib.Path, *, seed: int | None = None) -> Described:
    """The captioner of pictures in a run's newest checkpoint, for `models.gan.make_gan`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run captions no pictures.
    """
    trained = load_picture_writer(run, seed=seed)
    sizes = dict(vocab_size=trained.tokenizer.vocab_size, length=trained.length)
    describer = make_describer(trained.config, "image", **sizes)
    return Described(Captioner(*describer, trained.params), Tokenize(trained.tokenizer, trained.length))


class Reader(NamedTuple):
    """A trained text encoder, and how it reads texts."""

    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    length: int | None
    """Tokens of a text; None: as many as there are places."""


def load_reader(run: pathlib.Path, *, seed: int | None = None) -> Reader:
    """The text encoder of a contrastive run's newest checkpoint, for `models.gan.make_gan`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has aligned no texts.
    """
    kept = restore_run(run, seed=seed)
    meta, parts = kept.meta, kept.params.get("text", {})
    if "text" not in meta.get("modalities", ()) or "encoder" not in parts:
        raise ValueError(f"{run} has no text encoder of its own: give a run of contrastive.py with text")
    config = from_json(ContrastiveConfig, meta["config"]["model"]).text
    params = {name: parts[name] for name in ("encoder", "pool") if name in parts}
    return Reader(config, params, tokenizer_from(meta["tokenizer"]), meta["max_length"])


def read_reader(asked: EncoderConfig, folder: pathlib.Path) -> Reader:
    """The pretrained text encoder of a Hugging Face folder; ``asked``: what does not follow from it."""
    config = as_pretrained(asked, pretrained_config("text", folder))
    module = make_encoder("text", config, {}, vocab_size=0, far="pool")
    params, _ = read_parameters(open_checkpoint(folder), "text", module, parameter_shapes(module))
    return Reader(config, {"encoder": params}, load_hf_tokenizer(folder), None)


def text_reader(config: PretrainedConfig) -> tuple[PretrainedConfig, Reader | None]:
    """A drawing run's configuration with the text encoder of ``--read-with RUN`` or ``--text-encoder hf:PATH`` in its
    model, and that encoder.

    Raises:
      ValueError: both are given, or one where no caption is read, or an encoder of neither text nor images.
    """
    folder = find_folders(config, ("text", "image")).get("text")
    if config.read_with is not None and folder is not None:
        raise ValueError("--read-with and --text-encoder both say who reads the captions: give one of them")
    if config.read_with is None and folder is None:
        return config, None
    if not config.model.reads:
        raise ValueError(
            f"--read-with and --text-encoder read captions, the condition is {config.model.condition!r}: leave them out"
            " or set --model.condition words"
        )
    reader = load_reader(config.read_with) if folder is None else read_reader(config.model.text, folder)
    model = dataclasses.replace(config.model, text=reader.config)
    return dataclasses.replace(config, model=model), reader


def image_watcher(config: PretrainedConfig, shape: tuple[int, int, int]) -> Watcher | None:
    """The pretrained encoder of ``--image-encoder hf:PATH``, for images of ``shape``: what it sees at each place."""
    folder = find_folders(config).get("image")
    if folder is None:
        return None
    example = {"image": np.zeros((1, *shape), np.uint8)}
    module = make_encoder("image", pretrained_config("image", folder), example, vocab_size=0)
    params, _ = read_parameters(open_checkpoint(folder), "image", module, parameter_shapes(module))
    see = lambda params, pixels: module.apply({"params": params}, pixels).values[:, module.leading :]
    return Watcher(see, params)


def same_tokens(described: Described | None, reader: Reader | None) -> Tokenize | None:
    """How both read texts; None: neither says how long they are. Raises ``ValueError``: each has a way of its own."""
    if described is None:
        return None if reader is None or reader.length is None else Tokenize(reader.tokenizer, reader.length)
    tokenize = described.tokenize
    if reader is not None and (
        tokenize.tokenizer.files() != reader.tokenizer.files()
        or reader.length not in (None, tokenize.max_length)
    ):
        raise ValueError(
            "the captioner (--redescribe) and the text encoder (--read-with or --text-encoder) have other tokenizers or"
            " lengths of text: train them on the same data, with the same --tokenizer"
        )
    return tokenize


def _padded(sounds: Sequence[np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    longest = -(-max(map(len, sounds)) // multiple) * multiple
    audio = np.zeros((len(sounds), longest), sounds[0].dtype)
    mask = np.zeros(audio.shape, bool)
    for k, sound in enumerate(sounds):
        audio[k, : len(sound)], mask[k, : len(sound)] = sound, True
    return {"audio": audio, "audio_mask": mask}


def _speaker(kept: Kept, rate: float, run: pathlib.Path) -> Translator:
    meta, model = kept.meta, from_json(SpeechConfig, kept.meta["config"]["model"])
    tokenizer, names, length = tokenizer_from(meta["tokenizer"]), tuple(meta["speakers"]), meta["length"]
    sizes = dict(frames=meta["frames"], speakers=len(names), rate=rate, batch_size=BATCH)
    speak = Speaker(model, Tokenize(tokenizer, length), **sizes)

    def apply(texts: Sequence[str], speakers: Sequence[int] | None = None) -> list[np.ndarray]:
        for text, tokens in zip(texts, tokenizer.lengths(texts), strict=True):
            if tokens > length:
                raise ValueError(
                    f"{run} says texts of up to {length} tokens; {tokens} are too many: {text!r}"
                )
        who = np.asarray([0] * len(texts) if speakers is None else speakers, np.int32)
        asked = ArraySource({"caption": np.asarray(texts, object), "speaker": who})
        return speak(kept.params, asked).waves

    return Translator("text", "audio", apply, model.features.sample_rate, speakers=names)


def _artist(kept: Kept, noise: int) -> Translator:
    meta = kept.meta
    model, shape, length = from_json(GANConfig, meta["config"]["model"]), tuple(meta["shape"]), meta["length"]
    tokenizer = tokenizer_from(meta["tokenizer"])
    sizes = dict(vocab_size=tokenizer.vocab_size, length=length, classes=meta["classes"])
    dimensions = model.generator.noise
    draw = Artist(
        make_gan(model, shape=shape, **sizes), Tokenize(tokenizer, length), noise=dimensions, batch_size=BATCH
    )

    def apply(texts: Sequence[str]) -> list[np.ndarray]:
        asked = draw.asked(ArraySource({"caption": np.asarray(texts, object)}))
        return list(draw(kept.params, asked, draw.draw_noise(len(texts), noise)))

    return Translator("text", "image", apply, 0, shape=shape)
