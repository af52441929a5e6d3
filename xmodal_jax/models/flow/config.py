"""The configuration of a flow."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, get_args

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.models.flow.conditions import FlowConditionConfig, WordsCondition
from xmodal_jax.models.flow.objectives import FlowMatching, FlowObjective
from xmodal_jax.models.flow.samplers import HeunSampler, Sampler
from xmodal_jax.nets.dit import DiTConfig, FlowMLPConfig
from xmodal_jax.nets.unet import UNetConfig

FlowNetwork = DiTConfig | UNetConfig | FlowMLPConfig
"""The networks, by name."""


@dataclasses.dataclass(frozen=True)
class OptimalTransport:
    """Pairs the noise with the data of a batch at the least total cost, so that paths cross less and are straighter
    (Tong et al. 2024, arXiv:2302.00482; with a condition Cheng and Schwing 2025, arXiv:2503.10636)."""

    name: ClassVar[str] = "optimal_transport"
    condition_weight: float = 0.0
    """Cost of noise that would be paired with data of another condition than its own: noise and condition stay
    independent if it is large, and with 0 a conditional model is trained on noise that depends on the condition. The
    distance of conditions is 0 or 1 for classes, and 1 - cosine for vectors."""

    def __post_init__(self):
        check_at_least(self, 0, "condition_weight")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Network, objective and sampler of a flow."""

    objective: FlowObjective = FlowMatching()
    """Objective of training: the velocity (flow_matching), or mean velocities for generation in one step (mean_flow,
    shortcut)."""
    condition: FlowConditionConfig = WordsCondition()
    """Condition of the data: nothing (none), the class (class), the caption as one vector (sentence), or the caption as
    one vector and a vector per word (words)."""
    network: FlowNetwork = DiTConfig()
    """Network of the velocity: a transformer over patches of images (dit), convolutions at several resolutions of
    images (unet), or a residual MLP over vectors (mlp)."""
    coupling: OptimalTransport | None = None
    """How noise is paired with data in training. None: at random."""
    sampler: Sampler = HeunSampler()
    """How the trained flow generates."""

    def __post_init__(self):
        """Checks that the chosen parts fit each other."""
        if self.sampler.uses_mean and not self.objective.predicts_mean:
            raise ValueError(
                f"the sampler {self.sampler.name} needs a network that predicts mean velocities: choose the objective "
                "mean_flow or shortcut, or another sampler"
            )
        check_guidance(self.condition, self.sampler)


def check_guidance(condition: FlowConditionConfig, sampler: Sampler) -> None:
    """Raises ValueError: the ``sampler`` has guidance, and the unconditional model is not trained."""
    if sampler.guidance != 1.0 and not condition.dropout:
        raise ValueError(
            "guidance needs the unconditional model: set the condition's dropout above 0, or guidance to 1"
        )


def with_condition_like(config: FlowConfig, condition: Any) -> FlowConfig:
    """``config`` with the kind of condition, and the encoder of captions, that a GAN's ``condition`` has
    (`models.gan.conditions`); without a condition there is no guidance."""
    kinds = {kind.name: kind for kind in get_args(FlowConditionConfig)}
    chosen = kinds[condition.name](**({"text": condition.text} if condition.reads_text else {}))
    sampler = config.sampler if chosen.dropout else dataclasses.replace(config.sampler, guidance=1.0)
    return dataclasses.replace(config, condition=chosen, sampler=sampler)
