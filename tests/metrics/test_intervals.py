"""Bootstrap intervals against SciPy's, and what is drawn together."""

import numpy as np
import pytest
from scipy import stats

from xmodal_jax.metrics import bootstrap_interval


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(0).random(97)
    found = bootstrap_interval(values, resamples=4000, seed=1)
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=2
    ).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(peer.low, abs=0.004) and found.high == pytest.approx(
        peer.high, abs=0.004
    )


def test_equal_copies_of_an_example_make_it_no_surer():
    values = (np.random.default_rng(1).random(60) < 0.4).astype(float)
    once = bootstrap_interval(values, seed=3)
    copies = bootstrap_interval(np.repeat(values, 5), units=np.repeat(np.arange(60), 5), seed=3)
    np.testing.assert_allclose(copies, once)
    taken_apart = bootstrap_interval(np.repeat(values, 5), seed=3)
    assert taken_apart.high - taken_apart.low < 0.6 * (once.high - once.low)


def test_it_holds_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    samples = (rng.random((300, 80)) < 0.3).astype(float)
    intervals = [bootstrap_interval(values, resamples=300, seed=k) for k, values in enumerate(samples)]
    share = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    assert 0.90 < share < 0.98  # 0.95 within four standard errors, and a little less for so few examples


def test_few_units_and_mistakes():
    assert bootstrap_interval([0.5]) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="2 values and 3 units"):
        bootstrap_interval([1, 0], units=np.arange(3))
