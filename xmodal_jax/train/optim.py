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
from xmodal_jax.train.muon import scale_by_muon
from xmodal_jax.types import Params

_WITHOUT_DECAY = ("adam", "adafactor")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters move."""

    name: Literal["adamw", "adam", "lion", "sgd", "adafactor", "muon"] = "adamw"
    """Update rule. ``adamw`` decouples the weight decay from the gradient; ``adam`` has none. ``muon`` orthogonalises
    the momentum of matrices and moves the rest by Adam's rule: fewer steps, at rates about 5 times as high."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant", "linear", "rsqrt"] = "cosine"
    """Shape after warm-up; cosine and linear end at ``final_scale`` times the peak."""
    warmup: float = 0.05
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    final_scale: float = 0.0
    """Learning rate at the last step, as a share of the peak."""
    b1: float = 0.9
    """Decay of the gradient's average (momentum)."""
    b2: float = 0.98
    """Decay of the squared gradient's average."""
    weight_decay: float = 0.05
    """Decoupled weight decay (adamw, lion, sgd, muon), multiplied by the learning rate."""
    decay_mask: str = r"(kernel|embedding)$"
    """Regular expression of the parameters that decay, and to which l1 and l2 apply: weights, not biases or norms."""
    l1: float = 0.0
    """``l1 * sum |w|`` added to the loss's gradient."""
    l2: float = 0.0
    """``l2 * sum w^2`` added to the loss's gradient (coupled, unlike weight_decay)."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which the gradient is scaled down; None: never."""
    freeze: tuple[str, ...] = ()
    """Regular expressions of parameters that do not train."""
    rates: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    """(regular expression, learning-rate factor); the first that matches a parameter decides. Together they must
    cover every parameter, and each must match at least one."""
    accumulate: int = 1
    """Split each batch into this many parts and average their gradients: less memory, the same step count."""
    ema: float | None = None
    """Decay of the parameters' exponential average, used for evaluation; None: no average is kept."""

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.name in _WITHOUT_DECAY and self.weight_decay and self.weight_decay != Optimizer.weight_decay:
            raise ValueError(f"{self.name} takes no weight_decay; choose adamw or set l2")
        for pattern in (*self.freeze, *(p for p, _ in self.rates), self.decay_mask):
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"{pattern!r} is not a regular expression: {e}") from e


def learning_rate(config: Optimizer, steps: int) -> Callable:
    """Step to learning rate: linear warm-up, then the chosen shape down to the last of ``steps`` steps."""
    warmup = int(config.warmup if config.warmup >= 1 else config.warmup * steps)
    peak, rest = config.learning_rate, max(steps - warmup, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=config.final_scale)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, peak * config.final_scale, rest)
    elif config.schedule == "rsqrt":
        start = max(warmup, 1)
        main = lambda step: peak * jnp.sqrt(start / (start + step))
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    # From peak/warmup, not from 0: a first step that moves nothing is wasted.
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup), main], [warmup])


def rate_factors(config: Optimizer, params: Params) -> Params:
    """The learning-rate factor of each parameter: a tree of float; 0 where frozen.

    Raises ValueError for a parameter that no rule covers and for a rule that no parameter matches.
    """
    names = trees.leaf_names(params)
    for pattern in (*config.freeze, *(p for p, _ in config.rates)):
        if not any(re.search(pattern, n) for n in names):
            shown = "\n  ".join(names[:40])
            raise ValueError(
                f"{pattern!r} (freeze or rates) matches no parameter. Parameters are:\n  {shown}"
            )

    def factor(name, _):
        if any(re.search(p, name) for p in config.freeze):
            return 0.0
        for pattern, value in config.rates:
            if re.search(pattern, name):
                return float(value)
        raise ValueError(f"parameter {name!r} is covered by no rule of rates; end them with ('.*', 1.0)")

    return trees.map_with_name(factor, params)


def trainable(config: Optimizer, params: Params) -> Params:
    """A tree of bool: False where a parameter is frozen (or its factor is 0)."""
    return jax.tree.map(lambda f: f != 0.0, rate_factors(config, params))


def _add_l1(strength: float, mask) -> optax.GradientTransformation:
    def update(grads, state, params=None):
        return jax.tree.map(lambda g, p: g + strength * jnp.sign(p), grads, params), state

    return optax.masked(optax.GradientTransformation(lambda _: optax.EmptyState(), update), mask)


def make_optimizer(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The Optax transformation for a run of ``steps`` steps; frozen parameters keep no optimizer state."""

    def decays(params):
        # Of what learns perhaps nothing decays; that the mask means something is seen to with all parameters at hand.
        return trees.map_with_name(lambda name, _: bool(re.search(config.decay_mask, name)), params)

    chain = []
    if config.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.l2:
        chain.append(optax.add_decayed_weights(2.0 * config.l2, mask=decays))
    if config.l1:
        chain.append(_add_l1(config.l1, decays))
    if config.name in ("adamw", "adam"):
        chain.append(optax.scale_by_adam(b1=config.b1, b2=config.b2))
    elif config.name == "lion":
        chain.append(optax.scale_by_lion(b1=config.b1, b2=config.b2))
    elif config.name == "muon":
        chain.append(scale_by_muon(b1=config.b1, b2=config.b2))
    elif config.name == "sgd":
        chain.append(optax.trace(decay=config.b1, nesterov=True))
    else:
        chain.append(optax.scale_by_factored_rms())
        chain.append(optax.clip_by_block_rms(1.0))
    if config.weight_decay and config.name not in _WITHOUT_DECAY:
        chain.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
    chain.append(_scale_by_factors(config))
    chain.append(optax.scale_by_learning_rate(learning_rate(config, steps)))
    return _only_trainable(optax.chain(*chain), config)


def _scale_by_factors(config: Optimizer) -> optax.GradientTransformation:
    if all(value == 1.0 for _, value in config.rates):
        return optax.identity()

    def update(updates, state, params=None):
        names = iter(trees.leaf_names(updates))
        by_rule = lambda name: next((v for p, v in config.rates if re.search(p, name)), 1.0)
        return jax.tree.map(lambda u: u * by_rule(next(names)), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _only_trainable(tx: optax.GradientTransformation, config: Optimizer) -> optax.GradientTransformation:
    """``tx`` over the trainable parameters, zero updates and no state for the frozen ones."""
    if not config.freeze and all(value != 0.0 for _, value in config.rates):

        def init(params):
            _check_rules(config, params)
            return tx.init(params)

        return optax.GradientTransformation(init, tx.update)
    labels = lambda params: jax.tree.map(lambda t: "train" if t else "frozen", trainable(config, params))
    parts = optax.partition({"train": tx, "frozen": optax.set_to_zero()}, labels)

    def init_parts(params):
        _check_rules(config, params)
        return parts.init(params)

    return optax.GradientTransformation(init_parts, parts.update)


def _check_rules(config: Optimizer, params: Params) -> None:
    """Raises where the rules do not fit the parameters."""
    rate_factors(config, params)
    if config.l1 or config.l2 or (config.weight_decay and config.name not in _WITHOUT_DECAY):
        trees.match_names(config.decay_mask, params, what="decay_mask")
