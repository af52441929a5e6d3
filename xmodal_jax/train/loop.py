"""`fit`: the loop that trains every method, from data to a trained state."""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from xmodal_jax.core.runtime import Timer, free_memory
from xmodal_jax.core.trees import leaf_names
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.sources.arrays import nbytes
from xmodal_jax.train import gan_step as players
from xmodal_jax.train.checkpoint import Checkpoints
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import Engine, make_engine
from xmodal_jax.train.preemption import termination
from xmodal_jax.train.run import Run, stack_scores, to_json
from xmodal_jax.train.step import Training, describe_non_finite, make_training
from xmodal_jax.types import GAN, Method

RESIDENT_LIMIT = 2 * 2**30
"""Bytes up to which a data set is kept on the device."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient became infinite or NaN."""


class Preempted(SystemExit):
    """The run was asked to stop, saved a checkpoint and can go on."""


class TrainingResult(NamedTuple):
    """What training leaves."""

    state: Any
    engine: Engine
    steps: int
    """Steps taken, fewer than asked for after early stopping."""
    training: Training
    seeds: list[int]
    """Those that training finished with."""
    diverged: list[int]
    """Those that were dropped on the way (``config.on_divergence``)."""
    resumed: int = 0
    """The step that training went on from."""

    @property
    def params(self) -> list[Any]:
        """The parameters of each seed that was not dropped, to evaluate: the average where one is kept."""
        kept = _of_each_seed(self.state, self.engine, self.training)
        everyone = sorted(self.seeds + self.diverged)
        return [p for p, seed in zip(kept, everyone, strict=True) if seed in self.seeds]


def fit(
    method: Method | GAN,
    loader: Loader,
    config: RunConfig,
    optimizer: Optimizer | players.GANOptimizer,
    run: Run,
    timer: Timer,
    *,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    monitor: str | None = None,
    params: Any = None,
    metadata: dict | None = None,
) -> TrainingResult:
    """Trains ``method`` on ``loader``'s batches for ``config.steps`` steps.

    With ``config.seeds`` above 1 that many runs train at once, with the seeds ``config.seed``, ``config.seed + 1``, …;
    each is the run that its seed alone would be, in its own order of the data. Metrics then hold a value per seed.

    evaluate: parameters (of one seed) to metrics, called every ``config.eval_every`` steps and at the end.
    monitor: which of those metrics (higher is better; of several seeds the mean) decides the best checkpoint and early
    stopping.
    params: parameters to start from, in place of the method's own initialisation.
    metadata: JSON-able values stored in every checkpoint, beside the configuration and the seeds: what is needed to use
    the parameters elsewhere.

    Raises NonFiniteError, naming step and parameters, when the loss or a gradient is no longer finite (with
    ``config.on_divergence`` "drop" and several seeds: of the last one), Preempted
    (an exit) after saving when the process gets SIGTERM, and MemoryError before the first step where the device has
    less memory than the program needs.
    """
    train_by = players.make_training if isinstance(method, GAN) else make_training
    training = train_by(method, optimizer, config.steps, params=params)
    seeds = config.all_seeds
    how = dict(fsdp=config.fsdp, seeds=len(seeds) if len(seeds) > 1 else None)
    engine = make_engine(config.parallel, training.init, training.make_step, **how)
    if training.initial_steps:
        run_first = make_engine(config.parallel, training.init, training.make_initial_step, **how).run
    example = numeric_fields(loader.example())
    keys = jax.vmap(jax.random.key)(np.array(seeds)) if engine.seeds else jax.random.key(config.seed)
    checkpoints = Checkpoints(run.path / "checkpoints", best_metric=monitor)
    feed = _Feed(loader, engine, config)
    state, start, best, waited = None, 0, -math.inf, 0
    lost: list[int] = []
    if config.resume:
        with timer("restore"):
            kept = checkpoints.restore(engine.abstract(keys, example))
        if kept is not None:
            start, waited = kept[1]["step"], kept[1]["waited"]
            lost += kept[1].get("diverged", [])  # checkpoints of earlier versions have none
            best = -math.inf if kept[1]["best"] is None else kept[1]["best"]
            state = engine.place(kept[0])
            feed.restore(kept[1]["position"])
            run.say(f"resuming after step {start}")
        else:
            run.say("no checkpoint to resume from: starting at step 0")
    run.truncate_metrics(start)
    if state is None:
        with timer("train"):
            state = engine.init(keys, example)
            if training.load_pretrained is not None:
                state = _with_pretrained(state, engine, training, example)
    dispatch = _fitting_dispatch(config, start, training.initial_steps)
    # All at once: evaluated step by step, a schedule would cost a short step more than all the rest of this loop.
    of_all = jax.jit(lambda steps: {k: jax.vmap(rate)(steps) for k, rate in training.learning_rates.items()})
    rates = jax.tree.map(np.asarray, of_all(np.arange(config.steps)))
    names = leaf_names(engine.fetch(state).params)
    shapes = {name: list(np.shape(x)[1:]) for name, x in example.items() if hasattr(x, "shape")}
    facts_of_run = {**(metadata or {}), "config": to_json(run.config), "seeds": seeds, "shapes": shapes}

    def facts(step):
        position = {**feed.position(), "step": step}
        seen = None if best == -math.inf else best  # JSON has no infinity
        return {
            **facts_of_run,
            "step": step,
            "position": position,
            "best": seen,
            "waited": waited,
            "diverged": list(lost),
        }

    def check(step, metrics):
        """Reads a dispatch's metrics (waiting for the device) and logs its last step."""
        metrics = jax.tree.map(np.asarray, metrics)
        first = step - len(metrics["finite"]) + 1
        for k, flags in enumerate(metrics["finite"]):
            for seed, finite in zip(seeds, np.atleast_2d(flags), strict=True):
                what = None if seed in lost else describe_non_finite(finite, names)
                if what is None:
                    continue
                whose = f" of seed {seed}" if engine.seeds else ""
                now = ", ".join(f"{rate[step - 1]:.2g}" for rate in rates.values())
                said = f"step {first + k}{whose}: {what} are no longer finite."
                if config.on_divergence == "drop" and len(lost) + 1 < len(seeds):
                    run.say(f"{said} This seed is dropped; {len(seeds) - len(lost) - 1} go on.")
                    lost.append(seed)
                    continue
                raise NonFiniteError(
                    f"{said} Lower the learning rate (now {now}), clip the gradient or look at that batch; "
                    f"the newest checkpoint in {checkpoints.directory} is from before."
                )
        if lost:
            rows = np.array([seed not in lost for seed in seeds])
            metrics = {name: v[:, rows] for name, v in metrics.items() if name != "finite"}
        row = {f"train/{k}": v.mean(axis=0) for k, v in metrics.items() if k != "finite"}
        run.log(step, row | {f"train/{k}": float(rate[step - 1]) for k, rate in rates.items()})
        return float(row["train/loss"].mean())

    step, pending = start, None
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(feed),
        termination() as asked,
        tqdm(
            total=config.steps,
            initial=start,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file needs no line per step
            file=sys.stderr,
            disable=not run.writes,
        ) as bar,
    ):
        while step < config.steps:
            with timer("data_wait"):
                xs = feed.next(step, dispatch)
            with timer("train"):
                if step == start and engine.seeds:
                    _check_memory(engine, state, feed.data, xs)
                go = run_first if step < training.initial_steps else engine.run
                state, metrics = go(state, feed.data, xs)
                # Only now, with the next steps under way, are the metrics of the last dispatch waited for.
                loss = check(*pending) if pending else None
            step += dispatch
            pending = (step, metrics)
            bar.update(dispatch)
            if loss is not None and run.writes:
                wait = timer.seconds.get("data_wait", 0.0)
                busy = wait + timer.seconds["train"]
                rate = loader.batch_size * len(seeds) * (bar.format_dict["rate"] or 0)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, {rate:,.0f} examples/s, {wait / busy:.0%} waiting for data",
                    refresh=False,
                )
            due = lambda every: every and step % every == 0  # noqa: B023
            last = step >= config.steps
            if evaluate is not None and (due(config.eval_every) or last):
                with timer("train"):
                    check(*pending)
                pending = None
                with timer("evaluation"):
                    trained = zip(seeds, _of_each_seed(state, engine, training), strict=True)
                    scores = stack_scores([evaluate(p) for seed, p in trained if seed not in lost])
                run.log(step, scores)
                if monitor is not None:
                    score = float(np.mean(scores[monitor]))
                    improved = score > best
                    best, waited = (score, 0) if improved else (best, waited + 1)
                    if improved:
                        checkpoints.save_best(step, engine.fetch(state), facts(step), best)
                if config.patience and waited >= config.patience:
                    run.say(f"stopped early at step {step}: {monitor} has not improved on {best:.4f}")
                    last = True
            stop = asked(step)
            if last or due(config.checkpoint_every) or stop:
                if pending:  # never keep a state that is not known to be finite
                    with timer("train"):
                        check(*pending)
                    pending = None
                with timer("checkpoint"):
                    checkpoints.save(step, engine.fetch(state), facts(step))
            if stop and not last:
                run.close()
                raise Preempted(f"stopped at step {step} as asked; go on with:\n  {resume_command(run)}")
            if last:
                break
        with timer("checkpoint"):
            checkpoints.wait()
    return TrainingResult(
        state, engine, step, training, [seed for seed in seeds if seed not in lost], lost, start
    )


def _with_pretrained(state: Any, engine: Engine, training: Training, example: Any) -> Any:
    """A state whose parameters (and their average) hold what is read from files."""
    drawn, given = engine.fetch(state), training.load_pretrained
    if engine.seeds is None:
        params = given(drawn.params, example)
    else:
        each = [given(jax.tree.map(lambda x: x[k], drawn.params), example) for k in range(engine.seeds)]  # noqa: B023
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    average = None if drawn.ema is None else jax.tree.map(jnp.copy, training.ema_params(params))
    return engine.place(drawn._replace(params=params, ema=average))


def _of_each_seed(state: Any, engine: Engine, training: Training) -> list[Any]:
    params = training.eval_params(engine.fetch(state))
    if engine.seeds is None:
        return [params]
    return [jax.tree.map(lambda x: x[k], params) for k in range(engine.seeds)]  # noqa: B023


def _check_memory(engine: Engine, state: Any, resident: Any, xs: Any) -> None:
    """Raises MemoryError, with what would help, where the program does not fit: before it runs, not after an hour."""
    needed, free = engine.memory(state, resident, xs), free_memory()
    shards = (s for x in jax.tree.leaves((state, resident)) for s in x.addressable_shards)
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


class _Feed:
    """What each dispatch reads: rows of a data set on the device, or batches from the host.

    Each seed has its own order of the data, and each process reads its own rows of every global batch.
    """

    def __init__(self, loader: Loader, engine: Engine, config: RunConfig):
        shard = (jax.process_index(), jax.process_count())
        self.loaders = [loader.copy(seed=loader.order.seed + k, shard=shard) for k in range(config.seeds)]
        self.engine, self.stacked = engine, engine.seeds is not None
        source = loader.source
        self.resident = (
            config.resident
            and source.arrays is not None
            and loader.transform is None
            and nbytes(source.arrays) <= RESIDENT_LIMIT
        )
        self.data = engine.put_resident(numeric_fields(source.arrays)) if self.resident else None

    def next(self, step: int, dispatch: int):
        if self.resident:
            of_each = [
                {"row": each.index_batches(step, dispatch), "index": each.stream_index(step, dispatch)}
                for each in self.loaders
            ]
        else:
            of_each = []
            for each in self.loaders:
                batches = [numeric_fields(next(each)) for _ in range(dispatch)]
                of_each.append(jax.tree.map(lambda *x: np.stack(x), *batches))
        if not self.stacked:
            return self.engine.put(of_each[0])
        return self.engine.put(jax.tree.map(lambda *x: np.stack(x, axis=1), *of_each))

    def position(self) -> dict:
        """Of the first seed; the others differ from it in the seed alone."""
        return self.loaders[0].position()

    def restore(self, position: dict) -> None:
        for k, each in enumerate(self.loaders):
            each.restore({**position, "seed": position["seed"] + k})

    def close(self) -> None:
        for each in self.loaders:
            each.close()


def _fitting_dispatch(config: RunConfig, start: int, first: int) -> int:
    """The largest number of steps up to ``config.dispatch`` that meets every evaluation, checkpoint and the end, and
    the last of the ``first`` steps that are of another kind."""
    stops = [n for n in (config.steps, config.eval_every, config.checkpoint_every, start, first) if n]
    common = math.gcd(*stops)
    return max(k for k in range(1, min(config.dispatch, common) + 1) if common % k == 0)
