"""The section on what a space reads in scenes shows each accuracy with its chance, and captions that wrongly win."""

import re
import zlib
from html import unescape

import numpy as np
import pytest

from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.evaluation.embeddings import Embedder
from xmodal_jax.evaluation.scene_factors import SceneTests
from xmodal_jax.report.alignment import other_scores
from xmodal_jax.report.page import Report
from xmodal_jax.report.scene_factors import EXAMPLES, TITLE, add_scene_factors

SOURCE = SpokenShapes("test", size=40, modalities=("text", "image"), image_size=16)


class Checksum(Embedder):
    """Embeds captions by their checksum, so that some changed captions win and others lose."""

    def __init__(self):
        pass

    def __call__(self, params, source):
        return {"image": np.eye(8)[np.arange(len(source)) % 8]}

    def embed_texts(self, params, captions):
        return np.eye(8)[[zlib.crc32(caption.encode()) % 8 for caption in captions]]


@pytest.fixture(scope="module")
def results():
    return SceneTests(SOURCE).results(Checksum(), None)


class NoFigures(Report):
    """A report that leaves out its figures, whose drawing takes most of the time."""

    def add_figure(self, title, fig, note=""):
        assert len(fig.axes) == 3  # a panel for each kind of test
        self.add_text(title, note)


def written(tmp_path, metrics, results):
    report = NoFigures("Title", "")
    add_scene_factors(report, metrics, results)
    report.write(tmp_path / "report.html")
    return re.sub("<wbr>|\u200b", "", unescape((tmp_path / "report.html").read_text()))


def test_each_accuracy_stands_beside_its_chance(results, tmp_path):
    metrics = results.scores()
    page = written(tmp_path, metrics, results)
    table = page.split(TITLE)[-1].split("<table")[1].split("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    values = {(kind, factor): (chance, value) for kind, factor, chance, value in rows}
    assert values["zero_shot", "place"] == ("0.111", f"{metrics['test/image_zero_shot_place']:.3f}")
    assert values["swapped", "all"] == ("0.500", f"{metrics['test/image_swapped']:.3f}")
    assert len(values) == len(rows) == len(metrics)
    assert other_scores(metrics | {"test/image_zero_shot_accuracy": 0.5}) == [
        ("test/image_zero_shot_accuracy", "0.500")
    ]


def test_examples_show_the_caption_that_wins_and_the_right_one(results, tmp_path):
    page = written(tmp_path, results.scores(), results)
    outcome = results.outcomes["image", "replaced", "colour"]
    row = int(np.argmax(outcome.similarity[:, 1] - outcome.similarity[:, 0]))
    assert outcome.similarity[row, 1] > outcome.similarity[row, 0]
    for index in outcome.test.captions[row]:
        assert results.tests.captions[index] in page
    assert page.count('<div class="query">') <= 3 * EXAMPLES


def test_several_seeds_are_averaged(results, tmp_path):
    metrics = {name: [value, value] for name, value in results.scores().items()}
    assert TITLE in written(tmp_path, metrics, results)


def test_other_data_sets_have_no_section(tmp_path):
    source = SpokenShapes("test", size=6, modalities=("image",))
    assert TITLE not in written(tmp_path, {}, SceneTests(source).results(Checksum(), None))
