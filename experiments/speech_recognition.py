"""Speech to text, by attention, by CTC or by both.

    python experiments/speech_recognition.py
    python experiments/speech_recognition.py --model.objective ctc
    python experiments/speech_recognition.py --data folder:PATH --tokenizer bpe --vocab-size 260
    python experiments/speech_recognition.py --data folder:PATH --init-from runs/speech_recognition-20250131-101500

Only sentences that training never heard are scored (--no-unseen: all); the report also has every other way to write
that the trained model knows.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.splits import fit_tokenizer, open_splits, prepare_source
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerationConfig, TextGenerator, source_modality
from xmodal_jax.models.seq2seq import GenerationConfig, Seq2SeqConfig, make_seq2seq
from xmodal_jax.models.towers import Augment, spectrograms
from xmodal_jax.report import figures
from xmodal_jax.report import text as panels
from xmodal_jax.report.finish import finish
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.transfer.encoders import starting_point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextGenerationConfig):
    """Text from speech."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=8000, modalities=("text", "audio")
    )
    """How the data set is read."""
    steps: int = 900
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 300
    """Steps between evaluations on validation data; 0: only at the end."""
    unseen: bool = True
    """Score only sentences that training never heard."""
    model: Seq2SeqConfig = Seq2SeqConfig(objective="joint", augment=Augment(time_masks=2, frequency_masks=2))
    """Encoder, decoder and objective."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Optimizer and schedule."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = shrink(config)
    config, parts = starting_point(config)
    model = config.model
    run = Run.create(config.run_dir, config, resume=config.resume)

    # Data: sentences and their speech, of which the spectrogram is computed once.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        heard = source_modality(splits.train, ("audio",))
        tokenize, captions = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer = tokenize.tokenizer
        source, transform = prepare_source(
            splits.train, tokenize, limit=RESIDENT_LIMIT, once=spectrograms(model.features)
        )
        validation = ReferenceTexts(splits.validation, tokenize.clean)
        known = set(captions) if config.unseen else set()
        scripts = {
            name: ReferenceTexts(split, tokenize.clean, unlike=known) for name, split in splits.tests.items()
        }
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: an encoder with a decoder, a CTC head or both.
    sizes = dict(length=tokenize.max_length)
    method = make_seq2seq(model, heard, vocab_size=tokenizer.vocab_size, **sizes)
    method = parts.start(method, tokenizer, config.lora)
    optimizer = parts.optimize(config.optimizer, (heard, "decoder"), config)
    decodings = {"test": config.generation}
    decodings |= {
        how: GenerationConfig(how)
        for how in model.generation_methods
        if how != (config.generation.how or model.generation_methods[0])
    }
    write = TextGenerator(model, heard, tokenizer, decodings=decodings, seed=config.seed, **sizes)
    quick = next(way for way in ("ctc", "greedy", "test") if way in decodings)

    def validate(params):
        scores = validation.error_rates(write(params, validation.source, quick), "validation/")
        return scores | {"validation/word_accuracy": 1 - scores["validation/wer"]}

    metadata = {"source": heard, "target": "text", "shape": (), "tokenizer": tokenizer.files(), **sizes}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/word_accuracy", metadata=metadata,
    )  # fmt: skip

    # Test: every split, and on the hardest all other decodings to write.
    hardest = list(scripts)[-1]

    def test(params):
        metrics, written = {}, {}
        for name, script in scripts.items():
            written[name] = write(params, script.source, "test")
            metrics |= script.error_rates(written[name], f"{name}/")
        for way in decodings:
            if way != "test":
                said = write(params, scripts[hardest].source, way)
                metrics |= scripts[hardest].error_rates(said, f"{hardest}_{way}/")
        return metrics, written[hardest]

    with timer("evaluation"):
        tested = [test(params) for params in result.params]
        metrics = stack_scores([scores for scores, _ in tested])
    if not run.writes:
        return

    with timer("report"):
        seeds = f" · {config.seeds} seeds, transcripts of the first" if config.seeds > 1 else ""
        report = Report("Speech to text", f"{config.data} · {model.objective} · {result.steps} steps{seeds}")
        headline = [k for k in metrics if k.endswith("/wer")][:6]
        panels.add_scores(report, metrics, headline)
        script = scripts[hardest]
        quality, marks = panels.transcript_quality(script, tested[0][1])
        panels.add_generated_texts(report, script, heard, quality, marks, measure="words right")
        panels.add_attention(report, write, result.params[0], script, tested[0][1])
        report.add_figure("Curves", figures.curves(run.read_metrics()))
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps, parameters=trees.count(result.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
