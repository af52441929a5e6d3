"""What training would see of a data set: counts, lengths, what is missing or doubled, and a page to look at.

    python experiments/data.py shapes
    python experiments/data.py folder:PATH
    python experiments/data.py parquet:PATH --columns image=pixel_values text=caption

It opens the splits as a training run does, prints what is in them, and writes RUN_DIR/report.html with examples to see
and to hear, histograms, and what to look at. Examples that cannot be used are left out and listed. The same data set
and options then go to a training script: contrastive.py --data folder:PATH.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.mixture_splits import DataSpec, describe_spec
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_transforms, open_splits
from xmodal_jax.data.statistics import describe
from xmodal_jax.experiment import write_report
from xmodal_jax.report import data as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataConfig, DataFlags
from xmodal_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """What training would see of a data set."""

    data: Annotated[DataSpec, tyro.conf.Positional]
    """Data set, in one of the forms of ``--data`` of the other scripts; several are mixed."""
    input: DataFlags = DataOptions(train_size=2000, on_bad_example="skip", check_files=True)
    examples: int = 10_000
    """Number of examples of each split whose contents are read, evenly spaced; all examples are counted."""
    shown: int = 24
    """Number of random training examples on the page."""
    seed: int = 0
    """Random seed that chooses the examples on the page."""
    run_dir: pathlib.Path | None = None
    """Directory to write the page to; None: ``runs/data-<time>``."""

    def __post_init__(self):
        for name in ("examples", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


def main(config: Config) -> None:
    runtime.configure()
    timer, rate = runtime.Timer(), config.input.sample_rate
    run = Run.create(config.run_dir, config, tensorboard=False)
    bad_examples = BadExamples(config.input.on_bad_example, announce=run.print)

    # The splits as a training run opens them, the tokenizer, which tells how many captions are cut, and standard units.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        sources = {"train": splits.train, "validation": splits.validation, **splits.tests}
        prepare = fit_transforms(splits.train, bad_examples, config.text_options)
        if prepare.tokenize:
            run.print(
                f"tokenizer: {prepare.vocab_size} tokens; texts have up to {prepare.tokenize.max_length}"
            )

    with timer("statistics"):
        statistics = {
            name: describe(source, limit=config.examples, sample_rate=rate, progress=config.input.progress)
            for name, source in sources.items()
        }
    for table in (panels.count_table, panels.length_table, panels.shared_table):
        run.print(panels.format_table(*table(statistics)))

    metrics = {f"{name}/examples": split.examples for name, split in statistics.items()}
    metrics |= {f"{name}/conspicuous": len(split.conspicuous) for name, split in statistics.items()}
    metrics["data/bad_examples"] = len(bad_examples)
    with write_report(run, "Data", describe_spec(config.data), metrics, timer, bad_examples) as report:
        report.add_cards(metrics, [*(f"{name}/examples" for name in statistics), "data/bad_examples"])
        panels.add_counts(report, statistics)
        shown = dict(sample_rate=rate, standardise=prepare.standardise)
        panels.add_contact_sheet(report, splits.train, count=config.shown, seed=config.seed, **shown)
        panels.add_features(report, prepare.standardise)
        panels.add_statistics(report, statistics)
        panels.add_conspicuous(report, sources, statistics, **shown)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
