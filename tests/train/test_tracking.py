"""Trackers beside TensorBoard: what they are sent, once each, offline, and what becomes of a run when they fail.

The tests of Weights & Biases and MLflow are skipped where these are not installed (``pip install wandb``,
``pip install mlflow-skinny sqlalchemy alembic``); the others use a tracker that writes to memory.
"""

import dataclasses
import json
import math
import pathlib
import struct
import threading
import typing

import pytest

from xmodal_jax.train import tracking
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.run import Run, _scalars

SENT = []


class MemoryTracker:
    """Writes what it is sent to `SENT`."""

    package, extra, offline = "json", "json", "nothing to do"
    failures = 0
    """Number of calls that still fail."""

    def __init__(self, info, id):
        SENT.append(("start", id, info.name, dict(info.tags)))
        self.id = id or "run-1"

    def _send(self, *what):
        if MemoryTracker.failures:
            MemoryTracker.failures -= 1
            raise ConnectionError("the network\nis down")
        SENT.append(what)

    def log_config(self, config):
        self._send("config", config["steps"])

    def log(self, step, metrics):
        self._send("log", step, metrics)

    def finish(self, result):
        self._send("finish", None if result is None else result["metrics"])


@pytest.fixture
def memory(monkeypatch):
    """`SENT`, for ``--track mlflow``."""
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", MemoryTracker)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(MemoryTracker, "failures", 0)
    SENT.clear()
    return SENT


def open_run(folder, track="mlflow", *, resume=False, **changes):
    config = dataclasses.replace(RunConfig(track=track, run_dir=folder, **changes), resume=resume)
    return Run.create(folder, config, resume=resume, tensorboard=False)


def steps_sent():
    return [item[1] for item in SENT if item[0] == "log"]


def test_config_metrics_and_result_are_sent_in_their_order(memory, tmp_path):
    with open_run(tmp_path / "run", steps=7) as run:
        assert memory == [("start", None, "run", {"experiment": "config", "data": "shapes"})]
        run.leave_out(["fsdp"])
        run.log(1, {"train/loss": [1.0, 3.0], "train/nothing": math.nan})
        run.log(1, {"validation/accuracy": 0.5})
        run.write_result({"test/accuracy": 0.25})
        run.write_result({"test/accuracy": 0.5}, seeds=(0,))
    assert memory[1:] == [
        ("config", 7),
        ("log", 1, {"train/loss": 2.0}),
        ("log", 1, {"validation/accuracy": 0.5}),
        ("finish", {"test/accuracy": 0.5}),
    ]


def test_a_resumed_run_is_the_same_one_and_no_step_is_sent_twice(memory, tmp_path):
    folder = tmp_path / "run"
    with open_run(folder) as run:  # killed after step 3; the newest checkpoint is of step 2
        for step in (1, 2, 3):
            run.log(step, {"train/loss": 1.0})
    with open_run(folder, resume=True) as run:  # killed at once: step 3 is not logged again
        run.truncate_metrics(1)
        run.log(2, {"train/loss": 1.0})
    with open_run(folder, resume=True) as run:
        run.truncate_metrics(2)
        for step in (3, 4):
            run.log(step, {"train/loss": 1.0})
        run.write_result({"test/loss": 1.0})
    assert steps_sent() == [1, 2, 3, 4]
    assert [item[1] for item in memory if item[0] == "start"] == [None, "run-1", "run-1"]
    assert [item[1] for item in memory if item[0] == "finish"] == [None, None, {"test/loss": 1.0}]
    assert [r["step"] for r in run.read_metrics()] == [1, 2, 3, 4]


def test_a_run_that_gets_a_tracker_later_sends_what_was_logged_before(memory, tmp_path):
    folder = tmp_path / "run"
    with open_run(folder, track=None) as run:
        for step in (1, 2, 3):
            run.log(step, {"train/loss": 1.0, "train/nothing": math.inf})
    with open_run(folder, resume=True) as run:
        run.truncate_metrics(2)
        for step in (3, 4):
            run.log(step, {"train/loss": 1.0})
    assert steps_sent() == [1, 2, 3, 4] and memory[1] == ("log", 1, {"train/loss": 1.0})


def test_a_run_within_another_is_not_tracked(memory, tmp_path):
    with open_run(tmp_path / "run") as run, open_run(run.path / "part") as part:
        part.log(1, {"train/loss": 1.0})
    assert steps_sent() == [] and len([item for item in memory if item[0] == "start"]) == 1


def test_only_the_process_that_writes_tracks(memory, tmp_path):
    config = RunConfig(track="mlflow", run_dir=tmp_path / "run")
    with Run.create(config.run_dir, config, writer=False, tensorboard=False) as run:
        run.log(1, {"train/loss": 1.0})
    assert memory == []


def test_a_failure_of_the_network_is_a_note_and_what_failed_is_sent_again(memory, tmp_path, capsys):
    with open_run(tmp_path / "run") as run:
        MemoryTracker.failures = 2
        for step in (1, 2):
            run.log(step, {"train/loss": 1.0})
        while run._tracking._queue.qsize():
            pass
        run.write_result({"test/loss": 1.0})
    assert steps_sent() == [1, 2] and memory[1][0] == "config"
    note = capsys.readouterr().err
    assert note == "note: --track mlflow: the network is down; training goes on, and it is tried again\n"


def test_a_tracker_that_fails_for_good_costs_nothing_but_itself(memory, tmp_path, capsys):
    with open_run(tmp_path / "run") as run:
        MemoryTracker.failures = 10**9
        for step in (1, 2):
            run.log(step, {"train/loss": 1.0})
        run.write_result({"test/loss": 1.0})
    assert [r["step"] for r in run.read_metrics()] == [1, 2] and (run.path / "result.json").is_file()
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("4 records not sent; metrics.jsonl and result.json have it all")
    )


def test_a_tracker_that_hangs_does_not_keep_the_run_from_ending(memory, tmp_path, monkeypatch, capsys):
    stop = threading.Event()
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(MemoryTracker, "log", lambda self, step, metrics: stop.wait(20))
    with open_run(tmp_path / "run") as run:
        run.log(1, {"train/loss": 1.0})
        thread = run._tracking._thread
    assert "note: --track mlflow: not everything sent" in capsys.readouterr().err
    stop.set()
    thread.join()


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_a_package_that_is_missing_is_named_with_its_command_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    extra = tracking.TRACKERS[name].extra
    with pytest.raises(ValueError, match=f"^--track {name} needs .* not installed: pip install {extra}$"):
        open_run(tmp_path / "run", track=name)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_stops_a_new_run_and_not_a_resumed_one(
    memory, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "run"
    with open_run(folder) as run:
        run.log(1, {"train/loss": 1.0})

    def fail(self, info, id):
        raise ConnectionError("no API key")

    monkeypatch.setattr(MemoryTracker, "__init__", fail)
    with pytest.raises(
        ValueError, match=r"^--track mlflow cannot start \(no API key\): nothing to do; or leave"
    ):
        open_run(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with open_run(folder, resume=True) as run:
        run.log(2, {"train/loss": 1.0})
    assert [r["step"] for r in run.read_metrics()] == [1, 2]
    assert "cannot start (no API key); training goes on without it" in capsys.readouterr().err


def test_the_choices_are_those_of_the_table():
    assert set(typing.get_args(tracking.TrackerName)) == set(tracking.TRACKERS)
    assert RunConfig().track is None


def test_what_has_no_finite_value_is_not_sent():
    record = {"step": 3, "note": "a is nan", "a": None, "b": [1.0, None], "c": 2}
    assert _scalars(record) == {"b": 1.0, "c": 2.0}


def test_names_are_those_that_mlflow_takes():
    assert tracking._plain_name("image_to_text/recall@1") == "image_to_text/recall_1"
    assert tracking._plain_name("a.b-c d:e") == "a.b-c d:e"


def wandb_records(file):
    """The records in a file of Weights & Biases, whose format is that of LevelDB's log: blocks of 32 KiB with records
    that begin with checksum, length and type (1: whole; 2, 3 and 4: first, middle and last part)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), 7, b""  # after the header of the file
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    folder = tmp_path / "run"
    with open_run(folder, track="wandb", steps=7) as run:
        run.log(1, {"train/loss": 1.0})
        run.log(2, {"train/loss": 0.5})
        run.log(2, {"validation/recall@1": 0.25})
    with open_run(folder, track="wandb", steps=7, resume=True) as run:
        run.truncate_metrics(1)
        run.log(2, {"train/loss": 0.5})
        run.log(3, {"train/loss": 0.25})
        run.write_result({"test/recall@1": 0.75})
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [record for file in files for record in wandb_records(file)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {r.run_id for r in runs} == {json.loads((folder / "tracking.json").read_text())["wandb"]["id"]}
    assert set(runs[0].tags) == {"config", "shapes"} and runs[0].display_name == "run"
    history = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            assert values["_step"] not in history
            history[values["_step"]] = {n: v for n, v in values.items() if not n.startswith("_")}
    assert history == {
        1: {"train/loss": 1.0},
        2: {"train/loss": 0.5, "validation/recall@1": 0.25},
        3: {"train/loss": 0.25},
    }
    text = json.dumps([str(record) for record in records])
    assert "test/recall@1" in text and "batch_size" in text


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_mlflow_in_a_local_file(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "run"
    with open_run(folder, steps=7) as run:
        run.log(1, {"train/loss": 1.0})
        run.log(2, {"train/loss": 0.5, "validation/recall@1": 0.25})
    with open_run(folder, steps=9, resume=True) as run:
        run.truncate_metrics(1)
        run.log(2, {"train/loss": 0.5, "validation/recall@1": 0.25})
        run.log(3, {"train/loss": 0.25})
        run.write_result({"test/recall@1": 0.75}, steps=3)
    client = MlflowClient()
    id = json.loads((folder / "tracking.json").read_text())["mlflow"]["id"]
    stored = client.get_run(id)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "run"
    assert stored.data.params["steps"] == "7" and stored.data.tags["experiment"] == "config"
    assert stored.data.metrics["test/recall_1"] == 0.75
    history = sorted((m.step, m.value) for m in client.get_metric_history(id, "train/loss"))
    assert history == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(client.get_metric_history(id, "validation/recall_1")) == 1
    config = client.download_artifacts(id, "config.json", str(tmp_path))
    assert json.loads(pathlib.Path(config).read_text())["steps"] == 9
    assert {file.path for file in client.list_artifacts(id)} == {"config.json", "result.json"}
