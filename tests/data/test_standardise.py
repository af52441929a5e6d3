"""Mean and standard deviation of measured quantities: statistics, the transform, its inverse, and missing values."""

import json

import numpy as np
import pytest

from xmodal_jax.data import standardise as module
from xmodal_jax.data.bad_examples import BadExampleError, BadExamples
from xmodal_jax.data.sources.arrays import ArraySource, load_npz
from xmodal_jax.data.standardise import (
    fit_standardisation,
    load_standardisation,
    moments_of,
    standardisation_from_json,
    value_mask,
)
from xmodal_jax.data.views import IncompleteSource, Subset


def make_table(n=211, seed=0):
    """Features of very different offsets and scales, one of them constant; a tenth of the values is missing."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=(n, 4)) * [1.0, 3.0, 0.0, 1e-4] + [0.0, 1e9, 7.0, -5.0]
    vector[rng.random((n, 4)) < 0.1] = np.nan
    return vector


def test_the_statistics_are_those_of_all_present_values(monkeypatch):
    """In chunks, and where the mean is a billion times the deviation, which one pass over squares would lose."""
    monkeypatch.setattr(module, "_CHUNK", 17)
    vector = make_table()
    fitted = fit_standardisation(ArraySource({"vector": vector})).statistics["vector"]
    exact = np.array(vector, np.longdouble)
    np.testing.assert_allclose(fitted.mean, np.float64(np.nanmean(exact, axis=0)), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(fitted.std, np.float64(np.nanstd(exact, axis=0)), rtol=1e-6)
    assert fitted.std[2] == 0.0 and fitted.constant.tolist() == [False, False, True, False]


def test_a_constant_that_no_float_holds_is_constant():
    values = np.full((1000, 1), 0.1)
    moments = moments_of(values[:300], np.ones((300, 1), bool))
    moments = moments.merge(moments_of(values[300:], np.ones((700, 1), bool)))
    assert module.FeatureStatistics.from_moments(moments).std == (0.0,)


def test_missing_examples_and_masked_steps_do_not_count():
    rng = np.random.default_rng(1)
    series, mask = rng.normal(3.0, 2.0, (50, 7, 2)), rng.random((50, 7)) < 0.6
    source = ArraySource({"series": series, "series_mask": mask, "label": np.arange(50)})
    pair = ArraySource({**source.arrays, "caption": np.array(["a"] * 50, object)})
    incomplete = IncompleteSource(pair, fraction=0.5, seed=0)
    present = incomplete.presence()["series"]
    fitted = fit_standardisation(incomplete).statistics["series"]
    kept = series[present][mask[present]]
    np.testing.assert_allclose(fitted.mean, kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted.std, kept.std(axis=0), rtol=1e-12)
    half = fit_standardisation(Subset(source, np.arange(25))).statistics["series"]
    np.testing.assert_allclose(half.mean, series[:25][mask[:25]].mean(axis=0), rtol=1e-12)


def test_the_transform_gives_mean_0_and_deviation_1_and_its_inverse_the_data():
    vector = make_table()
    source = ArraySource({"vector": vector})
    standardise = fit_standardisation(source)
    batch = standardise(source.batch(np.arange(len(source))))
    x, mask = batch["vector"], batch["vector_mask"]
    assert x.dtype == np.float32 and np.isfinite(x).all() and not x[:, 2].any()
    np.testing.assert_array_equal(mask, ~np.isnan(vector))
    assert not x[~mask].any()
    for k in (0, 1, 3):
        np.testing.assert_allclose([x[mask[:, k], k].mean(), x[mask[:, k], k].std()], [0.0, 1.0], atol=1e-5)
    restored = standardise.restore("vector", x)
    scale = np.array(standardise.statistics["vector"].std)
    assert (np.abs(restored - vector)[mask] <= np.broadcast_to(1e-6 * scale + 1e-15, mask.shape)[mask]).all()


def test_a_mask_of_steps_stays_one():
    series = np.ones((2, 3, 2))
    series[0, 0, 0] = series[1, 2] = np.nan
    standardise = fit_standardisation(ArraySource({"series": series}))
    values = standardise({"series": series})["series_mask"]
    np.testing.assert_array_equal(values, ~np.isnan(series))
    steps = standardise({"series": series, "series_mask": np.ones((2, 3), bool)})["series_mask"]
    np.testing.assert_array_equal(steps, [[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(value_mask({"series": series}, "series"), ~np.isnan(series))


def test_what_is_constant_is_noted_by_name():
    class Named(ArraySource):
        feature_names = {"vector": ("age", "height", "species")}

    notes = BadExamples()
    fit_standardisation(Named({"vector": np.array([[1.0, 2.0, 5.0], [3.0, 1.0, 5.0]])}), notes)
    note = "1 feature of 'vector' with one value, or none, in all training examples: 0 everywhere (species)"
    assert note in notes.summary()


def test_the_file_gives_the_same_transform(tmp_path):
    standardise = fit_standardisation(ArraySource({"vector": make_table(), "series": np.ones((211, 3, 2))}))
    standardise.save(tmp_path)
    assert load_standardisation(tmp_path).statistics == standardise.statistics
    in_metadata = json.loads(json.dumps(standardise.to_json()))
    assert standardisation_from_json(in_metadata).statistics == standardise.statistics


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"mean": [0.0], "std": [1.0, 2.0], "names": None}, "as many means as deviations"),
        ({"mean": [0.0], "std": [float("nan")], "names": None}, "all finite"),
        ({"mean": [0.0], "names": None}, "the statistics of 'vector' are damaged: KeyError"),
    ],
)
def test_damaged_statistics_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        standardisation_from_json({"vector": entry})


def test_other_features_are_refused():
    standardise = fit_standardisation(ArraySource({"vector": make_table()}))
    with pytest.raises(
        ValueError, match="'vector' has 3 features, the statistics of the training data are of 4"
    ):
        standardise({"vector": np.zeros((2, 3))})


def test_without_measured_quantities_there_is_nothing_to_fit():
    assert fit_standardisation(ArraySource({"image": np.zeros((3, 4, 4, 1), np.uint8)})) is None


# What an .npz file may hold


def test_npz_values_that_are_missing(tmp_path):
    vector = make_table(30)
    vector[4] = np.nan
    series = np.ones((30, 5, 2), np.float16)
    series[:, 3:] = np.nan
    np.savez(tmp_path / "a.npz", vector=vector, series_ecg=series, label=np.arange(30) % 2)
    source = load_npz(tmp_path / "a.npz", "all")
    assert source.modalities == ("vector", "series_ecg")
    np.testing.assert_array_equal(source.arrays["vector_mask"], ~np.isnan(vector))
    assert np.isfinite(source.arrays["vector"]).all() and source.arrays["vector"].dtype == np.float64
    assert source.arrays["series_ecg_mask"].tolist() == [[True] * 3 + [False] * 2] * 30
    assert source.arrays["series_ecg"].dtype == np.float32
    # An example without any value has no vector.
    np.testing.assert_array_equal(np.flatnonzero(~source.presence()["vector"]), [4])
    assert source.presence()["series_ecg"].all()


def test_single_values_of_a_step_can_be_missing(tmp_path):
    series = np.ones((10, 5, 2))
    series[2, 1, 0] = np.nan
    np.savez(tmp_path / "a.npz", series=series)
    mask = load_npz(tmp_path / "a.npz", "all").arrays["series_mask"]
    assert mask.shape == series.shape and mask.sum() == series.size - 1 and not mask[2, 1, 0]


def test_an_infinite_value_is_a_bad_example(tmp_path):
    vector = np.ones((10, 3), np.float32)
    vector[6, 1] = -np.inf
    np.savez(tmp_path / "a.npz", vector=vector)
    with pytest.raises(
        BadExampleError, match=r"a\.npz.*7: vector has a value that is infinite .*row 6, from 0"
    ):
        load_npz(tmp_path / "a.npz", "all")
    assert len(load_npz(tmp_path / "a.npz", "all", bad_examples=BadExamples("skip"))) == 9


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.array([["a", "b"]] * 4), r"'vector' is <U1 \[4, 2\]; expected numbers \[N,D\]"),
        (np.ones((4, 2, 2)), r"'vector' is float64 \[4, 2, 2\]; expected numbers \[N,D\]"),
    ],
)
def test_what_is_no_vector_is_refused(tmp_path, vector, message):
    np.savez(tmp_path / "a.npz", vector=vector)
    with pytest.raises(ValueError, match=message):
        load_npz(tmp_path / "a.npz", "all")


def test_integers_are_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", vector=np.arange(20).reshape(10, 2), vector_flags=np.eye(10, dtype=bool))
    source = load_npz(tmp_path / "a.npz", "all")
    batch = fit_standardisation(source)(source.arrays)
    for name in ("vector", "vector_flags"):
        np.testing.assert_allclose(batch[name].mean(axis=0), 0.0, atol=1e-6)
        np.testing.assert_allclose(batch[name].std(axis=0), 1.0, atol=1e-6)


def test_features_can_have_names(tmp_path):
    names = np.array(["age", "pulse"])
    arrays = dict(vector=np.ones((10, 2)), vector_blood=np.ones((10, 1)), vector_feature_names=names)
    np.savez(tmp_path / "a.npz", **arrays)
    source = load_npz(tmp_path / "a.npz", "train")
    assert source.feature_names == {"vector": ("age", "pulse")}
    assert fit_standardisation(source).statistics["vector"].names == ("age", "pulse")
    np.savez(tmp_path / "b.npz", **{**arrays, "vector_feature_names": names[:1]})
    with pytest.raises(ValueError, match=r"'vector_feature_names' is <U5 \[1\]; expected strings \[2\]"):
        load_npz(tmp_path / "b.npz", "train")
    np.savez(tmp_path / "c.npz", vector=np.ones((10, 2)), series_feature_names=names)
    with pytest.raises(ValueError, match="expected a field 'series' that it names the features of"):
        load_npz(tmp_path / "c.npz", "train")
