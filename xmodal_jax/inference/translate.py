"""Translation of files or texts by a chain of trained runs: reading inputs, finding the chain, writing outputs."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.text_files import normalise, read_lines
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import decode_audio, decode_image, decode_video, modality_of_file, to_pcm
from xmodal_jax.inference.translators import Translator
from xmodal_jax.report.page import png
from xmodal_jax.train.run import write_atomic


class TranslationInput(NamedTuple):
    """What to translate: files of one modality, or a text."""

    modality: str
    files: tuple[Path, ...]
    """Empty where the input is the text."""
    text: str = ""


def find_inputs(source: str) -> TranslationInput:
    """The input that a string names: a file, all files in a folder and its subfolders, or else the text itself.

    Raises:
      FileNotFoundError: the string is a file name, and there is no such file.
      ValueError: the file is of an unknown kind, or the folder holds files of no or of several modalities.
    """
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
            raise ValueError(f"{path}: a file {path.suffix or 'without suffix'} cannot be read")
        return TranslationInput(_modality(path), (path,))
    if _modality(path) is not None:
        raise FileNotFoundError(f"there is no file {path}")
    return TranslationInput("text", (), source)


def _modality(path: Path) -> str | None:
    return "text" if path.suffix.lower() == ".txt" else modality_of_file(path.name)


def find_chain(translators: Sequence[Translator], source: str, target: str) -> list[Translator]:
    """The shortest chain of translators from one modality to another, by breadth-first search; each is used at most
    once.

    Raises:
      ValueError: there is none.

    Example::

        find_chain([synthesizer, captioner], "image", "audio")  # [captioner, synthesizer]
    """
    # Chains that begin at the source, shorter ones first: the modality that each ends in, and its translators.
    chains = collections.deque([(source, [])])
    while chains:
        modality, chain = chains.popleft()
        if modality == target and chain:
            return chain
        chains += [(t.target, [*chain, t]) for t in translators if t.source == modality and t not in chain]
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
            examples = READERS[inputs.modality](file, first, bad_examples)
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


def _read_lines(file: Path, first: Translator, bad_examples: BadExamples) -> list[str]:
    return [normalise(line.strip()) for line in read_lines(file) if line.strip()]


def _read_audio(file: Path, first: Translator, bad_examples: BadExamples) -> list[np.ndarray]:
    samples, was_cut = decode_audio(file, first.sample_rate, first.max_seconds)
    if was_cut:
        bad_examples.note(
            f"Recordings are cut to {first.max_seconds:g} s, for which the model has positions, which shortens "
            "{recordings}."
        )
    return [samples]


READERS: dict[str, Callable[[Path, Translator, BadExamples], list[Any]]] = {
    "text": _read_lines,
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
    for step in chain:
        if step.target == "audio":
            if speaker is not None and speaker not in step.speakers:
                raise ValueError(f"there is no speaker {speaker!r}: choose one of {', '.join(step.speakers)}")
            speaker_index = 0 if speaker is None else step.speakers.index(speaker)
            stages.append(step.apply(stages[-1], [speaker_index] * len(inputs)))
        else:
            stages.append(step.apply(stages[-1]))
    return stages


def write_outputs(
    folder: Path, names: Sequence[str], outputs: Sequence[Any], *, sample_rate: int
) -> list[Path]:
    """Writes each output as a file named after its input: ``.txt``, ``.png`` or 16-bit ``.wav``.

    Returns:
      The files.
    """
    import soundfile

    paths = []
    for name, content in zip(names, outputs, strict=True):
        path = folder / name.replace(":", "-")
        suffix = ".txt" if isinstance(content, str) else ".png" if content.ndim == 3 else ".wav"
        path = path.with_name(path.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_atomic(path, content + "\n")
        elif suffix == ".png":
            write_atomic(path, png(content))
        else:
            wave = content if content.dtype == np.int16 else to_pcm(content)
            soundfile.write(path, wave, sample_rate, subtype="PCM_16")
        paths.append(path)
    return paths
