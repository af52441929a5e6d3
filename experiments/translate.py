"""Translates files or a text from one modality into another, by trained runs; several runs make a chain.

    python experiments/translate.py --from photo.png --to text --runs runs/captioning
    python experiments/translate.py --from lecture.flac --to text --subtitles --runs runs/speech_recognition
    python experiments/translate.py --from "a red circle" --to speech --runs runs/speech_synthesis --pitch 3
    python experiments/translate.py --from "a red circle" --to image --copies 8 --runs runs/text_to_image_gan
    python experiments/translate.py --from photos/ --to speech --runs runs/captioning runs/speech_synthesis
    python experiments/translate.py --from photo.png --with "what colour is the star?" --to text --runs runs/fusion
    python experiments/translate.py --from sketch.png --as image_sketch --to image --runs runs/multimodal_flow
    python experiments/translate.py --from "a red circle" --to image --candidates photos/ --runs runs/contrastive

The results are in the run's directory, under `out/`, and in its report.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples, OnBadExample
from xmodal_jax.experiment import write_report
from xmodal_jax.inference import translate
from xmodal_jax.inference.translators import TranslationOptions, VoiceOptions, load_translators
from xmodal_jax.models.seq2seq import Generation
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.run import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """From one modality into another."""

    source: Annotated[str, tyro.conf.arg(name="from")]
    """A file (picture, sound, video, or .txt with a text per line), a folder of such files, or the text itself."""
    to: str
    """Modality to translate into: text, speech, image, or another one of the runs, such as image_sketch."""
    source_modality: Annotated[str | None, tyro.conf.arg(name="as")] = None
    """Modality of the inputs where the runs have several of their kind, such as image_sketch; None: by the file."""
    runs: tuple[pathlib.Path, ...]
    """Trained runs of any kind. A classifier (fusion.py) answers by text, an autoencoder generates each of its
    modalities from the others, a shared embedding space (contrastive.py) finds the nearest of --candidates."""
    further_inputs: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Further inputs for a run of several modalities, each a file or a text, such as the question about a picture."""
    candidates: pathlib.Path | None = None
    """Texts (a file with one per line), a folder of files or an index of embed.py; contrastive.py finds the nearest."""
    copies: int = 1
    """Number of translations of each input, which differ if they are generated from noise or from sampled latents."""
    seed: int = 0
    """Random seed of the noise that pictures are generated from, and of sampled latents."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of the class of all inputs, for a conditional autoencoder (vae.py --model cvae)."""
    speaker: str | None = None
    """Name of the voice, one of the voices of the run that synthesises speech; None: the first voice."""
    voice: Annotated[VoiceOptions, tyro.conf.arg(name="")] = VoiceOptions()
    """How synthesised speech sounds."""
    generation: Generation | None = None
    """How text is generated; None: as configured in the run that generates text."""
    subtitles: bool = False
    """Whether transcripts of speech are also written as subtitles (.srt, .vtt) and with the times of words (.json)."""
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
    timer, bad_examples = runtime.Timer(), BadExamples(config.on_bad_example)
    target = "audio" if config.to == "speech" else config.to
    with timer("restore"):
        source_inputs = translate.find_inputs(config.source, config.source_modality)
        further = tuple(map(translate.find_further_input, config.further_inputs))
        candidates = None if config.candidates is None else translate.find_candidates(config.candidates)
        args = (config.generation, config.voice, config.seed, config.copies > 1)
        options = TranslationOptions(*args, further, candidates, config.class_name, config.subtitles)
        loaded = [load_translators(path, options, bad_examples=bad_examples) for path in config.runs]
        translators = [translator for of_run in loaded for translator in of_run]
        constraints = dict(class_name=config.class_name, times=config.subtitles, voice=config.voice)
        steps = translate.find_chain(
            translators, source_inputs.modality, target, further_inputs=further, **constraints
        )
    run = Run.create(config.run_dir, config)
    with timer("data"):
        names, inputs = translate.read_inputs(source_inputs, steps[0], bad_examples)
        if config.copies > 1:
            names = [f"{name}-{k}" for name in names for k in range(1, config.copies + 1)]
            inputs = [x for x in inputs for _ in range(config.copies)]
    with timer("translate"):
        stages = translate.apply_chain(steps, inputs, speaker=config.speaker)
    rates = [steps[0].sample_rate, *(step.sample_rate for step in steps)]
    titles = [source_inputs.modality, *(step.target for step in steps)]
    translate.write_outputs(run.path / "out", names, stages[-1], sample_rate=rates[-1], modality=titles[-1])
    translate.write_subtitles(run.path / "out", names, stages[1])  # of texts with times

    run.log(1, metrics := {"translate/inputs": len(names), "translate/seconds": timer.seconds["translate"]})
    for name, output in list(zip(names, stages[-1], strict=True))[:20]:
        if isinstance(output, str | pathlib.Path):
            print(f"{name}: {output}")
    title, details = " to ".join(titles), f"{len(names)} from {config.source}"
    with write_report(run, title, details, metrics, timer, bad_examples) as report:
        rows = translate.table_rows(names, stages, titles, rates)  # an input, and what each step makes of it
        report.add_table("Translations", ("input", *titles), rows)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
