"""Trackers of experiments beside TensorBoard: Weights & Biases and MLflow (``--track wandb``, ``--track mlflow``).

Where a tracker sends to is set by its own environment variables, such as ``WANDB_MODE``, ``WANDB_PROJECT`` and
``MLFLOW_TRACKING_URI``. A run that is resumed goes on with the same tracked run, whose id is in its directory
(`TRACKING_FILE`), and sends no step twice. What is sent waits in a queue for a thread of its own: training neither
waits for the network nor fails with it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from tqdm import tqdm

from xmodal_jax.core.nesting import dotted

TRACKING_FILE = "tracking.json"
"""In a run's directory: for each tracker the id of the tracked run, and the last step that was sent."""
PROJECT = "xmodal_jax"
"""Project (of Weights & Biases) and experiment (of MLflow), where no environment variable names one."""
RETRY_SECONDS = (1.0, 5.0, 25.0)
"""Waiting times before what could not be sent is sent again."""
CLOSE_SECONDS = 60.0
"""How long the end of a run waits for what is still to be sent."""

TrackerName = Literal["wandb", "mlflow"]


@dataclasses.dataclass(frozen=True)
class TrackedRunInfo:
    """What a tracker is told of a run when it starts."""

    folder: Path
    """The run's directory."""
    name: str
    """Shown as the run's name."""
    tags: Mapping[str, str]
    """By their names, such as ``experiment``."""


class Tracker(Protocol):
    """A run at a tracker. All methods may raise; `Tracking` handles that."""

    package: ClassVar[str]
    """The module that it needs."""
    extra: ClassVar[str]
    """What pip installs for it."""
    offline: ClassVar[str]
    """How to use it without a network, for messages."""
    id: str
    """The tracker's id of the run."""

    def __init__(self, info: TrackedRunInfo, id: str | None) -> None:
        """Starts a new run at the tracker, or goes on with the one that has this ``id``."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Sends the configuration (nested plain values); that of a resumed run replaces the one before."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step. Steps never decrease."""

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Ends the run with the content of ``result.json``; None: it has not come to a result."""


class WandbTracker:
    """A run at Weights & Biases. ``WANDB_MODE=offline`` writes to the run's directory, for ``wandb sync``."""

    package = "wandb"
    extra = "wandb"
    offline = "WANDB_MODE=offline keeps the run on disk, and WANDB_API_KEY or `wandb login` sends it"

    def __init__(self, info: TrackedRunInfo, id: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(info.folder),
            name=info.name,
            tags=[value[:64] for value in info.tags.values()],  # longer ones are refused
            id=id,
            resume="allow",
            settings=wandb.Settings(console="off"),  # what is printed stays where it is
        )
        self.id: str = self._run.id

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self._run.summary.update(final_values(result))
        self._run.finish(exit_code=0 if result is not None else 1)


class MLflowTracker:
    """A run at MLflow, of ``MLFLOW_TRACKING_URI`` (a server, or a local file such as ``sqlite:///mlflow.db``)."""

    package = "mlflow"
    extra = "mlflow-skinny sqlalchemy alembic"
    offline = "MLFLOW_TRACKING_URI=sqlite:////PATH/mlflow.db keeps the run on disk"

    def __init__(self, info: TrackedRunInfo, id: str | None) -> None:
        # MLflow would try for minutes to reach a server; `Tracking` tries again, without keeping the training.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._is_new = id is None
        if id is not None:
            self._client.update_run(id, status="RUNNING")
            self.id = id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(number, run_name=info.name, tags=dict(info.tags)).info.run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        # Parameters of a run cannot be changed: those of a resumed one stay, and the file has the new ones.
        self._client.log_dict(self.id, dict(config), "config.json")
        if self._is_new:
            options = [Param(_plain_name(name), str(value)[:500]) for name, value in dotted(config)]
            for k in range(0, len(options), 100):  # more at once are refused
                self._client.log_batch(self.id, params=options[k : k + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(_plain_name(name), value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.id, metrics=entries)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self.log(int(result.get("steps") or 0), final_values(result))
            self._client.log_dict(self.id, dict(result), "result.json")
        self._client.set_terminated(self.id, "FINISHED" if result is not None else "KILLED")


TRACKERS: dict[TrackerName, type[Tracker]] = {"wandb": WandbTracker, "mlflow": MLflowTracker}
"""The trackers by the value of ``--track``."""


def _plain_name(name: str) -> str:
    """A name with the characters that MLflow takes: ``recall@1`` is ``recall_1``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def final_values(result: Mapping[str, Any]) -> dict[str, float]:
    """The final metrics in ``result.json``, with ``NAME/spread`` where there are several seeds, without those that are
    not finite."""
    spread = {f"{name}/spread": value for name, value in result.get("spread", {}).items()}
    return {name: v for name, v in (result.get("metrics", {}) | spread).items() if v is not None}


def check_installed(name: TrackerName) -> None:
    """Raises ValueError if the package of a tracker is not installed."""
    tracker = TRACKERS[name]
    if importlib.util.find_spec(tracker.package) is None:
        raise ValueError(
            f"--track {name} needs the package {tracker.package}, which is not installed: pip install {tracker.extra}"
        )


class Tracking:
    """A run at a tracker: sends in the background, sends no step twice, and outlives failures of the tracker."""

    def __init__(
        self, name: TrackerName, info: TrackedRunInfo, records: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Starts a run at the tracker ``name``, or goes on with that of an earlier process.

        ``records``: of the run's ``metrics.jsonl`` so far, each metric a number. An earlier process has sent them, if
        it had this tracker; if not, they are sent now.

        Raises:
          Exception: the tracker cannot start.
        """
        self._name = name
        self._file = info.folder / TRACKING_FILE
        stored = self._read()
        before = stored.get(name, {})
        last_logged = max((record["step"] for record in records), default=0)
        self._sent_to = max(before.get("sent_to", 0), last_logged) if before else 0
        """Steps up to this one are not sent again."""
        self._tracker: Tracker = TRACKERS[name](info, before.get("id"))
        self._write(stored | {name: {"id": self._tracker.id, "sent_to": max(self._sent_to, last_logged)}})
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lost, self._has_noted = 0, False
        """Number of records that could not be sent, and whether a note has said that one had to be sent again."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name=f"tracking-{name}", daemon=True)
        self._thread.start()
        for record in records:
            self.log(int(record["step"]), {n: value for n, value in record.items() if n != "step"})
        self._sent_to = max(self._sent_to, last_logged)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _write(self, content: Mapping[str, Any]) -> None:
        half_written = self._file.with_name(f".{TRACKING_FILE}.tmp")
        half_written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(half_written, self._file)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Sends the configuration."""
        self._queue.put(lambda: self._tracker.log_config(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step, unless an earlier process has."""
        if step > self._sent_to and metrics:
            self._queue.put(lambda: self._tracker.log(step, metrics))

    def close(self, result: Mapping[str, Any] | None) -> None:
        """Sends ``result.json`` (None: there is none) and ends; waits for `CLOSE_SECONDS` at most."""
        self._queue.put(lambda: self._tracker.finish(result))
        self._queue.put(None)
        self._is_closing.set()
        self._thread.join(CLOSE_SECONDS)
        unfinished = self._thread.is_alive()
        if self._lost or unfinished:
            what = "not everything" if unfinished else f"{self._lost} records not"
            _note(f"--track {self._name}: {what} sent; metrics.jsonl and result.json have it all")

    def _send_all(self) -> None:
        """Sends what is in the queue, in its order, until the end of it."""
        while (send := self._queue.get()) is not None:
            self._send(send)

    def _send(self, send: Callable[[], None]) -> None:
        """Calls ``send()``, and again after `RETRY_SECONDS` if it fails, but not where the run is about to end."""
        for wait in (*RETRY_SECONDS, None):
            try:
                send()
                return
            except Exception as error:  # trackers raise many types
                if wait is None or self._is_closing.is_set():
                    break
                if not self._has_noted:
                    self._has_noted = True
                    reason = " ".join(str(error).split())[:200] or type(error).__name__
                    _note(f"--track {self._name}: {reason}; training goes on, and it is tried again")
                self._is_closing.wait(wait)
        self._lost += 1


def start_tracking(
    name: TrackerName, info: TrackedRunInfo, records: Sequence[Mapping[str, Any]], *, required: bool
) -> Tracking | None:
    """The run at a tracker. If it cannot start, None, with a note on screen; where it is ``required`` (of a new run)
    that is an error.

    Raises:
      ValueError: it is required, and cannot start.
    """
    try:
        return Tracking(name, info, records)
    except Exception as error:  # trackers raise many types
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        message = f"--track {name} cannot start ({reason})"
        if required:
            raise ValueError(f"{message}: {TRACKERS[name].offline}; or leave --track out") from error
        _note(f"{message}; training goes on without it")
        return None


def _note(text: str) -> None:
    """Prints a note above the progress bar."""
    tqdm.write(f"note: {text}", sys.stderr)
