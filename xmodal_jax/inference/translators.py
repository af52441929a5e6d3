"""Trained runs as functions from one modality to another."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import DEFAULT_RESIZE, Resize
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import make_text_cleaner
from xmodal_jax.data.text import TokenizeTransform, tokenizer_from_files
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.evaluation.speech import Synthesizer
from xmodal_jax.evaluation.text import TextGenerator
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.method import make_gan
from xmodal_jax.models.seq2seq import Generation, GenerationConfig, Seq2SeqConfig
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.models.towers import encoder_of, max_audio_seconds
from xmodal_jax.nets.encoders import PretrainedEncoderConfig
from xmodal_jax.train.checkpoint import RestoredCheckpoint, restore_run
from xmodal_jax.train.run import from_json

BATCH = 32
"""Examples that are translated at a time."""


class Translator(NamedTuple):
    """A trained run as a function from one modality to another.

    Examples are texts; images or videos, uint8, of ``shape``; or waveforms ``[T]``, int16 or floats in [-1, 1].
    """

    source: str
    """Modality of the inputs."""
    target: str
    """Modality of the outputs: text, audio or image."""
    apply: Callable[..., list]
    """``apply(inputs) -> outputs``, lists of examples. For speech synthesis the second argument is the speaker of each
    input, an index into ``speakers`` (None: the first speaker). Image generation gives different images for equal
    texts."""
    sample_rate: int
    """Sample rate of audio inputs or outputs, in Hz."""
    shape: tuple[int, ...] = ()
    """Shape of the images ``[H, W, C]`` or videos ``[F, H, W, C]`` of training."""
    speakers: tuple[str, ...] = ()
    """Names of the speakers; empty where the target is not audio."""
    max_seconds: float | None = None
    """Length of the longest recording that the source encoder has positions for; None: any length."""
    resize: Resize = DEFAULT_RESIZE
    """How images and frames became squares for training."""


def load_translator(
    run: pathlib.Path,
    *,
    generation: GenerationConfig | None = None,
    speed: float = 1.0,
    noise_seed: int = 0,
    seed: int | None = None,
    bad_examples: BadExamples | None = None,
) -> Translator:
    """Loads the newest checkpoint of a run of captioning, speech recognition, speech synthesis or image generation.

    Args:
      run: the run's directory.
      generation: how text is decoded; None: as configured in the run.
      speed: of synthesised speech; above 1 is faster.
      noise_seed: seed of the noise that images are generated from.
      seed: which of the run's seeds, if it has several.
      bad_examples: notes texts that are cut to the length of those of training; None: they are cut without a note.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is of another kind, or has several seeds and ``seed`` is none of them.

    Example::

        captioner = load_translator(pathlib.Path("runs/captioning"))
        captioner.apply([image])  # ["a red circle"]
    """
    restored = restore_run(run, seed=seed)
    match restored.metadata.get("target"):
        case "text":
            return _text_translator(restored, generation)
        case "audio":
            return _speech_translator(restored, speed, run)
        case "image" if restored.metadata.get("tokenizer"):
            return _image_translator(restored, noise_seed, bad_examples)
    raise ValueError(
        f"{run} translates nothing: give a run of captioning.py, speech_recognition.py, speech_synthesis.py, or of "
        "text_to_image_gan.py with captions"
    )


def _text_translator(restored: RestoredCheckpoint, generation: GenerationConfig | None) -> Translator:
    """The translator of a captioning or speech recognition run: image, audio or video to text."""
    config, metadata = restored.metadata["config"], restored.metadata
    model, modality = from_json(Seq2SeqConfig, config["model"]), metadata["source"]
    if generation is None:
        generation = from_json(Generation | None, config["generation"])
    generate = TextGenerator(
        model,
        modality,
        tokenizer_from_files(metadata["tokenizer"]),
        length=metadata["length"],
        decodings={"test": generation},
        batch_size=BATCH,
    )
    sample_rate = model.features.sample_rate

    def apply(examples: Sequence[np.ndarray]) -> list[str]:
        """The text of each image, video or waveform."""
        # Padded to whole seconds, so that batches of different recordings share a compiled program.
        fields = pad_audio(examples, sample_rate) if modality == "audio" else {modality: np.stack(examples)}
        return generate(restored.params, ArraySource(fields), decoding="test")

    data = config.get("input", {})  # runs of earlier versions have no such options
    resize = Resize.from_options(data)
    encoder = encoder_of(model, modality)
    limited = modality == "audio" and isinstance(encoder, PretrainedEncoderConfig)
    return Translator(
        modality, "text", apply,
        sample_rate=sample_rate, shape=tuple(metadata["shape"]), resize=resize,
        max_seconds=max_audio_seconds(encoder) if limited else None,
    )  # fmt: skip


def text_cleaner(metadata: Mapping[str, Any]) -> Callable[[str], str] | None:
    """How texts were cleaned for the training of a run; None: they were not."""
    return make_text_cleaner(metadata["config"].get("text_cleanup", "none"))


def pad_audio(waveforms: Sequence[np.ndarray], multiple: int) -> dict[str, Any]:
    """Waveforms as the fields ``audio`` and ``audio_mask`` ``[N, T]`` of a batch. ``T`` is the longest length, rounded
    up to a ``multiple`` of samples."""
    longest = -(-max(map(len, waveforms)) // multiple) * multiple
    audio = np.zeros((len(waveforms), longest), waveforms[0].dtype)
    mask = np.zeros(audio.shape, bool)
    for k, waveform in enumerate(waveforms):
        audio[k, : len(waveform)], mask[k, : len(waveform)] = waveform, True
    return {"audio": audio, "audio_mask": mask}


def _speech_translator(restored: RestoredCheckpoint, speed: float, run: pathlib.Path) -> Translator:
    """The translator of a speech synthesis run: text to waveforms."""
    metadata = restored.metadata
    model = from_json(SpeechConfig, metadata["config"]["model"])
    tokenizer, names = tokenizer_from_files(metadata["tokenizer"]), tuple(metadata["speakers"])
    length, clean = metadata["length"], text_cleaner(metadata)
    synthesize = Synthesizer(
        model,
        TokenizeTransform(tokenizer, length, clean=clean),
        frames=metadata["frames"],
        speakers=len(names),
        speed=speed,
        batch_size=BATCH,
    )

    def apply(texts: Sequence[str], speakers: Sequence[int] | None = None) -> list[np.ndarray]:
        """A waveform ``[T]`` in [-1, 1] for each text, at the model's sample rate (`Translator.sample_rate`), in the
        voices of ``speakers`` (an index for each text; None: the first voice).

        Raises:
          ValueError: a text is too long.
        """
        # Cleaned here only to count the tokens: `synthesize` cleans the texts itself, so it gets the original ones.
        cleaned = texts if clean is None else [clean(text) for text in texts]
        for text, tokens in zip(texts, tokenizer.lengths(cleaned), strict=True):
            if tokens > length:
                raise ValueError(
                    f"{run} speaks texts of up to {length} tokens, this one has {tokens}: {text!r}"
                )
        numbers = np.asarray([0] * len(texts) if speakers is None else speakers, np.int32)
        source = ArraySource({"caption": np.asarray(texts, object), "speaker": numbers})
        return synthesize(restored.params, source).waves

    return Translator("text", "audio", apply, sample_rate=model.features.sample_rate, speakers=names)


def _image_translator(
    restored: RestoredCheckpoint, noise_seed: int, bad_examples: BadExamples | None
) -> Translator:
    """The translator of a text-to-image GAN's run: text to images."""
    metadata = restored.metadata
    model, shape = from_json(GANConfig, metadata["config"]["model"]), tuple(metadata["shape"])
    tokenizer, length = tokenizer_from_files(metadata["tokenizer"]), metadata["length"]
    sizes = dict(vocab_size=tokenizer.vocab_size, length=length, classes=metadata["classes"])
    model = dataclasses.replace(model, features=None)  # only training needs them
    generate = ImageGenerator(
        make_gan(model, shape=shape, **sizes),
        TokenizeTransform(tokenizer, length, clean=text_cleaner(metadata), bad_examples=bad_examples),
        noise=model.generator.noise,
        batch_size=BATCH,
    )

    def apply(texts: Sequence[str]) -> list[np.ndarray]:
        """An image uint8 ``[H, W, C]`` for each text, from different noise each."""
        conditions = generate.conditions(ArraySource({"caption": np.asarray(texts, object)}))
        return list(generate(restored.params, conditions, generate.sample_noise(len(texts), noise_seed)))

    return Translator("text", "image", apply, sample_rate=0, shape=shape)
