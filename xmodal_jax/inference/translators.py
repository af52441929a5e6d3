"""Trained runs as functions from one modality to another."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import DEFAULT_RESIZE, Resize, decode_audio
from xmodal_jax.inference.embed_data import ExampleReader
from xmodal_jax.inference.index import Index
from xmodal_jax.inference.loading import kind_of_run, load, make_model, restore
from xmodal_jax.inference.long_audio import Word
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.inference.neighbours import nearest
from xmodal_jax.inference.queries import load_for_index
from xmodal_jax.inference.vocoder import load_vocoder
from xmodal_jax.models.seq2seq import GenerationConfig
from xmodal_jax.types import kind_of

FurtherInput = tuple[str, Any]
"""A further input, the same for all examples: its kind, and the input (see `InputFormat.describe`)."""


class Translator(NamedTuple):
    """A trained run as a function from one modality to another.

    Examples are texts; images or videos, uint8, of ``shape``; waveforms ``[T]``, int16 or floats in [-1, 1]; numbers
    ``[D]`` or ``[T, C]`` in the unit of the data; or files.
    """

    source: str
    """Modality of the inputs."""
    target: str
    """Modality of the outputs."""
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
    """Length of the longest recording that the model takes; None: any length."""
    resize: Resize = DEFAULT_RESIZE
    """How images and frames became squares for training."""
    further_modalities: tuple[str, ...] = ()
    """The modalities of the further inputs that every example has."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the model is conditional on; empty: it is not conditional."""
    has_times: bool = False
    """Whether the outputs are `SpokenText`, which says when words are said."""


class SpokenText(str):
    """A text that was said in a recording, and when: a str with the attribute ``words``."""

    words: tuple[Word, ...]
    """Its words with their times."""

    def __new__(cls, text: str, words: Sequence[Word]) -> SpokenText:
        """A text and its words."""
        spoken = super().__new__(cls, text)
        spoken.words = tuple(words)
        return spoken


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceOptions:
    """How synthesised speech sounds."""

    speed: float = 1.0
    """Speed of synthesised speech; above 1 is faster."""
    pitch: float = 0.0
    """Semitones by which synthesised speech is higher, or lower if negative."""
    energy: float = 0.0
    """Decibels by which synthesised speech is louder, or softer if negative."""
    vocoder: pathlib.Path | None = None
    """Directory of a run of vocoder.py, which makes the waveforms of synthesised speech; None: Griffin-Lim."""


class TranslationOptions(NamedTuple):
    """How runs translate; each option concerns some kinds of runs."""

    generation: GenerationConfig | None = None
    """How text is decoded; None: as configured in the run."""
    voice: VoiceOptions = VoiceOptions()
    """How synthesised speech sounds."""
    noise_seed: int = 0
    """Seed of the noise that images are generated from, and of the latents of autoencoders."""
    samples: bool = False
    """Whether autoencoders decode a sample of the posterior, so that equal inputs give different outputs, not its
    mean."""
    further_inputs: tuple[FurtherInput, ...] = ()
    """Further inputs of classifiers and autoencoders of several modalities, such as the question about a picture."""
    candidates: tuple[str, Sequence[Any]] | Index | None = None
    """For shared embedding spaces: the kind of the candidates, and the candidates, the nearest of which is the output;
    or an index of them, which the same run has made."""
    class_name: str | None = None
    """For conditional autoencoders: the name of the class of all examples."""
    times: bool = False
    """For speech recognisers with CTC: whether texts say when their words are said (`SpokenText`)."""


def load_translators(
    run: pathlib.Path,
    options: TranslationOptions | None = None,
    *,
    seed: int | None = None,
    bad_examples: BadExamples | None = None,
) -> list[Translator]:
    """Loads the newest checkpoint of a run as functions, one for each pair of modalities that it translates between.

    Captioners, speech recognisers and synthesisers and generators of images know one. Multimodal VAEs know one for each
    pair of modalities, autoencoders reconstruct their modality, classifiers by several modalities answer by text
    whatever they are shown, and shared embedding spaces find the nearest of ``options.candidates``.

    Args:
      run: the run's directory.
      options: how it translates; None: the defaults.
      seed: which of the run's seeds, if it has several.
      bad_examples: notes texts that are cut to the length of those of training; None: they are cut without a note.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is of another kind, or has several seeds and ``seed`` is none of them; or there are no
        candidates.
    """
    index = None if options is None else options.candidates
    model = load(run, seed=seed)
    if isinstance(index, Index) and model.kind == "contrastive" and model.digest != index.model:
        model = load_for_index(run, index.model, seed)  # the best checkpoint, or an error
    if model.format.transform.tokenize is not None:
        model.format.transform.tokenize.bad_examples = bad_examples
    make = _TRANSLATORS.get(model.kind)
    translators = make(model, options or TranslationOptions()) if make else []
    if not translators:
        raise ValueError(
            f"{run} translates nothing: give a run of {', '.join(f'{kind}.py' for kind in _TRANSLATORS)} with captions"
        )
    return translators


def load_translator(
    run: pathlib.Path,
    *,
    generation: GenerationConfig | None = None,
    voice: VoiceOptions = VoiceOptions(),
    noise_seed: int = 0,
    seed: int | None = None,
    bad_examples: BadExamples | None = None,
) -> Translator:
    """The translator of a run that has one: of captioning, speech recognition, speech synthesis or image generation.

    Args:
      run: the run's directory.
      generation, voice, noise_seed: see `TranslationOptions`.
      seed, bad_examples: see `load_translators`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run is of another kind, or has several seeds and ``seed`` is none of them.

    Example::

        captioner = load_translator(pathlib.Path("runs/captioning"))
        captioner.apply([image])  # ["a red circle"]
    """
    options = TranslationOptions(generation, voice, noise_seed)
    translators = load_translators(run, options, seed=seed, bad_examples=bad_examples)
    if len(translators) > 1:
        ways = ", ".join(f"{t.source} to {t.target}" for t in translators)
        raise ValueError(f"{run} translates several ways ({ways}): use `load_translators`")
    return translators[0]


def load_recognizer(
    run: pathlib.Path | None, *, sample_rate: int
) -> Callable[[list[np.ndarray]], list[str]] | None:
    """The recogniser that ``--recogniser RUN`` names, as a function from waveforms of ``sample_rate`` Hz to texts;
    None: there is none. A script loads it before the data, which take longer.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run does not recognise speech or takes another sample rate, or has several seeds.
    """
    if run is None:
        return None
    try:
        restored = restore(run)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--recogniser: {error}") from error
    if kind_of_run(restored.checkpoint.metadata) != "speech_recognition":
        raise ValueError(f"--recogniser: {run} recognises no speech: give a run of speech_recognition.py")
    model = make_model(restored)
    if model.format.sample_rate != sample_rate:
        raise ValueError(
            f"--recogniser: {run} takes speech of {model.format.sample_rate} Hz, and what is to be transcribed has "
            f"{sample_rate} Hz: give a run of speech_recognition.py --sample-rate {sample_rate}"
        )
    (translator,) = _recognition_translators(model, TranslationOptions())
    return translator.apply


def _text_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translator of a captioning or speech recognition run: image, audio or video to text."""

    def apply(examples: Sequence[Any]) -> list[str]:
        """The text of each image, video or waveform."""
        return model.generate(_as_inputs(model, model.source, examples), options.generation)

    shape = tuple(model.metadata["shape"])
    return [_translator(model, model.source, "text", apply)._replace(shape=shape)]


def _recognition_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translator of a speech recognition run.

    Recordings longer than those of training are transcribed by windows if the run has CTC, unless another decoding is
    asked for; all others as a whole.
    """
    (whole,) = _text_translators(model, options)
    generation = options.generation
    if not model.has_times or not (generation is None or generation.uses_ctc or options.times):
        return [whole]
    rate = model.format.sample_rate
    limit = int(model.trained_seconds * rate)
    by_windows = generation is None or generation.uses_ctc

    def apply(examples: Sequence[Any]) -> list[str]:
        """The text of each waveform, or file."""
        waves = [decode_audio(x, rate)[0] if isinstance(x, pathlib.Path) else x for x in examples]
        is_long = [by_windows and len(wave) > limit for wave in waves]
        texts = iter(whole.apply([wave for wave, long in zip(waves, is_long, strict=True) if not long]))
        outputs: list[str] = []
        for wave, long in zip(waves, is_long, strict=True):
            if long:
                (transcript,) = model.transcribe_long((wave, rate))
                outputs.append(SpokenText(*transcript) if options.times else transcript.text)
            else:
                text = next(texts)
                outputs.append(_with_times(model, (wave, rate), text) if options.times else text)
        return outputs

    return [
        whole._replace(
            apply=apply, max_seconds=None if by_windows else whole.max_seconds, has_times=options.times
        )
    ]


def _with_times(model: Any, recording: tuple[np.ndarray, int], text: str) -> SpokenText:
    """A text with the times of its words in a recording. If the text has more labels than the recording has tokens,
    it cannot have been said, and the words of CTC's best path take its place."""
    if not text:
        return SpokenText(text, ())
    try:
        (transcript,) = model.align(recording, text)
    except ValueError:
        (transcript,) = model.transcribe_long(recording)
        return SpokenText(*transcript)
    return SpokenText(text, transcript.words)


def _speech_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translator of a speech synthesis run: text to waveforms."""
    voice, config = options.voice, model.config
    vocoder = voice.vocoder and load_vocoder(voice.vocoder, config.features, floor=config.floor)
    controls = dict(speed=voice.speed, pitch=voice.pitch, energy=voice.energy, vocoder=vocoder)

    def apply(texts: Sequence[str], speakers: Sequence[int] | None = None) -> list[np.ndarray]:
        """A waveform ``[T]`` in [-1, 1] for each text, at the model's sample rate (`Translator.sample_rate`), in the
        voices of ``speakers`` (an index for each text; None: the first voice)."""
        voices = None if speakers is None else [model.voices[k] for k in speakers]
        return [wave for wave, _ in model.synthesize(texts, voices, **controls)]

    return [Translator("text", "audio", apply, sample_rate=model.sample_rate, speakers=model.voices)]


def _image_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translator of a generator of images: text to images; none if it generates from classes or noise alone."""
    shape = tuple(model.metadata["shape"])

    def apply(texts: Sequence[str]) -> list[np.ndarray]:
        """An image uint8 ``[H, W, C]`` for each text, from different noise each."""
        return [np.asarray(x).reshape(shape) for x in model.synthesize(texts, seed=options.noise_seed)]

    return [Translator("text", "image", apply, sample_rate=0, shape=shape)] if model.reads_text else []


def _latent_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translators of an autoencoder: between all modalities, or the reconstruction of the only one."""
    condition = {}
    if model.class_names:
        if options.class_name not in model.class_names:
            problem = (
                "it needs one" if options.class_name is None else f"it has no class {options.class_name!r}"
            )
            raise ValueError(
                f"--class: {model.path} is conditional on the class of the examples, and {problem}: choose one of "
                f"{', '.join(model.class_names)}"
            )
        condition = {"classes": options.class_name}

    def make(source: str, target: str) -> Translator:
        further = _assign_further_inputs(options.further_inputs, model.format.modalities, source)

        def apply(examples: Sequence[Any]) -> list[Any]:
            """The modality ``target`` of each example."""
            inputs = {source: _as_inputs(model, source, examples)} | _repeat(further, len(examples))
            if source == target:
                outputs = model.reconstruct(**condition, **inputs)[target]
            elif options.samples:
                outputs = model.translate(target, count=1, seed=options.noise_seed, **inputs)
                outputs = [output for (output,) in outputs]
            else:
                outputs = model.translate(target, **inputs)
            return [_to_example(target, output) for output in outputs]

        translator = _translator(model, source, target, apply, further)._replace(classes=model.class_names)
        return (
            translator._replace(sample_rate=model.sample_rate) if kind_of(target) == "audio" else translator
        )

    names = model.format.modalities
    return [make(a, b) for a in names for b in names if a != b or len(names) == 1]


def _fusion_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translators of a classifier by several modalities: any of them to the class as a text."""

    def make(source: str) -> Translator:
        further = _assign_further_inputs(options.further_inputs, model.format.modalities, source)

        def apply(examples: Sequence[Any]) -> list[str]:
            """The class of each example; of several targets, such as ``action: turn, colour: red``."""
            inputs = {source: _as_inputs(model, source, examples)} | _repeat(further, len(examples))
            answers = model.answer(**inputs)
            if len(model.classes) == 1:
                return answers
            return [", ".join(f"{target}: {name}" for target, name in answer.items()) for answer in answers]

        return _translator(model, source, "text", apply, further)

    return [make(source) for source in model.format.modalities]


def _embedding_translators(model: Any, options: TranslationOptions) -> list[Translator]:
    """The translators of a shared embedding space: any modality to the nearest of the candidates."""
    if options.candidates is None:
        raise ValueError(
            f"{model.path} finds the nearest of given texts or files: name them by --candidates, a text file with a "
            "text per line or a folder of files"
        )
    if isinstance(options.candidates, Index):
        return _index_translators(model, options.candidates)
    kind, candidates = options.candidates
    targets = [m for m in model.format.modalities if kind_of(m) == kind]
    if not targets:
        known = ", ".join(model.format.modalities)
        raise ValueError(f"the candidates are of the kind {kind}, which {model.path} lacks: it has {known}")

    @functools.cache
    def embed_candidates(target: str) -> np.ndarray:
        """The embeddings of the candidates as the modality ``target``, such as text_es."""
        return model.embed(**{target: list(candidates)})

    def make(source: str, target: str) -> Translator:
        def apply(examples: Sequence[Any]) -> list[Any]:
            """The nearest candidate of each example."""
            queries = model.embed(**{source: _as_inputs(model, source, examples)})
            return [
                candidates[k] for k in nearest(queries, embed_candidates(target), 1).indices[:, 0].tolist()
            ]

        return _translator(model, source, target, apply)

    return [
        make(source, target)
        for target in _own_name_first(targets, kind)
        for source in model.format.modalities
    ]


def _index_translators(model: Any, index: Index) -> list[Translator]:
    """The translators of a shared embedding space to the nearest examples of an index that it has made."""
    model.check_index(index)
    reader = ExampleReader(model, index)

    def make(source: str, target: str) -> Translator:
        def apply(examples: Sequence[Any]) -> list[Any]:
            """What the nearest example of the index holds, for each of ``examples``."""
            queries = model.embed(**{source: _as_inputs(model, source, examples)})
            positions = index.nearest(queries, 1, modality=target).indices[:, 0].tolist()
            return reader.read(target, positions)

        return _translator(model, source, target, apply)

    return [make(source, target) for target in index.modalities for source in model.format.modalities]


_TRANSLATORS: dict[str, Callable[[Any, TranslationOptions], list[Translator]]] = {
    "captioning": _text_translators,
    "speech_recognition": _recognition_translators,
    "speech_synthesis": _speech_translators,
    "fusion": _fusion_translators,
    "contrastive": _embedding_translators,
    "vae": _latent_translators,
    "multimodal_flow": _latent_translators,
    "multimodal_vae": _latent_translators,
    "text_to_image_flow": _image_translators,
    "text_to_image_gan": _image_translators,
}
"""The translators of each kind of run (`TrainedModel.kind`)."""


def _translator(
    model: TrainedModel, source: str, target: str, apply: Callable[..., list], further: Mapping[str, Any] = {}
) -> Translator:
    """A translator whose inputs are in the format of ``model``."""
    return Translator(
        source, target, apply,
        sample_rate=model.format.sample_rate, shape=model.format.shapes.get(source, ()),
        max_seconds=model.format.max_seconds, resize=model.format.resize, further_modalities=tuple(further),
    )  # fmt: skip


def _as_inputs(model: TrainedModel, modality: str, examples: Sequence[Any]) -> list[Any]:
    """Examples as inputs of a `TrainedModel`: waveforms become pairs with their sample rate."""
    if kind_of(modality) != "audio":
        return list(examples)
    return [x if isinstance(x, pathlib.Path) else (x, model.format.sample_rate) for x in examples]


def _to_example(modality: str, output: Any) -> Any:
    """Converts an output of a `TrainedModel` to an example of a translator: an image to pixels, a sound to its
    waveform."""
    kind = kind_of(modality)
    if kind == "image":
        pixels = np.asarray(output)
        return pixels[..., None] if pixels.ndim == 2 else pixels
    return output[0] if kind == "audio" else output


def _own_name_first(modalities: Sequence[str], kind: str) -> list[str]:
    """Modalities of a kind, the one that is named as its kind first."""
    return sorted(modalities, key=lambda modality: modality != kind)


def _modality_of_kind(modalities: Sequence[str], kind: str) -> str | None:
    """The modality that is named as its kind, or else the first of this kind; None: there is none."""
    return kind if kind in modalities else next((m for m in modalities if kind_of(m) == kind), None)


def _assign_further_inputs(
    further_inputs: Sequence[FurtherInput], modalities: Sequence[str], source: str
) -> dict[str, Any]:
    """The further inputs by the modalities that take them, one each; those that the run has no modality for are left
    out."""
    assigned: dict[str, Any] = {}
    for kind, value in further_inputs:
        modality = _modality_of_kind([m for m in modalities if m != source and m not in assigned], kind)
        if modality is not None:
            assigned[modality] = value
    return assigned


def _repeat(further: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """The further inputs for each of ``count`` examples."""
    return {m: [value] * count for m, value in further.items()}
