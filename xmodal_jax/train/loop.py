"""`fit`: the loop that trains every method, from data to a trained state."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax.core.runtime import Stopwatch
from xmodal_jax.core.trees import leaf_names
from xmodal_jax.data.arrays import ArraySource
from xmodal_jax.data.pipeline import Loader, as_device_batch
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.optim import Optimizer, learning_rate, make_optimizer
from xmodal_jax.train.parallel import Engine, make_engine
from xmodal_jax.train.run import Run
from xmodal_jax.train.step import TrainState, eval_params, make_init, make_step, non_finite
from xmodal_jax.types import Method

RESIDENT_LIMIT = 2 * 2**30
"""Bytes up to which a data set is kept on the device."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN."""


class Preempted(SystemExit):
    """The run was asked to stop, saved a checkpoint and can go on."""


class Fitted(NamedTuple):
    """What training leaves."""

    state: TrainState
    engine: Engine
    steps: int
    """Steps taken, fewer than asked for after early stopping."""

    @property
    def params(self):
        """The parameters to evaluate: the average where one is kept."""
        return eval_params(self.state)


def fit(
    method: Method,
    loader: Loader,
    config: RunConfig,
    optimizer: Optimizer,
    run: Run,
    watch: Stopwatch,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    monitor: str | None = None,
    params: Any = None,
    meta: dict | None = None,
) -> Fitted:
    """Trains ``method`` on ``loader``'s batches for ``config.steps`` steps.

    evaluate: parameters to metrics, called every ``config.eval_every`` steps and at the end.
    monitor: which of those metrics (higher is better) decides the best checkpoint and early stopping.
    params: parameters to start from, in place of the method's own initialisation.
    meta: JSON-able facts kept in every checkpoint (what is needed to use the parameters elsewhere).

    Raises NonFiniteError, naming step and parameters, when the loss or a gradient is no longer finite, and Preempted
    (an exit) after saving when the process gets SIGTERM.
    """
    tx = make_optimizer(optimizer, config.steps)
    engine = make_engine(
        config.parallel,
        make_init(method, tx, optimizer, params=params),
        lambda axis: make_step(method, tx, optimizer, axis_name=axis),
        fsdp=config.fsdp,
    )
    example = as_device_batch(loader.fetch(0))
    seed_key = jax.random.key(config.seed)
    checkpoints = Checkpoints(run.path / "checkpoints", best_metric=monitor)
    state, start, best, waited = None, 0, -math.inf, 0
    if config.resume:
        with watch("restore"):
            kept = checkpoints.restore(engine.abstract(seed_key, example))
        if kept is not None:
            start, best, waited = kept[1]["step"], kept[1]["best"], kept[1]["waited"]
            state = engine.place(kept[0])
            loader.restore(kept[1]["position"])
            print(f"resuming after step {start}")
        else:
            print("no checkpoint to resume from: starting at step 0")
    run.truncate_metrics(start)
    if state is None:
        with watch("train"):
            state = engine.init(seed_key, example)
    feed = _Feed(loader, engine, config, start)
    schedule = learning_rate(optimizer, config.steps)
    names = leaf_names(engine.fetch(state).params)

    def facts(step):
        position = {**loader.position(), "step": step}
        return {**(meta or {}), "step": step, "position": position, "best": best, "waited": waited}

    def check(step, metrics):
        """Reads a dispatch's metrics (waiting for the device) and logs its last step."""
        metrics = jax.tree.map(np.asarray, metrics)
        for k, finite in enumerate(metrics["finite"]):
            what = non_finite(finite, names)
            if what is not None:
                raise NonFiniteError(
                    f"step {step - len(metrics['finite']) + k + 1}: {what} are no longer finite. Lower the learning "
                    f"rate (now {float(schedule(step)):.2g}), clip the gradient or look at that batch; the newest "
                    f"checkpoint in {checkpoints.directory} is from before."
                )
        row = {f"train/{k}": float(v.mean()) for k, v in metrics.items() if k != "finite"}
        run.log(step, {**row, "train/learning_rate": float(schedule(step - 1))})
        return row["train/loss"]

    step, pending = start, None
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(loader),
        _termination() as asked,
        tqdm(
            total=config.steps, initial=start, desc="train", unit="step", dynamic_ncols=True, file=sys.stderr
        ) as bar,
    ):
        while step < config.steps:
            with watch("data_wait"):
                xs = feed.next(step)
            with watch("train"):
                state, metrics = engine.run(state, feed.data, xs)
                # Only now, with the next steps under way, are the metrics of the last dispatch waited for.
                loss = check(*pending) if pending else None
            step += feed.dispatch
            pending = (step, metrics)
            bar.update(feed.dispatch)
            if loss is not None:
                wait = watch.seconds.get("data_wait", 0.0)
                busy = wait + watch.seconds["train"]
                rate = config.batch_size * (bar.format_dict["rate"] or 0)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, {rate:,.0f} examples/s, {wait / busy:.0%} waiting for data"
                )
            due = lambda every: every and step % every == 0  # noqa: B023
            last = step >= config.steps
            if evaluate is not None and (due(config.eval_every) or last):
                with watch("train"):
                    check(*pending)
                pending = None
                with watch("evaluation"):
                    scores = evaluate(eval_params(engine.fetch(state)))
                run.log(step, scores)
                if monitor is not None:
                    improved = scores[monitor] > best
                    best, waited = (scores[monitor], 0) if improved else (best, waited + 1)
                    if improved:
                        checkpoints.save_best(step, engine.fetch(state), facts(step), best)
                if config.patience and waited >= config.patience:
                    tqdm.write(
                        f"stopped early at step {step}: {monitor} has not improved on {best:.4f}", sys.stderr
                    )
                    last = True
            if last or due(config.checkpoint_every) or asked():
                if pending:  # never keep a state that is not known to be finite
                    with watch("train"):
                        check(*pending)
                    pending = None
                with watch("checkpoint"):
                    checkpoints.save(step, engine.fetch(state), facts(step))
            if asked() and not last:
                run.close()
                raise Preempted(f"stopped at step {step} as asked; go on with:\n  {resume_command(run)}")
            if last:
                break
        with watch("checkpoint"):
            checkpoints.wait()
    return Fitted(engine.fetch(state), engine, step)


def resume_command(run: Run) -> str:
    """The command that continues this run."""
    words = [w for w in sys.argv if w != "--resume"]
    if not any(w.split("=")[0] == "--run-dir" for w in words):
        words += ["--run-dir", str(run.path)]
    return shlex.join(["python", *words, "--resume"])


class _Feed:
    """What each dispatch reads: rows of a data set on the device, or batches from the host."""

    def __init__(self, loader: Loader, engine: Engine, config: RunConfig, start: int):
        self.loader, self.engine = loader, engine
        self.dispatch = _fitting_dispatch(config, start)
        source = loader.source
        self.resident = (
            config.resident
            and isinstance(source, ArraySource)
            and loader.transform is None
            and source.nbytes <= RESIDENT_LIMIT
        )
        self.data = engine.put_resident(as_device_batch(source.arrays)) if self.resident else None

    def next(self, step: int):
        if self.resident:
            rows = self.loader.index_batches(step, self.dispatch)
            return self.engine.put({"row": rows, "index": self.loader.stream_index(step, self.dispatch)})
        batches = [as_device_batch(next(self.loader)) for _ in range(self.dispatch)]
        return self.engine.put(jax.tree.map(lambda *x: np.stack(x), *batches))


def _fitting_dispatch(config: RunConfig, start: int) -> int:
    """The largest number of steps up to ``config.dispatch`` that meets every evaluation, checkpoint and the end."""
    stops = [n for n in (config.steps, config.eval_every, config.checkpoint_every, start) if n]
    common = math.gcd(*stops)
    return max(k for k in range(1, min(config.dispatch, common) + 1) if common % k == 0)


@contextlib.contextmanager
def _termination():
    """Whether SIGTERM has come, as a function; the old handler is put back at the end."""
    came = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread: nothing to catch
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, old)
