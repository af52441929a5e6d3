"""Which layout a folder has: the table `LAYOUTS`."""

from __future__ import annotations

import functools
from pathlib import Path

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.layouts.captions import find_coco, find_flickr, find_karpathy
from xmodal_jax.data.layouts.classes import find_classes
from xmodal_jax.data.layouts.layout import Layout, ReadOptions, SplitFiles
from xmodal_jax.data.layouts.speech import find_common_voice, find_librispeech, find_ljspeech
from xmodal_jax.data.metadata import Record, find_metadata, read_metadata


def find_tables(root: Path) -> dict[str, SplitFiles]:
    """The folders with a metadata file, or ``all`` if the folder itself has one; see `Layout.find`."""
    paths = {d.name: find_metadata(d) for d in sorted(root.iterdir()) if d.is_dir()}
    paths = {name: path for name, path in paths.items() if path is not None}
    if not paths and not find_ljspeech(root) and (path := find_metadata(root)) is not None:
        paths = {"all": path}
    return {
        name: SplitFiles(path, path.parent, functools.partial(_read_table, path), (path,))
        for name, path in paths.items()
    }


def _read_table(path: Path, options: ReadOptions, bad_examples: BadExamples) -> list[Record]:
    return read_metadata(path, bad_examples, options.columns, options.allow_outside, options.modalities)


LAYOUTS = (
    Layout("metadata", "metadata.jsonl or metadata.csv (also .tsv, .json)", find_tables, has_columns=True),
    Layout("COCO captions", "annotations/captions_NAME.json", find_coco),
    Layout("Karpathy's splits", "dataset_NAME.json", find_karpathy),
    Layout("Flickr8k, Flickr30k", "NAME.token.txt, NAME.token, captions.txt or results.csv", find_flickr),
    Layout("Common Voice", "train.tsv (or validated.tsv) and clips/", find_common_voice, has_columns=True),
    Layout("LJSpeech", "metadata.csv with | between cells, and wavs/", find_ljspeech),
    Layout("LibriSpeech", "SUBSET/SPEAKER/CHAPTER/NAME.trans.txt", find_librispeech),
)
"""The layouts of folders that have annotations. A folder that has none of these is looked at as `CLASS_FOLDERS`."""
CLASS_FOLDERS = Layout("class folders", "CLASS/FILE or train/CLASS/FILE, two classes or more", find_classes)
"""The layout of folders without annotations."""


def find_layout(root: Path, bad_examples: BadExamples) -> tuple[Layout, dict[str, SplitFiles]]:
    """The layout of a folder, and its splits by name, ``all`` alone for a data set without splits.

    Metadata come before other layouts, because they were written for this purpose; ``bad_examples`` then remarks what
    is not read.

    Raises:
      FileNotFoundError: the folder has none of the layouts.
      ValueError: it has two.
    """
    fits = [(layout, splits) for layout in LAYOUTS if (splits := layout.find(root))]
    if not fits and (splits := CLASS_FOLDERS.find(root)):
        fits = [(CLASS_FOLDERS, splits)]
    if not fits:
        others = "; ".join(f"{layout.name}: {layout.files}" for layout in (*LAYOUTS[1:], CLASS_FOLDERS))
        tables = [p.name for p in sorted(root.iterdir()) if p.suffix in (".csv", ".tsv", ".jsonl", ".json")]
        rename = "".join(
            f"Rename {name} to metadata{Path(name).suffix} if it is that. " for name in tables[:1]
        )
        raise FileNotFoundError(
            f"{root} has no metadata.jsonl or metadata.csv, nor have its folders train/ and test/. Write one line "
            'per example, such as {"file_name": "0001.png", "text": "a red circle", "label": "circle"}. '
            f"{rename}Nor does it have another layout that is known ({others})."
        )
    if len(fits) == 1:
        return fits[0]
    names = [
        f"{layout.name} ({', '.join(sorted({str(s.path) for s in splits.values()}))})"
        for layout, splits in fits
    ]
    if fits[0][0] is LAYOUTS[0]:
        bad_examples.remark(f"{root} is read by its metadata, and not as {' or '.join(names[1:])}")
        return fits[0]
    raise ValueError(
        f"{root} has the layouts of two data sets, {' and '.join(names)}: move the files of one of them away."
    )
