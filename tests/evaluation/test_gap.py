"""The modality gap reduced after training, against NumPy."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.evaluation import fit_gap_correction
from xmodal_jax.evaluation.gap import GAP_CORRECTIONS, CorrectionKind
from xmodal_jax.metrics import modality_gap
from xmodal_jax.metrics.retrieval import mixed_retrieval


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gap(a, b):
    return float(modality_gap(jnp.asarray(a), jnp.asarray(b)))


def make(n=200, dim=16, seed=0, modalities=("image", "text")):
    """Noisy pairs in cones of their own."""
    rng = np.random.default_rng(seed)
    cones = np.random.default_rng(7).normal(size=(3, dim))
    shared = rng.normal(size=(n, dim))
    noisy = lambda: shared + 0.3 * rng.normal(size=(n, dim))
    return {m: np.float32(unit(noisy() + 2 * cones[k])) for k, m in enumerate(modalities)}


def test_the_shift_of_two_modalities_is_that_of_liang():
    train, test = make(), make(seed=1)
    delta = train["image"].astype(np.float64).mean(0) - train["text"].astype(np.float64).mean(0)
    for strength in (0.4, 1.0):
        corrected = fit_gap_correction(train, strength=strength)(test)
        scale = strength / 2
        np.testing.assert_allclose(corrected["image"], unit(test["image"] - scale * delta), atol=1e-6)
        np.testing.assert_allclose(corrected["text"], unit(test["text"] + scale * delta), atol=1e-6)


def test_centring_subtracts_each_mean():
    names = ("image", "text", "audio")
    train, test = make(modalities=names), make(seed=1, modalities=names)
    corrected = fit_gap_correction(train, kind="center")(test)
    for name in names:
        expected = unit(test[name] - train[name].astype(np.float64).mean(0))
        np.testing.assert_allclose(corrected[name], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["shift", "center"])
def test_the_gap_closes_on_other_examples(kind):
    names = ("image", "text", "audio")
    train, test = make(modalities=names), make(seed=1, modalities=names)
    corrected = fit_gap_correction(train, kind=kind)(test)
    for other in ("text", "audio"):
        assert gap(corrected["image"], corrected[other]) < 0.3 * gap(test["image"], test[other])


def test_the_strength_goes_from_nothing_to_all():
    train = make()
    gaps = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        corrected = fit_gap_correction(train, strength=strength)(train)
        gaps.append(gap(*corrected.values()))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.15 * gaps[0]
    unchanged = fit_gap_correction(train, strength=0.0)(train)
    np.testing.assert_allclose(unchanged["image"], train["image"], atol=1e-6)


def test_missing_examples_do_not_count():
    train, rng = make(), np.random.default_rng(3)
    present = {"image": rng.random(200) < 0.6}
    spoiled = {m: x.copy() for m, x in train.items()}
    spoiled["image"][~present["image"]] = np.nan
    offsets = fit_gap_correction(spoiled, present, kind="center").offsets
    np.testing.assert_allclose(offsets["image"], train["image"][present["image"]].mean(0), atol=1e-6)
    np.testing.assert_allclose(offsets["text"], train["text"].mean(0), atol=1e-6)


def test_the_kinds_are_those_of_the_table():
    assert typing.get_args(CorrectionKind) == tuple(GAP_CORRECTIONS)


def test_mistakes():
    train = make()
    with pytest.raises(ValueError, match="must be finite, got inf"):
        fit_gap_correction(train, strength=np.inf)
    with pytest.raises(ValueError, match="no example has text"):
        fit_gap_correction(train, {"text": np.zeros(200, bool)})
    with pytest.raises(ValueError, match="fitted to image, text, not to audio"):
        fit_gap_correction(train)({"audio": train["text"]})


def test_a_mixed_gallery_is_where_the_gap_hurts():
    """Between modalities the search stays as good; among all vectors each finds its own modality first."""
    train, test = make(), make(seed=1)
    modalities, ids = np.repeat([0, 1], 200), np.tile(np.arange(200), 2)
    score = lambda x: mixed_retrieval(np.concatenate([x["image"], x["text"]]), modalities, ids)
    before, after = score(test), score(fit_gap_correction(train)(test))
    assert before["recall@1"] < 0.2 < 0.5 < after["recall@1"]
    assert before["other_modality@5"] < 0.2 < 0.4 < after["other_modality@5"] < 0.6
