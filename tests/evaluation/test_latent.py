"""Scores of models whose answers are known, since they are written by hand; and of a real one, once."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.evaluation import painters
from tests.evaluation.painters import CLASSES, IMAGES, explore, ignorant, level, of_the_first, perfect, source
from tests.models.vae import multimodal
from tests.support import assert_trees_identical
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset, keep_labelled
from xmodal_jax.evaluation import latent as scores
from xmodal_jax.evaluation import latent_data
from xmodal_jax.evaluation.embeddings import evenly_spread, take_evenly
from xmodal_jax.evaluation.latent import SMOKE, LabelledLatents, LatentEvaluation, SourceLatents
from xmodal_jax.evaluation.latent_data import count_classes, known_factors
from xmodal_jax.metrics.disentanglement import mutual_information_gap
from xmodal_jax.metrics.generative import kernel_distance
from xmodal_jax.models.vae.judges import JudgeOutputs, make_judges
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.nets.encoders import MLPEncoderConfig
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.run import Run

# Classes of different sizes, in batches of 7 the last of which is padded; one example's class is not known.
LABELS = np.array([0] * 9 + [1] * 3 + [2] * 5 + [3] * 2 + [-1] + [0, 1, 2])


def test_a_perfect_translator_is_coherent_whatever_it_is_given():
    found, classes, real = scores.coherence_metrics(explore(IMAGES), {}, {}, source(IMAGES, LABELS))
    same = {k: v for k, v in found.items() if "coherence" in k}
    names = [f"cross/{what}@{k}" for what in ("coherence", "self_coherence") for k in (1, 2)]
    assert same == dict.fromkeys([*names, "cross/coherence"], 1.0)
    # Pictures are the data's own, so that their distance is 0; the kernel's, of halves of them, is it on average.
    assert found["cross/judge_frechet_distance"] < 1e-9
    assert set(found) == {*same, "cross/judge_frechet_distance", "cross/judge_kernel_distance"}
    assert classes.shape == (7, 3, len(LABELS))
    np.testing.assert_array_equal(classes, np.broadcast_to(np.maximum(LABELS, 0), classes.shape))


def test_one_that_ignores_what_it_is_given_has_chance():
    found, _, _ = scores.coherence_metrics(explore(IMAGES, ignorant), {}, {}, source(IMAGES, LABELS))
    for name in ("coherence@1", "coherence@2", "coherence", "self_coherence@1", "self_coherence@2"):
        assert found[f"cross/{name}"] == pytest.approx(1 / CLASSES, abs=1e-12)


def test_one_that_transmits_the_first_modality_alone_is_right_where_that_is_given():
    found, classes, real = scores.coherence_metrics(
        explore(IMAGES, of_the_first), {}, {}, source(IMAGES, LABELS)
    )
    chance = 1 / CLASSES
    # Of one modality: two pairs from image_0, four from others; of two: {0, 1}, {0, 2} and {1, 2}.
    assert found["cross/coherence@1"] == pytest.approx((2 + 4 * chance) / 6)
    assert found["cross/coherence@2"] == pytest.approx((2 + chance) / 3)
    assert found["cross/self_coherence@1"] == pytest.approx((1 + 2 * chance) / 3)
    assert found["cross/self_coherence@2"] == pytest.approx((4 + 2 * chance) / 6)
    assert found["cross/coherence"] == pytest.approx(
        np.mean([found["cross/coherence@1"], found["cross/coherence@2"]])
    )
    pairs = scores.pair_coherence(explore(IMAGES, of_the_first), classes, source(IMAGES, LABELS))
    expected = {(a, b): 1.0 if a == IMAGES[0] else chance for a in IMAGES for b in IMAGES if a != b}
    assert pairs == pytest.approx({f"cross/{a}_to_{b}/coherence": v for (a, b), v in expected.items()})
    right = (classes == LABELS).all(axis=(1, 2), where=(LABELS >= 0)[None, None])
    np.testing.assert_array_equal(right, [True, False, False, True, True, False, True])


def test_examples_that_lack_what_would_be_given_are_left_out():
    rng = np.random.default_rng(0)
    present = {m: rng.random(len(LABELS)) < 0.7 for m in IMAGES}
    there = np.stack(list(present.values()))
    assert not there.all(axis=1).any()
    # It is wrong about every example that lacks anything given, and about no other.
    wrong = lambda here, seen: jnp.where(
        here.sum(axis=0)[None] == here.any(axis=1).sum(), seen.max(axis=0), 9.0
    )
    spread = lambda here, seen: jnp.broadcast_to(wrong(here, seen), seen.shape)
    explorer = explore(IMAGES, spread, batch_size=len(LABELS))
    found, _, _ = scores.coherence_metrics(explorer, {}, {}, source(IMAGES, LABELS, present=present))
    assert found["cross/coherence@1"] == found["cross/coherence@2"] == found["cross/self_coherence@2"] == 1.0


def test_missing_modalities_are_neither_judged_nor_compared():
    """A missing picture is black, of no class; whatever is made of it is not compared either."""
    rng = np.random.default_rng(1)
    labels = rng.integers(1, CLASSES, 40)
    present = {m: rng.random(40) < 0.6 for m in IMAGES}
    data, explorer = source(IMAGES, labels, present=present), explore(IMAGES, batch_size=11)
    assert scores.judge_accuracy(explorer, {}, data) == {f"judge/{m}": 1.0 for m in IMAGES}
    found = scores.reconstruction_metrics(explorer, {}, data)
    assert found == pytest.approx({f"reconstruction_{m}/mse": 0.0 for m in IMAGES}, abs=1e-12)
    found, classes, real = scores.coherence_metrics(explorer, {}, {}, data)
    pairs = [
        (labels[present[told]], labels[present[given]])
        for told in IMAGES
        for given in IMAGES
        if told != given
    ]
    expected = np.mean([(a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2 for a, b in pairs])
    assert expected > 1e-3
    assert found["cross/judge_frechet_distance"] == pytest.approx(expected, rel=1e-4)
    draws = {"prior": np.stack([labels, 0 * labels], axis=1)}
    explorer.vae = explorer.vae._replace(
        decoder_latents=lambda p, shared, key: painters.make_painter(IMAGES).decoder_latents(p, shared, None)
    )
    found = scores.joint_metrics(explorer, {}, {}, draws, real)
    own = [labels[present[m]] for m in IMAGES]
    expected = np.mean(
        [(a.mean() - labels.mean()) ** 2 + (a.std(ddof=1) - labels.std(ddof=1)) ** 2 for a in own]
    )
    assert found["joint_prior/judge_frechet_distance"] == pytest.approx(expected, rel=1e-4)


def test_distances_of_pictures_are_means_over_pairs_of_one_given_and_another_told():
    """Each pair's pictures are off by an amount of its own, and by one for the subsets of two that do not count."""
    names = (*IMAGES[:2], "text")
    offs = np.array([[7.0, 0.2, 7.0], [-0.3, 7.0, 7.0], [0.1, 0.05, 7.0]])  # given, told

    def shade(given, there):
        alone = (given[:, None] * jnp.asarray(offs)).sum(axis=0)
        return jnp.where(given.sum() == 1, alone, 5.0)[:, None]

    labels = np.arange(24) % CLASSES
    explorer, data = explore(names, shade=shade), source(names, labels)
    found, classes, real = scores.coherence_metrics(explorer, {}, {}, data)
    np.testing.assert_allclose(real[:, :, 0], np.repeat(labels[:, None], 3, axis=1), atol=1e-5)
    counted = [offs[g, t] for t in (0, 1) for g in range(3) if g != t]
    # Pictures are rounded to 1/255, which is 1/60 of a class.
    assert found["cross/judge_frechet_distance"] == pytest.approx(np.mean(np.square(counted)), rel=0.02)
    real = labels[:, None].astype(float)
    kernel = [kernel_distance(real, real + off, seed=0, subsets=20, subset_size=12).mean for off in counted]
    assert found["cross/judge_kernel_distance"] == pytest.approx(np.mean(kernel), rel=0.05)


def test_distances_of_features_are_those_of_gaussians():
    rng = np.random.default_rng(3)
    real, made = rng.normal(size=(50, 2, 3)), rng.normal(1.0, 2.0, size=(31, 2, 3))
    explorer = explore(IMAGES[:2])
    explorer.judge_draws = lambda params, judged, shared: JudgeOutputs(np.zeros((31, 2, CLASSES)), made)
    found = scores.joint_metrics(explorer, {}, {}, {"mixture": np.zeros((31, 2))}, real)

    def distance(a, b):
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)

    expected = np.mean([distance(real[:, k], made[:, k]) for k in range(2)])
    assert found["joint_mixture/judge_frechet_distance"] == pytest.approx(expected, rel=1e-6)
    assert found["joint_mixture/coherence"] == 1.0 and found["joint_mixture/judge_kernel_distance"] > 0


def test_joint_coherence_is_the_share_of_draws_whose_modalities_agree():
    shared = np.zeros((23, 2))
    shared[:, 0] = np.arange(23) % 3
    shared[:5, 1] = 1.0  # the last modality of these is of the next class
    explorer, real = explore(IMAGES), np.zeros((4, 3, 1))
    draws = {"prior": shared, "flow": np.zeros((3, 2))}
    found = scores.joint_metrics(explorer, {}, {}, draws, real)
    assert found["joint_prior/coherence"] == pytest.approx(18 / 23)
    assert found["joint_flow/coherence"] == 1.0
    dreamt = explorer.judge_draws({}, {}, shared)
    np.testing.assert_array_equal(dreamt.logits.argmax(axis=-1)[:, 0], shared[:, 0])
    np.testing.assert_array_equal(dreamt.logits.argmax(axis=-1)[:, 2], shared[:, 0] + shared[:, 1])


def test_every_draw_has_noise_of_its_own_and_the_same_again():
    """Also in the next batch of 7."""
    explorer, shared = explore(IMAGES), np.ones((23, 2), np.float32)
    noise = explorer.judge_draws({}, {}, shared).features[:, :, 0]
    assert noise.shape == (23, 3) and len(np.unique(noise.round(2))) > 12
    assert not np.array_equal(noise[:7], noise[7:14])
    np.testing.assert_array_equal(explorer.judge_draws({}, {}, shared).features[:, :, 0], noise)


def test_codes_are_means_of_each_modality_alone_and_of_all_and_draws_of_all():
    labels = np.arange(17) % CLASSES
    found = explore(IMAGES).encode({}, source(IMAGES, labels))
    number = np.array([1.0, 2.0, 4.0])
    index = np.arange(17.0)
    assert found.unimodal.shape == (17, 3, 4)
    for k in range(3):
        expected = np.stack([labels, np.full(17, number[k]), np.zeros(17), index], axis=1)
        np.testing.assert_allclose(found.unimodal[:, k], expected, atol=1e-5)
    np.testing.assert_allclose(found.mean, np.stack([labels, 0 * index + 7, 0 * index, index], 1), atol=1e-5)
    np.testing.assert_allclose(
        found.samples, np.stack([labels, 0 * index + 7, 0 * index + 1, index], 1), atol=1e-5
    )


def test_likelihoods_are_told_what_is_given_and_what_is_asked():
    labels = np.arange(13) % CLASSES
    explorer, data = explore(IMAGES), source(IMAGES, labels)
    estimate = lambda given, told, samples: explorer.log_likelihood({}, data, given, told, samples)
    yes, no = True, False
    for given, told, samples, expected in (
        ((yes, no, no), (no, yes, no), 3, 1 + 200 + 30_000),
        ((yes, no, no), (no, yes, no), 5, 1 + 200 + 50_000),
        ((no, yes, yes), (yes, yes, yes), 3, 6 + 700 + 30_000),
        ((yes, no, no), (no, yes, no), 3, 1 + 200 + 30_000),  # and again
    ):
        np.testing.assert_allclose(estimate(given, told, samples), expected + labels / 4, rtol=1e-7)
    how = LatentEvaluation(likelihood_examples=5, likelihood_samples=2)
    found = scores.likelihood_metrics(explorer, {}, data, how)
    mean = labels[[0, 3, 6, 9, 12]].mean() / 4
    assert found["likelihood/joint"] == pytest.approx(7 + 700 + 20_000 + mean, rel=1e-7)
    # Of all by codes of all, less that of all but the first by codes of these.
    assert found["likelihood/conditional"] == pytest.approx(707 - 606, abs=0.01)


def test_likelihoods_are_means_over_the_examples_that_have_the_modality():
    labels = np.arange(13) % CLASSES
    explorer, data = explore(IMAGES), source(IMAGES, labels)
    present = {IMAGES[0]: labels == 0}
    whole = explorer.vae.log_likelihood
    double_joint = lambda p, b, k, given, told, s: (
        whole(p, b, k, given, told, s) * (2.0 if given.all() else 1.0)
    )
    explorer.vae = explorer.vae._replace(log_likelihood=double_joint)
    data.presence = lambda indices=slice(None): {m: mask[indices] for m, mask in present.items()}
    found = scores.likelihood_metrics(explorer, {}, data, LatentEvaluation(likelihood_samples=2))
    joint = np.float64(explorer.log_likelihood({}, data, (True,) * 3, (True,) * 3, 2))
    others = np.float64(explorer.log_likelihood({}, data, (False, True, True), (False, True, True), 2))
    assert found["likelihood/joint"] == pytest.approx(joint.mean(), rel=1e-6)
    assert found["likelihood/conditional"] == pytest.approx((joint - others)[labels == 0].mean(), abs=0.01)


def test_a_likelihood_that_cannot_be_computed_is_left_out():
    explorer, data = explore(IMAGES), source(IMAGES, np.arange(5) % CLASSES)
    whole = explorer.vae.log_likelihood
    explorer.vae = explorer.vae._replace(
        log_likelihood=lambda p, b, k, given, told, s: (
            whole(p, b, k, given, told, s) + (0.0 if given.all() else jnp.nan)
        )
    )
    assert set(scores.likelihood_metrics(explorer, {}, data, SMOKE)) == {"likelihood/joint"}


def test_what_is_rebuilt_is_compared_in_pixels_and_tokens_that_count():
    names, labels = ("image_0", "image_1", "text"), np.arange(10) % CLASSES
    shade = lambda given, there: jnp.array([[0.0], [0.5], [0.0]])  # a half of a class is 30 of 255
    data = source(names, labels, side=12)
    found = scores.reconstruction_metrics(explore(names, shade=shade, side=12), {}, data)
    assert found["reconstruction_image_0/mse"] == pytest.approx(0.0, abs=1e-12)
    assert found["reconstruction_image_1/mse"] == pytest.approx((30 / 255) ** 2, rel=1e-5)
    assert found["reconstruction_image_0/ssim"] == pytest.approx(1.0, abs=1e-5)
    assert 0.5 < found["reconstruction_image_1/ssim"] < 0.999
    assert found["reconstruction_text/token_accuracy"] == 1.0  # what follows the end does not count
    wrong = lambda here, seen: seen.at[2].add(
        -1.0
    )  # of three tokens the end alone is right, never one of padding
    found = scores.reconstruction_metrics(explore(names, wrong, side=12), {}, data)
    assert found["reconstruction_text/token_accuracy"] == pytest.approx(1 / 3)
    small = scores.reconstruction_metrics(explore(names), {}, source(names, labels))
    assert "reconstruction_image_0/ssim" not in small  # no window of 11 pixels fits


def test_judges_are_judged_on_known_classes():
    labels = np.array([0, 1, 2, 3, -1, 2, 2, 1, 0])
    data = source(IMAGES, labels)
    data.arrays["image_1"] = data.arrays["image_1"][::-1].copy()  # 2 and 1 at either end are wrong
    found = scores.judge_accuracy(explore(IMAGES, batch_size=4), {}, data)
    told = np.maximum(labels[::-1], 0)
    expected = (told == labels)[labels >= 0].mean()
    assert 0 < expected < 1
    assert found == {"judge/image_0": 1.0, "judge/image_1": pytest.approx(expected), "judge/image_2": 1.0}


def test_one_modality_has_no_others_to_be_told_by():
    names, labels = ("image",), np.arange(9) % CLASSES
    explorer, data = explore(names), source(names, labels)
    found, classes, real = scores.coherence_metrics(explorer, {}, {}, data)
    assert found == {} and real.shape == (9, 1, 1)
    shared = np.stack([labels, 0 * labels], axis=1)
    assert set(scores.joint_metrics(explorer, {}, {}, {"prior": shared}, real)) == {
        "joint_prior/judge_frechet_distance", "joint_prior/judge_kernel_distance",
    }  # fmt: skip
    likelihood = scores.likelihood_metrics(explorer, {}, data, SMOKE)
    assert likelihood == {"likelihood/test": pytest.approx(1 + 100 + 30_000 + labels.mean() / 4, rel=1e-7)}
    assert explorer.encode({}, data).unimodal.shape == (9, 1, 4)


def test_without_pictures_nothing_is_compared_by_features():
    names, labels = ("text", "text_other"), np.arange(9) % CLASSES
    explorer, data = explore(names), source(names, labels)
    found, classes, real = scores.coherence_metrics(explorer, {}, {}, data)
    assert found == {"cross/coherence@1": 1.0, "cross/self_coherence@1": 1.0, "cross/coherence": 1.0}
    found = scores.joint_metrics(explorer, {}, {}, {"prior": np.zeros((3, 2))}, real)
    assert found == {"joint_prior/coherence": 1.0}


def test_what_codes_know_is_probed_and_clustered():
    """The class lies in one dimension of the code of all and of image_0 alone, beside noise; image_1's is noise."""
    rng = np.random.default_rng(0)

    def codes(n):
        labels = rng.integers(0, 2, n)
        whole = np.stack([10.0 * labels, 1e-3 * rng.normal(size=n)], axis=1) + 1e4
        unimodal = np.stack([whole, rng.normal(size=(n, 2))], axis=1)
        return LabelledLatents(SourceLatents(unimodal=unimodal, mean=whole, samples=whole), labels)

    train, test = codes(203), codes(151)
    train.labels[:9] = test.labels[:7] = -1  # what is not known is not asked
    factors = np.stack([np.maximum(test.labels, 0), rng.integers(0, 2, 151)], axis=1)
    found = scores.latent_metrics(IMAGES[:2], train, test, 0)
    assert set(found) == {
        "latent/probe", "latent/probe_image_0", "latent/probe_image_1", "latent/clustering_accuracy",
        "latent/clustering_purity", "latent/adjusted_rand",
    }  # fmt: skip
    assert found["latent/probe"] == found["latent/probe_image_0"] == 1.0
    assert abs(found["latent/probe_image_1"] - 1 / 2) < 0.15
    assert found["latent/clustering_accuracy"] == found["latent/clustering_purity"] == 1.0
    assert found["latent/adjusted_rand"] == 1.0
    assert scores.disentanglement_metrics(test.latents.mean, factors[:, :1], 0) == {}
    assert scores.disentanglement_metrics(test.latents.mean[:15], factors[:15], 0) == {}
    found = scores.disentanglement_metrics(test.latents.mean, factors, 0)
    more = {"mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness"}
    assert {f"latent/{name}" for name in more} == set(found) and 0.3 < found["latent/mig"] <= 0.6


def test_answers_do_not_depend_on_where_parameters_lie():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    weights = {"w": np.ones(3, np.float32)}
    explorer, data = explore(IMAGES, of_the_first), source(IMAGES, LABELS)
    one = explorer.translate(weights, {}, data)
    several = explorer.translate(jax.device_put(weights, everywhere), {}, data)
    assert_trees_identical(one, several)
    shared = np.stack([np.arange(11) % 3, np.zeros(11)], axis=1)
    of_one = explorer.judge_draws(weights, {}, shared).logits.argmax(axis=-1)
    np.testing.assert_array_equal(
        of_one, explorer.judge_draws(jax.device_put(weights, everywhere), {}, shared).logits.argmax(axis=-1)
    )


# What is evaluated


@pytest.mark.parametrize(
    "field",
    [
        "examples",
        "draws",
        "components",
        "flow_steps",
        "flow_matching_steps",
        "latents",
        "likelihood_examples",
        "likelihood_samples",
    ],
)
def test_amounts_must_be_positive(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        LatentEvaluation(**{field: 0})


def test_samplers_must_be_known():
    with pytest.raises(ValueError, match="'gaussian' is none of mixture, flow, flow_matching"):
        LatentEvaluation(densities=("mixture", "gaussian"))
    assert LatentEvaluation(densities=()).densities == ()


def test_a_few_examples_are_evenly_spread_and_all_where_there_are_no_more():
    np.testing.assert_array_equal(evenly_spread(101, 5), [0, 25, 50, 75, 100])
    np.testing.assert_array_equal(evenly_spread(3, 5), [0, 1, 2])
    np.testing.assert_array_equal(evenly_spread(1, 5), [0])
    for size, count in ((97, 96), (1000, 999), (13, 1)):
        found = evenly_spread(size, count)
        assert len(found) == count and 0 <= found.min() and found.max() < size
    data = source(IMAGES, np.arange(101))
    np.testing.assert_array_equal(take_evenly(data, 5).class_labels(), [0, 25, 50, 75, 100])


def test_samplers_are_fitted_to_the_codes_and_the_seed():
    rng = np.random.default_rng(0)
    codes = rng.normal([3.0, -5.0], [0.1, 2.0], size=(300, 2))
    how = LatentEvaluation(components=1, densities=("mixture",))
    found = scores.fit_densities(codes, how, 0)
    assert list(found) == ["mixture"]
    drawn = found["mixture"].sample(4000, 1)
    np.testing.assert_allclose(drawn.mean(axis=0), codes.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0), codes.std(axis=0), rtol=0.1)
    assert scores.fit_densities(codes, dataclasses.replace(how, densities=()), 0) == {}


def test_a_density_is_fitted_by_flow_matching():
    rng = np.random.default_rng(0)
    latents = rng.normal([3.0, -5.0], [0.1, 2.0], size=(300, 2))
    evaluation = LatentEvaluation(densities=("flow_matching",), flow_matching_steps=1)
    densities = scores.fit_densities(latents, evaluation, 0)
    assert list(densities) == ["flow_matching"]
    samples = densities["flow_matching"].sample(300, 1)
    np.testing.assert_allclose(samples.mean(axis=0), latents.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(samples.std(axis=0), latents.std(axis=0), rtol=0.25)


def test_classes_are_counted_by_name_or_by_label():
    labels = np.array([0, 2, -1, 1])
    assert latent_data.count_classes(source(IMAGES, labels)) == 3
    assert latent_data.count_classes(source(IMAGES, labels, tuple("abcde"))) == 5


def test_known_factors_of_scenes_are_of_the_examples_asked():
    scenes = SpokenShapes("test", size=40, modalities=("text",), seed=1)
    whole = scenes.factors(np.arange(40))
    single = np.flatnonzero(whole["num_objects"] == 1)
    found = latent_data.known_factors(keep_labelled(scenes))
    expected = [whole[name][single, 0] for name in ("shape", "colour", "size")] + [whole["place"][single]]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    assert found.shape[0] < 40 and (found >= 0).all()
    labels = np.array([1, 0, 3])
    np.testing.assert_array_equal(latent_data.known_factors(source(IMAGES, labels)), labels[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    judge_steps: int = 300
    evaluation: LatentEvaluation = LatentEvaluation()


def test_a_smoke_run_is_small_and_has_enough_codes():
    config = scores.shrink_latent(Config(input=DataOptions(train_size=20_000, missing=0.5)))
    assert config.evaluation == SMOKE and config.judge_steps < 10
    assert config.input.train_size == 150 and config.input.missing == 0.5


# A real model

FINITE = (
    "cross/coherence", "cross/coherence@1", "cross/coherence@2", "cross/self_coherence@1", "cross/self_coherence@2",
    *(f"cross/{a}_to_{b}/coherence" for a in multimodal.NAMES for b in multimodal.NAMES if a != b),
    "cross/judge_frechet_distance", "cross/judge_kernel_distance", *(f"judge/{m}" for m in multimodal.NAMES),
    *(f"joint_{name}/coherence" for name in ("prior", "flow")),
    *(f"joint_{name}/judge_{kind}_distance" for name in ("prior", "flow") for kind in ("frechet", "kernel")),
    "reconstruction_image_0/mse", "reconstruction_image_1/mse", "likelihood/joint", "likelihood/conditional",
    "latent/probe", *(f"latent/probe_{m}" for m in multimodal.NAMES), "latent/clustering_accuracy",
    "latent/clustering_purity", "latent/adjusted_rand", *(f"latent/{what}" for what in ("mig", "sap")),
    *(f"latent/dci_{what}" for what in ("disentanglement", "completeness", "informativeness")),
)  # fmt: skip


def test_everything_of_a_real_model(tmp_path):
    """Judges that were trained and go on from where they were, and all scores; nothing that is not finite."""
    vae, params = multimodal.started("mopoe")
    batch = multimodal.make_batch(60)
    batch["label"] = np.arange(60, dtype=np.int32) % multimodal.CLASSES
    arrays = {k: v for k, v in batch.items() if k not in ("present", "index", "step")}
    train = ArraySource(arrays)
    sizes = sizes_of(batch, multimodal.NAMES, multimodal.CONFIGS, classes=multimodal.CLASSES)
    small = {"image": MLPEncoderConfig(width=8, depth=1), "label": None}
    judges = make_judges(multimodal.CONFIGS, sizes, multimodal.CLASSES, hidden=8, encoders=small)
    config = RunConfig(steps=50, batch_size=8, seeds=2, eval_every=2, patience=1, run_dir=tmp_path / "run")
    loader = Loader(train, batch_size=8, seed=0)
    position = loader.position()
    trained = []
    for resume in (False, True):
        config = dataclasses.replace(config, resume=resume)
        with Run.create(config.run_dir, config, resume=resume, tensorboard=False) as run:
            timer = Timer()
            trained.append(scores.fit_judges(judges, loader, config, run, timer, 3))
            timer.clock.close()
    assert loader.position() == position
    assert_trees_identical(*(jax.tree.map(np.asarray, p) for p in trained))
    kept = json.loads((config.run_dir / "judges" / "config.json").read_text())
    assert (kept["steps"], kept["seeds"], kept["eval_every"], kept["patience"]) == (3, 1, 0, 0)
    loader.close()

    test = Subset(train, np.arange(40))
    factors = np.stack([arrays["label"][:40], np.arange(40) % 2], axis=1)
    how = dataclasses.replace(SMOKE, examples=18, disentanglement=True)
    explorer = scores.LatentEvaluator(vae, multimodal.CONFIGS, judges, batch_size=12)
    found = scores.evaluate_latent(explorer, params, trained[0], train, test, factors, how, 0)
    assert set(found.metrics) == set(FINITE)
    assert all(type(v) is float and np.isfinite(v) for v in found.metrics.values())
    assert found.metrics["judge/label"] >= 0 and found.classes.shape == (7, 3, 18)
    np.testing.assert_array_equal(found.labels, arrays["label"][evenly_spread(40, 18)])
    assert found.latents.mean.shape == (18, 4) and set(found.draws) == {"prior", "flow"}
    assert all(x.shape == (24, 4) for x in found.draws.values())


def test_a_model_without_a_likelihood_is_not_asked_for_one():
    """Of the examples that are looked at labels and factors are those of the same rows."""
    labels = np.arange(40) // 4 % 2
    train = test = source(IMAGES, labels)
    how = LatentEvaluation(examples=24, draws=9, latents=20, densities=())
    explorer = explore(IMAGES)
    explorer.vae = explorer.vae._replace(log_likelihood=None)
    factors = np.stack([labels, np.random.default_rng(1).integers(0, 2, 40)], axis=1)
    explorer.encode = lambda params, data: SourceLatents(
        mean=np.stack([data.class_labels(), np.random.default_rng(0).normal(size=len(data))], axis=1),
        unimodal=np.zeros((len(data), 3, 1)),
        samples=np.zeros((len(data), 2)),
    )
    found = scores.evaluate_latent(explorer, {}, {}, train, test, factors, how, 0, has_likelihood=False)
    assert not [k for k in found.metrics if "likelihood" in k] and set(found.draws) == {"prior"}
    assert found.metrics["cross/coherence"] == found.metrics["joint_prior/coherence"] == 1.0
    rows = np.linspace(0, 39, 24).astype(int)
    np.testing.assert_array_equal(found.labels, labels[rows])
    # The class is one code exactly, which other rows' factors are not.
    codes = explorer.encode({}, Subset(test, rows)).mean
    assert found.metrics["latent/mig"] == pytest.approx(mutual_information_gap(codes, factors[rows]))
    assert found.metrics["latent/mig"] != pytest.approx(mutual_information_gap(codes, factors[:24]))
    off = dataclasses.replace(how, disentanglement=False)
    found = scores.evaluate_latent(explorer, {}, {}, train, test, factors, off, 0, has_likelihood=False)
    assert "latent/mig" not in found.metrics and "latent/probe" in found.metrics


def test_data_without_classes_have_the_scores_that_need_none():
    """With a judge the others are there too; nobody asks the judge, and no example is left out."""
    how = LatentEvaluation(examples=24, draws=9, latents=20, densities=())
    found, shown = {}, {}
    for labelled in (True, False):
        data = source(IMAGES, np.arange(40) % 2)
        explorer = explore(IMAGES)
        if not labelled:
            data = ArraySource({name: data.batch(np.arange(40))[name] for name in IMAGES})
            explorer.judges = None
        factors = known_factors(data)
        results = scores.evaluate_latent(
            explorer, {}, None, data, data, factors, how, 0, has_likelihood=False
        )
        found[labelled], shown[labelled] = results.metrics, results.labels
    assert count_classes(data) == 0 and factors.shape == (40, 0)
    assert {name.split("/")[0] for name in found[False]} == {f"reconstruction_{name}" for name in IMAGES}
    assert found[False] == {name: found[True][name] for name in found[False]} and len(found[True]) > len(
        found[False]
    )
    assert shown[False].tolist() == [-1] * 24 and (shown[True] >= 0).all()


def test_what_painters_show_is_what_judges_read():
    """The tests above rest on it."""
    data = source(painters.MIXED, np.arange(CLASSES))
    batch = {**data.batch(np.arange(CLASSES)), "index": np.arange(CLASSES)}
    verdict = painters.make_judges(painters.MIXED).method.predict({}, batch)
    np.testing.assert_array_equal(
        verdict.logits.argmax(-1), np.repeat(np.arange(CLASSES)[:, None], 4, axis=1)
    )
    assert level(CLASSES - 1) < 1.0
    assert perfect(jnp.zeros((2, 3), bool), jnp.ones((2, 3))).sum() == 0
