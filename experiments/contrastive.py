"""A shared embedding space over text, images, speech and video.

    python experiments/contrastive.py
    python experiments/contrastive.py --modalities text image audio video
    python experiments/contrastive.py --data folder:PATH --modalities text image
    python experiments/contrastive.py --image-encoder hf:FOLDER --text-encoder hf:FOLDER --image-size 224
    python experiments/contrastive.py --data tfds:fashion_mnist --data-dir PATH --modalities text image

The first ends within three minutes on two cores; docs/results.md says what each of them reaches.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import tyro

from xmodal_jax.core import runtime
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.splits import fit_tokenizer, open_splits, prepare_source
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.report import alignment as panels
from xmodal_jax.report import figures
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
    """A shared embedding space by contrastive learning."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=6000, max_seconds=3.2)
    """How the data set is read."""
    steps: int = 640
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together: also the candidates that each must be told from."""
    eval_every: int = 160
    """Steps between evaluations on validation data; 0: only at the end."""
    gallery: int = 500
    """Test examples among which retrieval searches, each of another meaning."""
    prompts: tuple[str, ...] = ()
    """Templates for zero-shot classification, such as "a photo of a {}"; their embeddings are averaged."""
    cache_features: bool = False
    """With --encoder-lr-multiplier 0: compute the features of the frozen pretrained encoders once, before training and
    without augmentation. The training data must fit in memory."""
    model: ContrastiveConfig = ContrastiveConfig()
    """Towers and objective."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-3)
    """Optimizer and schedule."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.smoke:
        config = shrink(config)
    config, encoders = starting_point(config)
    run = Run.create(config.run_dir, config, resume=config.resume)

    # Data: training, held-out validation and test splits; the tokenizer is trained on the captions.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        tokenizer = tokenize.tokenizer
        if run.writes:
            tokenizer.save(run.path / "tokenizer")
        once = (
            encoders.precompute(config.model, tokenize, config.encoder_lr_multiplier)
            if config.cache_features
            else None
        )
        source, transform = prepare_source(splits.train, tokenize, limit=RESIDENT_LIMIT, once=once)
    modalities = tuple(splits.train.modalities)
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method, and what is measured while it trains.
    method = make_contrastive(config.model, modalities, vocab_size=tokenizer.vocab_size)
    method = encoders.start(method, tokenizer, config.lora)
    optimizer = encoders.optimize(config.optimizer, modalities, config)
    embed = evaluate.Embedder(method, tokenize, batch_size=min(250, config.gallery))
    validation = evaluate.Gallery(splits.validation, config.gallery)

    def validate(params):
        scores = evaluate.retrieval_scores(
            embed(params, validation), ids=validation.ids, prefix="validation/"
        )
        return {
            **scores,
            "validation/recall@1": np.mean([v for k, v in scores.items() if k.endswith("recall@1")]),
        }

    metadata = {"modalities": modalities, "max_length": tokenize.max_length, "tokenizer": tokenizer.files()}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/recall@1", metadata=metadata,
    )  # fmt: skip

    # Test: retrieval between all pairs, zero-shot classification, a linear probe and the gap between modalities.
    def test(params):
        found = {name: embed(params, gallery) for name, gallery in galleries.items()}
        metrics, confusion = evaluate.classification_scores(
            embed, params, splits.train, splits.tests["test"], templates=config.prompts
        )
        for name, gallery in galleries.items():
            prefix = "" if name == "test" else f"{name}/"
            metrics |= evaluate.retrieval_scores(found[name], ids=gallery.ids, prefix=prefix)
        return metrics | panels.gap_scores(found["test"]), found["test"], confusion

    with timer("evaluation"):
        galleries = {name: evaluate.Gallery(split, config.gallery) for name, split in splits.tests.items()}
        tested = [test(params) for params in result.params]
        metrics = stack_scores([scores for scores, *_ in tested])
    if not run.writes:
        return

    with timer("report"):
        _, embeddings, confusion = tested[0]
        seeds = f" · {config.seeds} seeds, pictures of the first" if config.seeds > 1 else ""
        report = Report(
            "A shared embedding space",
            f"{', '.join(modalities)} · {config.data} · {result.steps} steps{seeds}",
        )
        headline = panels.add_scores(report, metrics, galleries["test"])
        panels.add_space(report, run.read_metrics(), galleries["test"], embeddings)
        if confusion is not None:
            report.add_figure(
                "Zero-shot", figures.confusion_matrix(confusion, panels.class_labels(splits.train, confusion))
            )
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer,
        seeds=result.seeds, diverged=result.diverged, steps=result.steps,
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
