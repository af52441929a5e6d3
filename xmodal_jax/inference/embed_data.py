"""The embeddings of a whole data set as an index on disk, by one or several processes, which can go on where they were
stopped."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from xmodal_jax.core.text_files import printable
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.mixture import MixtureSource
from xmodal_jax.data.mixture_splits import split_options
from xmodal_jax.data.open import FORMS, DataOptions, open_source
from xmodal_jax.data.source import RawBatch, Source, first_of_group
from xmodal_jax.data.views import Subset, TransformedSource
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.index import SHARD_SIZE, Index, index_settings
from xmodal_jax.inference.index_files import (
    INDEX_FILE,
    DamagedIndex,
    Format,
    Shard,
    read_settings,
    shard_summary,
    write_settings,
    write_shard,
)
from xmodal_jax.train.owner import LOCK_FILE, DirectoryInUse, acquire, release
from xmodal_jax.train.run import to_json
from xmodal_jax.types import kind_of

RUN_OPTIONS = (
    "image_size", "largest_side", "image_fit", "resample", "image_centre", "channels", "sample_rate", "max_seconds",
    "frames",
)  # fmt: skip
"""The options of data that a run decides, because its networks were trained with them."""
TRAINING_OPTIONS = (
    "validation", "test_split", "test_data", "data_weights", "missing", "incomplete", "check_files", "memory_limit_gib",
)  # fmt: skip
"""The options of data that only a training has use for."""
ALL_SPLITS = "all"
_IN_FLIGHT = 4  # batches that are computed while the next ones are read
_NO_MEMORY = 1e-9  # GiB
SHOWN_SIDE = 160
"""Side in pixels of pictures from files on a page."""


def run_options(model: ContrastiveModel, options: DataOptions) -> DataOptions:
    """``options`` with those of `RUN_OPTIONS` as the run was trained with.

    Raises:
      ValueError: one of these is set to another value.
    """
    stored, shapes = model.metadata["config"].get("input", {}), model.format.shapes
    of_run = {name: stored[name] for name in RUN_OPTIONS if stored.get(name) is not None}
    by_kind = {kind_of(m): shapes[m] for m in model.format.modalities if m in shapes}
    if "image" in by_kind:
        of_run["image_size"], _, of_run["channels"] = by_kind["image"]
    if "video" in by_kind:
        of_run["frames"], of_run["image_size"], _, of_run["channels"] = by_kind["video"]
    for name in RUN_OPTIONS:
        value = getattr(options, name)
        if value not in (getattr(DataOptions, name), of_run.get(name)):
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} {value}: inputs are brought into the format that the run was trained with"
                + (f" ({of_run[name]})" if name in of_run else "")
                + ": leave it out"
            )
    return dataclasses.replace(options, **of_run)


def open_for_model(
    model: ContrastiveModel, spec: str, split: str, options: DataOptions, bad_examples: BadExamples
) -> Source:
    """A data set in the format of a run, with the modalities that both have, or those of ``options.modalities``. Its
    files are decoded when they are needed, and no file is kept in memory.

    ``split``: its name, or `ALL_SPLITS`: the examples of all splits, one after the other.

    Raises:
      ValueError: run and data share no modality, or the run lacks one that is asked for.
    """
    spec, options = split_options(spec, options)
    for name in TRAINING_OPTIONS:
        if getattr(options, name) != getattr(DataOptions, name):
            raise ValueError(f"--{name.replace('_', '-')} is an option of training: leave it out")
    known = model.format.modalities
    for modality in options.modalities or ():
        if modality not in known:
            raise ValueError(f"the run has {', '.join(known)}, not {modality}")
    return _open_splits(spec, split, run_options(model, options), known, bad_examples)


def _open_splits(
    spec: str, split: str, options: DataOptions, known: Sequence[str], bad_examples: BadExamples
) -> Source:
    """One or all splits of a data set, with ``options.modalities``; None: those of ``known`` that each split has."""
    options = dataclasses.replace(options, check_files=False, memory_limit_gib=_NO_MEMORY)

    def open_one(name: str) -> Source:
        shared = options.modalities or _shared(spec, name, options, known)
        chosen = dataclasses.replace(options, modalities=shared)
        return open_source(spec, name, chosen, bad_examples=bad_examples)

    if split != ALL_SPLITS:
        return open_one(split)
    train = open_one("train")
    names = dict.fromkeys(name for name in (train.validation_split, *train.test_splits) if name is not None)
    sources = {"train": train} | {name: open_one(name) for name in names}
    return train if len(sources) == 1 else MixtureSource(sources)


def _shared(spec: str, split: str, options: DataOptions, known: Sequence[str]) -> tuple[str, ...]:
    """Those of the modalities ``known`` that a split of a data set has.

    Raises:
      ValueError: it has none of them, or cannot be opened.
    """

    def has(*modalities: str) -> bool:
        """Whether the data set can be opened with ``modalities``; nothing is decoded and nothing complained of."""
        try:
            wanted = dataclasses.replace(options, modalities=modalities, progress=False)
            open_source(spec, split, wanted, bad_examples=BadExamples("skip"))
        except ValueError as error:
            errors.append(error)
            return False
        return True

    errors: list[ValueError] = []
    if has(*known):
        return tuple(known)
    shared = tuple(m for m in known if len(known) > 1 and has(m))
    if not shared:
        raise ValueError(
            f"{spec} has none of the run's modalities {', '.join(known)}: {errors[-1]}"
        ) from errors[-1]
    return shared


def spread_over_devices(model: ContrastiveModel) -> None:
    """Copies the parameters to all devices of this process, which then compute a part of each batch."""
    devices = jax.local_devices()
    if len(devices) > 1:
        mesh = Mesh(np.asarray(devices), ("devices",))
        model.params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))


def embed_data(
    model: ContrastiveModel,
    source: Source,
    folder: Path,
    *,
    data: Mapping[str, Any],
    bad_examples: BadExamples,
    format: Format = "safetensors",
    batch_size: int = 256,
    shard_size: int = SHARD_SIZE,
    process: tuple[int, int] = (0, 1),
    progress: bool = True,
    announce: Callable[[str], None] = print,
) -> None:
    """Writes an index of all examples of a data set, in shards; those that are there already are kept.

    Examples that cannot be read are left out, where ``bad_examples`` skips them. Of several examples that show the same
    picture (one for each caption), the picture counts once.

    Args:
      model: computes the embeddings, on the devices of its parameters.
      source: in the format of the run, see `open_for_model`.
      folder: of the index; one that is not finished is gone on with.
      data: the fields of `Index.data`.
      bad_examples: that ``source`` was opened with.
      format: of the files.
      batch_size: examples that are computed at a time; a larger one for several devices.
      shard_size: examples in a file, rounded up to whole batches.
      process: ``(p, P)``: this process writes the shards p, p + P, ….
      progress: whether a progress bar is shown.
      announce: is called with what is worth knowing.

    Raises:
      ValueError: the folder holds another index.
      FileExistsError: it holds something else, or another program writes to it.
    """
    devices = max(1, len(jax.tree.leaves(model.params)[0].sharding.device_set))
    batch_size = -(-batch_size // devices) * devices
    shard_size = -(-shard_size // batch_size) * batch_size
    settings = index_settings(
        source.modalities, model.digest, absolute(model.path), data, format, len(source), shard_size
    )
    with _owner_of(folder) if process[0] == 0 else contextlib.nullcontext():
        _begin(folder, settings, writes=process[0] == 0)
        shards = range(process[0], settings["shards"], process[1])
        todo = [number for number in shards if not _is_finished(folder, number, announce)]
        if len(todo) < len(shards):
            announce(f"{len(shards) - len(todo)} of {len(shards)} shards are there already")
        ranges = {n: np.arange(n * shard_size, min((n + 1) * shard_size, len(source))) for n in todo}
        total = sum(map(len, ranges.values()))
        first = first_of_group(source)
        write = functools.partial(_write, folder, source, first, bad_examples, format)
        with tqdm(total=total, desc="embedding", unit="example", disable=not progress) as bar:
            if total:
                _embed_shards(model, source, ranges, batch_size, write, bar)
        _list_bad_examples(folder, settings["shards"], bad_examples)


@contextlib.contextmanager
def _owner_of(folder: Path) -> Iterator[None]:
    """This process writes to the folder, and no other program.

    Raises:
      FileExistsError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        acquire(folder)
    except DirectoryInUse as error:
        raise FileExistsError(
            f"{folder}: another program embeds into it; wait until it has ended, or choose another folder with --output"
        ) from error
    try:
        yield
    finally:
        release(folder)


def absolute(run: Path) -> str:
    """The path of a run from anywhere; a name that is no path (``hf:FOLDER``) as it is."""
    return str(run.resolve() if run.exists() else run)


def _begin(folder: Path, settings: Mapping[str, Any], *, writes: bool) -> None:
    """Writes ``index.json``, or compares it with the one that is there."""
    if not (folder / INDEX_FILE).is_file():
        others = (path for path in folder.glob("*") if path.name != LOCK_FILE)
        if writes and any(others):
            raise FileExistsError(f"{folder} holds files but no index: choose a new folder with --output")
        if writes:
            write_settings(folder, settings)
        return
    before = read_settings(folder)
    settings = json.loads(json.dumps(settings))
    different = [name for name in settings if name != "run" and before.get(name) != settings[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{folder} holds another index, whose {name} is {before.get(name)!r} and not {settings[name]!r}: choose "
            "another folder with --output, or remove that one"
        )


def _is_finished(folder: Path, number: int, announce: Callable[[str], None]) -> bool:
    try:
        shard_summary(folder, number)
    except FileNotFoundError:
        return False
    except DamagedIndex as error:
        announce(f"note: {str(error).partition(':')[0]}; this shard is embedded again")
        return False
    return True


def _embed_shards(
    model: ContrastiveModel,
    source: Source,
    ranges: Mapping[int, np.ndarray],
    batch_size: int,
    write: Callable[[int, np.ndarray, Mapping[str, np.ndarray]], None],
    bar: tqdm,
) -> None:
    """Embeds the examples of each shard in ``ranges`` and calls ``write(number, indices, embeddings)`` in a thread, in
    one stream, so that the next shard is read while one is computed and another one written."""

    def count(batch: RawBatch) -> RawBatch:
        bar.update(min(batch_size, bar.total - bar.n))
        return batch

    selected = TransformedSource(Subset(source, np.concatenate(list(ranges.values()))), count)
    batches = _on_host(model.embed_batches(selected, batch_size=batch_size))
    with ThreadPoolExecutor(1) as writer:
        written: Future | None = None
        for number, indices in ranges.items():
            parts = [next(batches) for _ in range(-(-len(indices) // batch_size))]
            embeddings = {m: np.concatenate([part[m] for part in parts])[: len(indices)] for m in parts[0]}
            if written is not None:
                written.result()  # raises its error; and two shards at most are in memory
            written = writer.submit(write, number, indices, embeddings)
        written.result()


def _on_host(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches as NumPy arrays; up to `_IN_FLIGHT` are computed while the next ones are read."""
    pending: collections.deque = collections.deque()
    for batch in batches:
        pending.append(batch)
        if len(pending) > _IN_FLIGHT:
            yield jax.tree.map(np.asarray, pending.popleft())
    while pending:
        yield jax.tree.map(np.asarray, pending.popleft())


def _write(
    folder: Path,
    source: Source,
    first: np.ndarray,
    bad_examples: BadExamples,
    format: Format,
    number: int,
    indices: np.ndarray,
    embeddings: Mapping[str, np.ndarray],
) -> None:
    """Writes a shard without its bad examples. ``first``: of each example the first one with its picture."""
    present, bad = dict(source.presence(indices)), []
    for modality in present:
        if kind_of(modality) in ("image", "video"):
            present[modality] = present[modality] & (first[indices] == indices)
    if len(bad_examples):
        # Where a file could not be decoded, the batches have another example in its place.
        by_place = {(b.file, b.line): b for b in list(bad_examples.items)}
        places = [_place(source, index) for index in indices.tolist()]
        bad = sorted({by_place[p] for p in places if p in by_place})
        good = np.array([p not in by_place for p in places], bool)
        indices, present = indices[good], {m: x[good] for m, x in present.items()}
        embeddings = {m: x[good] for m, x in embeddings.items()}
    embeddings = {m: np.where(present[m][:, None], x, 0).astype(np.float32) for m, x in embeddings.items()}
    shard = Shard(embeddings, present, source.example_names(indices), indices, bad)
    write_shard(folder, number, shard, format)


def _place(source: Source, index: int) -> tuple[str, int] | None:
    """The file and line of an example as `BadExample` has them."""
    location = source.location(index)
    return None if location is None else (printable(str(location[0])), location[1])


def _list_bad_examples(folder: Path, shards: int, bad_examples: BadExamples) -> None:
    """Writes ``bad_examples.jsonl`` and adds those of the shards that are there already, where all are finished."""
    with_shards = BadExamples("skip")
    for bad in bad_examples.items:
        with_shards.add(*bad)
    for number in range(shards):
        path = folder / f"shard-{number:05d}.json"
        if not path.is_file():
            return
        for bad in json.loads(path.read_text(encoding="utf-8"))["content"]["bad_examples"]:
            with_shards.add(*bad)
    bad_examples.items[:] = with_shards.items
    if len(with_shards):
        with_shards.write(folder / "bad_examples.jsonl")


def describe_data(spec: str, split: str, options: DataOptions) -> dict[str, Any]:
    """The fields of `Index.data`, with which `open_for_report` finds the examples again."""
    options = dataclasses.replace(options, on_bad_example="skip", progress=False)
    changed = {
        field.name: to_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default and field.name not in RUN_OPTIONS
    }
    return {"spec": spec, "split": split, "options": changed}


def open_for_report(model: ContrastiveModel, index: Index, bad_examples: BadExamples) -> Source | None:
    """The data set of an index, to show its examples: pictures from files are larger than the model gets them. None:
    it is gone or has changed, which ``bad_examples`` remarks; or the index is of none."""
    if index.data is None:
        return None
    spec, split, stored = (index.data[name] for name in ("spec", "split", "options"))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    shows = f"the page shows names alone, because the data set {spec} "
    try:
        plain, options = split_options(spec, DataOptions(**options))
        options = run_options(model, options)
        if "largest_side" in FORMS[plain.partition(":")[0]].options:
            options = dataclasses.replace(options, image_size=SHOWN_SIDE, image_fit="pad", image_centre=None)
        source = _open_splits(plain, split, options, model.format.modalities, BadExamples("skip"))
        numbers = np.arange(len(index)) if index.examples is None else index.examples
        if numbers.max() >= len(source) or source.example_names(numbers) != list(index.names):
            bad_examples.remark(f"{shows}has changed since it was embedded")
            return None
    except (ValueError, OSError, ImportError) as error:
        bad_examples.remark(f"{shows}cannot be opened: {error}")
        return None
    return source
