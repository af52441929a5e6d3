"""Densities of latents, from which an autoencoder generates: a prior, or a density fitted after training.

The latents of a data set do not fill the prior evenly, so data generated from the prior look worse than the model can
do. A density fitted to the latents of training examples, the aggregate posterior, mends this ("ex-post density
estimation", Ghosh et al. 2020, arXiv:1903.12436, sec. 4). Evaluate it on the latents of other examples.

Fitted densities standardise the latents by dimension. Log-densities are in nats, of the latents before that.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from xmodal_jax.core.random import named_keys
from xmodal_jax.metrics.neighbours import validate_features
from xmodal_jax.nets.flows import AutoregressiveFlow
from xmodal_jax.train.loop import NonFiniteError
from xmodal_jax.types import Key, Params

FULL_UP_TO = 64
"""Largest number of dimensions for which the components of the mixture have full covariances; above it they are
diagonal."""

MIN_LATENTS = 20
"""The least number of latents that a flow can be fitted to: a tenth of them is held out."""


class LatentDensity(NamedTuple):
    """A density of latents."""

    sample: Callable[[int, int], np.ndarray]
    """``sample(count, seed)``: float32 ``[count, D]``. A longer draw begins with the same samples, up to rounding."""
    log_prob: Callable[[np.ndarray], np.ndarray]
    """``log_prob(latents [N, D])``: float64 ``[N]``, in nats."""
    name: str
    arrays: Mapping[str, np.ndarray] | None = None
    """What a stored density is made from again (`matching_density.restore_density`); None: it cannot be stored."""


def make_density(
    dim: int, draw, log_prob, name: str, arrays: Mapping[str, np.ndarray] | None = None
) -> LatentDensity:
    """The `LatentDensity` ``name`` of two functions, whose arguments it checks.

    ``dim``: number of dimensions of a latent. ``draw(count, rng, other_rng)`` returns samples ``[count, dim]``, from
    two independent generators of random numbers; ``log_prob(latents)`` returns ``[N]``. ``arrays``:
    see `LatentDensity`.
    """

    def sample(count: int, seed: int) -> np.ndarray:
        """See `LatentDensity`."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        rng, other_rng = (
            np.random.Generator(np.random.Philox(s)) for s in np.random.SeedSequence(seed).spawn(2)
        )
        return np.asarray(draw(count, rng, other_rng), np.float32)

    def checked_log_prob(latents) -> np.ndarray:
        """See `LatentDensity`."""
        latents = validate_features("latents", latents, np.float64)
        if latents.shape[1] != dim:
            raise ValueError(f"this density is of {dim} dimensions, got latents of {latents.shape[1]}")
        return np.asarray(log_prob(latents), np.float64)

    return LatentDensity(sample, checked_log_prob, name, arrays)


def prior_density(dim: int, family: str = "normal", scale=None) -> LatentDensity:
    """A prior with independent dimensions and mean 0.

    Args:
      dim: number D of dimensions.
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
        """``count`` samples ``[count, D]``: s times standard noise; the second generator is not needed."""
        size = (count, dim)
        noise = rng.standard_normal(size) if family == "normal" else rng.laplace(0.0, 1.0, size)
        return s * noise

    def log_prob(x):
        """The log-density ``[N]`` of ``x [N, D]``: that of standard noise x / s, minus log s."""
        if family == "normal":
            terms = -0.5 * (x / s) ** 2 - 0.5 * math.log(2 * math.pi)
        else:
            terms = -np.abs(x / s) - math.log(2)
        return (terms - np.log(s)).sum(axis=1)

    return make_density(dim, draw, log_prob, name=family)


def mean_and_std(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``[1, D]`` of every dimension. Raises ValueError if a dimension is constant."""
    mean, std = latents.mean(axis=0, keepdims=True), latents.std(axis=0, keepdims=True)
    # By rounding, the deviation of equal numbers may not be exactly 0.
    constant = std[0] <= 1e-12 * np.abs(latents).max(axis=0)
    if constant.any():
        raise ValueError(
            f"latents: {int(constant.sum())} of {len(constant)} dimensions are constant, the first is "
            f"{int(np.argmax(constant))}; they have no density, leave them out"
        )
    return mean, std


def fit_gaussian_mixture(latents, *, components: int = 10, seed: int) -> LatentDensity:
    """A mixture of Gaussians by expectation maximisation, scikit-learn's ``GaussianMixture``.

    Covariances are full up to `FULL_UP_TO` dimensions and diagonal above. Scikit-learn adds 1e-6 to the variances of
    the standardised latents, and warns (ConvergenceWarning) if 500 steps are too few.

    Args:
      latents: ``[N, D]``.
      components: number of Gaussians.
      seed: seed of the initialisation by k-means.
    Returns:
      The density "mixture".
    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite or constant in a dimension, or too few: at least D + 1
        for each component with a full covariance are needed, 2 with a diagonal one.
      ImportError: without scikit-learn.
    """
    latents = validate_features("latents", latents, np.float64)
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    count, dim = latents.shape
    full = dim <= FULL_UP_TO
    # A full covariance of D dimensions needs D + 1 points, a diagonal one 2.
    if count < (need := components * (dim + 1 if full else 2)):
        raise ValueError(
            f"{count} latents of {dim} dimensions are too few for {components} components, which need {need}: "
            "give more latents or fewer components"
        )
    try:
        from sklearn.mixture import GaussianMixture  # here: it takes a second to import
    except ImportError as error:
        raise ImportError("fit_gaussian_mixture needs scikit-learn: pip install scikit-learn") from error
    mean, std = mean_and_std(latents)
    covariance_type = "full" if full else "diag"
    mixture = GaussianMixture(components, covariance_type=covariance_type, max_iter=500, random_state=seed)
    mixture.fit((latents - mean) / std)
    covariances = mixture.covariances_
    # A sample of component k is its mean plus its factor times noise: a Cholesky factor, or standard deviations.
    factors = np.linalg.cholesky(covariances) if full else np.sqrt(covariances)
    cumulative_weights = np.cumsum(mixture.weights_)

    def draw(count, noise_rng, component_rng):
        """``count`` samples ``[count, D]`` of the mixture, in the units of the latents.

        Components are drawn by the inverse of the cumulative weights. The generator of noise is separate, so that a
        longer draw begins with the same samples.
        """
        uniform = component_rng.random(count)
        component = np.searchsorted(cumulative_weights, uniform, side="right")
        component = np.minimum(component, components - 1)  # the last sum may be slightly below 1 by rounding
        noise = noise_rng.standard_normal((count, dim))
        deviation = np.empty_like(noise)  # from the component's mean
        for k in range(components):
            is_k = component == k
            deviation[is_k] = noise[is_k] @ factors[k].T if full else noise[is_k] * factors[k]
        return mean + std * (mixture.means_[component] + deviation)

    def log_prob(x):
        """The log-density ``[N]`` of ``x [N, D]``: that of the standardised latents, minus the log of the
        standardisation's scales (change of variables)."""
        return mixture.score_samples((x - mean) / std) - np.log(std).sum()

    return make_density(dim, draw, log_prob, name="mixture")


def check_fit(learning_rate: float, **sizes: int) -> None:
    """Raises ValueError if one of the ``sizes`` of a fit is below 1, or its learning rate is not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")


def split_latents(latents, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``(train, held_out)``, float64: a random tenth of the latents ``[N, D]`` is held out.

    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite or fewer than `MIN_LATENTS`.
    """
    latents = validate_features("latents", latents, np.float64)
    count = len(latents)
    if count < MIN_LATENTS:
        raise ValueError(
            f"{count} latents are too few to fit a flow: give at least {MIN_LATENTS}, better thousands"
        )
    order = np.random.Generator(np.random.Philox(seed)).permutation(count)
    return latents[order[count // 10 :]], latents[order[: count // 10]]


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
    of the latents is held out. Their likelihood is evaluated before training (when the flow is a Gaussian with
    independent dimensions), every ``evaluate_every`` steps and after the last step; the parameters with the highest
    likelihood are kept.

    Args:
      latents: ``[N, D]``; computed in float32 after standardising.
      seed: seed of the choice of the latents that are held out, of the initialisation and of the minibatches.
      steps, batch_size, learning_rate: of Adam.
      hidden: units in each of the two hidden layers of a layer of the flow; at least D, so that a dimension can depend
        on all before it.
      layers: number of layers of the flow; at least 2, since every second one takes the dimensions in reverse order.
      evaluate_every: steps between evaluations on the latents that are held out.
    Returns:
      The density "flow".
    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite, constant in a dimension or fewer than `MIN_LATENTS`, or
        a size or the learning rate is not positive.
      NonFiniteError: if the likelihood is no longer finite in training.
    """
    check_fit(learning_rate, steps=steps, batch_size=batch_size, evaluate_every=evaluate_every)
    train, held_out = split_latents(latents, seed)
    dim = train.shape[1]
    mean, std = mean_and_std(train)
    standardise = lambda x: jnp.asarray((x - mean) / std, jnp.float32)
    flow = AutoregressiveFlow(dim, layers=layers, hidden=hidden)
    options = dict(steps=steps, batch_size=batch_size, evaluate_every=evaluate_every)
    params = minimise(
        _Likelihood(flow), standardise(train), standardise(held_out), seed, learning_rate, **options
    )

    def draw(count, rng, _):
        """``count`` samples ``[count, D]``: noise through the inverse flow, in the units of the latents."""
        noise = jnp.asarray(rng.standard_normal((count, dim)), jnp.float32)
        return mean + std * np.asarray(_inverse(flow, params, noise), np.float64)

    def log_prob(x):
        """The log-density ``[N]``: the flow's of standardised latents, minus the log of the scales."""
        return np.asarray(_log_prob(flow, params, standardise(x)), np.float64) - np.log(std).sum()

    return make_density(dim, draw, log_prob, name="flow")


@partial(jax.jit, static_argnums=0)
def _log_prob(flow, params, x):
    return flow.apply(params, x, method="log_prob")


@partial(jax.jit, static_argnums=0)
def _inverse(flow, params, z):
    return flow.apply(params, z, method="inverse")


class Fit(abc.ABC):
    """What is fitted to vectors by `minimise`: an object that can be hashed, as programs are compiled for it."""

    @abc.abstractmethod
    def init(self, key: Key, x: Array) -> Params:
        """Initial parameters; of ``x [N, D]`` only the shape matters."""

    @abc.abstractmethod
    def loss(self, params: Params, x: Array, key: Key) -> Array:
        """The mean loss of the vectors ``x [N, D]``; ``key``: of what it draws at random."""


@dataclasses.dataclass(frozen=True)
class _Likelihood(Fit):
    """A flow that is fitted by maximum likelihood, as a `Fit`."""

    flow: AutoregressiveFlow

    def init(self, key, x):
        """See `Fit`."""
        return self.flow.init(key, x)

    def loss(self, params, x, key):
        """The mean negative log-likelihood in nats."""
        return -self.flow.apply(params, x, method="log_prob").mean()


def minimise(
    fit: Fit,
    train,
    held_out,
    seed: int,
    learning_rate: float,
    *,
    steps: int,
    batch_size: int,
    evaluate_every: int,
) -> Params:
    """The parameters with the lowest loss of ``held_out``, of those that Adam goes through.

    The learning rate falls from ``learning_rate`` to 0 as a cosine. The held-out latents are evaluated before the first
    step, every ``evaluate_every`` steps and after the last one, always with the same random draws.

    Args:
      fit: the network and its loss.
      train: float32 ``[N, D]``; minibatches of ``batch_size`` are drawn from it with replacement.
      held_out: float32 ``[n, D]``.
      seed: of the initial parameters, the minibatches and what the loss draws.

    Raises:
      NonFiniteError: the loss is no longer finite.
    """
    options = dict(steps=steps, batch_size=batch_size, evaluate_every=evaluate_every)
    params, losses = _minimise(fit, train, held_out, jax.random.key(seed), learning_rate, **options)
    finite = np.isfinite(np.asarray(losses))
    if not finite.all():
        raise NonFiniteError(
            f"step {int(np.argmin(finite)) + 1} of fitting the flow: the loss is no longer finite. Lower "
            f"learning_rate={learning_rate}, or look for outliers among the latents."
        )
    return params


@partial(jax.jit, static_argnums=0, static_argnames=("steps", "batch_size", "evaluate_every"))
def _minimise(fit, train, held_out, key, learning_rate, *, steps, batch_size, evaluate_every):
    """The parameters of `minimise`, and the training loss of every step, ``[steps]``."""
    init_key, batch_key, loss_key, held_out_key = named_keys(key, "params", "batches", "loss", "held out")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def update_best(params, best, lowest):
        """The better of ``params`` and ``best`` on the held-out latents, and its loss; ``lowest`` is the loss of
        ``best``."""
        value = fit.loss(params, held_out, held_out_key)
        better = value < lowest  # False for a NaN
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return best, jnp.where(better, value, lowest)

    def step(carry, k):
        """Step k of Adam, on a random minibatch; evaluates the held-out latents when it is due.

        ``carry``: the parameters, Adam's state, the best parameters so far and their held-out loss. Closes over the
        latents, the loss and the optimizer. Returns the next ``carry`` and the minibatch's loss, as `jax.lax.scan`
        wants.
        """
        params, state, best, lowest = carry
        batch = jax.random.randint(jax.random.fold_in(batch_key, k), (batch_size,), 0, len(train))
        key = jax.random.fold_in(loss_key, k)
        value, grads = jax.value_and_grad(fit.loss)(params, train[batch], key)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        due = ((k + 1) % evaluate_every == 0) | (k + 1 == steps)
        keep = lambda params, best, lowest: (best, lowest)  # the other branch: nothing changes
        best, lowest = jax.lax.cond(due, update_best, keep, params, best, lowest)
        return (params, state, best, lowest), value

    params = fit.init(init_key, train[:1])
    carry = (
        params,
        optimizer.init(params),
        params,
        fit.loss(params, held_out, held_out_key),
    )  # at first the initial ones are the best
    (_, _, best, _), losses = jax.lax.scan(step, carry, jnp.arange(steps))
    return best, losses
