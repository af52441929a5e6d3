"""Penalties that keep a discriminator smooth: on its gradient with respect to its input, or on its logits.

Each returns one term per example. :func:`xmodal_jax.core.collectives.batch_mean` averages the terms; their mean, times
a weight, is added to the discriminator's loss. ``critic`` maps a batch to logits ``[B]``. Each logit must depend on its
own example alone (no batch normalisation), so that one backward pass gives the gradient of every example. Inputs are
floating arrays ``[B, ...]`` or pytrees of them; the gradient of an example is one vector of all its elements. A penalty
can be differentiated with respect to what ``critic`` closes over, the discriminator's parameters.

Example::

    terms = gradient_penalty(lambda x: discriminator.apply(params, x), real, fake, keys)
    loss = loss + 10.0 * batch_mean(terms, None, axis_name=None)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.core.collectives import AxisName, global_mean
from xmodal_jax.core.examples import per_example
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.core.trees import map_with_name
from xmodal_jax.types import ExampleKeys

Examples = PyTree[Float[Array, "batch ..."]]
Critic = Callable[[PyTree], jax.Array]


def gradient_penalty(
    critic: Critic, real: Examples, fake: Examples, keys: ExampleKeys, *, target: float = 1.0
) -> Float[Array, "batch"]:
    r"""WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028, eq. 3, without its factor 10).

    .. math:: (\|\nabla D(\hat x)\|_2 - t)^2, \qquad \hat x = u x + (1 - u) \tilde x, \quad u \sim U[0, 1)

    Args:
      critic: D, from a batch of examples to their scores ``[B]``; each score depends on its own example only.
      real, fake: x and :math:`\tilde x`, of the same structure.
      keys: one per example; all elements of an example share one u.
      target: t; 0 for a penalty centred at zero.
    """
    u = jax.vmap(jax.random.uniform)(fold_in_name(keys, "gradient_penalty"))  # [B]

    def interpolate(real_leaf, fake_leaf):
        """A random point between real and generated examples, for one array ``[B, ...]`` of them."""
        weight = per_example(u, real_leaf)
        return weight * real_leaf + (1.0 - weight) * fake_leaf

    gradient = _gradient(critic, jax.tree.map(interpolate, real, fake))
    return (_norm(gradient) - target) ** 2


def dragan(
    critic: Critic,
    real: Examples,
    keys: ExampleKeys,
    *,
    scale: float = 0.5,
    target: float = 1.0,
    present: Bool[Array, "batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, "batch"]:
    r"""DRAGAN (Kodali et al. 2017, arXiv:1705.07215): the gradient's norm around the real examples.

    .. math:: (\|\nabla D(x + c\,s\,\epsilon)\|_2 - t)^2, \qquad \epsilon \sim U[0, 1) \text{ for every element}

    with s the standard deviation of all elements of the global batch (per array, where there are several). The uniform
    noise is that of the authors' code; the paper has normal noise of a fixed variance.

    Args:
      critic: D, from a batch of examples to their scores ``[B]``; each score depends on its own example only.
      real: the real examples x, an array or a pytree of arrays ``[B, ...]``.
      keys: one per example.
      scale: c, in standard deviations.
      target: t.
      present: which examples count. The others do not contribute to s; their term and gradient are 0.
      axis_name: the named axis that splits the batch over devices, if any.
    """
    if present is not None:
        real = jax.tree.map(lambda x: jnp.where(per_example(present, x), x, 0), real)
    weights = None if present is None else present.astype(jnp.float32)

    def mean_of_elements(x):
        """The mean over all elements of the present examples of the global batch."""
        return global_mean(x.reshape(x.shape[0], -1).mean(axis=1), weights, axis_name=axis_name)

    def perturb(name, x):
        """``x + c s e`` for one array of the examples, which has the path ``name``."""
        leaf_keys = fold_in_name(keys, f"dragan/{name}")
        noise = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(leaf_keys)
        constant = jax.lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        deviation = jnp.sqrt(mean_of_elements((constant - mean_of_elements(constant)) ** 2))
        return x + (scale * deviation).astype(x.dtype) * noise

    terms = (_norm(_gradient(critic, map_with_name(perturb, real))) - target) ** 2
    return terms if present is None else jnp.where(present, terms, 0.0)


def squared_gradient(critic: Critic, x: Examples) -> Float[Array, "batch"]:
    r""":math:`\tfrac12 \|\nabla D(x)\|_2^2`: the penalty R1 if x are real examples, R2 if they are generated ones.

    Mescheder et al. 2018, arXiv:1801.04406, eq. 9 and 10, without the factor :math:`\gamma`. If it is computed only at
    every k-th step (lazy regularisation), the weight must be k times as large. ``critic`` is D, from a batch of
    examples to their scores ``[B]``.
    """
    return 0.5 * _squared_norm(_gradient(critic, x))


def matching_aware_penalty(
    critic: Callable[[PyTree, PyTree], jax.Array],
    image: Examples,
    sentence: Examples,
    *,
    factor: float = 2.0,
    power: float = 6.0,
    joint: bool = False,
) -> Float[Array, "batch"]:
    r"""MA-GP of DF-GAN, at real images with the matching sentences (Tao et al. 2022, arXiv:2008.05865, section 3.3).

    .. math:: k\,(\|\nabla_x D(x, s)\|_2 + \|\nabla_s D(x, s)\|_2)^p

    Args:
      critic: ``critic(image, sentence) -> [B]``.
      image, sentence: x and s, arrays or pytrees.
      factor, power: k and p.
      joint: take the norm of both gradients as one vector instead of the sum of the norms, as the authors' code does.
        It is smaller by a factor of up to sqrt(2).
    """
    image_gradient, sentence_gradient = _gradient(lambda pair: critic(*pair), (image, sentence))
    if joint:
        norm = _norm((image_gradient, sentence_gradient))
    else:
        norm = _norm(image_gradient) + _norm(sentence_gradient)
    return factor * norm**power


@check_shapes
def lecam(
    real: Float[Array, "batch"],
    fake: Float[Array, "batch"],
    real_ema: float | Float[Array, ""],
    fake_ema: float | Float[Array, ""],
) -> Float[Array, "batch"]:
    r"""LeCam regularisation of the discriminator's logits, for small data sets (Tseng et al. 2021, arXiv:2104.03310).

    .. math:: [r - \bar f]_+^2 + [\bar r - f]_+^2

    with r and f the logits of real and generated examples, and :math:`\bar r` and :math:`\bar f` exponential moving
    averages of their batch means (:func:`xmodal_jax.core.trees.update_ema`), which get no gradient. It pulls the real
    logits towards the average of the generated ones, and the generated ones towards the average of the real ones. The
    positive parts are those of the authors' code; the paper has plain squares.
    """
    real_ema, fake_ema = jax.lax.stop_gradient((real_ema, fake_ema))
    return jax.nn.relu(real - fake_ema) ** 2 + jax.nn.relu(real_ema - fake) ** 2


# -- norms of gradients -------------------------------------------------------------------------------------


def _gradient(critic: Critic, x: Examples) -> Examples:
    """The gradient of every example's logit with respect to that example."""
    return jax.grad(lambda x: critic(x).sum())(x)


def _squared_norm(gradient: Examples) -> Float[Array, "batch"]:
    """The squared norm of each example's gradient, over all elements of all arrays; in float32 at least."""

    def leaf_norm(g):
        """The squared norm of each example's part ``g [B, ...]`` of the gradient, ``[B]``."""
        g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
        return jnp.sum(g * g, axis=range(1, g.ndim))

    return sum(leaf_norm(g) for g in jax.tree.leaves(gradient))


def _norm(gradient: Examples) -> Float[Array, "batch"]:
    """The norm of each example's gradient: the root of `_squared_norm`, with the derivative 0 at 0."""
    squared = _squared_norm(gradient)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
