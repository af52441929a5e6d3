"""Figures: they hold the numbers they were given, need no pyplot, and render for light and dark pages."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from xmodal_jax.report import figures


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def colours(fig):
    """Of what exists before the first drawing (ticks are made while drawing)."""
    texts = [text for ax in fig.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    patches = [p for ax in fig.axes for p in (*ax.spines.values(), *ax.patches, fig.patch)]
    return [to_hex(t.get_color()) for t in texts] + [
        to_hex(c) for p in patches for c in (p.get_facecolor(), p.get_edgecolor())
    ]


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_group_by_ending_and_average_over_seeds():
    rows = [
        {"step": 1, "train/loss": [1.0, 3.0], "note": "x"},
        {"step": 2, "train/loss": [2.0, 2.0], "validation/loss": 5.0, "train/norm": None},
        {"step": 3, "train/loss": [0.0, 7.0], "validation/loss": 4.0, "train/norm": 2.0},
    ]
    fig = figures.curves(rows, logy=["train/norm"])
    loss, norm = fig.axes
    np.testing.assert_allclose(lines(loss)["train"], [2.0, 2.0, 3.5])
    np.testing.assert_allclose(lines(loss)["validation"], [5.0, 4.0])
    np.testing.assert_allclose(lines(norm)["train"], [np.nan, 2.0])
    band = loss.collections[0].get_paths()[0].vertices
    spread = 3.5 * 2**0.5  # of 0 and 7, over n - 1
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [3.5 - spread, 3.5 + spread])
    assert norm.get_yscale() == "log" and loss.get_yscale() == "linear"
    assert figures.to_png(fig)[:4] == b"\x89PNG"


def test_the_legend_of_many_curves_hides_none():
    names = [f"validation/{a}_to_{b}/recall@1" for a in "abc" for b in "abc" if a != b]
    records = [{"step": s, **{n: 0.9 + 0.001 * k for k, n in enumerate(names)}} for s in (1, 2, 3)]
    figure = figures.curves(records, [names])
    figure.canvas.draw()
    axes = figure.axes[0]
    assert len(axes.get_legend().get_texts()) == len(names) == 6
    highest = max(axes.transData.transform(line.get_xydata())[:, 1].max() for line in axes.lines)
    assert highest < axes.get_legend().get_window_extent().y0


def test_a_small_matrix_shows_its_numbers():
    matrix = np.array([[0.25, 1.0], [np.nan, 0.5]])
    shown = lambda **options: [
        t.get_text() for t in figures.similarity_matrix(matrix, **options).axes[0].texts
    ]
    assert shown(numbers=True) == ["0.25", "1.00", "0.50"] and shown() == []


def test_smoothing_starts_at_the_first_value_and_leaves_evaluations_alone():
    rows = [{"step": k, "train/loss": v, "test/loss": v} for k, v in enumerate([4.0, 0.0, 2.0])]
    (ax,) = figures.curves(rows, smoothing=0.5).axes
    np.testing.assert_allclose(lines(ax)["train"], [4.0, 4 / 3, 12 / 7])  # weights 1; 1, 2; 1, 2, 4
    np.testing.assert_allclose(lines(ax)["test"], [4.0, 0.0, 2.0])


def test_curves_without_rows_still_draw():
    assert figures.to_png(figures.curves([]))
    assert len(figures.curves([{"step": 1, "a/b": 1.0}], ["missing/name", ("a/b",)]).axes) == 1


def test_pca_recovers_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(31, 2)) * [5.0, 2.0]
    basis, _ = np.linalg.qr(rng.normal(size=(7, 2)))
    points = figures.project_2d(plane @ basis.T + 3.0, method="pca")
    distance = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.testing.assert_allclose(distance(points), distance(plane), atol=1e-9)


def test_tsne_keeps_clusters_apart_and_repeats():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 11)
    label = np.repeat(np.arange(3), 17)
    embeddings = (centres[label] + 0.05 * rng.normal(size=(51, 11))).astype(np.float32)
    points = figures.project_2d(embeddings, seed=3)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (label[distance.argmin(1)] == label).all()
    np.testing.assert_array_equal(points, figures.project_2d(embeddings, seed=3))


@pytest.mark.parametrize("shape", [(1, 5), (3, 5), (7, 1)])
def test_projection_of_few_points_or_dimensions(shape):
    assert figures.project_2d(np.random.default_rng(0).normal(size=shape)).shape == (shape[0], 2)
    with pytest.raises(ValueError, match="tsne"):
        figures.project_2d(np.zeros(shape), method="umap")


def test_every_figure_renders_light_and_dark():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 11, 13, 3), np.uint8)
    made = [
        figures.similarity_matrix(
            rng.normal(size=(5, 7)), [f"caption {k} $x" for k in range(5)], list("abcdefg")
        ),
        figures.embedding_map(
            rng.normal(size=(14, 2)),
            list(range(7)) * 2,
            ["image"] * 7 + ["text"] * 7,
            pairs=np.array([[0, 7]]),
        ),
        figures.rank_histogram({"a": rng.integers(1, 98, 31), "b": rng.integers(1, 98, 29)}, 97),
        figures.confusion_matrix(rng.integers(0, 9, (3, 3)), ["a", "b", "c"]),
        figures.grouped_bars(
            {"x": {"a": {"p": 0.4, "q": 1.0}, "b": {"q": 0.0}}}, {"x": {"p": 0.5, "q": 0.1}}
        ),
        figures.spectrogram(rng.normal(size=(31, 11))),
        figures.spectrogram(
            {"a": rng.normal(size=(31, 11)), "b": rng.normal(size=(17, 11))}, frames_per_second=100.0
        ),
        figures.image_grid(images, columns=3, captions=["$a$ caption that runs on and on"] * 7, title="x"),
        figures.image_grid(images[..., :1]),
        figures.video_strip(images[None].repeat(2, 0), captions=["a", "b"], max_frames=5),
    ]
    for fig in made:
        before = colours(fig)
        light, dark = pixels(figures.to_png(fig, dpi=40)), pixels(figures.to_png(fig, dark=True, dpi=40))
        assert light.shape == dark.shape
        assert (light[0, 0] == 255).all() and (dark[0, 0] < 60).all()
        assert colours(fig) == before  # dark leaves no trace


def test_shares_and_chance_of_ranks():
    fig = figures.rank_histogram({"image to text": np.array([1, 1, 3, 60])}, 100)
    (ax,) = fig.axes
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.25, 0.0, 0.0, 0.25]
    chance = [segment[0, 1] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(chance, [0.01, 0.04, 0.05, 0.4, 0.5])
    with pytest.raises(ValueError, match="1..100"):
        figures.rank_histogram({"a": np.array([0, 3])}, 100)


def test_grouped_bars_stand_at_their_scores_above_their_chances():
    values = {"image": {"shape": 0.4, "size": 1.0}, "audio": {"size": 0.7}}
    fig = figures.grouped_bars({"title": values}, {"title": {"shape": 0.125, "size": 0.5}})
    (ax,) = fig.axes
    assert [bar.get_height() for bar in ax.patches] == [0.4, 1.0, 0.7]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    np.testing.assert_allclose(centres, [-0.2, 0.8, 1.2])  # groups around 0 and 1
    lines = [segment for lines in ax.collections for segment in lines.get_segments()]
    assert [line[0, 1] for line in lines] == [0.125, 0.5]
    assert all(
        low <= x <= high for x, (low, high) in zip((0, 1), (line[:, 0] for line in lines), strict=True)
    )


def test_palette_colours_and_wrong_lengths():
    fig = figures.embedding_map(np.eye(3)[:, :2], ["red", "blue", "red"], palette={"red": "#ff0000"})
    colours = [to_hex(c) for c in fig.axes[0].collections[0].get_facecolor()]
    assert colours[0] == colours[2] == "#ff0000" != colours[1]
    with pytest.raises(ValueError, match="3 points"):
        figures.embedding_map(np.eye(3)[:, :2], ["red"])
    with pytest.raises(ValueError, match="square"):
        figures.confusion_matrix(np.eye(3), ["a"])


def test_no_pyplot():
    code = "import sys; import xmodal_jax.report.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_legend_of_many_long_names_stays_within_its_panel():
    names = [
        f"validation/{a}_to_{b}/recall@1" for a in ("text", "text_es", "image", "audio") for b in "wxyz"[:3]
    ]
    records = [{"step": step, **dict.fromkeys(names, 0.1 * step)} for step in (1, 2)]
    fig = figures.curves(records, [names])
    ax = fig.axes[0]
    fig.canvas.draw()
    assert ax.get_legend().get_window_extent().width <= ax.get_window_extent().width
