"""Reports of models written by hand: every picture and word in them is known."""

import base64
import html.parser
import io
import re
import wave

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.evaluation.painters import (
    CLASSES,
    CONFIG,
    FRAMES,
    IMAGES,
    MIXED,
    SIDE,
    explore,
    ignorant,
    of_the_first,
    source,
)
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.information_gain import InformationGains
from xmodal_jax.evaluation.latent import LatentResults, SourceLatents
from xmodal_jax.metrics.coherence import subsets
from xmodal_jax.models.vae.modalities import Vocabulary
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.report.latent import ExampleRenderer
from xmodal_jax.report.page import Audio, Report

GREY = [30, 90, 150, 210]
WORDS = ["", "end", "red", "green", "blue", "white", "black"]
NAMED = ("none", "one", "two", "three")


class Tables(html.parser.HTMLParser):
    """The tables of a page as rows of cells: text, or the data of what is shown."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.cell = [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""
        elif tag in ("img", "audio", "source") and self.cell is not None:
            self.cell += dict(attrs).get("src", "")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def tables(report):
    return Tables(report.html()).tables


def pixels(cell):
    kind, data = cell.split(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def opened(path, mode):
    with Image.open(path) as image:
        return np.asarray(image.convert(mode))


def size(path):
    with Image.open(path) as image:
        return image.size


def titles(report):
    return re.findall(r"<h2>(.*?)</h2>", report.html())


def decode(ids):
    return " ".join(WORDS[k] for k in ids if k)


SHOW = ExampleRenderer(CONFIG, Vocabulary(decode, NAMED))
BARE = ExampleRenderer(CONFIG, Vocabulary())


# Cells


def test_pictures_have_three_channels():
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (2, 5, 7, 1), np.uint8), rng.integers(0, 256, (2, 5, 7, 3), np.uint8)
    batch = {"image_grey": jnp.asarray(grey), "image": colour}
    np.testing.assert_array_equal(SHOW.cell("image_grey", batch, 1), np.repeat(grey[1], 3, axis=-1))
    np.testing.assert_array_equal(SHOW.cell("image", batch, 0), colour[0])


def test_spectrograms_have_low_bands_at_the_bottom():
    silence = np.log(CONFIG.audio.floor)
    frames = np.full((1, 6, 4), silence, np.float32)
    frames[0, 2, 0], frames[0, 5, 3], frames[0, 0, 1] = 3.0, 99.0, (silence + 3.0) / 2
    shown = SHOW.cell("audio", {"audio": frames}, 0)
    assert shown.shape == (4, 6, 3) and shown.dtype == np.uint8
    colour = lambda x: np.round(255 * np.array(matplotlib.colormaps["magma"](x)[:3]))
    np.testing.assert_array_equal(shown[3, 2], colour(1.0))  # the lowest band
    np.testing.assert_array_equal(shown[0, 5], colour(1.0))  # the highest, clipped
    np.testing.assert_array_equal(shown[2, 0], colour(np.float32(0.5)))
    rest = np.ones((4, 6), bool)
    rest[[3, 0, 2], [2, 5, 0]] = False
    np.testing.assert_array_equal(shown[rest], np.broadcast_to(colour(0.0), (21, 3)))


def test_texts_and_classes_are_words_or_numbers():
    batch = {
        "text": np.array([[3, 2, 1, 4], [5, 0, 0, 0]]),
        "text_mask": np.array([[True, True, True, False], [True, False, False, False]]),
        "label": np.array([2, -1]),
    }
    assert [SHOW.cell("text", batch, k) for k in (0, 1)] == ["green red end", "white"]
    assert [BARE.cell("text", batch, k) for k in (0, 1)] == ["3 2 1 0", "5 0 0 0"]
    assert [SHOW.cell("label", batch, k) for k in (0, 1)] == ["two", "-1"]
    assert [BARE.cell("label", batch, k) for k in (0, 1)] == ["2", "-1"]


def test_sounds_are_of_the_rows_asked():
    rng = np.random.default_rng(0)
    frames = rng.normal(-9.0, 1.0, (3, FRAMES, 5)).astype(np.float32)
    frames[1] = 9.0  # louder than a sample can be
    loud, quiet = SHOW.sounds("audio", {"audio": frames}, [1, 0])
    assert isinstance(loud, Audio) and loud.sample_rate == 1000
    assert loud.wave.shape == quiet.wave.shape and loud.wave.ndim == 1
    assert abs(loud.wave.size - FRAMES * 16) <= 32  # hops of 16
    assert np.abs(loud.wave).max() == 1.0 > np.abs(quiet.wave).max() > 0
    (again,) = SHOW.sounds("audio", {"audio": frames}, [0])
    np.testing.assert_allclose(again.wave, quiet.wave, atol=1e-5)


# Tables of the report


def translated(names, labels, folder, policy=None, count=3, show=SHOW, **how):
    explorer = explore(names, *([] if policy is None else [policy]))
    for name, value in how.items():
        setattr(explorer, name, value)
    report = Report("t")
    latent_report.add_translations(report, explorer, {}, source(names, labels), show, folder, count=count)
    return report


def test_any_modality_from_any_other(tmp_path):
    """Of each example what it is, what each modality alone tells of all, and what all tell."""
    labels = np.array([1, 0, 3, 0, 2])
    report = translated(MIXED, labels, tmp_path, of_the_first)
    assert titles(report) == ["Generation across modalities", "Sound"]
    table, heard = tables(report)
    assert table[0] == ["", *MIXED]
    rows = [f"from {m}" for m in MIXED] + ["from all"]
    assert [row[0] for row in table[1:]] == ["data", *rows] * 3
    for k, label in enumerate(labels[[0, 2, 4]]):
        for place, row in enumerate(table[1 + 6 * k : 7 + 6 * k]):
            said = label if place in (0, 1, 5) else 0  # the picture tells all, others nothing
            image, text, audio, name = row[1:]
            shown = pixels(image)
            assert shown.shape == (SIDE, SIDE, 3) and (shown == GREY[said]).all()
            assert text == decode([said + 2, said + 3, 1])
            expected = SHOW.cell("audio", {"audio": np.full((1, FRAMES, 5), -2.0 * said)}, 0)
            assert np.abs(pixels(audio).astype(int) - expected).max() <= 2  # float32 beside float64
            assert name == NAMED[said]
    assert "reconstructs what is observed" in report.html()
    assert heard[0] == ["", *rows] and [row[0] for row in heard[1:]] == [
        f"audio, example {k}" for k in range(3)
    ]
    for row in heard[1:]:
        for cell in row[1:]:
            kind, data = cell.split(";base64,")
            with wave.open(io.BytesIO(base64.b64decode(data))) as sound:
                assert kind == "data:audio/wav" and sound.getframerate() == 1000 and sound.getnframes() > 64
    # One column of pictures: the example and five rows for each of three.
    sheet = opened(tmp_path / "any_to_any.png", "RGB")
    assert sheet.shape == (18 * SIDE, SIDE, 3)
    said = np.concatenate([[k, k, 0, 0, 0, k] for k in labels[[0, 2, 4]]])
    np.testing.assert_array_equal(sheet[::SIDE, 0, 0], np.array(GREY)[said])


def test_the_picture_has_a_column_for_each_modality_of_pictures(tmp_path):
    report = translated(IMAGES, np.array([2, 1]), tmp_path, ignorant, count=2)
    assert titles(report) == ["Generation across modalities"]
    sheet = opened(tmp_path / "any_to_any.png", "L")
    assert sheet.shape == (2 * 5 * SIDE, 3 * SIDE)
    expected = np.full((10, 3), GREY[0])
    expected[0], expected[5] = GREY[2], GREY[1]
    np.testing.assert_array_equal(sheet[::SIDE, ::SIDE], expected)


def test_without_pictures_there_is_none(tmp_path):
    report = translated(("text", "label"), np.array([2, 1]), tmp_path, count=2, show=BARE)
    table = tables(report)[0]
    assert table[1] == ["data", "4 5 1 0 0", "2"] and table[4][0] == "from all"
    assert not list(tmp_path.iterdir())


def test_one_modality_and_one_example_asked_for_more(tmp_path):
    report = translated(("image",), np.array([3]), tmp_path, count=2)
    table = tables(report)[0]
    assert titles(report) == ["Reconstruction"]
    assert [row[0] for row in table] == ["", *["data", "from image"] * 2]
    assert size(tmp_path / "any_to_any.png") == (SIDE, 4 * SIDE)


def test_data_are_transformed_before_they_are_shown(tmp_path):
    """As a tokenizer does; what a device cannot hold is left behind."""
    labels = np.array([2, 1])
    data = source(("text", "label"), labels).arrays
    raw = ArraySource({"caption": np.array(["x", "y"], object), "label": labels})
    explorer = explore(("text", "label"))
    explorer.transform = lambda batch: {
        **batch, **{k: data[k][batch["index"]] for k in ("text", "text_mask")}
    }  # fmt: skip
    report = Report("t")
    latent_report.add_translations(report, explorer, {}, raw, SHOW, tmp_path, count=2)
    assert [row[1:] for row in tables(report)[0][1:5]] == [["blue white end", "two"]] * 4


@pytest.mark.parametrize("sides", [((8, 8), (12, 12)), ((8, 12), (8, 12)), ((6, 10), (12, 4))])
def test_pictures_of_any_sizes_are_on_one_sheet(tmp_path, sides):
    """Each in a field of the largest height and width."""
    names, labels = IMAGES[:2], np.array([1, 3])
    explorer = explore(names)
    shapes = dict(zip(names, sides, strict=True))
    small = explorer.vae.decode

    def paint(params, z, key):
        made = small(params, z, key)
        return {
            m: jnp.broadcast_to(x[..., :1, :1, :], (*x.shape[:2], *shapes[m], 1)) for m, x in made.items()
        }

    explorer.vae = explorer.vae._replace(decode=paint)
    arrays = {
        m: np.broadcast_to(np.array(GREY, np.uint8)[labels][:, None, None, None], (2, *shapes[m], 1)).copy()
        for m in names
    }
    data = ArraySource(arrays | {"label": labels})
    latent_report.add_translations(Report("t"), explorer, {}, data, SHOW, tmp_path, count=2)
    sheet = opened(tmp_path / "any_to_any.png", "L")
    height, width = (max(side[k] for side in sides) for k in (0, 1))
    assert sheet.shape == (2 * 4 * height, 2 * width)
    for row in range(8):
        for column, (h, w) in enumerate(sides):
            field = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width]
            assert (field == GREY[labels[row // 4]]).sum() == h * w and (
                field == 0
            ).sum() == height * width - h * w


def test_joint_draws_show_all_modalities_of_one_code():
    names = ("image", "text", "label")
    explorer, report = explore(names), Report("t")
    unfold = explorer.vae.decoder_latents
    explorer.vae = explorer.vae._replace(
        decoder_latents=lambda params, shared, key: unfold(params, shared, None)
    )
    draws = {
        "prior": np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        "flow": np.array([[1.0, 1.0]]),  # fewer than asked for
    }
    latent_report.add_samples(report, explorer, {}, draws, SHOW, count=2)
    assert titles(report) == ["Samples"]
    (table,) = tables(report)
    assert table[0] == ["drawn from", *names] and [row[0] for row in table[1:]] == ["prior", "prior", "flow"]
    assert [(pixels(row[1])[0, 0, 0], *row[2:]) for row in table[1:]] == [
        (GREY[2], "blue white end", "two"), (GREY[0], "red green end", "one"), (GREY[1], "green blue end", "two"),
    ]  # fmt: skip
    assert "should agree with each other" in report.html()


def test_traversals_move_the_dimensions_that_vary_most(tmp_path):
    """Dimension 1 varies most and is added to the last modality alone; dimension 0 is the class of all."""
    codes = np.array([[1.0, 2.0], [1.2, 0.0], [0.8, 1.0]], np.float32)
    before, names = codes.copy(), ("text", "image")
    explorer, report = explore(names), Report("t")
    latent_report.add_traversals(report, explorer, {}, codes, SHOW, tmp_path, steps=5)
    np.testing.assert_array_equal(codes, before)
    assert titles(report) == ["Traversals (image)"]
    (table,) = tables(report)
    assert table[0] == ["", "-2.5 sd", "-1.2 sd", "+0.0 sd", "+1.2 sd", "+2.5 sd"]
    assert [row[0] for row in table[1:]] == ["dimension 1", "dimension 0"]
    moved = np.linspace(-2.5, 2.5, 5)
    deviation = np.sqrt([2 / 75, 2 / 3])
    classes = np.stack([1.0 + 1.0 + moved * deviation[1], 1.0 + moved * deviation[0] + 2.0])
    grey = np.clip(30 + 60 * classes, 0, 255)
    sheet = opened(tmp_path / "traversals.png", "L").astype(float)
    assert sheet.shape == (2 * SIDE, 5 * SIDE)
    np.testing.assert_allclose(sheet[::SIDE, ::SIDE], grey, atol=0.51)
    shown = np.array([[pixels(cell)[0, 0, 0] for cell in row[1:]] for row in table[1:]])
    np.testing.assert_array_equal(shown, sheet[::SIDE, ::SIDE])


def test_traversals_without_pictures_and_of_one_code(tmp_path):
    explorer, report = explore(("text", "label")), Report("t")
    latent_report.add_traversals(report, explorer, {}, np.array([[1.0, 0.0]]), SHOW, tmp_path, steps=2)
    (table,) = tables(report)
    assert titles(report) == ["Traversals (text)"] and not list(tmp_path.iterdir())
    assert sorted(row[0] for row in table[1:]) == ["dimension 0", "dimension 1"]
    assert [row[1:] for row in table[1:]] == [["green blue end"] * 2] * 2  # nothing varies


def test_no_more_than_eight_dimensions_are_traversed(tmp_path):
    codes = np.random.default_rng(0).normal(size=(50, 11)) * np.arange(1, 12)
    report = Report("t")
    latent_report.add_traversals(report, explore(IMAGES), {}, codes, SHOW, tmp_path, steps=3)
    assert len(tables(report)[0]) == 1 + 8
    assert size(tmp_path / "traversals.png") == (3 * SIDE, 8 * SIDE)


# Scores and figures


def test_scores_have_a_table_for_each_group():
    metrics = {
        "cross/coherence": 0.5, "cross/coherence@1": 0.25, "joint_prior/judge_frechet_distance": 3.0,
        "joint_flow/judge_frechet_distance": 2.0,
        "likelihood/joint": -70.0, "reconstruction_image/mse": 0.125, "latent/probe": [0.5, 0.7],
        "judge/image": 0.99,
    }  # fmt: skip
    report = Report("t")
    latent_report.add_metric_tables(
        report, metrics, ["cross/coherence", "latent/probe"], {"cross/coherence": 0.1}
    )
    assert titles(report) == [
        "Headline", "Generation across modalities", "Generation from the latent space", "Likelihood (nats)",
        "Reconstruction", "Latent probes",
        "Judges on real data",
    ]  # fmt: skip
    found = tables(report)
    assert found[1] == [["", "coherence", "coherence@1"], ["cross", "0.5", "0.25"]] or found[1][0][1:] == [
        "coherence", "coherence@1",
    ]  # fmt: skip
    assert [row[0] for row in found[2][1:]] == ["joint_prior", "joint_flow"]
    assert report.html().count('class="card"') == 2 and "chance 0.1" in report.html()
    few = Report("t")
    latent_report.add_metric_tables(few, {"likelihood/test": -1.0}, [])
    assert titles(few) == ["Headline", "Likelihood (nats)"] and 'class="card"' not in few.html()


def test_pairs_of_modalities_are_sorted_by_how_often_the_class_is_right():
    metrics = {
        "cross/coherence@1": 0.5,
        "cross/image_to_text/coherence": [0.8, 0.9],
        "cross/text_to_image/coherence": 0.95,
        "cross/text_to_audio/coherence": 0.25,
        "cross/audio_to_text/coherence": 0.11,
        "cross/image_to_audio/coherence": 0.4,
    }
    report = Report("t")
    latent_report.add_pair_table(report, metrics, chance=0.125)
    assert tables(report) == [
        [
            ["the class is", "pairs"],
            ["right in most cases", "text to image 0.95, image to text 0.85"],
            ["wrong in most cases", "image to audio 0.40, text to audio 0.25"],
            ["about as often right as by chance", "audio to text 0.11"],
        ]
    ]
    alone = Report("t")
    latent_report.add_pair_table(alone, {"cross/coherence@1": 0.5}, chance=0.1)
    assert titles(alone) == []


def drawn(monkeypatch):
    """What figures are made of, in place of drawing it."""
    calls = []

    def embedding_map(points, labels, kinds=None, **how):
        calls.append((points, list(labels), kinds, how))
        return figures.curves([])

    monkeypatch.setattr(figures, "project_2d", lambda x: np.asarray(x)[:, :2])
    monkeypatch.setattr(figures, "embedding_map", embedding_map)
    return calls


def test_a_map_shows_codes_of_all_and_of_each(monkeypatch):
    calls = drawn(monkeypatch)
    rng = np.random.default_rng(0)
    mean, unimodal = rng.normal(size=(40, 3)), rng.normal(size=(40, 3, 3))
    codes = SourceLatents(mean=mean, unimodal=unimodal, samples=mean)
    labels = np.arange(40) % CLASSES
    labels[1] = -1
    report = Report("t")
    latent_report.add_map(report, explore(IMAGES), codes, labels, NAMED, limit=30)
    assert titles(report) == ["Latent space"] and "t-SNE" in report.html()
    (points, names, kinds, how), (alone, each, of, how_each) = calls
    np.testing.assert_array_equal(points, codes.mean[:30, :2])
    assert names == [NAMED[k] if k >= 0 else "unknown" for k in labels[:30]] and kinds is None
    assert how == {"title": "all modalities"} and how_each == {"title": "each modality alone"}
    np.testing.assert_array_equal(alone, np.concatenate([codes.unimodal[:10, k, :2] for k in range(3)]))
    assert each == names[:10] * 3 and list(of) == [m for m in IMAGES for _ in range(10)]
    latent_report.add_map(report, explore(IMAGES), codes, labels, None)
    assert calls[2][1] == [str(k) if k >= 0 else "unknown" for k in labels]


@pytest.mark.parametrize("count", [1, 3, 17])
def test_a_map_of_few_examples_is_drawn(count):
    rng = np.random.default_rng(0)
    mean, unimodal = rng.normal(size=(count, 3)), rng.normal(size=(count, 2, 3))
    codes = SourceLatents(mean=mean, unimodal=unimodal, samples=mean)
    report = Report("t")
    latent_report.add_map(report, explore(IMAGES[:2]), codes, np.arange(count) % 2, NAMED)
    assert report.html().count("<figure>") == 2


def test_coherence_is_shown_by_subset():
    """Rows are what was given, columns what was made, and the colours are named as what they are."""
    explorer = explore(IMAGES)
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    classes = rng.integers(0, 3, (7, 3, 12))
    classes[2, 1] = labels
    fig = latent_report.coherence_figure(explorer, classes, labels)
    ax, bar = fig.axes
    shown = np.asarray(ax.images[0].get_array())
    # Classes are equally frequent, so that the mean over classes is the share.
    np.testing.assert_allclose(shown, (classes == labels).mean(axis=-1)[:6])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1", "2", "0 1", "0 2", "1 2"]
    np.testing.assert_array_equal(explorer.subsets, subsets(3)[:6])
    assert [t.get_text() for t in ax.get_xticklabels()] == list(IMAGES)
    assert (ax.get_ylabel(), ax.get_xlabel(), bar.get_ylabel()) == ("observed", "generated", "accuracy")
    assert (
        figures.similarity_matrix(np.eye(2)).axes[1].get_ylabel() == "similarity"
    )  # unless something is said
    report = Report("t")
    report.add_figure("Coherence", fig)
    assert report.html().count("data:image/png") == 2  # light and dark


def latent_results(**changes):
    empty = np.zeros((0, 1))
    return LatentResults({}, empty, empty, None, {}, **changes)


def test_what_to_acquire_next_is_shown_with_its_numbers():
    """A row for each observed subset, a column for each modality; blank where it is observed."""
    observed = np.array([[False, False], [True, False], [False, True]])
    expected = np.array([[[0.5, 1.5], [np.nan, 2.0], [0.25, np.nan]]] * 4)
    gains = InformationGains(expected, 2 * expected, observed, ("image_0", "text"))
    report = Report("t")
    latent_report.add_information_gain(report, explore(IMAGES), latent_results(gains=gains, wants_gains=True))
    assert titles(report) == ["Which modality to acquire next", "Expected and realised gain"]
    assert report.html().count("<figure>") == 2
    fig = figures.gain_matrix(expected[0], gains.subset_names(), ["0", "text"])
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.texts] == ["0.5", "1.5", "2", "0.25"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["nothing", "image_0", "text"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("observed", "acquired next")


def test_a_model_that_has_no_information_gain_says_so_where_it_was_wanted():
    for wanted in (True, False):
        report = Report("t")
        latent_report.add_information_gain(report, explore(IMAGES), latent_results(wants_gains=wanted))
        assert ("posterior is not known" in report.html()) is wanted
        assert titles(report) == ["Which modality to acquire next"] * wanted


def test_parameters_reach_the_model(tmp_path):
    """What is shown depends on them."""
    explorer = explore(("image", "label"))
    infer, decode = explorer.vae.infer, explorer.vae.decode
    unfold = explorer.vae.decoder_latents
    add = lambda p, z: z.at[..., 0].add(p["shift"])
    explorer.vae = explorer.vae._replace(
        infer=lambda p, *a, **options: jax.tree.map(lambda x: x + 0 * p["shift"], infer(p, *a, **options)),
        decode=lambda p, z, key: decode(p, add(p, z), key),
        decoder_latents=lambda p, shared, key: unfold(p, shared, None) + 0 * p["shift"],
    )
    data, params = source(("image", "label"), np.array([0])), {"shift": jnp.ones(())}
    report = Report("t")
    latent_report.add_translations(report, explorer, params, data, SHOW, tmp_path, count=1)
    latent_report.add_samples(report, explorer, params, {"prior": np.zeros((1, 2))}, SHOW)
    latent_report.add_traversals(report, explorer, params, np.zeros((1, 2)), SHOW, tmp_path, steps=2)
    translations, draws, traversals = tables(report)
    assert [row[2] for row in translations[1:]] == ["none", "one", "one", "one"]
    assert draws[1][2] == "one" and pixels(traversals[1][1])[0, 0, 0] == GREY[1]
