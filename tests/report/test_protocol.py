"""Scores of several runs on several data sets as figures and tables."""

import numpy as np

from xmodal_jax.metrics.intervals import Interval
from xmodal_jax.report import figures
from xmodal_jax.report.page import Report
from xmodal_jax.report.protocol import (
    HEADLINE,
    add_scores,
    draw_intervals,
    flatten_scores,
    format_interval,
    format_scores,
)

NONE = Interval(0.07, float("nan"), float("nan"))
SCORES = {
    "first": {"image_to_text/recall@1": Interval(0.5, 0.4, 0.6), "image_zero_shot/calibration_error": NONE},
    "second": {
        "image_to_text/recall@1": Interval(0.7, 0.65, 0.9),
        "audio_linear_probe/accuracy": Interval(1, 1, 1),
    },
}


def test_tables_have_all_scores(tmp_path):
    report = Report("Scores", "")
    add_scores(report, {"stamps": SCORES, "digits": {"first": {}}})
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in ("0.500 (0.400 to 0.600)", "0.700 (0.650 to 0.900)", "0.070", "stamps: all scores", "digits"):
        assert text in page
    assert format_interval(None) == "" and format_interval(NONE) == "0.070"
    assert flatten_scores({"stamps": SCORES})["stamps/second/image_to_text/recall@1"] == 0.7


def test_printed_are_the_headline_or_all():
    lines = format_scores({"stamps": SCORES}, HEADLINE).splitlines()
    assert lines[0] == "stamps  first  image_to_text/recall@1  0.500 (0.400 to 0.600)" and len(lines) == 3
    other = {"d": {"r": {"audio_to_text/recall@1": Interval(0.1, 0, 0.2)}}}
    assert format_scores(other, HEADLINE) == "d  r  audio_to_text/recall@1  0.100 (0.000 to 0.200)"


def test_intervals_are_drawn_where_they_lie():
    fig = draw_intervals(SCORES)
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "image to text · recall@1", "audio linear probe · accuracy",
    ]  # fmt: skip
    (points, _, (bars,)) = ax.containers[1]
    np.testing.assert_allclose(points.get_xdata(), [0.7, 1.0])
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [0.65, 0.9])
    assert figures.score_intervals({"a": {}}).axes  # says that there is nothing
