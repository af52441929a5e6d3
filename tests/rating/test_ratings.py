"""A page that tells nobody who made what, and what its answers say."""

import base64
import hashlib
import html.parser
import importlib.util
import io
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xmodal_jax import rating
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.rating import answers
from xmodal_jax.train.command_line import parse

SOURCES = ("model-a", "model-b", "model-c")  # "-" is not in base64, which might hold any word
EVIL = "</script><script>alert('x')</script> & \"quoted\" <!-- @@DATA@@"
HEADER = "trial,left,right,choice,seconds,rater"


def picture(seed, shape=(7, 11, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def make_items(count=5):
    return [
        rating.RatingItem(f"{EVIL} {k}", {s: picture(10 * k + n) for n, s in enumerate(SOURCES)})
        for k in range(count)
    ]


def write(path, mode="preference", seed=3, items=None):
    items = items or make_items()
    return rating.write_rating_page(path, items, mode=mode, title=f"Title {EVIL}", question=EVIL, seed=seed)


def data_of(page):
    return json.loads(re.search(r"^const data = (.*);$", page.read_text(), re.M)[1])


@pytest.fixture(scope="module", params=["preference", "rating"])
def made(request, tmp_path_factory):
    page, key = write(tmp_path_factory.mktemp("page") / "page.html", request.param)
    return request.param, page, json.loads(key.read_text())


class Inline(html.parser.HTMLParser):
    """The inline styles and scripts of a page, and the attributes that a strict policy ignores."""

    def __init__(self, page):
        super().__init__()
        self.contents, self.forbidden, self.policy, self._tag = {"style": [], "script": []}, [], "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self._tag, attrs = tag, dict(attrs)
        self.forbidden += [name for name in attrs if name == "style" or name.startswith("on")]
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]

    def handle_endtag(self, tag):
        self._tag = ""

    def handle_data(self, data):
        if self._tag in self.contents:
            self.contents[self._tag].append(data)


def test_policy_allows_the_page_itself_and_nothing_else(made):
    """By hash, so that not even a caption that broke out of its place could run."""
    inline = Inline(made[1].read_text())
    allowed = dict(part.strip().split(" ", 1) for part in inline.policy.split(";"))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["img-src"] == "data:" and "unsafe" not in inline.policy and not inline.forbidden
    for tag, (content,) in inline.contents.items():
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[f"{tag}-src"] == f"'sha256-{digest}'"


class Loads(html.parser.HTMLParser):
    """What a browser would fetch, and how many scripts it sees."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]


def test_page_loads_nothing_and_captions_stay_text(made):
    _, page, _ = made
    text = page.read_text()
    parsed = Loads(text)
    assert not parsed.addresses and parsed.tags.count("script") == 1 and "link" not in parsed.tags
    for word in ("http:", "https:", "url(", "@import", "fetch", "XMLHttp", "WebSocket", "connect-src"):
        assert word not in text
    assert "default-src 'none'" in text
    data = data_of(page)
    assert {trial["caption"] for trial in data["trials"]} == {item.caption for item in make_items()}
    assert data["title"] == f"Title {EVIL}" and data["question"] == EVIL


def test_page_tells_nobody_who_made_what(made):
    mode, page, key = made
    text, data = page.read_text(), data_of(page)
    assert not any(name in text for name in SOURCES)
    assert set(data) == {"page", "mode", "title", "question", "trials", "samples", "scales"}
    assert list(data["samples"]) == sorted(data["samples"])
    # The ids hold nothing, and the order of neither trials nor samples follows items or sources.
    for ids in (key["samples"], key["trials"], [key["page"]]):
        assert all(re.fullmatch("[b-df-hj-np-tv-z]{8}", name) for name in ids)
    made_by = [key["samples"][name]["source"] for name in data["samples"]]
    assert made_by != sorted(made_by)
    shown = [key["samples"][trial["left"]]["item"] for trial in data["trials"]]
    assert shown != sorted(shown)
    allowed = {"id", "caption", "left"} | ({"right"} if mode == "preference" else set())
    assert all(set(trial) == allowed for trial in data["trials"])


def test_key_says_what_the_page_shows(made):
    mode, page, key = made
    data, items = data_of(page), make_items()
    assert {t["id"]: (t["caption"], t["left"], t.get("right", "")) for t in data["trials"]} == {
        name: (t["caption"], t["left"], t["right"]) for name, t in key["trials"].items()
    }
    assert set(data["samples"]) == set(key["samples"]) and len(key["samples"]) == len(items) * len(SOURCES)
    for name, uri in data["samples"].items():
        kind, content = uri.split(",")
        assert kind == "data:image/png;base64"
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        known = key["samples"][name]
        np.testing.assert_array_equal(np.asarray(image), items[known["item"]].samples[known["source"]])
        assert not image.info  # no name, no software, no date
    found = sorted(
        (data["trials"][k]["caption"], *sorted(key["samples"][i]["source"] for i in sides))
        for k, sides in enumerate([t[s] for s in ("left", "right") if s in t] for t in data["trials"])
    )
    groups = itertools.combinations(SOURCES, 2) if mode == "preference" else [(s,) for s in SOURCES]
    assert found == sorted((item.caption, *group) for group in groups for item in items)


def test_sides_are_balanced_and_follow_the_seed(tmp_path):
    def sides(seed, name="page.html", items=None):
        page, key = write(tmp_path / name, seed=seed, items=items)
        key = json.loads(key.read_text())
        trials = data_of(page)["trials"]
        return [tuple(key["samples"][t[s]]["source"] for s in ("left", "right")) for t in trials], key

    first, key = sides(0)
    again, same = sides(0, "again.html")
    other, _ = sides(1, "other.html")
    assert first == again and key == same and first != other
    for pair in itertools.combinations(SOURCES, 2):
        assert abs(first.count(pair) - first.count(pair[::-1])) == 1  # of five
    # Another page has other ids, so that its answers are not taken for answers to this one.
    changed = make_items()
    changed[0] = changed[0]._replace(samples={s: picture(99 + k) for k, s in enumerate(SOURCES)})
    _, another = sides(0, "another.html", changed)
    assert not set(another["trials"]) & set(key["trials"]) and another["page"] != key["page"]


def test_left_is_as_likely_as_right(tmp_path):
    """The side of one item over many pages: no side belongs to a source."""
    items = [rating.RatingItem("a", {s: picture(k, (1, 1, 1)) for k, s in enumerate(SOURCES[:2])})]
    left = 0
    for seed in range(60):
        page, key = write(tmp_path / "page.html", seed=seed, items=items)
        key = json.loads(key.read_text())
        left += key["samples"][data_of(page)["trials"][0]["left"]]["source"] == SOURCES[0]
    assert scipy.stats.binomtest(left, 60).pvalue > 1e-3


FORMULAS = ['=HYPERLINK("//x")', "+1", "-1", "@SUM(A1)", "\uff1d1", "'=1", "''=1"]
PLAIN = ["Ada", "'Ada'", "O'Hara", "a=b", "7", "日本 ü", "1-2"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the script")
def test_names_are_no_formulas_in_a_spreadsheet(pages, tmp_path, made):
    """The script's own function writes them, and the reader gives them back."""
    function = re.search(r"^const plain = .*;$", made[1].read_text(), re.M)[0]
    names = [*FORMULAS, *PLAIN, "\tx", "\rx"]
    script = f"{function}\nconsole.log(JSON.stringify({json.dumps(names)}.map(plain)))"
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    written = json.loads(done.stdout)
    assert not [name for name in written if name[0] in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"]
    assert written[len(FORMULAS) : -2] == PLAIN and len(set(written)) == len(names)
    path, key = pages["preference"]
    lines = [line(key, next(iter(key["trials"])), "tie", n.replace('"', '""')) for n in written[:-2]]
    found = answers._read_answers([save(tmp_path / "names.csv", lines)], key, None)
    assert found.raters == sorted(names[:-2])


@pytest.mark.skipif(shutil.which("node") is None, reason="node reads the script")
def test_script_is_javascript(made, tmp_path):
    script = tmp_path / "page.js"
    script.write_text(re.search(r"<script>(.*)</script>", made[1].read_text(), re.S)[1])
    done = subprocess.run(["node", "--check", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_page_errors(tmp_path):
    good = {"model-a": picture(0), "model-b": picture(1)}
    for samples, message in (
        ({"model-a": picture(0)}, "needs 2 or more"),
        (good | {"model-b": picture(1, (7, 13, 3))}, "tell the sources apart"),
        ({s: x / 255.0 for s, x in good.items()}, "expected uint8 .* got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "page.html", items=[rating.RatingItem("a", samples)])
    with pytest.raises(ValueError, match="no items"):
        rating.write_rating_page(tmp_path / "page.html", [], title="", question="", seed=0)
    with pytest.raises(ValueError, match="name it page.html"):
        write(tmp_path / "page.txt")
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 41), st.integers(1, 41))
def test_wilson_is_scipys(successes, count):
    successes = min(successes, count)
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(rating.wilson_interval(float(successes), count), expected, atol=1e-12)


def test_wilson_solves_its_equation_between_whole_numbers():
    low, high = rating.wilson_interval(7.5, 23)
    z = scipy.stats.norm.ppf(0.975)
    for bound in (low, high):
        np.testing.assert_allclose((7.5 / 23 - bound) ** 2, z**2 * bound * (1 - bound) / 23, rtol=1e-9)
    assert low < 7.5 / 23 < high


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each mode: the path of its key, and the key."""
    folder, found = tmp_path_factory.mktemp("pages"), {}
    for mode in ("preference", "rating"):
        _, key = write(folder / f"{mode}.html", mode)
        found[mode] = key, json.loads(key.read_text())
    return found


def line(key, trial, choice, rater, seconds="1.50"):
    shown = key["trials"][trial]
    return f'{trial},{shown["left"]},{shown["right"]},{choice},{seconds},"{rater}"'


def save(path, lines):
    path.write_text("\r\n".join([HEADER, *lines]) + "\r\n", encoding="utf-8")
    return path


def source(key, trial, side):
    return key["samples"][key["trials"][trial][side]]["source"]


def test_preferences(pages, tmp_path):
    """Ada always prefers the later letter, Alan never minds: 5 wins and 5 ties of each pair, whoever stood where."""
    path, key = pages["preference"]
    better = lambda trial: max(("left", "right"), key=lambda side: source(key, trial, side))
    ada = save(
        tmp_path / "ada.csv", [line(key, t, better(t), 'Ada, "L."'.replace('"', '""')) for t in key["trials"]]
    )
    alan = save(tmp_path / "alan.csv", [line(key, t, "tie", " Alan") for t in key["trials"]])
    found = rating.preference_rates([ada, alan], path)
    assert [(p.first, p.second) for p in found.pairs] == list(itertools.combinations(SOURCES, 2))
    for p in found.pairs:
        assert (p.first_wins, p.second_wins, p.ties, p.raters) == (0, 5, 5, 2)
        assert p.rate == 0.25 and (p.low, p.high) == rating.wilson_interval(2.5, 10)
    assert (found.answers, found.raters, found.replaced) == (30, 2, 0)

    # Ada changes her mind on all trials with model-a, in a later file and twice: her last answers count.
    last = [t for t in key["trials"] if "model-a" in (source(key, t, "left"), source(key, t, "right"))]
    mind = [
        line(key, t, "left" if source(key, t, "left") == "model-a" else "right", 'Ada, ""L.""') for t in last
    ]
    changed = save(tmp_path / "mind.csv", [*(line(key, t, "tie", 'Ada, ""L.""') for t in last), *mind])
    found = rating.preference_rates([ada, alan, changed], path)
    assert (found.answers, found.raters, found.replaced) == (30, 2, 2 * len(last))
    assert [p.rate for p in found.pairs] == [0.75, 0.75, 0.25]
    only = rating.preference_rates([alan], path)
    assert {p.rate for p in only.pairs} == {0.5} and only.raters == 1


def test_mean_ratings_bootstrap_raters(pages, tmp_path):
    """Of three raters all 27 draws are as likely: the extremes (1/27 > 2.5%) are one rater thrice. Of four raters, the
    quantiles of all 256 draws."""
    path, key = pages["rating"]
    trials = [t for t in key["trials"] if source(key, t, "left") == "model-b"]
    marks = {"Ada": [5, 5, 4, 5], "Alan": [2, 1], "Grace": [3, 3, 4], "Kurt": [4, 2, 2, 2, 3]}
    files = {
        rater: save(
            tmp_path / f"{rater}.csv",
            [line(key, t, f"q{m}a{6 - m}", rater) for t, m in zip(trials, values, strict=False)],
        )
        for rater, values in marks.items()
    }
    three = [r for r in marks if r != "Kurt"]
    found = rating.mean_ratings([files[r] for r in three], path, seed=0)
    agreement, quality = found.sources  # in the order of the alphabet
    assert (quality.source, quality.scale, agreement.scale) == ("model-b", "quality", "agreement")
    assert (quality.low, quality.high) == (1.5, 4.75) and quality.answers == 9 and quality.raters == 3
    assert quality.mean == pytest.approx(32 / 9) and agreement.mean == pytest.approx(6 - 32 / 9)

    found = rating.mean_ratings(list(files.values()), path, seed=1).sources[1]
    draws = [sum((marks[r] for r in drawn), []) for drawn in itertools.product(marks, repeat=4)]
    means = [np.mean(drawn) for drawn in draws]
    for quantile, got in ((0.025, found.low), (0.975, found.high)):
        near = np.quantile(means, (quantile - 0.008, quantile + 0.008), method="inverted_cdf")
        assert near[0] - 1e-9 <= got <= near[1] + 1e-9
    assert found.low > 1.5 and found.high < 4.75

    one = rating.mean_ratings([files["Ada"]], path, seed=0).sources[1]
    assert (one.mean, one.low, one.high, one.raters) == (4.75, None, None, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda good, key: "zzzzzzzz," + good.split(",", 1)[1], "trial 'zzzzzzzz' is not in the key"),
        (lambda good, key: good.replace(",tie,", ",both,"), "left, right or tie, not 'both'"),
        (lambda good, key: good.replace("1.50", "soon"), "seconds are a number .* not 'soon'"),
        (lambda good, key: good.replace("1.50", "nan"), "seconds are a number .* not 'nan'"),
        (lambda good, key: good.replace('"Ada"', '" "'), "rater's name is empty"),
        (lambda good, key: good.rsplit(",", 1)[0], "expected 6 cells, found 5"),
        (lambda good, key: ",".join([good.split(",")[k] for k in (0, 2, 1, 3, 4, 5)]), "showed"),
        (lambda good, key: good.replace('"Ada"', '"Ada'), "not CSV: unexpected end of data"),
    ],
)
def test_bad_answers_name_file_and_line(pages, tmp_path, change, message):
    path, key = pages["preference"]
    good = [line(key, t, "tie", "Ada") for t in list(key["trials"])[:3]]
    file = save(tmp_path / "answers.csv", [*good[:2], change(good[2], key)])
    with pytest.raises(BadExampleError, match=rf"answers.csv:4: .*{message}"):
        rating.preference_rates([file], path)
    # In the middle: left out, it costs no other answer.
    file = save(tmp_path / "answers.csv", [good[0], change(good[2], key), good[1]])
    bad_examples = BadExamples("skip")
    assert rating.preference_rates([file], path, bad_examples=bad_examples).answers == 2
    assert [(bad.file, bad.line) for bad in bad_examples.items] == [(str(file), 3)]


def test_a_file_of_something_else_costs_no_other_answers(pages, tmp_path):
    path, key = pages["rating"]
    good = save(tmp_path / "good.csv", [line(key, t, "q1a5", "Ada") for t in key["trials"]])
    latin = tmp_path / "latin.csv"
    latin.write_bytes(good.read_bytes().replace(b"Ada", b"J\xfcrgen", 1))
    other = tmp_path / "other.csv"
    other.write_text("name,age\nAda,36\n")
    bad_examples = BadExamples("skip")
    found = rating.mean_ratings([other, latin, good], path, seed=0, bad_examples=bad_examples)
    assert found.answers == len(key["trials"])
    assert [(pathlib.Path(bad.file).name, bad.line) for bad in bad_examples.items] == [
        ("other.csv", 1),
        ("latin.csv", 2),
    ]
    with pytest.raises(ValueError, match=r"latin.csv:2: byte \d+ of the line is not UTF-8"):
        rating.mean_ratings([latin], path, seed=0)
    with pytest.raises(FileNotFoundError, match="nowhere.csv is not a file"):
        rating.mean_ratings([tmp_path / "nowhere.csv"], path, seed=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda key: key.update(mode="both"), "'mode' is 'both'"),
        (lambda key: key.update(trials=[]), "'trials' are not an object of objects"),
        (lambda key: next(iter(key["samples"].values())).pop("source"), "has no 'source'"),
        (lambda key: key["samples"].popitem(), "is none of its 'samples'"),
        (lambda key: next(iter(key["trials"].values())).update(left=["x"]), "is none of its 'samples'"),
    ],
)
def test_changed_keys_are_refused(pages, tmp_path, change, message):
    key = json.loads(pages["preference"][0].read_text())
    change(key)
    path = tmp_path / "x.key.json"
    path.write_text(json.dumps(key))
    with pytest.raises(ValueError, match=f"x.key.json is not a rating page's key: .*{message}"):
        rating.read_key(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="x.key.json is not a rating page's key"):
        rating.read_key(path)


def test_half_a_surrogate_pair_in_a_caption(tmp_path):
    """UTF-8 has no such character: the page and its key are written all the same, and say the same."""
    items = [item._replace(caption=f"\ud83d {item.caption}") for item in make_items(2)]
    page, key = write(tmp_path / "page.html", items=items)
    assert {t["caption"] for t in rating.read_key(key)["trials"].values()} == {i.caption for i in items}
    assert {t["caption"] for t in data_of(page)["trials"]} == {i.caption for i in items}


def test_files_that_are_no_answers(pages, tmp_path):
    (path, key), (rating_path, rating_key) = pages["preference"], pages["rating"]
    good = line(key, next(iter(key["trials"])), "tie", "Ada")
    file = tmp_path / "answers.csv"
    for text, message in (
        (good, "answers.csv:1: expected the columns trial,left"),
        ("", "answers.csv:1: .* found none"),
        (f"{HEADER}\n".replace(",", ";") + good, "answers.csv:1: expected the columns"),
        (f"{HEADER}\n", "no answers in"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            rating.preference_rates([file], path)
    file.write_text(f"\ufeff{HEADER}\n{good}\n\n", encoding="utf-8")  # as a spreadsheet program writes it
    assert rating.preference_rates([file], path).answers == 1
    save(file, [line(rating_key, next(iter(rating_key["trials"])), "q6a1", "Ada")])
    with pytest.raises(ValueError, match="answers.csv:2: .*q4a5, not 'q6a1'"):
        rating.mean_ratings([file], rating_path, seed=0)
    with pytest.raises(ValueError, match="mode 'rating': read its answers with mean_ratings"):
        rating.preference_rates([file], rating_path)
    for text in ("{", "[]", '{"mode": "preference"}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="answers.csv is not a rating page's key"):
            rating.preference_rates([file], file)


def folder(path, captions, size, start=0):
    path.mkdir()
    rows = []
    for k, caption in enumerate(captions):
        Image.fromarray(picture(start + k, size)).save(path / f"{k}.png")
        rows.append(json.dumps({"file_name": f"{k}.png", "text": caption}) + "\n")
    (path / "metadata.jsonl").write_text("".join(rows))
    return path


def test_folder_items(tmp_path):
    """Captions that both have, the n-th with the n-th; one size for all, here the smaller."""
    real = folder(tmp_path / "real", ["a", "b", "a", "only real"], (11, 11, 3))
    made = folder(tmp_path / "made", ["a", "a", "only made", "b", "a"], (7, 7, 3), start=50)
    sources = {"real": real, "made": made}
    items = rating.folder_items(sources, seed=0)
    assert [item.caption for item in items] == ["a", "a", "b"]
    for item, number in zip(items, (50, 51, 53), strict=True):
        np.testing.assert_array_equal(item.samples["made"], picture(number, (7, 7, 3)))
        assert item.samples["real"].shape == (7, 7, 3)
    larger = rating.folder_items(sources, seed=0, image_size=11)
    np.testing.assert_array_equal(larger[1].samples["real"], picture(2, (11, 11, 3)))
    assert larger[1].samples["made"].shape == (11, 11, 3)
    drawn = [rating.folder_items(sources, seed=seed, count=2) for seed in range(5)]
    assert {len(found) for found in drawn} == {2}
    assert len({found[0].samples["made"].tobytes() for found in drawn}) > 1
    by_name = rating.folder_items(sources, seed=0, match="file_name")
    assert [item.caption for item in by_name] == ["a", "b", "a", "only real"]
    np.testing.assert_array_equal(by_name[1].samples["made"], picture(51, (7, 7, 3)))

    other = folder(tmp_path / "other", ["c"], (7, 7, 3))
    with pytest.raises(ValueError, match="no captions are in all of real, other; match them by file name"):
        rating.folder_items({"real": real, "other": other}, seed=0)
    (other / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="0.png cannot be decoded"):
        rating.folder_items({"other": other}, seed=0)
    (other / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "c"}\n{"file_name": "1.png", "text": null}\n'
    )
    with pytest.raises(BadExampleError, match="metadata.jsonl:2: .* no text"):
        rating.folder_items({"other": other}, seed=0)
    (other / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="no metadata.jsonl"):
        rating.folder_items({"other": other}, seed=0)
    bad_examples = BadExamples("skip")
    with (real / "metadata.jsonl").open("a") as file:
        file.write("{\n")
    assert (
        len(rating.folder_items(sources, seed=0, bad_examples=bad_examples)) == 3 and len(bad_examples) == 1
    )
    (made / "0.png").write_bytes(b"no picture")
    bad_examples = BadExamples("skip")
    for options in ({}, {"image_size": 7}):
        items = rating.folder_items(sources, seed=0, bad_examples=bad_examples, **options)
        assert [item.caption for item in items] == ["a", "b"]
    assert len(bad_examples) == 2 and "0.png cannot be decoded" in bad_examples.items[1].reason


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "rate_script", pathlib.Path(__file__).parents[2] / "experiments" / "rate.py"
    )
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("mode", ["preference", "rating"])
def test_script_from_folders_to_rates(script, mode, tmp_path, capsys):
    real = folder(tmp_path / "real", ["a", "b", "c"], (7, 7, 3))
    made = folder(tmp_path / "made", ["c", "b", "a"], (7, 7, 3), start=50)
    cli = lambda *words: script.main(parse(script.Page | script.Rates, None, words))
    out = tmp_path / "page.html"
    cli(
        "page", "--sources", f"real={real}", f"made={made}", "--mode", mode, "--out", str(out), "--count", "2"
    )
    key = json.loads((tmp_path / "page.key.json").read_text())
    assert len(key["trials"]) == (2 if mode == "preference" else 4)
    choice = lambda t: "q4a2" if mode == "rating" else "left" if source(key, t, "left") == "real" else "right"
    lines = [line(key, t, choice(t), "Ada") for t in key["trials"]]
    answers = save(tmp_path / "ada.csv", [*lines, lines[0]])
    capsys.readouterr()
    cli("rates", str(answers), "--key", str(tmp_path / "page.key.json"))
    printed = capsys.readouterr().out
    assert printed.endswith(f"{len(lines)} answers of 1 raters\n") and "1 earlier answers" in printed
    result = json.loads((tmp_path / "page.result.json").read_text())
    assert (result["mode"], result["answers"], result["replaced"]) == (mode, len(lines), 1)
    if mode == "preference":
        [pair] = result["pairs"]
        assert (pair["first"], pair["second"], pair["rate"], pair["second_wins"]) == ("made", "real", 0.0, 2)
    else:
        means = {(s["source"], s["scale"]): s["mean"] for s in result["sources"]}
        assert means == {
            (s, n): m for s in ("real", "made") for n, m in (("quality", 4.0), ("agreement", 2.0))
        }


def test_script_says_what_is_wrong_with_the_sources(script, tmp_path):
    for sources in (("real",), ("=x",), ("a=x", "a=y"), ("a=x",)):
        with pytest.raises(ValueError, match="--sources"):
            script.Page(sources=sources)
