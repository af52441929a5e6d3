"""One training step as a pure function, the same for one device, a named axis and a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from xmodal_jax.core import accumulation, collectives, trees
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.train import optim
from xmodal_jax.train.restarts import Restarts
from xmodal_jax.train.schedule import StepPlan, plan_of
from xmodal_jax.types import Batch, Key, Method, Params


class TrainState(NamedTuple):
    """Everything that changes while one network trains."""

    step: Int[Array, ""]
    """Number of steps taken."""
    params: Params
    opt_state: Any
    """State of the Optax optimizer."""
    ema: Params | None
    """Exponential moving average of the parameters; None where the optimizer asks for none."""
    key: Key
    """The seed's key, which never changes: step ``n`` draws from ``fold_in(key, n)``."""


def eval_params(state: TrainState) -> Params:
    """The parameters to evaluate: their exponential moving average where the state has one."""
    return state.params if state.ema is None else state.ema


class Training(NamedTuple):
    """A method bound to an optimizer: the programs and schedules that `train.loop.fit` runs."""

    init: Callable[[Key, Batch], Any]
    """``init(seed_key, batch) -> state``."""
    make_step: Callable[[str | None], Callable]
    """``make_step(axis_name) -> step``, where ``step(state, batch) -> (state, metrics)``."""
    learning_rates: dict[str, Callable]
    """Learning-rate schedules by name; each maps a step to a learning rate."""
    eval_params: Callable[[Any], Params]
    """``eval_params(state) -> params``: the parameters to evaluate."""
    initial_steps: int = 0
    """Number of steps, at the start of training, that ``make_initial_step`` makes."""
    make_initial_step: Callable[[str | None], Callable] | None = None
    """As ``make_step``, for the initial stage; None: there is no such stage. It is a separate program, because a branch
    in one program is slower on a CPU."""
    restarts: Restarts = Restarts()
    """Initialisations that are tried before the training goes on with one of them."""
    load_pretrained: Callable[[Params, Batch], Params] | None = None
    """``load_pretrained(params, batch) -> params``: puts trained parameters in place of initial ones; None: training
    starts from the initial ones (see `types.Method`)."""
    ema_params: Callable[[Params], Params] = lambda params: params
    """``ema_params(params)``: the part of the parameters that the exponential moving average is taken of."""
    frozen: Params | None = None
    """Parameters of frozen networks (`types.GAN`): a third argument of the step, and not part of the state; None: there
    are none."""
    frozen_by_seed: tuple[str, ...] = ()
    """The names of the frozen networks that differ between seeds (see `types.GAN`)."""


def make_training(
    method: Method, config: optim.Optimizer, steps: int | StepPlan, *, params: Params | None = None
) -> Training:
    """Binds ``method`` to an optimizer for a training of these ``steps``.

    ``params``: parameters to start from; None: those that the method initialises.
    """
    tx = optim.make_optimizer(config, steps)
    finalize = (lambda params: params) if method.finalize_params is None else method.finalize_params
    training = Training(
        init=make_init(method, tx, config, params=params),
        make_step=lambda axis: make_step(method, tx, config, axis_name=axis),
        learning_rates={"learning_rate": optim.learning_rate_schedule(config, steps)},
        eval_params=lambda state: finalize(eval_params(state)),
        load_pretrained=method.load_pretrained,
    )
    if method.initial_stage is None:
        return training
    return training._replace(
        initial_steps=round(method.initial_stage.fraction * plan_of(steps).first_steps),
        make_initial_step=lambda axis: make_initial_step(method, tx, config, axis_name=axis),
    )


def check_params(params: Params, expected: Params) -> Params:
    """``params`` as arrays of JAX, after a check that their tree, shapes and types are those of ``expected``.

    Raises AssertionError otherwise, which names each leaf that differs: training must not go on from the parameters of
    another model unnoticed.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
    return jax.tree.map(jnp.asarray, params)


def make_init(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, params: Params | None = None
) -> Callable:
    """``init(seed_key, batch) -> TrainState``.

    ``params``: parameters to start from, in place of the method's own initialisation. ``init`` raises AssertionError
    if their shapes are not those of this method's parameters.
    """
    initial = params

    def init(key: Key, batch: Batch) -> TrainState:
        """The state before the first step."""
        init_key = fold_in_name(key, "init")
        if initial is None:
            params = method.init(init_key, batch)
        else:
            params = check_params(initial, jax.eval_shape(method.init, init_key, batch))
        # A copy, because the buffers of the state are donated: none may occur twice.
        ema = None if config.ema is None else jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema, fold_in_name(key, "train"))

    return init


def make_initial_step(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, axis_name: str | None = None
) -> Callable:
    """The step of the method's initial stage: as `make_step`, but with the stage's own loss, and it updates only the
    parameters that this stage trains (see `types.Stage`)."""
    stage = method.initial_stage
    return _make_step(
        stage.loss, tx, config, needs_whole_batch=False, frozen=lambda path: not stage.trains(path),
        axis_name=axis_name,
    )  # fmt: skip


def make_step(
    method: Method, tx: optax.GradientTransformation, config: optim.Optimizer, *, axis_name: str | None = None
) -> Callable:
    """``step(state, batch) -> (state, metrics)``; with ``axis_name`` the batch is this device's part of the batch.

    ``tx``: the Optax transformation that `optim.make_optimizer` built from ``config``. ``config`` is needed too: for
    gradient accumulation, the moving average of the parameters, and the parameters without gradients (``freeze``).

    ``metrics``: ``loss`` and the method's scalars over the global batch, ``grad_norm`` (before clipping) and
    ``finite``, a flag for the loss followed by one for each gradient leaf. Parameters that the method's initial stage
    trains (see `types.Stage`) are frozen in this step.
    """
    frozen = None if method.initial_stage is None else method.initial_stage.trains
    return _make_step(
        method.loss,
        tx,
        config,
        needs_whole_batch=method.needs_whole_batch,
        frozen=frozen,
        axis_name=axis_name,
    )


def _make_step(
    method_loss: Callable,
    tx: optax.GradientTransformation,
    config: optim.Optimizer,
    *,
    needs_whole_batch: bool,
    frozen: Callable[[str], bool] | None,
    axis_name: str | None,
) -> Callable:
    """The step that minimises ``method_loss``, without updating the parameters for which ``frozen(path)`` is True.

    With ``config.accumulate`` above 1 it needs less memory: it computes loss and gradient for one part of the batch
    after the other. A loss that ``needs_whole_batch`` (a contrastive one) splits the batch itself instead: it encodes
    one chunk after the other, and then compares all examples.
    """
    accumulate, chunks = config.accumulate, {}
    if needs_whole_batch and accumulate > 1:
        accumulate, chunks = 1, {"chunks": accumulate}

    def loss_fn(params, batch, key):
        if config.freeze:  # spares the backward pass through frozen parameters
            trainable = optim.trainable(config, params)
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trainable)
        return method_loss(params, batch, key, axis_name=axis_name, **chunks)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    grad_fn = accumulation.accumulated(grad_fn, loss_fn, accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        """One step of training; see `make_step`."""
        check_accumulation(config.accumulate, batch)
        key = jax.random.fold_in(state.key, state.step)
        if "index" in batch:  # losses with a schedule read the number of the step, int [B], from the batch
            batch = {**batch, "step": jnp.full(batch["index"].shape[:1], state.step, jnp.int32)}
        (loss, aux), grads = grad_fn(state.params, batch, key)
        # Each device holds its share of the loss and of its gradient (see core.collectives): their sum is the value
        # over the global batch, not a sum of means.
        (loss, aux), grads = collectives.psum(((loss, aux), grads), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        if frozen is not None:
            updates = trees.map_with_name(lambda path, u: jnp.zeros_like(u) if frozen(path) else u, updates)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # The decay grows with the step, so that the initial parameters soon have no weight.
            decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
            ema = trees.update_ema(ema, params, decay)
        finite = jnp.concatenate([jnp.isfinite(loss)[None], trees.finite_leaves(grads)])
        metrics = {"loss": loss, **aux, "grad_norm": trees.global_norm(grads), "finite": finite}
        return TrainState(state.step + 1, params, opt_state, ema, state.key), metrics

    return step


def check_accumulation(accumulate: int, batch: Batch) -> None:
    """Raises ValueError if ``accumulate``, the number of parts, does not divide the examples of a batch."""
    size = jax.tree.leaves(batch)[0].shape[0]
    if accumulate > 1 and size % accumulate:
        raise ValueError(
            f"--optimizer.accumulate is {accumulate}, which does not divide the batch of {size} examples "
            f"(--batch-size, in the mode pmap over the number of devices): choose a divisor of {size}"
        )


def describe_non_finite(finite: np.ndarray, names: list[str]) -> str | None:
    """What is not finite, in words, such as "the loss and the gradients of image/kernel"; None if all is finite.

    ``finite``: the flags of one step and one seed: whether the loss is finite, and then whether the gradient of each
    parameter is, in the order of ``names``.
    """
    if finite.all():
        return None
    bad = [name for name, ok in zip(names, finite[1:], strict=True) if not ok]
    shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    parts = [] if finite[0] else ["the loss"]
    return " and ".join(parts + ([f"the gradients of {shown}"] if bad else []))
