import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from tests.oracles import retrieval as oracle
from xmodal_jax.metrics.retrieval import mixed_retrieval, ranks, retrieval


def make(queries=13, gallery=17, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(queries, dim)), rng.normal(size=(gallery, dim))
    return np.float32(q), np.float32(g), rng


@pytest.mark.parametrize("chunk", [None, 5, 100])
def test_ranks_are_those_of_sorting(chunk):
    q, g, rng = make()
    targets = rng.integers(0, 17, 13)
    want = oracle.ranks(q, g, np.eye(17, dtype=bool)[targets])
    assert len(set(want)) > 5
    np.testing.assert_array_equal(ranks(q, g, targets=targets, chunk=chunk), want)


@pytest.mark.parametrize("chunk", [None, 5])
def test_several_correct_items_by_matrix_and_by_ids(chunk):
    q, g, rng = make()
    query_ids, gallery_ids = rng.integers(0, 4, 13), np.arange(17) % 4
    correct = query_ids[:, None] == gallery_ids[None, :]
    want = oracle.ranks(q, g, correct)
    np.testing.assert_array_equal(ranks(q, g, targets=correct, chunk=chunk), want)
    np.testing.assert_array_equal(
        ranks(q, g, query_ids=query_ids, gallery_ids=gallery_ids, chunk=chunk), want
    )


def test_recall_and_reciprocal_rank_are_scikit_learns():
    q, g, rng = make(23, 9)
    targets = np.concatenate([np.arange(9), rng.integers(0, 9, 14)])
    found = retrieval(q, g, targets=targets, ks=(1, 3, 5), normalize=False)
    scores = np.float64(q) @ np.float64(g).T
    for k in (1, 3, 5):
        assert found[f"recall@{k}"] == pytest.approx(top_k_accuracy_score(targets, scores, k=k))
    # With one correct item the average precision is the reciprocal rank.
    assert found["mrr"] == pytest.approx(label_ranking_average_precision_score(np.eye(9)[targets], scores))


def test_summary():
    """Ranks 1, 2, 6, 12 by construction: query i's target is beaten by known numbers of items."""
    gallery = np.stack([np.cos(a := np.linspace(0, 1.5, 12)), np.sin(a)], 1)
    queries = np.repeat(gallery[:1], 4, 0)
    got = retrieval(queries, gallery, targets=np.array([0, 1, 5, 11]))
    want = {"recall@1": 0.25, "recall@5": 0.5, "recall@10": 0.75, "median_rank": 4.0, "mean_rank": 21 / 4}
    assert got == pytest.approx(want | {"mrr": (1 + 1 / 2 + 1 / 6 + 1 / 12) / 4})


def test_collapsed_or_broken_embeddings_score_worst():
    q, _, _ = make()
    for bad in (np.ones_like(q), np.zeros_like(q), q * np.nan):
        np.testing.assert_array_equal(ranks(bad, bad), 13)
    np.testing.assert_array_equal(ranks(q, q), 1)


def test_correct_items_do_not_compete():
    q, _, _ = make()
    np.testing.assert_array_equal(ranks(q[:1], np.concatenate([q[:1]] * 5), targets=np.ones((1, 5), bool)), 1)


def test_length_matters_only_without_normalisation():
    q, g, _ = make(13, 13)
    longer = g * np.arange(1, 14, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(ranks(q, longer), ranks(q, g))
    assert (ranks(q, longer, normalize=False) != ranks(q, g)).any()


@given(st.permutations(range(11)), st.integers(0, 2**16))
def test_order_of_the_gallery_does_not_matter(order, seed):
    q, g, _ = make(11, 11, seed=seed)
    order = np.array(order)
    np.testing.assert_array_equal(ranks(q, g[order], targets=np.argsort(order)), ranks(q, g))


def test_what_does_not_fit_is_told():
    q, g, _ = make()
    with pytest.raises(ValueError, match="13 queries and 17 items do not pair up"):
        ranks(q, g)
    with pytest.raises(ValueError, match="index the 17 items"):
        ranks(q, g, targets=np.full(13, 17))
    with pytest.raises(ValueError, match=r"int \[13\] or bool \[13, 17\]"):
        ranks(q, g, targets=np.zeros(13))
    with pytest.raises(ValueError, match="go together"):
        ranks(q, g, query_ids=np.zeros(13))
    with pytest.raises(ValueError, match="query 7 has no correct item"):
        ranks(q, g, query_ids=np.arange(13) // 7, gallery_ids=np.zeros(17), chunk=5)
    with pytest.raises(ValueError, match="nothing to rank"):
        ranks(q[:0], g)


@pytest.mark.parametrize("chunk", [None, 5])
def test_a_mixed_gallery_has_all_vectors_but_the_query(chunk):
    a, b, rng = make(17, 17, dim=4)
    vectors, modalities = np.concatenate([a + [1, 0, 0, 0], 0.7 * a + 0.5 * b]), np.repeat([3, 1], 17)
    for ids in (np.tile(np.arange(17), 2), rng.integers(0, 9, 34), np.r_[np.arange(17), np.arange(8, 25)]):
        scores = mixed_retrieval(vectors, modalities, ids, ks=(1, 3), chunk=chunk)
        for k in (1, 3):
            found = scores[f"recall@{k}"], scores[f"other_modality@{k}"]
            np.testing.assert_allclose(found, oracle.mixed(vectors, modalities, ids, k), rtol=1e-12)


def test_a_mixed_gallery_scores_collapsed_and_broken_vectors_worst():
    modalities, ids = np.repeat([0, 1], 4), np.tile(np.arange(4), 2)
    assert mixed_retrieval(np.ones((8, 3)), modalities, ids)["recall@5"] == 0
    assert mixed_retrieval(np.full((8, 3), np.nan), modalities, ids)["recall@5"] == 0
    perfect = mixed_retrieval(np.tile(np.eye(4), (2, 1)), modalities, ids, ks=(1,))
    assert perfect == {"recall@1": 1.0, "other_modality@1": 1.0}


def test_what_does_not_fit_a_mixed_gallery_is_told():
    vectors, modalities = np.eye(4), np.repeat([0, 1], 2)
    with pytest.raises(ValueError, match="cut-offs must lie in 1..3"):
        mixed_retrieval(vectors, modalities, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="no two vectors have the same id"):
        mixed_retrieval(vectors, modalities, np.arange(4), ks=(1,))
    with pytest.raises(ValueError, match="ids"):
        mixed_retrieval(vectors, modalities, np.arange(3), ks=(1,))
