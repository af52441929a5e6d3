"""`fit`: the loop that trains every method, from data to a trained state."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from xmodal_jax.core.interrupts import TERMINATED
from xmodal_jax.core.random import fold_in_name
from xmodal_jax.core.runtime import Timer, free_memory
from xmodal_jax.core.trees import leaf_names
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.models.towers import unused_fields
from xmodal_jax.train import gan_step
from xmodal_jax.train.checkpoint import (
    CheckpointMismatch,
    Checkpoints,
    describe,
    frozen_of_seed,
    newest_checkpoint,
)
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import BatchFeed
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import DeviceData, Engine, make_engine
from xmodal_jax.train.preemption import termination
from xmodal_jax.train.restarts import Choice, Trial, better_trial, make_choice, trial_loss
from xmodal_jax.train.run import Run, stack_scores, to_json
from xmodal_jax.train.schedule import StepPlan, explain_resume
from xmodal_jax.train.step import Training, describe_non_finite, make_training
from xmodal_jax.types import GAN, Method


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN."""


class Preempted(SystemExit):
    """The run was asked to stop, has saved a checkpoint and can go on from it. The program ends with status 143."""

    def __init__(self, message: str):
        """``message``: where the run has stopped and how to go on, which is not printed at the end of the program."""
        super().__init__(message)
        self.code = TERMINATED


class TrainingResult(NamedTuple):
    """The outcome of `fit`."""

    state: Any
    """The final state, as ``engine`` lays it out on the devices."""
    engine: Engine
    steps: int
    """Number of steps taken, fewer than ``config.steps`` after early stopping."""
    training: Training
    seeds: list[int]
    """The seeds that trained to the end."""
    diverged: list[int]
    """The seeds that were dropped because a loss or a gradient became non-finite (``config.on_divergence``)."""
    resumed: int = 0
    """The step of the checkpoint that training went on from; 0 if it began anew."""
    restarts: Choice | None = None
    """With random restarts, which initialisation each seed went on with, also of those that diverged; None: there was
    no choice."""
    frozen: Any = None
    """Parameters of frozen networks, on the devices; None: there are none."""

    @property
    def params(self) -> list[Any]:
        """The parameters to evaluate, of each of ``seeds``: their exponential moving average where there is one."""
        params = eval_params_by_seed(self.state, self.engine, self.training, self.frozen)
        # The state holds all seeds, in ascending order (``config.all_seeds``).
        all_seeds = sorted(self.seeds + self.diverged)
        return [p for p, seed in zip(params, all_seeds, strict=True) if seed in self.seeds]


def fit(
    method: Method | GAN,
    loader: Loader,
    config: RunConfig,
    optimizer: Optimizer | gan_step.GANOptimizer,
    run: Run,
    timer: Timer,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    monitor: str | None = None,
    params: Any = None,
    metadata: Mapping[str, Any] | None = None,
    steps_flag: str = "--steps",
) -> TrainingResult:
    """Trains ``method`` on ``loader``'s batches for ``config.steps`` steps.

    With ``config.seeds`` above 1 that many models train at once, with the seeds ``config.seed``, ``config.seed + 1``, …
    Each has its own order of the data, and ends as it would if it trained alone. Metrics then hold a value per seed.

    Args:
      evaluate: ``evaluate(params) -> metrics`` of one seed, called every ``config.eval_every`` steps and at the end;
        None: nothing is evaluated.
      monitor: the name of the metric of ``evaluate`` (higher is better; of several seeds the mean) that decides the
        best checkpoint and early stopping; None: there is neither.
      params: parameters to start from; None: those that the method initialises.
      metadata: JSON-able values stored in every checkpoint, beside the configuration and the seeds: what is needed to
        use the parameters elsewhere, such as the tokenizer; None: nothing further. ``shapes`` (`shapes_of` a batch) are
        those of the loader's batches unless it has others, of data from which these batches were computed.
      steps_flag: the flag that ``config.steps`` comes from, for messages.

    Raises:
      NonFiniteError: the loss or a gradient is no longer finite. It names the step and the parameters. With
        ``config.on_divergence`` "drop" and several seeds it is raised for the last seed only.
      Preempted: the process got SIGTERM; a checkpoint is saved, and stderr says how to go on. (It is a SystemExit
        with status 143.)
      ValueError: the run to resume was of other settings, or has taken more than ``config.steps`` steps.
      MemoryError: with several seeds, before the first step: the program needs more memory than the device has free.
    """
    loop = TrainingLoop(
        method, loader, config, optimizer, run, timer,
        evaluate=evaluate, monitor=monitor, params=params, metadata=metadata, steps_flag=steps_flag,
    )  # fmt: skip
    loop.set_up()
    with contextlib.closing(loop), termination() as stop_requested:
        while loop.step < config.steps:
            if loop.step == 0 and loop.training.restarts.count > 1:
                loop.choose_initialisation(stop_requested)
            else:
                loop.dispatch()
            stops_early = loop.evaluate()
            finished = stops_early or loop.step >= config.steps
            # Called after every dispatch: several processes agree here on the step at which they stop.
            preempted = stop_requested(loop.executed_steps)
            loop.save(now=finished or preempted)
            # A run that stops early has to end here: resumed, it would train on.
            if preempted and not stops_early:
                loop.stop(f"stopped at step {loop.step} as asked")
            if finished:
                break
        loop.wait_for_checkpoints()
    return loop.result()


class TrainingLoop:
    """A training in progress: the state on the devices, the position in the data, the metrics and the checkpoints.

    `fit` calls `set_up`, then `dispatch`, `evaluate` and `save` until the training is finished, then `result`.

    A *dispatch* is one call of the compiled program, which makes ``config.dispatch`` steps (or fewer, see
    `choose_steps_per_dispatch`). Devices compute asynchronously: the metrics of a dispatch are read only after the next
    one has been started, so that the device never waits for the host.
    """

    def __init__(
        self,
        method: Method | GAN,
        loader: Loader,
        config: RunConfig,
        optimizer: Optimizer | gan_step.GANOptimizer,
        run: Run,
        timer: Timer,
        *,
        evaluate: Callable[[Any], dict[str, float]] | None,
        monitor: str | None,
        params: Any,
        metadata: Mapping[str, Any] | None,
        steps_flag: str,
    ):
        """See `fit` for the arguments."""
        self.config, self.run, self.timer, self.loader = config, run, timer, loader
        self._steps_flag = steps_flag
        self._evaluate_params, self._monitor = evaluate, monitor
        self.seeds = config.all_seeds
        self._method, self._optimizer, self._params = method, optimizer, params
        self._set_plan(StepPlan.begin(config.steps))
        training = self.training
        self._checkpoints = Checkpoints(run.path / "checkpoints", best_metric=monitor)
        self._feed = BatchFeed(loader, self.engine, config)
        # ``resident``: the data set as arrays on the device, if it fits there; None: batches come from the host.
        self._device_data = DeviceData(
            data=self._feed.resident, frozen=self.engine.put_frozen(training.frozen)
        )
        example = numeric_fields(loader.example())
        refuse_unused_text_options(config, example)
        self._example = example
        """A batch of one example, for the shapes of the model's inputs."""
        model = getattr(
            run.config, "model", None
        )  # the configuration of the experiment's model, if it has one
        # config.json leaves out the model's options for modalities that the data do not have.
        run.leave_out([f"model.{name}" for name in unused_fields(model, example)])
        encoders = method.encoders if isinstance(method, Method) else []
        self._metadata = {
            "shapes": shapes_of(example),
            **(metadata or {}),
            "config": to_json(run.config),
            "seeds": self.seeds,
            "encoders": [encoder_slot._asdict() for encoder_slot in encoders],
            "frozen": None if training.frozen is None else describe(training.frozen),
            "frozen_by_seed": list(training.frozen_by_seed),
            "restarts": None,
        }
        """The metadata that all checkpoints of the run share; `_checkpoint_metadata` adds that of one step."""
        self.state: Any = None
        self.step = self.start = 0
        """``step``: number of steps taken so far. ``start``: the step of the checkpoint that training resumed from."""
        self.diverged: list[int] = []
        """Seeds that were dropped, because their loss or gradient became non-finite."""
        self._best_score = -math.inf
        self._evaluations_since_best = 0
        self._pending_metrics: tuple[int, Any] | None = None
        """The number of steps after the last dispatch, and its metrics, which the device may still be computing."""
        # `set_up` assigns the values of the next four; until then they are placeholders.
        self._steps_per_dispatch = 0
        self._learning_rates: dict[str, np.ndarray] = {}
        """The learning rate of every step, by optimizer."""
        self._param_names: list[str] = []
        """Names of the parameters, in the order of the flags ``finite`` in a step's metrics."""
        self._dropped_steps = 0
        """Number of steps whose results were dropped, of initialisations that were not chosen."""
        self._choice: Choice | None = None
        """The choice of an initialisation; None: there was one."""
        self._bar: tqdm | None = None
        self._called: list[Callable] = []
        """The compiled programs that have been called."""

    # -- set-up ---------------------------------------------------------------------------------------

    def _set_plan(self, plan: StepPlan) -> None:
        """Makes the programs of a training by ``plan``; they are compiled when they are called first."""
        self.plan = plan
        """The learning-rate schedule of each step."""
        make = gan_step.make_training if isinstance(self._method, GAN) else make_training
        self.training = training = make(self._method, self._optimizer, plan, params=self._params)
        # ``seeds`` is the length of the state's leading axis; None, for one seed: there is no such axis.
        options = dict(fsdp=self.config.fsdp, seeds=len(self.seeds) if len(self.seeds) > 1 else None)
        options |= dict(frozen_by_seed=training.frozen_by_seed)
        self.engine = make_engine(self.config.parallel, training.init, training.make_step, **options)
        self._run_initial: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
        """As `Engine.run`, for the steps of the method's initial stage, such as pretraining; None: it has no such
        stage. It is a separate compiled program."""
        if training.initial_steps:
            self._run_initial = make_engine(
                self.config.parallel, training.init, training.make_initial_step, **options
            ).run

    def set_up(self) -> None:
        """Initialises the state (with ``config.resume``, restores it from the newest checkpoint) and what `dispatch`
        needs beside it: learning rates for the log, names of the parameters and a progress bar."""
        keys = self._seed_keys()
        if self.config.resume:
            with self.timer("restore"):
                self._restore(keys)
        if self.training.frozen is not None:
            self._checkpoints.save_frozen(self.training.frozen)
        self.run.truncate_metrics(self.start)  # the steps after the checkpoint are logged again
        if self.state is None:
            self.state = self._initial_state(keys)
        self._steps_per_dispatch = choose_steps_per_dispatch(
            self.config, self.start, self.training.initial_steps, self.training.restarts.steps
        )
        self._learning_rates = tabulate(self.training.learning_rates, self.config.steps)
        # `Engine.fetch`: the state with one copy of each array, without the axis of devices that pmap adds.
        self._param_names = leaf_names(self.engine.fetch(self.state).params)
        self._bar = self._make_progress_bar()

    def _initial_state(self, keys: jax.Array) -> Any:
        """The state before the first step, on the devices; ``keys``: of the seeds."""
        with self.timer("train"):
            state = self.engine.init(keys, self._example)
            if self.training.load_pretrained is None:
                return state
            return load_pretrained_params(state, self.engine, self.training, self._example)

    def _seed_keys(self) -> jax.Array:
        """The key of the seed, with several seeds an array of keys."""
        if self.engine.seeds:
            return jax.vmap(jax.random.key)(np.array(self.seeds))
        return jax.random.key(self.config.seed)

    def _make_progress_bar(self) -> tqdm:
        """A progress bar of steps on stderr, shown by one of all processes."""
        return tqdm(
            total=self.config.steps + (0 if self.start else self.training.restarts.extra_steps),
            initial=self.start,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file needs no line per step
            file=sys.stderr,
            disable=not self.run.writes,
        )

    def _restore(self, keys: jax.Array) -> None:
        """Restores state, position in the data and counters from the newest checkpoint, if there is one.

        Raises:
          CheckpointMismatch: the checkpoint's arrays or its frozen networks are not those of this training.
          ValueError: the checkpoint is of a later step than training ends at.
        """
        restored = self._checkpoints.restore(self.engine.abstract(keys, self._example))
        if restored is None:
            self.run.print("no checkpoint to resume from: starting at step 0")
            return
        state, metadata = restored
        if metadata.get("frozen") != self._metadata["frozen"]:
            raise CheckpointMismatch(
                "the checkpoint was trained with other frozen networks (a captioner, a pretrained encoder): give the "
                "same ones, or start anew with another --run-dir"
            )
        if metadata["step"] > self.config.steps:
            raise ValueError(
                f"{self._steps_flag} is {self.config.steps}, but {self.run.path} has taken {metadata['step']} steps "
                f"already: resume it with at least {self._steps_flag} {metadata['step']}, or start anew with another "
                "--run-dir"
            )
        self.step = self.start = metadata["step"]
        self._resume_plan(metadata)
        self.state = self.engine.put_state(state)
        self.diverged += metadata.get("diverged", [])  # checkpoints of earlier versions have none
        self._best_score = -math.inf if metadata["best"] is None else metadata["best"]
        self._evaluations_since_best = metadata["waited"]
        self._feed.restore(metadata["position"])
        self._metadata["restarts"] = choice = metadata.get("restarts")
        self._choice = None if choice is None else Choice(**choice)

    def _resume_plan(self, metadata: Mapping[str, Any]) -> None:
        """Goes on with the plan of a checkpoint with this ``metadata``; if the number of steps is another, changes it
        as ``config.resume_schedule`` says, and prints what becomes of the learning rate."""
        self.run.print(f"resuming after step {self.start}")
        steps, choice = self.config.steps, self.config.resume_schedule
        if "plan" in metadata:
            before = StepPlan.from_json(metadata["plan"])
        else:  # a checkpoint of an earlier version
            before = StepPlan.begin((metadata.get("config") or {}).get("steps", steps))
        plan = before.resume(self.start, steps=steps, choice=choice)
        if plan != self.plan:
            self._set_plan(plan)
            self._feed.engine = self.engine
        if steps == before.steps:
            return
        logged = {r["step"]: r for r in self.run.read_metrics() if "train/loss" in r}.get(self.start, {})
        rates = tabulate(self.training.learning_rates, steps)
        last_and_next = {
            name: (logged.get(f"train/{name}"), float(rate[self.start]) if self.start < steps else None)
            for name, rate in rates.items()
        }
        self.run.print(explain_resume(self._steps_flag, before, self.start, steps, choice, last_and_next))

    # -- one dispatch ---------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Starts the next steps in one compiled call (`jax.lax.scan`); meanwhile logs the metrics of the dispatch
        before."""
        metrics = self._run_steps()
        # An accelerator computes while this process goes on: only now, with the next steps under way, does it wait
        # for the metrics of the dispatch before.
        with self.timer("train"):
            loss = self._finish_dispatch()
        self._pending_metrics = self.step, metrics
        if loss is not None and self.run.writes:
            self._show(loss)

    def _run_steps(self) -> dict[str, jax.Array]:
        """Starts the next steps in one compiled call; their metrics, which the device may still be computing."""
        with self.timer("data_wait"):
            scan_inputs = self._feed.next(self.step, self._steps_per_dispatch)
        with self.timer("train"):
            # Only before the first step of several seeds: the message proposes fewer seeds. With one seed the device's
            # error says that memory does not suffice.
            if self.step == self.start and self.engine.seeds:
                check_memory(self.engine, self.state, self._device_data, scan_inputs)
            in_initial_stage = self.step < self.training.initial_steps
            run_steps = self._run_initial if in_initial_stage else self.engine.run
            with self._show_compilation(run_steps):
                self.state, metrics = run_steps(self.state, self._device_data, scan_inputs)
        self.step += self._steps_per_dispatch
        self._bar.update(self._steps_per_dispatch)
        return metrics

    # -- the choice of an initialisation --------------------------------------------------------------

    @property
    def executed_steps(self) -> int:
        """Number of steps taken, those of initialisations that were not chosen included. It never decreases."""
        return self.step + self._dropped_steps

    def choose_initialisation(self, stop_requested: Callable[[int], bool]) -> None:
        """Takes the first steps with several initialisations, each on the same batches, and goes on with the one of
        the lowest `restarts.trial_loss`; each seed chooses its own.

        The first initialisation is that of a training without a choice. Only the chosen one's metrics are logged, and
        no checkpoint is written before the choice: a run that is stopped in these steps begins anew.

        ``stop_requested``: see `preemption.termination`.
        """
        restarts, position = self.training.restarts, self._feed.position()
        best, losses = None, []
        for number in range(restarts.count):
            if number:
                self._feed.restore(position)
                self.step, self._dropped_steps = 0, number * restarts.steps
                self.state = self._initial_state(fold_in_name(self._seed_keys(), f"restart {number}"))
            self._bar.set_description(f"initialisation {number + 1} of {restarts.count}")
            trial = self._try_initialisation(number, stop_requested)
            losses.append(trial_loss(trial.metrics))
            best = trial if best is None else better_trial(best, trial)
        self._bar.set_description("train")
        self.state = self.engine.put_state(best.state)
        self._choice = make_choice(losses, best, restarts.steps)
        self._metadata["restarts"] = self._choice._asdict()  # for a run that is resumed
        for sentence in self._choice.describe(self.seeds):
            self.run.print(sentence)
        for n, metrics in enumerate(best.metrics):
            self._log_dispatch((n + 1) * self._steps_per_dispatch, metrics)

    def _try_initialisation(self, number: int, stop_requested: Callable[[int], bool]) -> Trial:
        """Takes the first steps from the current state, which is that of the ``number``-th initialisation."""
        metrics: list[Any] = []
        while self.step < self.training.restarts.steps:
            metrics.append(self._run_steps())
            if len(metrics) > 1:  # those of the dispatch before: the device has the next one to compute
                metrics[-2] = jax.tree.map(np.asarray, metrics[-2])
                self._show(float(metrics[-2]["loss"].mean()))
            if stop_requested(self.executed_steps):
                self.stop(
                    f"stopped as asked while initialisation {number + 1} was tried, so training begins anew"
                )
        metrics[-1] = jax.tree.map(np.asarray, metrics[-1])
        numbers = np.full((len(self.seeds),) if self.engine.seeds else (), number)
        return Trial(self.engine.fetch(self.state), metrics, numbers)

    def stop(self, message: str) -> None:
        """Ends a run that was asked to stop, by Preempted; ``message``: where it has stopped."""
        message = f"{message}; go on with:\n  {resume_command(self.run)}"
        self.run.close()
        tqdm.write(message, sys.stderr)
        raise Preempted(message)

    # -- what a dispatch has computed -----------------------------------------------------------------

    @contextlib.contextmanager
    def _show_compilation(self, program: Callable) -> Iterator[None]:
        """Says beside the progress bar that a program is compiled, which its first call in this process does: it takes
        up to a minute, in a run that is resumed as well."""
        if program in self._called:
            yield
            return
        self._called.append(program)
        self._bar.set_postfix_str("compiling the program of a step")
        yield
        self._bar.set_postfix_str("", refresh=False)

    def _show(self, loss: float) -> None:
        """Shows the loss, examples per second and the fraction of time spent waiting for data beside the progress
        bar."""
        seconds_waiting = self.timer.seconds.get("data_wait", 0.0)
        seconds = seconds_waiting + self.timer.seconds["train"]
        bar = self._bar.format_dict  # its rate is None until it has been shown a second time
        steps_per_second = bar["rate"] or (bar["n"] - bar["initial"]) / max(bar["elapsed"], 1e-6)
        speed = self.loader.batch_size * len(self.seeds) * steps_per_second
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {speed:,.0f} examples/s, {seconds_waiting / seconds:.0%} waiting for data",
            refresh=False,  # shown with the next update of the bar
        )

    def _finish_dispatch(self) -> float | None:
        """Waits for the metrics of the dispatch before, checks that its losses and gradients are finite, and logs the
        means of its metrics over its steps, for every seed that has not diverged.

        Returns:
          The mean loss over these seeds; None if all metrics have been logged already.
        """
        if self._pending_metrics is None:
            return None
        (step, metrics), self._pending_metrics = self._pending_metrics, None
        return self._log_dispatch(step, jax.tree.map(np.asarray, metrics))  # waits for the device

    def _log_dispatch(self, step: int, metrics: dict[str, np.ndarray]) -> float:
        """Checks the losses and gradients of a dispatch that ended at ``step``, and logs the means of its metrics,
        arrays ``[K steps]`` or ``[K steps, N seeds]``; returns the mean loss."""
        first_step = step - len(metrics["finite"]) + 1
        # The flags of a step are [1 + parameters] or [N, 1 + parameters]: is the loss finite, is each gradient finite?
        for k, flags in enumerate(metrics["finite"]):
            for seed, finite in zip(self.seeds, np.atleast_2d(flags), strict=True):
                if seed in self.diverged:
                    continue
                if non_finite_names := describe_non_finite(finite, self._param_names):
                    self._handle_divergence(first_step + k, seed, non_finite_names, last_step=step)
        metrics = {name: value for name, value in metrics.items() if name != "finite"}
        if self.diverged:
            is_kept = np.array([seed not in self.diverged for seed in self.seeds])
            metrics = {name: value[:, is_kept] for name, value in metrics.items()}
        means = {f"train/{name}": value.mean(axis=0) for name, value in metrics.items()}  # over the K steps
        rates = {f"train/{name}": float(rate[step - 1]) for name, rate in self._learning_rates.items()}
        self.run.log(step, means | rates)
        return float(means["train/loss"].mean())

    def _handle_divergence(self, step: int, seed: int, non_finite_names: str, *, last_step: int) -> None:
        """Drops a seed whose loss or gradient is no longer finite at ``step``, or raises NonFiniteError.

        ``non_finite_names``: what is not finite, for the message. ``last_step``: the dispatch's last step, whose
        learning rates the message names.
        """
        of_seed = f" of seed {seed}" if self.engine.seeds else ""
        message = f"step {step}{of_seed}: {non_finite_names} are no longer finite."
        other_seeds = len(self.seeds) - len(self.diverged) - 1
        if self.config.on_divergence == "drop" and other_seeds:
            self.run.print(f"{message} This seed is dropped; {other_seeds} go on.")
            self.diverged.append(seed)
            return
        rates = ", ".join(f"{rate[last_step - 1]:.2g}" for rate in self._learning_rates.values())
        raise NonFiniteError(
            f"{message} Lower the learning rate (now {rates}), clip the gradient or look at that batch; "
            f"the newest checkpoint in {self._checkpoints.directory} was saved before this step."
        )

    # -- between dispatches ---------------------------------------------------------------------------

    def evaluate(self) -> bool:
        """Evaluates if an evaluation is due, logs the scores, and saves a checkpoint if it is the best one so far.

        Returns:
          Whether training should stop early: the metric has not improved for ``config.patience`` evaluations.
        """
        if self._evaluate_params is None or not self._due(self.config.eval_every):
            return False
        with self.timer("train"):
            self._finish_dispatch()  # raises, or drops a seed, if a gradient was not finite
        with self.timer("evaluation"):
            all_params = eval_params_by_seed(self.state, self.engine, self.training, self._device_data.frozen)
            scores = stack_scores(
                [
                    self._evaluate_params(params)
                    for seed, params in zip(self.seeds, all_params, strict=True)
                    if seed not in self.diverged
                ]
            )
        self.run.log(self.step, scores)
        if self._monitor is not None:
            self._compare_with_best(float(np.mean(scores[self._monitor])))
        if not self.config.patience or self._evaluations_since_best < self.config.patience:
            return False
        self.run.print(
            f"stopped early at step {self.step}: {self._monitor} has not improved on {self._best_score:.4f}"
        )
        return True

    def _compare_with_best(self, score: float) -> None:
        """Saves a checkpoint as the best one if ``score`` is higher than all earlier scores; else counts the evaluation
        as one without improvement."""
        if score > self._best_score:
            self._best_score, self._evaluations_since_best = score, 0
            self._checkpoints.save_best(
                self.step, self.engine.fetch(self.state), self._checkpoint_metadata(), score
            )
        else:
            self._evaluations_since_best += 1

    def save(self, *, now: bool = False) -> None:
        """Saves a checkpoint if one is due, or in any case if ``now``.

        Before that it checks that all gradients were finite, so that no checkpoint holds a diverged state.
        """
        if not (now or self._due(self.config.checkpoint_every)):
            return
        if self._pending_metrics is not None:
            with self.timer("train"):
                self._finish_dispatch()  # raises, or drops a seed, if a gradient was not finite
        with self.timer("checkpoint"):
            self._checkpoints.save(self.step, self.engine.fetch(self.state), self._checkpoint_metadata())

    def _due(self, every: int) -> bool:
        """Whether it is time for what happens every ``every`` steps (0: never) and after the last step."""
        return self.step >= self.config.steps or bool(every and self.step % every == 0)

    def _checkpoint_metadata(self) -> dict[str, Any]:
        """The metadata of a checkpoint at the current step, from which `_restore` goes on."""
        return {
            **self._metadata,
            "step": self.step,
            # The loader's position, with training's step in place of the loader's: the loader counts the batches that
            # it has delivered, and with the data set on the device it delivers none.
            "position": {**self._feed.position(), "step": self.step},
            "best": None if self._best_score == -math.inf else self._best_score,  # JSON has no infinity
            # Evaluations since the best one; the name is that of earlier versions' checkpoints.
            "waited": self._evaluations_since_best,
            "diverged": list(self.diverged),
            "plan": self.plan.to_json(),
        }

    # -- end ------------------------------------------------------------------------------------------

    def wait_for_checkpoints(self) -> None:
        """Blocks until every checkpoint is on disk."""
        with self.timer("checkpoint"):
            self._checkpoints.wait()

    def close(self) -> None:
        """Closes the progress bar, the readers of data and the checkpoints."""
        self._bar.close()
        self._feed.close()
        self._checkpoints.close()

    def result(self) -> TrainingResult:
        """The outcome, as `fit` returns it."""
        return TrainingResult(
            state=self.state,
            engine=self.engine,
            steps=self.step,
            training=self.training,
            seeds=[seed for seed in self.seeds if seed not in self.diverged],
            diverged=self.diverged,
            resumed=self.start,
            restarts=self._choice,
            frozen=self._device_data.frozen,
        )


def shapes_of(batch: Mapping[str, Any]) -> dict[str, list[int]]:
    """The shape of an example of each field of a batch."""
    return {name: list(np.shape(x)[1:]) for name, x in batch.items() if hasattr(x, "shape")}


TEXT_OPTIONS = ("tokenizer", "vocab_size", "text_length", "text_cleanup")
"""The options of `train.config.DataConfig` that say how texts become tokens."""


def refuse_unused_text_options(config: RunConfig, fields: Collection[str]) -> None:
    """Raises ValueError if ``config`` sets an option that says how texts become tokens, and the data with these
    ``fields`` have no text."""
    if any(field.partition("_")[0] == "text" for field in fields):
        return
    for field in dataclasses.fields(config):
        if field.name in TEXT_OPTIONS and getattr(config, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise ValueError(f"{flag} has no effect, because no text is read from the data: leave it out")


def load_pretrained_params(state: Any, engine: Engine, training: Training, example: Any) -> Any:
    """``state`` with the parameters that ``training.load_pretrained`` loads from checkpoints in place of the initial
    ones, also in the moving average. ``example``: a batch, for the shapes of the model's inputs."""
    initial = engine.fetch(state)  # one copy of each array
    if engine.seeds is None:
        params = training.load_pretrained(initial.params, example)
    else:
        # The first axis of every array is that of the seeds: load for each seed, and stack again.
        by_seed = [
            training.load_pretrained(jax.tree.map(lambda x: x[k], initial.params), example)  # noqa: B023
            for k in range(engine.seeds)
        ]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_seed)
    # The average starts at the loaded parameters. It is a copy: the step donates the buffers of its state, so that
    # ``params`` and ``ema`` must not share one.
    ema = None if initial.ema is None else jax.tree.map(jnp.copy, training.ema_params(params))
    return engine.put_state(initial._replace(params=params, ema=ema))


def eval_params_by_seed(state: Any, engine: Engine, training: Training, frozen: Any = None) -> list[Any]:
    """The parameters to evaluate: a tree for each seed, without an axis of seeds.

    ``frozen``: parameters of frozen networks, on the devices. Every seed's tree gets them as its entry ``frozen``;
    None: there are none.
    """
    params = training.eval_params(engine.fetch(state))
    by_seed = [params]
    if engine.seeds is not None:  # the first axis of every array is that of the seeds
        by_seed = [jax.tree.map(lambda x: x[k], params) for k in range(engine.seeds)]  # noqa: B023
    if frozen is None:
        return by_seed
    frozen = engine.fetch(frozen)
    own_names = training.frozen_by_seed if engine.seeds is not None else ()
    return [
        {**seed_params, "frozen": frozen_of_seed(frozen, own_names, k)}
        for k, seed_params in enumerate(by_seed)
    ]


def tabulate(schedules: Mapping[str, Callable], steps: int) -> dict[str, np.ndarray]:
    """The values of each schedule at the steps 0, 1, …, ``steps - 1``, as arrays ``[steps]`` on the host.

    One compiled program computes all of them, before training. To evaluate the schedules in every step would take
    longer than the rest of the loop's work on the host.
    """
    all_values = jax.jit(lambda steps: {name: jax.vmap(f)(steps) for name, f in schedules.items()})
    return jax.tree.map(np.asarray, all_values(np.arange(steps)))


def check_memory(engine: Engine, state: Any, device_data: Any, scan_inputs: Any) -> None:
    """Raises MemoryError if `Engine.run` with these arguments needs more memory than is free.

    It is called before the first step of several seeds: instead of the device's own error in the middle of a step, the
    user gets one that says what to change.
    """
    needed, free = engine.needed_memory(state, device_data, scan_inputs), free_memory()  # bytes per device
    shards = (s for x in jax.tree.leaves((state, device_data)) for s in x.addressable_shards)
    allocated = sum(shard.data.nbytes for shard in shards) // engine.local_devices
    if free is not None and needed - allocated > free:
        raise MemoryError(
            f"{engine.seeds} seeds at once need {needed / 2**30:.1f} GiB on each device, of which "
            f"{(needed - allocated) / 2**30:.1f} GiB are not yet allocated; {free / 2**30:.1f} GiB are free. "
            f"Lower --seeds (one seed needs about {needed / engine.seeds / 2**30:.1f} GiB) or --batch-size, or split "
            "the state over more devices with --parallel sharded --fsdp N."
        )


def resume_command(run: Run) -> str:
    """The command line that continues this run, or the one that it is a part of: that of this process, with
    ``--resume`` and the run's directory."""
    words = [w for w in sys.argv if w != "--resume"]
    if not any(w.split("=")[0] in ("--run-dir", "--run_dir") for w in words):
        words += ["--run-dir", str(run.outermost_path)]
    return shlex.join(["python", *words, "--resume"])


def describe_interruption(run: Run) -> str:
    """The message of a run that was interrupted: the last logged step, the newest checkpoint and the command that
    goes on with it."""
    records = run.read_metrics()
    where = f"after step {records[-1]['step']}" if records else "before the first step"
    checkpoint = "it has no checkpoint yet"
    for kind in ("best", "newest"):  # `Checkpoints.restore` takes the best one where there is no other
        with contextlib.suppress(FileNotFoundError):
            folder = newest_checkpoint(run.path, best=kind == "best")
            checkpoint = f"its {kind} checkpoint is of step {folder.name}"
    return f"interrupted {where} of {run.path}; {checkpoint}; go on with:\n  {resume_command(run)}"


def choose_steps_per_dispatch(config: RunConfig, start: int, initial_steps: int, trial_steps: int = 0) -> int:
    """The largest number of steps per dispatch, up to ``config.dispatch``, with which a dispatch ends at every step
    where the loop must act: at each evaluation and checkpoint, after the ``initial_steps`` (where another program
    takes over), after the ``trial_steps`` of each initialisation that is tried, and at the end. ``start``: the step
    that training begins at."""
    # The number of steps per dispatch must also divide ``start`` (not 0 in a resumed run): only then do dispatches that
    # begin there end at the multiples of the intervals.
    intervals = (
        config.steps, config.eval_every, config.checkpoint_every, start, initial_steps, trial_steps
    )  # fmt: skip
    divisor = math.gcd(*(n for n in intervals if n))  # 0 means never
    return max(k for k in range(1, min(config.dispatch, divisor) + 1) if divisor % k == 0)
