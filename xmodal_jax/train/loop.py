"""`fit`: the loop that trains every method, from data to a trained state."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from xmodal_jax.core.runtime import Timer, free_memory
from xmodal_jax.core.trees import leaf_names
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.models.towers import unused_fields
from xmodal_jax.train import gan_step
from xmodal_jax.train.checkpoint import CheckpointMismatch, Checkpoints, describe
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import BatchFeed
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import DeviceData, Engine, make_engine
from xmodal_jax.train.preemption import termination
from xmodal_jax.train.run import Run, stack_scores, to_json
from xmodal_jax.train.step import Training, describe_non_finite, make_training
from xmodal_jax.types import GAN, Method


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN."""


class Preempted(SystemExit):
    """The run was asked to stop, has saved a checkpoint and can go on from it."""


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
    frozen: Any = None
    """Parameters of frozen networks, on the devices; None: there are none."""

    @property
    def params(self) -> list[Any]:
        """The parameters to evaluate, of each of ``seeds``: their exponential moving average where there is one."""
        params = eval_params_by_seed(self.state, self.engine, self.training, self.frozen)
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
) -> TrainingResult:
    """Trains ``method`` on ``loader``'s batches for ``config.steps`` steps.

    With ``config.seeds`` above 1 that many runs train at once, with the seeds ``config.seed``, ``config.seed + 1``, …;
    each is the run that its seed alone would be, in its own order of the data. Metrics then hold a value per seed.

    Args:
      evaluate: ``evaluate(params) -> metrics`` of one seed, called every ``config.eval_every`` steps and at the end.
      monitor: the name of the metric of ``evaluate`` (higher is better; of several seeds the mean) that decides the
        best checkpoint and early stopping.
      params: parameters to start from, in place of the method's own initialisation.
      metadata: JSON-able values stored in every checkpoint, beside the configuration and the seeds: what is needed to
        use the parameters elsewhere.

    Raises:
      NonFiniteError: the loss or a gradient is no longer finite. It names the step and the parameters. With
        ``config.on_divergence`` "drop" and several seeds it is raised for the last seed only.
      Preempted: the process got SIGTERM; a checkpoint is saved. (It is a SystemExit.)
      MemoryError: before the first step, where the program needs more memory than the device has.
    """
    loop = TrainingLoop(
        method, loader, config, optimizer, run, timer,
        evaluate=evaluate, monitor=monitor, params=params, metadata=metadata,
    )  # fmt: skip
    loop.set_up()
    with contextlib.closing(loop), termination() as stop_requested:
        while loop.step < config.steps:
            loop.dispatch()
            finished = loop.evaluate() or loop.step >= config.steps
            # Called after every dispatch: several processes agree here on the step at which they stop.
            stopped = stop_requested(loop.step)
            loop.save(now=finished or stopped)
            if finished:
                break
            if stopped:
                run.close()
                command = resume_command(run)
                raise Preempted(f"stopped at step {loop.step} as asked; go on with:\n  {command}")
        loop.wait_for_checkpoints()
    return loop.result()


class TrainingLoop:
    """A training in progress: the state on the devices, the position in the data, and what is logged and stored.

    `fit` calls `set_up`, then `dispatch`, `evaluate` and `save` until the training is finished, then `result`.
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
    ):
        self.config, self.run, self.timer, self.loader = config, run, timer, loader
        self._evaluate, self._monitor = evaluate, monitor
        make = gan_step.make_training if isinstance(method, GAN) else make_training
        self.training = training = make(method, optimizer, config.steps, params=params)
        self.seeds = config.all_seeds
        options = dict(fsdp=config.fsdp, seeds=len(self.seeds) if len(self.seeds) > 1 else None)
        self.engine = make_engine(config.parallel, training.init, training.make_step, **options)
        # Runs the steps of a method's first stage (pretraining), which are compiled apart.
        self._run_initial: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
        if training.initial_steps:
            self._run_initial = make_engine(
                config.parallel, training.init, training.make_initial_step, **options
            ).run
        self._checkpoints = Checkpoints(run.path / "checkpoints", best_metric=monitor)
        self._feed = BatchFeed(loader, self.engine, config)
        self._device_data = DeviceData(self._feed.resident, self.engine.put_frozen(training.frozen))
        example = numeric_fields(loader.example())
        self._example = example
        shapes = {name: list(np.shape(x)[1:]) for name, x in example.items() if hasattr(x, "shape")}
        model = getattr(run.config, "model", None)
        # The stored configuration leaves out the model's options for modalities that the data lack.
        run.leave_out([f"model.{name}" for name in unused_fields(model, example)])
        encoders = method.encoders if isinstance(method, Method) else []
        self._metadata = {
            **(metadata or {}),
            "config": to_json(run.config),
            "seeds": self.seeds,
            "shapes": shapes,
            "encoders": [encoder_slot._asdict() for encoder_slot in encoders],
            "frozen": None if training.frozen is None else describe(training.frozen),
        }
        self.state: Any = None
        self.step = self.start = 0
        """Steps taken so far, and those of them before this process started (see ``config.resume``)."""
        self.diverged: list[int] = []
        self._best_score = -math.inf
        self._evaluations_since_best = 0
        self._pending_metrics: tuple[int, Any] | None = None
        """The last dispatch's step and metrics, while the device may still be computing them."""
        # `set_up` assigns these.
        self._steps_per_dispatch = 0
        self._learning_rates: dict[str, np.ndarray] = {}
        """The learning rate of every step, by optimizer."""
        self._param_names: list[str] = []
        """Names of the parameters, in the order of the flags ``finite`` of a step's metrics."""
        self._bar: tqdm | None = None

    # -- set-up ---------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Initialises the state, or restores it from the newest checkpoint with ``config.resume``."""
        seeds = np.array(self.seeds)
        keys = jax.vmap(jax.random.key)(seeds) if self.engine.seeds else jax.random.key(self.config.seed)
        if self.config.resume:
            with self.timer("restore"):
                self._restore(keys)
        if self.training.frozen is not None:
            self._checkpoints.save_frozen(self.training.frozen)
        self.run.truncate_metrics(self.start)
        if self.state is None:
            with self.timer("train"):
                self.state = self.engine.init(keys, self._example)
                if self.training.load_pretrained is not None:
                    self.state = load_pretrained_params(self.state, self.engine, self.training, self._example)
        self._steps_per_dispatch = choose_steps_per_dispatch(
            self.config, self.start, self.training.initial_steps
        )
        self._learning_rates = tabulate(self.training.learning_rates, self.config.steps)
        self._param_names = leaf_names(self.engine.fetch(self.state).params)
        self._bar = tqdm(
            total=self.config.steps,
            initial=self.start,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file needs no line per step
            file=sys.stderr,
            disable=not self.run.writes,
        )

    def _restore(self, keys: jax.Array) -> None:
        """Restores state, position and counters from the newest checkpoint, if there is one."""
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
        self.state = self.engine.put_state(state)
        self.step = self.start = metadata["step"]
        self.diverged += metadata.get("diverged", [])  # checkpoints of earlier versions have none
        self._best_score = -math.inf if metadata["best"] is None else metadata["best"]
        self._evaluations_since_best = metadata["waited"]
        self._feed.restore(metadata["position"])
        self.run.print(f"resuming after step {self.start}")

    # -- one dispatch ---------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Runs ``steps_per_dispatch`` steps in one compiled call (`jax.lax.scan`), and logs the metrics of the previous
        ones meanwhile."""
        with self.timer("data_wait"):
            scan_inputs = self._feed.next(self.step, self._steps_per_dispatch)
        with self.timer("train"):
            if self.step == self.start and self.engine.seeds:
                check_memory(self.engine, self.state, self._device_data, scan_inputs)
            initial = self.step < self.training.initial_steps
            run_steps = self._run_initial if initial else self.engine.run
            self.state, metrics = run_steps(self.state, self._device_data, scan_inputs)
            # Only now, with the next steps under way, are the metrics of the last dispatch waited for.
            loss = self._finish_dispatch()
        self.step += self._steps_per_dispatch
        self._pending_metrics = self.step, metrics
        self._bar.update(self._steps_per_dispatch)
        if loss is not None and self.run.writes:
            self._show(loss)

    def _show(self, loss: float) -> None:
        """Loss and speed behind the progress bar."""
        waiting = self.timer.seconds.get("data_wait", 0.0)
        total = waiting + self.timer.seconds["train"]
        speed = self.loader.batch_size * len(self.seeds) * (self._bar.format_dict["rate"] or 0)
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {speed:,.0f} examples/s, {waiting / total:.0%} waiting for data",
            refresh=False,
        )

    def _finish_dispatch(self) -> float | None:
        """Waits for the last dispatch and checks that losses and gradients of all its steps are finite.

        It logs the metrics of its last step, of every seed that has not diverged; returns their mean loss. None where
        nothing has been dispatched since the last call.
        """
        if self._pending_metrics is None:
            return None
        (step, metrics), self._pending_metrics = self._pending_metrics, None
        metrics = jax.tree.map(np.asarray, metrics)
        first = step - len(metrics["finite"]) + 1
        for k, flags in enumerate(metrics["finite"]):
            for seed, finite in zip(self.seeds, np.atleast_2d(flags), strict=True):
                if seed in self.diverged:
                    continue
                if non_finite_names := describe_non_finite(finite, self._param_names):
                    self._handle_divergence(first + k, seed, non_finite_names, step)
        del metrics["finite"]
        if self.diverged:
            remaining = np.array([seed not in self.diverged for seed in self.seeds])
            metrics = {name: value[:, remaining] for name, value in metrics.items()}
        last = {f"train/{name}": value.mean(axis=0) for name, value in metrics.items()}
        rates = {f"train/{name}": float(rate[step - 1]) for name, rate in self._learning_rates.items()}
        self.run.log(step, last | rates)
        return float(last["train/loss"].mean())

    def _handle_divergence(self, step: int, seed: int, non_finite_names: str, last_step: int) -> None:
        """Drops a seed whose values are no longer finite, or raises NonFiniteError."""
        of_seed = f" of seed {seed}" if self.engine.seeds else ""
        message = f"step {step}{of_seed}: {non_finite_names} are no longer finite."
        others = len(self.seeds) - len(self.diverged) - 1
        if self.config.on_divergence == "drop" and others:
            self.run.print(f"{message} This seed is dropped; {others} go on.")
            self.diverged.append(seed)
            return
        rates = ", ".join(f"{rate[last_step - 1]:.2g}" for rate in self._learning_rates.values())
        raise NonFiniteError(
            f"{message} Lower the learning rate (now {rates}), clip the gradient or look at that batch; "
            f"the newest checkpoint in {self._checkpoints.directory} was saved before this step."
        )

    # -- between dispatches ---------------------------------------------------------------------------

    def evaluate(self) -> bool:
        """Evaluates if it is due, and saves the checkpoint if it is the best one so far.

        Returns:
          Whether training should stop early: the metric has not improved for ``config.patience`` evaluations.
        """
        if self._evaluate is None or not self._due(self.config.eval_every):
            return False
        with self.timer("train"):
            self._finish_dispatch()
        with self.timer("evaluation"):
            params = eval_params_by_seed(self.state, self.engine, self.training, self._device_data.frozen)
            by_seed = zip(self.seeds, params, strict=True)
            scores = stack_scores(
                [self._evaluate(params) for seed, params in by_seed if seed not in self.diverged]
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
        """Saves the best checkpoint if ``score`` is higher than every one before; else counts the evaluation."""
        if score > self._best_score:
            self._best_score, self._evaluations_since_best = score, 0
            self._checkpoints.save_best(
                self.step, self.engine.fetch(self.state), self._checkpoint_metadata(), score
            )
        else:
            self._evaluations_since_best += 1

    def save(self, *, now: bool = False) -> None:
        """Saves a checkpoint if one is due, or ``now``; first it waits until the state is known to be finite."""
        if not (now or self._due(self.config.checkpoint_every)):
            return
        if self._pending_metrics is not None:
            with self.timer("train"):
                self._finish_dispatch()
        with self.timer("checkpoint"):
            self._checkpoints.save(self.step, self.engine.fetch(self.state), self._checkpoint_metadata())

    def _due(self, every: int) -> bool:
        """Whether something that happens every ``every`` steps (0: never) and after the last step happens now."""
        return self.step >= self.config.steps or bool(every and self.step % every == 0)

    def _checkpoint_metadata(self) -> dict[str, Any]:
        """The metadata of a checkpoint at the current step; see `_restore`."""
        return {
            **self._metadata,
            "step": self.step,
            "position": {**self._feed.position(), "step": self.step},
            "best": None if self._best_score == -math.inf else self._best_score,  # JSON has no infinity
            # Evaluations since the best one; the name is that of earlier versions' checkpoints.
            "waited": self._evaluations_since_best,
            "diverged": list(self.diverged),
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
        seeds = [seed for seed in self.seeds if seed not in self.diverged]
        return TrainingResult(
            self.state, self.engine, self.step, self.training, seeds, self.diverged, self.start,
            self._device_data.frozen,
        )  # fmt: skip


def load_pretrained_params(state: Any, engine: Engine, training: Training, example: Any) -> Any:
    """``state`` with the parameters that ``training.load_pretrained`` loads, also in their moving average."""
    initial = engine.fetch(state)
    if engine.seeds is None:
        params = training.load_pretrained(initial.params, example)
    else:
        by_seed = [
            training.load_pretrained(jax.tree.map(lambda x: x[k], initial.params), example)  # noqa: B023
            for k in range(engine.seeds)
        ]
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_seed)
    ema = None if initial.ema is None else jax.tree.map(jnp.copy, training.ema_params(params))
    return engine.put_state(initial._replace(params=params, ema=ema))


def eval_params_by_seed(state: Any, engine: Engine, training: Training, frozen: Any = None) -> list[Any]:
    """The parameters to evaluate, of each seed, with those of ``frozen`` networks (on the devices) if there are any."""
    params = training.eval_params(engine.fetch(state))
    by_seed = [params]
    if engine.seeds is not None:
        by_seed = [jax.tree.map(lambda x: x[k], params) for k in range(engine.seeds)]  # noqa: B023
    if frozen is None:
        return by_seed
    frozen = engine.fetch(frozen)
    return [{**each, "frozen": frozen} for each in by_seed]


def tabulate(schedules: Mapping[str, Callable], steps: int) -> dict[str, np.ndarray]:
    """Schedules as tables ``[steps]``.

    All steps are evaluated in one program: one by one, a schedule would cost a short step more than the rest of the
    loop does.
    """
    evaluate = jax.jit(lambda steps: {name: jax.vmap(f)(steps) for name, f in schedules.items()})
    return jax.tree.map(np.asarray, evaluate(np.arange(steps)))


def check_memory(engine: Engine, state: Any, device_data: Any, scan_inputs: Any) -> None:
    """Raises MemoryError if `Engine.run` with these arguments needs more memory than is free.

    `fit` calls it before the first step, so that the error says what to change and does not come in the middle of it.
    """
    needed, free = engine.needed_memory(state, device_data, scan_inputs), free_memory()
    shards = (s for x in jax.tree.leaves((state, device_data)) for s in x.addressable_shards)
    held = sum(shard.data.nbytes for shard in shards) // engine.local_devices
    if free is not None and needed - held > free:
        raise MemoryError(
            f"{engine.seeds} seeds at once need {needed / 2**30:.1f} GiB on each device, of which "
            f"{(needed - held) / 2**30:.1f} GiB are still to be had and {free / 2**30:.1f} GiB are free. Lower --seeds "
            f"(one seed needs about {needed / engine.seeds / 2**30:.1f} GiB) or --batch-size, or split the state over "
            "more devices with --parallel sharded --fsdp N."
        )


def resume_command(run: Run) -> str:
    """The command that continues this run."""
    words = [w for w in sys.argv if w != "--resume"]
    if not any(w.split("=")[0] == "--run-dir" for w in words):
        words += ["--run-dir", str(run.path)]
    return shlex.join(["python", *words, "--resume"])


def choose_steps_per_dispatch(config: RunConfig, start: int, initial_steps: int) -> int:
    """Steps per dispatch: the largest number up to ``config.dispatch`` such that a dispatch ends at every evaluation,
    checkpoint, the end, and the last of the ``initial_steps``, where the program changes."""
    stops = [n for n in (config.steps, config.eval_every, config.checkpoint_every, start, initial_steps) if n]
    common = math.gcd(*stops)
    return max(k for k in range(1, min(config.dispatch, common) + 1) if common % k == 0)
