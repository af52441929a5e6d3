"""Recordings with transcripts as they are published: Common Voice, LJSpeech, LibriSpeech."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

from xmodal_jax.core.text_files import read_damaged, shorten, split_lines, surrogate_in
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.columns import common_field, field_of
from xmodal_jax.data.layouts.layout import ReadOptions, SplitFiles, first_folder, read_captions, subfolders
from xmodal_jax.data.lines import read_csv
from xmodal_jax.data.media import AUDIO_SUFFIXES
from xmodal_jax.data.metadata import Record, parse_captions, parse_file_name, read_records

# Common Voice: train.tsv, dev.tsv and test.tsv, with recordings in clips/.


def find_common_voice(root: Path) -> dict[str, SplitFiles]:
    """The splits ``train``, ``dev`` and ``test``, or ``all`` where there is ``validated.tsv`` alone; see
    `Layout.find`."""
    if not (root / "clips").is_dir():
        return {}
    splits = {name: root / f"{name}.tsv" for name in ("train", "dev", "test")}
    splits = {name: path for name, path in splits.items() if path.is_file()}
    if not splits and (root / "validated.tsv").is_file():
        splits = {"all": root / "validated.tsv"}
    return {
        name: SplitFiles(path, root / "clips", functools.partial(_read_common_voice, path), (path,))
        for name, path in splits.items()
    }


def _read_common_voice(path: Path, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    """A record for each line of a table, with the columns ``path`` and ``sentence`` unless ``options`` say
    otherwise."""
    lines = list(read_csv(path, bad_examples, separator="\t", quoted=False))
    columns = {"audio": "path", "text": "sentence"} | {
        field_of(name) or name: column for name, column in (options.columns or {}).items()
    }
    if "file_name" in columns:
        del columns["audio"]
    return read_records(
        path,
        lines,
        bad_examples,
        typed=False,
        columns=columns,
        allow_outside=options.allow_outside,
        modalities=options.modalities,
    )


# LJSpeech: metadata.csv with the lines ID|text|normalised text, and wavs/ID.wav.


def find_ljspeech(root: Path) -> dict[str, SplitFiles]:
    """All recordings, without splits; see `Layout.find`."""
    path = root / "metadata.csv"
    if not (root / "wavs").is_dir() or not path.is_file():
        return {}
    with open(path, "rb") as file:
        first = file.readline(4096).decode("utf-8", "replace").removeprefix("\ufeff").strip()
    cells = first.split("|")
    if len(cells) < 2 or field_of(cells[0].strip()) or common_field(cells[0]):  # the header of a table
        return {}
    return {"all": SplitFiles(path, root / "wavs", functools.partial(_read_ljspeech, path), (path,))}


def _read_ljspeech(path: Path, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    """A record for each line: a recording with its normalised text (numbers written as words), which is the last cell.
    Lines must have as many cells as most lines: 3, or 2 where texts are not normalised."""
    text = read_damaged(path)
    lengths = Counter(line.count("|") + 1 for line in split_lines(text) if line.strip())
    usual = next((length for length, _ in lengths.most_common() if length in (2, 3)), 3)

    def parse(line: str) -> tuple[str, str]:
        cells = line.split("|")
        if len(cells) != usual:
            raise ValueError(f"{len(cells)} cells instead of {usual}, as most lines have: {shorten(line)}")
        name = cells[0].strip()
        if not name:
            raise ValueError("the line names no recording")
        name = name if name.lower().endswith(AUDIO_SUFFIXES) else f"{name}.wav"
        return name, cells[-1]

    captions = read_captions(text, parse, path, options, bad_examples)
    return [Record(c.line, {"audio": c.file}, {"text": [c.text]}, None) for c in captions]


# LibriSpeech: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with the lines ID TEXT, beside ID.flac.


def find_librispeech(root: Path) -> dict[str, SplitFiles]:
    """The subsets, such as ``train-clean-100``, or ``all`` if the folder is one; see `Layout.find`."""
    root = first_folder([root / "LibriSpeech", root]) if (root / "LibriSpeech").is_dir() else root
    if _has_chapters(root):
        return {"all": _subset(root)}
    return {folder.name: _subset(folder) for folder in subfolders(root) if _has_chapters(folder)}


def _has_chapters(folder: Path) -> bool:
    """Whether a folder holds folders of speakers that hold folders of chapters with transcripts: whether the first
    does."""
    for _ in range(2):
        folder = next((d for d in sorted(folder.iterdir()) if d.is_dir()), None)
        if folder is None:
            return False
    return any(folder.glob("*.trans.txt"))


def _subset(folder: Path) -> SplitFiles:
    files = tuple(sorted(folder.glob("*/*/*.trans.txt")))
    return SplitFiles(folder, folder, functools.partial(_read_librispeech, folder, files), files)


def _read_librispeech(
    folder: Path, files: tuple[Path, ...], options: ReadOptions, bad_examples: BadExamples
) -> list[Record]:
    records = []
    for path in files:
        chapter = path.name.removesuffix(".trans.txt")
        parent = path.parent.relative_to(folder).as_posix()
        for number, line in enumerate(split_lines(read_damaged(path)), 1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            try:
                if damage := surrogate_in(line):
                    raise ValueError(damage)
                if not name.startswith(f"{chapter}-"):
                    raise ValueError(
                        f"the line does not begin with the number of a recording, as {chapter}-0000"
                    )
                name = parse_file_name("the line", f"{parent}/{name}.flac", options.allow_outside)
                captions = parse_captions(text)
            except ValueError as error:
                bad_examples.add(path, number, str(error))
                continue
            records.append(Record(number, {"audio": name}, {"text": captions}, None, path=path))
    return records
