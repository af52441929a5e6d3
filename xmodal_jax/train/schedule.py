"""Which schedule each step of a training follows (of the learning rate, and of whatever else changes), also after it
was resumed with another number of steps.

::

    plan = StepPlan.begin(1000)                              # one schedule of 1000 steps
    plan = plan.resume(1000, steps=1500, choice="restart")   # and from there a new one of 500 steps

A checkpoint holds the plan (`StepPlan.to_json`), so that a run that is resumed again goes on with the same rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

ResumeSchedule = Literal["extend", "restart", "keep"]
"""What becomes of the learning rate when a run is resumed with another number of steps; see `StepPlan.resume`."""


class Segment(NamedTuple):
    """A part of a training in which the learning rate follows one schedule."""

    start: int
    """Number of steps before it."""
    end: int
    """Number of steps before its schedule ends: the length of the schedule is ``end - start``."""
    is_constant: bool = False
    """Whether the learning rate stays at that of the step before."""


class StepPlan(NamedTuple):
    """The steps of a training, in segments with a learning-rate schedule each."""

    segments: tuple[Segment, ...]
    """In the order of their starts. A segment lasts until the next one starts, the last one until its end."""
    first_steps: int
    """Number of steps that the training was asked for when it began. An initial stage (`types.Stage`) is a fraction of
    these, so that it is not entered again when a run gets more steps."""

    @classmethod
    def begin(cls, steps: int) -> StepPlan:
        """The plan of a training of ``steps`` steps that begins."""
        return cls((Segment(0, steps),), steps)

    @property
    def steps(self) -> int:
        """Number of steps of the whole training."""
        return self.segments[-1].end

    def resume(self, step: int, *, steps: int, choice: ResumeSchedule) -> StepPlan:
        """The plan of a training that goes on after ``step`` steps and ends after ``steps``; this plan itself if it
        ends there already.

        Args:
          step: number of steps taken.
          steps: number of steps that the whole training is to have.
          choice: with "extend" the last schedule gets another length, as if the new number of steps had been asked for
            when it began; with "restart" a new one, of ``steps - step`` steps and with its own warm-up, begins here;
            with "keep" the learning rate stays at that of the last step.
        """
        if steps == self.steps:
            return self
        if choice == "extend":
            last = self.segments[-1]._replace(end=steps)
            return self._replace(segments=(*self.segments[:-1], last))
        # What would begin at this step or later, from an earlier resumption, is replaced.
        before = tuple(segment for segment in self.segments if segment.start < step)
        if not before:  # no step has been taken: there is no rate to keep, and nothing to start again
            return StepPlan((Segment(0, steps),), self.first_steps)
        return self._replace(segments=(*before, Segment(step, steps, choice == "keep")))

    def after(self, first_step: int) -> StepPlan:
        """The plan of a network that is not trained in the first ``first_step`` steps, by the number of its own steps.
        Segments in which it takes no step are left out."""
        segments: list[Segment] = []
        for start, end, is_constant in self.segments:
            start, end = max(start - first_step, 0), max(end - first_step, 1)
            if segments and segments[-1].start == start:
                segments.pop()
            segments.append(Segment(start, end, is_constant and start > 0))
        return StepPlan(tuple(segments), max(self.first_steps - first_step, 1))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {"segments": [list(segment) for segment in self.segments], "first_steps": self.first_steps}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StepPlan:
        """The inverse of `to_json`."""
        return cls(tuple(Segment(*segment) for segment in values["segments"]), values["first_steps"])


def plan_of(steps: int | StepPlan) -> StepPlan:
    """The plan itself, or that of a training of ``steps`` steps that begins."""
    return steps if isinstance(steps, StepPlan) else StepPlan.begin(steps)


def progress_schedule(steps: int | StepPlan) -> Callable[[jax.Array | int], jax.Array]:
    """``progress(step)``: the fraction of the training that is over before a step, from 0 to below 1.

    As the learning rate's schedule, it begins anew with each segment of a plan, and stays what it was in one whose
    learning rate is constant. See `core.schedules.half_cosine`.
    """
    segments = plan_of(steps).segments

    def progress(step):
        """The progress before ``step``, an integer scalar."""
        value = jnp.float32(0.0)
        before = value  # in the last step before a segment
        for number, (start, end, is_constant) in enumerate(segments):
            fraction = lambda s, start=start, end=end: jnp.clip((s - start) / max(end - start, 1), 0.0, 1.0)
            in_segment = before if is_constant else jnp.float32(fraction(step))
            value = jnp.where(step >= start, in_segment, value)
            if not is_constant and number + 1 < len(segments):
                before = jnp.float32(fraction(segments[number + 1].start - 1))
        return value

    return progress


EXPLANATIONS: dict[ResumeSchedule, str] = {
    "extend": "as if {steps} steps had been asked for {beginning}",
    "restart": "a new schedule of {left} steps, with its warm-up, begins here",
    "keep": "it stays at that of the last step",
}
"""What each choice means for the learning rate, for messages."""


def explain_resume(
    flag: str,
    before: StepPlan,
    step: int,
    steps: int,
    choice: ResumeSchedule,
    rates: Mapping[str, tuple[float | None, float | None]],
) -> str:
    """The message on a run that goes on after ``step`` steps with another number of steps.

    Args:
      flag: that the number of steps comes from.
      before: the plan so far.
      step: number of steps taken.
      steps: number of steps that the whole training is to have.
      choice: see `StepPlan.resume`.
      rates: the learning rates by name, in the last step and in the next one; None where it is not known or there is no
        next step.
    """
    changes = []
    for name, (last, following) in rates.items():
        known = [(last, step), (following, step + 1)]
        values = ", ".join(f"{rate:.3g} at step {number}" for rate, number in known if rate is not None)
        changes.append(f"{name.replace('_', ' ')} {values}")
    start = before.segments[-1].start
    beginning = f"at step {start}, where its schedule began" if start else "from the beginning"
    meaning = EXPLANATIONS[choice].format(steps=steps, left=steps - step, beginning=beginning)
    others = ", ".join(other for other in get_args(ResumeSchedule) if other != choice)
    return (
        f"note: {flag} is {steps}, was {before.steps}: {'; '.join(changes)}; {meaning} (--resume-schedule {choice}; "
        f"other choices: {others})"
    )
