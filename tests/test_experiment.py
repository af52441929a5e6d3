"""What scripts share: the result before the report, whatever a report has to show."""

import dataclasses
import json

import numpy as np
import pytest

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.experiment import evaluate_seeds, last_losses, start, write_report
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.report import figures
from xmodal_jax.report.classification_figures import accuracy_bars
from xmodal_jax.report.comparison import read_result as read_result_file
from xmodal_jax.report.page import Item
from xmodal_jax.train.config import RunConfig, StartConfig
from xmodal_jax.train.loop import TrainingResult
from xmodal_jax.train.run import Run, from_json

NAMES = (
    "$^$",
    "a lone \udce9 surrogate",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "w" * 200,
    "",
    "\u7d05 bell \x07",
    "$x$ \\mathdefault",
    "<b>",
)


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", RunConfig(), tensorboard=False) as run:
        yield run


@pytest.fixture
def ending():
    timer = Timer()
    yield dict(timer=timer, bad_examples=BadExamples("skip"))
    timer.clock.close()


def read_result(run):
    return json.loads((run.path / "result.json").read_text())


def test_a_line_says_that_the_evaluation_begins(ending, capsys):
    """It shows no progress, and the bar of the training is at its end."""

    class TwoSeeds(TrainingResult):
        params = [1.0, 2.0]

    def test(params):
        assert capsys.readouterr().out == ("evaluating on the test examples ...\n" if params == 1 else "")
        return {"score": params}, None

    metrics, _ = evaluate_seeds(test, TwoSeeds(*[None] * 7), ending["timer"])
    assert metrics == {"score": [1, 2]}


def test_the_result_comes_first_and_an_error_in_the_report_does_not_cost_it(run, ending, capsys):
    metrics = {"test/accuracy": 0.5, "test/loss": 2.0}
    with write_report(run, "A title", "details", metrics, **ending) as report:
        assert read_result(run)["metrics"] == metrics
        report.add_metrics(metrics, headline=["test/loss"])
        report.add_text("Before", "this stays")
        raise RuntimeError("a figure went wrong")
    page = (run.path / "report.html").read_text()
    for text in (
        "this stays",
        "This report is incomplete",
        "RuntimeError: a figure went wrong",
        "Configuration",
    ):
        assert text in page
    said = capsys.readouterr()
    assert (
        said.err == "note: the report is incomplete (RuntimeError: a figure went wrong); the result is not\n"
    )
    *_, last, next_step = said.out.splitlines()
    assert last == "test/loss 2.000" and next_step.startswith("look at it  python -m webbrowser file:/")
    assert read_result(run)["timing"]["report"] >= 0
    assert not (run.path / "lock.json").exists()


def make_figures():
    """A figure of each kind that shows names or captions, by title."""
    points, images = (
        np.random.default_rng(0).normal(size=(len(NAMES), 2)),
        np.zeros((len(NAMES), 1, 4, 4, 3), np.uint8),
    )
    square = np.eye(len(NAMES))
    return {
        "Confusion": figures.confusion_matrix(square, NAMES, title=NAMES[1]),
        "Map": figures.embedding_map(points, NAMES, NAMES),
        "Bars": accuracy_bars(dict.fromkeys(NAMES, 0.5), title="$^$"),
        "Similarity": figures.similarity_matrix(square, NAMES, NAMES, title="$^$"),
        "Grid": figures.image_grid(images[:, 0], captions=NAMES, title="$^$ \udce9"),
        "Strip": figures.video_strip(images[:3], captions=NAMES[:3]),
    }


@pytest.mark.parametrize("title", make_figures())
def test_any_label_can_be_drawn(title):
    assert figures.to_png(make_figures()[title], dpi=30)[:4] == b"\x89PNG"


def test_any_caption_can_be_shown(run, ending, capsys):
    ending["bad_examples"].add("caf\udce9.png", 3, "no picture")
    with write_report(run, "Title \udce9 $^$", "details", {"test/accuracy": 1.0}, **ending) as report:
        report.add_table("Table", ("\udce9", "two"), [(name, Item(name, name)) for name in NAMES])
        report.add_text("Text", "\n\n".join(NAMES))
        report.add_images("Images", np.zeros((len(NAMES), 4, 4, 3), np.uint8), NAMES)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "incomplete" not in capsys.readouterr().err
    assert "$^$" in page and "a lone \ufffd surrogate" in page and "&lt;b&gt;" in page
    assert 'dir="auto">\u05e9' in page and "w" * 200 in page
    assert json.loads((run.path / "bad_examples.jsonl").read_text())["file"] == "caf\\udce9.png"


def test_a_formula_is_shown_as_it_is_written_and_the_ticks_of_a_logarithmic_axis_stay_formulas():
    records = [{"step": k, "train/loss": 10.0**-k, "train/$^$": 1.0} for k in range(1, 5)]
    fig = figures.curves(records, ["train/loss", "train/$^$"], logy=["train/loss"])
    for dark in (False, True):
        assert figures.to_png(fig, dark=dark)[:4] == b"\x89PNG"
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["train/loss", "train/$^$"]
    ticks = [label for label in fig.axes[0].get_yticklabels() if label.get_text()]
    assert ticks and all("mathdefault" in label.get_text() and label.get_parse_math() for label in ticks)


def test_a_figure_that_cannot_be_drawn_costs_only_itself(run, ending, monkeypatch):
    fig = figures.confusion_matrix(np.eye(2), ["a", "b"])
    monkeypatch.setattr(figures, "to_png", lambda *_, **__: 1 / 0)
    with write_report(run, "A title", "", {"test/accuracy": 1.0}, **ending) as report:
        report.add_figure("Confusion", fig)
        report.add_text("After", "this stays")
    page = (run.path / "report.html").read_text()
    assert (
        "This figure could not be drawn (ZeroDivisionError: division by zero)." in page
        and "this stays" in page
    )


def test_a_run_without_scores_has_its_losses_in_the_headline_and_says_that_six_steps_are_few(
    run, ending, capsys
):
    run.log(3, {"train/loss": 3.0, "train/d_loss": 1.0, "train/g_loss": 2.0, "train/grad_norm": 9.0})
    run.log(6, {"train/loss": 2.0, "train/d_loss": 0.5, "train/g_loss": 1.5, "train/grad_norm": 9.0})
    run.log(6, {"validation/nothing": 0.0})
    metrics = last_losses(run)
    assert metrics == {"train/loss": 2.0, "train/d_loss": 0.5, "train/g_loss": 1.5}
    with write_report(run, "A title", "", metrics, steps=6, **ending) as report:
        report.add_metrics(metrics)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "note: After only 6 training steps the scores say nothing about the method."
    assert lines[-2] == "train/loss 2.000 · train/d_loss 0.500 · train/g_loss 1.500"
    assert "After only 6 training steps" in (run.path / "report.html").read_text()


def test_a_table_of_no_scores_says_so(run, ending, capsys):
    with write_report(run, "A title", "", {}, **ending) as report:
        report.add_metrics({})
    assert "There are no scores." in (run.path / "report.html").read_text()
    assert capsys.readouterr().out.splitlines()[-2] == "no scores"


def test_a_result_that_is_none_is_named(run):
    assert read_result_file(run.path) == {}
    (run.path / "result.json").write_text("")
    with pytest.raises(ValueError, match="result.json holds no result .*delete it"):
        read_result_file(run.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig(StartConfig):
    """The configuration of a run with encoders."""

    model: ContrastiveConfig = ContrastiveConfig()
    """Towers and objective."""


def test_options_of_mixtures_are_in_the_configuration_only_where_they_are_used(tmp_path):
    plain = AlignmentConfig(run_dir=tmp_path / "plain")
    mixed = AlignmentConfig(
        run_dir=tmp_path / "mixed", data=("a", "b"), input=DataOptions(data_weights=(2.0, 1.0), test_data="c")
    )
    stored = []
    for config in (plain, mixed):
        with start(config).run as run:
            stored.append(run.read_config())
            assert from_json(AlignmentConfig, stored[-1]) == config
    assert stored[0]["data"] == "shapes" and not {"data_weights", "test_data"} & set(stored[0]["input"])
    assert stored[1]["data"] == ["a", "b"] and stored[1]["input"]["data_weights"] == [2.0, 1.0]
