"""Runs side by side: what is read from their directories, and what the page says of it."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from xmodal_jax.report import run_comparison as panels
from xmodal_jax.report.page import Report, read_sections
from xmodal_jax.train.run import Run

ROOT = pathlib.Path(__file__).parents[2]


def load_script():
    """The module of experiments/compare.py."""
    spec = importlib.util.spec_from_file_location("compare_script", ROOT / "experiments" / "compare.py")
    sys.modules[spec.name] = script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


script = load_script()  # at once: it takes seconds to import what it imports


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 8


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    seeds: int = 1
    batch_size: int = 10
    run_dir: pathlib.Path | None = None
    resume: bool = False
    model: Model = Model()


@dataclasses.dataclass(frozen=True)
class OtherConfig(Config):
    beams: int = 4


@dataclasses.dataclass(frozen=True)
class OnData(Config):
    data: str = "shapes"


def leave_run(folder, metrics=None, *, losses=(2.0, 1.0), config_class=Config, page=True, **options):
    """A run in ``folder``: a finished one if there are ``metrics``."""
    config = config_class(run_dir=folder, **options)
    with Run.create(folder, config, tensorboard=False) as run:
        for k, loss in enumerate(losses, start=1):
            run.log(10 * k, {"train/loss": loss, "validation/accuracy": 1 / (1 + np.asarray(loss))})
        if metrics is not None:
            seeds = [config.seed + k for k in range(config.seeds)]
            entries = dict(steps=20, resumed=0, diverged=[], parameters=1234, experiment="toy")
            run.write_result(metrics, timing={"train": 2.0, "total": 3.5}, seeds=seeds, **entries)
            if page:
                report = Report("A run")
                report.add_images("Samples <1>", np.full((2, 4, 4, 3), len(losses), np.uint8), columns=2)
                report.add_text("Samples <1>", f"of {folder.name}")
                report.add_config({"a": 1})
                report.write(folder / "report.html")
    return panels.read_stored_run(folder)


def page_of(groups):
    report = Report("Runs")
    for add in (
        panels.add_options,
        panels.add_scores,
        panels.add_curves,
        panels.add_facts,
        panels.add_samples,
    ):
        add(report, groups)
    return report.html()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image_to_text/recall@1", "higher"),
        ("image_to_text/median_rank", "lower"),
        ("test/image_zero_shot_accuracy", "higher"),
        ("test/judge_kernel_distance", "lower"),
        ("test/judge_kernel_distance_real", None),
        ("learning/generated_accuracy", "higher"),
        ("learning/generated_accuracy_sd", None),
        ("learning/real_accuracy_of_500", None),
        ("test/length_error", "lower"),
        ("test/wer", "lower"),
        ("train/loss", "lower"),
        ("train/d_loss", None),
        ("test/gap_image_text", None),
        ("train/examples", None),
    ],
)
def test_a_direction_is_known_by_the_words_of_a_name(name, expected):
    assert panels.direction(name) == expected


def test_runs_that_differ_only_in_their_seed_are_one_column_with_mean_and_deviation(tmp_path):
    values = {"a": [0.5, 0.7], "b": [0.9, 0.9]}
    runs = [
        leave_run(
            tmp_path / f"{name}-s{seed}",
            {"test/accuracy": value},
            seed=seed,
            model=Model(8 if name == "a" else 16),
        )
        for name in values
        for seed, value in enumerate(values[name])
    ]
    groups = panels.group_runs(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("a-s", 2), ("b-s", 2)]
    assert [group.metrics["test/accuracy"] for group in groups] == list(values.values())
    page = page_of(groups)
    deviation = np.std(values["a"], ddof=1)
    assert f"0.600 ± {deviation:.3f}" in page and '<td class="number best">★ 0.900 ± 0.000</td>' in page
    assert "a-s (2 seeds)" in page
    assert panels.differing_options(groups) == {"model.width": [8, 16]}
    summary = panels.summary(groups)
    assert summary["best"] == {"test/accuracy": ["b-s"]}
    assert [run["seeds"] for run in summary["runs"]["a-s"]] == [[0], [1]]
    # The curves have the values of both seeds at each step.
    assert groups[0].records[0]["train/loss"] == [2.0, 2.0]
    # All of one kind: each is a column.
    assert [group.name for group in panels.group_runs(runs[:2])] == ["a-s0", "a-s1"]


def test_the_seeds_of_one_run_count_like_runs(tmp_path):
    one = leave_run(tmp_path / "one", {"test/wer": [0.5, 0.7, 0.9]}, seeds=3, losses=([1.0, 2.0, 3.0],))
    two = leave_run(tmp_path / "two", {"test/wer": 0.2}, model=Model(16))
    groups = panels.group_runs([one, two])
    page = page_of(groups)
    assert "0.700 ± 0.200" in page and "one (3 seeds)" in page and "★ 0.200" in page and "test/wer ↓" in page
    facts = panels._facts(one)
    # 20 steps of 10 examples for each of 3 seeds, in 2 seconds.
    assert facts["examples per second"] == "300" and facts["parameters"] == "1,234"
    assert facts["seconds"] == "3.5" and facts["seeds"] == "0 1 2" and facts["experiment"] == "toy"


def test_an_unfinished_run_is_shown_as_one(tmp_path):
    done = leave_run(tmp_path / "done", {"test/accuracy": 0.5})
    killed = leave_run(tmp_path / "killed", model=Model(16))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "tra')  # killed while it wrote
    page = page_of(panels.group_runs([done, panels.read_stored_run(tmp_path / "killed")]))
    assert "unfinished, at step 20" in page and "No metric is that of two finished runs." in page
    assert "Only done has: test/accuracy." in page
    assert killed.result == {} and killed.last_step == 20


def test_different_experiments_are_compared_by_what_they_share(tmp_path):
    one = leave_run(tmp_path / "one", {"test/accuracy": 0.5, "test/bleu": 0.1})
    two = leave_run(
        tmp_path / "two", {"test/accuracy": 0.5}, config_class=OtherConfig, batch_size=20, model=Model(9)
    )
    groups = panels.group_runs([one, two])
    assert panels.differing_options(groups) == {"batch_size": [10, 20], "model.width": [8, 9]}
    assert panels.unshared_options(groups) == {"two": ["beams"]}
    page = page_of(groups)
    assert "different experiments or versions" in page and "Only two has: beams." in page
    assert "Only one has: test/bleu." in page
    assert "★" not in page.split("Of several seeds")[0]  # equal: none is better


def test_sections_of_samples_stand_side_by_side_and_others_do_not(tmp_path):
    runs = [
        leave_run(tmp_path / name, {"test/accuracy": 0.5}, model=Model(width))
        for name, width in (("one", 8), ("two", 9))
    ]
    page = page_of(panels.group_runs(runs))
    assert "of one" in page and "of two" in page and page.count("<h2>Samples &lt;1&gt;</h2>") == 1
    assert "<h2>Configuration</h2>" not in page and ".columns-2{" in page


@pytest.mark.parametrize(
    "content",
    [
        "<script>alert(1)</script>",
        '<p onclick="x()">a</p>',
        '<img src="https://example.org/a.png">',
        "<iframe></iframe>",
        '<svg><a href="https://example.org">a</a></svg>',
    ],
)
def test_what_no_report_has_is_not_taken_over(tmp_path, content):
    file = tmp_path / "report.html"
    begin = '<details id="s{}" open><summary><h2>{}</h2></summary><div class="body">'
    file.write_text(
        f"{begin.format(1, 'A')}{content}</div></details>{begin.format(2, 'B')}<p>fine</p></div></details>"
    )
    assert read_sections(file) == {"B": "<p>fine</p>"}
    assert read_sections(tmp_path / "none.html") == {}


def test_every_section_of_a_report_is_read_again(tmp_path):
    from xmodal_jax.report.page import Audio, Hit, MarkedText

    report, image = Report("A run"), np.zeros((4, 4, 3), np.uint8)
    sound = Audio(np.zeros(8, np.int16), 8000)
    marked = MarkedText([("a", "right"), ("b", "wrong"), ("c", "missing")])
    report.add_table("Table", ("a", "b", "c"), [(image, sound, marked)])
    report.add_gallery("Gallery", [image], [[Hit("text </div></details>", True, 0.5)]])
    report.add_videos("Video", [np.zeros((2, 4, 4, 3), np.uint8)], ["x"])
    report.add_timing({"total": 1.0})
    report.add_figure("Figure", panels.figures.overlaid_curves({"a": [{"step": 1, "x": 1.0}]}, "x"))
    report.write(tmp_path / "report.html")
    assert list(read_sections(tmp_path / "report.html")) == ["Table", "Gallery", "Video", "Timing", "Figure"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [leave_run(tmp_path / name / "run", model=Model(k)) for k, name in enumerate("ab")]
    assert [group.name for group in panels.group_runs(runs)] == ["a/run", "b/run"]


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothere does not exist: name the directory of a run"):
        panels.read_stored_run(tmp_path / "nothere")
    with pytest.raises(ValueError, match="has no config.json: name the directory of a run"):
        panels.read_stored_run(tmp_path)


def test_the_script_leaves_a_page_and_its_numbers(tmp_path, capsys):
    leave_run(tmp_path / "one", {"test/accuracy": [0.5, 0.7]}, seeds=2)
    leave_run(tmp_path / "two", {"test/accuracy": [0.8, 0.6]}, seeds=2, model=Model(16))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    script.main(script.Config(runs=(tmp_path / "one", tmp_path / "two"), run_dir=tmp_path / "out"))
    assert {file: file.read_bytes() for file in before} == before
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["two/test/accuracy"] == pytest.approx(0.7)
    assert result["options"] == {"model.width": {"one": 8, "two": 16}}
    assert result["best"] == {"test/accuracy": ["two"]}
    assert "one/test/accuracy 0.600 ± 0.141" in capsys.readouterr().out
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "This report is incomplete" not in page and "validation/accuracy" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least two runs"):
        script.Config(runs=(tmp_path / "one",))


@pytest.mark.parametrize("other", ["folder:B", "folder:A"])
def test_scores_on_different_data_are_said_not_to_be_comparable(tmp_path, other):
    runs = [
        leave_run(tmp_path / name, {"test/accuracy": value}, config_class=OnData, data=data, batch_size=size)
        for name, value, data, size in [("a", 0.5, "folder:A", 10), ("b", 0.6, other, 20)]
    ]
    assert ("different data" in page_of(panels.group_runs(runs))) == (other != "folder:A")
