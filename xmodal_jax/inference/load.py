"""Trained runs put to use: what a run's checkpoint holds, as a function from one modality to another."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.text import TokenizeTransform, tokenizer_from_files
from xmodal_jax.evaluation.images import Artist
from xmodal_jax.evaluation.speech import Synthesizer
from xmodal_jax.evaluation.text import TextGenerator
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.models.seq2seq import GenerationConfig, Seq2SeqConfig
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.train.checkpoint import RestoredCheckpoint, restore_run
from xmodal_jax.train.run import from_json

BATCH = 32
"""Examples that are translated at once."""


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
    generation: GenerationConfig | None = None,
    rate: float = 1.0,
    noise: int = 0,
    seed: int | None = None,
) -> Translator:
    """A run's newest checkpoint: of captioning, recognition (``generation``: how text is generated, None for as the run
    was told), synthesis (``rate``: above 1 speaks faster) or drawing (``noise``: a seed for what the text leaves open).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run makes something else, or has several seeds and ``seed`` is none of them.
    """
    restored = restore_run(run, seed=seed)
    match restored.metadata.get("target"):
        case "text":
            return _writer(restored, generation)
        case "audio":
            return _speaker(restored, rate, run)
        case "image" if restored.metadata.get("tokenizer"):
            return _artist(restored, noise)
    raise ValueError(
        f"{run} translates nothing: give a run of captioning.py, speech_recognition.py, speech_synthesis.py, or of "
        "text_to_image_gan.py with captions"
    )


def _writer(restored: RestoredCheckpoint, generation: GenerationConfig | None) -> Translator:
    config, metadata = restored.metadata["config"], restored.metadata
    model, source = from_json(Seq2SeqConfig, config["model"]), metadata["source"]
    decodings = {
        "it": from_json(GenerationConfig, config["generation"]) if generation is None else generation
    }
    writer = TextGenerator(
        model,
        source,
        tokenizer_from_files(metadata["tokenizer"]),
        length=metadata["length"],
        decodings=decodings,
        batch_size=BATCH,
    )
    rate = model.features.sample_rate

    def apply(examples: Sequence[np.ndarray]) -> list[str]:
        # Of whole seconds, so that sets of sounds share a program.
        fields = _padded(examples, rate) if source == "audio" else {source: np.stack(examples)}
        return writer(restored.params, ArraySource(fields), "it")

    return Translator(source, "text", apply, rate, shape=tuple(metadata["shape"]))


def _padded(sounds: Sequence[np.ndarray], multiple: int) -> dict[str, np.ndarray]:
    longest = -(-max(map(len, sounds)) // multiple) * multiple
    audio = np.zeros((len(sounds), longest), sounds[0].dtype)
    mask = np.zeros(audio.shape, bool)
    for k, sound in enumerate(sounds):
        audio[k, : len(sound)], mask[k, : len(sound)] = sound, True
    return {"audio": audio, "audio_mask": mask}


def _speaker(restored: RestoredCheckpoint, rate: float, run: pathlib.Path) -> Translator:
    metadata, model = restored.metadata, from_json(SpeechConfig, restored.metadata["config"]["model"])
    tokenizer, names, length = (
        tokenizer_from_files(metadata["tokenizer"]),
        tuple(metadata["speakers"]),
        metadata["length"],
    )
    sizes = dict(frames=metadata["frames"], speakers=len(names), rate=rate, batch_size=BATCH)
    speak = Synthesizer(model, TokenizeTransform(tokenizer, length), **sizes)

    def apply(texts: Sequence[str], speakers: Sequence[int] | None = None) -> list[np.ndarray]:
        for text, tokens in zip(texts, tokenizer.lengths(texts), strict=True):
            if tokens > length:
                raise ValueError(
                    f"{run} says texts of up to {length} tokens; {tokens} are too many: {text!r}"
                )
        who = np.asarray([0] * len(texts) if speakers is None else speakers, np.int32)
        asked = ArraySource({"caption": np.asarray(texts, object), "speaker": who})
        return speak(restored.params, asked).waves

    return Translator("text", "audio", apply, model.features.sample_rate, speakers=names)


def _artist(restored: RestoredCheckpoint, noise: int) -> Translator:
    metadata = restored.metadata
    model, shape, length = (
        from_json(GANConfig, metadata["config"]["model"]),
        tuple(metadata["shape"]),
        metadata["length"],
    )
    tokenizer = tokenizer_from_files(metadata["tokenizer"])
    sizes = dict(vocab_size=tokenizer.vocab_size, length=length, classes=metadata["classes"])
    dimensions = model.generator.noise
    draw = Artist(
        make_gan(model, shape=shape, **sizes),
        TokenizeTransform(tokenizer, length),
        noise=dimensions,
        batch_size=BATCH,
    )

    def apply(texts: Sequence[str]) -> list[np.ndarray]:
        asked = draw.asked(ArraySource({"caption": np.asarray(texts, object)}))
        return list(draw(restored.params, asked, draw.draw_noise(len(texts), noise)))

    return Translator("text", "image", apply, 0, shape=shape)
