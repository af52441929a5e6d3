"""Checks that every method must pass, whatever it learns."""

import contextlib
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from xmodal_jax.core import trees
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train import gan_step as players
from xmodal_jax.train import step
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import Preempted, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import make_engine
from xmodal_jax.train.run import Run
from xmodal_jax.types import GAN

LAYOUTS = [("pmap", n, 1) for n in (1, 2, 4, 8)] + [
    ("sharded", 1, 1),
    ("sharded", 2, 1),
    ("sharded", 4, 2),
    ("sharded", 8, 4),
]


def keep_gradient():
    """An optimizer that moves nothing and keeps the gradient as its state."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    return optax.GradientTransformation(zeros, lambda grads, state, params=None: (zeros(grads), grads))


def loss_and_gradient(method, batch, *, mode="jit", devices=1, fsdp=1, config=None, make="make_step"):
    """The training step's own loss, scalars and gradient for one global batch, in one of the three modes. ``make``: the
    function of `train.step` or `train.gan_step` that makes the step."""
    config = config or Optimizer()
    train, tx = step, keep_gradient()
    if isinstance(method, GAN):
        train, tx = players, {"discriminator": tx, "generator": tx}
    engine = make_engine(
        mode,
        train.make_init(method, tx, config),
        lambda axis: getattr(train, make)(method, tx, config, axis_name=axis),
        fsdp=fsdp,
        devices=jax.devices()[:devices],
    )
    state = engine.init(jax.random.key(7), batch)
    xs = engine.put(jax.tree.map(lambda x: np.asarray(x)[None], batch))
    state, metrics = engine.run(state, None, xs)
    metrics = {k: np.asarray(v)[0] for k, v in metrics.items() if k != "finite"}
    return metrics, jax.tree.map(np.asarray, engine.fetch(state).opt_state)


def assert_device_invariant(method, batch, *, layouts=LAYOUTS, rtol=1e-5, **options):
    """The same global batch and key give the same loss and gradient on any number of devices, in all three modes.

    ``options`` are those of `loss_and_gradient`. A gradient leaf is compared relative to its largest element, or, if it
    is zero up to rounding (a bias that a normalization cancels), relative to the largest element of all leaves.
    """
    metrics, grads = loss_and_gradient(method, batch, **options)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert largest > 0
    for mode, devices, fsdp in layouts:
        where = f"{mode} on {devices} devices, fsdp {fsdp}"
        other, other_grads = loss_and_gradient(
            method, batch, mode=mode, devices=devices, fsdp=fsdp, **options
        )
        for name, value in metrics.items():
            np.testing.assert_allclose(other[name], value, rtol=rtol, atol=1e-6, err_msg=f"{name}: {where}")
        for name, a, b in zip(
            trees.leaf_names(grads), jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True
        ):
            scale = max(np.abs(a).max(), 1e-2 * largest)
            np.testing.assert_allclose(b, a, rtol=0, atol=rtol * scale, err_msg=f"{name}: {where}")


def assert_trees_identical(a, b):
    """Bit for bit, random keys included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def data(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    for name, x, y in zip(trees.leaf_names(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(data(x)), np.asarray(data(y)), err_msg=name)


def assert_resumes(method, arrays, directory, *, optimizer, steps=4, batch_size=8):
    """A run that is stopped half-way, as a cluster does, and resumed ends as one that was not: state and metrics."""

    def train(name, evaluate, resume=False):
        config = RunConfig(
            steps=steps, batch_size=batch_size, eval_every=steps // 2, run_dir=directory / name, resume=resume
        )
        loader, timer = Loader(ArraySource(arrays), batch_size=batch_size, seed=config.seed), Timer()
        with Run.create(config.run_dir, config, resume=resume, tensorboard=False) as run:
            try:
                result = fit(method, loader, config, optimizer, run, timer, evaluate=evaluate)
            finally:
                loader.close()
                timer.clock.close()
            return result.state, run.read_metrics()

    def stop(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with compiled_once(directory):
        state, metrics = train("whole", lambda params: {})
        with pytest.raises(Preempted):
            train("stopped", stop)
        resumed, rest = train("stopped", lambda params: {}, resume=True)
    assert_trees_identical(state, resumed)
    assert len(metrics) >= steps and metrics == rest


@contextlib.contextmanager
def compiled_once(directory):
    """What is compiled inside is kept in ``directory`` and read from there the next time."""
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
