"""Checks that every method must pass, whatever it learns."""

import contextlib
import dataclasses
import os
import signal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal_jax.core import trees
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train import gan_step, loop, step
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import Preempted, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import DeviceData, make_engine
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


def random_params(init, *args, seed=0):
    """Random parameters with the shapes of ``init(*args)``, drawn by NumPy, since compiling an initialization takes
    longer than most tests.

    Biases, gates and position embeddings are random as well, where an initialization often has zeros; the scales of
    normalizations are near 1.
    """
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        noise = rng.normal(size=leaf.shape)
        if name.rsplit("/", 1)[-1] == "scale":
            return (1 + 0.1 * noise).astype(leaf.dtype)
        deviation = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.1
        return (deviation * noise).astype(leaf.dtype)

    return jax.device_put(trees.map_with_name(draw, jax.eval_shape(init, *args)))


def random_initial_params(method, key, batch):
    """`random_params` for a method, be it a GAN or not."""
    init = lambda *args: method.init(*args)[0] if isinstance(method, GAN) else method.init(*args)
    return random_params(init, key, batch)


def gradient_engine(method, *, mode="jit", devices=1, fsdp=1, config=None, make="make_step", params=None):
    """The engine whose training step keeps the gradient in place of an optimizer's state.

    ``make`` is the function of `train.step` or `train.gan_step` that makes the step. ``params`` are the parameters to
    start from, the method's own initialization by default.
    """
    config = config or Optimizer()
    train, tx = step, keep_gradient()
    if isinstance(method, GAN):
        train, tx = gan_step, {"discriminator": tx, "generator": tx}
    return make_engine(
        mode,
        train.make_init(method, tx, config, params=params),
        lambda axis: getattr(train, make)(method, tx, config, axis_name=axis),
        fsdp=fsdp,
        devices=jax.devices()[:devices],
    )


def loss_and_gradient(method, batch, *, state=None, **options):
    """The training step's own loss, scalars and gradient for one global batch, in one of the three modes.

    ``state`` is the state before the step on one device, by default what the engine initializes; ``options`` are those
    of `gradient_engine`.
    """
    engine = gradient_engine(method, **options)
    if state is None:
        state = engine.init(jax.random.key(7), batch)
    else:  # copied, since the step frees the arrays of its state
        state = engine.put_state(jax.tree.map(lambda x: jax.device_put(x, may_alias=False), state))
    xs = engine.put(jax.tree.map(lambda x: np.asarray(x)[None], batch))
    device_data = DeviceData(frozen=engine.put_frozen(getattr(method, "frozen", None)))
    state, metrics = engine.run(state, device_data, xs)
    metrics = {k: np.asarray(v)[0] for k, v in metrics.items() if k != "finite"}
    grads = jax.tree.map(np.asarray, state.opt_state)
    if engine.mode == "pmap":  # a copy for each device
        for copies in jax.tree.leaves(grads):
            np.testing.assert_array_equal(copies, np.broadcast_to(copies[:1], copies.shape))
        grads = jax.tree.map(lambda copies: copies[0], grads)
    return metrics, grads


def assert_device_invariant(
    method, batch, *, layouts=LAYOUTS, rtol=1e-5, initialize=False, parts=None, together=False, **options
):
    """The same global batch and key give the same loss and gradient on any number of devices, in all three modes, and
    computed in ``parts`` parts (1: for losses that are refused in parts; None: 2, or 1 with a ``config``).

    All layouts start from the same random parameters; with ``initialize`` each one initializes them itself, to the same
    values. With ``together`` the last layout computes the parts, which is one program less than each of the two by
    itself. ``options`` are those of `gradient_engine`. A gradient leaf is compared relative to its largest element, or,
    if it is zero up to rounding (a bias that a normalization cancels), relative to the largest element of all leaves.
    """
    key, state = jax.random.key(7), None
    if not initialize:
        params = random_initial_params(method, key, batch)
        state = gradient_engine(method, params=params, **options).init(key, batch)
    metrics, grads = loss_and_gradient(method, batch, state=state, **options)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert largest > 0
    variants = [
        (f"{mode} on {devices} devices, fsdp {fsdp}", options | dict(mode=mode, devices=devices, fsdp=fsdp))
        for mode, devices, fsdp in layouts
    ]
    config = options.get("config")
    parts = parts or (2 if config is None else 1)
    if parts > 1 and not isinstance(method, GAN):
        in_parts = dataclasses.replace(config or Optimizer(), accumulate=parts)
        where, changes = variants.pop() if together else ("one device", options)
        variants.append((f"{where}, in {parts} parts", changes | dict(config=in_parts)))
    for where, changes in variants:
        other, other_grads = loss_and_gradient(method, batch, state=state, **changes)
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


@contextlib.contextmanager
def shared_programs():
    """Within it `fit` compiles nothing that an earlier `fit` has: of the same method (the same object), with the same
    optimizer, number of steps and layout on the devices."""
    trainings, engines = {}, {}

    def cached(make_training):
        def make(method, optimizer, steps, *, params=None):
            key = id(method), optimizer, steps, id(params)
            if key not in trainings:  # `method` and `params` are kept, so that no other object gets their ids
                trainings[key] = make_training(method, optimizer, steps, params=params), method, params
            return trainings[key][0]

        return make

    def cached_engine(mode, init, make_step, **options):
        key = mode, init, make_step, *sorted(options.items())
        if key not in engines:
            engines[key] = make_engine(mode, init, make_step, **options)
        return engines[key]

    with (
        mock.patch.object(loop, "make_training", cached(step.make_training)),
        mock.patch.object(gan_step, "make_training", cached(gan_step.make_training)),
        mock.patch.object(loop, "make_engine", cached_engine),
    ):
        yield


def assert_resumes(method, data, directory, *, optimizer, steps=4, batch_size=8, **options):
    """A run that is stopped half-way, as a cluster does, and resumed ends as one that was not: state and metrics.

    All start from random parameters, since the initialization is not what is tested, and run the same programs.
    ``data``: arrays, or a source of any kind. ``options``: of the run's configuration.
    """
    source = data if isinstance(data, Source) else ArraySource(data)
    loader = Loader(source, batch_size=batch_size, seed=0)
    params = random_initial_params(method, jax.random.key(0), numeric_fields(loader.example()))
    loader.close()

    def train(name, evaluate, resume=False):
        config = RunConfig(
            steps=steps, batch_size=batch_size, eval_every=steps // 2, run_dir=directory / name, resume=resume,
            **options,
        )  # fmt: skip
        loader, timer = Loader(source, batch_size=batch_size, seed=config.seed), Timer()
        with Run.create(config.run_dir, config, resume=resume, tensorboard=False) as run:
            try:
                result = fit(method, loader, config, optimizer, run, timer, evaluate=evaluate, params=params)
            finally:
                loader.close()
                timer.clock.close()
            return result.state, run.read_metrics()

    def stop(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with shared_programs():
        state, metrics = train("whole", lambda params: {})
        with pytest.raises(Preempted):
            train("stopped", stop)
        resumed, rest = train("stopped", lambda params: {}, resume=True)
    assert_trees_identical(state, resumed)
    assert len(metrics) >= steps and metrics == rest
