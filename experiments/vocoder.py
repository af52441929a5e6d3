"""A neural vocoder: spectrograms to sound, compared with Griffin-Lim.

    python experiments/vocoder.py
    python experiments/vocoder.py --data folder:PATH --recogniser runs/speech_recognition-20250131-101500

It needs recordings only, no texts. STOI and PESQ need ``pip install -r requirements-speech.txt``. With a run of
speech_recognition.py the report has its word error rates, for data with captions.
"""

from __future__ import annotations

import dataclasses
import pathlib

from xmodal_jax.core.checks import check_at_least
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import open_splits
from xmodal_jax.evaluation import speech
from xmodal_jax.evaluation.text import source_modality
from xmodal_jax.evaluation.vocoder import NeuralVocoder, real_time_factor, vocoder_scores
from xmodal_jax.experiment import evaluate_seeds, make_loader, start, subtitle, write_report
from xmodal_jax.inference.translators import load_recognizer
from xmodal_jax.metrics.perceptual import missing_score_packages
from xmodal_jax.models.speech import SpeechConfig
from xmodal_jax.models.vocoder import VocoderConfig, make_vocoder
from xmodal_jax.report import figures
from xmodal_jax.report import vocoder as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags, RunConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Sound from spectrograms."""

    input: DataFlags = DataOptions(train_size=5000, modalities=("text", "audio"), max_seconds=3.2)
    steps: int = 2000
    batch_size: int = 16
    eval_every: int = 500
    examples: int = 48
    """Number of recordings of the test split that the vocoders are compared on."""
    recogniser: pathlib.Path | None = None
    """Directory of a run of speech_recognition.py, which transcribes what the vocoders make; None: no transcripts."""
    model: VocoderConfig = VocoderConfig()
    """Network, spectrogram and losses."""
    optimizer: Optimizer = Optimizer(name="adamw", learning_rate=2e-3)
    """Update rule and learning-rate schedule."""


def main(config: Config) -> None:
    check_at_least(config, 1, "examples")
    config, run, timer, bad_examples, _ = start(config, smoke={"examples": 4})

    # Data: recordings of the training split, and the first ones of the others.
    model, rate = config.model, config.model.features.sample_rate
    settings = SpeechConfig(
        features=model.features, floor=model.floor
    )  # of the spectrograms, for Griffin-Lim
    recognise = load_recognizer(config.recogniser, sample_rate=rate)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        source_modality(splits.train, ("audio",))
        loader = make_loader(config, splits.train, bad_examples=bad_examples)
        examples = speech.first_examples(splits.tests["test"], config.examples)
        recorded = speech.recordings_of(examples, settings)
        validation = speech.recordings_of(speech.first_examples(splits.validation, 24), settings)
        frames = 1 + examples.arrays["audio"].shape[1] // model.features.hop

    vocoder = NeuralVocoder(model, frames=frames, batch_size=8)

    def validate(params):
        """Scores on validation recordings; the mel distance's negative is higher for better checkpoints."""
        scores = vocoder_scores(vocoder(params, validation), validation, model, prefix="validation/")
        return scores | {"validation/closeness": -scores["validation/mel_distance"]}

    result = fit(
        make_vocoder(model), loader, config, config.optimizer, run, timer, evaluate=validate,
        monitor="validation/closeness", metadata={"kind": "vocoder"},
    )  # fmt: skip

    # Test: the same recordings through the vocoder and through Griffin-Lim.
    few = speech.Utterances(recorded.waves[:8], recorded.frames[:8])
    griffin_lim = speech.GriffinLimVocoder(settings, frames=frames, batch_size=8)
    baseline = griffin_lim(recorded)
    baseline_scores = vocoder_scores(baseline, recorded, model, prefix="griffin_lim/")
    baseline_scores["griffin_lim/real_time_factor"] = real_time_factor(griffin_lim, few, sample_rate=rate)
    texts = [str(text) for text in examples.arrays.get("caption", ())]

    def test(params):
        vocoded = vocoder(params, recorded)
        scores = baseline_scores | vocoder_scores(vocoded, recorded, model, prefix="test/")
        scores["test/real_time_factor"] = real_time_factor(
            lambda x: vocoder(params, x), few, sample_rate=rate
        )
        utterances = {"recordings": recorded, "griffin_lim": baseline, "test": vocoded}
        recognized = speech.recognize(recognise if texts else None, texts, **utterances)
        return scores | recognized.rates, vocoded

    metrics, vocoded = evaluate_seeds(test, result, timer)
    if not run.writes:
        return

    title, details = "Neural vocoder", subtitle(config, result, shown="sounds")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        headline = [k for k in metrics if k.endswith(("/pesq", "/stoi", "/mel_distance", "/wer"))]
        report.add_metrics(metrics, headline=headline)
        if missing := missing_score_packages():
            report.add_text(
                "Scores left out", f"Not installed: {', '.join(missing)} (requirements-speech.txt)."
            )
        sounds = {"as recorded": recorded, "Griffin-Lim": baseline, "vocoder": vocoded}
        panels.add_vocoders(report, sounds, model)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
