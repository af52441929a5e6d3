from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tests.losses.devices import assert_same, values_and_gradients
from tests.oracles import adversarial as oracle
from tests.oracles import contrastive
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.losses import word_region_loss, word_region_scores

ATTENTIONS = ("cosine", "damsm")
scores_of = jax.jit(word_region_scores, static_argnames="attention")
loss_of = jax.jit(word_region_loss, static_argnames=("attention", "duplicates", "chunks"))


def make(size=7, length=5, regions=11, dim=3, seed=0):
    """Words that look like the regions of their image, some of them padding anywhere."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, regions, dim))
    words = image[:, :length] + rng.normal(size=(size, length, dim))
    mask = rng.random((size, length)) < 0.7
    mask[:, 0] = True
    return np.float32(words), mask, np.float32(image)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_scores_are_the_definitions(attention):
    words, mask, regions = make()
    got = scores_of(words[:3], mask[:3], regions, gamma1=4.0, gamma2=3.0, attention=attention)
    arrays = [np.asarray(x) for x in (words[:3], mask[:3], regions)]
    want = oracle.word_region_scores(*arrays, 4.0, 3.0, attention)
    assert got.shape == (7, 3)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_xmc_gan():
    words, mask, regions = make()
    scores = oracle.word_region_scores(*(np.asarray(x) for x in (words, mask, regions)), 5, 5, "cosine")
    want = contrastive.info_nce(scores, np.eye(7), 1 / 50)
    np.testing.assert_allclose(loss_of(words, mask, regions), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("duplicates", ["ignore", "exclude", "positive"])
def test_loss_is_info_nce_of_the_scores(duplicates):
    words, mask, regions = make()
    present, match = np.arange(7) != 4, np.array([3, 3, -1, 5, 3, 5, -1], np.int32)
    options = {"present": present, "match": match, "duplicates": duplicates, "attention": "damsm"}
    got = loss_of(words, mask, regions, gamma3=10.0, **options)
    scores = oracle.word_region_scores(*(np.asarray(x) for x in (words, mask, regions)), 5, 5, "damsm")
    where = {"present": np.asarray(present), "ids": np.asarray(match), "duplicates": duplicates}
    want = contrastive.info_nce(scores, np.eye(7), 0.1, **where)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    # Equal captions and equal pictures: two kinds of ids.
    ids = np.stack([match, np.array([-1, 1, 1, 2, 3, 3, 4], np.int32)], axis=1)
    got = loss_of(words, mask, regions, gamma3=10.0, **options | {"match": ids})
    want = contrastive.info_nce(scores, np.eye(7), 0.1, **where | {"ids": ids})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@partial(jax.jit, static_argnames=("attention", "chunks"))
def terms_and_gradients(words, mask, regions, present, attention="cosine", chunks=1):
    def total(words, regions):
        options = {"gamma3": 10.0, "attention": attention, "chunks": chunks}
        terms = word_region_loss(words, mask, regions, present=present, **options)
        return terms.sum(), terms

    (_, terms), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(words, regions)
    return terms, gradients


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_and_absent_examples_have_no_part(attention):
    """Whatever is there instead changes nothing; gradients of what is not there are exactly zero."""
    words, mask, regions = make()
    mask[5] = False  # a caption without words cannot be matched
    present = np.arange(7) != 2
    keep, absent = np.array([0, 1, 3, 4, 6]), np.array([2, 5])
    there = mask & present[:, None]
    noise = np.where(np.arange(5)[None, :, None] % 2 == 0, np.float32(np.inf), np.float32(np.nan))
    words, padded = (np.where(there[:, :, None], words, x) for x in (np.float32(0.0), noise))
    want = terms_and_gradients(words, mask, regions, present, attention)
    lost = np.where(np.isin(np.arange(7), absent)[:, None, None], np.float32(np.nan), regions)
    got = jax.tree.map(np.asarray, terms_and_gradients(padded, mask, lost, present, attention))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    terms, (by_words, by_regions) = got
    scores = oracle.word_region_scores(
        *(np.asarray(x)[keep] for x in (words, mask, regions)), 5, 5, attention
    )
    np.testing.assert_allclose(
        terms[keep], contrastive.info_nce(scores, np.eye(5), 0.1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(terms[absent], 0.0)
    np.testing.assert_array_equal(by_words[~there], 0.0)
    np.testing.assert_array_equal(by_regions[absent], 0.0)
    assert np.abs(by_words[there]).max(axis=1).min() > 0 and np.abs(by_regions[keep]).max() > 0


def test_chunks_change_nothing_but_the_memory():
    words, mask, regions = make()
    present = np.arange(7) != 4
    whole = terms_and_gradients(words, mask, regions, present)
    chunked = terms_and_gradients(words, mask, regions, present, chunks=7)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), chunked, whole)
    with pytest.raises(ValueError, match="7 does not split into 4"):
        loss_of(words, mask, regions, chunks=4)


@given(st.integers(1, 5), st.floats(0.5, 20.0))
@settings(max_examples=10)
def test_words_that_are_all_found_score_one_and_more_by_their_number(count, gamma2):
    """Every region is along one direction, and so is every word: all cosines are 1."""
    direction = np.float32([2.0, -1.0, 0.5])
    words, regions = np.tile(direction, (1, 5, 1)), 3.0 * np.tile(direction, (2, 11, 1))
    mask = (np.arange(5) < count)[None]
    got = scores_of(words, mask, regions, gamma2=gamma2)
    np.testing.assert_allclose(got, np.full((2, 1), 1 + np.log(count) / gamma2), rtol=1e-5)


def test_equal_pairs_give_the_logarithm_of_the_batch_size():
    words, mask, regions = (np.tile(x[:1], (7,) + (1,) * (x.ndim - 1)) for x in make())
    terms = loss_of(words, mask, regions, present=np.arange(7) < 5)
    np.testing.assert_allclose(terms, np.where(np.arange(7) < 5, np.log(5), 0.0), rtol=1e-4)


@given(st.permutations(range(7)), st.permutations(range(11)))
@settings(max_examples=10)
def test_order_of_batch_words_and_regions_does_not_matter(order, places):
    words, mask, regions = make()
    present, order, places = np.ones(7, bool), np.array(order), np.array(places)
    want, _ = terms_and_gradients(words, mask, regions, present)
    got, _ = terms_and_gradients(
        words[order][:, ::-1], mask[order][:, ::-1], regions[order][:, places], present
    )
    np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-4, atol=1e-5)


def test_unknown_attention_is_refused():
    with pytest.raises(Exception, match="attention"):
        word_region_scores(*map(jnp.asarray, make()), attention="cosin")


def test_low_precision_features_give_scores_in_float32():
    words, mask, regions = make()
    want = scores_of(words, mask, regions)
    got = scores_of(words.astype(jnp.bfloat16), mask, regions.astype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2)


# -- the number of devices -----------------------------------------------------------------------------------


def batch():
    words, mask, regions = make(24)
    rng = np.random.default_rng(1)
    split = {"words": words, "mask": mask, "regions": regions, "present": np.arange(24) % 5 != 2}
    split["match"] = rng.integers(-1, 6, 24)
    shared = {"gamma1": 4.0, "gamma2": 5.0, "gamma3": 10.0}
    wide = lambda x: jnp.asarray(np.float64(x) if np.issubdtype(np.asarray(x).dtype, np.floating) else x)
    return jax.tree.map(wide, (split, shared))


def of(**options):
    def loss(split, shared, axis_name):
        given = {k: split[k] for k in ("present", "match")}
        arrays = (split["words"], split["mask"], split["regions"])
        terms = word_region_loss(*arrays, **given, **shared, **options, axis_name=axis_name)
        return batch_mean(terms, split["present"].astype(terms.dtype), axis_name=axis_name)

    return loss


LOSSES = {
    "positive": of(duplicates="positive", chunks=3),
    "exclude": of(duplicates="exclude", attention="damsm"),
}


@pytest.fixture(scope="module")
def one_device():
    with jax.enable_x64(True):
        return values_and_gradients(LOSSES, *batch())


@pytest.mark.parametrize(("devices", "mode"), [(2, "pmap"), (8, "shard_map")])
def test_devices_do_not_change_the_result(devices, mode, one_device):
    with jax.enable_x64(True):
        assert_same(values_and_gradients(LOSSES, *batch(), devices, mode), one_device, rtol=1e-9)
    for _, (by_split, by_shared) in one_device.values():
        assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves((by_split, by_shared)))


def test_scores_are_those_of_attngans_equations_in_torch():
    """Two softmaxes, over words and then over regions, of one caption and one image; equations 7 to 10 of the paper."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    words, regions = (torch.tensor(rng.normal(size=size)) for size in ((1, 5, 6), (1, 9, 6)))
    gamma1, gamma2 = 4.0, 5.0
    affinity = torch.softmax(words[0] @ regions[0].T, dim=0)
    context = torch.softmax(gamma1 * affinity, dim=1) @ regions[0]
    relevance = torch.nn.functional.cosine_similarity(context, words[0], dim=1)
    want = torch.logsumexp(gamma2 * relevance, dim=0) / gamma2
    mask = np.ones((1, 5), bool)
    by_oracle = oracle.word_region_scores(words.numpy(), mask, regions.numpy(), gamma1, gamma2, "damsm")
    np.testing.assert_allclose(by_oracle, [[want]], rtol=1e-12)
