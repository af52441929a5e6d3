import librosa
import numpy as np
import pytest

from xmodal_jax.metrics.speech import dynamic_time_warping, mel_distance


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
