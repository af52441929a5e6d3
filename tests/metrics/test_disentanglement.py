import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from tests.oracles import latent as oracle
from xmodal_jax.metrics.disentanglement import _dc, dci, mutual_information_gap, sap

fast_dci = functools.partial(dci, seed=0, rounds=7)
ALL = {
    "mig": mutual_information_gap,
    "dci": fast_dci,
    "sap": functools.partial(sap, seed=0),
}


def make(count=1201, seed=0):
    """Independent factors of 2, 3 and 5 values (uneven, oddly numbered) and noise, [N, 3] and [N, 5]."""
    rng = np.random.default_rng(seed)
    factors = np.stack(
        [
            rng.choice([-1, 1], count, p=[0.3, 0.7]),
            rng.choice([0, 4, 9], count),
            rng.choice(5, count, p=[0.1, 0.3, 0.2, 0.2, 0.2]),
        ],
        axis=1,
    )
    return factors, rng.normal(size=(count, 5))


def split(count, seed=0, test_fraction=0.25):
    """The training and the test examples that `dci` and `sap` choose."""
    order = np.random.default_rng(seed).permutation(count)
    return order[(held_out := round(count * test_fraction)) :], order[:held_out]


@pytest.mark.parametrize("metric", [mutual_information_gap, fast_dci], ids=["mig", "dci"])
@pytest.mark.parametrize("spare", [0, 2])
def test_factors_themselves_are_perfect(metric, spare):
    """Also with codes of nothing beside them, and codes that turn and stretch the factors."""
    factors, noise = make()
    for scale in (1.0, np.array([-3.0, 0.1, 20.0])):
        codes = np.concatenate([scale * (factors + 0.01 * noise[:, :3]), noise[:, 3 : 3 + spare]], axis=1)
        assert np.min(metric(codes, factors)) > 0.93
        assert np.max(metric(codes, factors)) < 1.07


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_noise_has_nothing(metric):
    """Informativeness is the frequency of the most frequent values, about 0.7, 0.33 and 0.3."""
    factors, noise = make()
    value = metric(noise, factors)
    if metric is fast_dci:
        assert abs(value.informativeness - (0.7 + 1 / 3 + 0.3) / 3) < 0.06
        value = value[:2]
    assert np.max(np.abs(value)) < 0.12


def test_dci_tells_its_parts_apart():
    factors, noise = make()
    twice = np.concatenate([factors, factors], axis=1) + 0.3 * noise[:, [0, 1, 2, 3, 4, 0]]
    got = fast_dci(twice, factors)
    assert got.disentanglement > 0.85 > 0.75 > got.completeness
    # All factors in one code, as digits of a number; the other codes are noise.
    ranks = np.stack([np.unique(f, return_inverse=True)[1] for f in factors.T])
    digits = ranks[0] + 2 * ranks[1] + 6 * ranks[2]
    codes = np.stack([digits + 0.01 * noise[:, 0], *noise[:, 1:3].T], axis=1)
    got = dci(codes, factors, seed=0, rounds=50)
    assert got.completeness > 0.85 > 0.1 > got.disentanglement
    # One factor in one code, and nothing of the other two.
    one = np.stack([factors[:, 2] + 0.01 * noise[:, 0], *noise[:, 1:3].T], axis=1)
    assert fast_dci(one, factors).informativeness == pytest.approx((0.7 + 1 / 3 + 1) / 3, abs=0.06)


@given(st.integers(0, 999), st.integers(2, 7), st.integers(2, 5))
def test_disentanglement_and_completeness_of_importances(seed, codes, factors):
    rng = np.random.default_rng(seed)
    weights = rng.random((codes, factors)) * (rng.random((codes, factors)) < 0.6)
    weights[0] += 0.1
    if seed % 2:
        weights[-1] = 0.0  # a dead code
    weights /= weights.sum(axis=0, keepdims=True)
    of_code = weights.sum(1) / weights.sum()
    alive = of_code > 0
    expected = (
        np.sum(of_code[alive] * (1 - entropy(weights[alive], base=factors, axis=1))),
        np.mean(1 - entropy(weights, base=codes, axis=0)),
    )
    np.testing.assert_allclose(_dc(weights), expected, rtol=1e-9, atol=1e-12)


def test_codes_that_say_nothing():
    """Constant codes: no tree can split, no histogram has two bins, and every example is predicted to be the same."""
    factors, noise = make(331)
    constant = np.ones_like(noise)
    for value in (
        mutual_information_gap(constant, factors), sap(constant, factors, seed=0), fast_dci(constant, factors)[:2],
    ):  # fmt: skip
        np.testing.assert_allclose(value, 0.0, atol=1e-9)
    train, test = split(331)
    frequent = [np.mean(f[test] == max(set(f[train]), key=f[train].tolist().count)) for f in factors.T]
    assert fast_dci(constant, factors).informativeness == pytest.approx(np.mean(frequent))


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_rotations_count_against(metric):
    factors, noise = make()
    codes = (factors - factors.mean(0)) / factors.std(0) + 0.01 * noise[:, :3]
    turned = codes @ np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    assert np.all(np.array(metric(turned, factors)) < np.array(metric(codes, factors)))


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_the_order_of_codes_and_the_names_of_values_do_not_matter(metric):
    """With coarse codes, where trees find equal splits."""
    factors, noise = make(301)
    codes = np.round(factors[:, [0, 1, 2, 2]] + noise[:, :4], 1)
    value = metric(codes, factors)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        np.testing.assert_allclose(metric(codes[:, order], factors), value, rtol=1e-12)
    np.testing.assert_allclose(metric(codes, factors[:, [2, 0, 1]]), value, rtol=1e-12)
    np.testing.assert_allclose(metric(codes, 3 * factors + 7), value, rtol=1e-12)


@given(st.integers(0, 999), st.integers(2, 29), st.integers(13, 97))
def test_mig_is_that_of_histograms(seed, bins, count):
    factors, noise = make(count, seed)
    factors[:2] = [[-1, 0, 0], [1, 4, 1]]  # never one value only
    codes = factors[:, [0, 1, 2, 2]] + noise[:, :4]
    got = mutual_information_gap(codes, factors, bins=bins)
    assert got == pytest.approx(oracle.mutual_information_gap(codes, factors, bins), rel=1e-9, abs=1e-12)


def test_mig_is_that_of_scikit_learns_mutual_information():
    """As disentanglement_lib computes it, with 20 bins."""
    factors, noise = make()
    codes = factors[:, [0, 1, 2, 2]] + noise[:, :4]
    binned = [np.digitize(z, np.histogram(z, 20)[1][:-1]) for z in codes.T]
    information = np.array([[mutual_info_score(z, v) for v in factors.T] for z in binned])
    ordered = np.sort(information, axis=0)
    entropies = [mutual_info_score(v, v) for v in factors.T]
    expected = np.mean((ordered[-1] - ordered[-2]) / entropies)
    assert mutual_information_gap(codes, factors) == pytest.approx(expected, rel=1e-9)


def test_mig_by_hand():
    """One code is the factor, one its half: 1 of 2 bits is left."""
    factors = np.tile(np.arange(4), 3)[:, None]
    codes = np.stack([factors[:, 0], factors[:, 0] // 2], axis=1)
    assert mutual_information_gap(codes, factors, bins=4) == pytest.approx(0.5)
    constant = np.stack([factors[:, 0], np.ones(12)], axis=1)
    assert mutual_information_gap(constant, factors, bins=4) == pytest.approx(1.0)


def test_mig_of_codes_on_the_edges_of_bins():
    """Whole numbers from 0 to 8 in four bins: 2, 4 and 6 are the first of theirs."""
    factors, noise = make(97)
    codes = np.clip(np.round(factors[:, [1, 2]] + 2 * noise[:, :2]), 0, 8)
    codes[:2] = [[0], [8]]
    expected = oracle.mutual_information_gap(codes, factors, 4)
    assert mutual_information_gap(codes, factors, bins=4) == pytest.approx(expected, rel=1e-9)


def test_sap_and_dci_are_those_of_disentanglement_lib():
    """A binary, a ternary and a rare factor, each mixed into two codes."""
    rng = np.random.default_rng(3)
    factors = np.stack(
        [rng.integers(0, 2, 2000), rng.integers(0, 3, 2000), rng.random(2000) < 0.1], axis=1
    ).astype(int)
    mixing = np.array([[2.0, 0.3, 0.0], [0.0, 1.0, 0.8], [0.2, 0.0, 3.0], [1.0, 1.0, 0.0]])
    codes = factors @ mixing.T + 0.6 * rng.normal(size=(2000, 4))
    codes = codes[
        :, np.argsort(codes[0])
    ]  # the order in which trees see them, which decides between equal splits
    train, test = split(2000)
    parts = codes[train], factors[train], codes[test], factors[test]
    expected = oracle.sap(*parts)
    assert 0.1 < expected < 0.3
    assert sap(codes, factors, seed=0) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(dci(codes, factors, seed=0, rounds=5), oracle.dci(*parts, trees=5), rtol=1e-8)


def test_sap_by_hand():
    """The first code is the factor, with accuracy 1; the second is constant, and its accuracy a frequency."""
    factors = np.tile(np.arange(2), 300)[:, None]
    codes = np.stack([4.0 * factors[:, 0] - 2.0, np.ones(600)], axis=1)
    _, test = split(600)
    frequency = np.mean(factors[test])
    # A constant code predicts one value for all, whichever it is.
    assert abs(sap(codes, factors, seed=0) - 0.5) == pytest.approx(abs(frequency - 0.5))
    # The best two codes count: with two equal ones nothing is separated.
    assert sap(codes[:, [0, 0]], factors, seed=0) == 0.0


def test_the_seed_is_the_split():
    factors, noise = make(301)
    codes = factors + 0.7 * noise[:, :3]
    for metric in (sap, functools.partial(dci, rounds=3)):
        assert metric(codes, factors, seed=0) == metric(codes, factors, seed=0)
        assert metric(codes, factors, seed=0) != metric(codes, factors, seed=1)


@pytest.mark.parametrize("metric", ALL.values(), ids=ALL)
def test_refusals(metric):
    factors, noise = make(31)
    refused = lambda match: pytest.raises(ValueError, match=match)
    with refused("factor 1 has one value only"):
        metric(noise, factors * [1, 0, 1])
    with refused("two latent dimensions at least"):
        metric(noise[:, :1], factors)
    with refused(r"factors must be \[31, factors\], got \[30, 3\]"):
        metric(noise, factors[1:])
    with refused(r"factors must be \[31, factors\], got \[31\]"):
        metric(noise, factors[:, 0])
    with refused("factors must be integers, got float64"):
        metric(noise, np.float64(factors))
    with refused("hold NaN"):
        metric(noise * np.nan, factors)


def test_refusals_of_settings():
    factors, noise = make(31)
    with pytest.raises(ValueError, match="bins must be at least 2"):
        mutual_information_gap(noise, factors, bins=1)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        dci(noise, factors, seed=0, rounds=0)
    with pytest.raises(ValueError, match="two at least are needed, got 1"):
        dci(noise, factors[:, :1], seed=0)
    rare = np.concatenate([factors, np.arange(31)[:, None] == 5], axis=1).astype(int)
    for metric in (dci, sap):
        with pytest.raises(ValueError, match="factor 3 has fewer than two values among"):
            metric(noise, rare, seed=0)
        for share in (0.0, 1.0, -0.5):
            with pytest.raises(ValueError, match="test_fraction must lie between 0 and 1"):
                metric(noise, factors, seed=0, test_fraction=share)
