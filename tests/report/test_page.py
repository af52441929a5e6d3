"""The report: one file that needs nothing else, shows everything it was given, and trusts no caption."""

import base64
import hashlib
import html.parser
import io
import os
import re
import wave

import numpy as np
import pytest
from PIL import Image

from xmodal_jax.report import figures
from xmodal_jax.report.page import Audio, Hit, Item, Report

EVIL = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "img", "br", "source", "wbr"}


class Balanced(html.parser.HTMLParser):
    """Checks that every tag closes the one it should; keeps the text, the tags and the attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def picture(seed=0, shape=(7, 11, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def page():
    report = Report(f"Retrieval {EVIL}", EVIL)
    metrics = {f"{d}/recall@{k}": [0.25, 0.75] for d in ("image_to_text", EVIL) for k in (1, 5)}
    report.add_metrics(
        metrics | {"test/judge_frechet_distance": 12.345},
        headline=["image_to_text/recall@1"],
        chance={EVIL: 1.0},
    )
    report.add_text("Notes", f"first {EVIL}\n\nsecond\nline")
    report.add_table(
        "Captions", ["image", EVIL, "n"], [[picture(), EVIL, 3], [Item(picture(), EVIL), "b", 0.5]]
    )
    report.add_figure("Curves", figures.curves([{"step": 1, "train/loss": 1.0}]), EVIL)
    report.add_images("Images", picture(shape=(3, 7, 11, 1)), [EVIL], columns=2, note=EVIL)
    report.add_videos("Videos", picture(shape=(2, 5, 7, 11, 3)), [EVIL, "b"])
    report.add_audio("Audio", np.arange(-50, 51, dtype=np.int16), 8000, EVIL)
    hits = [
        Hit(picture(), True, 0.875),
        Hit(EVIL, False, -0.5, EVIL),
        Hit(Audio(np.zeros(31), 8000), False, 0.1),
    ]
    report.add_gallery(
        EVIL, [EVIL, Item(picture(), EVIL), Audio(np.zeros(31), 8000)], [hits, hits[1:], []], note=EVIL
    )
    report.add_config({"optimizer": {"learning_rate": 0.5}, "data": EVIL, "empty": {}})
    report.add_timing({"compile": 1.5, "train": 75.0, "data_wait": None, "total": 3725.0})
    return report.html()


def test_tags_balance_and_nothing_is_injected(page):
    parsed = Balanced(page)
    assert "script" not in parsed.tags
    text = "".join(parsed.text)
    assert text.count(EVIL) >= 12
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_self_contained(page):
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert not re.search(r"url\(", page)
    for name, value in Balanced(page).attributes:
        if name in ("src", "srcset", "data"):
            assert value.startswith("data:")
        if name == "href":
            assert value.startswith("#") and f'id="{value[1:]}"' in page
    assert "prefers-color-scheme:dark" in page.replace(" ", "")


def test_policy_allows_the_page_itself_and_nothing_else(page):
    """No script at all, and the one style by its hash: no other could be injected."""
    [policy] = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    [style] = re.findall("<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert allowed["style-src"] == f"'sha256-{digest}'" and "unsafe" not in policy
    assert allowed["default-src"] == allowed["script-src"] == allowed["base-uri"] == "'none'"
    assert allowed["img-src"] == allowed["media-src"] == "data:" and allowed["form-action"] == "'none'"
    assert not [name for name, _ in Balanced(page).attributes if name == "style"]  # the policy ignores them
    assert ".columns-2{grid-template-columns:repeat(2," in style and 'class="tiles columns-2"' in page
    assert '<rect width="50.0%"' in page  # the bar of a recall of 0.5


def test_everything_is_shown(page):
    text = " ".join(Balanced(page).text)
    for expected in (
        "recall@1",
        "recall@5",
        "judge_frechet_distance",
        "12.35",
        "0.500 ± 0.354",
        "image_to_text",
        "1 min 15 s",
        "1 h 02 min",
    ):
        assert expected in text
    for expected in (
        "optimizer.learning_rate",
        "✓ 1",
        "✗ 2",
        "0.88",
        "-0.50",
        "no correct result in the first 2",
    ):
        assert expected in text
    assert "data_wait" not in text
    assert page.count('class="hit right"') == 1 and page.count('class="hit wrong"') == 4


def media(page, kind):
    return [base64.b64decode(data) for data in re.findall(rf'src="data:{kind};base64,([^"]+)"', page)]


def test_small_pictures_keep_their_size_and_pixels():
    report = Report("x")
    report.add_images("Images", [picture(1), picture(2, (5, 3, 1))])
    colour, grey = (np.asarray(Image.open(io.BytesIO(data))) for data in media(report.html(), "image/png"))
    np.testing.assert_array_equal(colour, picture(1))
    np.testing.assert_array_equal(grey, picture(2, (5, 3, 1))[..., 0])


def test_videos_move():
    report = Report("x")
    report.add_videos("Videos", picture(shape=(1, 5, 7, 11, 3)))
    (data,) = media(report.html(), "image/png")
    assert Image.open(io.BytesIO(data)).n_frames == 5


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_sound_round_trip(dtype):
    samples = np.array([0, 16384, -16384, 32767, -32767], np.int16)
    report = Report("x")
    report.add_audio("Sound", samples if dtype == np.int16 else (samples / 32767).astype(dtype), 16000)
    (data,) = media(report.html(), "audio/wav")
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        np.testing.assert_array_equal(np.frombuffer(file.readframes(99), "<i2"), samples)


def test_one_title_is_one_section():
    report = Report("x")
    for text in ("a", "b"):
        report.add_text("Notes", text)
    assert report.html().count("<details") == 1


def test_long_names_break_between_words():
    """Below a picture there is little width; what is written between tags is the name all the same."""
    name = "train/food_fruit</b>_cartoon__x.png"
    report = Report("A title", "")
    report.add_gallery("Found", [Item(picture(), name)], [[]])
    page = report.html()
    assert "train/<wbr>food_<wbr>fruit&lt;/<wbr>b&gt;_<wbr>cartoon__<wbr>x.png</figcaption>" in page
    assert name in "".join(Balanced(page).text)


def test_rank_beyond_the_row():
    report = Report("x")
    report.add_gallery("Text to image", ["query"], [[Hit("a", False, 0.5)]], ranks=[17])
    assert "first correct result: rank 17" in report.html()


def test_atomic_write(tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.html"
    assert Report("old").write(path) == path
    before = path.read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Report("new").write(path)
    assert path.read_text() == before and len(list(path.parent.iterdir())) == 1


def test_errors_say_what_was_expected():
    report = Report("x")
    with pytest.raises(KeyError, match="test/accuracy"):
        report.add_metrics({"test/accuracy": 1.0}, headline=["accuracy"])
    with pytest.raises(ValueError, match="2 columns"):
        report.add_table("t", ["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="uint8"):
        report.add_images("t", [np.zeros((5, 7, 3))])
    with pytest.raises(ValueError, match="int16"):
        report.add_audio("t", np.zeros(5, np.int64), 8000)
    with pytest.raises(ValueError, match="1 queries"):
        report.add_gallery("t", ["a"], [])


def test_empty_cells_take_no_width():
    """Columns of words have a least width; a table with few values in each row would not fit the page."""
    report = Report("A title", "")
    report.add_table("Scores", ["metric", "a", "b"], [["first", 0.5, ""], ["second", "", "word"]])
    page = report.html()
    assert page.count('<td class="number" dir="auto"></td>') == 2 and 'class="words" dir="auto">word<' in page
