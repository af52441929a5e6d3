"""Folders of classes, as of ImageNet: the name of the folder that a file is in is its class."""

from __future__ import annotations

import functools
import os
from collections import Counter
from pathlib import Path

from xmodal_jax.core.text_files import normalise
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.layouts.layout import SYSTEM_FOLDERS, ReadOptions, SplitFiles, subfolders
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.data.metadata import Record
from xmodal_jax.data.split_names import split_of


def find_classes(root: Path) -> dict[str, SplitFiles]:
    """The splits whose folders hold two folders of classes or more, or ``all`` if the folder itself does; see
    `Layout.find`."""
    folders = subfolders(root)
    if any(split_of(folder.name) == "train" for folder in folders):
        splits = {folder.name: folder for folder in folders if _holds_classes(folder)}
        if any(split_of(name) == "train" for name in splits):
            return {name: _split(folder) for name, folder in splits.items()}
    return {"all": _split(root)} if _holds_classes(root) else {}


def _split(folder: Path) -> SplitFiles:
    return SplitFiles(folder, folder, functools.partial(_read_classes, folder))


def _holds_classes(folder: Path) -> bool:
    """Whether two folders in a folder, or more, hold files of a known type."""
    count = 0
    for subfolder in subfolders(folder):
        count += any(modality_of_file(name) for _, _, names in os.walk(subfolder) for name in names)
        if count == 2:
            return True
    return False


def _read_classes(folder: Path, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    """A record for each file in a folder of a class, sorted by name."""
    records = []
    unread: Counter[str] = Counter()
    for class_folder in subfolders(folder):
        label = normalise(class_folder.name)
        for parent, folders, names in os.walk(class_folder):
            folders[:] = sorted(folder for folder in folders if folder not in SYSTEM_FOLDERS)
            for name in sorted(names):
                modality = modality_of_file(name)
                path = Path(parent) / name
                if modality is None or name.startswith("."):
                    unread[path.suffix or name] += not name.startswith(".")
                    continue
                records.append(
                    Record(1, {modality: path.relative_to(folder).as_posix()}, {}, label, path=path)
                )
    for suffix, count in sorted(unread.items()):
        bad_examples.note(
            f"The type {suffix} is not known: {{files}} in {folder} are not read.", count, once=True
        )
    loose = sum(modality_of_file(entry.name) is not None for entry in folder.iterdir() if entry.is_file())
    bad_examples.note(
        f"Not read, because they are in no folder of a class: {{files}} in {folder}.", loose, once=True
    )
    return records
