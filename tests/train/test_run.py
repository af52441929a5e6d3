"""The run directory: nothing overwritten, nothing half written, and the same file after a resume."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core import cluster
from xmodal_jax.train.run import (
    AbandonedRuns,
    Run,
    _keep_known,
    abandon_runs,
    format_value,
    from_json,
    summary_line,
    to_json,
    write_atomic,
)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "shapes"
    out: Path = Path("a/b")
    steps: int = 11
    clip: float = math.inf
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    layers: tuple[Optimizer, ...] = (Optimizer(1.0),)
    note: str | None = None


def create(path, **kwargs):
    return Run.create(path, Config(), **{"tensorboard": False, **kwargs})


def test_config_round_trip(tmp_path):
    run = create(tmp_path / "run")
    expected = json.loads(json.dumps(dataclasses.asdict(Config()) | {"out": "a/b", "clip": "inf"}))
    assert run.read_config() == expected
    json.loads((run.path / "config.json").read_text(), parse_constant=pytest.fail)  # strict JSON, no Infinity
    with pytest.raises(TypeError, match="config.json"):
        to_json(object())


def test_default_directory_is_named_by_experiment_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create(None, experiment="retrieval").path.match("runs/retrieval-20[0-9]*-[0-9]*")
    with pytest.raises(ValueError, match="--run-dir"):
        create(None, resume=True)


def test_refuses_to_overwrite(tmp_path, capsys):
    path = tmp_path / "run"
    create(path).close()
    before = {file: file.read_bytes() for file in path.iterdir()}
    with pytest.raises(FileExistsError, match=r"--resume.*--run-dir"):
        create(path)
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    run = Run.create(path, Config(steps=13), resume=True, tensorboard=False)
    assert "steps = 13, was 11" in capsys.readouterr().out
    assert run.read_config()["steps"] == 11  # until the first write, for the run may be refused before
    run.log(1, {"train/loss": 1.0})
    assert run.read_config()["steps"] == 13
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        create(tmp_path / "file")
    with pytest.raises(TypeError, match="dataclass"):
        Run.create(tmp_path / "other", {"steps": 1})


def test_the_options_that_differ_are_named_one_by_one(tmp_path, capsys):
    @dataclasses.dataclass(frozen=True)
    class Small:
        """A part."""

        name: ClassVar[str] = "small"
        width: int = 1

    @dataclasses.dataclass(frozen=True)
    class Large:
        """Another part."""

        name: ClassVar[str] = "large"
        depth: int = 2

    @dataclasses.dataclass(frozen=True)
    class Model:
        """A configuration with parts."""

        encoder: Any = Small()
        decoder: Any = Small()
        head: Any = None
        input: dict = dataclasses.field(default_factory=lambda: {"size": [1, 2], "fps": 3, "seconds": 4})
        resume: bool = False

    Run.create(tmp_path, Model(), tensorboard=False).close()
    changed = Model(Small(7), Large(), Small(), {"size": [1, 3], "fps": 3, "seconds": None}, resume=True)
    Run.create(tmp_path, changed, resume=True, tensorboard=False)
    assert capsys.readouterr().out.splitlines() == [
        "note: resuming with decoder = 'large', was 'small'",
        "note: resuming with encoder.width = 7, was 1",
        "note: resuming with head = 'small', was None",
        "note: resuming with input.seconds = None, was 4",
        "note: resuming with input.size = [1, 3], was [1, 2]",
    ]


def test_a_new_run_in_place_of_one_to_resume_is_noted_once(tmp_path, capsys):
    with create(tmp_path / "a", resume=True) as run:
        create(run.path / "judges", resume=True).close()
    assert capsys.readouterr().out == f"note: --resume: {tmp_path / 'a'} holds no run; starting a new one\n"
    create(tmp_path / "a", resume=True)
    create(tmp_path / "b")
    assert capsys.readouterr().out == ""


def test_an_empty_directory_is_free(tmp_path):
    create(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_only_the_writer_writes(tmp_path):
    run = create(tmp_path / "run", writer=False)
    run.log(1, {"train/loss": 1.0})
    run.truncate_metrics(0)
    run.write_result({"test/accuracy": 0.5})
    assert not run.path.exists()


def test_metrics_round_trip(tmp_path):
    run = create(tmp_path)
    run.log(1, {"train/loss": np.float32(0.5), "train/seeds": [0.25, 0.75], "train/half": jnp.bfloat16(1.5)})
    run.log(2, {"train/loss": np.nan, "train/seeds": np.array([1.0, np.inf]), "train/half": 2})
    first, second = run.read_metrics()
    assert first == {"step": 1, "train/loss": 0.5, "train/seeds": [0.25, 0.75], "train/half": 1.5}
    assert second["train/loss"] is None and second["train/seeds"] == [1.0, None]
    assert "train/loss is nan" in second["note"] and "inf" in second["note"]
    with pytest.raises(ValueError, match="one number per seed"):
        run.log(3, {"train/loss": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="step"):
        run.log(3, {"step": 1.0})


def value(step):
    return {"train/loss": 1.0 / (3 + step), "test/recall@1": [step / 7, math.nan if step == 4 else step / 11]}


def test_resume_leaves_the_file_of_an_uninterrupted_run(tmp_path):
    whole, broken = create(tmp_path / "whole"), create(tmp_path / "broken")
    for step in range(1, 12):
        whole.log(step, value(step))
    for step in range(1, 9):
        broken.log(step, value(step))
    with broken.metrics_path.open("a") as file:
        file.write('{"step": 9, "train/lo')  # killed while it wrote
    resumed = create(tmp_path / "broken", resume=True)
    assert [row["step"] for row in resumed.read_metrics()] == list(range(1, 9))
    resumed.truncate_metrics(5)
    for step in range(6, 12):
        resumed.log(step, value(step))
    assert resumed.metrics_path.read_bytes() == whole.metrics_path.read_bytes()


def test_truncation_is_atomic(tmp_path, monkeypatch):
    run = create(tmp_path)
    for step in range(5):
        run.log(step, value(step))
    before = run.metrics_path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run.truncate_metrics(2)
    assert run.metrics_path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "lock.json", "metrics.jsonl"}
    run.close()
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}


def test_a_bad_line_is_named(tmp_path):
    run = create(tmp_path)
    run.metrics_path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        run.read_metrics()


def test_result_schema(tmp_path):
    run = create(tmp_path)
    metrics = {
        "image_to_text/recall@1": [0.5, 0.7],
        "test/loss": np.float32(2.5),
        "test/mrr": math.nan,
    }
    returned = run.write_result(
        metrics, timing={"train": 1.25, "total": 2.0}, seeds=(3, 5), examples=jnp.int32(7).item()
    )
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert result == returned
    recall = pytest.approx(0.6)
    assert result["metrics"] == {
        "image_to_text/recall@1": recall,
        "test/loss": 2.5,
        "test/mrr": None,
    }
    assert result["spread"] == {
        "image_to_text/recall@1": pytest.approx(0.02**0.5)
    }  # sqrt(2 * 0.1^2 / (2 - 1))
    assert result["per_seed"] == {"image_to_text/recall@1": [0.5, 0.7]}
    assert set(result["timing"]) == {"compile", "train", "evaluation", "data_wait", "total"}
    assert result["timing"]["train"] == 1.25 and result["timing"]["compile"] is None
    assert result["seeds"] == [3, 5] and result["examples"] == 7
    assert result["device"]["platform"] == "cpu" and result["device"]["count"] == 8
    assert set(result["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "xmodal_jax"}
    assert all(result["versions"].values())
    with pytest.raises(ValueError, match="test/accuracy"):
        run.write_result({"accuracy": 1.0})


def test_tensorboard_events(tmp_path):
    with create(tmp_path, tensorboard=True) as run:
        run.log(1, {"train/loss": 0.5, "train/nan": math.nan})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"train/nan" not in events.read_bytes()


def test_missing_tensorboard_is_one_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    run = create(tmp_path, tensorboard=True)
    run.log(1, {"train/loss": 0.5})
    run.log(2, {"train/loss": 0.5})
    assert capsys.readouterr().out.count("tensorboardX") == 1
    assert len(run.read_metrics()) == 2


def test_atomic_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.87345, "0.873"),
        (12.3456, "12.35"),
        (3, "3"),
        (12345, "12,345"),
        (1.0, "1.000"),
        (0.0, "0.000"),
        (1.234e-5, "1.234e-05"),
        (12345.67, "12,346"),
        (1234567.0, "1.235e+06"),
        (-1.5, "-1.500"),
        (math.nan, "n/a"),
        (None, "n/a"),
        ([0.5, 0.7], "0.600 ± 0.141"),
        ([0.5, None], "0.500"),
    ],
)
def test_format_value(value, text):
    assert format_value(value) == text


def test_summary_line():
    metrics = {"image_to_text/recall@1": 0.5, "test/loss": [1.0, 3.0]}
    assert summary_line(metrics) == "image_to_text/recall@1 0.500 · test/loss 2.000 ± 1.414"
    assert summary_line(metrics, ["test/loss"]) == "test/loss 2.000 ± 1.414"


@dataclasses.dataclass(frozen=True)
class Nested:
    text: int = 1
    video: int = 2


@dataclasses.dataclass(frozen=True)
class Whole:
    model: Nested = Nested()
    steps: int = 3


def test_what_a_run_does_not_use_is_left_out_and_a_resumed_run_does_not_miss_it(tmp_path, capsys):
    run = Run.create(tmp_path / "run", Whole(), tensorboard=False)
    run.leave_out(["model.video", "model.absent", "absent.too"])
    assert run.read_config() == {"model": {"text": 1}, "steps": 3}
    assert from_json(Whole, run.read_config()) == Whole()
    capsys.readouterr()
    again = Run.create(tmp_path / "run", Whole(), resume=True, tensorboard=False)
    assert capsys.readouterr().out == ""
    again.leave_out(["model.video"])
    assert again.read_config() == run.read_config()
    Run.create(tmp_path / "run", Whole(Nested(text=5)), resume=True, tensorboard=False)
    assert "resuming with model" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Deep:
    whole: Whole = Whole()
    steps: int = 3


def test_options_that_an_earlier_process_left_out_are_no_difference_at_any_depth():
    config = {"model": {"a": {"b": {"c": {"kept": 1, "left out": 2}}}}, "steps": 3}
    before = {"model": {"a": {"b": {"c": {"kept": 1}}}}}
    assert _keep_known(config, before) == {**before, "steps": 3}
    assert from_json(Deep, to_json(Deep())) == Deep()


def test_a_number_that_json_does_not_have_comes_back():
    assert from_json(Config, to_json(Config())) == Config()  # clip is infinite


def test_runs_of_one_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20250131-101500")
    runs = [create(None, experiment="a") for _ in range(3)]
    names = ["a-20250131-101500", "a-20250131-101500-2", "a-20250131-101500-3"]
    assert [run.path.name for run in runs] == names
    assert all((run.path / "config.json").exists() for run in runs)


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    rate: float = 0.5
    name: str | None = None
    sizes: tuple[int, ...] = ()
    either: int | str = 3
    path: Path = Path("x")
    resume: bool = False


@pytest.mark.parametrize(
    "change, message",
    [
        ({"inner": {"width": "3"}}, "inner: width: int is expected, got '3'"),
        ({"inner": {"width": 3.5}}, "inner: width: int is expected, got 3.5"),
        ({"inner": {"width": True}}, "inner: width: int is expected, got True"),
        ({"inner": [3]}, "inner: Inner must be an object"),
        ({"rate": "fast"}, "rate: float is expected, got 'fast'"),
        ({"name": 3}, "name: str is expected"),
        ({"sizes": [1, None]}, "sizes: int is expected, got None"),
        ({"either": 1.5}, "either: str is expected"),
        ({"path": 3}, "path: Path is expected"),
        ({"resume": 1}, "resume: bool is expected"),
    ],
)
def test_a_changed_configuration_is_refused_with_its_field(change, message):
    """A value of another type would be used in silence, or fail far away."""
    assert from_json(Outer, {**to_json(Outer()), "either": "x", "rate": 1, "name": "y"}).either == "x"
    with pytest.raises(ValueError, match=message):
        from_json(Outer, {**to_json(Outer()), **change})


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3:/bucket/run", Path("gs://bucket/run")])
def test_a_remote_address_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--run-dir is (gs|s3)://bucket/run, a remote address"):
        create(path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_configuration_that_is_none_is_named(tmp_path, content):
    create(tmp_path).close()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json holds no configuration .*delete it and give all flags"):
        create(tmp_path, resume=True)
    assert (tmp_path / "config.json").read_text() == content
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_the_directory_of_another_experiment_stays_as_it_is(tmp_path):
    run = create(tmp_path / "run")
    run.log(1, {"train/loss": 1.0})
    run.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo").write_text("")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="config.json is of another experiment or version: it has 'data'"):
        Run.create(tmp_path / "run", Whole(), resume=True)
    with pytest.raises(ValueError, match="holds no run to resume"):
        create(tmp_path / "other", resume=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_is_written_later_waits_until_a_resumed_run_writes(tmp_path):
    calls = []
    create(tmp_path).write_later(lambda: calls.append("new"))
    assert calls == ["new"]
    run = create(tmp_path, resume=True)
    run.write_later(lambda: calls.append("resumed"))
    assert calls == ["new"]
    run.truncate_metrics(0)
    run.log(1, {"train/loss": 1.0})
    assert calls == ["new", "resumed"]


def test_a_run_that_ends_before_it_has_begun_leaves_no_directory(tmp_path):
    abandon_runs()  # those of other tests
    begun, kept = create(tmp_path / "begun"), create(tmp_path / "kept")
    begun.log(1, {"train/loss": 1.0})
    kept.close()
    create(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    create(tmp_path / "empty")
    create(tmp_path / "kept", resume=True)
    abandoned = abandon_runs()
    assert abandoned.last is begun and abandoned.has_begun
    assert {path.name for path in tmp_path.iterdir()} == {"begun", "kept", "empty"}
    assert not any((tmp_path / "empty").iterdir())
    assert abandon_runs() == AbandonedRuns()


def test_half_written_files_of_a_killed_process_are_no_run_and_are_removed(tmp_path):
    (tmp_path / ".config.json.abc.tmp").write_text("{")
    (tmp_path / "lock.json").write_text("")
    with create(tmp_path, resume=True) as run:
        run.log(1, {"train/loss": 1.0})
    (tmp_path / ".metrics.jsonl.abc.tmp").write_text("{")
    with create(tmp_path, resume=True) as run:
        run.log(2, {"train/loss": 1.0})
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}


def test_where_one_process_cannot_open_the_directory_all_stop(tmp_path, monkeypatch):
    create(tmp_path).close()
    told = []
    monkeypatch.setattr(cluster, "agree", lambda text: told.append(text) or text)
    with pytest.raises(FileExistsError, match="not empty"):
        create(tmp_path)
    monkeypatch.setattr(cluster, "agree", lambda text: told[-1])  # what the others get
    with pytest.raises(ValueError, match="not empty"):
        create(tmp_path, writer=False)


def test_a_second_process_is_refused_and_changes_nothing(tmp_path):
    run = create(tmp_path)
    run.log(1, {"train/loss": 1.0})
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    code = f"""
import dataclasses, sys
from xmodal_jax.train.run import Run
Config = dataclasses.make_dataclass("Config", [])
try:
    Run.create({str(tmp_path)!r}, Config(), resume=True)
except FileExistsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"in use by process {os.getpid()} on" in done.stdout
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    run.close()
