"""Densities of latents, from which an autoencoder generates: a prior, or a density fitted after training.

The latents of a data set do not fill the prior evenly, so data generated from the prior look worse than the model can
do. A density fitted to the latents of training examples, the aggregate posterior, mends this ("ex-post density
estimation", Ghosh et al. 2020, arXiv:1903.12436, sec. 4). Evaluate it on the latents of other examples.

Fitted densities standardise the latents by dimension. Log-densities are in nats, of the latents before that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xmodal_jax.core.random import named_keys
from xmodal_jax.metrics.neighbours import validate_features
from xmodal_jax.nets.flows import AutoregressiveFlow
from xmodal_jax.train.loop import NonFiniteError

FULL_UP_TO = 64
"""Up to this dimension a component of the mixture has a full covariance, above it a diagonal one."""

MIN_LATENTS = 20
"""The least number of latents that a flow can be fitted to: a tenth of them is held out."""


class LatentDensity(NamedTuple):
    """A density of latents."""

    sample: Callable[[int, int], np.ndarray]
    """``sample(count, seed)``: float32 ``[count, D]``. A longer draw begins with the same samples, up to rounding."""
    log_prob: Callable[[np.ndarray], np.ndarray]
    """``log_prob(latents [N, D])``: float64 ``[N]``, in nats."""
    name: str


def _make_density(dim: int, draw, log_prob, name: str) -> LatentDensity:
    """A density that checks its inputs; ``draw(count, rng, other_rng)`` gets two independent generators."""

    def sample(count: int, seed: int) -> np.ndarray:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        rngs = [np.random.Generator(np.random.Philox(s)) for s in np.random.SeedSequence(seed).spawn(2)]
        return np.asarray(draw(count, *rngs), np.float32)

    def checked_log_prob(latents) -> np.ndarray:
        latents = validate_features("latents", latents, np.float64)
        if latents.shape[1] != dim:
            raise ValueError(f"this density is of {dim} dimensions, got latents of {latents.shape[1]}")
        return np.asarray(log_prob(latents), np.float64)

    return LatentDensity(sample, checked_log_prob, name)


def prior_density(dim: int, family: str = "normal", scale=None) -> LatentDensity:
    """A prior with independent dimensions around 0.

    Args:
      dim: D.
      family: "normal", ``exp(-x^2 / 2 s^2) / (s sqrt(2 pi))``; or "laplace", ``exp(-|x| / s) / 2 s``, whose standard
        deviation is ``sqrt(2) s``.
      scale: s, one number or ``[D]``; None: 1.
    Raises:
      ValueError: an unknown family, a dimension below 1, or a scale that is not positive and finite.
    """
    if family not in ("normal", "laplace"):
        raise ValueError(f"family must be normal or laplace, got {family!r}")
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    s = np.asarray(1.0 if scale is None else scale, np.float64)
    if s.shape not in ((), (dim,)) or not (np.isfinite(s) & (s > 0)).all():
        raise ValueError(f"scale must be one positive number or {dim} of them, got {scale!r}")
    s = np.broadcast_to(s, (1, dim))

    def draw(count, rng, _):
        return s * (rng.standard_normal if family == "normal" else partial(rng.laplace, 0.0, 1.0))(
            (count, dim)
        )

    def log_prob(x):
        if family == "normal":
            terms = -0.5 * (x / s) ** 2 - 0.5 * math.log(2 * math.pi)
        else:
            terms = -np.abs(x / s) - math.log(2)
        return (terms - np.log(s)).sum(axis=1)

    return _make_density(dim, draw, log_prob, family)


def _standardise(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every dimension, ``[1, D]``."""
    mean, std = latents.mean(axis=0, keepdims=True), latents.std(axis=0, keepdims=True)
    # Rounding may leave a deviation that is not 0 for equal numbers.
    flat = std[0] <= 1e-12 * np.abs(latents).max(axis=0)
    if flat.any():
        raise ValueError(
            f"latents: {int(flat.sum())} of {len(flat)} dimensions are constant, the first is {int(np.argmax(flat))}; "
            "they have no density, leave them out"
        )
    return mean, std


def fit_gaussian_mixture(latents, *, components: int = 10, seed: int) -> LatentDensity:
    """A mixture of Gaussians by expectation maximisation, scikit-learn's ``GaussianMixture``.

    Covariances are full up to `FULL_UP_TO` dimensions and diagonal above. Scikit-learn adds 1e-6 to the variances of
    the standardised latents, and warns (ConvergenceWarning) if 500 steps are too few.

    Args:
      latents: ``[N, D]``.
      components: number of Gaussians.
      seed: of the initialisation by k-means.
    Returns:
      The density "mixture".
    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite or constant in a dimension, or too few: a component
        needs D + 1 on average if its covariance is full, else 2.
      ImportError: without scikit-learn.
    """
    latents = validate_features("latents", latents, np.float64)
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    count, dim = latents.shape
    full = dim <= FULL_UP_TO
    if count < (need := components * (dim + 1 if full else 2)):
        raise ValueError(
            f"{count} latents of {dim} dimensions are too few for {components} components, which need {need}: "
            "give more latents or fewer components"
        )
    try:
        from sklearn.mixture import GaussianMixture  # here: it takes a second to import
    except ImportError as error:
        raise ImportError("fit_gaussian_mixture needs scikit-learn: pip install scikit-learn") from error
    mean, std = _standardise(latents)
    covariance_type = "full" if full else "diag"
    mixture = GaussianMixture(components, covariance_type=covariance_type, max_iter=500, random_state=seed)
    mixture.fit((latents - mean) / std)
    covariances = mixture.covariances_
    factors = np.linalg.cholesky(covariances) if full else np.sqrt(covariances)
    edges = np.cumsum(mixture.weights_)

    def draw(count, rng, choice):
        """``count`` samples of the mixture: ``choice`` draws the components, ``rng`` the noise."""
        # The last edge may be slightly below 1 by rounding.
        component = np.minimum(np.searchsorted(edges, choice.random(count), side="right"), components - 1)
        noise = rng.standard_normal((count, dim))
        out = np.empty_like(noise)
        for k in range(components):
            is_k = component == k
            out[is_k] = noise[is_k] @ factors[k].T if full else noise[is_k] * factors[k]
        return mean + std * (mixture.means_[component] + out)

    def log_prob(x):
        return mixture.score_samples((x - mean) / std) - np.log(std).sum()

    return _make_density(dim, draw, log_prob, "mixture")


def fit_flow(
    latents,
    *,
    seed: int,
    steps: int = 2000,
    batch_size: int = 256,
    hidden: int = 128,
    layers: int = 4,
    learning_rate: float = 1e-3,
    evaluate_every: int = 50,
) -> LatentDensity:
    """A masked autoregressive flow (`nets.flows.AutoregressiveFlow`), fitted by maximum likelihood.

    It is trained with Adam, whose learning rate falls to 0 as a cosine, on minibatches drawn with replacement. A tenth
    of the latents is held out, and their likelihood evaluated at the start (a Gaussian with independent dimensions),
    every ``evaluate_every`` steps and at the last one: the parameters with the highest likelihood are kept.

    Args:
      latents: ``[N, D]``; computed in float32 after standardising.
      seed: of the latents that are held out, the initialisation and the minibatches.
      steps, batch_size, learning_rate: of Adam.
      hidden: units of each of the two hidden layers of a flow's layer; D or more, to depend on all dimensions.
      layers: of the flow; two or more, since every second layer takes the dimensions in reverse order.
      evaluate_every: steps between evaluations on the latents that are held out.
    Returns:
      The density "flow".
    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite, constant in a dimension or fewer than `MIN_LATENTS`, or
        a size or the learning rate is not positive.
      NonFiniteError: if the likelihood is no longer finite in training.
    """
    latents = validate_features("latents", latents, np.float64)
    for name, size in (("steps", steps), ("batch_size", batch_size), ("evaluate_every", evaluate_every)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    count, dim = latents.shape
    if count < MIN_LATENTS:
        raise ValueError(
            f"{count} latents are too few to fit a flow: give at least {MIN_LATENTS}, better thousands"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    held_out, train = latents[order[: count // 10]], latents[order[count // 10 :]]
    mean, std = _standardise(train)
    to_device = lambda x: jnp.asarray((x - mean) / std, jnp.float32)
    flow = AutoregressiveFlow(dim, layers=layers, hidden=hidden)
    params, losses = _maximise(
        flow,
        to_device(train),
        to_device(held_out),
        jax.random.key(seed),
        learning_rate,
        steps=steps,
        batch_size=batch_size,
        evaluate_every=evaluate_every,
    )
    finite = np.isfinite(np.asarray(losses))
    if not finite.all():
        raise NonFiniteError(
            f"step {int(np.argmin(finite)) + 1} of fitting the flow: the likelihood is no longer finite. Lower "
            f"learning_rate={learning_rate}, or look for outliers among the latents."
        )

    def draw(count, rng, _):
        noise = jnp.asarray(rng.standard_normal((count, dim)), jnp.float32)
        return mean + std * np.asarray(_inverse(flow, params, noise), np.float64)

    def log_prob(x):
        return np.asarray(_log_prob(flow, params, to_device(x)), np.float64) - np.log(std).sum()

    return _make_density(dim, draw, log_prob, "flow")


@partial(jax.jit, static_argnums=0)
def _log_prob(flow, params, x):
    return flow.apply(params, x, method="log_prob")


@partial(jax.jit, static_argnums=0)
def _inverse(flow, params, z):
    return flow.apply(params, z, method="inverse")


@partial(jax.jit, static_argnums=0, static_argnames=("steps", "batch_size", "evaluate_every"))
def _maximise(flow, train, held_out, key, learning_rate, *, steps, batch_size, evaluate_every):
    """The parameters with the highest likelihood of ``held_out``, and the loss of every step ``[steps]``."""
    init_key, batch_key = named_keys(key, "params", "batches")
    loss = lambda params, x: -flow.apply(params, x, method="log_prob").mean()
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def keep_best(params, best, lowest):
        value = loss(params, held_out)
        # No comparison with a NaN is true.
        better = value < lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return best, jnp.where(better, value, lowest)

    def step(carry, k):
        """One step of Adam on a random minibatch; the held-out likelihood is evaluated when it is due."""
        params, state, best, lowest = carry
        batch = jax.random.randint(jax.random.fold_in(batch_key, k), (batch_size,), 0, len(train))
        value, grads = jax.value_and_grad(loss)(params, train[batch])
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        due = ((k + 1) % evaluate_every == 0) | (k + 1 == steps)
        best, lowest = jax.lax.cond(due, keep_best, lambda _, *unchanged: unchanged, params, best, lowest)
        return (params, state, best, lowest), value

    params = flow.init(init_key, train[:1])
    carry = (params, optimizer.init(params), params, loss(params, held_out))
    carry, losses = jax.lax.scan(step, carry, jnp.arange(steps))
    return carry[2], losses
