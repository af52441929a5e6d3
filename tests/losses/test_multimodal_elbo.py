import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.losses.multimodal import (
    AFTER,
    ALPHA,
    CASES,
    PRESENT,
    SCALE,
    B,
    C,
    D,
    Example,
    K,
    M,
    X,
    as_tree,
    by_oracle,
    make_inputs,
    make_world,
    restricted,
    terms_of,
)
from tests.oracles import linear_gaussian
from tests.oracles import multimodal as oracle
from xmodal_jax.core.random import example_keys
from xmodal_jax.losses import multimodal_elbo as objectives
from xmodal_jax.losses.objective import ObjectiveInputs
from xmodal_jax.probability.distributions import Normal
from xmodal_jax.probability.posteriors import all_subsets
from xmodal_jax.probability.priors import Prior

LEARNED = [
    "mean", "log_scale", "own_mean", "own_log_scale", "joint_mean", "joint_log_scale", "w", "offset", "components",
    "component_log_scale", "logits", "own_prior", "own_prior_log_scale", "aux_mean", "aux_log_scale", "stretch",
    "shift", "message", "gather", "tell", "subset_logits",
]  # fmt: skip
OF_MODALITIES = ["mean", "log_scale", "own_mean", "own_log_scale"]
WORLD = make_world()
cases = pytest.mark.parametrize("name", CASES)


@functools.cache
def compiled(name):
    def loss(learned, rest):
        terms = terms_of(CASES[name], rest | learned)
        return (terms.loss * jnp.asarray(AFTER, jnp.float32)).sum(), terms

    return jax.jit(jax.grad(loss, has_aux=True))


def evaluate(name, world, **changes):
    """The terms, and the gradients of the sum of losses times ``AFTER``."""
    t = as_tree(world, CASES[name]) | changes
    grads, terms = compiled(name)({k: t[k] for k in LEARNED}, {k: t[k] for k in t if k not in LEARNED})
    return jax.tree.map(np.asarray, (terms, grads))


@functools.cache
def compiled_value(name):
    return jax.jit(functools.partial(terms_of, CASES[name]))


def run(name, world, objective=None, **changes):
    """The terms alone, of an objective in the setting of a case."""
    case = CASES[name]
    make = (
        compiled_value(name)
        if objective is None
        else jax.jit(functools.partial(terms_of, case._replace(run=objective)))
    )
    return jax.tree.map(np.asarray, make(as_tree(world, case) | changes))


@functools.cache
def base(name):
    return evaluate(name, WORLD)


def with_missing(world, **values):
    """Other numbers in the posteriors of what is missing."""
    gone = ~world["present"][:, :, None]
    return world | {k: np.where(gone, v, world[k]) for k, v in values.items()}


@cases
def test_the_loss_is_its_equation(name):
    terms, _ = base(name)
    np.testing.assert_allclose(terms.loss, by_oracle(CASES[name], WORLD), rtol=2e-5, atol=1e-4)
    for part, x in terms.metrics.items():
        assert x.shape == (B,) and np.isfinite(x).all(), part


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("dreg")])
def test_the_gradient_is_that_of_the_equation(name):
    """In a random direction, by central differences of the oracle in float64."""
    _, grads = base(name)
    rng, step = np.random.default_rng(1), 1e-5
    way = {k: rng.normal(size=WORLD[k].shape) for k in LEARNED}
    moved = [
        (AFTER * by_oracle(CASES[name], WORLD | {k: WORLD[k] + s * v for k, v in way.items()}, WORLD)).sum()
        for s in (step, -step)
    ]
    want = (moved[0] - moved[1]) / (2 * step)
    terms = [(np.float64(grads[k]) * v).sum() for k, v in way.items()]
    np.testing.assert_allclose(sum(terms), want, rtol=1e-4, atol=1e-5 * np.abs(terms).max())


@cases
def test_a_missing_modality_learns_nothing(name):
    """And every one that is there does."""
    _, grads = base(name)
    for k in OF_MODALITIES:
        np.testing.assert_array_equal(grads[k][~PRESENT], 0.0, err_msg=k)
    if CASES[name].experts:
        assert np.all(np.any(grads["mean"][PRESENT], axis=-1))
        assert np.all(np.any(grads["log_scale"][PRESENT], axis=-1))
    if CASES[name].private:
        assert np.all(np.any(grads["own_mean"][PRESENT], axis=-1))


GARBAGE = {
    "small": dict(mean=5.0, log_scale=-1.0, own_mean=-4.0, own_log_scale=1.0),
    # Squares of these are just about what float32 holds.
    "far": dict(mean=1e17, log_scale=0.0, own_mean=-1e17, own_log_scale=0.0),
    "sharp": dict(mean=1.0, log_scale=-40.0, own_mean=1.0, own_log_scale=-40.0),
    "wide": dict(mean=1.0, log_scale=40.0, own_mean=1.0, own_log_scale=40.0),
}


@pytest.mark.parametrize("values", GARBAGE.values(), ids=GARBAGE)
@cases
def test_what_a_missing_modality_says_changes_nothing(name, values):
    """Neither a value nor a gradient, by one bit."""
    terms, grads = base(name)
    other, other_grads = evaluate(name, with_missing(WORLD, **values))
    np.testing.assert_array_equal(other.loss, terms.loss)
    for k in LEARNED:
        np.testing.assert_array_equal(other_grads[k], grads[k], err_msg=k)


@pytest.mark.parametrize("gone", [0, M - 1])
@cases
def test_a_missing_modality_is_one_that_was_never_there(name, gone):
    """The others may be missing too, in some examples."""
    present = PRESENT | (np.arange(M)[:, None] == (gone + 1) % M)
    present[gone] = False
    world = make_world(2, present, gone)
    terms, _ = evaluate(name, world)
    rest = np.delete(np.arange(M), gone)
    without = run(name, restricted(world, rest))
    np.testing.assert_allclose(terms.loss, without.loss, rtol=1e-5, atol=1e-5)
    for part in terms.metrics:
        np.testing.assert_allclose(terms.metrics[part], without.metrics[part], rtol=1e-5, atol=1e-5)


@cases
def test_the_order_of_modalities_does_not_matter(name):
    order = [2, 0, 3, 1]
    terms, grads = base(name)
    other, _ = evaluate(name, restricted(WORLD, order))
    np.testing.assert_allclose(other.loss, terms.loss, rtol=1e-5, atol=1e-5)
    for part in terms.metrics:
        np.testing.assert_allclose(other.metrics[part], terms.metrics[part], rtol=1e-5, atol=1e-5)


# The gradient of DReG


def test_dreg_is_its_equation():
    terms, grads = base("mmvae, dreg")
    np.testing.assert_allclose(terms.loss, base("mmvae")[0].loss, rtol=1e-6)
    np.testing.assert_allclose(base("mmvae_plus, dreg")[0].loss, base("mmvae_plus")[0].loss, rtol=1e-6)
    case = CASES["mmvae, dreg"]
    for b in range(B):
        e = Example(WORLD, b, case)
        weights = oracle.mmvae_log_weights(e.rec, e.experts, e["many"], e.log_prior, e.beta)
        want = oracle.dreg_of_mmvae(e.score, e.experts, e["many"], weights, e.beta)
        for m, by_hand in zip(np.flatnonzero(PRESENT[:, b]), want, strict=True):
            for k, g in zip(("mean", "log_scale"), by_hand, strict=True):
                np.testing.assert_allclose(grads[k][m, b], AFTER[b] * g, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["mmvae", "mmvae_plus"])
def test_the_model_learns_alike_from_iwae_and_dreg(name):
    """``sum_k w_k d log w_k / d theta``, of decoders, priors and auxiliary priors."""
    plain, dreg = base(name)[1], base(f"{name}, dreg")[1]
    model = ["w", "offset", "aux_mean", "aux_log_scale", "own_prior", "own_prior_log_scale"]
    for k in model:
        np.testing.assert_allclose(
            dreg[k], plain[k], rtol=1e-4, atol=1e-4 * np.abs(plain[k]).max(), err_msg=k
        )
    assert np.any(plain["w"])


def one_dimension(seed=3, samples=K):
    """A world in one dimension whose experts are all the true posterior, and the evidence of its examples."""
    world, evidence = make_world(seed, dim=1), []
    for b in range(B):
        there = np.flatnonzero(world["present"][:, b])
        w = np.concatenate([world["w"][m][:, :1] for m in there])
        x, offset = (
            np.concatenate([world[k][m][b] if k == "x" else world[k][m] for m in there])
            for k in ("x", "offset")
        )
        evidence.append(oracle.linear_evidence(x, w, offset, SCALE))
        precision = 1 + (w**2).sum() / SCALE**2
        world["mean"][:, b] = (w[:, 0] @ (x - offset)) / SCALE**2 / precision
        world["log_scale"][:, b] = -0.5 * np.log(precision)
    return world, np.array(evidence)


@pytest.mark.parametrize("name", ["mmvae", "mmvae, dreg"])
def test_at_the_true_posterior_every_sample_gives_the_evidence(name):
    """Of those modalities that an example has; and DReG then has no gradient."""
    world, evidence = one_dimension()
    case = CASES[name]
    t = as_tree(world, case) | {"beta": jnp.ones(B)}

    def loss(mean, log_scale):
        terms = terms_of(case, t | {"mean": mean, "log_scale": log_scale})
        return terms.loss.sum(), terms.loss

    grads, found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(t["mean"], t["log_scale"])
    np.testing.assert_allclose(found, -evidence, rtol=1e-5)
    largest = max(np.abs(g).max() for g in grads)
    assert largest < 1e-3 if name.endswith("dreg") else largest > 0.1


# Identities


def all_there(seed=4):
    return make_world(seed, np.ones((M, B), bool))


def test_mopoe_with_only_the_full_subset_is_mvae_with_only_it():
    world = all_there()
    world["choose_subset"] = np.ones((M, B), bool)
    for prior in ("full", "always"):
        mopoe = lambda p, beta, prior=prior: objectives.mopoe(
            p, beta=beta, prior=prior, subsets=np.ones((1, M), bool)
        )
        found = run("mopoe, full", world, mopoe, chosen=jnp.zeros((1, B), jnp.int32))
        other = run("mvae, whole", world | {"whole": world["one"][None]})
        np.testing.assert_allclose(found.loss, other.loss, rtol=1e-6)
        np.testing.assert_allclose(found.metrics["kl"], other.metrics["kl"], rtol=1e-6)


def test_with_one_sample_iwae_is_dreg():
    dreg = lambda p, beta: objectives.mmvae(p, beta=beta, samples=1, estimator="dreg")
    found = run("mmvae, one sample", WORLD, dreg)
    np.testing.assert_allclose(found.loss, base("mmvae, one sample")[0].loss, rtol=1e-6)


def test_the_first_of_many_samples_is_the_one():
    """K = 1 draws what K = 3 draws first: the bound of one is the mean of a third of the weights."""
    world = WORLD | {"first": WORLD["many"][:1]}
    found = run("mmvae, one sample", world)
    np.testing.assert_allclose(found.loss, by_oracle(CASES["mmvae, one sample"], world), rtol=1e-5)
    assert np.any(np.abs(found.loss - base("mmvae")[0].loss) > 0.1)


def test_jmvae_without_alpha_is_the_joint_elbo():
    jmvae = lambda p, beta: objectives.jmvae(p, beta=beta, alpha=0.0)
    found = run("jmvae", WORLD, jmvae)
    np.testing.assert_array_equal(found.loss, base("joint_elbo")[0].loss)


def test_mvtcae_without_alpha_is_the_elbo_of_the_product():
    mvtcae = lambda p, beta: objectives.mvtcae(p, beta=beta, alpha=0.0)
    found = run("mvtcae", WORLD, mvtcae)
    for b in range(B):
        e = Example(WORLD, b, CASES["mvtcae"])
        want = oracle.joint_elbo(e.rec, oracle.product(e.experts), e["one"], e.beta)
        np.testing.assert_allclose(found.loss[b], want, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_cmvae_with_one_standard_cluster_is_mmvae_plus(count):
    """Or with several that are alike, whatever their weights."""
    zeros = jnp.zeros((count, D))
    same = dict(components=zeros, component_log_scale=zeros, logits=jnp.arange(count) * 1.5)
    found = run("cmvae", WORLD, **same)
    np.testing.assert_allclose(found.loss, base("mmvae_plus")[0].loss, rtol=1e-6)
    assert np.all(np.abs(base("cmvae")[0].loss - found.loss) > 1e-3)


def test_the_divergence_of_mmjsd_is_the_jensen_shannon_of_its_definition():
    divergence = base("mmjsd")[0].metrics["kl"]
    for b in range(B):
        e = Example(WORLD, b, CASES["mmjsd"])
        np.testing.assert_allclose(divergence[b], oracle.jensen_shannon_on_a_grid(e.experts), rtol=1e-5)


def test_the_divergence_of_mmjsd_is_zero_where_all_agree():
    zeros = jnp.zeros((M, B, D))
    found = run("mmjsd", WORLD, mean=zeros, log_scale=zeros)
    np.testing.assert_allclose(found.metrics["kl"], 0.0, atol=1e-5)


def test_of_one_modality_products_are_its_elbo():
    """Of those without the prior, with one modality alone: mvtcae with alpha, mopoe and telbo's second stage agree."""
    world = make_world(5, np.arange(M)[:, None] == np.full((1, B), 2))
    one = {"each": np.broadcast_to(world["one"], world["each"].shape)}
    elbo = run("unimodal_elbos", world | one)
    np.testing.assert_allclose(run("mopoe, never", world).loss, elbo.loss, rtol=1e-5)
    mvtcae = run("mvtcae", world, lambda p, beta: objectives.mvtcae(p, beta=beta, alpha=0.0))
    np.testing.assert_allclose(mvtcae.loss, elbo.loss, rtol=1e-5)


def test_the_prior_is_a_mixture():
    rng = np.random.default_rng(6)
    components, logits, z = rng.normal(size=(C, D)), rng.normal(size=C), rng.normal(size=(2, B, D))
    scales = rng.uniform(0.5, 2, size=(C, D))
    of = lambda x: jnp.asarray(x, jnp.float32)
    prior = Prior(Normal(of(components), of(np.log(scales))), of(logits))
    known = [
        scipy.stats.multivariate_normal(m, np.diag(s**2)) for m, s in zip(components, scales, strict=True)
    ]
    want = scipy.special.logsumexp(
        [w + k.logpdf(z) for w, k in zip(scipy.special.log_softmax(logits), known, strict=True)], axis=0
    )
    np.testing.assert_allclose(prior.log_prob(of(z)), want, rtol=1e-5)


# A prior that is the mixture of the posteriors


def wide_apart(seed=7, scale=1.0):
    """A world whose posteriors are ``scale`` times as far apart."""
    world = make_world(seed)
    return world | {"mean": scale * world["mean"]}


@pytest.mark.parametrize("name", ["mmvm", "mmvm, standard normal"])
def test_the_divergence_of_mmvm_lies_above_that_from_the_mixture(name):
    """The bound exceeds the Monte-Carlo estimate of the definition in every example with several modalities, and both
    are 0 for posteriors that agree (and have no share of N(0, 1) to differ from)."""
    alpha = 0.0 if name == "mmvm" else ALPHA
    world = wide_apart()
    bound = run(name, world).metrics["kl"]
    estimate, error = mixture_divergence(world, alpha)
    several = world["present"].sum(axis=0) > 1
    assert np.all(bound[several] > estimate[several] + 4 * error[several])
    if not alpha:  # one modality is its own prior
        np.testing.assert_allclose(bound[~several], 0.0, atol=1e-5)
    same = world | {"mean": 0 * world["mean"] + 0.7, "log_scale": 0 * world["log_scale"] - 0.2}
    agreed = run(name, same).metrics["kl"]
    to_standard = alpha * oracle.to_prior((np.full(D, 0.7), np.full(D, np.exp(-0.2))))
    np.testing.assert_allclose(agreed, to_standard * world["present"].sum(axis=0), rtol=1e-5, atol=1e-5)


def mixture_divergence(world, alpha, samples=120):
    """``sum_m KL(q_m || h)`` of each example by NumPy's draws, and the standard error."""
    rng, means, errors = np.random.default_rng(0), [], []
    for b in range(B):
        e = Example(world, b, CASES["mmvm"])
        draws = [
            oracle.mmvm_by_samples(e.experts, rng.normal(size=(1, e.count, D)), alpha) for _ in range(samples)
        ]
        means.append(np.mean(draws))
        errors.append(np.std(draws) / samples**0.5)
    return np.array(means), np.array(errors)


@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_the_samples_of_mmvm_estimate_the_divergence_of_its_definition(alpha):
    """By quadrature in one dimension. Without N(0, 1) it is the Jensen-Shannon divergence times the number of
    posteriors, which is at most log M."""
    count, samples = 3, 20_000
    q = [(-1.0, 0.7), (0.5, 1.2), (2.0, 0.4)]
    of = lambda k: jnp.asarray([x[k] for x in q], jnp.float32)[:, None, None]
    inputs = ObjectiveInputs(
        jnp.ones((count, 1), bool), lambda z: jnp.zeros(z.shape[:3]), None, None,
        example_keys(jax.random.key(1), jnp.arange(1)), experts=Normal(of(0), jnp.log(of(1))),
    )  # fmt: skip
    found = jax.jit(lambda: objectives.mmvm(inputs, alpha=alpha, kl_samples=samples).metrics["kl"][0])()
    x = np.linspace(-12, 12, 20_001)
    density = [scipy.stats.norm.pdf(x, *each) for each in q]
    h = alpha * scipy.stats.norm.pdf(x) + (1 - alpha) * np.mean(density, axis=0)
    want = sum(np.trapezoid(p * np.log(np.maximum(p, 1e-300) / np.maximum(h, 1e-300)), x) for p in density)
    np.testing.assert_allclose(found, want, atol=0.03)
    if not alpha:
        entropy = lambda p: -np.trapezoid(p * np.log(np.maximum(p, 1e-300)), x)
        np.testing.assert_allclose(
            want, count * (entropy(h) - np.mean([entropy(p) for p in density])), rtol=1e-6
        )
        assert want < count * np.log(count)


# Learned weights of subsets


def test_the_weights_of_subsets_sum_to_one_over_those_that_are_there():
    """An example without anything has no weight at all."""
    allowed = np.array([PRESENT[list(s)].all(axis=0) for s in oracle.subsets(range(M))])
    allowed = np.concatenate([allowed, np.zeros_like(allowed[:, :1])], axis=1)
    logits = 5 * np.random.default_rng(0).normal(size=len(allowed))

    def weights(logits):
        log_weights = objectives._log_subset_weights(logits, jnp.asarray(allowed))
        return jnp.where(jnp.asarray(allowed), jnp.exp(log_weights), 0.0)

    found = np.asarray(weights(jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(found.sum(axis=0), allowed.any(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found[~allowed], 0.0)
    for b in range(B):
        np.testing.assert_allclose(
            found[allowed[:, b], b], scipy.special.softmax(logits[allowed[:, b]]), rtol=1e-5
        )


def test_a_subset_with_a_missing_modality_does_not_learn():
    """Where a modality is missing from all examples, exactly; the other subsets do."""
    gone = 1
    present = PRESENT & (np.arange(M) != gone)[:, None]
    _, grads = evaluate("code_vae", make_world(2, present))
    holds = np.array([gone in s for s in oracle.subsets(range(M))])
    np.testing.assert_array_equal(grads["subset_logits"][holds], 0.0)
    assert np.all(grads["subset_logits"][~holds])


def test_the_best_weights_are_the_softmax_of_the_elbos():
    """Of one example, whose subsets' losses come from weights of one subset alone: there the gradient is 0, and the
    loss is minus the logarithm of the sum of their exponentials, a lower value than from other weights."""
    world, ways = all_there(), oracle.subsets(range(M))
    e = Example(world, 0, CASES["code_vae"])
    options = dict(beta=1.0, correlation=0.4, entropy_weight=3.0)
    alone = [np.where(np.arange(len(ways)) == k, 0.0, -500.0) for k in range(len(ways))]
    losses = [oracle.code_vae(e.rec, e.experts, logits, e["every"], **options) for logits in alone]
    case = CASES["code_vae"]
    t = as_tree(world, case) | {"beta": jnp.ones(B)}
    loss = jax.jit(jax.value_and_grad(lambda logits: terms_of(case, t | {"subset_logits": logits}).loss[0]))
    value, grad = loss(jnp.asarray(-np.array(losses) / 3.0, jnp.float32))
    np.testing.assert_allclose(value, -3.0 * scipy.special.logsumexp(-np.array(losses) / 3.0), rtol=1e-5)
    _, other = loss(jnp.zeros(len(ways)))
    assert np.abs(grad).max() < 1e-3 * np.abs(other).max()


def test_without_correlation_and_with_equal_weights_code_vae_has_the_divergence_of_mopoe():
    equal = lambda p, beta: objectives.code_vae(p, jnp.zeros(2**M - 1), beta=beta, correlation=0.0)
    found = run("code_vae", WORLD, equal)
    np.testing.assert_allclose(found.metrics["kl"], base("mopoe, never")[0].metrics["kl"], rtol=1e-5)
    counts = [sum(PRESENT[list(s), b].all() for s in oracle.subsets(range(M))) for b in range(B)]
    np.testing.assert_allclose(found.metrics["subset_entropy"], np.log(counts), rtol=1e-5, atol=1e-6)


def test_random_subsets_stand_for_all():
    """The mean of 3000 examples' reconstruction losses, within four standard errors of that from all subsets, and the
    same divergence. The posteriors are points, so that nothing else is random; half of the examples lack a modality."""
    count = 3000
    present = jnp.stack([jnp.arange(count) % 2 == 0, *[jnp.ones(count, bool)] * 2])
    mean = jnp.broadcast_to(jnp.float32([1.0, -2.0, 3.0])[:, None, None], (3, count, 1))
    inputs = ObjectiveInputs(
        present, lambda z: jnp.where(present[:, None], -jnp.square(z[..., 0]), 0.0),
        lambda q, there: jnp.square(q.mean).sum(axis=-1), None,
        example_keys(jax.random.key(0), jnp.arange(count)),
        experts=Normal(mean, jnp.full((3, count, 1), -20.0)),
    )  # fmt: skip
    logits = jnp.linspace(-1.0, 1.0, 7)
    every, two = (jax.jit(lambda k=k: objectives.code_vae(inputs, logits, subsets=k))() for k in (0, 2))
    np.testing.assert_allclose(two.metrics["kl"], every.metrics["kl"], rtol=1e-6)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        gap = np.float64(two.metrics["reconstruction"] - every.metrics["reconstruction"])[half]
        assert gap.std() > 0.1 and abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5


# What is drawn


@functools.partial(jax.jit, static_argnames="subsets")
def subsets_told(present, subsets):
    """Of `mvae`, which modalities are in each of its products ``[S, B, M]``, and how many products count. Whose
    precisions are 4, 16, 64, 256, those of any product tell."""
    count, batch = present.shape
    seen = []

    def to_prior(q, there):
        seen.append(jnp.rint(jnp.exp(-2.0 * q.log_scale) - 1.0).astype(jnp.int32))
        return jnp.where(there, 1.0, jnp.nan)

    powers = 4.0 ** jnp.arange(1, 1 + count)
    log_scale = jnp.broadcast_to(-0.5 * jnp.log(powers)[:, None, None], (count, batch, 1))
    p = ObjectiveInputs(
        present, lambda z: jnp.zeros(z.shape[:3]), to_prior, None,
        example_keys(jax.random.key(0), jnp.arange(batch)),
        experts=Normal(jnp.zeros_like(log_scale), log_scale),
    )  # fmt: skip
    terms = objectives.mvae(p, subsets=subsets)
    digits = seen[0] // powers.astype(jnp.int32)[None, None] % 4
    return digits > 0, terms.metrics["kl"]


def test_mvae_draws_different_subsets_of_all_as_likely():
    batch = 997
    told, counted = jax.tree.map(np.asarray, subsets_told(jnp.ones((M, batch), bool), 2))
    assert told.shape == (1 + M + 2, batch, M) and told[0].all()
    np.testing.assert_array_equal(
        told[1 : 1 + M], np.broadcast_to(np.eye(M, dtype=bool)[:, None], (M, batch, M))
    )
    np.testing.assert_array_equal(counted, 1 + M + 2)
    rows, counts = np.unique(told[-1], axis=0, return_counts=True)
    assert {tuple(r) for r in rows} == {tuple(r) for r in all_subsets(M, 2, M - 1)}
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert np.all(np.any(told[-1] != told[-2], axis=-1))


def test_mvae_draws_subsets_of_what_is_there():
    """As it would without the modalities that are missing: of 2 to n - 1 of the n that an example has, if there are
    any, each as likely."""
    batch = 997
    present = np.random.default_rng(8).random((M, batch)) < 0.6
    told, counted = jax.tree.map(np.asarray, subsets_told(jnp.asarray(present), 1))
    n = present.sum(axis=0)
    size = told[-1].sum(axis=-1)
    assert not np.any(told[-1] & ~present.T)
    np.testing.assert_array_equal(counted, np.where(n > 0, 1, 0) + n + (n > 2))
    assert np.all((size >= 2) & (size < n) | (n < 3))
    for members in {tuple(column) for column in present.T if column.sum() == M - 1}:
        drawn = told[-1][np.all(present.T == members, axis=1)]
        counts = np.unique(drawn, axis=0, return_counts=True)[1]
        assert len(counts) == M - 1 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_what_is_perceived():
    """With the given probability a part of what is there: every size and every choice of it as likely."""
    batch, rate = 6007, 0.7
    keys = example_keys(jax.random.key(9), jnp.arange(batch))
    there = np.array([True, True, False, True])
    present = np.broadcast_to(there[:, None], (M, batch))
    found = np.asarray(objectives.modality_dropout(keys, jnp.asarray(present), rate)).T
    assert not np.any(found & ~there)
    rows, counts = np.unique(found[:, there], axis=0, return_counts=True)
    share = {1: rate / 2 / 3, 2: rate / 2 / 3, 3: 1 - rate}
    expected = np.array([share[r.sum()] for r in rows])
    assert len(rows) == 7 and scipy.stats.chisquare(counts, batch * expected).pvalue > 1e-3


def test_what_is_alone_is_always_perceived():
    keys = example_keys(jax.random.key(10), jnp.arange(3 * B))
    present = jnp.asarray(np.eye(M, 3 * B, dtype=bool))  # and nothing in most of them
    np.testing.assert_array_equal(objectives.modality_dropout(keys, present, 1.0), present)
    some = jnp.asarray(np.random.default_rng(0).random((M, 3 * B)) < 0.5)
    np.testing.assert_array_equal(objectives.modality_dropout(keys, some, 0.0), some)


def test_a_mean_of_messages():
    messages = np.random.default_rng(11).normal(size=(M, B, 5))
    present = PRESENT.copy()
    present[:, 0] = False
    found = objectives.mean_message(jnp.asarray(messages, jnp.float32), jnp.asarray(present))
    want = [messages[present[:, b], b].mean(axis=0) if present[:, b].any() else np.zeros(5) for b in range(B)]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@cases
def test_an_example_with_nothing_disturbs_no_other(name):
    """Its own loss is a number, too, so that a weight of zero takes it out."""
    present = PRESENT.copy()
    present[:, 3] = False
    terms, grads = evaluate(name, WORLD, present=jnp.asarray(present), absent=jnp.float32(0.0))
    others = np.arange(B) != 3
    assert np.isfinite(terms.loss).all()
    np.testing.assert_array_equal(terms.loss[others], base(name)[0].loss[others])
    for k in OF_MODALITIES:
        np.testing.assert_array_equal(grads[k][:, others], base(name)[1][k][:, others])
        np.testing.assert_array_equal(grads[k][:, 3], 0.0)
    assert all(np.isfinite(g).all() for g in grads.values())


def test_errors_say_what_there_is():
    case = CASES["mopoe, full"]
    p = make_inputs(as_tree(WORLD, case), case)
    with pytest.raises(ValueError, match="prior must be 'never', 'always' or 'full', got 'once'"):
        objectives.mopoe(p, prior="once")
    with pytest.raises(ValueError, match="estimator must be one of .*'iwae', 'dreg'.*, got 'stl'"):
        objectives.mmvae(p, estimator="stl")


def test_for_one_modality_the_mean_gradient_of_dreg_is_that_of_the_value():
    """By Monte-Carlo over the samples, of an expert's mean and log-scale and its private ones, with K = 3 and a weight
    of the divergence below and above 1."""
    count, rng = 20000, np.random.default_rng(5)
    w, x = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((X, 3), (X,)))
    params = {
        "mean": [0.4],
        "log_scale": [-0.3],
        "private_mean": [-0.2, 0.5],
        "private_log_scale": [0.1, -0.4],
    }
    params = jax.tree.map(jnp.float32, params, is_leaf=lambda leaf: isinstance(leaf, list))

    def loss(params, key, beta, estimator):
        posterior = lambda prefix: Normal(
            params[f"{prefix}mean"][None, None], params[f"{prefix}log_scale"][None, None]
        )
        predicted = lambda z: z @ w.T
        unit = lambda *shape: Normal(jnp.zeros(shape), jnp.zeros(shape))
        inputs = ObjectiveInputs(
            jnp.ones((1, 1), bool),
            lambda z: -0.5 * ((x[None, None, None] - predicted(z)) ** 2).sum(axis=-1),
            None,
            Prior(unit(1, 1), jnp.zeros(1), private=unit(2), auxiliary=unit(1, 2)),
            key[None],
            experts=posterior(""),
            private=posterior("private_"),
        )
        return objectives.mmvae(inputs, beta=beta[None], samples=3, estimator=estimator).loss[0]

    keys = example_keys(jax.random.key(0), jnp.arange(count))

    @jax.jit
    def gradients(beta):
        of = lambda name: jax.vmap(jax.grad(loss), (None, 0, None, None))(params, keys, beta, name)
        return of("iwae"), of("dreg")

    for beta in (0.5, 2.5):
        plain, dreg = (np.concatenate(jax.tree.leaves(found), axis=1) for found in gradients(beta))
        errors = np.sqrt((plain.var(axis=0) + dreg.var(axis=0)) / count)
        gap = np.abs(plain.mean(axis=0) - dreg.mean(axis=0))
        assert np.all(gap < 4 * errors), (beta, gap, errors)
        assert (np.abs(dreg.mean(axis=0)) / errors).max() > 20


@pytest.mark.parametrize("private", [False, True], ids=["mmvae", "mmvae_plus"])
def test_with_many_samples_of_equal_experts_the_bound_is_the_evidence(private):
    """The experts are alike but not the true posterior. Private codes of the other modality come from their prior."""
    rng, count = np.random.default_rng(0), 40_000
    w, x = 0.7 * rng.normal(size=(2, 2, 1 + private)), rng.normal(size=(2, 2))
    modalities = [
        linear_gaussian.Modality(m[:, :1], np.zeros(2), SCALE, m[:, 1:] if private else None) for m in w
    ]
    evidence = linear_gaussian.evidence(list(x), modalities)
    unit = lambda *shape: Normal(jnp.zeros(shape), jnp.zeros(shape))
    of = lambda *values: jnp.broadcast_to(jnp.asarray(values, jnp.float32)[:, None, None], (2, 1, 1))

    def log_likelihood(z):
        mean = jnp.einsum("mxd,mrbd->mrbx", jnp.asarray(w, jnp.float32), z)
        data = jnp.broadcast_to(jnp.asarray(x, jnp.float32)[:, None, None], mean.shape)
        return Normal(mean, jnp.full_like(mean, np.log(SCALE))).log_prob(data).sum(axis=-1)

    inputs = ObjectiveInputs(
        jnp.ones((2, 1), bool), log_likelihood, None,
        Prior(unit(1, 1), jnp.zeros(1), private=unit(1), auxiliary=unit(2, 1)),
        example_keys(jax.random.key(0), jnp.arange(1)),
        experts=Normal(of(0.1, 0.1), of(0.1, 0.1)),
        private=Normal(of(-0.2, 0.3), of(0.1, 0.2)) if private else None,
    )  # fmt: skip
    loss = jax.jit(lambda: objectives.mmvae(inputs, samples=count).loss)()
    np.testing.assert_allclose(-loss, evidence, atol=0.03)
