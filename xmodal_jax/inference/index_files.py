"""The files of an index: embeddings and names in shards, each written whole and verified when it is read.

A folder holds ``index.json`` (what was embedded, by which run, and the number of shards), and of each shard the
embeddings, the names, and ``shard-00000.json`` with the digests of both, which is written last: a shard without it is
not finished. The embeddings are a safetensors file with one array for each modality, and the names a JSON line for each
example; or both are a Parquet file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from xmodal_jax.data.bad_examples import BadExample
from xmodal_jax.pretrained.safetensors_files import read_header, write_safetensors
from xmodal_jax.train.checkpoint import DamagedCheckpoint, seal, unseal
from xmodal_jax.train.run import write_atomic

Format = Literal["safetensors", "parquet"]
VERSION = 1
INDEX_FILE = "index.json"


class Shard(NamedTuple):
    """Some examples of an index, n of them."""

    embeddings: Mapping[str, np.ndarray]
    """The unit embeddings of each modality, float32 ``[n, D]``; zeros where an example lacks it."""
    present: Mapping[str, np.ndarray]
    """For each modality which examples have it, bool ``[n]``."""
    names: Sequence[str]
    """The names of the examples."""
    examples: np.ndarray
    """The index of each example in its data set, int64 ``[n]``."""
    bad_examples: Sequence[BadExample] = ()
    """Examples of the data set that could not be read and are left out here."""


class DamagedIndex(ValueError):
    """A file of an index is missing, cannot be read, or holds other content than was written."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes ``index.json``."""
    write_atomic(folder / INDEX_FILE, json.dumps(seal(dict(settings)), indent=1) + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of ``index.json``.

    Raises:
      FileNotFoundError: there is none.
      DamagedIndex: it differs from what was written.
      ValueError: it is of a later version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no index: there is no {INDEX_FILE}; experiments/embed.py or Index.save makes one"
        )
    settings = read_sealed(path)
    if settings.get("version") != VERSION:
        raise ValueError(
            f"{path} has the version {settings.get('version')}, this program reads {VERSION}: embed the data again"
        )
    return settings


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a JSON file that `seal` wrote, whose digest is verified."""
    try:
        return unseal(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, DamagedCheckpoint) as error:
        raise DamagedIndex(f"{path} holds other content than was written: embed the data again") from error


def _stem(folder: Path, number: int) -> Path:
    """The path of a shard's files without their suffixes."""
    return folder / f"shard-{number:05d}"


def write_shard(folder: Path, number: int, shard: Shard, format: Format) -> None:
    """Writes the files of a shard. The one with the digests is last: without it the shard counts as unfinished."""
    stem = _stem(folder, number)
    files = FORMATS[format].write(stem, shard)
    content = {
        "examples": len(shard.names),
        "bad_examples": [list(bad) for bad in shard.bad_examples],
        "sha256": {file.name: file_digest(file) for file in files},
    }
    write_atomic(stem.with_suffix(".json"), json.dumps(seal(content), indent=1) + "\n")


def shard_summary(folder: Path, number: int) -> dict[str, Any]:
    """Verifies the files of a shard; returns its number of ``examples``, its ``bad_examples`` and its digests
    (``sha256``).

    Raises:
      FileNotFoundError: the shard is not finished.
      DamagedIndex: a file is missing or differs from what was written.
    """
    path = _stem(folder, number).with_suffix(".json")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the shard is not finished")
    summary = read_sealed(path)
    for name, digest in summary["sha256"].items():
        file = folder / name
        if not file.is_file() or file_digest(file) != digest:
            reason = "holds other content than was written" if file.is_file() else "is missing"
            raise DamagedIndex(
                f"{file} {reason}: run the same command of experiments/embed.py again, which embeds this shard alone"
            )
    return summary


def read_shard(folder: Path, number: int, format: Format, modalities: Sequence[str]) -> Shard:
    """Reads a shard, verified by its digests.

    Raises:
      FileNotFoundError: it is not finished.
      DamagedIndex: it differs from what was written.
    """
    summary = shard_summary(folder, number)
    shard = FORMATS[format].read(_stem(folder, number), modalities)
    return shard._replace(bad_examples=[BadExample(*bad) for bad in summary["bad_examples"]])


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_safetensors(stem: Path, shard: Shard) -> list[Path]:
    arrays = dict(shard.embeddings)
    arrays |= {f"{m}.present": mask for m, mask in shard.present.items() if not mask.all()}
    vectors, names = stem.with_suffix(".safetensors"), stem.with_suffix(".jsonl")
    write_safetensors(vectors, arrays.items())
    lines = (
        json.dumps({"example": index, "name": name}, ensure_ascii=False) + "\n"
        for index, name in zip(shard.examples.tolist(), shard.names, strict=True)
    )
    write_atomic(names, "".join(lines).encode("utf-8", "backslashreplace"))
    return [vectors, names]


def _read_safetensors(stem: Path, modalities: Sequence[str]) -> Shard:
    entries = read_header(stem.with_suffix(".safetensors"))
    embeddings = {m: entries[m].read() for m in modalities}
    with stem.with_suffix(".jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]  # not `splitlines`: names may hold other ends of lines
    complete = np.ones(len(records), bool)
    present = {
        m: entries[f"{m}.present"].read() if f"{m}.present" in entries else complete for m in modalities
    }
    examples = np.array([record["example"] for record in records], np.int64)
    return Shard(embeddings, present, [record["name"] for record in records], examples)


def _write_parquet(stem: Path, shard: Shard) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name.encode("utf-8", "backslashreplace").decode() for name in shard.names]
    columns = {"example": pa.array(shard.examples), "name": pa.array(names, pa.string())}
    for modality, vectors in shard.embeddings.items():
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        mask = pa.array(~shard.present[modality])
        columns[modality] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)
    path, part = stem.with_suffix(".parquet"), stem.with_suffix(".parquet.part")
    pq.write_table(pa.table(columns), part)
    part.replace(path)
    return [path]


def _read_parquet(stem: Path, modalities: Sequence[str]) -> Shard:
    import pyarrow.parquet as pq

    table = pq.read_table(stem.with_suffix(".parquet")).combine_chunks()
    embeddings, present = {}, {}
    for modality in modalities:
        column = table[modality].combine_chunks()
        values = column.fill_null([0.0] * column.type.list_size) if column.null_count else column
        embeddings[modality] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        present[modality] = column.is_valid().to_numpy(zero_copy_only=False)
    return Shard(embeddings, present, table["name"].to_pylist(), table["example"].to_numpy().astype(np.int64))


class _FileFormat(NamedTuple):
    """How shards are written and read: ``write(stem, shard) -> files`` and ``read(stem, modalities) -> shard``."""

    write: Callable[[Path, Shard], list[Path]]
    read: Callable[[Path, Sequence[str]], Shard]


FORMATS: dict[str, _FileFormat] = {
    "safetensors": _FileFormat(_write_safetensors, _read_safetensors),
    "parquet": _FileFormat(_write_parquet, _read_parquet),
}
"""How the embeddings and names of a shard are written to ``<stem>.<suffix>`` and read, by `Format`."""
assert set(FORMATS) == set(get_args(Format))
