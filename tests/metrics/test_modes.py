import numpy as np
import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from xmodal_jax.metrics.modes import mode_coverage


def by_hand(modes, real):
    """Counted one by one: the modes that occur, and the KL divergence of their frequencies from those of the data."""
    counts, total, kl = {}, sum(real), 0.0
    for mode in modes:
        counts[mode] = counts.get(mode, 0) + 1
    for mode, count in counts.items():
        q, p = count / len(modes), real[mode] / total
        kl += q * (np.log(q) - np.log(p)) if p else np.inf
    return len(counts), kl


@over(st.integers(0, 999), st.integers(1, 9), st.integers(1, 60))
def test_modes_are_counted_one_by_one(seed, count, samples):
    rng = np.random.default_rng(seed)
    real = rng.integers(1, 9, count)
    modes = rng.integers(0, count, samples)
    scores, expected = mode_coverage(modes, real), by_hand(modes.tolist(), real.tolist())
    assert scores.modes == expected[0]
    np.testing.assert_allclose(scores.kl, expected[1], atol=1e-12)
    np.testing.assert_allclose(mode_coverage(modes, real / real.sum()).kl, scores.kl, atol=1e-12)


def test_two_of_four_modes_by_hand():
    """q = (3/4, 1/4, 0, 0) and p = (1/2, 1/4, 1/4, 0): KL = 3/4 log(3/2) + 1/4 log 1."""
    scores = mode_coverage(np.array([0, 0, 0, 1]), [2, 1, 1, 0])
    assert scores.modes == 2
    np.testing.assert_allclose(scores.kl, 0.75 * np.log(1.5))


@pytest.mark.parametrize("kept", [1, 10, 500, 1000])
def test_a_generator_that_drops_modes(kept):
    """Of 1,000 equal modes it has the first ``kept``, each equally often: the divergence is log(1000 / kept)."""
    modes = np.arange(26_000 // kept * kept) % kept
    scores = mode_coverage(modes, np.ones(1000))
    assert scores.modes == kept
    np.testing.assert_allclose(scores.kl, np.log(1000 / kept), atol=1e-12)


def test_samples_of_the_data_have_the_divergence_of_a_finite_sample():
    """The plug-in estimate's bias is (K - 1) / 2N, its standard deviation about sqrt((K - 1) / 2) / N."""
    rng, kinds, count = np.random.default_rng(0), 50, 5000
    real = rng.random(kinds) + 0.5
    scores = mode_coverage(rng.choice(kinds, count, p=real / real.sum()), real)
    assert scores.modes == kinds
    assert abs(scores.kl - (kinds - 1) / (2 * count)) < 4 * np.sqrt((kinds - 1) / 2) / count


def test_a_mode_that_the_data_lack():
    scores = mode_coverage([0, 1], [1.0, 0.0])
    assert scores.modes == 2 and scores.kl == np.inf


@pytest.mark.parametrize(
    "modes, real, message",
    [
        ([], [1.0], "modes must be integers .* not empty"),
        ([0.0], [1.0], "modes must be integers .* float64"),
        ([0, 2], [1.0, 1.0], r"modes must lie in 0..1, got 0..2"),
        ([-1], [1.0], r"modes must lie in 0..0, got -1..-1"),
        ([0], [0.0, 0.0], "real must be probabilities or counts"),
        ([0], [-1.0, 2.0], "real must be probabilities or counts"),
        ([0], [[1.0]], "real must be probabilities or counts"),
        ([0], [np.nan], "real must be probabilities or counts"),
    ],
)
def test_mistakes(modes, real, message):
    with pytest.raises(ValueError, match=message):
        mode_coverage(modes, real)
