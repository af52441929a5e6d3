"""Trained runs as functions from one modality to another."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import DEFAULT_RESIZE, Resize
from xmodal_jax.inference.images import ImageModel
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.speech import SpeechSynthesizer
from xmodal_jax.inference.text import TextModel
from xmodal_jax.models.seq2seq import GenerationConfig


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
    model = load(run, seed=seed)
    if isinstance(model, TextModel):
        return _text_translator(model, generation)
    if isinstance(model, SpeechSynthesizer):
        return _speech_translator(model, speed)
    if isinstance(model, ImageModel) and model.reads_text:
        model.format.transform.tokenize.bad_examples = bad_examples
        return _image_translator(model, noise_seed)
    raise ValueError(
        f"{run} translates nothing: give a run of captioning.py, speech_recognition.py, speech_synthesis.py, or of "
        "text_to_image_gan.py with captions"
    )


def _text_translator(model: TextModel, generation: GenerationConfig | None) -> Translator:
    """The translator of a captioning or speech recognition run: image, audio or video to text."""
    rate = model.format.sample_rate

    def apply(examples: Sequence[np.ndarray]) -> list[str]:
        """The text of each image, video or waveform."""
        inputs = [(x, rate) for x in examples] if model.source == "audio" else list(examples)
        return model.write(inputs, generation)

    return Translator(
        model.source, "text", apply,
        sample_rate=rate, shape=tuple(model.metadata["shape"]), resize=model.format.resize,
        max_seconds=model.format.max_seconds,
    )  # fmt: skip


def _speech_translator(model: SpeechSynthesizer, speed: float) -> Translator:
    """The translator of a speech synthesis run: text to waveforms."""

    def apply(texts: Sequence[str], speakers: Sequence[int] | None = None) -> list[np.ndarray]:
        """A waveform ``[T]`` in [-1, 1] for each text, at the model's sample rate (`Translator.sample_rate`), in the
        voices of ``speakers`` (an index for each text; None: the first voice)."""
        voices = None if speakers is None else [model.voices[k] for k in speakers]
        return [wave for wave, _ in model.synthesize(texts, voices, speed=speed)]

    return Translator("text", "audio", apply, sample_rate=model.sample_rate, speakers=model.voices)


def _image_translator(model: ImageModel, noise_seed: int) -> Translator:
    """The translator of a text-to-image GAN's run: text to images."""
    shape = tuple(model.metadata["shape"])

    def apply(texts: Sequence[str]) -> list[np.ndarray]:
        """An image uint8 ``[H, W, C]`` for each text, from different noise each."""
        return [np.asarray(x).reshape(shape) for x in model.draw(texts, seed=noise_seed)]

    return Translator("text", "image", apply, sample_rate=0, shape=shape)
