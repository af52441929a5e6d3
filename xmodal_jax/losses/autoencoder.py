"""The objectives of autoencoders of one modality: one function each, from what an encoder says to a loss, in nats.

All take a `Problem` and return `Terms`. ``rec(z)`` below stands for ``-log p(x | z)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from xmodal_jax.core.collectives import AxisName
from xmodal_jax.losses.alignment import mmd
from xmodal_jax.losses.elbo import doubly_reparametrised, handle, importance_bound, kl_to
from xmodal_jax.probability.distributions import Normal, detached, standard_noise
from xmodal_jax.probability.kernels import Kernel, distance, rational_quadratic, rbf
from xmodal_jax.types import ExampleKeys

Weight = Float[Array, "batch"] | float


class Problem(NamedTuple):
    """What an objective needs to know. B examples, D latent dimensions."""

    q: Normal
    """``q(z | x)``, ``[B, D]``; a scale of zero (its logarithm is -inf) makes it a point."""
    prior: Normal
    """``[B, D]``."""
    log_likelihood: Callable[[Float[Array, "rows batch dim"]], Float[Array, "rows batch"]]
    """``log p(x | z)`` of several codes (rows) for each example."""
    present: Bool[Array, "batch"]
    keys: ExampleKeys
    axis_name: AxisName = None


class Terms(NamedTuple):
    """A loss per example, and what it consists of."""

    loss: Float[Array, "batch"]
    parts: dict[str, Float[Array, "batch"]]
    shares: dict[str, tuple[Array, Array]] = {}
    """What is one number of the whole batch: this device's share of it, and its weight in the loss, by name."""
    code: Float[Array, "batch dim"] | None = None
    """The codes, for an opponent."""


def draw(p: Problem, count: int) -> Float[Array, "count batch dim"]:
    """Codes from ``q``."""
    noise = standard_noise(p.keys, "code", (count, p.q.mean.shape[-1]))
    return _lift(p.q, count).at(noise)


def _lift(q: Normal, rows: int) -> Normal:
    return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (rows, *x.shape)), q)


def reconstruct(p: Problem) -> Terms:
    """``rec(z)`` of one code: the loss of an autoencoder; of a denoising one (Vincent et al. 2008, ICML, eq. 5) where z
    is made of a corrupted x and ``p.log_likelihood`` is that of the clean one."""
    z = draw(p, 1)
    rec = -p.log_likelihood(z)[0]
    return Terms(rec, {"reconstruction": rec}, code=z[0])


def elbo(p: Problem, *, beta: Weight = 1.0, samples: int = 1, free_bits: float = 0.0) -> Terms:
    """``1/L sum_l rec(z_l) + beta KL(q || p)`` (Kingma and Welling 2014, arXiv:1312.6114, eq. 7; ``beta``: Higgins et
    al. 2017, ICLR, eq. 4; conditional: Sohn et al. 2015, NeurIPS, eq. 4), with `losses.elbo.free_bits`."""
    rec = -p.log_likelihood(draw(p, samples)).mean(axis=0)
    divergence = kl_to(p.q, p.prior, least=free_bits, present=p.present, axis_name=p.axis_name)
    return Terms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def log_ratio(q: Normal, prior: Normal, z: Float[Array, "rows batch dim"]) -> Float[Array, "rows batch"]:
    """``log p(z) - log q(z)``."""
    return (_lift(prior, len(z)).log_prob(z) - _lift(q, len(z)).log_prob(z)).sum(axis=-1)


def importance_weighted(
    p: Problem, *, beta: Weight = 1.0, samples: int = 5, estimator: str = "iwae"
) -> Terms:
    """``-log 1/K sum_k w_k`` with ``log w = log p(x | z) + beta (log p(z) - log q(z | x))`` (Burda et al. 2016,
    arXiv:1509.00519, eq. 8, where beta is 1).

    ``estimator``: "iwae", the gradient of that value, or "dreg" (`losses.elbo.doubly_reparametrised`). parts: the means
    over the samples of ``rec`` and of ``log q(z | x) - log p(z)``.

    Raises:
      ValueError: another estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    z, q, zeros = draw(p, samples), p.q, ()
    if estimator == "dreg":
        z, *zeros = handle(z)
        q = detached(q)
    told, ratio = p.log_likelihood(z), log_ratio(q, p.prior, z)
    log_weights = told + jnp.broadcast_to(beta, p.present.shape)[None] * ratio
    bound = doubly_reparametrised(log_weights, *zeros) if zeros else importance_bound(log_weights)
    mean = lambda x: lax.stop_gradient(x.mean(axis=0))
    return Terms(-bound, {"reconstruction": -mean(told), "kl": -mean(ratio)})


ESTIMATORS = ("iwae", "dreg")


def matched(p: Problem, *, beta: Weight = 10.0, kernel: str = "imq") -> Terms:
    """``rec(z) + beta MMD^2({z}, {z'})``, unbiased, the codes of the whole batch against as many draws z' of the prior:
    WAE-MMD (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 2), and MMD-VAE (Zhao et al. 2017, arXiv:1706.02262,
    sec. 3.2) where ``q`` is no point. ``kernel``: a key of `KERNELS`. ``beta`` must be the same for all examples."""
    terms = reconstruct(p)
    wanted = p.prior.at(standard_noise(p.keys, "prior", p.prior.mean.shape[-1:]))
    measure = kernel_for(kernel, wanted.shape[-1])
    apart = mmd(terms.code, wanted, kernel=measure, present=p.present, axis_name=p.axis_name)
    weight = jnp.broadcast_to(beta, p.present.shape)[0]
    return terms._replace(shares={"mmd": (apart, weight)})


def inverse_multiquadratic(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
) -> Float[Array, "n m"]:
    """``sum_s C s / (C s + ||x - y||^2)`` with ``C = 2 dim``, the mean squared distance of two draws of N(0, 1)
    (Tolstikhin et al. 2018, sec. 4): rational-quadratic kernels of alpha 1."""
    total = jnp.zeros((len(x), len(y)), x.dtype)
    for scale in scales:
        width = math.sqrt(1.0 / (x.shape[-1] * scale))
        total = total + rational_quadratic(width * x, width * y, alphas=(1.0,))
    return total


KERNELS: Mapping[str, Callable[[int], Kernel]] = MappingProxyType(
    {
        "imq": lambda dim: inverse_multiquadratic,
        "rbf": lambda dim: functools.partial(
            rbf, bandwidths=[width * math.sqrt(dim) for width in (0.25, 0.5, 1.0, 2.0)]
        ),
        "rq": lambda dim: lambda x, y: rational_quadratic(x / math.sqrt(dim), y / math.sqrt(dim)),
        "distance": lambda dim: distance,
    }
)
"""By name ``of(dim) -> kernel``, of widths that fit codes of so many dimensions that are N(0, 1): those of
`probability.kernels`, and `inverse_multiquadratic`."""


def kernel_for(name: str, dim: int) -> Kernel:
    """A kernel of `KERNELS`.

    Raises:
      ValueError: another name.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    return KERNELS[name](dim)
