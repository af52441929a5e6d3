import librosa
import numpy as np
import pytest
from scipy import stats

from xmodal_jax.metrics.speech import dynamic_time_warping, mel_distance, pitch_agreement


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (11, 1), (13, 17), (29, 11)])
def test_warping_costs_as_much_as_librosas(shape):
    cost = np.random.default_rng(sum(shape)).uniform(0.1, 1.0, shape)
    total, path = dynamic_time_warping(cost)
    assert total == pytest.approx(librosa.sequence.dtw(C=cost, backtrack=False)[-1, -1])
    assert cost[tuple(path.T)].sum() == pytest.approx(total)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [shape[0] - 1, shape[1] - 1]
    steps = np.diff(path, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(axis=1) >= 1).all()


def test_the_same_said_more_slowly_is_near():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(17, 5)).astype(np.float32)
    slow, other = np.repeat(a, 3, axis=0), rng.normal(size=(17, 5)).astype(np.float32)
    assert mel_distance(a, slow)[0] == pytest.approx(0, abs=1e-6)
    assert mel_distance(a, other)[0] > 0.3
    shifted, _ = mel_distance(a, a + 0.25)
    assert shifted <= 0.25 + 1e-6  # the straight path, of a constant difference, is one way
    with pytest.raises(ValueError, match="equally many bands"):
        mel_distance(a, a[:0])


def test_pitch_agreement():
    rng = np.random.default_rng(1)
    a = rng.uniform(80, 300, 30)
    b = rng.uniform(80, 300, 40)
    a[::5], b[::3] = 0, 0
    path = np.stack([np.sort(rng.integers(0, 30, 60)), np.sort(rng.integers(0, 40, 60))], axis=1)
    agreement = pitch_agreement(a, b, path)
    pairs = [(a[i], b[j]) for i, j in path]
    voiced = np.log([pair for pair in pairs if min(pair) > 0])
    assert agreement.correlation == pytest.approx(stats.pearsonr(voiced[:, 0], voiced[:, 1])[0])
    expected = np.sqrt(np.mean([(1200 * np.log2(x / y)) ** 2 for x, y in pairs if min(x, y) > 0]))
    assert agreement.error_cents == pytest.approx(expected)
    assert agreement.voicing_error == pytest.approx(np.mean([(x > 0) != (y > 0) for x, y in pairs]))


def test_pitch_that_is_moved_by_a_semitone():
    a, path = np.array([100.0, 120.0, 0.0, 90.0]), np.stack([np.arange(4)] * 2, axis=1)
    moved = pitch_agreement(a, a * 2 ** (1 / 12), path)
    assert moved == pytest.approx((1.0, 100.0, 0.0))
    constant = pitch_agreement(np.where(a > 0, 100.0, 0), a, path)
    assert np.isnan(constant.correlation) and constant.error_cents > 0
    unvoiced = pitch_agreement(np.zeros(4), a, path)
    assert (
        np.isnan(unvoiced.correlation) and np.isnan(unvoiced.error_cents) and unvoiced.voicing_error == 0.75
    )
    with pytest.raises(ValueError, match="at least one pair"):
        pitch_agreement(a, a, path[:0])
