"""Translation of files or texts by a chain of trained runs: reading inputs, finding the chain, writing outputs."""

from __future__ import annotations

import collections
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from xmodal_jax.core.text_files import normalise, read_lines
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import (
    decode_audio,
    decode_image,
    decode_video,
    modality_of_file,
    resample_and_cut,
    to_pcm,
)
from xmodal_jax.inference.index import Index
from xmodal_jax.inference.long_audio import Transcript
from xmodal_jax.inference.subtitles import SUBTITLE_WRITERS
from xmodal_jax.inference.translators import SpokenText, Translator, VoiceOptions
from xmodal_jax.report.page import Audio, png
from xmodal_jax.train.run import write_atomic
from xmodal_jax.types import kind_of


class TranslationInput(NamedTuple):
    """What to translate: files of one modality, or a text."""

    modality: str
    files: tuple[Path, ...]
    """Empty where the input is the text."""
    text: str = ""


def find_inputs(source: str, modality: str | None = None) -> TranslationInput:
    """The input that a string names: a file, all files in a folder and its subfolders, or else the text itself.

    ``modality``: what the input is, such as image_sketch; None: the kind of the files.

    Raises:
      FileNotFoundError: the string is a file name, and there is no such file.
      ValueError: the file is of an unknown kind, or the folder holds files of no or of several modalities; or these are
        of another kind than ``modality``.
    """
    inputs = _find_inputs(source)
    if modality is None:
        return inputs
    if kind_of(modality) != inputs.modality:
        raise ValueError(f"--as {modality}: {source} is of the kind {inputs.modality}")
    return inputs._replace(modality=modality)


def _find_inputs(source: str) -> TranslationInput:
    """The files or the text that a string names, with their kind."""
    path = Path(source)
    if path.is_dir():
        files = tuple(sorted(p for p in path.rglob("*") if p.is_file() and _modality(p) is not None))
        modalities = sorted({_modality(p) for p in files})
        if len(modalities) != 1:
            held = " and ".join(modalities) or "no images, audio, videos or .txt files"
            raise ValueError(f"a folder of files of one modality is needed: {path} holds {held}")
        return TranslationInput(modalities[0], files)
    if path.is_file():
        if _modality(path) is None:
            raise ValueError(
                f"{path}: a file {path.suffix or 'without suffix'} cannot be read; give a picture, a sound, a video or "
                "a .txt file, or arrays of numbers from Python (xmodal_jax.inference.load, see docs/inference.md)"
            )
        return TranslationInput(_modality(path), (path,))
    if _modality(path) is not None:
        raise FileNotFoundError(f"there is no file {path}")
    return TranslationInput("text", (), source)


def _modality(path: Path) -> str | None:
    return "text" if path.suffix.lower() == ".txt" else modality_of_file(path.name)


def find_further_input(source: str) -> tuple[str, Any]:
    """The further input that a string names: its modality, and the file or the text.

    Raises:
      FileNotFoundError: see `find_inputs`.
      ValueError: it is a folder, or a text file of several lines.
    """
    inputs = find_inputs(source)
    if not inputs.files:
        return "text", inputs.text
    if inputs.modality == "text" and len(inputs.files) == 1:
        lines = _read_lines(inputs.files[0])
        if len(lines) == 1:
            return "text", lines[0]
    elif len(inputs.files) == 1 and not Path(source).is_dir():
        return inputs.modality, inputs.files[0]
    raise ValueError(
        f"--with takes one file or text, the same for all inputs: {source} holds several or none"
    )


def find_candidates(source: Path) -> tuple[str, list[Any]] | Index:
    """The candidates that a path names: the lines of a text file, or the files of a folder, with their modality; or the
    index in a folder.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: there are none, or files of several modalities; or the index is not finished or damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"--candidates: there is no file or folder {source}")
    if (source / "index.json").is_file():
        return Index.load(source)
    inputs = find_inputs(str(source))
    if inputs.modality == "text":
        lines = [line for file in inputs.files for line in _read_lines(file)]
        if not lines:
            raise ValueError(f"--candidates: {source} holds no text")
        return "text", lines
    return inputs.modality, list(inputs.files)


def find_chain(
    translators: Sequence[Translator],
    source: str,
    target: str,
    *,
    further_inputs: Sequence[Any] = (),
    class_name: str | None = None,
    times: bool = False,
    voice: VoiceOptions | None = None,
) -> list[Translator]:
    """The shortest chain of translators from one modality to another, by breadth-first search; each is used at most
    once.

    ``source`` may be the kind of a modality with another name, such as image of image_sketch, if no translator takes
    the kind itself. ``further_inputs``: all of which some translator of the chain must take. ``class_name``: of
    the examples, on which some translator of the chain must be conditional. ``times``: whether the first translator
    must say when words are said (`Translator.has_times`). ``voice``: if it is not the default, some translator of the
    chain must synthesise speech; None: the default.

    Raises:
      ValueError: there is none.

    Example::

        find_chain([synthesizer, captioner], "image", "audio")  # [captioner, synthesizer]
    """
    named = [t.source for t in translators if kind_of(t.source) == source]
    start = source if source in named or not named else named[0]
    # Chains that begin at the source, shorter ones first: the modality that each ends in, and its translators.
    chains, expanded, refused = collections.deque([(start, [])]), set(), None
    while chains:
        modality, chain = chains.popleft()
        if modality == target and chain:
            if any(len(t.further_modalities) == len(further_inputs) for t in chain):
                if class_name is not None and not any(t.classes for t in chain):
                    raise ValueError(
                        f"--class {class_name}: none of the runs from {source} to {target} is conditional on a class"
                    )
                options = vars(VoiceOptions() if voice is None else voice)
                changed = [name for name, value in options.items() if value != getattr(VoiceOptions, name)]
                if changed and not any(t.speakers for t in chain):
                    raise ValueError(
                        f"--{changed[0]}: none of the runs from {source} to {target} synthesises speech: give a run of "
                        "speech_synthesis.py"
                    )
                if times and not chain[0].has_times:
                    raise ValueError(
                        f"--subtitles: the run from {chain[0].source} to {chain[0].target} does not know when words "
                        "are said: give a run of speech_recognition.py with --model.objective joint or ctc"
                    )
                return chain
            refused = chain
        if modality not in expanded:
            expanded.add(modality)
            chains += [(t.target, [*chain, t]) for t in translators if t.source == modality]
    if refused is not None:
        raise ValueError(
            f"of {len(further_inputs)} further inputs (--with) the runs from {source} to {target} take "
            f"{', '.join(m for t in refused for m in t.further_modalities) or 'none'}: give a run that takes all"
        )
    available = ", ".join(f"{t.source} to {t.target}" for t in translators)
    raise ValueError(
        f"no way from {source} to {target} through the runs given ({available or 'none'}): name more --runs"
    )


def read_inputs(
    inputs: TranslationInput, first: Translator, bad_examples: BadExamples
) -> tuple[list[str], list[Any]]:
    """Reads the inputs in the format that the ``first`` translator was trained on.

    Returns:
      Names and contents, of equal number. Each line of a text file is one input.

    Raises:
      BadExample: a file cannot be read (unless ``bad_examples`` collects it).
      ValueError: no file could be read.
    """
    if not inputs.files:
        return ["words"], [inputs.text]
    names, contents = [], []
    root = _common_folder(inputs.files)
    for file in inputs.files:
        name = str(file.relative_to(root))  # lines of a text file: "notes.txt:1", "notes.txt:2", …
        try:
            examples = READERS[kind_of(inputs.modality)](file, first, bad_examples)
        except Exception as error:  # decoders raise many kinds
            bad_examples.add(file, 0, str(error))
            continue
        is_text = inputs.modality == "text"
        names += [f"{name}:{k}" for k in range(1, len(examples) + 1)] if is_text else [name]
        contents += examples
    if not contents:
        reason = bad_examples.summary() or "the files are empty"
        raise ValueError(f"nothing to translate in {root}: {reason}")
    return names, contents


def _read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [normalise(line.strip()) for line in read_lines(file) if line.strip()]


def _read_audio(file: Path, first: Translator, bad_examples: BadExamples) -> list[np.ndarray]:
    samples, was_cut = decode_audio(file, first.sample_rate, first.max_seconds)
    if was_cut:
        bad_examples.note(
            f"Recordings are cut to {first.max_seconds:g} s, the longest that the model takes, which shortens "
            "{recordings}."
        )
    return [samples]


READERS: dict[str, Callable[[Path, Translator, BadExamples], list[Any]]] = {
    "text": lambda file, first, _: _read_lines(file),
    "audio": _read_audio,
    "image": lambda file, first, _: [decode_image(file, first.shape[0], first.shape[2], first.resize)],
    "video": lambda file, first, _: [decode_video(file, *first.shape[:2], first.shape[3], first.resize)],
}
"""By modality, ``read(file, first, bad_examples)``: the examples in a file, in the format of the translator ``first``.
Its ``shape`` is ``[H, W, C]`` for images and ``[F, H, W, C]`` for videos. Recordings longer than its ``max_seconds``
are cut, which ``bad_examples`` notes."""


def _common_folder(files: Sequence[Path]) -> Path:
    """The innermost folder that holds all files, in its subfolders too, such as ``photos/2024``."""
    return Path(os.path.commonpath([file.parent for file in files]) or ".")


def apply_chain(
    chain: Sequence[Translator], inputs: Sequence[Any], *, speaker: str | None = None
) -> list[list[Any]]:
    """Translates the inputs by each translator of a chain in turn.

    Args:
      chain: from `find_chain`.
      inputs: examples of the first translator's source modality.
      speaker: name of the voice in speech synthesis; None: the first one.

    Returns:
      A list of examples for each stage: the inputs, then the outputs of every translator.

    Raises:
      ValueError: speech synthesis does not know the ``speaker``, or no step synthesises speech.
    """
    stages = [list(inputs)]
    if speaker is not None and not any(step.speakers for step in chain):
        raise ValueError("a speaker is named, and no run speaks")
    for k, step in enumerate(chain):
        if k and kind_of(step.source) == "audio" and chain[k - 1].sample_rate != step.sample_rate:
            rates = chain[k - 1].sample_rate, step.sample_rate
            resampled = [_resample(x, *rates) for x in stages[-1]]
        else:
            resampled = stages[-1]
        if step.speakers:
            if speaker is not None and speaker not in step.speakers:
                raise ValueError(f"there is no speaker {speaker!r}: choose one of {', '.join(step.speakers)}")
            speaker_index = 0 if speaker is None else step.speakers.index(speaker)
            stages.append(step.apply(resampled, [speaker_index] * len(inputs)))
        else:
            stages.append(step.apply(resampled))
    return stages


def _resample(waveform: Any, source_rate: int, rate: int) -> Any:
    """A waveform at another sample rate; a file, which is read at any rate, as it is."""
    if isinstance(waveform, Path):
        return waveform
    floats = waveform / np.float32(32768) if waveform.dtype == np.int16 else waveform
    return resample_and_cut(floats, source_rate, rate, None)[0]


def write_outputs(
    folder: Path,
    names: Sequence[str],
    outputs: Sequence[Any],
    *,
    sample_rate: int,
    modality: str | None = None,
) -> list[Path]:
    """Writes each output as a file named after its input: ``.txt``, ``.png``, 16-bit ``.wav``, or ``.csv`` for numbers,
    with a line for each step of a series. An output that is a file is copied.

    ``modality``: of the outputs; None: it is text, images or sounds, which their content tells.

    Returns:
      The files.
    """
    paths = []
    for name, content in zip(names, outputs, strict=True):
        path = folder / name.replace(":", "-")
        kind = "file" if isinstance(content, Path) else _kind_of_output(content, modality)
        suffix = content.suffix if kind == "file" else SUFFIXES[kind]
        path = path.with_name(path.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "file":
            shutil.copyfile(content, path)
        elif kind == "text":
            write_atomic(path, content + "\n")
        elif kind == "image":
            write_atomic(path, png(content))
        elif kind == "audio":
            import soundfile

            wave = content if content.dtype == np.int16 else to_pcm(content)
            soundfile.write(path, wave, sample_rate, subtype="PCM_16")
        else:
            rows = np.atleast_2d(content)
            np.savetxt(path, rows.reshape(-1, rows.shape[-1]), fmt="%.9g", delimiter=",")
        paths.append(path)
    return paths


def write_subtitles(folder: Path, names: Sequence[str], outputs: Sequence[Any]) -> list[Path]:
    """Writes the words of each recording with their times, as subtitles (``.srt``, ``.vtt``) and as ``.json``; nothing
    for outputs that are no `SpokenText`.

    Returns:
      The files.
    """
    paths = []
    for name, text in zip(names, outputs, strict=True):
        if not isinstance(text, SpokenText):
            continue
        transcript = Transcript(str(text), text.words)
        for suffix, write in SUBTITLE_WRITERS.items():
            path = folder / (name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, write(transcript))
            paths.append(path)
    return paths


SUFFIXES = {"text": ".txt", "image": ".png", "audio": ".wav", "numbers": ".csv"}
"""Of the files that outputs are written to, by what they are."""


def _kind_of_output(content: Any, modality: str | None) -> str:
    """What an output is, a key of `SUFFIXES`."""
    if modality is not None:
        return kind_of(modality) if kind_of(modality) in SUFFIXES else "numbers"
    return "text" if isinstance(content, str) else "image" if content.ndim == 3 else "audio"


def to_cell(content: Any, modality: str, sample_rate: int) -> Any:
    """An example of a stage as a cell of a report's table."""
    if isinstance(content, Path):
        if kind_of(modality) == "image":
            with Image.open(content) as picture:
                return np.asarray(picture.convert("RGB"))
        if kind_of(modality) == "audio":
            return Audio(decode_audio(content, sample_rate, None)[0], sample_rate)
        return content.name
    kind = kind_of(modality)
    if kind == "audio":
        return Audio(content, sample_rate)
    if kind in ("text", "image", "video"):
        return content
    return " ".join(f"{value:.4g}" for value in np.ravel(content))


def table_rows(
    names: Sequence[str], stages: Sequence[Sequence[Any]], modalities: Sequence[str], rates: Sequence[int]
) -> list[tuple[Any, ...]]:
    """A row of a report's table for each input: its name, the input, and what each step makes of it.

    ``stages``: of `apply_chain`, with the modality and the sample rate of each.
    """
    columns = [
        [to_cell(content, modality, rate) for content in stage]
        for stage, modality, rate in zip(stages, modalities, rates, strict=True)
    ]
    return list(zip(names, *columns, strict=True))
