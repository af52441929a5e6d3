"""Optimizers from one typed description: schedule, clipping, decay, freezing and per-path learning rates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from xmodal_jax.core import trees
from xmodal_jax.core.parts import Basic
from xmodal_jax.core.schedules import half_cosine
from xmodal_jax.train.muon import scale_by_muon
from xmodal_jax.train.schedule import StepPlan, plan_of, progress_schedule
from xmodal_jax.types import Params

_WITHOUT_DECAY = ("adam", "adafactor")
"""Update rules without decoupled weight decay."""
_SCHEDULED_B2 = ("adamw", "adam")
"""Update rules whose b2 can change in the course of the training."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Options of an optimizer: update rule, learning-rate schedule, clipping, decay and frozen parameters."""

    name: Basic[Literal["adamw", "adam", "lion", "sgd", "adafactor", "muon"]] = "adamw"
    """Update rule; the learning rate for muon is about 5 times that for adamw. With ``adamw`` the weight decay is
    decoupled from the gradient; ``adam`` has no weight decay. ``muon`` orthogonalises the momentum of matrices and
    updates other parameters by Adam's rule, and needs fewer steps."""
    learning_rate: Basic[float] = 1e-3
    """Learning rate at its peak, after the warm-up."""
    schedule: Literal["cosine", "constant", "linear", "rsqrt"] = "cosine"
    """Learning-rate schedule after the warm-up; cosine and linear end at the fraction final_scale of the peak learning
    rate."""
    warmup: float = 0.05
    """Length of the linear warm-up of the learning rate: a fraction of all steps if below 1, else a number of steps."""
    final_scale: float = 0.0
    """Learning rate at the last step, as a fraction of the peak (cosine and linear schedules)."""
    b1: float = 0.9
    """Decay rate of the moving average of the gradient (momentum)."""
    b2: float = 0.98
    """Decay rate of the moving average of the squared gradient."""
    final_b2: float | None = None
    """Value of b2 at the last step, to which it changes from b2 along half a cosine (adamw, adam). None: b2 is
    constant."""
    weight_decay: float = 0.05
    """Decoupled weight decay (adamw, lion, sgd, muon): each step shrinks the parameters by this times the learning
    rate."""
    decay_mask: str = r"(kernel|embedding)$"
    """Regular expression over parameter paths: the parameters that weight decay, L1 and L2 regularisation apply to. The
    default matches weights and embeddings, but not biases and the parameters of norms."""
    l1: float = 0.0
    """Strength of L1 regularisation: the gradient of ``l1 * sum |w|`` is added to the gradient of the loss. 0: no
    regularisation."""
    l2: float = 0.0
    """Strength of L2 regularisation: the gradient of ``l2 * sum w^2`` is added to the gradient of the loss (coupled
    with the update rule, unlike weight decay). 0: no regularisation."""
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient; a gradient above it is scaled down. None: no limit."""
    freeze: tuple[str, ...] = ()
    """Regular expressions over parameter paths; parameters that match one are not trained. Empty: all are trained."""
    lr_multipliers: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    """Learning-rate multipliers: pairs of a regular expression over parameter paths and a factor. The first expression
    that matches a parameter decides. Together the expressions must cover every parameter, and each must match at least
    one."""
    accumulate: int = 1
    """Gradient accumulation: number of parts that each batch is split into, which are computed one after the other to
    save memory. Loss and gradient are those of the whole batch, and the number of steps stays; 1: no splitting."""
    ema: float | None = None
    """Decay rate of an exponential moving average of the parameters, which is then evaluated in place of the
    parameters. None: no average."""

    def __post_init__(self):
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.final_b2 is not None and self.name not in _SCHEDULED_B2:
            raise ValueError(f"{self.name} has no final_b2: choose {' or '.join(_SCHEDULED_B2)}, or None")
        if self.final_b2 is not None and not 0 <= self.final_b2 < 1:
            raise ValueError(f"final_b2 must lie in [0, 1), got {self.final_b2}")
        if self.name in _WITHOUT_DECAY and self.weight_decay and self.weight_decay != Optimizer.weight_decay:
            raise ValueError(f"{self.name} takes no weight_decay; choose adamw or set l2")
        for pattern in (*self.freeze, *(p for p, _ in self.lr_multipliers), self.decay_mask):
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"{pattern!r} is not a regular expression: {e}") from e


def learning_rate_schedule(config: Optimizer, steps: int | StepPlan) -> Callable:
    """``schedule(step) -> learning rate``: linear warm-up, then the chosen schedule down to the last of ``steps``; of a
    plan with several segments, one such schedule after the other."""
    schedules, starts = [], []
    for start, end, is_constant in plan_of(steps).segments:
        if is_constant:
            so_far = optax.join_schedules(schedules, starts[1:])
            schedules.append(optax.constant_schedule(float(so_far(start - 1))))
        else:
            schedules.append(_one_schedule(config, end - start))
        starts.append(start)
    return schedules[0] if len(schedules) == 1 else optax.join_schedules(schedules, starts[1:])


def _one_schedule(config: Optimizer, steps: int) -> Callable:
    """`learning_rate_schedule` of one segment of ``steps`` steps."""
    warmup = int(config.warmup if config.warmup >= 1 else config.warmup * steps)
    peak, steps_after = config.learning_rate, max(steps - warmup, 1)
    # The schedules below count their steps from the end of the warm-up.
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, steps_after, alpha=config.final_scale)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, peak * config.final_scale, steps_after)
    elif config.schedule == "rsqrt":
        start = max(warmup, 1)
        main = lambda step: peak * jnp.sqrt(start / (start + step))
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    # From peak/warmup and not from 0, because a first step with a learning rate of 0 would be wasted.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup), main], [warmup])


def resolve_lr_multipliers(config: Optimizer, params: Params) -> Params:
    """The learning-rate multiplier of each parameter, as a tree of floats; 0 where the parameter is frozen.

    Raises:
      ValueError: no expression matches a parameter, or an expression matches none.
    """
    names = trees.leaf_names(params)
    for pattern in (*config.freeze, *(p for p, _ in config.lr_multipliers)):
        if not any(re.search(pattern, n) for n in names):
            shown = "\n  ".join(names[:40])
            raise ValueError(
                f"{pattern!r} (freeze or lr_multipliers) matches no parameter. Parameters are:\n  {shown}"
            )

    def multiplier(name, _):
        """The multiplier of the parameter at a path: 0 if it is frozen, else that of the first rule that matches."""
        if any(re.search(p, name) for p in config.freeze):
            return 0.0
        for pattern, value in config.lr_multipliers:
            if re.search(pattern, name):
                return float(value)
        raise ValueError(
            f"parameter {name!r} is covered by no rule of lr_multipliers; end them with ('.*', 1.0)"
        )

    return trees.map_with_name(multiplier, params)


def trainable(config: Optimizer, params: Params) -> Params:
    """Which parameters are trained, as a tree of bools: False where one is frozen or its multiplier is 0."""
    return jax.tree.map(lambda f: f != 0.0, resolve_lr_multipliers(config, params))


def _add_l1(strength: float, mask) -> optax.GradientTransformation:
    """Adds the gradient of ``strength * sum |w|`` to the gradients of the parameters that ``mask`` selects."""

    def update(grads, state, params=None):
        """``grads + strength * sign(params)``; there is no state."""
        return jax.tree.map(lambda g, p: g + strength * jnp.sign(p), grads, params), state

    return optax.masked(optax.GradientTransformation(lambda _: optax.EmptyState(), update), mask)


def make_optimizer(
    config: Optimizer, steps: int | StepPlan, *, updates_per_step: int = 1
) -> optax.GradientTransformation:
    """The Optax transformation for a training of these ``steps``; frozen parameters have no optimizer state.

    In this order: clipping, regularisation, the update rule, decoupled weight decay, and the learning rate.
    ``updates_per_step``: how often each step updates the parameters. Schedules go by the number of the step.
    """
    step_of = lambda count: count // updates_per_step

    def decays(params):
        """Which parameters weight decay and regularisation apply to, as a tree of bools."""
        # All may be False, where the matching parameters are frozen: `_check_rules` checks against all parameters.
        return trees.map_with_name(lambda name, _: bool(re.search(config.decay_mask, name)), params)

    chain = []
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.l2:
        chain.append(optax.add_decayed_weights(2.0 * config.l2, mask=decays))
    if config.l1:
        chain.append(_add_l1(config.l1, decays))
    if config.name in ("adamw", "adam"):
        progress = progress_schedule(steps)
        chain.append(_scale_by_adam(config, lambda count: progress(step_of(count))))
    elif config.name == "lion":
        chain.append(optax.scale_by_lion(b1=config.b1, b2=config.b2))
    elif config.name == "muon":
        chain.append(scale_by_muon(b1=config.b1, b2=config.b2))
    elif config.name == "sgd":
        chain.append(optax.trace(decay=config.b1, nesterov=True))
    else:  # adafactor
        chain.append(optax.scale_by_factored_rms())
        chain.append(optax.clip_by_block_rms(1.0))
    if config.weight_decay and config.name not in _WITHOUT_DECAY:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
    chain.append(_scale_by_lr_multipliers(config))
    schedule = learning_rate_schedule(config, steps)
    if updates_per_step > 1:
        schedule = lambda count, by_step=schedule: by_step(step_of(count))
    chain.append(optax.scale_by_learning_rate(schedule))
    return _only_trainable(optax.chain(*chain), config)


def _scale_by_adam(config: Optimizer, progress: Callable) -> optax.GradientTransformation:
    """Adam's rule, with ``final_b2`` for a b2 that changes; its state is the same in both cases.

    ``progress``: the fraction of the training that is over, by the number of updates.
    """
    if config.final_b2 is None:
        return optax.scale_by_adam(b1=config.b1, b2=config.b2)

    def update(grads, state, params=None):
        """As Adam's, with b2 at this step, which also divides the average by ``1 - b2 ** step``."""
        b2 = half_cosine(config.b2, config.final_b2, progress(state.count))
        return optax.scale_by_adam(b1=config.b1, b2=b2).update(grads, state, params)

    return optax.GradientTransformation(optax.scale_by_adam(b1=config.b1).init, update)


def _scale_by_lr_multipliers(config: Optimizer) -> optax.GradientTransformation:
    """Multiplies each parameter's update by its learning-rate multiplier."""
    if all(value == 1.0 for _, value in config.lr_multipliers):
        return optax.identity()

    def multiplier_of(name: str) -> float:
        """That of the first regular expression which matches the path of a parameter."""
        return next((value for pattern, value in config.lr_multipliers if re.search(pattern, name)), 1.0)

    def update(updates, state, params=None):
        """``updates`` times their multipliers; there is no state."""
        names = iter(trees.leaf_names(updates))  # in the order in which jax.tree.map visits the leaves
        return jax.tree.map(lambda u: u * multiplier_of(next(names)), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _only_trainable(tx: optax.GradientTransformation, config: Optimizer) -> optax.GradientTransformation:
    """Applies ``tx`` to the trainable parameters; frozen ones get zero updates and no state. The initialisation also
    checks that the configuration fits the parameters (`_check_rules`)."""
    if config.freeze or any(value == 0.0 for _, value in config.lr_multipliers):
        labels = lambda params: jax.tree.map(lambda t: "train" if t else "frozen", trainable(config, params))
        tx = optax.partition({"train": tx, "frozen": optax.set_to_zero()}, labels)

    def init(params):
        _check_rules(config, params)
        return tx.init(params)

    return optax.GradientTransformation(init, tx.update)


def _check_rules(config: Optimizer, params: Params) -> None:
    """Raises ValueError where a regular expression of ``config`` matches no parameter, or a parameter has no rule."""
    resolve_lr_multipliers(config, params)
    if config.l1 or config.l2 or (config.weight_decay and config.name not in _WITHOUT_DECAY):
        trees.match_names(config.decay_mask, params, what="decay_mask")
