import itertools

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from xmodal_jax.metrics.clustering import kmeans_clustering


def blobs(sizes, seed=0, spread=0.1):
    """Blobs far apart, and the blob of each example."""
    rng = np.random.default_rng(seed)
    blob = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return 10 * np.eye(len(sizes), 7)[blob] + spread * rng.normal(size=(len(blob), 7)), blob


def test_classes_in_clusters_of_their_own_score_one():
    codes, blob = blobs([17, 23, 11])
    assert kmeans_clustering(codes, blob, seed=0) == (1.0, 1.0, 1.0, pytest.approx(1.0))
    names = np.array([40, 3, 7])[blob]
    assert kmeans_clustering(codes, names, seed=0) == kmeans_clustering(codes, blob, seed=0)


def test_the_vote_on_known_clusters():
    """The blobs are the clusters; their classes: 7 of 0 and 4 of 1; 5 of 1 and 5 of 2; 13 of 1."""
    codes, blob = blobs([11, 10, 13])
    labels = np.empty(34, int)
    for k, members in enumerate(([0] * 7 + [1] * 4, [1] * 5 + [2] * 5, [1] * 13)):
        labels[blob == k] = members
    got = kmeans_clustering(codes, labels, seed=0)
    assert got.purity == pytest.approx((7 + 5 + 13) / 34)
    # The third cluster is class 1, the first class 0; for the second, class 2 is left.
    assert got.accuracy == pytest.approx((7 + 5 + 13) / 34)
    assert got.adjusted_rand == pytest.approx(adjusted_rand_score(labels, blob))
    joint = np.array([[7, 4, 0], [0, 5, 5], [0, 13, 0]]) / 34
    entropy = lambda p: -np.sum(p[p > 0] * np.log(p[p > 0]))
    h = entropy(joint.sum(0)), entropy(joint.sum(1))
    assert got.normalized_mutual_information == pytest.approx(2 * (sum(h) - entropy(joint)) / sum(h))
    assert got.normalized_mutual_information == pytest.approx(normalized_mutual_info_score(labels, blob))


def test_the_number_of_clusters():
    codes, blob = blobs([17, 23, 11])
    assert kmeans_clustering(codes, blob, clusters=1, seed=0) == (*[pytest.approx(23 / 51)] * 2, 0.0, 0.0)
    assert kmeans_clustering(codes, blob // 2, clusters=3, seed=0).purity == 1.0
    assert kmeans_clustering(codes, blob // 2, clusters=3, seed=0).adjusted_rand < 0.99
    shuffled = np.random.default_rng(1).permutation(blob)
    each_alone = kmeans_clustering(codes, shuffled, clusters=51, seed=0)
    assert each_alone.purity == 1.0 and each_alone.accuracy == pytest.approx(3 / 51)


def test_two_clusters_of_one_class_are_not_both_right():
    """The blobs are the clusters; most examples of all three are of class 0."""
    codes, blob = blobs([11, 10, 13])
    labels = np.empty(34, int)
    members = ([0] * 8 + [1] * 3, [0] * 6 + [2] * 4, [0] * 9 + [1] * 3 + [2])
    for k, classes in enumerate(members):
        labels[blob == k] = classes
    got = kmeans_clustering(codes, labels, seed=0)
    assert got.purity == pytest.approx((8 + 6 + 9) / 34)
    counts = [[classes.count(c) for c in range(3)] for classes in members]
    best = max(sum(counts[k][c] for k, c in enumerate(order)) for order in itertools.permutations(range(3)))
    assert best == 9 + 3 + 4 and got.accuracy == pytest.approx(best / 34)


def test_noise_is_at_chance():
    rng = np.random.default_rng(0)
    got = kmeans_clustering(rng.normal(size=(601, 5)), np.arange(601) % 3, seed=0)
    assert 1 / 3 <= got.purity < 0.42 and abs(got.adjusted_rand) < 0.02
    assert got.normalized_mutual_information < 0.02


def test_the_seed_decides_and_order_does_not_matter():
    codes, blob = blobs([17, 23, 11], spread=5.0)
    first = kmeans_clustering(codes, blob, seed=3)
    assert first == kmeans_clustering(codes, blob, seed=3) and first.purity < 1
    codes, blob = blobs([17, 23, 11])
    order = np.random.default_rng(2).permutation(51)
    labels = np.where(np.arange(51) % 5 == 0, 0, blob)
    np.testing.assert_allclose(
        kmeans_clustering(codes[order], labels[order], seed=3), kmeans_clustering(codes, labels, seed=3)
    )


def test_refusals():
    codes, blob = blobs([17, 23, 11])
    with pytest.raises(ValueError, match=r"labels must be integers \[51\]"):
        kmeans_clustering(codes, blob[1:], seed=0)
    with pytest.raises(ValueError, match="got float64"):
        kmeans_clustering(codes, np.float64(blob), seed=0)
    with pytest.raises(ValueError, match="17 labels are negative"):
        kmeans_clustering(codes, blob - 1, seed=0)
    with pytest.raises(ValueError, match="hold NaN"):
        kmeans_clustering(codes * np.nan, blob, seed=0)
    for clusters in (0, 52):
        with pytest.raises(
            ValueError, match=f"clusters must lie in 1..51, the number of examples, got {clusters}"
        ):
            kmeans_clustering(codes, blob, clusters=clusters, seed=0)
