"""Captions of pictures and videos.

    python experiments/captioning.py
    python experiments/captioning.py --modalities text video
    python experiments/captioning.py --data folder:PATH --modalities text image
    python experiments/captioning.py --model.contrastive-weight 0.5

On the embedded data set captions are also read back: which factors of the scene do they say right?
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
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.evaluation.text import (
    ReferenceTexts,
    TextGenerationConfig,
    TextGenerator,
    retrieval,
    source_modality,
)
from xmodal_jax.models.seq2seq import GenerationConfig, make_seq2seq
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

CURVES = (
    "train/loss",
    "train/cross_entropy",
    "train/grad_norm",
    "validation/factor_accuracy",
    "validation/cider",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextGenerationConfig):
    """Text about a picture or a video."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=20_000, modalities=("text", "image")
    )
    """How the data set is read."""
    steps: int = 900
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 300
    """Steps between evaluations on validation data; 0: only at the end."""
    gallery: int = 500
    """With --model.contrastive-weight: test examples among which retrieval searches, each of another meaning."""
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

    # Data: captions, and what they are about.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        seen = source_modality(splits.train, ("image", "video"))
        tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer = tokenize.tokenizer
        source, transform = prepare_source(splits.train, tokenize, limit=RESIDENT_LIMIT)
        shape = splits.train.batch([0])[seen].shape[1:]
        validation = ReferenceTexts(splits.validation, tokenize.clean)
        scripts = {name: ReferenceTexts(split, tokenize.clean) for name, split in splits.tests.items()}
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: an encoder and a decoder.
    sizes = dict(length=tokenize.max_length)
    method = make_seq2seq(model, seen, vocab_size=tokenizer.vocab_size, **sizes)
    method = parts.start(method, tokenizer, config.lora)
    optimizer = parts.optimize(config.optimizer, (seen, "decoder"), config)
    decodings = {"greedy": GenerationConfig("greedy"), "test": config.generation}
    write = TextGenerator(model, seen, tokenizer, decodings=decodings, seed=config.seed, **sizes)

    def validate(params):
        return validation.caption_scores(write(params, validation.source, "greedy"), "validation/")

    metadata = {"source": seen, "target": "text", "shape": shape, "tokenizer": tokenizer.files(), **sizes}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/cider", metadata=metadata,
    )  # fmt: skip

    # Test: what is written about every split, and greedily about the first.
    def test(params):
        written = {name: write(params, script.source, "test") for name, script in scripts.items()}
        greedy = write(params, scripts["test"].source, "greedy")
        metrics = {}
        for name, script in scripts.items():
            metrics |= script.caption_scores(written[name], f"{name}/")
        if model.contrasts:
            metrics |= retrieval(
                method, params, evaluate.Gallery(splits.tests["test"], config.gallery), tokenize
            )
        return metrics | scripts["test"].caption_scores(greedy, "greedy/"), written["test"]

    with timer("evaluation"):
        tested = [test(params) for params in result.params]
        metrics = stack_scores([scores for scores, _ in tested])
    if not run.writes:
        return

    with timer("report"):
        seeds = f" · {config.seeds} seeds, captions of the first" if config.seeds > 1 else ""
        report = Report(f"Captions of {seen}s", f"{config.data} · {result.steps} steps{seeds}")
        headline = [k for k in metrics if k.endswith(("/factor_accuracy", "/cider", "/bleu"))][:6]
        panels.add_scores(report, metrics, headline)
        script = scripts["test"]
        quality, marks = panels.caption_quality(script, tested[0][1])
        panels.add_generated_texts(report, script, seen, quality, marks, measure="factors right")
        panels.add_attention(report, write, result.params[0], script, tested[0][1])
        report.add_figure("Curves", figures.curves(run.read_metrics(), CURVES))
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps, parameters=trees.count(result.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
