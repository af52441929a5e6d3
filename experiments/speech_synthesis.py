"""Speech from text, in several voices.

    python experiments/speech_synthesis.py
    python experiments/speech_synthesis.py --recogniser runs/speech_recognition-20250131-101500
    python experiments/speech_synthesis.py --data folder:PATH
    python experiments/speech_synthesis.py --text-encoder hf:PATH --encoder-lr-multiplier 0.1

With a run of speech_recognition.py the report says how well it understands the synthesised speech, and beside it the
recordings and what the vocoder makes of their own spectrograms.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import numpy as np
import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.splits import fit_tokenizer, open_splits, prepare_source
from xmodal_jax.evaluation import speech as speaking
from xmodal_jax.evaluation.text import ReferenceTexts, source_modality
from xmodal_jax.inference.load import load_translator
from xmodal_jax.models.speech import SpeechConfig, frames_of, make_speech
from xmodal_jax.report import figures
from xmodal_jax.report import speech as panels
from xmodal_jax.report.finish import finish
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import StartConfig, shrink
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.transfer.encoders import starting_point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    """Speech from text."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=5000, modalities=("text", "audio"), max_seconds=3.2
    )
    """How the data set is read."""
    tokenizer: str = "bpe"
    """As elsewhere; letters suit speech, which a vocabulary of 260 bytes gives."""
    vocab_size: int | None = 260
    """Size of a trained tokenizer's vocabulary."""
    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 16
    """Examples per step, over all devices together."""
    eval_every: int = 500
    """Steps between evaluations on validation data; 0: only at the end."""
    examples: int = 200
    """Sentences of the test split that are synthesised."""
    unseen: bool = True
    """Only sentences that training never heard."""
    recogniser: pathlib.Path | None = None
    """A run of speech_recognition.py that listens to the synthesised speech."""
    model: SpeechConfig = SpeechConfig()
    """Text encoder, decoder, spectrogram and vocoder."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Optimizer and schedule."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = dataclasses.replace(shrink(config), examples=8)
    config, encoders = starting_point(config)
    model = config.model
    run = Run.create(config.run_dir, config, resume=config.resume)
    recognise = load_translator(config.recogniser).apply if config.recogniser else None

    # Data: sentences and their speech, of which the spectrogram is computed once.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        source_modality(splits.train, ("audio",))
        tokenize, captions = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer = tokenize.tokenizer
        framed = frames_of(model.features, model.floor)
        source, transform = prepare_source(splits.train, tokenize, limit=RESIDENT_LIMIT, once=framed)
        names = splits.train.speaker_names or ("the only voice",)
        frames = framed(splits.train.batch(np.arange(1)))["audio"].shape[1]
        known = set(captions) if config.unseen else set()
        script = ReferenceTexts(splits.tests["test"], tokenize.clean, limit=config.examples, unlike=known)
        examples = speaking.first_examples(script.source, config.examples)
        few = speaking.first_examples(splits.validation, 24)
        true, few_true = (speaking.recorded(some, model) for some in (examples, few))
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: durations are learned beside the frames.
    sizes = dict(vocab_size=tokenizer.vocab_size, length=tokenize.max_length, speakers=len(names))
    method = encoders.start(make_speech(model, **sizes), tokenizer, config.lora)
    optimizer = encoders.optimize(config.optimizer, ("text",), config)
    speak = speaking.Synthesizer(model, tokenize, frames=frames, speakers=len(names))

    def validate(params):
        made = speak(params, few)
        distance = float(speaking.mel_distances(made, few_true).mean())
        return {"validation/mel_distance": distance, "validation/closeness": -distance}

    metadata = {"source": "text", "target": "audio", "frames": frames, "speakers": names}
    metadata |= {"tokenizer": tokenizer.files(), "length": tokenize.max_length}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/closeness", metadata=metadata,
    )  # fmt: skip

    # Test: sentences that training never heard; how near to the recording, and what another run understands.
    vocoded = speaking.Vocoder(model, frames=frames)(true)

    def test(params):
        made = speak(params, examples)
        apart = speaking.mel_distances(made, true)
        metrics = speaking.synthesis_scores(made, true, apart)
        heard = speaking.recognition_scores(
            recognise, script.texts, recordings=true, vocoded=vocoded, test=made
        )
        return metrics | heard.rates, made, apart, heard.texts

    with timer("evaluation"):
        tested = [test(params) for params in result.params]
        metrics = stack_scores([scores for scores, *_ in tested])
    if not run.writes:
        return

    with timer("report"):
        _, made, apart, heard = tested[0]
        seeds = f" · {config.seeds} seeds, sounds of the first" if config.seeds > 1 else ""
        report = Report(
            "Text to speech", f"{len(names)} voices · {config.data} · {result.steps} steps{seeds}"
        )
        headline = [k for k in metrics if k.endswith(("/wer", "/mel_distance", "/length_error"))]
        report.add_metrics(metrics, headline=headline)
        tokens = [tokenizer.tokens(text) for text in script.texts]
        panels.add_speech(report, script.texts, tokens, made, vocoded, true, apart, heard, model)
        report.add_figure("Curves", figures.curves(run.read_metrics()))
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps, parameters=trees.count(result.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
