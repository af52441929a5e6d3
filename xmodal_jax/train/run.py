"""The run directory: configuration, metrics, TensorBoard events and the result, all safe against a kill.

::

    runs/retrieval-20250131-101500/
        config.json      the experiment's configuration
        lock.json        while a process writes to the directory: its id and host (see train/owner.py)
        metrics.jsonl    one line per logged step: {"step": 100, "train/loss": 1.23, ...}
        result.json      final metrics, timing in seconds, seeds, device, versions
        tensorboard/     events
        tracking.json    with --track: the id of the tracked run
        report.html      see report/page.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from xmodal_jax.core import cluster, parts
from xmodal_jax.core.text_files import shorten
from xmodal_jax.train import owner, tracking

TIMING = ("compile", "train", "evaluation", "data_wait", "total")
"""The durations that every ``result.json`` has, in seconds; null where nothing was measured."""


def write_atomic(path: Path | str, content: str | bytes) -> None:
    """Writes a temporary file and renames it, so that readers see the old or the new content, never a part of it.

    Text is written as UTF-8. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp sets 0600, with which a web server or a colleague could not read it
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def to_json(value: Any) -> Any:
    """A configuration value as plain values that JSON can hold.

    Dataclasses and mappings become objects, tuples lists and paths strings. The object of a part (`core.parts`) begins
    with its ``name``. A float that JSON cannot hold becomes the string ``"nan"``, ``"inf"`` or ``"-inf"``; a function
    or a class becomes its qualified name.

    Raises:
      TypeError: a value of any other type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        chosen = {"name": value.name} if parts.is_part(value) else {}
        return chosen | {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [to_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(
        f"cannot write a {type(value).__name__} to config.json: {value!r}; use a plain value or a dataclass"
    )


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json`: a value of the type ``kind``, which may be nested dataclasses, parts, tuples, paths,
    plain values, and optional ones.

    Raises:
      ValueError: ``value`` has a field or a part that ``kind`` does not have.

    Example::

        model = from_json(ContrastiveConfig, restored.metadata["config"]["model"])
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(args[0], value)
    if parts_by_name := parts.parts_of(kind):  # a part, or a union of parts: the object has its name
        if value is None:
            return None
        if isinstance(value, str) and value in parts_by_name:  # before it was a part, it had a name alone
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise ValueError(f"an object with the name of a part is expected, got {value!r}")
        if value.get("name") not in parts_by_name:
            raise ValueError(
                f"{value.get('name')!r} is none of {', '.join(parts_by_name)}: the run is of another version"
            )
        part = parts_by_name[value["name"]]
        return _dataclass_from_json(part, {name: v for name, v in value.items() if name != "name"})
    if origin in (typing.Union, types.UnionType):  # an optional value, or one of several types
        return None if value is None else _one_of(tuple(a for a in args if a is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"a list is expected, got {value!r}")
        kinds = [args[0]] * len(value) if args[1:] == (...,) else args  # tuple[int, ...] or tuple[int, str]
        return tuple(from_json(a, v) for a, v in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, value)
    if kind is float and value in ("nan", "inf", "-inf"):
        return float(value)
    expected = _JSON_TYPES.get(kind)
    if expected and (not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool)):
        raise ValueError(f"{getattr(kind, '__name__', kind)} is expected, got {shorten(value)}")
    return Path(value) if kind is Path else value


_JSON_TYPES = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,)}
"""For each plain type the types that its values have in JSON."""


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """A value of the first of several types that it fits; raises ValueError if it fits none."""
    for kind in kinds[:-1]:
        with contextlib.suppress(ValueError):
            return from_json(kind, value)
    return from_json(kinds[-1], value)


def _dataclass_from_json(kind: type, value: Any) -> Any:
    """A dataclass of the class ``kind`` from its object in JSON; raises ValueError if it is no object, or has a field
    that the class does not have."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{kind.__name__} must be an object, got {value!r}")
    hints = typing.get_type_hints(kind, include_extras=True)
    unknown = [name for name in value if name not in hints]
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r}: the run is of another version")
    fields = {}
    for name, field_value in value.items():
        try:
            fields[name] = from_json(hints[name], field_value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return kind(**fields)


def _keep_known(config: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """``config`` without entries of its nested dicts, such as ``model.video``, that ``before`` does not have, at any
    depth.

    ``before``: the configuration that an earlier process wrote. `Run.leave_out` has removed the options from it that
    the run does not use; they are no difference between the two.
    """

    def keep(value: Any, old: Any) -> Any:
        """``value`` without the entries that ``old`` does not have, if both are dicts."""
        if not (isinstance(value, dict) and isinstance(old, dict)):
            return value
        return {name: keep(part, old[name]) for name, part in value.items() if name in old}

    return {name: keep(value, before.get(name)) for name, value in config.items()}


def _changed_options(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """``(name, value before, value after)`` of each option that differs between two configurations as plain values,
    such as ``("model.image.width", "16", "32")``. Of a part that was exchanged for another only the names differ."""
    is_group = isinstance(before, Mapping) and isinstance(after, Mapping)
    of_part = lambda value: value.get("name", value) if isinstance(value, Mapping) else value
    if is_group and before.get("name") == after.get("name"):
        for name in sorted(before.keys() | after.keys()):
            yield from _changed_options(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif of_part(before) != of_part(after):  # equal where a run has a name that now is a part
        yield path, repr(of_part(before)), repr(of_part(after))


def names_in_run(folder: Path) -> set[str]:
    """Names of the files in a run's directory, without the lock and what a killed process has left half written; empty
    if there is no such directory."""
    half_written = {file.name for file in folder.glob(".*.tmp")}
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return names - {owner.LOCK_FILE} - half_written


def read_config_file(folder: Path) -> dict[str, Any]:
    """``config.json`` in the directory of a run, as plain values.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it holds no configuration.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        problem = str(error) if file.stat().st_size else "the file is empty"
    else:
        if isinstance(config, dict):
            return config
        problem = f"a {type(config).__name__} where an object is expected"
    raise ValueError(
        f"{file} holds no configuration ({problem}); restore it from a copy, or delete it and give all flags of the "
        "run with --resume"
    )


def read_metrics_file(path: Path) -> list[dict[str, Any]]:
    """The records of a run's ``metrics.jsonl``, one for each logged step; an incomplete last line is left out. Empty if
    there is no such file.

    Raises:
      ValueError: a line is not JSON.
    """
    if not path.exists():
        return []
    # A complete line ends in "\n", so that what follows the last one is "" or an incomplete line.
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error.msg}); delete that line to go on"
            ) from error
    return records


def refuse_remote(path: Path | str, flag: str = "--run-dir") -> None:
    """Raises ValueError if a path is an address such as ``gs://bucket/run``: runs are files of a mounted system."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))
    if match:
        raise ValueError(
            f"{flag} is {match[1]}://{match[2]}, a remote address: runs are read and written as files. Mount the "
            "storage (such as with gcsfuse or s3fs) and give the path of a directory in it"
        )


def format_value(value: Any) -> str:
    """A metric with four significant digits; several seeds as mean ± standard deviation (with n - 1)."""
    values = _finite_values(value)
    if values is None:
        return "n/a"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    mean = float(np.mean(values))
    if mean != 0 and not 1e-3 <= abs(mean) < 1e6:
        spec = ".3e"
    else:  # as many decimals as leave four digits in all: 3 for 1.234, 2 for 12.34
        spec = f",.{max(0, 3 - max(0, math.floor(math.log10(abs(mean) or 1.0))))}f"
    spread = f" ± {np.std(values, ddof=1):{spec}}" if len(values) > 1 else ""
    return f"{mean:{spec}}{spread}"


def summary_line(metrics: Mapping[str, Any], names: Sequence[str] | None = None) -> str:
    """Metrics in a line: ``image_to_text/recall@1 0.873 · text_to_image/recall@1 0.851``; without ``names``, all."""
    return " · ".join(f"{name} {format_value(metrics[name])}" for name in names or list(metrics))


def stack_scores(scores_by_seed: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The metrics of all seeds in one dict, by name: a number where there is one seed, else a list of one per seed."""
    if len(scores_by_seed) == 1:
        return dict(scores_by_seed[0])
    return {name: [scores[name] for scores in scores_by_seed] for name in scores_by_seed[0]}


class Run:
    """The directory of one run. ``Run.create`` opens it; ``close``, or the end of a ``with`` block, closes it.

    While it is open, no other process can open it. The directory of a resumed run stays as it is until the first write:
    a run that is refused, because its checkpoint is of another model for example, has changed nothing.
    """

    def __init__(self, path: Path, config: Any, *, writer: bool, tensorboard: bool) -> None:
        """Makes no files; see `Run.create`."""
        self.path = path
        self.outermost_path = next((run.path for run in _open_runs if run.path in path.parents), path)
        """The directory that ``--run-dir`` names: of this run, or of the open run that it is a part of."""
        self.config = config
        self.writes = writer
        """Whether this process writes the files and prints (one of several does)."""
        self._wants_events = tensorboard
        self._events: Any = None
        """TensorBoard's writer, once something has been logged."""
        self._tracking: tracking.Tracking | None = None
        """The run at the tracker of ``--track``, once it has started."""
        self._result: dict[str, Any] | None = None
        """The content of ``result.json``, once this process has written it."""
        self._has_tracked_config = False
        self._purge_step: int | None = None
        """For TensorBoard after a restart: it ignores earlier events from this step on."""
        self._left_out: list[str] = []
        """Paths of the options that ``config.json`` leaves out."""
        self._held_back: list[Callable[[], None]] = []
        """What is written before the first write of a resumed run."""
        self._is_committed = True
        """False for a resumed run before its first write, as long as ``config.json`` is that of an earlier process."""
        self._is_new = False
        """Whether the directory held nothing before."""
        self._is_made = False
        """Whether this process has made the directory."""
        self._is_open = False

    @classmethod
    def create(
        cls,
        path: Path | str | None,
        config: Any,
        *,
        resume: bool = False,
        experiment: str | None = None,
        tensorboard: bool = True,
        writer: bool | None = None,
    ) -> Run:
        """Makes the directory and writes ``config.json``; with ``resume``, opens the directory of an earlier run.

        Args:
          path: the directory; None: a new one, ``runs/<experiment>-<timestamp>``, the same in every process.
          config: the experiment's configuration, a dataclass.
          resume: whether to go on with the run in ``path``; if there is none, a new run begins.
          experiment: name of the experiment; None: that of the running script.
          tensorboard: whether to write TensorBoard events too.
          writer: whether this process writes; None: process 0 does, and other processes write nothing.

        Raises:
          DirectoryInUse: another process has the directory open.
          FileExistsError: ``path`` is not empty, and ``resume`` is False.
          ValueError: ``resume`` without a ``path``; ``path`` is a remote address, or holds no run or that of another
            experiment.
        """
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise TypeError(f"config must be an instance of a dataclass, got {config!r}")
        if path is None and resume:
            raise ValueError("--resume needs to know which run: name its directory with --run-dir")
        if path is not None:
            refuse_remote(path)
        writer, is_made = cluster.is_writer() if writer is None else writer, path is None
        if path is None:
            name = f"{experiment or Path(sys.argv[0]).stem or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
            path = cluster.agree(str(_make_unique(Path("runs"), name) if writer else Path("runs") / name))
        run = cls(Path(path), config, writer=writer, tensorboard=tensorboard)
        failure = None
        if writer:
            try:
                run._open(resume, is_made=is_made)
            except (OSError, ValueError) as error:
                failure = error
        # All processes stop, not only the one that could not open the directory.
        message = cluster.agree(
            "" if failure is None else str(failure).encode(errors="replace")[:1000].decode(errors="ignore")
        )
        if failure is not None:
            raise failure
        if message:
            raise ValueError(message)
        if not writer:
            run._is_committed = not resume
            run._mark_open()
        return run

    def _mark_open(self) -> None:
        """Adds this run to those that the process has open."""
        self._is_open = True
        _open_runs.append(self)

    def _open(self, resume: bool, *, is_made: bool) -> None:
        """Becomes the owner of the directory and checks what is in it; writes ``config.json`` if the run is new.

        ``is_made``: whether this process has just made the directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file; name a directory with --run-dir")
        if self._tracker is not None:
            tracking.check_installed(self._tracker)
        self._is_made = is_made or not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            owner.acquire(self.path)
            try:
                self._is_new = self._check(resume)
                self._is_committed = not (self.path / "config.json").exists()
                if self._is_committed:
                    self._write_config()
                    self._start_tracking(required=True)
            except BaseException:
                owner.release(self.path)
                raise
        except BaseException:
            if self._is_made:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        self._mark_open()

    def _check(self, resume: bool) -> bool:
        """Whether the directory is empty. If not, checks that the run in it can be resumed, and prints in which options
        the configuration differs from that of the run.

        Raises:
          FileExistsError: it is not empty, and ``resume`` is False.
          ValueError: it holds no run, or one of another experiment.
        """
        names = names_in_run(self.path)
        if not names:
            if resume and self.path == self.outermost_path:
                print(f"note: --resume: {self.path} holds no run; starting a new one")
            return True
        if not resume:
            raise FileExistsError(
                f"{self.path} is not empty; continue its run with --resume, or choose another with --run-dir"
            )
        if "config.json" not in names:
            if not names & {"checkpoints", "metrics.jsonl"}:
                raise ValueError(
                    f"{self.path} holds no run to resume; choose another directory with --run-dir"
                )
            return False
        config, before = to_json(self.config), read_config_file(self.path)
        check_same_experiment(before, type(self.config), self.path)
        known = _keep_known(config, before)
        for name, old, new in _changed_options(before, known):
            if name not in ("resume", "fixed_flags"):
                print(f"note: resuming with {name} = {new}, was {old}")
        return False

    def commit(self) -> None:
        """Writes what a resumed run has held back: ``config.json``, what `write_later` was given, and the metrics
        without the incomplete line that a kill may leave. The first write calls it."""
        if self._is_committed:
            return
        self._is_committed = True
        if not self.writes:
            return
        for file in self.path.glob(".*.tmp"):  # half-written files of a process that was killed
            file.unlink(missing_ok=True)
        self._write_config()
        self._start_tracking(required=False)
        if self.metrics_path.exists():
            self._rewrite_metrics(self.read_metrics())
        for write in self._held_back:
            write()
        self._held_back = []

    @property
    def _tracker(self) -> tracking.TrackerName | None:
        """The tracker that the configuration chooses; None: none. A run within another has none."""
        return getattr(self.config, "track", None) if self.path == self.outermost_path else None

    def _start_tracking(self, *, required: bool) -> None:
        """Starts the run at its tracker, or goes on with that of an earlier process; see `tracking.start_tracking`."""
        if self._tracker is None:
            return
        tags = {"experiment": experiment_file(self.config).stem}
        data = getattr(self.config, "data", None)
        if data is not None:
            tags["data"] = data if isinstance(data, str) else " ".join(data)
        info = tracking.TrackedRunInfo(self.path.resolve(), self.path.resolve().name, tags)
        records = [{"step": r["step"], **_scalars(r)} for r in self.read_metrics()]
        self._tracking = tracking.start_tracking(self._tracker, info, records, required=required)

    def write_later(self, write: Callable[[], None]) -> None:
        """Calls ``write()``, which writes files of the run: at once in a new run, before the first write in a resumed
        one. Processes that write nothing do not call it."""
        if not self.writes:
            return
        if self._is_committed:
            write()
        else:
            self._held_back.append(write)

    def replace_config(self, config: Any) -> None:
        """Goes on with another ``config``, in which the program has set options by what the data are; ``config.json``
        becomes that one."""
        self.config = config
        if self.writes and self._is_committed:
            self._write_config()

    def leave_out(self, paths: Sequence[str]) -> None:
        """Leaves the options that the run does not use out of ``config.json``.

        ``paths``: of options or groups of options, such as ``model.video`` where the data set has no video.
        """
        if not self.writes:
            return
        self._left_out += paths
        if self._is_committed:
            self._write_config()

    def _write_config(self) -> None:
        """Writes ``config.json``."""
        config = to_json(self.config)
        for path in self._left_out:
            *parents, name = path.split(".")
            group = config
            for parent in parents:
                group = group.get(parent) or {}
            group.pop(name, None)
        write_atomic(self.path / "config.json", json.dumps(config, indent=2) + "\n")

    @property
    def has_begun(self) -> bool:
        """Whether there are files that took work: metrics, results or checkpoints, of this run or one within it."""
        names = {file.name for file in self.path.rglob("*.json*")}
        has_checkpoints = any(file.name.isdigit() for file in self.path.rglob("checkpoints/*/*"))
        return has_checkpoints or bool(names & {"metrics.jsonl", "result.json"})

    def print(self, text: str) -> None:
        """Prints a line above the progress bar, in one of all processes."""
        if self.writes:
            tqdm.write(text, sys.stdout)

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def read_config(self) -> dict[str, Any]:
        """``config.json`` as plain values."""
        return read_config_file(self.path)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl`` and to TensorBoard; a value is a number, or one per seed.

        A value that is not finite is written as null (JSON has no NaN), with the value itself under ``note``.
        """
        self.commit()
        if not self.writes:
            return
        record, notes = _plain_metrics(metrics)
        if notes:
            record["note"] = "; ".join(notes)
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), **record}) + "\n")
        self._log_events(int(step), metrics)
        if self._tracking is not None:
            self._track_config()
            self._tracking.log(int(step), _scalars(metrics))

    def _track_config(self) -> None:
        """Sends ``config.json`` to the tracker, once, when it is complete: options are left out until training
        begins."""
        if not self._has_tracked_config:
            self._has_tracked_config = True
            self._tracking.log_config(self.read_config())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl``, one for each logged step; an incomplete last line is left out."""
        return read_metrics_file(self.metrics_path)

    def truncate_metrics(self, step: int) -> None:
        """Removes what was logged for steps after ``step``, the step of the checkpoint that training goes on from."""
        self.commit()
        if not self.writes:
            return
        self._purge_step = step + 1  # TensorBoard hides the events of later steps in older files
        if self.metrics_path.exists():
            self._rewrite_metrics([record for record in self.read_metrics() if record["step"] <= step])

    def _rewrite_metrics(self, records: list[dict[str, Any]]) -> None:
        write_atomic(self.metrics_path, "".join(json.dumps(record) + "\n" for record in records))

    def write_result(
        self,
        metrics: Mapping[str, Any],
        *,
        timing: Mapping[str, float | None] | None = None,
        seeds: Sequence[int] = (0,),
        **extra: Any,
    ) -> dict[str, Any]:
        """Writes ``result.json`` and returns its content.

        Args:
          metrics: by names ``direction-or-split/metric``, each a number or one per seed. Of several seeds the file has
            the mean, the standard deviation (with n - 1) under ``spread`` and the values under ``per_seed``.
          timing: seconds by name (see `core.runtime.Timer`).
          seeds: the seeds that the metrics belong to.
          extra: further entries, plain values.

        Raises:
          ValueError: a metric's name has no slash.
        """
        for name in metrics:
            if "/" not in name:
                raise ValueError(f"metric {name!r}: name it direction-or-split/metric, such as test/{name}")
        plain, notes = _plain_metrics(metrics)
        per_seed = {name: value for name, value in plain.items() if isinstance(value, list)}
        seconds = {**dict.fromkeys(TIMING), **(timing or {})}  # None where nothing was measured
        result: dict[str, Any] = {"metrics": {name: _mean(value) for name, value in plain.items()}}
        if per_seed:
            result["spread"] = {name: _spread(value) for name, value in per_seed.items()}
            result["per_seed"] = per_seed
        result["timing"] = {name: None if s is None else round(float(s), 3) for name, s in seconds.items()}
        result |= {"seeds": [int(seed) for seed in seeds], "device": device(), "versions": versions()}
        if notes:
            result["notes"] = notes
        result |= to_json(extra)
        self.commit()
        if self.writes:
            write_atomic(self.path / "result.json", json.dumps(result, indent=2) + "\n")
            self._result = result
        return result

    def _log_events(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends the metrics to TensorBoard's events, several seeds as their mean; a value that is not finite is left
        out. Without tensorboardX it prints a note once, and writes nothing."""
        if self._wants_events and self._events is None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                print(
                    "note: no TensorBoard events, tensorboardX is missing; metrics.jsonl has the same numbers"
                )
                self._wants_events = False
            else:
                self._events = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._purge_step)
        if self._events is not None:
            for name, value in _scalars(metrics).items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the TensorBoard events and the tracker, and lets other processes open the directory."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._tracking is not None:
            self._track_config()
            self._tracking.close(self._result)
            self._tracking = None
        if self._is_open:
            self._is_open = False
            _open_runs.remove(self)
            if self.writes:
                owner.release(self.path)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_open_runs: list[Run] = []
"""The runs that this process has open, in the order in which it opened them."""


class AbandonedRuns(NamedTuple):
    """What becomes of the runs that were open when the program ended with an error."""

    last: Run | None = None
    """The last one that was opened, of those whose directories hold work to go on with; None: there is none."""
    has_begun: bool = False
    """Whether this process has added to that work. It has not where a run that should be resumed was refused."""


def abandon_runs() -> AbandonedRuns:
    """Closes the runs that this process has open, because it is about to end with an error. Removes the directories of
    new runs in which there is no work yet."""
    abandoned = AbandonedRuns()
    for run in list(_open_runs):
        has_begun = run.has_begun
        if has_begun:
            abandoned = AbandonedRuns(run, abandoned.has_begun or run._is_committed)
        run.close()
        if has_begun or not run._is_new:
            continue
        for file in [run.path] if run._is_made else list(run.path.iterdir()):
            shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink(missing_ok=True)
    return abandoned


def experiment_file(config: Any) -> Path:
    """The script that the class of a configuration stands in."""
    return Path(getattr(sys.modules[type(config).__module__], "__file__", None) or "unknown.py")


def check_same_experiment(before: Mapping[str, Any], config_class: type, folder: Path) -> None:
    """Raises ValueError if the configuration ``before`` in ``folder`` has an option that ``config_class`` does not
    have: it is of another experiment."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = [name for name in before if name not in fields]
    if unknown:
        raise ValueError(
            f"{folder / 'config.json'} is of another experiment or version: it has {unknown[0]!r}, which this one does "
            "not have; choose another directory with --run-dir"
        )


def _make_unique(folder: Path, name: str) -> Path:
    """Makes the directory ``name`` in ``folder``, or ``name-2``, ``name-3``, … if it exists already."""
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.exists():  # ``folder`` is a file
                raise
        else:
            return path
    raise AssertionError("unreachable")


def device() -> dict[str, Any]:
    """The hardware: platform (``cpu``, ``gpu``, ``tpu``), kind of device, number of devices and of processes."""
    import jax  # here, so that reading a run does not initialise an accelerator

    devices = jax.devices()
    kind, count = devices[0].device_kind, len(devices)
    return {"platform": devices[0].platform, "kind": kind, "count": count, "processes": jax.process_count()}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that a result depends on; None for one that is not installed."""
    import xmodal_jax

    installed: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed | {"xmodal_jax": xmodal_jax.__version__}


def _plain_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Metrics as values that JSON can hold: a float, or a list with one float per seed, with None in place of a value
    that is not finite. Also returns notes such as "train/loss is nan" on these values."""
    plain, notes = {}, []
    for name, value in metrics.items():
        if name in ("step", "note"):
            raise ValueError(f"a metric cannot be named {name!r}: the row keeps that name for itself")
        array = np.asarray(value).astype(np.float64)  # reads bfloat16 and device arrays alike
        if array.ndim > 1:
            raise ValueError(
                f"metric {name!r}: expected a number or one number per seed, got shape {array.shape}"
            )
        values = [float(v) if math.isfinite(v) else None for v in array.reshape(-1)]
        if None in values:
            notes.append(f"{name} is {array.tolist()}")
        plain[name] = values[0] if array.ndim == 0 else values
    return plain, notes


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as one number each, the mean over seeds, without those that have no finite value."""
    finite = {name: _finite_values(value) for name, value in metrics.items() if name not in ("step", "note")}
    return {name: float(np.mean(values)) for name, values in finite.items() if values is not None}


def _finite_values(value: Any) -> list[float] | None:
    """The finite values of a metric (one, or one per seed); None where there are none."""
    values = [v for v in np.atleast_1d(np.asarray(value, dtype=object)) if v is not None]
    values = [float(v) for v in values if math.isfinite(float(v))]
    return values or None


def _mean(value: Any) -> float | None:
    return value if not isinstance(value, list) else None if None in value else float(np.mean(value))


def _spread(values: list[float | None]) -> float | None:
    """The standard deviation over seeds (with n - 1); None if there is only one, or a value is not finite."""
    if None in values or len(values) < 2:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1))
