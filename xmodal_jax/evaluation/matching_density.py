"""A density of latents that is fitted by flow matching: the velocity that moves normal noise to latents."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested
from xmodal_jax.core.random import fold_in_name, normal_like
from xmodal_jax.evaluation.latent_density import (
    Fit,
    LatentDensity,
    check_fit,
    make_density,
    mean_and_std,
    minimise,
    split_latents,
)
from xmodal_jax.models.flow.objectives import FlowMatching
from xmodal_jax.models.flow.samplers import HeunSampler
from xmodal_jax.nets.dit import VectorFlowMLP
from xmodal_jax.probability import ode
from xmodal_jax.train.checkpoint import params_digest
from xmodal_jax.train.run import write_atomic
from xmodal_jax.types import Params

NAME = "flow_matching"
FOLDER = "densities"
"""The folder of a run's directory that holds its fitted densities."""
SAMPLER_STEPS = 25
"""Steps of Heun's method from noise to latents, and from latents to noise for their density."""
MIN_VARIANCE = 1e-6
"""Added to the variances along the principal axes of the standardised latents, as to those of the mixture."""
DENSITY_BATCH = 64
"""Latents at a time whose density is computed: each needs a derivative along every dimension."""


class Whitening(NamedTuple):
    """A linear map of latents to vectors of mean 0 and covariance I, along their principal axes."""

    mean: np.ndarray  # [1, D]
    std: np.ndarray  # [1, D]
    axes: np.ndarray  # [D, D], the columns are the principal axes of the standardised latents
    scale: np.ndarray  # [D], the standard deviation along each axis

    @classmethod
    def fit(cls, latents: np.ndarray) -> Whitening:
        """That of latents ``[N, D]``. Raises ValueError if a dimension is constant."""
        mean, std = mean_and_std(latents)
        standard = (latents - mean) / std
        variance, axes = np.linalg.eigh(standard.T @ standard / len(standard))
        return cls(mean, std, axes, np.sqrt(np.maximum(variance, 0.0) + MIN_VARIANCE))

    def apply(self, latents: np.ndarray) -> np.ndarray:
        """Whitened latents, float32."""
        return (((latents - self.mean) / self.std) @ self.axes / self.scale).astype(np.float32)

    def invert(self, whitened: np.ndarray) -> np.ndarray:
        """The latents of whitened ones, float64."""
        return self.mean + self.std * ((np.float64(whitened) * self.scale) @ self.axes.T)

    @property
    def log_det(self) -> float:
        """The logarithm of the absolute determinant of the map."""
        return -float(np.log(self.std).sum() + np.log(self.scale).sum())


@dataclasses.dataclass(frozen=True)
class _Matching(Fit):
    """The regression of the velocity at random times, as a `latent_density.Fit`."""

    network: VectorFlowMLP

    def init(self, key, x) -> Params:
        """See `Fit`. The velocity is 0 at first."""
        return self.network.init(key, x, jnp.zeros(len(x)))

    def velocity(self, params: Params, z, t):
        """The velocity ``[B, D]`` at the states z and the times t."""
        return self.network.apply(params, z, t)

    def loss(self, params: Params, x, key):
        """The mean squared error of the velocity, at one random time for each vector."""
        keys = jax.random.split(key, len(x))
        noise = normal_like(fold_in_name(keys, "noise"), x)
        return FlowMatching().terms(lambda z, t, r: self.velocity(params, z, t), x, noise, keys).mean()


def fit_flow_matching(
    latents,
    *,
    seed: int,
    steps: int = 1000,
    batch_size: int = 128,
    width: int = 128,
    depth: int = 2,
    learning_rate: float = 2e-3,
    evaluate_every: int = 50,
) -> LatentDensity:
    r"""A flow along an ordinary differential equation, fitted by flow matching (Lipman et al. 2023, arXiv:2210.02747).

    .. math:: \min_v E \|v(t z + (1 - t) e, t) - (z - e)\|^2, \qquad
              \log p(z_1) = \log N(z_0; 0, I) - \int_0^1 \nabla \cdot v(z_t, t) \, dt

    with latents z, normal noise e, and the path dz / dt = v from the noise at time 0 to the latents at time 1.

    Latents are whitened first, and the velocity of a residual MLP (`nets.dit.VectorFlowMLP`) is 0 at the start: the
    density is then the normal distribution with the latents' mean and covariance, and training adds what that lacks. A
    tenth of the latents is held out; the parameters with the lowest loss on them are kept.

    ::

        density = fit_flow_matching(latents, seed=0)  # latents [N, D]
        density.sample(1000, seed=1)  # [1000, D]

    Args:
      latents: ``[N, D]``; the network computes in float32.
      seed: seed of the choice of the latents that are held out, of the initialisation, minibatches, times and noise.
      steps, batch_size, learning_rate: of Adam.
      width, depth: dimensions of the network's hidden state, and its number of residual blocks.
      evaluate_every: steps between evaluations on the latents that are held out.
    Returns:
      The density "flow_matching". Its ``log_prob`` needs a derivative along each dimension at each step of the solver:
      it is meant for few latents.
    Raises:
      ValueError: if the latents are not ``[N, D]``, not finite, constant in a dimension or fewer than `MIN_LATENTS`, or
        a size or the learning rate is not positive.
      NonFiniteError: if the loss is no longer finite in training.
    """
    options = dict(steps=steps, batch_size=batch_size, evaluate_every=evaluate_every)
    check_fit(learning_rate, width=width, depth=depth, **options)
    train, held_out = split_latents(latents, seed)
    whitening = Whitening.fit(train)
    matching = _Matching(VectorFlowMLP(width, depth))
    whitened = (jnp.asarray(whitening.apply(x)) for x in (train, held_out))
    params = minimise(matching, *whitened, seed, learning_rate, **options)
    return flow_density(whitening, matching, params)


def flow_density(whitening: Whitening, matching: _Matching, params: Params) -> LatentDensity:
    """The density of a fitted velocity of whitened latents."""

    def draw(count, rng, _):
        """``count`` samples ``[count, D]``: noise moved along the velocity, in the units of the latents."""
        noise = jnp.asarray(rng.standard_normal((count, len(whitening.scale))), jnp.float32)
        return whitening.invert(np.asarray(_move(matching, params, noise)))

    def log_prob(x):
        """The log-density ``[N]``: that of whitened latents, and the determinant of the whitening."""
        whitened = jnp.asarray(whitening.apply(x))
        return np.asarray(_log_density(matching, params, whitened), np.float64) + whitening.log_det

    arrays = {**whitening._asdict(), "width": np.int64(matching.network.width)}
    arrays |= {"depth": np.int64(matching.network.depth)}
    arrays |= {f"params/{path}": np.asarray(x) for path, x in trees.flat(params).items()}
    return make_density(len(whitening.scale), draw, log_prob, NAME, arrays)


def restore_density(arrays: Mapping[str, np.ndarray]) -> LatentDensity:
    """The density of `fit_flow_matching` whose ``arrays`` these are."""
    whitening = Whitening(*(arrays[name] for name in Whitening._fields))
    matching = _Matching(VectorFlowMLP(int(arrays["width"]), int(arrays["depth"])))
    params = nested({k: jnp.asarray(x) for k, x in arrays.items() if k.startswith("params/")})["params"]
    return flow_density(whitening, matching, params)


def density_file(run: pathlib.Path, model_params: Params) -> pathlib.Path:
    """Where a run keeps the density that is fitted to the latents of a model with these parameters. The name is a
    digest of the parameters, so that seeds and checkpoints are never confused."""
    return run / FOLDER / f"{params_digest(model_params)}.npz"


def save_density(run: pathlib.Path, model_params: Params, density: LatentDensity) -> None:
    """Stores the density of `fit_flow_matching`, so that the trained run can be sampled."""
    buffer = io.BytesIO()
    np.savez(buffer, **density.arrays)
    write_atomic(density_file(run, model_params), buffer.getvalue())


def load_density(run: pathlib.Path, model_params: Params) -> LatentDensity | None:
    """The density that `save_density` stored for a model with these parameters; None: there is none.

    Raises:
      ValueError: the file is damaged.
    """
    if not (run / FOLDER).is_dir() or not (path := density_file(run, model_params)).is_file():
        return None
    try:
        with np.load(path) as file:  # which verifies a checksum of each array
            return restore_density({name: file[name] for name in file.files})
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and sample from the prior or evaluate the run again"
        ) from error


@partial(jax.jit, static_argnums=0)
def _move(matching: _Matching, params: Params, noise):
    """The latents at the end of the paths from ``noise``."""
    return HeunSampler(steps=SAMPLER_STEPS).sample(partial(matching.velocity, params), noise)


@partial(jax.jit, static_argnums=0)
def _log_density(matching: _Matching, params: Params, x):
    """The log-density ``[N]`` of whitened latents, with the exact divergence."""
    grid = ode.time_grid(SAMPLER_STEPS)

    def of_one(x):
        return ode.log_density(partial(matching.velocity, params), x[None], grid)[0][0]

    return jax.lax.map(of_one, x, batch_size=DENSITY_BATCH)
