"""Distributions, likelihoods, kernels and posteriors over subsets of modalities, as functions of arrays."""

from xmodal_jax.probability.distributions import (
    Laplace,
    Normal,
    StudentT,
    bernoulli_log_prob,
    categorical_log_prob,
    detach,
    kl,
    kl_bernoulli,
    kl_categorical,
    sample,
    standard_like,
    standard_noise,
)
from xmodal_jax.probability.kernels import (
    distance,
    polynomial,
    rational_quadratic,
    rational_quadratic_star,
    rbf,
)
from xmodal_jax.probability.likelihoods import (
    dense_log_likelihood,
    label_log_likelihood,
    measured_log_likelihood,
    token_log_likelihood,
)
from xmodal_jax.probability.mixtures import Mixture, as_mixture, kl_mixture
from xmodal_jax.probability.posteriors import (
    all_subsets,
    joint_product,
    mask_experts,
    masked_log_mean_exp,
    masked_product,
    mixture_log_prob,
    product_of_experts,
)

__all__ = [
    "Laplace",
    "Mixture",
    "Normal",
    "StudentT",
    "all_subsets",
    "as_mixture",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "dense_log_likelihood",
    "detach",
    "distance",
    "joint_product",
    "kl",
    "kl_bernoulli",
    "kl_categorical",
    "kl_mixture",
    "label_log_likelihood",
    "mask_experts",
    "masked_log_mean_exp",
    "masked_product",
    "measured_log_likelihood",
    "mixture_log_prob",
    "polynomial",
    "product_of_experts",
    "rational_quadratic",
    "rational_quadratic_star",
    "rbf",
    "sample",
    "standard_like",
    "standard_noise",
    "token_log_likelihood",
]
