import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import generative as oracle
from xmodal_jax.metrics import neighbours
from xmodal_jax.metrics.generative import (
    Moments,
    add_moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    merge_moments,
    moments,
    r_precision,
)
from xmodal_jax.metrics.neighbours import density_coverage, nearest_neighbours, precision_recall

N, M, D = 43, 37, 5


def make(seed=0, n=N, m=M, dim=D):
    """Two correlated clouds that overlap in part."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(2, dim, dim))
    a, b = rng.normal(size=(n, dim)) @ mix[0], rng.normal(size=(m, dim)) @ (mix[0] + 0.5 * mix[1]) + 0.3
    return np.float32(a), np.float32(b)


# Fréchet distance


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.sampled_from([0.0, 1e4]))
def test_moments_do_not_depend_on_the_batches(sizes, offset):
    """Also where means are far larger than deviations, which sums of squares in float32 would not survive."""
    x = np.float32(np.random.default_rng(0).normal(size=(sum(sizes) + 1, 3)) + offset)
    total = None
    for batch in np.split(x, np.cumsum(sizes)):
        total = add_moments(total, jnp.asarray(batch))
    assert total.count == len(x)
    np.testing.assert_allclose(total.mean, np.float64(x).mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total.covariance, np.cov(np.float64(x), rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_of_two_halves_merge():
    a, b = make()
    whole, merged = moments(np.concatenate([a, b])), merge_moments(moments(a), moments(b))
    assert merged.count == N + M
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-10)


def test_frechet_distance_is_the_definition():
    a, b = make()
    want = oracle.frechet_of_features(a, b)
    assert want > 1
    np.testing.assert_allclose(frechet_distance(moments(a), moments(b)), want, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(moments(b), moments(a)), want, rtol=1e-9)


def test_frechet_distance_of_gaussians_with_diagonal_covariances():
    rng = np.random.default_rng(0)
    (mu, nu), (s, t) = rng.normal(size=(2, 7)), rng.uniform(0.1, 3, size=(2, 7))
    # From published statistics; N is only what makes a scatter of a covariance.
    gaussian = lambda mean, deviation: Moments(11, mean, 10 * np.diag(deviation**2))
    want = np.sum((mu - nu) ** 2 + (s - t) ** 2)
    np.testing.assert_allclose(frechet_distance(gaussian(mu, s), gaussian(nu, t)), want, rtol=1e-12)


@given(st.integers(0, 2**16), st.floats(0.1, 10))
def test_frechet_distance_turns_and_scales_with_the_features(seed, scale):
    a, b = make(seed % 7)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0] * scale
    got = frechet_distance(moments(a @ turn), moments(b @ turn))
    np.testing.assert_allclose(got, scale**2 * frechet_distance(moments(a), moments(b)), rtol=1e-9)


def test_frechet_distance_of_fewer_examples_than_features():
    """Singular covariances: 0 to itself, the square of a shift; the eigenvalues of the product lose half the digits."""
    a, b = make(n=13, m=17, dim=31)
    ours, shift = moments(a), np.linspace(-1, 2, 31)
    assert 0 <= frechet_distance(ours, ours) < 1e-12 * np.trace(ours.covariance)
    shifted = moments(np.float64(a) + shift[None, :])
    np.testing.assert_allclose(frechet_distance(ours, shifted), np.sum(shift**2), rtol=1e-11)
    s, t = (np.cov(np.float64(x), rowvar=False) for x in (a, b))
    roots = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    want = np.sum((np.float64(a).mean(0) - np.float64(b).mean(0)) ** 2) + np.trace(s + t) - 2 * roots
    np.testing.assert_allclose(frechet_distance(ours, moments(b)), want, rtol=1e-6)


def test_moments_that_do_not_fit_are_reported():
    a, _ = make()
    with pytest.raises(ValueError, match="two examples, got 1"):
        frechet_distance(moments(a), moments(a[:1]))
    with pytest.raises(ValueError, match="5 and of 3 features"):
        frechet_distance(moments(a), moments(a[:, :3]))
    with pytest.raises(TypeError, match=r"b must be Moments, got an array .*: give moments\(features\)"):
        frechet_distance(moments(a), a)
    with pytest.raises(TypeError, match="a must be Moments, got tuple"):
        merge_moments((3, 4), moments(a))
    with pytest.raises(ValueError, match=r"must be \[examples, dim\] and not empty, got \[43, 5, 1\]"):
        moments(a[..., None])
    with pytest.raises(ValueError, match="not empty"):
        moments(a[:0])
    broken = a.copy()
    broken[[7, 11], 2] = np.nan
    with pytest.raises(ValueError, match="2 of 43 examples hold NaN or infinity, the first is example 7"):
        moments(broken)


# Inception score


@pytest.mark.parametrize("splits", [1, 5, N])
def test_inception_score_is_the_definition(splits):
    logits = 3 * np.random.default_rng(0).normal(size=(N, 7))
    got, want = (
        inception_score(jnp.asarray(logits, jnp.float32), splits=splits),
        oracle.inception(logits, splits),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(inception_score(logits, splits=splits), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("never", [-1e4, -np.inf])
def test_inception_score_of_sure_and_of_constant_answers(never):
    sure = np.where(np.eye(7, dtype=bool)[np.arange(70) % 7], 0.0, never)
    np.testing.assert_allclose(inception_score(sure), (7.0, 0.0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(inception_score(np.repeat(sure[:1], 70, 0)), (1.0, 0.0), atol=1e-12)
    # In the order of their classes every split has one class, unless they are shuffled.
    ordered = np.sort(np.arange(70) % 7)
    np.testing.assert_allclose(inception_score(sure[ordered], splits=7), (1.0, 0.0), atol=1e-12)
    assert inception_score(sure[ordered], splits=7, seed=0).mean > 3
    with pytest.raises(ValueError, match="6 examples do not make 10 splits"):
        inception_score(sure[:6])


@given(st.integers(0, 2**16), st.floats(0, 30))
def test_inception_score_lies_between_one_and_the_number_of_classes(seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(11, 3))
    got = inception_score(logits, splits=1).mean
    assert 1 - 1e-12 <= got <= 3 + 1e-12
    # Logits are free up to a constant for each example.
    shifted = logits + 1e3 * rng.normal(size=(11, 1))
    np.testing.assert_allclose(inception_score(shifted, splits=1).mean, got, rtol=1e-9)


def test_answers_without_probabilities_are_reported():
    for bad in (np.nan, np.inf, -np.inf):
        logits = np.zeros((13, 3))
        logits[5] = bad
        with pytest.raises(ValueError, match="example 5 has no probabilities"):
            inception_score(logits)
    with pytest.raises(ValueError, match=r"\[examples, classes\]"):
        inception_score(np.zeros(13))


# Kernel distance


def test_kernel_distance_is_the_definition():
    a, b = make(n=23, m=19)
    got = kernel_distance(jnp.asarray(a), b, subsets=3, subset_size=11, seed=4)
    draws = oracle.subsets(23, 19, count=3, size=11, seed=4)
    each = [oracle.cubic_mmd(a[i], b[j]) for i, j in draws]
    np.testing.assert_allclose(got, (np.mean(each), np.std(each)), rtol=1e-5)
    assert got != kernel_distance(a, b, subsets=3, subset_size=11, seed=5)


def test_kernel_distance_of_whole_sets_and_of_small_features():
    """Features of 1/300: the kernel is 1 plus millionths, which float32 alone would round away."""
    a, b = make(n=17, m=17)
    for scale in (1.0, 1 / 300):
        x, y = a * np.float32(scale), b * np.float32(scale)
        mean, std = kernel_distance(x, y, subsets=2, subset_size=17, seed=0)
        want = oracle.cubic_mmd(x, y)
        np.testing.assert_allclose(mean, want, rtol=1e-5)
        assert std < 1e-5 * abs(want)


def test_kernel_distance_of_one_distribution_is_zero_up_to_its_spread():
    rng = np.random.default_rng(0)
    a, b = np.float32(rng.normal(size=(2, 400, 7)))
    same = kernel_distance(a, b, subsets=40, subset_size=50, seed=0)
    assert abs(same.mean) < same.std
    other = kernel_distance(a, b + np.float32(0.5), subsets=40, subset_size=50, seed=0)
    assert other.mean > 3 * other.std


def test_subsets_that_cannot_be_drawn_are_reported():
    a, b = make()
    with pytest.raises(ValueError, match=r"subset_size=1000 with 43 and 37 examples: it must lie in 2..37"):
        kernel_distance(a, b, seed=0)
    with pytest.raises(ValueError, match="a and b have 5 and 3 features"):
        kernel_distance(a, b[:, :3], subset_size=5, seed=0)


# Nearest neighbours, precision, recall, density and coverage


def test_nearest_neighbours_are_those_of_sorting():
    a, b = make()
    got = nearest_neighbours(jnp.asarray(b), a, k=4)
    distances = np.sqrt(((np.float64(b)[:, None] - np.float64(a)[None]) ** 2).sum(-1))
    order = np.argsort(distances, axis=1)[:, :4]
    np.testing.assert_array_equal(got.indices, order)
    np.testing.assert_allclose(got.distances, np.take_along_axis(distances, order, 1), rtol=1e-6)


@given(st.permutations(range(N)), st.integers(0, 4))
def test_copies_have_the_distance_zero(order, power):
    """Far from the origin too, where the expansion of the square loses all digits."""
    a, _ = make()
    a = a + np.float32(10.0**power)
    got = nearest_neighbours(a[np.array(order)], a)
    np.testing.assert_array_equal(got.distances, 0.0)
    np.testing.assert_array_equal(a[got.indices[:, 0]], a[np.array(order)])


def test_equal_references_come_in_their_order():
    a, _ = make(n=3)
    got = nearest_neighbours(a[:1], np.concatenate([a[1:], a[:1], a[:1]]), k=4)
    np.testing.assert_array_equal(got.indices[0, :2], [2, 3])
    with pytest.raises(ValueError, match=r"k must lie in 1..3, the number of references, got 4"):
        nearest_neighbours(a, a, k=4)


@pytest.mark.parametrize("k", [1, 3])
def test_balls_are_the_definition(k):
    a, b = make()
    want = oracle.precision_recall(a, b, k) + oracle.density_coverage(a, b, k)
    assert len(set(want)) == 4 and 0 < min(want) and max(want[:2]) < 1
    got = precision_recall(jnp.asarray(a), b, k=k) + density_coverage(a, jnp.asarray(b), k=k)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_set_against_itself_and_against_a_far_one():
    """Exactly: the k-th neighbour lies on the ball that it makes, not inside by rounding."""
    a, b = make()
    assert precision_recall(a, a) == (1.0, 1.0)
    np.testing.assert_allclose(density_coverage(a, a[::-1]), (1.0, 1.0), rtol=1e-12)
    far = b + np.float32(1e3)
    assert precision_recall(a, far) + density_coverage(a, far) == (0.0, 0.0, 0.0, 0.0)


def test_points_on_the_balls_count_for_precision_alone():
    """Real examples at 0, 1, 2, 3, 4 have balls of radius 1; the fakes lie one step outside, one of them twice."""
    real = np.arange(5.0)[:, None]
    fake = np.array([[5.0], [-1.0], [-1.0], [9.0]])
    # The twins' own balls have the radius 0, those of 5 and 9 the radius 4: all real examples but 0 are within 4 of 5.
    assert precision_recall(real, fake, k=1) == (0.75, 0.8)
    assert density_coverage(real, fake, k=1) == (0.0, 0.0)


def test_collapsed_fakes_have_precision_without_recall():
    a, _ = make()
    fake = np.repeat(a[:1], 11, 0)
    got = precision_recall(a, fake)
    assert got.precision == 1.0 and got.recall == 1 / N
    density, coverage = density_coverage(a, fake)
    np.testing.assert_allclose((density, coverage), oracle.density_coverage(a, fake, 5), rtol=1e-12)
    assert coverage < 0.5


def test_density_and_coverage_of_one_distribution():
    """Their expectations are known whatever the distribution; the mean of 60 draws lies within four errors."""
    rng = np.random.default_rng(0)
    draws = [rng.exponential(size=(31 + 23, 2)) for _ in range(60)]
    got = np.array([density_coverage(x[:31], x[31:], k=3) for x in draws])
    want = 1.0, 1 - np.prod([(31 - i) / (31 + 23 - i) for i in (1, 2, 3)])
    error = got.std(axis=0) / np.sqrt(60)
    assert (error < 0.03).all()
    assert (np.abs(got.mean(axis=0) - want) < 4 * error).all()


def test_sets_without_neighbours_are_reported():
    a, b = make()
    with pytest.raises(ValueError, match="k=3: each of the 3 fake examples needs k others"):
        precision_recall(a, b[:3])
    with pytest.raises(ValueError, match="real and fake have 5 and 3 features"):
        density_coverage(a, b[:, :3])
    with pytest.raises(
        ValueError, match="fake: 1 of 37 examples hold NaN or infinity, the first is example 36"
    ):
        density_coverage(a, np.concatenate([b[:-1], b[-1:] * np.inf]))


def test_no_matrix_of_distances_is_held():
    x = jax.ShapeDtypeStruct((10_007, 13), jnp.float32)
    radii = jax.ShapeDtypeStruct((10_007,), jnp.float32)
    for lowered in (
        neighbours._nearest.lower(x, x, k=4),
        neighbours._count_balls.lower(x, x, radii, strict=True),
    ):
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 4 * 10_007**2 / 20


# R-precision


def test_r_precision_with_all_candidates_is_recall_at_one():
    a, b = make(n=29, m=29)
    got = r_precision(a, jnp.asarray(b + a), candidates=29, seed=0)
    want = oracle.r_precision(a, b + a, 29, np.arange(29))
    assert 0.1 < want < 0.9 and got == pytest.approx(want)


@pytest.mark.parametrize("groups", [None, np.arange(29) * 7 % 11])
def test_r_precision_averages_to_its_expectation(groups):
    a, b = make(n=29, m=29)
    got = [r_precision(a, b + a, candidates=5, seed=seed, groups=groups) for seed in range(60)]
    want = oracle.r_precision(a, b + a, 5, np.arange(29) if groups is None else groups)
    error = np.std(got) / np.sqrt(60)
    assert 0 < error < 0.015
    assert abs(np.mean(got) - want) < 4 * error


def test_captions_of_one_picture_are_not_drawn_against_each_other():
    a, _ = make(n=11)
    texts = np.repeat(a, 3, 0)
    assert r_precision(texts, texts, candidates=11, seed=0, groups=np.repeat(np.arange(11), 3)) == 1.0
    # Without the groups the equal sentences tie, and a tie is wrong.
    assert r_precision(texts, texts, candidates=33, seed=0) == 0.0


@pytest.mark.parametrize("candidates", [4, 10])
def test_a_guess_is_right_in_one_of_the_candidates_also_where_captions_repeat(candidates):
    """Ten distinct captions, each of them of a hundred images that have nothing to do with them."""
    rng = np.random.default_rng(0)
    images, captions = rng.normal(size=(1000, 8)), rng.normal(size=(10, 8))
    groups = np.arange(1000) % 10
    got = r_precision(images, captions[groups], candidates=candidates, seed=0, groups=groups)
    deviation = np.sqrt((1 - 1 / candidates) / candidates / 1000)
    assert abs(got - 1 / candidates) < 4 * deviation
    with pytest.raises(ValueError, match="1000 texts in 10 groups are too few for candidates=100"):
        r_precision(images, captions[groups], seed=0, groups=groups)


def test_collapsed_embeddings_are_never_right():
    a, _ = make()
    for collapsed in (np.zeros_like(a), np.ones_like(a), np.repeat(a[:1], N, 0)):
        assert r_precision(a, collapsed, candidates=7, seed=0) == 0.0


def test_candidates_that_do_not_exist_are_reported():
    a, b = make(n=13, m=13)
    with pytest.raises(ValueError, match="13 texts in 13 groups are too few for candidates=100"):
        r_precision(a, b, seed=0)
    with pytest.raises(ValueError, match="13 texts in 2 groups are too few for candidates=3"):
        r_precision(a, b, candidates=3, seed=0, groups=np.array([4, 4] + 11 * [1]))
    with pytest.raises(ValueError, match="13 images and 12 texts"):
        r_precision(a, b[:12], seed=0)
    with pytest.raises(ValueError, match=r"groups must be \[13\]"):
        r_precision(a, b, candidates=5, seed=0, groups=np.zeros((13, 1)))


# The same numbers as the peers'; see requirements-parity.txt


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's functions of features alone: the package imports torchvision for its extractors."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("needs torch-fidelity")
    package, utils = types.ModuleType("torch_fidelity"), types.ModuleType("torch_fidelity.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.__getattr__ = lambda name: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        patch.setitem(sys.modules, "torch_fidelity.utils", utils)
        yield types.SimpleNamespace(
            **{
                name: importlib.import_module(f"torch_fidelity.metric_{name}")
                for name in ("fid", "isc", "kid", "prc")
            }
        )


def tensors(*arrays):
    torch = pytest.importorskip("torch")
    return [torch.tensor(np.float64(x)) for x in arrays]


def test_frechet_distance_is_torch_fidelitys(fidelity):
    a, b = make()
    statistics = [fidelity.fid.fid_features_to_statistics(x) for x in tensors(a, b)]
    want = fidelity.fid.fid_statistics_to_metric(*statistics, verbose=False)
    got = frechet_distance(moments(a), moments(b))
    np.testing.assert_allclose(got, want["frechet_inception_distance"], rtol=1e-9)


@pytest.mark.parametrize("seed", [None, 2020])
def test_inception_score_is_torch_fidelitys(fidelity, seed):
    logits = 2 * np.random.default_rng(0).normal(size=(N, 7))
    want = fidelity.isc.isc_features_to_metric(*tensors(logits), shuffle=seed is not None)
    np.testing.assert_allclose(inception_score(logits, seed=seed), list(want.values()), rtol=1e-10)


def test_kernel_distance_is_torch_fidelitys(fidelity):
    a, b = make()
    options = {"kid_subsets": 7, "kid_subset_size": 17, "rng_seed": 2020, "verbose": False}
    want = fidelity.kid.kid_features_to_metric(*tensors(a, b), **options)
    got = kernel_distance(a, b, subsets=7, subset_size=17, seed=2020)
    np.testing.assert_allclose(got, list(want.values()), rtol=1e-5)


def test_precision_and_recall_are_torch_fidelitys(fidelity):
    real, fake = make()
    want = fidelity.prc.prc_features_to_metric(*tensors(fake, real), verbose=False)
    np.testing.assert_allclose(precision_recall(real, fake), (want["precision"], want["recall"]), rtol=1e-6)


@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage_are_those_of_their_authors(k):
    prdc = pytest.importorskip("prdc")
    real, fake = make()
    want = prdc.compute_prdc(np.float64(real), np.float64(fake), k)
    np.testing.assert_allclose(
        density_coverage(real, fake, k=k), (want["density"], want["coverage"]), rtol=1e-12
    )
    # Without ties it does not matter that the authors' precision and recall are strict.
    np.testing.assert_allclose(
        precision_recall(real, fake, k=k), (want["precision"], want["recall"]), rtol=1e-12
    )
