"""Objectives of autoencoders of one modality, one function each: from an encoder's posterior to a loss in nats.

All take `ObjectiveInputs` and return `ObjectiveTerms`. Below, ``rec(z)`` stands for ``-log p(x | z)``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import global_mean
from xmodal_jax.losses.alignment import mmd
from xmodal_jax.losses.elbo import (
    ESTIMATORS,
    deferred_gradient_scale,
    doubly_reparametrized_bound,
    importance_bound,
)
from xmodal_jax.losses.objective import ObjectiveInputs, ObjectiveTerms, Weight
from xmodal_jax.probability.distributions import Posterior, detach, repeat_leading, sample, standard_noise
from xmodal_jax.probability.kernels import Kernel, distance, rational_quadratic, rbf


def draw_latents(inputs: ObjectiveInputs, count: int) -> Float[Array, "count batch dim"]:
    """``count`` samples z of the posterior ``q(z | x)`` for each example."""
    return sample(repeat_leading(inputs.posterior, count), inputs.keys, "code")


def reconstruction(inputs: ObjectiveInputs) -> ObjectiveTerms:
    """``rec(z) = -log p(x | z)`` of one latent z: the loss of an autoencoder, without a divergence.

    If z is encoded from a corrupted x and ``inputs.log_likelihood`` is that of the clean x, it is the loss of a
    denoising autoencoder (Vincent et al. 2008, ICML, eq. 5).
    """
    z = draw_latents(inputs, count=1)  # one sample of the posterior, [1, B, D]
    rec = -inputs.log_likelihood(z)[0]  # [B]
    return ObjectiveTerms(rec, {"reconstruction": rec}, latent=z[0])


def elbo(inputs: ObjectiveInputs, *, beta: Weight = 1.0, samples: int = 1) -> ObjectiveTerms:
    """``1/L sum_l rec(z_l) + beta KL(q || p)``: the negative evidence lower bound, with ``L = samples`` latents.

    ``rec(z)`` is ``-log p(x | z)`` and q the posterior ``q(z | x)``. VAE: Kingma and Welling 2014, arXiv:1312.6114, eq.
    7. ``beta``: beta-VAE, Higgins et al. 2017, ICLR, eq. 4. Conditional: CVAE, Sohn et al. 2015, NeurIPS, eq. 4.
    """
    rec = -inputs.log_likelihood(draw_latents(inputs, samples)).mean(axis=0)  # from [L, B] to [B]
    divergence = inputs.kl_to_prior(inputs.posterior, inputs.present)
    return ObjectiveTerms(rec + beta * divergence, {"reconstruction": rec, "kl": divergence})


def prior_log_ratio(
    posterior: Posterior, prior: Posterior, z: Float[Array, "samples batch dim"]
) -> Float[Array, "samples batch"]:
    """``log p(z) - log q(z | x)``, summed over dimensions.

    ``z``: samples of the posterior ``q(z | x)``; the two distributions are those of ``B`` examples, ``[B, D]``.
    """
    samples = len(z)
    log_p = repeat_leading(prior, samples).log_prob(z)
    log_q = repeat_leading(posterior, samples).log_prob(z)
    return (log_p - log_q).sum(axis=-1)


def importance_weighted(
    inputs: ObjectiveInputs, *, beta: Weight = 1.0, samples: int = 5, estimator: str = "iwae"
) -> ObjectiveTerms:
    """``-log 1/K sum_k w_k`` with ``log w = log p(x | z) + beta (log p(z) - log q(z | x))``: IWAE (Burda et al. 2016,
    arXiv:1509.00519, eq. 8, where beta is 1).

    The metrics "reconstruction" and "kl" are means over the samples: of ``-log p(x | z)`` and of ``log q(z | x) -
    log p(z)``.

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the ratio of densities.
      samples: K.
      estimator: of the gradient, one of `losses.elbo.ESTIMATORS`.
    Raises:
      ValueError: if there is no such estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, got {estimator!r}")
    z = draw_latents(inputs, samples)
    posterior = inputs.posterior
    gradient_probes = ()
    if estimator == "dreg":
        # The doubly reparametrized gradient needs probes that rescale the gradient of z, and a posterior whose
        # parameters have no gradient of their own: they get it through z alone.
        z, *gradient_probes = deferred_gradient_scale(z)
        posterior = detach(posterior)
    log_likelihood = inputs.log_likelihood(z)  # [K, B]
    ratio = prior_log_ratio(posterior, inputs.prior, z)  # [K, B]
    beta = jnp.broadcast_to(beta, inputs.present.shape)[None]  # [1, B]
    log_weights = log_likelihood + beta * ratio
    if estimator == "dreg":
        bound = doubly_reparametrized_bound(log_weights, *gradient_probes, beta=beta)
    else:
        bound = importance_bound(log_weights)
    sample_mean = lambda x: lax.stop_gradient(x.mean(axis=0))
    return ObjectiveTerms(-bound, {"reconstruction": -sample_mean(log_likelihood), "kl": -sample_mean(ratio)})


def mmd_to_prior(inputs: ObjectiveInputs, *, beta: Weight = 10.0, kernel: str = "imq") -> ObjectiveTerms:
    """``rec(z) + beta MMD^2({z}, {z'})``, between the latents z of the whole batch and as many samples z' of the prior.

    ``rec(z)`` is ``-log p(x | z)``; the estimate of MMD^2 is unbiased. WAE-MMD (Tolstikhin et al. 2018,
    arXiv:1711.01558, algorithm 2); with a stochastic encoder MMD-VAE (Zhao et al. 2017, arXiv:1706.02262, sec. 3.2).

    Args:
      inputs: see `ObjectiveInputs`.
      beta: weight of the discrepancy, which is one number of the whole batch; weights that differ between examples
        count with their mean over those that are present.
      kernel: a key of `KERNELS`.
    """
    terms = reconstruction(inputs)
    prior_latents = inputs.prior.reparametrize(
        standard_noise(inputs.keys, "prior", inputs.prior.mean.shape[-1:])
    )
    kernel_function = make_kernel(kernel, prior_latents.shape[-1])
    discrepancy = mmd(
        terms.latent,
        prior_latents,
        kernel=kernel_function,
        present=inputs.present,
        axis_name=inputs.axis_name,
    )
    weight = _mean_weight(beta, inputs)
    # A term of the whole batch, not of an example: (value, weight in the loss).
    return terms._replace(batch_terms={"mmd": (discrepancy, weight)})


def _mean_weight(beta: Weight, inputs: ObjectiveInputs) -> Float[Array, ""]:
    """The mean of ``beta`` over the examples of the global batch that are present. Equal weights have exactly their own
    value as mean, which the rounded sum of all would not give."""
    beta = jnp.broadcast_to(jnp.asarray(beta, jnp.float32), inputs.present.shape)
    largest = lax.stop_gradient(beta).max()
    if inputs.axis_name is not None:
        largest = lax.pmax(largest, inputs.axis_name)
    return largest + global_mean(
        beta - largest, inputs.present.astype(beta.dtype), axis_name=inputs.axis_name
    )


def inverse_multiquadratic(
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
    *,
    scales: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
) -> Float[Array, "n m"]:
    """``sum_s C s / (C s + ||x - y||^2)`` with ``C = 2 dim``, the mean squared distance of two draws of N(0, 1)
    (Tolstikhin et al. 2018, sec. 4): a sum of rational-quadratic kernels with alpha 1.

    ``scales`` are the values of s.
    """
    total = jnp.zeros((len(x), len(y)), x.dtype)
    for scale in scales:
        # C s / (C s + d^2) = 1 / (1 + (w d)^2 / 2) with w = sqrt(2 / (C s)), the rational-quadratic kernel of w d.
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
"""``KERNELS[name](dim)``: a kernel whose widths fit latents of ``dim`` dimensions with distribution N(0, 1); those of
`probability.kernels`, and `inverse_multiquadratic`."""


def make_kernel(name: str, dim: int) -> Kernel:
    """The kernel of this name in `KERNELS`, with widths that fit latents of ``dim`` dimensions.

    Raises:
      ValueError: if there is no kernel of this name.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    return KERNELS[name](dim)
