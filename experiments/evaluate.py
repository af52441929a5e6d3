"""Scores of shared embedding spaces on data sets, by the standard protocols: one table over runs and data sets.

    python experiments/evaluate.py RUN --data folder:PATH
    python experiments/evaluate.py RUN1 RUN2 hf:FOLDER --data folder:A 'parquet:B.parquet' --protocol.gallery 1000
    python experiments/evaluate.py RUN --data npz:PATH --protocol.prompts "a photo of a {}" "a drawing of a {}"

Retrieval between all pairs of modalities, zero-shot classification and its calibration, a linear probe, and few-shot
classification by nearest neighbours, each with a 95% interval over the test examples. A run is one of contrastive.py,
an export of it, or hf:FOLDER, CLIP or SigLIP in Hugging Face layout. Each data set is read in the format of each run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from typing import Annotated, ClassVar

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.mixture_splits import part_names
from xmodal_jax.data.open import DataOptions
from xmodal_jax.evaluation.gap import CorrectionKind
from xmodal_jax.evaluation.protocol import Protocol, evaluate_space
from xmodal_jax.experiment import write_report
from xmodal_jax.inference.contrastive import ContrastiveModel
from xmodal_jax.inference.embed_data import RUN_OPTIONS, check_data_set, open_splits_for_model
from xmodal_jax.inference.loading import load
from xmodal_jax.report import protocol as panels
from xmodal_jax.report.run_comparison import distinct_names
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags
from xmodal_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Scores of trained spaces on data sets."""

    unused_options: ClassVar[tuple[str, ...]] = RUN_OPTIONS
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Runs of contrastive.py, exports of them, or hf:FOLDER."""
    data: tuple[str, ...]
    """Data sets, each in one of the forms of ``--data`` of the other scripts, with or without options of its own:
    ``'folder:A?modalities=text,image'``. Each is evaluated by itself."""
    protocol: Protocol = Protocol()
    """What is measured, and on how many examples."""
    gap_correction: CorrectionKind | None = None
    """Reduces the modality gap before anything is scored: the mean embeddings of the modalities, of training examples,
    are moved to their common mean (shift) or to 0 (center). None: the embeddings stay as they were trained."""
    best: bool = False
    """Whether to take the checkpoints that are best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained models, if the runs have several; None: their only seed."""
    input: DataFlags = DataOptions()
    """Options of the data sets. Images and sounds are brought into the format of each run."""
    run_dir: pathlib.Path | None = None
    """Directory to write to; None: ``runs/evaluate-<time>``."""


@functools.lru_cache(maxsize=1)
def load_space(path: str, best: bool, seed: int | None) -> ContrastiveModel:
    """The trained space of a run."""
    model = load(path, best=best, seed=seed)
    if not isinstance(model, ContrastiveModel):
        raise ValueError(
            f"{path} is a run of {model.kind}: only those of contrastive.py have a space to evaluate"
        )
    return model


def evaluate(config: Config, model: ContrastiveModel, spec: str, bad_examples: BadExamples):
    """The scores of one run on one data set."""
    with bad_examples.recount():
        splits = open_splits_for_model(model, spec, config.input, bad_examples)
        if config.gap_correction is not None:
            model = model.correct_gap(splits.train, kind=config.gap_correction)
        return evaluate_space(
            model.embedding_functions, splits.train, splits.validation, splits.tests["test"], config.protocol
        )


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    run = Run.create(config.run_dir, config, tensorboard=False)
    bad_examples = BadExamples(config.input.on_bad_example, announce=run.print)
    names, data_names = distinct_names([pathlib.Path(path) for path in config.runs]), part_names(config.data)

    # Before anything is scored, because one of several runs or data sets may be missing.
    with timer("restore"):
        for path, spec in itertools.product(config.runs, config.data):
            check_data_set(load_space(path, config.best, config.seed), spec, config.input)

    scores = {data: {} for data in data_names}
    for name, path in zip(names, config.runs, strict=True):
        with timer("restore"):
            model = load_space(path, config.best, config.seed)
        for data, spec in zip(data_names, config.data, strict=True):
            with timer("evaluation"):
                scores[data][name] = evaluate(config, model, spec, bad_examples)
            run.print(panels.format_scores({data: {name: scores[data][name]}}, panels.HEADLINE))

    metrics = panels.flatten_scores(scores)
    title, details = "Trained spaces on data sets", f"{', '.join(names)} on {', '.join(data_names)}"
    with write_report(run, title, details, metrics, timer, bad_examples, intervals=scores) as report:
        panels.add_scores(report, scores)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
