"""Classifies files by a trained run: one of contrastive.py by any classes (zero-shot), one of fusion.py by its own.

    python experiments/classify.py RUN photo.png --classes cat dog bird
    python experiments/classify.py RUN photos/ --classes cat dog --prompts "a photo of a {}" "a small {}"

It prints the class of each file and its score, and writes the scores of all classes to RUN_DIR/results.json and
RUN_DIR/report.html. A folder stands for all its pictures, sounds or videos. A run that was trained on classes needs no
--classes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.experiment import write_report
from xmodal_jax.inference.classes import add_classes, likeliest_classes, to_records
from xmodal_jax.inference.loading import load
from xmodal_jax.inference.queries import find_files, keep_readable
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import Run, write_atomic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The classes of files."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of a run, or the folder that it was exported to."""
    files: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Pictures, sounds or videos (all of one kind), or folders of them."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for a run that was not trained on classes."""
    prompts: tuple[str, ...] = ()
    """Descriptions of a class, with {} where its name goes, which are averaged; none: the name alone."""
    top: int = 3
    """Number of classes that are shown for each file, the likeliest first."""
    best: bool = False
    """Whether to take the checkpoint that is best by validation, not the newest."""
    seed: int | None = None
    """Seed of the trained model, if the run has several; None: the run's only seed."""
    on_bad_example: OnBadExample = "stop"
    """What to do with a file that cannot be read: stop, or skip, count and list it."""
    run_dir: pathlib.Path | None = None
    """Directory to write the results to; None: ``runs/classify-<time>``."""

    def __post_init__(self):
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")


def main(config: Config) -> None:
    runtime.configure()
    timer, bad_examples = runtime.Timer(), BadExamples(config.on_bad_example)
    with timer("restore"):
        model = load(config.run, best=config.best, seed=config.seed)
    if not hasattr(model, "classify"):
        raise ValueError(
            f"{config.run} is a run of {model.kind}, which has no classes and no texts to describe them"
        )
    takes_classes = "classes" in inspect.signature(model.classify).parameters
    if takes_classes != bool(config.classes):
        raise ValueError(
            "--classes: name the classes, of which one is chosen for each file"
            if takes_classes
            else f"--classes: {config.run} has its own, leave them out"
        )
    if config.prompts and not takes_classes:
        raise ValueError(f"--prompts: {config.run} has classes of its own, leave them out")
    options = {"classes": config.classes} if takes_classes else {}
    options |= {"prompts": config.prompts} if config.prompts else {}

    with timer("classify"):
        modality, files = find_files(config.files, model.format.modalities)
        files = keep_readable(files, model.format, modality, bad_examples)
        results = model.classify(**options, **{modality: files})
    if takes_classes:
        results = {"class": results}
    run = Run.create(config.run_dir, config, tensorboard=False)
    write_atomic(run.path / "results.json", json.dumps(to_records(files, results), indent=1) + "\n")
    likeliest = {target: likeliest_classes(result, config.top) for target, result in results.items()}
    for k, file in enumerate(files):
        for target, classes in likeliest.items():
            name = str(file) if len(results) == 1 else f"{file}, {target}"
            print(f"{name}: " + ", ".join(f"{label} {score:.3f}" for label, score in classes[k]))

    metrics = {"classify/files": len(files), "classify/targets": len(results)}
    title, details = "Classes", f"{len(files)} files by {config.run}"
    with write_report(run, title, details, metrics, timer, bad_examples) as report:
        add_classes(report, model.format, modality, files, results, likeliest)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
