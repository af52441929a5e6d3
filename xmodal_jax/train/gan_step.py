"""One training step of a GAN, the same for one device, a named axis and a mesh."""

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
from xmodal_jax.core.schedules import half_cosine
from xmodal_jax.train.optim import Optimizer, learning_rate_schedule, make_optimizer
from xmodal_jax.train.restarts import Restarts
from xmodal_jax.train.schedule import StepPlan, plan_of, progress_schedule
from xmodal_jax.train.step import Training, check_params
from xmodal_jax.types import GAN, Batch, Key, Params

ADAM = Optimizer(
    name="adam", learning_rate=1e-4, b1=0.0, b2=0.9, schedule="constant", clip_norm=None, warmup=0.0
)


@dataclasses.dataclass(frozen=True)
class GANOptimizer:
    """The optimizers of generator and discriminator."""

    discriminator: Optimizer = dataclasses.replace(ADAM, learning_rate=4e-4)
    """Optimizer and schedule of the discriminator."""
    generator: Optimizer = dataclasses.replace(ADAM, ema=0.999)
    """Optimizer and schedule of the generator. With ``ema``, images are generated with the moving average of the
    generator's parameters."""
    pretrain_fraction: float = 0.0
    """Fraction of all steps, at the start, in which the generator is trained to reconstruct images, without the
    discriminator. The discriminator's learning-rate schedule begins after these steps."""
    pretrain_restarts: int = 1
    """Number of initialisations that are pretrained, each for ``restart_fraction`` of these steps. The one with the
    lowest loss in the last quarter of them goes on; the steps of the others come on top."""
    restart_fraction: float = 0.25
    """Fraction of the pretraining's steps after which one of several initialisations is chosen."""
    ema_half_life: float | None = None
    """Half-life of the moving average of the generator's parameters at the end of the training: a fraction of all steps
    if below 1, else a number of steps. It grows from 0 along half a cosine, so that the average soon forgets the first
    steps. None: the average has the constant decay rate ``generator.ema``, of which a half-life takes the place."""

    def __post_init__(self):
        if not 0.0 <= self.pretrain_fraction < 1.0:
            raise ValueError(
                f"pretrain_fraction is a fraction of the steps, 0 to below 1, got {self.pretrain_fraction}"
            )
        if self.pretrain_restarts < 1 or not 0.0 < self.restart_fraction <= 1.0:
            raise ValueError(
                "pretrain_restarts must be at least 1 and restart_fraction a fraction, above 0 and up to 1, got "
                f"{self.pretrain_restarts} and {self.restart_fraction}"
            )
        if self.ema_half_life is not None and not 0 < self.ema_half_life < float("inf"):
            raise ValueError(f"ema_half_life must be positive and finite, got {self.ema_half_life}")
        for name, optimizer in self.by_network.items():
            if optimizer.accumulate != 1:
                raise ValueError(f"{name}.accumulate must be 1: the networks take turns on whole batches")
        if self.discriminator.ema is not None:
            raise ValueError("discriminator.ema must be None: only the generator is evaluated")

    @property
    def averages_parameters(self) -> bool:
        """Whether there is a moving average of the generator's parameters."""
        return self.generator.ema is not None or self.ema_half_life is not None

    def ema_weight(self, step: Array, plan: StepPlan | None) -> Array:
        """The weight of the new parameters in the moving average after ``step`` (from 0) of a training.

        Raises:
          ValueError: there is no ``plan`` for the half-life to follow.
        """
        if self.ema_half_life is not None:
            if plan is None:
                raise ValueError("ema_half_life follows the steps of a training: give make_step its steps")
            fraction = self.ema_half_life < 1
            longest = self.ema_half_life * plan.steps if fraction else self.ema_half_life
            half_life = half_cosine(
                0.0, longest, progress_schedule(plan)(step)
            )  # in steps; 0: all of the weight
            return 1.0 - jnp.exp2(-1.0 / jnp.maximum(half_life, 1e-6))
        # Debiased as Adam's moments: after step n (from 0) the new parameters have the weight
        # (1 - decay) / (1 - decay^(n + 1)), so that the initial parameters have none (the first weight is 1).
        decay = self.generator.ema
        return (1.0 - decay) / (1.0 - decay ** (1.0 + step))

    @property
    def by_network(self) -> dict[str, Optimizer]:
        """The optimizers by the names of `types.GAN`."""
        return {"discriminator": self.discriminator, "generator": self.generator}


class GANState(NamedTuple):
    """Everything that changes while a GAN trains."""

    step: Int[Array, ""]
    """Number of steps taken."""
    params: dict[str, Params]
    """``discriminator`` and ``generator``."""
    opt_state: dict[str, Any]
    """States of the Optax optimizers, by network."""
    ema: Params | None
    """Exponential moving average of the generator's parameters, or None."""
    variables: dict[str, Any]
    """The state that changes without gradients, such as running statistics (see `types.GAN`)."""
    key: Key
    """The seed's key; a step draws from ``fold_in(key, step)``. It never changes."""


def make_init(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    params: Params | None = None,
) -> Callable:
    """``init(seed_key, batch) -> GANState``; ``params`` of both networks replace those of ``gan.init``."""
    initial_params = params

    def init(key: Key, batch: Batch) -> GANState:
        """The state before the first step; ``key``: the seed's, ``batch``: for the shapes of the inputs."""
        params, variables = gan.init(fold_in_name(key, "init"), batch)
        if initial_params is not None:
            params = check_params(initial_params, params)
        ema = None
        if optimizer.averages_parameters:  # a copy, because the buffers of the state are donated
            ema = jax.tree.map(jnp.copy, params["generator"])
        opt_state = {name: tx[name].init(params[name]) for name in tx}
        train_key = fold_in_name(key, "train")
        return GANState(jnp.zeros((), jnp.int32), params, opt_state, ema, variables, train_key)

    return init


def make_step(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    axis_name: str | None = None,
    steps: int | StepPlan | None = None,
) -> Callable:
    """``step(state, batch, frozen=None) -> (state, metrics)``: `GANStep.train_both`.

    ``steps``: those of the whole training, for schedules; None: these stay at their start.
    """
    plan = None if steps is None else plan_of(steps)
    return GANStep(gan, tx, optimizer, axis_name, plan).train_both


def make_pretrain_step(
    gan: GAN,
    tx: Mapping[str, optax.GradientTransformation],
    optimizer: GANOptimizer,
    *,
    axis_name: str | None = None,
    steps: int | StepPlan | None = None,
) -> Callable:
    """``step(state, batch, frozen=None) -> (state, metrics)``: `GANStep.pretrain_generator`.

    ``steps``: those of the whole training, for schedules; None: these stay at their start.
    """
    plan = None if steps is None else plan_of(steps)
    return GANStep(gan, tx, optimizer, axis_name, plan).pretrain_generator


class NetworkStates(NamedTuple):
    """The part of `GANState` that one update of a single network changes: its parameters and its optimizer's state, by
    network, and the variables (state without gradients) of both."""

    params: dict[str, Params]
    opt_state: dict[str, Any]
    variables: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class GANStep:
    """The training steps of a GAN. ``frozen``: parameters of frozen networks, `types.GAN.frozen`."""

    gan: GAN
    tx: Mapping[str, optax.GradientTransformation]
    """The Optax optimizers of ``discriminator`` and ``generator``."""
    optimizer: GANOptimizer
    axis_name: str | None = None
    """Axis of devices over which losses and gradients are summed; None: the batch is not split by hand."""
    plan: StepPlan | None = None
    """The steps of the whole training, for schedules; None: these stay at their start."""

    def train_both(
        self, state: GANState, batch: Batch, frozen: Params | None = None
    ) -> tuple[GANState, dict[str, Array]]:
        """``gan.d_steps`` steps of the discriminator, then one of the generator.

        The batch is split into ``gan.d_steps`` parts (see `_split`), one for each step of the discriminator; the
        generator takes the last part. With one step of each, both take the same generated images.

        ``metrics`` holds the method's scalars over the global batch (the discriminator's are means over its steps),
        ``loss`` (the discriminator's), ``discriminator_grad_norm`` and ``generator_grad_norm`` before clipping, and
        ``finite``: a flag for the losses, then one for each gradient leaf in the order of the state's parameters.
        """
        key, batch = jax.random.fold_in(state.key, state.step), self._with_progress(batch, state.step)
        states = NetworkStates(state.params, state.opt_state, state.variables)
        # 1. The discriminator. The generator's images are generated once and used by both networks where possible.
        if self.gan.d_steps == 1:
            g_batch, g_key = batch, key
            generated, pullback, states = self._generate_with_pullback(states, batch, key, frozen)
            states, (metrics, d_finite) = self._step_discriminator(
                states, batch, generated, key, state.step, frozen
            )
        else:
            states, metrics, d_finite = self._step_discriminator_often(states, batch, key, state.step, frozen)
            g_batch = jax.tree.map(lambda x: _split(x, self.gan.d_steps)[-1], batch)
            g_key = fold_in_name(key, "generator")
            generated, pullback, states = self._generate_with_pullback(states, g_batch, g_key, frozen)
        # 2. The generator's loss against the updated discriminator. The chain rule in two factors: the gradient of the
        # loss by the generated images, pulled back to the generator's parameters.
        loss_fn = jax.value_and_grad(self.gan.g_loss, has_aux=True)
        loss_key, options = fold_in_name(g_key, "persuade"), self._options(frozen)
        discriminator = states.params["discriminator"]
        (loss, aux), image_grads = loss_fn(
            generated, discriminator, states.variables, g_batch, loss_key, **options
        )
        (grads,) = pullback(image_grads)
        loss, aux, grads = collectives.psum((loss, aux, grads), self.axis_name)
        metrics |= {**aux, "finite": d_finite.at[0].set(d_finite[0] & jnp.isfinite(loss))}
        return self._step_generator(state, states, grads, metrics)

    def pretrain_generator(
        self, state: GANState, batch: Batch, frozen: Params | None = None
    ) -> tuple[GANState, dict[str, Array]]:
        """A step that trains the generator alone, with the loss `types.GAN.pretrain_generator`, on the same part of the
        batch as in `train_both`. ``metrics["loss"]`` is the generator's."""
        key, batch = jax.random.fold_in(state.key, state.step), self._with_progress(batch, state.step)
        count = self.gan.d_steps
        g_batch = batch if count == 1 else jax.tree.map(lambda x: _split(x, count)[-1], batch)
        loss_fn = jax.value_and_grad(self.gan.pretrain_generator, has_aux=True)
        (loss, (aux, variables)), grads = loss_fn(
            state.params["generator"], state.variables, g_batch, key, **self._options(frozen)
        )
        loss, aux, grads = collectives.psum((loss, aux, grads), self.axis_name)
        # The discriminator has no gradients here; its flags keep the layout of `train_both`.
        d_finite = jnp.ones(len(jax.tree.leaves(state.params["discriminator"])), bool)
        metrics = {**aux, "loss": loss, "finite": jnp.concatenate([jnp.isfinite(loss)[None], d_finite])}
        states = NetworkStates(dict(state.params), dict(state.opt_state), variables)
        return self._step_generator(state, states, grads, metrics)

    def _with_progress(self, batch: Batch, step: Array) -> Batch:
        """The batch with the fraction of the training that is over, for losses with a schedule."""
        if self.plan is None:
            return batch
        examples = jax.tree.leaves(batch)[0].shape[:1]
        return {**batch, "progress": jnp.broadcast_to(progress_schedule(self.plan)(step), examples)}

    def _generate(self, generator, variables, batch, key, frozen):
        return self.gan.generate(generator, variables, batch, key, **self._options(frozen))

    def _options(self, frozen: Params | None) -> dict[str, Any]:
        """The keyword arguments of the functions of `types.GAN`. A method without frozen networks need not accept
        ``frozen``, so it is left out."""
        return dict(axis_name=self.axis_name) | ({} if frozen is None else {"frozen": frozen})

    def _generate_with_pullback(self, states: NetworkStates, batch, key, frozen):
        """Generates examples; returns ``(generated, pullback, states)``.

        ``pullback(gradient by the generated examples)`` is the gradient by the generator's parameters, in a tuple of
        one. ``states`` has the variables that generation updates, such as the statistics of batch norm.
        """
        generated, pullback, variables = jax.vjp(
            lambda p: self._generate(p, states.variables, batch, key, frozen),
            states.params["generator"],
            has_aux=True,
        )
        return generated, pullback, states._replace(variables=variables)

    def _step_discriminator(self, states: NetworkStates, batch, generated, key, step, frozen):
        """One step of the discriminator on ``batch`` (real) and ``generated`` examples; ``(states, (metrics, finite))``
        with ``finite`` as in `train_both`, for the discriminator's gradients only."""
        params, opt_state = dict(states.params), dict(states.opt_state)
        loss_fn = jax.value_and_grad(self.gan.d_loss, has_aux=True)
        # The generator gets no gradient of the discriminator's loss.
        generated = jax.lax.stop_gradient(generated)
        (loss, (aux, variables)), grads = loss_fn(
            params["discriminator"], states.variables, batch, generated, key, step, **self._options(frozen)
        )
        loss, aux, grads = collectives.psum((loss, aux, grads), self.axis_name)
        self._update("discriminator", grads, params, opt_state)
        params["discriminator"] = self.gan.constrain(params["discriminator"])  # such as clipped weights
        finite = jnp.concatenate([jnp.isfinite(loss)[None], trees.finite_leaves(grads)])
        metrics = {"loss": loss, **aux, "discriminator_grad_norm": trees.global_norm(grads)}
        return NetworkStates(params, opt_state, variables), (metrics, finite)

    def _step_discriminator_often(self, states: NetworkStates, batch, key, step, frozen):
        """``gan.d_steps`` steps of the discriminator, each on its own part of the batch; ``(states, metrics, finite)``,
        with the means of the metrics over these steps."""
        count = self.gan.d_steps
        parts = jax.tree.map(lambda x: _split(x, count), batch)  # arrays [d_steps, B / d_steps, ...]
        keys = jax.random.split(fold_in_name(key, "turns"), count)

        def one_step(states, part_and_key):
            """One step of the discriminator, on new generated examples."""
            part, key = part_and_key
            generated, variables = self._generate(
                states.params["generator"], states.variables, part, key, frozen
            )
            states = states._replace(variables=variables)
            return self._step_discriminator(states, part, generated, key, step, frozen)

        states, (metrics, finite) = jax.lax.scan(one_step, states, (parts, keys))
        return states, jax.tree.map(lambda x: x.mean(axis=0), metrics), finite.all(axis=0)

    def _step_generator(self, state: GANState, states: NetworkStates, grads, metrics):
        """Ends a training step: updates the generator by ``grads``, and its moving average; ``(state, metrics)``.

        ``state``: before the step. ``states``: after the discriminator's update.
        """
        params, opt_state = dict(states.params), dict(states.opt_state)
        self._update("generator", grads, params, opt_state)
        ema = state.ema
        if ema is not None:
            rate = self.optimizer.ema_weight(state.step, self.plan)
            ema = trees.update_ema(ema, params["generator"], 1.0 - rate)
        finite = jnp.concatenate([metrics["finite"], trees.finite_leaves(grads)])
        metrics = {**metrics, "generator_grad_norm": trees.global_norm(grads), "finite": finite}
        return GANState(state.step + 1, params, opt_state, ema, states.variables, state.key), metrics

    def _update(self, name: str, grads, params, opt_state) -> None:
        """Updates ``params[name]`` and ``opt_state[name]`` in place."""
        updates, opt_state[name] = self.tx[name].update(grads, opt_state[name], params[name])
        params[name] = optax.apply_updates(params[name], updates)


def _split(x, count: int):
    """Splits a batch into ``[count, B / count, ...]``. Part n has the examples whose index is n modulo ``count``: when
    a device holds a contiguous piece of the batch, the parts are the same for any number of devices."""
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)


def eval_params(state: GANState) -> Params:
    """The parameters that `types.GAN.predict` takes, without ``frozen``. The generator's are their moving average where
    the state has one."""
    generator = state.params["generator"] if state.ema is None else state.ema
    return {
        "discriminator": state.params["discriminator"],
        "generator": generator,
        "variables": state.variables,
    }


def make_training(
    gan: GAN, optimizer: GANOptimizer, steps: int | StepPlan, *, params: Params | None = None
) -> Training:
    """Binds ``gan`` to its optimizers for a training of these ``steps``.

    ``params``: parameters of both networks to start from, in place of those of ``gan.init``.

    Raises:
      ValueError: the generator is to be pretrained, and the method has no loss for that.
    """
    plan = plan_of(steps)
    pretrain_steps = int(optimizer.pretrain_fraction * plan.first_steps)
    if pretrain_steps and gan.pretrain_generator is None:
        raise ValueError(
            "optimizer.pretrain_fraction trains the generator to reconstruct images: choose model.reconstruction"
        )
    restarts = Restarts()
    if optimizer.pretrain_restarts > 1 and pretrain_steps:
        trial_steps = max(round(optimizer.restart_fraction * pretrain_steps), 1)
        restarts = Restarts(optimizer.pretrain_restarts, trial_steps)
    first_step = {"discriminator": pretrain_steps, "generator": 0}
    updates_per_step = {"discriminator": gan.d_steps, "generator": 1}
    tx = {
        name: make_optimizer(config, plan.after(first_step[name]), updates_per_step=updates_per_step[name])
        for name, config in optimizer.by_network.items()
    }

    def schedule_of(name: str, config: Optimizer) -> Callable:
        """A network's learning rate by the step of the whole training; its schedule begins at its first step."""
        schedule = learning_rate_schedule(config, plan.after(first_step[name]))
        return lambda step: schedule(jnp.maximum(step - first_step[name], 0))

    return Training(
        init=make_init(gan, tx, optimizer, params=params),
        make_step=lambda axis: make_step(gan, tx, optimizer, axis_name=axis, steps=plan),
        learning_rates={
            f"{name}_learning_rate": schedule_of(name, config)
            for name, config in optimizer.by_network.items()
        },
        eval_params=eval_params,
        initial_steps=pretrain_steps,
        make_initial_step=lambda axis: make_pretrain_step(gan, tx, optimizer, axis_name=axis, steps=plan),
        restarts=restarts,
        load_pretrained=gan.load_pretrained,
        ema_params=lambda params: params["generator"],
        frozen=gan.frozen,
        frozen_by_seed=gan.frozen_by_seed,
    )
