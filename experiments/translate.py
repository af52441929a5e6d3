"""Translates files or a text from one modality into another, by trained runs; several runs make a chain.

    python experiments/translate.py --from photo.png --to text --runs runs/captioning
    python experiments/translate.py --from clip.wav --to text --runs runs/speech_recognition
    python experiments/translate.py --from "a red circle" --to speech --runs runs/speech_synthesis
    python experiments/translate.py --from "a red circle" --to image --copies 8 --runs runs/text_to_image_gan
    python experiments/translate.py --from photos/ --to speech --runs runs/captioning runs/speech_synthesis

The results are in the run's directory, under `out/`, and in its report.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Literal

import numpy as np
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.experiment import write_report
from xmodal_jax.inference.translate import apply_chain, find_chain, find_inputs, read_inputs, write_outputs
from xmodal_jax.inference.translators import load_translator
from xmodal_jax.models.seq2seq import Generation
from xmodal_jax.report.page import Audio
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """From one modality into another."""

    source: Annotated[str, tyro.conf.arg(name="from")]
    """A file (picture, sound, video, or .txt with a text per line), a folder of such files, or the text itself."""
    to: Literal["text", "speech", "image"]
    """Modality to translate into."""
    runs: tuple[pathlib.Path, ...]
    """Trained runs of captioning.py, speech_recognition.py, speech_synthesis.py and text_to_image_gan.py."""
    copies: int = 1
    """Number of translations of each input. Only generated pictures differ between them, by their noise."""
    seed: int = 0
    """Random seed of the noise that pictures are generated from."""
    speaker: str | None = None
    """Name of the voice, one of the voices of the run that synthesises speech; None: the first voice."""
    speed: float = 1.0
    """Speed of synthesised speech; above 1 is faster."""
    generation: Generation | None = None
    """How text is generated; None: as configured in the run that generates text."""
    on_bad_example: OnBadExample = "stop"
    """What to do with a file that cannot be read: stop, or skip, count and list it."""
    run_dir: pathlib.Path | None = None
    """Directory of this run; None: ``runs/translate-<time>``."""
    smoke: bool = False
    """No effect; accepted because the other experiments have it."""

    def __post_init__(self):
        if self.copies < 1:
            raise ValueError(f"--copies must be at least 1, got {self.copies}")


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    bad_examples = BadExamples(config.on_bad_example)
    target = "audio" if config.to == "speech" else config.to

    with timer("restore"):
        source_inputs = find_inputs(config.source)
        options = dict(generation=config.generation, speed=config.speed, noise_seed=config.seed)
        translators = [load_translator(run, bad_examples=bad_examples, **options) for run in config.runs]
        steps = find_chain(translators, source_inputs.modality, target)
    run = Run.create(config.run_dir, config)

    with timer("data"):
        names, inputs = read_inputs(source_inputs, steps[0], bad_examples)
        if config.copies > 1:
            names = [f"{name}-{k}" for name in names for k in range(1, config.copies + 1)]
            inputs = [x for x in inputs for _ in range(config.copies)]
    with timer("translate"):
        stages = apply_chain(steps, inputs, speaker=config.speaker)
    write_outputs(run.path / "out", names, stages[-1], sample_rate=steps[-1].sample_rate)

    metrics = {"translate/inputs": len(names), "translate/seconds": timer.seconds["translate"]}
    run.log(1, metrics)
    for name, output in list(zip(names, stages[-1], strict=True))[:20]:
        if isinstance(output, str):
            print(f"{name}: {output}")
    titles = [source_inputs.modality, *(step.target for step in steps)]
    title, details = " to ".join(titles), f"{len(names)} from {config.source}"
    with write_report(run, title, details, metrics, timer, bad_examples) as report:
        sample_rates = [steps[0].sample_rate, *(step.sample_rate for step in steps)]

        def cell(example, sample_rate):
            """A waveform with its sample rate; a text or an image as it is."""
            is_waveform = isinstance(example, np.ndarray) and example.ndim == 1
            return Audio(example, sample_rate) if is_waveform else example

        rows = []  # an input, and what each step makes of it
        for k, name in enumerate(names):
            stage_rates = zip(stages, sample_rates, strict=True)
            rows.append((name, *(cell(stage[k], rate) for stage, rate in stage_rates)))
        report.add_table("Translations", ("input", *titles), rows)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
