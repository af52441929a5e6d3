"""What to do with a run that has ended: the last lines on screen, each a command.

::

    look at it   python -m webbrowser file:///home/me/runs/captioning-1/report.html
    go on        python experiments/captioning.py --run-dir runs/captioning-1 --resume --steps 2000
    use it       python experiments/translate.py --from FILE --to text --runs runs/captioning-1

`NEXT_STEPS` says what each kind of run can do; a line more is an entry more.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax.train.checkpoint import newest_checkpoint, read_metadata
from xmodal_jax.train.run import Run, experiment_file

MAX_LINES = 5


class EndedRun(NamedTuple):
    """What the commands depend on."""

    path: Path
    """The run's directory."""
    config: Any
    """The experiment's configuration."""
    experiment: str
    """Name of the experiment's script, without ``.py``."""
    seeds: Sequence[int] = ()
    """The seeds that were trained to the end; empty if the experiment trains nothing."""
    page: str = "report.html"
    """Name of its report's file."""


class NextStep(NamedTuple):
    """A line: what for, and the command."""

    purpose: str
    """Two or three words."""
    words: Callable[[EndedRun], Sequence[str] | None]
    """``words(run)``: the words of the command after ``python``, where a script of this project stands without its
    folder; None: this run cannot do it. What the reader fills in is in capitals."""


def _look(run: EndedRun) -> Sequence[str]:
    return "-m", "webbrowser", (run.path / run.page).resolve().as_uri()


def _go_on(run: EndedRun) -> Sequence[str] | None:
    """More steps; of a ``--smoke`` run, which always has the same few, the run in full."""
    if run.config.smoke:
        words = without_flags(sys.argv[1:], {"--smoke": 0, "--resume": 0, "--run-dir": 1})
        return f"{run.experiment}.py", *words
    return (
        f"{run.experiment}.py", "--run-dir", str(run.path), "--resume", "--steps", str(2 * run.config.steps),
    )  # fmt: skip


def _export(run: EndedRun) -> Sequence[str]:
    """All parameters as safetensors; of several seeds, those of the first."""
    seed = ("--seed", str(run.seeds[0])) if len(run.seeds) > 1 else ()
    return "export.py", str(run.path), f"{run.path}-export", *seed


def _translate(source: str, target: str) -> NextStep:
    """``translate.py``, which takes runs of one seed. Of a run that has no tokenizer nothing is proposed: it reads and
    writes no text, such as a GAN of class labels."""

    def words(run: EndedRun) -> Sequence[str] | None:
        if len(run.seeds) > 1 or not checkpoint_metadata(run.path).get("tokenizer"):
            return None
        return "translate.py", "--from", source, "--to", target, "--runs", str(run.path)

    return NextStep("use it", words)


def _embed(run: EndedRun) -> Sequence[str]:
    """The embeddings of a data set, which search.py then searches; of several seeds, by the first."""
    return "embed.py", str(run.path), _data(run), *_first_seed(run)


def _evaluate(run: EndedRun) -> Sequence[str]:
    """The scores on a data set by the standard protocols; of several seeds, of the first."""
    return "evaluate.py", str(run.path), "--data", _data(run), *_first_seed(run)


def _data(run: EndedRun) -> str:
    """The run's data set; of a mixture a word in its place."""
    return run.config.data if isinstance(run.config.data, str) else "DATA"


def _first_seed(run: EndedRun) -> Sequence[str]:
    """The flag of a run's first seed, where it has several."""
    return ("--seed", str(run.seeds[0])) if len(run.seeds) > 1 else ()


def _demo(run: EndedRun) -> Sequence[str]:
    """The page on which the run is tried; of several seeds, the first."""
    return "demo.py", str(run.path), *_first_seed(run)


def _train(run: EndedRun) -> Sequence[str]:
    """Training on the data set that a page was made of, with the same options of the data."""
    data = run.config.data
    names = [data] if isinstance(data, str) else list(data)
    words = without_flags(sys.argv[1:], {"--run-dir": 1, "--examples": 1, "--shown": 1, "--seed": 1})
    options = words[len(names) :] if words[: len(names)] == names else []
    return "contrastive.py", "--data", *names, *options


LOOK = NextStep("look at it", _look)
GO_ON = NextStep("go on", _go_on)
EXPORT = NextStep("export it", _export)
COMPARE = NextStep("compare", lambda run: ("compare.py", str(run.path), "OTHER_RUN"))
NEXT_STEPS: dict[str, tuple[NextStep, ...]] = {
    "captioning": (LOOK, GO_ON, _translate("FILE", "text"), EXPORT, COMPARE),
    "compare": (LOOK,),
    "classify": (LOOK,),
    "contrastive": (LOOK, GO_ON, NextStep("search", _embed), NextStep("evaluate", _evaluate), EXPORT),
    "data": (LOOK, NextStep("train on it", _train)),
    "evaluate": (LOOK,),
    "fusion": (LOOK, GO_ON, _translate("FILE", "text"), EXPORT, COMPARE),
    "gan_zoo": (LOOK, GO_ON, COMPARE),
    "multimodal_flow": (LOOK, GO_ON, _translate("FILE", "text"), EXPORT, COMPARE),
    "multimodal_vae": (LOOK, GO_ON, _translate("FILE", "text"), EXPORT, COMPARE),
    "search": (LOOK,),
    "speech_recognition": (LOOK, GO_ON, _translate("FILE", "text"), EXPORT, COMPARE),
    "speech_synthesis": (LOOK, GO_ON, _translate("TEXT", "speech"), EXPORT, COMPARE),
    "text_to_image_flow": (LOOK, GO_ON, _translate("TEXT", "image"), EXPORT, COMPARE),
    "text_to_image_gan": (LOOK, GO_ON, _translate("TEXT", "image"), EXPORT, COMPARE),
    "translate": (LOOK,),
    "vae": (LOOK, GO_ON, NextStep("try it", _demo), EXPORT, COMPARE),
    "vocoder": (LOOK, GO_ON, EXPORT, COMPARE),
}
"""What runs of an experiment can do next, at most `MAX_LINES`, by the name of its script."""


def checkpoint_metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a run's newest checkpoint; empty if it has none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_metadata(newest_checkpoint(folder))
    return {}


def without_flags(words: Sequence[str], flags: Mapping[str, int]) -> list[str]:
    """The words of a command line without some flags. ``flags``: the number of values that follow each of them."""
    remaining, skip = [], 0
    for word in words:
        name, equals, _ = word.partition("=")
        name = name.replace("_", "-")
        if name in flags:
            skip = 0 if equals else flags[name]
        elif skip:
            skip -= 1
        else:
            remaining.append(word)
    return remaining


def next_steps(run: Run, seeds: Sequence[int] = (), *, page: str = "report.html") -> list[str]:
    """The lines that say what to do with a run that has ended, as `NEXT_STEPS` has them for its experiment.

    Args:
      run: the run; one that is part of another run has no lines.
      seeds: the seeds that were trained to the end.
      page: name of the report's file.
    """
    if run.path != run.outermost_path:
        return []
    file = experiment_file(run.config)
    ended = EndedRun(run.path, run.config, file.stem, seeds, page)
    folder, here = file.resolve().parent, Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    commands = []
    for step in NEXT_STEPS.get(file.stem, (LOOK,)):
        words = step.words(ended)
        if words is not None:
            first, *others = words
            script = os.fspath(folder / first) if first.endswith(".py") else first
            commands.append((step.purpose, shlex.join(["python", script, *others])))
    width = max(len(purpose) for purpose, _ in commands)
    return [f"{purpose:{width}}  {command}" for purpose, command in commands]
