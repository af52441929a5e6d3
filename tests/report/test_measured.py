"""Pictures and texts of measured quantities."""

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.standardise import FeatureStatistics, StandardiseTransform, fit_standardisation
from xmodal_jax.models.vae.modalities import Vocabulary
from xmodal_jax.models.vae.multimodal_models import MoPoEConfig
from xmodal_jax.report.alignment import content
from xmodal_jax.report.classification_figures import AttentionExample, attention
from xmodal_jax.report.figures import to_png
from xmodal_jax.report.latent import ExampleRenderer
from xmodal_jax.report.measured import _COLOURS, _MISSING, SPAN, draw_bars, draw_lines

is_colour = lambda picture, colour: (picture == colour).all(axis=-1)


def test_a_bar_reaches_as_far_as_its_value():
    values = np.array([SPAN, -SPAN, SPAN / 2, 0.0, 99.0])
    mask = np.array([True, True, True, True, True])
    picture = draw_bars(values, mask, height=61)
    assert picture.dtype == np.uint8 and picture.shape == (61, 30, 3)
    heights = is_colour(picture, _COLOURS[0])[:, ::6].sum(axis=0)  # the first column of each bar
    np.testing.assert_allclose(heights, [30, 30, 15, 0, 30], atol=1)
    rows = is_colour(picture, _COLOURS[0])
    assert rows[:30, 0].all() and not rows[31:, 0].any()  # up
    assert rows[31:, 6].all() and not rows[:30, 6].any()  # down


def test_what_is_missing_is_gray():
    picture = draw_bars(np.array([1.0, 2.0]), np.array([True, False]), height=61)
    gray = is_colour(picture, _MISSING)
    assert gray[:, 6:11].sum(axis=0).min() == 60 and not gray[:, :6].any()  # all but the line at 0


def test_thousands_of_features_fit():
    assert draw_bars(np.zeros(5000)).shape[1] == 5000


def test_a_line_passes_through_its_values():
    series = np.array([[SPAN, 0.0], [0.0, np.nan], [-SPAN, 0.0]])
    mask = np.array([[True, True], [True, False], [True, True]])
    picture = draw_lines(series, mask, height=61, width=101)
    first = is_colour(picture, _COLOURS[0])
    assert first[0, 0] and first[30, 50] and first[60, 100]
    assert first.any(axis=0).all()  # without gaps
    second = is_colour(picture, _COLOURS[1]).any(axis=0)
    assert second[5:20].all() and second[80:95].all() and not second[30:70].any()


def test_padding_takes_no_room():
    series, padded = np.random.default_rng(0).normal(size=(5, 2)), np.zeros((20, 2))
    padded[:5] = series
    np.testing.assert_array_equal(draw_lines(padded, np.arange(20) < 5), draw_lines(series))
    assert draw_lines(padded, np.zeros(20, bool)).shape == (80, 240, 3)


def test_a_gallery_shows_deviations():
    vector = np.random.default_rng(0).normal(5.0, 2.0, (50, 8))
    vector[3, 2] = np.nan
    series = np.ones((50, 6, 2)) + np.arange(6)[:, None]
    batch = {"vector": vector, "series": series}
    standardise = fit_standardisation(ArraySource(batch))
    shown = content(batch, "vector", 3, standardise=standardise)
    standard = standardise({"vector": vector[[3]]})
    np.testing.assert_array_equal(shown, draw_bars(standard["vector"][0], standard["vector_mask"][0]))
    assert content(batch, "series", 0, standardise=standardise).shape == (80, 240, 3)
    # Without statistics the largest value of the example reaches the edge.
    alone = content({"vector": np.array([[1.0, -2.0]])}, "vector", 0)
    np.testing.assert_array_equal(alone, draw_bars(np.array([SPAN / 2, -SPAN])))


def test_features_with_names_are_listed_in_their_units():
    named = FeatureStatistics((100.0, 50.0, 0.0), (10.0, 5.0, 1.0), ("glucose", "age", "flag"))
    standardise = StandardiseTransform({"vector": named})
    batch = {"vector": np.array([[129.0, 45.0, np.nan]])}
    expected = "glucose: 129 (+2.9 sd)\nage: 45 (-1.0 sd)\n1 missing"
    assert content(batch, "vector", 0, standardise=standardise) == expected
    renderer = ExampleRenderer(MoPoEConfig(), Vocabulary(), standardise)
    assert renderer.cell("vector", standardise(batch), 0) == expected


@pytest.mark.parametrize("shape", [(9,), (9, 3)])
def test_attention_to_them_is_drawn(shape):
    values = np.random.default_rng(0).normal(size=shape)
    name = "vector" if len(shape) == 1 else "series"
    figure = attention([AttentionExample("an example", {name: (values, np.array([0.2, 0.8]))})])
    assert to_png(figure).startswith(b"\x89PNG")
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["-3 sd", "mean", "+3 sd"]
    # The attention of a single token says nothing.
    [alone] = attention([AttentionExample("an example", {name: (values, np.array([1.0]))})]).axes
    is_attention = lambda patch: isinstance(patch, StepPatch)
    assert any(map(is_attention, axes.patches)) and not any(map(is_attention, alone.patches))
