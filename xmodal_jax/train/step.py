"""One training step as a pure function, the same for one device, a named axis and a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from xmodal_jax.core import collectives, trees
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.train import optim
from xmodal_jax.types import Batch, Key, Method, Params


class TrainState(NamedTuple):
    """All that changes while one network trains."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params | None
    """Exponential average of the parameters, or None where the optimizer asks for none."""
    key: Key
    """The seed's key; a step draws from ``fold_in(key, step)``. It never changes."""


def eval_params(state: TrainState) -> Params:
    """The parameters to evaluate: the average where one is kept."""
    return state.params if state.ema is None else state.ema


class Training(NamedTuple):
    """What `train.loop.fit` needs to know of a method."""

    init: Callable[[Key, Batch], Any]
    """``init(seed_key, batch) -> state``."""
    make_step: Callable[[str | None], Callable]
    """``make_step(axis_name) -> step(state, batch) -> (state, metrics)``."""
    rates: dict[str, Callable]
    """Learning rates by name: step to rate."""
    evaluated: Callable[[Any], Params]
    """Of a state, the parameters to evaluate."""
    first: int = 0
    """So many steps at the start are of another kind."""
    make_first: Callable[[str | None], Callable] | None = None
    """What makes these, as ``make_step`` the others. A program of its own: a branch within one runs slower on a CPU."""
    given: Callable[[Params, Batch], Params] | None = None
    """See `types.Method`."""
    averaged: Callable[[Params], Params] = lambda params: params
    """Of parameters, those of which an average is kept."""


def make_training(
    method: Method, config: optim.Optimizer, steps: int, *, params: Params | None = None
) -> Training:
    """What `train.loop.fit` needs to train ``method`` for ``steps`` steps."""
    tx = optim.make_optimizer(config, steps)
    settle = (lambda params: params) if method.settled is None else method.settled
    training = Training(
        make_init(method, tx, config, params=params),
        lambda axis: make_step(method, tx, config, axis_name=axis),
        {"learning_rate": optim.learning_rate(config, steps)},
        lambda state: settle(eval_params(state)),
        given=method.given,
    )
    if method.first is None:
        return training
    return training._replace(
        first=round(method.first.share * steps),
        make_first=lambda axis: make_first(method, tx, config, axis_name=axis),
    )


def check_given(given: Params, own: Params) -> Params:
    """The given parameters as arrays. Those of another model must not be trained on unnoticed: raises AssertionError,
    which names the difference leaf by leaf."""
    chex.assert_trees_all_equal_shapes_and_dtypes(given, own)
    return jax.tree.map(jnp.asarray, given)


def make_init(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, params: Params | None = None
) -> Callable:
    """``init(seed_key, batch) -> TrainState``; ``params`` to start from, in place of the method's own."""
    given = params

    def init(key: Key, batch: Batch) -> TrainState:
        own = fold_in_name(key, "init")
        if given is None:
            params = method.init(own, batch)
        else:
            params = check_given(given, jax.eval_shape(method.init, own, batch))
        average = None if config.ema is None else jax.tree.map(jnp.copy, params)
        return TrainState(
            jnp.zeros((), jnp.int32), params, tx.init(params), average, fold_in_name(key, "train")
        )

    return init


def make_first(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, axis_name: str | None = None
) -> Callable:
    """The step of the method's first stage, as `make_step`."""
    stage = method.first
    early = method._replace(loss=stage.loss, first=stage._replace(learns=lambda path: not stage.learns(path)))
    return make_step(early, tx, config, axis_name=axis_name)


def make_step(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, axis_name: str | None = None
) -> Callable:
    """``step(state, batch) -> (state, metrics)``; under ``axis_name`` the batch is this device's rows.

    ``metrics`` holds the loss and the method's scalars over the global batch, ``grad_norm`` (before clipping) and
    ``finite``: a flag for the loss followed by one for each gradient leaf. What learned in the method's first stage
    stays as it is.
    """

    def loss_fn(params, batch, key):
        if config.freeze:
            train = optim.trainable(config, params)
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, train)
        return method.loss(params, batch, key, axis_name=axis_name)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(params, batch, key):
        if config.accumulate == 1:
            return grad_fn(params, batch, key)
        parts = config.accumulate

        def split(x):
            # Part a is the rows with row % parts == a, the same set of examples on any number of devices.
            return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

        def body(total, part):
            return jax.tree.map(jnp.add, total, grad_fn(params, part, key)), None

        pieces = jax.tree.map(split, batch)
        zero = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], pieces), key)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zero)
        total, _ = jax.lax.scan(body, zero, pieces)
        return jax.tree.map(lambda x: x / parts, total)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        if "index" in batch:
            batch = {**batch, "step": jnp.full(batch["index"].shape[:1], state.step, jnp.int32)}
        (loss, aux), grads = gradients(state.params, batch, key)
        (loss, aux), grads = collectives.psum(((loss, aux), grads), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if method.first is not None:
            still = method.first.learns
            updates = trees.map_with_name(lambda name, u: jnp.zeros_like(u) if still(name) else u, updates)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            # The warm-up of the decay removes the weight of the initial parameters (as in Polyak averaging at first).
            decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
            average = trees.ema(average, params, decay)
        finite = jnp.concatenate([jnp.isfinite(loss)[None], trees.finite_leaves(grads)])
        metrics = {"loss": loss, **aux, "grad_norm": trees.global_norm(grads), "finite": finite}
        return TrainState(state.step + 1, params, opt_state, average, state.key), metrics

    return step


def non_finite(finite, names: list[str]) -> str | None:
    """What a step's ``finite`` flags say of the parameters ``names``, in words; None if all is well."""
    if finite.all():
        return None
    bad = [name for name, ok in zip(names, finite[1:], strict=True) if not ok]
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    parts = [] if finite[0] else ["the loss"]
    return " and ".join(parts + ([f"the gradients of {shown}"] if bad else []))
