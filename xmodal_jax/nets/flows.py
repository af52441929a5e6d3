"""Masked autoregressive flows: densities of vectors that can be evaluated in one pass, and sampled from.

Matrix products are in full float32 on every device: a log-density sums over dimensions, and the inverse must compute
with the same numbers as the forward pass.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.core.collectives import shard_examples

Vectors = Float[Array, "batch features"]
Context = Float[Array, "batch context"]

_ZEROS = nn.initializers.zeros_init()


def _check_at_least_one(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


class MaskedDense(nn.Module):
    """``y = x (W * M) + b``, where the mask M decides by degrees which inputs each output depends on (MADE, Germain et
    al. 2015, arXiv:1502.03509, sec. 4).

    ``M_ij = 1[degree_j > degree_i]`` if ``strict``, as in the last layer, else ``1[degree_j >= degree_i]``. Weights are
    initialised with the variance ``1 / (number of inputs of the output)``, or with 0.
    """

    inputs: tuple[int, ...]
    """The degree of every input."""
    outputs: tuple[int, ...]
    """The degree of every output."""
    strict: bool = False
    use_bias: bool = True
    zeros: bool = False
    """Whether weights are initialised with 0."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """``x (W * M) + bias``: each output depends only on the inputs that the mask M allows.

        Output j may use input i if its degree is at least that of i (``strict``: greater). ``self.inputs`` and
        ``self.outputs`` are the degrees of all inputs and outputs.
        """
        if x.shape[-1] != len(self.inputs):
            raise ValueError(f"this layer has {len(self.inputs)} inputs, got {list(x.shape)}")
        compare = np.greater if self.strict else np.greater_equal
        mask = compare(np.asarray(self.outputs)[None, :], np.asarray(self.inputs)[:, None])

        def init(key, shape):
            """Normal weights of variance ``1 / fan_in``, where the fan-in counts the inputs that the mask allows."""
            if self.zeros:
                return jnp.zeros(shape)
            fan_in = np.maximum(mask.sum(axis=0, keepdims=True), 1).astype(np.float32)
            return jax.random.normal(key, shape) / jnp.broadcast_to(np.sqrt(fan_in), shape)

        kernel = self.param("kernel", init, mask.shape)
        # `where` instead of a product, so that a masked weight has no influence even if it is infinite.
        y = jnp.matmul(x, jnp.where(mask, kernel, 0.0), precision="highest")
        if self.use_bias:
            y = y + jnp.broadcast_to(self.param("bias", _ZEROS, (len(self.outputs),)), y.shape)
        return y


class MADE(nn.Module):
    """Shift and log-scale of every dimension as functions of the dimensions before it and a context, ``[B, D]`` each.

    ``depth`` hidden layers of ``hidden`` masked units (SiLU), and direct connections from input to output (Germain et
    al. 2015, arXiv:1502.03509, sec. 4). The degrees of hidden units are spread evenly over all useful ones; with fewer
    units than degrees some outputs depend on the dimensions right before them through the direct connections only. The
    context is added to every hidden layer and to the outputs, through dense layers, so that it reaches the first
    dimension as well.

    The log-scale is ``bound tanh(a / bound)``. Output layers are initialised with 0: shift and log-scale start at 0.

    Raises:
      ValueError: if a size is below 1, the bound is not positive, the inputs have another dimension, or there is a
        context but the parameters were initialised without one, or the reverse.
    """

    features: int
    """Number of dimensions."""
    hidden: int
    """Units of each hidden layer."""
    depth: int
    """Number of hidden layers."""
    reverse: bool = False
    """Whether the order of the dimensions is reversed: the last dimension comes first."""
    bound: float = 3.0
    """The largest absolute log-scale."""

    @nn.compact
    def __call__(self, x: Vectors, context: Context | None = None) -> tuple[Vectors, Vectors]:
        """``(shift, log_scale)`` of every dimension of ``x``, ``[B, D]`` each.

        Each depends on the dimensions before it, and on ``context [B, C]`` if there is one. Every input, hidden unit
        and output has a degree; a unit depends only on units of degrees up to its own, so that nothing can depend on
        later dimensions.
        """
        _check_at_least_one(features=self.features, hidden=self.hidden, depth=self.depth)
        if not self.bound > 0:
            raise ValueError(f"bound must be positive, got {self.bound}")
        if x.shape[-1] != self.features:
            raise ValueError(f"this flow is of {self.features} features, got {list(x.shape)}")
        # The degrees depend on whether there is a context, so that parameters fit one of the two cases only.
        if not self.is_initializing() and self.has_variable("params", "context_out") != (context is not None):
            raise ValueError(
                "the parameters were made without a context, which cannot be given now: make them with one"
                if context is not None
                else "the parameters were made with a context: give one"
            )
        order = range(1, self.features + 1)
        dim_degrees = tuple(reversed(order)) if self.reverse else tuple(order)
        # A hidden unit of degree d depends on the first d dimensions; of degree 0 on the context alone. Degrees count
        # down from the largest, so that the last dimension depends on all others whatever the number of units.
        least = 1 if context is None else 0
        largest = max(least, self.features - 1)
        hidden_degrees = tuple(largest - k * (largest - least + 1) // self.hidden for k in range(self.hidden))

        def project_context(features, name, init):
            """A linear map of the context, to be added to a masked layer."""
            dense = nn.Dense(features, use_bias=False, kernel_init=init, precision="highest", name=name)
            return dense(context)

        h, degrees = x, dim_degrees
        for k in range(self.depth):
            h = MaskedDense(degrees, hidden_degrees, name=f"hidden_{k}")(h)
            if context is not None:
                h = h + project_context(self.hidden, f"context_{k}", nn.initializers.lecun_normal())
            h, degrees = shard_examples(nn.silu(h)), hidden_degrees
        # The outputs are the shifts of all dimensions, then their log-scales.
        output_degrees = 2 * dim_degrees
        y = MaskedDense(degrees, output_degrees, strict=True, zeros=True, name="out")(h)
        direct = MaskedDense(
            dim_degrees, output_degrees, strict=True, use_bias=False, zeros=True, name="direct"
        )
        y = y + direct(x)
        if context is not None:
            y = y + project_context(2 * self.features, "context_out", _ZEROS)
        shift, log_scale = jnp.split(shard_examples(y), 2, axis=-1)
        return shift, self.bound * jnp.tanh(log_scale / self.bound)


class AutoregressiveFlow(nn.Module):
    r"""A masked autoregressive flow (MAF, Papamakarios et al. 2017, arXiv:1705.07057).

    Each layer maps data to noise, with shift m and log-scale a of dimension i from `MADE` (eq. 3 to 5):

    .. math:: u_i = (x_i - m_i) e^{-a_i}, \quad x_i = u_i e^{a_i} + m_i, \quad
              \log |\det \partial u / \partial x| = -\sum_i a_i, \quad
              (m_i, a_i) = f_i(x_1, \dots, x_{i-1}, \mathrm{context})

    Every second layer takes the dimensions in reverse order. There is no batch norm, and the flow is initialised as the
    identity. With one dimension and no context it is affine. Initialise parameters by ``init`` of ``__call__``, with a
    context if there will be one.

    Raises:
      ValueError: as `MADE`, or if there are fewer than one layer.
    """

    features: int
    """Number of dimensions."""
    layers: int = 4
    """Number of layers of the flow."""
    hidden: int = 128
    """Units of each hidden layer within a layer of the flow."""
    depth: int = 2
    """Number of hidden layers within a layer of the flow."""
    bound: float = 3.0
    """The largest absolute log-scale of one layer."""

    def setup(self):
        """The layers, in alternating order of the dimensions."""
        _check_at_least_one(layers=self.layers)
        self.steps = [
            MADE(self.features, self.hidden, self.depth, reverse=k % 2 == 1, bound=self.bound)
            for k in range(self.layers)
        ]

    def __call__(self, x: Vectors, context: Context | None = None) -> tuple[Vectors, Float[Array, "batch"]]:
        """``(z, log_det)``: data ``x [B, D]`` to noise ``z [B, D]``, and ``log |det dz/dx|`` ``[B]`` in nats.

        ``context [B, C]``: what the density is conditioned on; None: nothing.
        """
        log_det = jnp.zeros(x.shape[0], x.dtype)
        for made in self.steps:
            shift, log_scale = made(x, context)
            x = (x - shift) * jnp.exp(-log_scale)
            log_det = log_det - log_scale.sum(axis=-1)
        return x, log_det

    def inverse(self, z: Vectors, context: Context | None = None) -> Vectors:
        """Noise ``z [B, D]`` to data ``[B, D]``; D sequential passes through each layer."""
        for made in reversed(self.steps):
            z = self._invert(made, z, context)
        return z

    def _invert(self, made: MADE, u, context):
        """Inverts one layer, ``made``: noise ``u [B, D]`` to data ``x``, one dimension after the other.

        ``x_i = u_i exp(log_scale_i) + shift_i``, where log-scale and shift depend on the dimensions before ``i``.

        ``context [B, C]``: what the density is conditioned on; None: nothing.
        """
        dims = jnp.arange(self.features)

        def set_dimension(made, x, dim):
            """``x`` with dimension ``dim`` computed from those before it; no output per step."""
            # Dimensions that are not known yet stay 0: they could overflow, and 0 times infinity is NaN.
            shift, log_scale = made(x, context)
            is_dim = jnp.broadcast_to((dims == dim)[None, :], x.shape)
            return jnp.where(is_dim, u * jnp.exp(log_scale) + shift, x), None

        order = dims[::-1] if made.reverse else dims
        scan = nn.scan(set_dimension, variable_broadcast="params", split_rngs={"params": False})
        x, _ = scan(made, jnp.zeros_like(u), order)  # the second result would be the outputs per step
        return x

    def log_prob(self, x: Vectors, context: Context | None = None) -> Float[Array, "batch"]:
        """``log p(x) = log N(z; 0, I) + log |det dz/dx|``, ``[B]``, in nats, with ``z`` the noise of the data ``x``."""
        z, log_det = self(x, context)
        return log_det - 0.5 * (jnp.square(z).sum(axis=-1) + self.features * math.log(2 * math.pi))
