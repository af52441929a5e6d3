import warnings

import numpy as np
import pytest
from hypothesis import given as over
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from tests.oracles import latent as oracle
from xmodal_jax.metrics.coherence import coherence_matrix, cross_coherence, joint_coherence, subsets


def make(seed=0, modalities=3, count=97, classes=5):
    """Predictions that are right more or less often, unequal classes, labels and modalities missing."""
    rng = np.random.default_rng(seed)
    given = subsets(modalities)
    labels = rng.choice(classes, count, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    right = rng.random((*given.shape, count)) < rng.random((*given.shape, 1))
    predictions = np.where(right, labels, rng.integers(0, classes, right.shape))
    labels = np.where(rng.random(count) < 0.1, -1, labels)
    return predictions, labels, given, rng.random((len(given), count)) < 0.7


def test_subsets_are_in_order():
    members = lambda x: ["".join(map(str, np.flatnonzero(row))) for row in x]
    assert members(subsets(3)) == ["0", "1", "2", "01", "02", "12", "012"]
    assert members(subsets(4, (3, 1, 3))) == ["0", "1", "2", "3", "012", "013", "023", "123"]
    assert (
        subsets(5).shape == (31, 5) and subsets(5).dtype == bool and len(np.unique(subsets(5), axis=0)) == 31
    )
    assert subsets(1).tolist() == [[True]]
    for sizes in ((0,), (4,)):
        with pytest.raises(ValueError, match=f"sizes must lie in 1..3, got {sizes[0]}"):
            subsets(3, sizes)
    with pytest.raises(ValueError, match="at least one modality"):
        subsets(0)


@over(st.integers(0, 999), st.integers(1, 4), st.integers(1, 41), st.booleans())
def test_all_is_counted_one_by_one(seed, modalities, count, some):
    predictions, labels, given, present = make(seed, modalities, count)
    labels[0], present[0, 0] = 0, True  # something to count
    present = present if some else None
    here = np.ones((len(given), count), bool) if present is None else present
    expected = np.array(
        [[oracle.macro_accuracy(x, labels, h) for x in row] for row, h in zip(predictions, here, strict=True)]
    )
    np.testing.assert_allclose(coherence_matrix(predictions, labels, present), expected, rtol=1e-12)
    values = {}
    for k in range(1, modalities + 1):
        across, own = [], []
        for s, m in np.ndindex(*given.shape):
            if given[s].sum() == k and not np.isnan(expected[s, m]):
                (own if given[s, m] else across).append(expected[s, m])
        values |= {f"coherence@{k}": np.mean(across)} if across else {}
        values |= {f"self_coherence@{k}": np.mean(own)} if own else {}
    across = [v for name, v in values.items() if name.startswith("coherence")]
    values |= {"coherence": np.mean(across)} if across else {}
    assert cross_coherence(predictions, labels, given, present) == pytest.approx(values, rel=1e-12)


def test_an_entry_is_scikit_learns_balanced_accuracy():
    predictions, labels, _, present = make(3, 3, 41)
    found = coherence_matrix(predictions, labels, present)
    for s, m in np.ndindex(*found.shape):
        counted = present[s] & (labels >= 0)
        if counted.any():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that are predicted only
                expected = balanced_accuracy_score(labels[counted], predictions[s, m, counted])
            assert found[s, m] == pytest.approx(expected)


def test_coherence_by_hand():
    """Class 0 three times and class 1 once; 1 from 0 gets two and none of them right, 0 from 1 all."""
    labels = np.array([0, 0, 0, 1, -1])
    predictions = np.array([[[0, 0, 0, 0, 9], [0, 0, 7, 0, 9]], [[0, 0, 0, 1, 9], [3, 3, 3, 3, 9]]])
    got = cross_coherence(predictions, labels, subsets(2, [1]))
    assert got == pytest.approx(
        {"coherence@1": (1 / 3 + 1) / 2, "self_coherence@1": 0.25, "coherence": (1 / 3 + 1) / 2}
    )
    one = np.array([[True] * 4 + [False], [False] * 5])
    assert cross_coherence(predictions, labels, subsets(2, [1]), one)["coherence@1"] == pytest.approx(1 / 3)
    np.testing.assert_array_equal(np.isnan(coherence_matrix(predictions, labels, one)), [[0, 0], [1, 1]])


def test_extremes_and_keys():
    predictions, labels, given, present = make()
    perfect = np.broadcast_to(np.abs(labels), predictions.shape)
    keys = {
        "coherence@1",
        "coherence@2",
        "self_coherence@1",
        "self_coherence@2",
        "self_coherence@3",
        "coherence",
    }
    for known in (None, present):
        got = cross_coherence(perfect, labels, given, known)
        assert set(got) == keys and set(got.values()) == {1.0}
        assert set(cross_coherence(perfect + 1, labels, given, known).values()) == {0.0}
    assert set(cross_coherence(perfect[6:], labels, given[6:])) == {"self_coherence@3"}


def test_frequent_classes_do_not_count_more():
    """Always the answer 0, of which nine in ten are."""
    labels = (np.arange(100) % 10 == 0).astype(int)
    got = cross_coherence(np.zeros((2, 2, 100), int), labels, subsets(2, [1]))
    assert got["coherence"] == pytest.approx(0.5)


def test_what_is_left_out_does_not_count():
    predictions, labels, given, present = make()
    spoiled = np.where((present & (labels >= 0)[None, :])[:, None, :], predictions, -1)
    assert cross_coherence(spoiled, labels, given, present) == cross_coherence(
        predictions, labels, given, present
    )
    order = np.random.default_rng(1).permutation(len(labels))
    shuffled = cross_coherence(predictions[..., order], labels[order], given, present[:, order])
    assert shuffled == pytest.approx(cross_coherence(predictions, labels, given, present))


def test_joint_coherence():
    assert joint_coherence(np.array([[1, 2, 3, 0], [1, 2, 0, 0], [1, 1, 3, 0]])) == 0.5
    assert joint_coherence(np.array([[1, 2], [2, 1]])) == 0.0
    draws = np.random.default_rng(0).integers(0, 3, (2, 9973))
    assert joint_coherence(draws) == pytest.approx(1 / 3, abs=0.02)
    for wrong in (np.zeros((1, 5), int), np.zeros((2, 0), int)):
        with pytest.raises(ValueError, match="two modalities and one draw"):
            joint_coherence(wrong)
    with pytest.raises(ValueError, match="modality 1 has negative predictions"):
        joint_coherence(np.array([[1, 2], [2, -1]]))
    with pytest.raises(ValueError, match="must be integers"):
        joint_coherence(np.zeros((2, 3)))


def test_refusals():
    predictions, labels, given, present = make()
    refused = lambda match: pytest.raises(ValueError, match=match)
    with refused("predictions are of 97 examples and labels of 96"):
        cross_coherence(predictions, labels[1:], given)
    with refused(r"observed must be bool \[7, 3\], got int64"):
        cross_coherence(predictions, labels, given.astype(int))
    with refused(r"present must be bool \[7, 97\]"):
        cross_coherence(predictions, labels, given, present[1:])
    with refused("subset 0 is empty"):
        cross_coherence(predictions, labels, given & (np.arange(7) > 0)[:, None])
    with refused("nothing to count"):
        cross_coherence(predictions, np.full_like(labels, -1), given)
    with refused(r"predictions must be integers \[subsets, modalities, examples\], got float64"):
        cross_coherence(np.float64(predictions), labels, given)
    predictions[2, 1, np.argmax(labels >= 0)] = -1
    with refused("subset 2: modality 1 has negative predictions"):
        cross_coherence(predictions, labels, given)
