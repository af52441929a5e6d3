"""From files or words, through one trained run after another, to files."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import decode_audio, decode_image, decode_video, modality_of_file, to_pcm
from xmodal_jax.inference.load import Translator
from xmodal_jax.report.page import png
from xmodal_jax.train.run import write_atomic


class Found(NamedTuple):
    """What is to be translated."""

    modality: str
    files: tuple[Path, ...]
    """Empty where the words were given themselves."""
    words: str = ""


def find_inputs(source: str) -> Found:
    """What ``source`` names: a file, a folder of files of one modality (searched to its depth), or words.

    Raises:
      FileNotFoundError: it looks like a file, and there is none.
      ValueError: a file of an unknown kind, or a folder with none or several kinds.
    """
    path = Path(source)
    kind = lambda p: "text" if p.suffix.lower() == ".txt" else modality_of_file(p.name)
    if path.is_dir():
        files = tuple(sorted(p for p in path.rglob("*") if p.is_file() and kind(p) is not None))
        kinds = sorted({kind(p) for p in files})
        if len(kinds) != 1:
            held = " and ".join(kinds) or "no pictures, sounds, videos or .txt files"
            raise ValueError(f"a folder of files of one kind is needed: {path} holds {held}")
        return Found(kinds[0], files)
    if path.is_file():
        if kind(path) is None:
            raise ValueError(f"{path}: a file {path.suffix or 'without suffix'} is not understood")
        return Found(kind(path), (path,))
    if kind(path) is not None:
        raise FileNotFoundError(f"there is no file {path}")
    return Found("text", (), source)


def chain(known: Sequence[Translator], source: str, target: str) -> list[Translator]:
    """The shortest way from one modality to another through the ``known`` runs, each at most once.

    Raises:
      ValueError: there is none.
    """
    ways = collections.deque([(source, [])])
    while ways:
        at, steps = ways.popleft()
        if at == target and steps:
            return steps
        ways += [(k.target, [*steps, k]) for k in known if k.source == at and k not in steps]
    have = ", ".join(f"{k.source} to {k.target}" for k in known)
    raise ValueError(
        f"no way from {source} to {target} through the runs given ({have or 'none'}): name more --runs"
    )


def read_inputs(found: Found, first: Translator, bad_examples: BadExamples) -> tuple[list[str], list[Any]]:
    """Names and contents, in the form that ``first`` was trained on. ``bad_examples`` collects unreadable files.

    Raises:
      ValueError: nothing could be read.
    """
    if not found.files:
        return ["words"], [found.words]
    names, inputs = [], []
    root = found.files[0].parent if len(found.files) == 1 else Path(*_common(found.files))
    for file in found.files:
        name = str(file.relative_to(root))
        try:
            if found.modality == "text":
                lines = [
                    line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
                ]
                names += [f"{name}:{k}" for k in range(1, len(lines) + 1)]
                inputs += lines
                continue
            if found.modality == "audio":
                content, _ = decode_audio(file, first.sample_rate)
            elif found.modality == "image":
                content = decode_image(file, first.shape[0], first.shape[2])
            else:
                content = decode_video(file, first.shape[0], first.shape[1], first.shape[3])
        except Exception as error:  # decoders raise many kinds
            bad_examples.add(file, 0, str(error))
            continue
        names.append(name)
        inputs.append(content)
    if not inputs:
        raise ValueError(f"nothing to translate in {root}: {bad_examples.summary() or 'the files are empty'}")
    return names, inputs


def _common(files: Sequence[Path]) -> tuple[str, ...]:
    parts = [file.parent.parts for file in files]
    return tuple(p[0] for p in zip(*parts, strict=False) if len(set(p)) == 1)


def translate(
    steps: Sequence[Translator], inputs: Sequence[Any], *, speaker: str | None = None
) -> list[list[Any]]:
    """The inputs and what each step makes of what the last one made.

    Raises:
      ValueError: a ``speaker`` that the run that speaks does not have, or none that speaks.
    """
    stages = [list(inputs)]
    if speaker is not None and not any(step.speakers for step in steps):
        raise ValueError("a speaker is named, and no run speaks")
    for step in steps:
        if step.target == "audio":
            if speaker is not None and speaker not in step.speakers:
                raise ValueError(f"there is no speaker {speaker!r}: choose one of {', '.join(step.speakers)}")
            who = 0 if speaker is None else step.speakers.index(speaker)
            stages.append(step.apply(stages[-1], [who] * len(inputs)))
        else:
            stages.append(step.apply(stages[-1]))
    return stages


def write_outputs(folder: Path, names: Sequence[str], made: Sequence[Any], *, sample_rate: int) -> list[Path]:
    """One file for each: ``.txt``, ``.png`` or 16-bit ``.wav``, named after its input."""
    import soundfile

    paths = []
    for name, content in zip(names, made, strict=True):
        path = folder / name.replace(":", "-")
        kind = ".txt" if isinstance(content, str) else ".png" if content.ndim == 3 else ".wav"
        path = path.with_name(path.name + kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            write_atomic(path, content + "\n")
        elif kind == ".png":
            write_atomic(path, png(content))
        else:
            wave = content if content.dtype == np.int16 else to_pcm(content)
            soundfile.write(path, wave, sample_rate, subtype="PCM_16")
        paths.append(path)
    return paths
