"""Each score of a shared embedding space stands in the section that it belongs to."""

import re

import numpy as np
import pytest

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.embeddings import Gallery
from xmodal_jax.report.alignment import add_scores
from xmodal_jax.report.page import Report

RETRIEVAL = {
    f"{split}{direction}/{score}": value
    for split in ("", "compositions/")
    for direction in ("image_to_text", "text_to_image")
    for score, value in (("recall@1", 0.25), ("median_rank", 3.0), ("mean_rank", 3.5), ("mrr", 0.5))
}
OTHERS = {
    "test/image_zero_shot_accuracy": 0.75,
    "test/image_linear_probe_accuracy": 0.5,
    "test/gap_image_text": 1.2,
}


def gallery(count):
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    captions = np.array([f"picture {k}" for k in range(count)], object)
    return Gallery(ArraySource({"image": images, "caption": captions}), count)


@pytest.fixture
def page(tmp_path):
    report = Report("Title", "")
    names = add_scores(report, OTHERS | RETRIEVAL, {"test": gallery(8), "compositions": gallery(5)})
    report.write(tmp_path / "report.html")
    assert names == report.headline
    return (tmp_path / "report.html").read_text()


def section(page, title):
    [found] = re.findall(rf"<h2[^>]*>(?:(?!<h2).)*?{title}.*?</table>", page, flags=re.DOTALL)
    return found


def test_the_table_of_retrieval_has_retrieval_scores_alone(page):
    table = section(page, "Retrieval scores")
    assert all(name in table for name in ("recall@1", "median_rank", "mean_rank", "mrr", "image_to_text"))
    assert not any(name in table for name in ("zero_shot", "linear_probe", "gap_"))


def test_the_other_scores_have_a_table_of_their_own(page):
    table = section(page, "Classification and modality gap")
    assert all(name in table for name in OTHERS) and "recall" not in table


def test_the_chance_of_a_recall_is_that_of_its_own_gallery(page):
    """One of 8 in the test split, one of 5 in the other; an accuracy has none."""
    cards = page.split("Retrieval scores")[0]
    assert re.findall(r"chance ([0-9.]+)", cards) == ["0.125", "0.125", "0.200", "0.200"]
    assert "zero_shot_accuracy" in re.sub(r"<wbr>|&shy;|\u200b", "", cards)
