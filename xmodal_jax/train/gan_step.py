"""One training step of two players, generator and discriminator; the same for one device, a named axis and a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from xmodal_jax.core import collectives, trees
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.train.optim import Optimizer, learning_rate_schedule, make_optimizer
from xmodal_jax.train.step import Training, check_params
from xmodal_jax.types import GAN, Batch, Key, Params


@dataclasses.dataclass(frozen=True)
class GANOptimizer:
    """An optimizer for each player."""

    discriminator: Optimizer = Optimizer(
        name="adam", learning_rate=4e-4, b1=0.0, b2=0.9, schedule="constant", clip_norm=None, warmup=0.0
    )
    """Of the discriminator."""
    generator: Optimizer = Optimizer(
        name="adam",
        learning_rate=1e-4,
        b1=0.0,
        b2=0.9,
        schedule="constant",
        clip_norm=None,
        warmup=0.0,
        ema=0.999,
    )
    """Of the generator. ``ema``: images are drawn with the average of its parameters."""
    pretrain_fraction: float = 0.0
    """Share of all steps, the first ones, in which the generator learns alone what needs no opponent: to rebuild
    images. The discriminator waits, and its schedule with it."""

    def __post_init__(self):
        if not 0.0 <= self.pretrain_fraction < 1.0:
            raise ValueError(
                f"pretrain_fraction is a share of the steps, 0 to below 1, got {self.pretrain_fraction}"
            )
        for name, one in self.each.items():
            if one.accumulate != 1:
                raise ValueError(f"{name}.accumulate must be 1: two players take turns on whole batches")
        if self.discriminator.ema is not None:
            raise ValueError("discriminator.ema must be None: images are drawn by the generator")

    @property
    def each(self) -> dict[str, Optimizer]:
        """By the names of `types.GAN`."""
        return {"discriminator": self.discriminator, "generator": self.generator}


class GANState(NamedTuple):
    """All that changes while two players train."""

    step: Int[Array, ""]
    params: dict[str, Params]
    """``discriminator`` and ``generator``."""
    opt_state: dict[str, Any]
    ema: Params | None
    """Exponential average of the generator's parameters, or None."""
    variables: dict[str, Any]
    key: Key
    """The seed's key; a step draws from ``fold_in(key, step)``. It never changes."""


def make_init(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    params: Params | None = None,
) -> Callable:
    """``init(seed_key, batch) -> GANState``; ``params`` of both players to start from, in place of the method's own."""
    given = params

    def init(key: Key, batch: Batch) -> GANState:
        params, variables = gan.init(fold_in_name(key, "init"), batch)
        if given is not None:
            params = check_params(given, params)
        average = None
        if optimizer.generator.ema is not None:
            average = jax.tree.map(jnp.copy, params["generator"])
        opt_state = {name: tx[name].init(params[name]) for name in tx}
        own = fold_in_name(key, "train")
        return GANState(jnp.zeros((), jnp.int32), params, opt_state, average, variables, own)

    return init


def make_step(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    axis_name: str | None = None,
) -> Callable:
    """``step(state, batch) -> (state, metrics)``: ``gan.d_steps`` steps of the discriminator, one of the generator.

    The discriminator's n-th step sees the rows of the batch that are n modulo their number, a whole batch each; the
    generator's the last ones. With one step each, both players see the same generated images, which are made once.

    ``metrics`` holds the method's scalars over the global batch, those of the discriminator as means over its steps,
    ``loss`` (the discriminator's), ``<player>_grad_norm`` before clipping, and ``finite``: a flag for the losses, then
    one for each gradient leaf in the order of the state's parameters.
    """

    def discriminate(carry, part, made, key, step):
        params, opt_state, variables = dict(carry[0]), dict(carry[1]), carry[2]
        grad_fn = jax.value_and_grad(gan.d_loss, has_aux=True)
        # What the discriminator is shown is data to it: no gradient reaches the generator from here.
        shown = jax.lax.stop_gradient(made)
        (loss, (aux, variables)), grads = grad_fn(
            params["discriminator"], variables, part, shown, key, step, axis_name=axis_name
        )
        loss, aux, grads = collectives.psum((loss, aux, grads), axis_name)
        _update(tx, "discriminator", grads, params, opt_state)
        params["discriminator"] = gan.constrain(params["discriminator"])
        finite = jnp.concatenate([jnp.isfinite(loss)[None], trees.finite_leaves(grads)])
        metrics = {"loss": loss, **aux, "discriminator_grad_norm": trees.global_norm(grads)}
        return (params, opt_state, variables), (metrics, finite)

    def step(state: GANState, batch: Batch) -> tuple[GANState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        carry = (state.params, state.opt_state, state.variables)

        def generate(generator, variables, part, key):
            return gan.generate(generator, variables, part, key, axis_name=axis_name)

        if gan.d_steps == 1:
            last, own = batch, key
            made, pull, variables = jax.vjp(
                lambda p: generate(p, state.variables, batch, key), state.params["generator"], has_aux=True
            )
            carry, (metrics, d_finite) = discriminate((*carry[:2], variables), batch, made, key, state.step)
        else:
            parts = jax.tree.map(lambda x: _parts(x, gan.d_steps), batch)
            keys = jax.random.split(fold_in_name(key, "turns"), gan.d_steps)

            def turn(carry, x):
                part, key = x
                made, variables = generate(carry[0]["generator"], carry[2], part, key)
                return discriminate((*carry[:2], variables), part, made, key, state.step)

            carry, (metrics, d_finite) = jax.lax.scan(turn, carry, (parts, keys))
            metrics, d_finite = jax.tree.map(lambda x: x.mean(axis=0), metrics), d_finite.all(axis=0)
            last, own = jax.tree.map(lambda x: x[-1], parts), fold_in_name(key, "generator")
            made, pull, variables = jax.vjp(
                lambda p: generate(p, carry[2], last, own), carry[0]["generator"], has_aux=True
            )
            carry = (*carry[:2], variables)
        params, opt_state, variables = carry
        (loss, aux), shown = jax.value_and_grad(gan.g_loss, has_aux=True)(
            made, params["discriminator"], variables, last, fold_in_name(own, "persuade"), axis_name=axis_name
        )
        (grads,) = pull(shown)
        loss, aux, grads = collectives.psum((loss, aux, grads), axis_name)
        metrics |= {**aux, "finite": d_finite.at[0].set(d_finite[0] & jnp.isfinite(loss))}
        return _learn(tx, optimizer, state, grads, params, opt_state, variables, metrics)

    return step


def make_pretrain_step(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    axis_name: str | None = None,
) -> Callable:
    """``step(state, batch) -> (state, metrics)`` as `make_step`'s, in which the generator learns alone
    (`types.GAN.pretrain_generator`), of the same rows; ``loss`` is its own."""

    def step(state: GANState, batch: Batch) -> tuple[GANState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        part = batch if gan.d_steps == 1 else jax.tree.map(lambda x: _parts(x, gan.d_steps)[-1], batch)
        (loss, (aux, variables)), grads = jax.value_and_grad(gan.pretrain_generator, has_aux=True)(
            state.params["generator"], state.variables, part, key, axis_name=axis_name
        )
        loss, aux, grads = collectives.psum((loss, aux, grads), axis_name)
        waiting = jnp.ones(len(jax.tree.leaves(state.params["discriminator"])), bool)
        metrics = {**aux, "loss": loss, "finite": jnp.concatenate([jnp.isfinite(loss)[None], waiting])}
        params, opt_state = dict(state.params), dict(state.opt_state)
        return _learn(tx, optimizer, state, grads, params, opt_state, variables, metrics)

    return step


def _update(tx, name: str, grads, params, opt_state) -> None:
    updates, opt_state[name] = tx[name].update(grads, opt_state[name], params[name])
    params[name] = optax.apply_updates(params[name], updates)


def _learn(tx, optimizer: GANOptimizer, state: GANState, grads, params, opt_state, variables, metrics):
    """The generator's step, the last of a round."""
    _update(tx, "generator", grads, params, opt_state)
    average = state.ema
    if average is not None:
        # The average without the weight of the start: as if divided by 1 - decay^steps.
        decay = optimizer.generator.ema
        rate = (1.0 - decay) / (1.0 - decay ** (1.0 + state.step))
        average = trees.update_ema(average, params["generator"], 1.0 - rate)
    finite = jnp.concatenate([metrics["finite"], trees.finite_leaves(grads)])
    metrics = {**metrics, "generator_grad_norm": trees.global_norm(grads), "finite": finite}
    return GANState(state.step + 1, params, opt_state, average, variables, state.key), metrics


def _parts(x, count: int):
    """``[count, rows / count, ...]``: part n is the rows that are n modulo their number, on any number of devices."""
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)


def eval_params(state: GANState) -> Params:
    """What `types.GAN.predict` takes: the generator's average where one is kept, and the variables."""
    generator = state.params["generator"] if state.ema is None else state.ema
    return {
        "discriminator": state.params["discriminator"],
        "generator": generator,
        "variables": state.variables,
    }


def make_training(gan: GAN, optimizer: GANOptimizer, steps: int, *, params: Params | None = None) -> Training:
    """What `train.loop.fit` needs to train ``gan`` for ``steps`` steps."""
    rehearsals = int(optimizer.pretrain_fraction * steps)
    if rehearsals and gan.pretrain_generator is None:
        raise ValueError(
            "optimizer.pretrain_fraction needs images that are rebuilt: set model.reconstruction_weight"
        )
    waits = {"discriminator": rehearsals, "generator": 0}
    tx = {name: make_optimizer(one, steps - waits[name]) for name, one in optimizer.each.items()}

    def rate(name, one):
        schedule = learning_rate_schedule(one, steps - waits[name])
        return lambda step: schedule(jnp.maximum(step - waits[name], 0))

    return Training(
        make_init(gan, tx, optimizer, params=params),
        lambda axis: make_step(gan, tx, optimizer, axis_name=axis),
        {f"{name}_learning_rate": rate(name, one) for name, one in optimizer.each.items()},
        eval_params,
        rehearsals,
        lambda axis: make_pretrain_step(gan, tx, optimizer, axis_name=axis),
        gan.load_pretrained,
        lambda params: params["generator"],
    )
