"""What the experiment scripts share: everything from the start to `fit`, and from `fit` to the end.

A script in ``experiments/`` has this form::

    config, run, timer, bad_examples, pretrained = start(config)
    ...                                              # the data and the method
    result = fit(method, loader, config, optimizer, run, timer, evaluate=validate)
    metrics, outputs = evaluate_seeds(test, result, timer)
    if not run.writes:
        return
    title, details = "...", subtitle(config, result)
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        ...                                          # figures and tables
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.hard_negatives import HardNegatives
from xmodal_jax.data.mixture_splits import describe_spec
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.splits import Splits, choose_batch_size, open_splits, prepare_source
from xmodal_jax.evaluation.image_judge import load_judge
from xmodal_jax.nets.dropout import UNKNOWN_ID
from xmodal_jax.report.comparison import ComparedRun, read_result, steps_of_equal_time
from xmodal_jax.report.next_steps import next_steps
from xmodal_jax.report.page import Report
from xmodal_jax.train import config as run_config
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT
from xmodal_jax.train.loop import TrainingResult
from xmodal_jax.train.recipes import resolve_recipe
from xmodal_jax.train.run import Run, experiment_file, stack_scores, summary_line
from xmodal_jax.transfer.autoencoders import LatentConfig, use_pretrained_encoders
from xmodal_jax.transfer.first_stage import check_presets
from xmodal_jax.transfer.frozen import FrozenNetworksConfig, load_frozen_networks
from xmodal_jax.transfer.pretrained import pretrained_remarks, resolve_pretrained

Output = TypeVar("Output")
AnyConfig = TypeVar("AnyConfig")


class Experiment(NamedTuple):
    """What `start` prepares for a script: configuration, run, timer and pretrained encoders."""

    config: Any
    """The configuration to train with: shrunk for ``--smoke``, with the sizes of pretrained encoders in its model."""
    run: Run
    """The run's directory, open for writing."""
    timer: runtime.Timer
    """Seconds of each part of the run."""
    bad_examples: BadExamples
    """Collects the examples that are left out of the data."""
    pretrained: Any
    """The pretrained encoders that the configuration asks for (`PretrainedEncoders`, `AutoencoderEncoders` or
    `FrozenNetworks` of `transfer`, by the class of the configuration)."""


def start(
    config: RunConfig,
    *,
    shrink: Callable[[Any], Any] = run_config.shrink,
    smoke: Mapping[str, Any] | None = None,
) -> Experiment:
    """Prepares JAX (with several processes also their communication), finds the pretrained encoders that ``config``
    asks for and opens the run's directory.

    Args:
      shrink: ``shrink(config)``: the small configuration of a ``--smoke`` run.
      smoke: further fields that a ``--smoke`` run changes, by name.

    Raises:
      FileExistsError: the run's directory holds another run.
      ValueError: a flag of a pretrained encoder cannot be met.
    """
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = dataclasses.replace(shrink(config), **(smoke or {}))
    config, pretrained = _resolve_pretrained(config)
    run = Run.create(config.run_dir, config, resume=config.resume)
    # Options of mixtures, which most runs do not use.
    run.leave_out(
        [f"input.{name}" for name in ("data_weights", "test_data") if not getattr(config.input, name)]
    )
    bad_examples = BadExamples(config.input.on_bad_example, announce=run.print)
    for remark in pretrained_remarks(config):
        bad_examples.remark(remark)
    return Experiment(config, run, timer, bad_examples, pretrained)


def _resolve_pretrained(config: RunConfig) -> tuple[RunConfig, Any]:
    """The configuration with the options that pretrained encoders decide, and these encoders. The class of the
    configuration says how the experiment uses them: trained further, within autoencoders, or frozen."""
    if isinstance(config, run_config.StartConfig):
        return resolve_pretrained(config)
    if isinstance(config, LatentConfig):
        return use_pretrained_encoders(config)
    if isinstance(config, FrozenNetworksConfig):
        return load_frozen_networks(config)
    return config, None  # an experiment without pretrained encoders


def run_experiment(script: ModuleType, config: RunConfig, folder: Path, **changes: Any) -> None:
    """Runs another experiment ``script`` in ``folder``, with the options of ``config`` that it has and ``changes`` of
    them; nothing if ``config`` resumes and the run in ``folder`` has ended."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(script.Config)}
    options |= {**changes, "run_dir": folder}
    if not config.resume or read_result(folder).get("steps", 0) != options["steps"]:
        script.main(script.Config(**options))


def check_comparison(config: FrozenNetworksConfig, names: Iterable[str], bad_examples: BadExamples) -> None:
    """Finds what would stop a comparison of the GANs ``names`` (see `models.gan.presets`) after hours: a judge that
    cannot be loaded, and images of a size that a preset's networks cannot make.

    Raises:
      ValueError: there is such a mistake.
    """
    load_judge(config.judge)
    check_presets(config, names, open_splits(config.data, config.input, bad_examples).train)


TIMING_STEPS = 50
"""Steps of the short training that tells how long a step takes."""


def run_for_equal_time(
    script: ModuleType,
    config: RunConfig,
    folder: Path,
    runs: Sequence[ComparedRun],
    make_options: Callable[[RunConfig], Mapping[str, Any]],
) -> None:
    """`run_experiment` for as many steps as take the median training time of ``runs``, or for ``config.steps`` if there
    is none. A short training without judge and learning, in ``timing`` beside ``folder``, tells how long a step takes.

    ``make_options(config)``: the options in which the experiment differs from ``config``, whose steps are its own.
    """
    if runs:
        timing = folder.parent / "timing" / folder.name
        learning, steps = dataclasses.replace(config.learning, steps=0), min(TIMING_STEPS, config.steps)
        short = dataclasses.replace(config, steps=steps, judge=None, learning=learning, eval_every=0)
        run_experiment(script, short, timing, **make_options(short))
        config = dataclasses.replace(config, steps=steps_of_equal_time(runs, timing, default=config.steps))
    run_experiment(script, config, folder, **make_options(config))


def choose_recipe(config: AnyConfig, splits: Splits, run: Run) -> AnyConfig:
    """``config`` with the settings that its recipe (``--recipe``) has for these data, see `train.recipes`. It says in a
    line what they are, and writes them to ``config.json``."""
    config, line = resolve_recipe(config, splits.train, splits.validation)
    if line is not None:
        run.print(line)
    run.replace_config(config)
    return config


def make_loader(
    config: RunConfig,
    source: Source,
    tokenize: Callable[[RawBatch], RawBatch] | None = None,
    *,
    bad_examples: BadExamples,
    once: Callable[[RawBatch], RawBatch] | None = None,
    repeats: int = 1,
    negatives: HardNegatives | None = None,
) -> Loader:
    """Batches of a training split, shuffled and tokenized; the split is kept in memory where it fits.

    Args:
      config: batch size and seed of the order.
      source: the training split.
      tokenize: a transform of raw batches that is fitted to the data, such as one that adds the tokens of captions
        (`data.splits.FittedTransforms`); None: there is none.
      bad_examples: notes that there are fewer examples than the batch size, which is then reduced (see
        `choose_batch_size`), and why there are no hard negatives.
      once: a transform of raw batches, such as spectrograms of audio. It is computed once where the split fits into
        memory; otherwise the model computes the same in each step.
      repeats: number of batches of ``config.batch_size`` that are joined to one, for a method that takes several steps
        on parts of a batch.
      negatives: hard negatives of a contrastive loss; None: batches are random.
    """
    _check_unknown_token(config, tokenize)
    similar_groups = None
    if negatives is not None:
        tokenize, similar_groups = negatives.prepare(source, tokenize, bad_examples)
    source, transform = prepare_source(source, tokenize, limit=RESIDENT_LIMIT, once=once)
    batch_size = choose_batch_size(config.batch_size, source, bad_examples)
    return Loader(
        source,
        batch_size=batch_size * repeats,
        seed=config.seed,
        transform=transform,
        similar_groups=similar_groups,
    )


def _check_unknown_token(config: RunConfig, tokenize: Any) -> None:
    """Raises ValueError if the text encoder drops tokens of a tokenizer with another unknown token than those that are
    trained here."""
    text = getattr(getattr(config, "model", None), "text", None)
    tokenizer = getattr(tokenize, "tokenizer", None)
    if getattr(text, "token_dropout", 0) and tokenizer is not None and tokenizer.unk_id != UNKNOWN_ID:
        raise ValueError(
            "--model.text.token-dropout is for tokenizers that are trained on the data, whose unknown token has the id "
            f"{UNKNOWN_ID}: leave it at 0 with --tokenizer {config.tokenizer}"
        )


def evaluate_seeds(
    test: Callable[[Any], tuple[dict[str, float], Output]], result: TrainingResult, timer: runtime.Timer
) -> tuple[dict[str, Any], Output]:
    """Runs ``test(params) -> (metrics, output)`` for every seed.

    Returns:
      The metrics, which are lists of one value per seed where there are several seeds; and the first seed's output.
    """
    runtime.announce_evaluation()
    with timer("evaluation"):
        metrics_by_seed, outputs = zip(*(test(params) for params in result.params), strict=True)
    return stack_scores(metrics_by_seed), outputs[0]


def last_losses(run: Run) -> dict[str, Any]:
    """The training losses that a run has logged last, such as ``train/d_loss``, for an experiment without scores."""
    records = [record for record in run.read_metrics() if "train/loss" in record]
    last = records[-1] if records else {}
    return {
        name: value for name, value in last.items() if name.startswith("train/") and name.endswith("loss")
    }


def subtitle(config: RunConfig, result: TrainingResult, *details: str, shown: str = "figures") -> str:
    """The line below a report's title: the data set, ``details``, the number of steps and of seeds.

    ``shown``: what the report shows for the first seed only, such as "figures".
    """
    seeds = [f"{config.seeds} seeds, {shown} of the first"] if config.seeds > 1 else []
    return " · ".join([describe_spec(config.data), *details, f"{result.steps} steps", *seeds])


def add_bad_examples(report: Report, bad_examples: BadExamples, directory: Path) -> None:
    """Lists the examples that were left out of the data: the first 100 in the report, all in ``bad_examples.jsonl``.
    If there are none, the report shows other notes on the data, if any."""
    if len(bad_examples):
        bad_examples.write(directory / "bad_examples.jsonl")
        rows = [(p.file, p.line, p.reason) for p in sorted(bad_examples.items)[:100]]
        report.add_table("Bad examples", ("file", "line", "reason"), rows, note=bad_examples.summary())
    elif bad_examples.summary():
        report.add_text("Notes on the data", bad_examples.summary())


@contextlib.contextmanager
def write_report(
    run: Run,
    title: str,
    subtitle: str,
    metrics: Mapping[str, Any],
    timer: runtime.Timer,
    bad_examples: BadExamples,
    result: TrainingResult | None = None,
    *,
    page: str = "report.html",
    **entries: Any,
) -> Iterator[Report]:
    """Writes ``result.json``, and then ``report.html`` with what the ``with`` block adds to the report that it gets.

    The end of the block adds bad examples, configuration and timing, closes the run, and prints the metrics that the
    report has on cards and what to do next (`report.next_steps`). If the block raises an
    error, the report has what was added before, and says so: the result stays, and the run ends well.

    Args:
      title, subtitle: of the report.
      metrics: final metrics by name, each a number or one per seed.
      timer: seconds of each part of the run, for the report and ``result.json``.
      bad_examples: the report lists them, and the notes on the data.
      result: what `fit` returned; its seeds, steps and number of parameters go into ``result.json``.
      page: name of the report's file.
      entries: further entries of ``result.json`` (see `Run.write_result`).

    Example::

        with write_report(run, "Captions", subtitle(config, result), metrics, timer, bad_examples, result) as report:
            report.add_metrics(metrics)
    """
    if result is not None:
        entries = {
            "seeds": result.seeds,
            "diverged": result.diverged,
            "steps": result.steps,
            "resumed": result.resumed,
            "restarts": None if result.restarts is None else result.restarts._asdict(),
            "parameters": trees.count(result.params[0]),
        } | entries
    entries = {"experiment": experiment_file(run.config).stem} | entries
    run.write_result(metrics, timing=timer.report(), **entries)
    report = Report(title, subtitle)
    steps = entries.get("steps")
    if steps is not None and steps < FEW_STEPS:
        note = f"After only {steps} training steps the scores say nothing about the method."
        report.add_text("Note", note)
        print(f"note: {note}")
    file = run.path / page
    with timer("report"):
        try:
            yield report
        except Exception as error:
            _add_failure(report, error)
        if result is not None and result.restarts is not None:
            sentences = result.restarts.describe(sorted(result.seeds + result.diverged))
            report.add_text("Random restarts", " ".join(f"S{sentence[1:]}." for sentence in sentences))
        add_bad_examples(report, bad_examples, run.path)
        report.add_config(run.read_config())
        report.add_timing(timer.report())
        report.write(file)
    run.write_result(metrics, timing=timer.report(), **entries)
    run.close()
    print(bad_examples.summary() or "no bad examples")
    print(file)
    print(summary_line(metrics, (report.headline or list(metrics))[:4]) or "no scores")
    for line in next_steps(run, entries.get("seeds", ()), page=page):
        print(line)


FEW_STEPS = 50
"""Fewer training steps than these come with a note that scores say nothing yet."""


def _add_failure(report: Report, error: Exception) -> None:
    """Says in the report, and on stderr, that an error has kept the rest of it from being written."""
    reason = f"{type(error).__name__}: {error}"
    details = "".join(traceback.format_exception(error))
    text = (
        f"The rest of the report could not be written. result.json has all scores.\n\n{reason}\n\n{details}"
    )
    report.add_text("This report is incomplete", text)
    print(f"note: the report is incomplete ({' '.join(reason.split())}); the result is not", file=sys.stderr)
