"""Speech from text, in several voices.

    python experiments/speech_synthesis.py
    python experiments/speech_synthesis.py --recogniser runs/speech_recognition --vocoder runs/vocoder
    python experiments/speech_synthesis.py --text-encoder hf:PATH --encoder-lr-multiplier 0.1

With a run of speech_recognition.py the report has its word error rates on the synthesised speech, on the recordings and
on copy synthesis (the recordings' spectrograms, turned into audio by the vocoder).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import ClassVar

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_tokenizer, open_splits
from xmodal_jax.evaluation import speech
from xmodal_jax.evaluation.text import ReferenceTexts, source_modality
from xmodal_jax.experiment import evaluate_seeds, make_loader, start, subtitle, write_report
from xmodal_jax.inference.translators import load_recognizer
from xmodal_jax.inference.vocoder import load_vocoder
from xmodal_jax.models.speech import SpeechConfig, make_speech, precompute_speech
from xmodal_jax.report import figures
from xmodal_jax.report import speech as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags, StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig):
    """Speech from text."""

    input: DataFlags = DataOptions(train_size=5000, modalities=("text", "audio"), max_seconds=3.2)
    default_tokenizer: ClassVar = ("bpe", 260)  # bytes, which suit speech better than words
    steps: int = 2000
    batch_size: int = 16
    eval_every: int = 500
    examples: int = 200
    """Number of sentences of the test split that are synthesised."""
    unseen: bool = True
    """Whether to synthesise only sentences that are not among the training sentences."""
    recogniser: pathlib.Path | None = None
    """Directory of a run of speech_recognition.py, which transcribes the synthesised speech; None: no transcripts."""
    vocoder: pathlib.Path | None = None
    """Directory of a run of vocoder.py, which makes the sounds of the test; None: Griffin-Lim."""
    model: SpeechConfig = SpeechConfig()
    """Text encoder, decoder, spectrogram and vocoder."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Update rule and learning-rate schedule."""


def main(config: Config) -> None:
    config, run, timer, bad_examples, pretrained = start(config, smoke={"examples": 8})

    # Data: sentences and their speech, whose spectrogram, pitch and energy are computed once.
    features = config.model.features
    recognise = load_recognizer(config.recogniser, sample_rate=features.sample_rate)
    vocoder = config.vocoder and load_vocoder(config.vocoder, features, floor=config.model.floor)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        source_modality(splits.train, ("audio",))
        tokenize, captions = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer, known = tokenize.tokenizer, set(captions) if config.unseen else set()
        voices = splits.train.speaker_names or ("the only voice",)
        model = speech.with_statistics(config.model, splits.train, speakers=len(voices))
        run.replace_config(config := dataclasses.replace(config, model=model))
        to_frames = precompute_speech(model)
        loader = make_loader(config, splits.train, tokenize, bad_examples=bad_examples, once=to_frames)
        frames = to_frames(splits.train.batch([0]))["audio"].shape[1]
        sentences = ReferenceTexts(splits.tests["test"], tokenize.clean, limit=config.examples, exclude=known)
        examples, recorded = speech.read_recorded(sentences.source, config.examples, model)
        validation, validation_audio = speech.read_recorded(splits.validation, 24, model)

    # The method: durations are learned beside the frames.
    sizes = dict(vocab_size=tokenizer.vocab_size, length=tokenize.max_length, speakers=len(voices))
    method = pretrained.attach(make_speech(model, **sizes), tokenizer)
    optimizer = pretrained.set_learning_rates(config.optimizer, method)
    synthesize = speech.Synthesizer(model, tokenize, frames=frames, speakers=len(voices))

    def validate(params):
        """Mel distance to the recordings, and its negative, which is higher for better checkpoints."""
        distance = float(speech.mel_distances(synthesize.frames(params, validation), validation_audio).mean())
        return {"validation/mel_distance": distance, "validation/closeness": -distance}

    metadata = dict(length=tokenize.max_length, frames=frames, speakers=voices, tokenizer=tokenizer.files())
    result = fit(
        method, loader, config, optimizer, run, timer, evaluate=validate, monitor="validation/closeness",
        metadata=metadata | {"kind": "speech_synthesis", "source": "text", "target": "audio"},
    )  # fmt: skip

    # Test: sentences that do not occur in training, compared with the recordings and transcribed by the recogniser.
    vocoded = speech.copy_synthesis(recorded, model, frames=frames, vocoder=vocoder)

    def test(params):
        synthesized = synthesize(params, examples, vocoder=vocoder)
        comparison = speech.compare_speech(synthesized, recorded, model)
        utterances = {"recordings": recorded, "vocoded": vocoded, "test": synthesized}
        recognized = speech.recognize(recognise, sentences.texts, **utterances)
        return comparison.scores | recognized.rates, (synthesized, comparison, recognized.texts)

    metrics, (synthesized, comparison, transcripts) = evaluate_seeds(test, result, timer)
    if not run.writes:
        return

    title, details = "Text to speech", subtitle(config, result, f"{len(voices)} voices", shown="sounds")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        report.add_metrics(metrics, headline=[k for k in metrics if k.endswith(speech.HEADLINE)])
        tokens = [tokenizer.tokens(text, tokenize.max_length) for text in sentences.texts]
        shown = (synthesized, vocoded, recorded, comparison, transcripts, model)
        panels.add_speech(report, sentences.texts, tokens, *shown)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
