"""Embeds a whole data set into an index on disk, by one or several processes, which can resume where they were
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
from xmodal_jax.data.media import modality_of_file
from xmodal_jax.data.mixture import MixtureSource
from xmodal_jax.data.mixture_splits import split_options
from xmodal_jax.data.open import FORMS, DataOptions, open_source
from xmodal_jax.data.source import RawBatch, Source, first_of_group
from xmodal_jax.data.splits import Splits, open_splits
from xmodal_jax.data.statistics import content_of
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
from xmodal_jax.inference.model import TrainedModel
from xmodal_jax.train.owner import LOCK_FILE, DirectoryInUse, acquire, release
from xmodal_jax.train.run import to_json
from xmodal_jax.types import kind_of

RUN_OPTIONS = (
    "image_size", "largest_side", "image_fit", "resample", "image_centre", "channels", "sample_rate", "max_seconds",
    "frames",
)  # fmt: skip
"""Data options that are taken from the run, because its networks were trained with them."""
TRAINING_OPTIONS = (
    "validation", "test_split", "test_data", "data_weights", "missing", "incomplete", "check_files", "memory_limit_gib",
)  # fmt: skip
"""Data options that only training uses, and that are refused here."""
UNUSED_OPTIONS = RUN_OPTIONS + TRAINING_OPTIONS
"""Data options that embedding does not use, and that its help leaves out."""
ALL_SPLITS = "all"
_IN_FLIGHT = 4  # batches that are computed while the next ones are read
_NO_MEMORY = 1e-9  # GiB; so little that decoded files are never kept
SHOWN_SIDE = 160
"""Side in pixels of the pictures on a page that are read from files."""


def run_options(model: TrainedModel, options: DataOptions) -> DataOptions:
    """``options`` with the values of `RUN_OPTIONS` that the run was trained with.

    Raises:
      ValueError: ``options`` sets one of these to another value.
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
    model: TrainedModel, spec: str, split: str, options: DataOptions, bad_examples: BadExamples
) -> Source:
    """Opens a data set in the format of a run. Files are decoded when they are needed, and not kept in memory.

    Args:
      model: determines the format.
      spec: the data set, as ``--data`` names it.
      split: the name of a split, or `ALL_SPLITS`: the examples of all splits, one after the other.
      options: of the data set; modalities None: those that the data set and the run share.
      bad_examples: collects the examples that cannot be read.

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


def open_splits_for_model(
    model: TrainedModel, spec: str, options: DataOptions, bad_examples: BadExamples
) -> Splits:
    """The training, validation and test splits of a data set in the format of a run, see `data.open_splits`.

    ``options``: of the data set; modalities None: those that the data set and the run share.

    Raises:
      ValueError: run and data share no modality.
    """
    spec, options = split_options(spec, options)
    options = run_options(model, options)
    if options.modalities is None:
        shared = _shared_modalities(spec, "train", options, model.format.modalities)
        options = dataclasses.replace(options, modalities=shared)
    return open_splits(spec, options, bad_examples)


def check_data_set(model: TrainedModel, spec: str, options: DataOptions) -> None:
    """Opens the training split of a data set in the format of a run, without reading its files.

    The arguments are those of `open_splits_for_model`.

    Raises:
      ValueError, OSError, ImportError: there is no such data set, or it has none of the run's modalities.
    """
    spec, options = split_options(spec, options)
    _shared_modalities(
        spec, "train", run_options(model, options), options.modalities or model.format.modalities
    )


def _open_splits(
    spec: str, split: str, options: DataOptions, known: Sequence[str], bad_examples: BadExamples
) -> Source:
    """Opens one split, or all, with ``options.modalities``; None: those of the modalities ``known`` that a split
    has."""
    options = dataclasses.replace(options, check_files=False, memory_limit_gib=_NO_MEMORY)

    def open_one(name: str) -> Source:
        shared = options.modalities or _shared_modalities(spec, name, options, known)
        chosen = dataclasses.replace(options, modalities=shared)
        return open_source(spec, name, chosen, bad_examples=bad_examples)

    if split != ALL_SPLITS:
        return open_one(split)
    train = open_one("train")
    names = dict.fromkeys(name for name in (train.validation_split, *train.test_splits) if name is not None)
    sources = {"train": train} | {name: open_one(name) for name in names}
    return train if len(sources) == 1 else MixtureSource(sources)


def _shared_modalities(spec: str, split: str, options: DataOptions, known: Sequence[str]) -> tuple[str, ...]:
    """The modalities among ``known`` that a split of a data set has, found by opening it.

    Raises:
      ValueError: it has none of them, or cannot be opened.
    """

    def has(*modalities: str) -> bool:
        """Whether the data set can be opened with ``modalities``; no file is decoded, and bad examples are ignored."""
        try:
            wanted = dataclasses.replace(
                options, modalities=modalities, progress=False, check_files=False, memory_limit_gib=_NO_MEMORY
            )
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
    """Copies the model's parameters to all devices of this process, so that each computes a part of every batch."""
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
    """Embeds all examples of a data set and writes them as an index, in shards. Finished shards of an earlier call are
    kept, so that a call that was stopped can be repeated.

    Examples that cannot be read are left out, if ``bad_examples`` skips them. A picture that several examples show (one
    for each caption) is in the index once.

    Args:
      model: computes the embeddings, on the devices of its parameters.
      source: the data set in the format of the run, from `open_for_model`.
      folder: the folder of the index: new, empty, or with an unfinished index of the same data and run.
      data: the value of `Index.data`, from `describe_data`.
      bad_examples: the object that ``source`` was opened with.
      format: the format of the files.
      batch_size: examples that are computed at a time over all devices, rounded up to a multiple of their number.
      shard_size: examples in a shard, rounded up to whole batches.
      process: ``(p, P)``: process p of P, which writes the shards p, p + P, ….
      progress: whether to show a progress bar.
      announce: called with messages for the user.

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
        _write_or_check_settings(folder, settings, writes=process[0] == 0)
        shards = range(process[0], settings["shards"], process[1])
        unfinished = [number for number in shards if not _is_finished(folder, number, announce)]
        if len(unfinished) < len(shards):
            announce(f"{len(shards) - len(unfinished)} of {len(shards)} shards are there already")
        ranges = {n: np.arange(n * shard_size, min((n + 1) * shard_size, len(source))) for n in unfinished}
        total = sum(map(len, ranges.values()))
        first_of_picture = first_of_group(source)
        write = functools.partial(_write, folder, source, first_of_picture, bad_examples, format)
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
    """The absolute path of a run; a name that is not a path (``hf:FOLDER``) unchanged."""
    return str(run.resolve() if run.exists() else run)


def _write_or_check_settings(folder: Path, settings: Mapping[str, Any], *, writes: bool) -> None:
    """Writes ``index.json`` to a new folder (the process that ``writes``), or compares it with the existing one.

    Raises:
      FileExistsError: the folder holds other files.
      ValueError: the folder holds another index.
    """
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
    """Whether a shard has been written and its files match their digests."""
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
    """Embeds the examples of the shards in ``ranges``, and calls ``write(number, indices, embeddings)`` for each in a
    thread. The batches of all shards are one stream: a shard is read while another is computed and a third written."""

    def show_progress(batch: RawBatch) -> RawBatch:
        """Advances the progress bar by one batch, and returns the batch."""
        bar.update(min(batch_size, bar.total - bar.n))
        return batch

    selected = TransformedSource(Subset(source, np.concatenate(list(ranges.values()))), show_progress)
    batches = _to_host(model.embed_batches(selected, batch_size=batch_size))
    with ThreadPoolExecutor(1) as writer:
        written: Future | None = None
        for number, indices in ranges.items():
            parts = [next(batches) for _ in range(-(-len(indices) // batch_size))]
            embeddings = {m: np.concatenate([part[m] for part in parts])[: len(indices)] for m in parts[0]}
            if written is not None:
                written.result()  # raises its error; and two shards at most are in memory
            written = writer.submit(write, number, indices, embeddings)
        written.result()


def _to_host(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields batches as NumPy arrays; `_IN_FLIGHT` of them are still computed while the next ones are read."""
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
    first_of_picture: np.ndarray,
    bad_examples: BadExamples,
    format: Format,
    number: int,
    indices: np.ndarray,
    embeddings: Mapping[str, np.ndarray],
) -> None:
    """Writes a shard without its bad examples.

    ``first_of_picture``: for each example of ``source`` the index of the first one with the same picture.
    """
    present, bad = dict(source.presence(indices)), []
    for modality in present:
        if kind_of(modality) in ("image", "video"):
            present[modality] = present[modality] & (first_of_picture[indices] == indices)
    if len(bad_examples):
        # The source puts another example in the place of a bad one, so that its embedding has to be removed.
        bad_by_location = {(b.file, b.line): b for b in list(bad_examples.items)}
        locations = [_location(source, index) for index in indices.tolist()]
        bad = sorted({bad_by_location[x] for x in locations if x in bad_by_location})
        good = np.array([x not in bad_by_location for x in locations], bool)
        indices, present = indices[good], {m: x[good] for m, x in present.items()}
        embeddings = {m: x[good] for m, x in embeddings.items()}
    embeddings = {m: np.where(present[m][:, None], x, 0).astype(np.float32) for m, x in embeddings.items()}
    shard = Shard(embeddings, present, source.example_names(indices), indices, bad)
    write_shard(folder, number, shard, format)


def _location(source: Source, index: int) -> tuple[str, int] | None:
    """The file and line of an example as `BadExample` has them."""
    location = source.location(index)
    return None if location is None else (printable(str(location[0])), location[1])


def _list_bad_examples(folder: Path, shards: int, bad_examples: BadExamples) -> None:
    """Writes ``bad_examples.jsonl`` for the whole index, once all of its shards are finished; the bad examples of
    shards that other calls or processes wrote are added to ``bad_examples``."""
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
    """The value of `Index.data`, by which `open_for_report` opens the same data set again."""
    options = dataclasses.replace(options, on_bad_example="skip", progress=False)
    changed = {
        field.name: to_json(getattr(options, field.name))
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default and field.name not in RUN_OPTIONS
    }
    return {"spec": spec, "split": split, "options": changed}


def open_for_report(model: ContrastiveModel, index: Index, bad_examples: BadExamples) -> Source | None:
    """Opens the data set of an index to show its examples, with pictures larger than the model gets them.

    Returns:
      The data set; None if it is gone or has changed, on which ``bad_examples`` gets a remark, or if the index was made
      of no data set.
    """
    if index.data is None:
        return None
    shows = f"the page shows names alone, because the data set {index.data['spec']} "
    try:
        return _open_again(model, index, for_report=True)
    except _DataSetChanged as error:
        bad_examples.remark(f"{shows}{error}")
    except (ValueError, OSError, ImportError) as error:
        bad_examples.remark(f"{shows}cannot be opened: {error}")
    return None


class _DataSetChanged(ValueError):
    """A data set has other examples than when it was embedded."""


def _open_again(model: ContrastiveModel, index: Index, *, for_report: bool) -> Source:
    """Opens the data set of an index in the format of the run, or with larger pictures ``for_report``.

    Raises:
      ValueError, OSError, ImportError: it cannot be opened; _DataSetChanged: it has changed.
    """
    spec, split, stored = (index.data[name] for name in ("spec", "split", "options"))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    plain, options = split_options(spec, DataOptions(**options))
    options = run_options(model, options)
    if for_report and "largest_side" in FORMS[plain.partition(":")[0]].options:
        options = dataclasses.replace(options, image_size=SHOWN_SIDE, image_fit="pad", image_centre=None)
    source = _open_splits(plain, split, options, model.format.modalities, BadExamples("skip"))
    numbers = np.arange(len(index)) if index.examples is None else index.examples
    if numbers.max() >= len(source) or source.example_names(numbers) != list(index.names):
        raise _DataSetChanged("has changed since it was embedded")
    return source


class ExampleReader:
    """Reads what the examples of an index hold: their files, texts and numbers.

    ::

        reader = ExampleReader(model, Index.load("embeddings"))
        reader.read("image", [3, 0])  # [Path("photos/3.png"), Path("photos/0.png")]
    """

    def __init__(self, model: ContrastiveModel, index: Index):
        """``model``: the one that made the ``index``."""
        self._model, self._index = model, index

    def read(self, modality: str, positions: Sequence[int]) -> list[Any]:
        """What the examples at ``positions`` of the index hold in a modality: a file where the example is one,
        otherwise a text, or an array in the format of the run, which is read from the data set.

        Raises:
          ValueError: the data set has changed, cannot be opened, or there is none.
        """
        files = [self._file(modality, self._index.names[k]) for k in positions]
        if None not in files:
            return files
        if self._index.data is None:
            if kind_of(modality) == "text" and self._index.modalities == (modality,):
                return [self._index.names[k] for k in positions]
            raise ValueError(
                f"the index has no data set to read {modality} from, and its names are no such files: make it with "
                "experiments/embed.py, or name the files or texts themselves"
            )
        batch = self._source.batch(np.array(self._index.example_numbers(np.asarray(positions))))
        return [content_of(batch, modality, k) for k in range(len(positions))]

    @functools.cached_property
    def _source(self) -> Source:
        """The data set."""
        try:
            return _open_again(self._model, self._index, for_report=False)
        except (ValueError, OSError, ImportError) as error:
            reason = str(error) if isinstance(error, _DataSetChanged) else f"cannot be opened: {error}"
            raise ValueError(
                f"what the index holds is read from the data set {self._index.data['spec']}, which {reason}"
            ) from error

    def _file(self, modality: str, name: str) -> Path | None:
        """The file that an example of this name is in a modality; None: it is none, or may be that of another
        modality of the kind."""
        if modality != kind_of(modality) or modality_of_file(name) != modality:
            return None
        data = self._index.data
        form, _, folder = (
            ("", "", "") if data is None else split_options(data["spec"], DataOptions())[0].partition(":")
        )
        path = Path(folder) / name if form == "folder" else Path(name)
        return path if (data is None or form == "folder") and path.is_file() else None
