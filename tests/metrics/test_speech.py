import numpy as np
import pytest

from xmodal_jax.metrics.speech import mel_distance


def test_the_same_said_more_slowly_is_near():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(17, 5)).astype(np.float32)
    slow, other = np.repeat(a, 3, axis=0), rng.normal(size=(17, 5)).astype(np.float32)
    distance, path = mel_distance(a, slow)
    assert (
        distance == pytest.approx(0, abs=1e-6)
        and path[0].tolist() == [0, 0]
        and path[-1].tolist() == [16, 50]
    )
    assert (np.diff(path, axis=0) >= 0).all()
    assert mel_distance(a, other)[0] > 0.3
    shifted, straight = mel_distance(a, a + 0.25)
    assert shifted <= 0.25 + 1e-6  # the straight path, of a constant difference, is one way
    with pytest.raises(ValueError, match="equally many bands"):
        mel_distance(a, a[:0])
