"""Parquet and Arrow files as people and programs write them, and damaged ones."""

from __future__ import annotations

import io
import json
import os
import pathlib
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.fault_kinds import ANYTHING, REFUSED, Case, Kind, choose, cut, flip_bits
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.sources.parquet import ParquetSource, SavedSource

SIDE = 5
CLASSES = ("a", "b", "c")
Row = dict[str, Any]


def encode_png(pixels: np.ndarray) -> bytes:
    """An image uint8 ``[S, S, 3]`` as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def draw_rows(rng: np.random.Generator) -> list[Row]:
    """Right rows, seven to twelve: pixels, caption and class. The first three have all of these."""
    words = ["a red circle", "日本", "ü", "x" * 50, 'a, "b"\n;c']
    rows = []
    for k in range(int(rng.integers(7, 13))):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        rows.append({"image": pixels, "text": f"{choose(rng, words)} {k}", "label": k % 3})
        if k > 2 and not rng.integers(3):
            rows[-1][choose(rng, ["image", "text", "label"])] = None
    return rows


ROW_FAULTS = {
    "image: junk": ("image", (b"junk", b"", b"<html>404</html>")),
    "image: cut": ("image", (encode_png(np.zeros((SIDE, SIDE, 3), np.uint8))[:40],)),
    "text: empty": ("text", (b"", b"  ", b"\n")),
    "text: not UTF-8": ("text", (b"a \xff", b"\xc3")),
    "label: no class": ("label", (-7, 10**6)),
}
"""Values of one row that make it a bad example, by column."""
STRINGS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
NUMBERS = (pa.int8(), pa.int64(), pa.uint8(), pa.uint64(), pa.float64(), pa.dictionary(pa.int8(), pa.int64()))


class _Form:
    """The types of the columns, which are drawn once for all files of a data set.

    ``plain``: of one row in a column, a value can be of another kind, which no special type could hold.
    """

    def __init__(self, rng: np.random.Generator, plain: bool):
        self.is_struct = bool(rng.integers(2))
        self.bytes = BYTES[0] if self.is_struct else choose(rng, BYTES)
        self.string = STRINGS[0] if plain else choose(rng, STRINGS)
        self.number = pa.int64() if plain else choose(rng, NUMBERS)
        self.is_list = not plain and not rng.integers(4)
        self.names = choose(rng, [None, CLASSES])

    def table(self, rows: list[Row]) -> pa.Table:
        """Rows as a table."""
        images = [encode_png(r["image"]) if isinstance(r["image"], np.ndarray) else r["image"] for r in rows]
        kind = self.bytes
        if self.is_struct:
            images = [None if image is None else {"bytes": image, "path": None} for image in images]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        texts = [r["text"] for r in rows]
        if any(isinstance(text, bytes) for text in texts):
            encoded = [text.encode() if isinstance(text, str) else text for text in texts]
            array = pa.array(encoded, pa.binary())
            text_column = pa.Array.from_buffers(pa.string(), len(rows), array.buffers())
        elif self.is_list:
            text_column = pa.array([None if t is None else [t] for t in texts], pa.list_(pa.string()))
        else:
            text_column = pa.array(texts, self.string)
        columns = {"image": pa.array(images, kind), "text": text_column}
        labels = pa.array([r["label"] for r in rows], pa.int64())
        is_dictionary = pa.types.is_dictionary(self.number)
        columns["label"] = labels.dictionary_encode() if is_dictionary else labels.cast(self.number)
        return self.describe(pa.table(columns), self.names)

    def describe(self, table: pa.Table, names: tuple[str, ...] | None) -> pa.Table:
        """The table with what ``datasets`` would say of its label."""
        if names is None:
            return table
        features = {"label": {"_type": "ClassLabel", "names": [*names]}}
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _without_values(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.schema.names.index(name), name, pa.nulls(len(table)))


TABLE_FAULTS = {
    "a column of another type": lambda t, form: t.set_column(1, "text", pa.array([1] * len(t))),
    "a column is missing": lambda t, form: t.drop_columns(["text"]),
    "a column is there twice": lambda t, form: t.append_column("text", t["text"]),
    "other classes": lambda t, form: form.describe(t, ("c", "b", "a")),
    "a class is there twice": lambda t, form: form.describe(t, ("a", "a", "c")),
    "the features are not JSON": lambda t, form: t.replace_schema_metadata({"huggingface": "{"}),
}
"""What must be refused, with the name of the file: changes of the last of several files."""
FILE_FAULTS = {
    "empty": lambda rng, content: b"",
    "text": lambda rng, content: b"image,text\na.png,x\n",
    "cut": cut,
    "the start is missing": lambda rng, content: content[int(rng.integers(1, len(content))) :],
}
GOOD = ("none", "none", "other order", "no values in one file", "no rows in one file")


def _save(
    rng: np.random.Generator, tables: list[pa.Table], folder: pathlib.Path, arrow: bool
) -> list[pathlib.Path]:
    """The files of tables, in order."""
    folder.mkdir()
    paths = [folder / f"{k}.{'arrow' if arrow else 'parquet'}" for k in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        rows = int(rng.integers(1, 9))
        if arrow:
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table, rows)
        else:
            compression = choose(rng, ["snappy", "none", "zstd", "gzip"])
            pq.write_table(table, path, row_group_size=rows, compression=compression)
    if arrow:
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": p.name} for p in paths]}))
    return paths


def read_source(source: Any, bad: BadExamples) -> tuple[dict[str, list], list[tuple[str, int]]]:
    """The values of all examples of a source, and the file and number of those that are left out."""
    batch = source.batch(np.arange(len(source)))
    labels = source.class_labels()
    values = {
        "image": [image.tobytes() for image in batch["image"]],
        "text": [*map(str, batch["caption"])],
        "label": [-1] * len(source) if labels is None else labels.tolist(),
    }
    return values, sorted((pathlib.Path(e.file).name, e.line) for e in bad.items)


def expected_values(rows: list[Row]) -> dict[str, list]:
    """What comes out of right rows."""
    blank = bytes(SIDE * SIDE * 3)
    return {
        "image": [blank if r["image"] is None else r["image"].tobytes() for r in rows],
        "text": ["" if r["text"] is None else " ".join(r["text"].split()) for r in rows],
        "label": [-1 if r["label"] is None else r["label"] for r in rows],
    }


def _read(folder: pathlib.Path, arrow: bool, skip: bool) -> Any:
    """What the code under test reads."""
    bad = BadExamples("skip" if skip else "stop")
    with mock.patch.dict(os.environ, {"XMODAL_CACHE": str(folder.parent / "cache")}):
        source = (SavedSource if arrow else ParquetSource)(
            folder, "all", bad_examples=bad, image_size=SIDE, workers=1, progress=False
        )
        return read_source(source, bad)


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    rows, arrow, skip = draw_rows(rng), bool(rng.integers(2)), bool(rng.integers(2))
    faults = [*ROW_FAULTS, *TABLE_FAULTS, *FILE_FAULTS, *GOOD, "bits flipped", "bits flipped"]
    fault = choose(rng, faults)
    form, bad_row = _Form(rng, plain=fault in (*ROW_FAULTS, *TABLE_FAULTS)), None
    if fault in ROW_FAULTS:
        column, values = ROW_FAULTS[fault]
        bad_row = int(rng.integers(3, len(rows)))
        rows[bad_row] = {"image": rows[0]["image"], "text": "x", "label": 0, column: choose(rng, values)}
    parts = [rows[:4], rows[4:]]
    tables = [form.table(part) for part in parts]
    expected: Any = (expected_values([r for k, r in enumerate(rows) if k != bad_row]), [])
    if fault in TABLE_FAULTS:
        tables[0] = form.describe(tables[0], CLASSES)
        tables[1] = TABLE_FAULTS[fault](tables[1], form)
    elif fault == "other order":
        tables[1] = tables[1].select(["label", "image", "text"])
    elif fault == "no values in one file":
        name, other = choose(rng, [("text", "image"), ("label", "text")])
        parts[1] = [{**row, name: None} for row in parts[1] if row[other] is not None]
        tables[1] = _without_values(form.table(parts[1]), name)
        expected = (expected_values(parts[0] + parts[1]), [])
    elif fault == "no rows in one file":
        tables.insert(0, choose(rng, [pa.table({}), tables[0].slice(0, 0), pa.table({"text": pa.nulls(0)})]))
    paths = _save(rng, tables, folder / "data", arrow)
    mentions: tuple[str, ...] = (str(paths[-1]),)
    if fault in FILE_FAULTS:
        paths[-1].write_bytes(FILE_FAULTS[fault](rng, paths[-1].read_bytes()))
    if fault in (*TABLE_FAULTS, *FILE_FAULTS):
        expected = REFUSED
    elif fault == "bits flipped":
        paths[-1].write_bytes(flip_bits(rng, paths[-1].read_bytes(), int(rng.integers(1, 4))))
        expected, mentions = ANYTHING, (str(folder),)
    elif bad_row is not None:
        path, number = (paths[0], bad_row + 1) if bad_row < 4 else (paths[1], bad_row - 3)
        expected = (expected[0], [(path.name, number)]) if skip else REFUSED
        mentions = (f"{path}:{number}",)
    name = f"{'arrow' if arrow else 'parquet'}, {'skip' if skip else 'stop'}: {fault}"
    return Case(name, lambda: _read(folder / "data", arrow, skip), expected, mentions)


KIND = Kind("parquet", _draw, 600)
