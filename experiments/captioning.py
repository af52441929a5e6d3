"""Captions of pictures and videos.

    python experiments/captioning.py
    python experiments/captioning.py --modalities text video
    python experiments/captioning.py --data folder:PATH --modalities text image
    python experiments/captioning.py --model.contrastive info_nce

On the embedded data set captions are also parsed: which factors of the scene do they state correctly?
"""

from __future__ import annotations

import dataclasses
import functools

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_tokenizer, open_splits
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.evaluation.text import (
    ReferenceTexts,
    TextGenerationConfig,
    TextGenerator,
    source_modality,
    source_text_retrieval,
)
from xmodal_jax.experiment import choose_recipe, evaluate_seeds, make_loader, start, subtitle, write_report
from xmodal_jax.models.seq2seq import GreedySearchConfig, make_seq2seq
from xmodal_jax.report import figures
from xmodal_jax.report import text as panels
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import DataFlags, RecipeFlags
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer

CURVES = tuple(f"train/{name}" for name in ("loss", "cross_entropy", "grad_norm"))
CURVES += ("validation/factor_accuracy", "validation/cider")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextGenerationConfig, RecipeFlags):
    """Text about a picture or a video."""

    input: DataFlags = DataOptions(train_size=20_000, modalities=("text", "image"))
    steps: int = 900
    batch_size: int = 64
    eval_every: int = 300
    gallery: int = 500
    """Number of test examples, all of different meaning (or of images, where they have several captions), in the
    gallery of the retrieval test (source_text_retrieval), which --model.contrastive adds."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Update rule and learning-rate schedule."""


def main(config: Config) -> None:
    config, run, timer, bad_examples, pretrained = start(config)

    # Data: captions, and the pictures or videos that they are about.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        config = choose_recipe(config, splits, run)
        modality = source_modality(splits.train, ("image", "video"))
        shape = splits.train.batch([0])[modality].shape[1:]
        tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        loader = make_loader(config, splits.train, tokenize, bad_examples=bad_examples)
        read_texts = functools.partial(ReferenceTexts, clean=tokenize.clean, one_per_picture=True)
        validation = read_texts(splits.validation)
        references = {name: read_texts(split) for name, split in splits.tests.items()}

    # The method: an encoder and a decoder.
    model, tokenizer, sizes = config.model, tokenize.tokenizer, dict(length=tokenize.max_length)
    method = make_seq2seq(model, modality, vocab_size=tokenizer.vocab_size, **sizes)
    method = pretrained.attach(method, tokenizer)
    optimizer = pretrained.set_learning_rates(config.optimizer, method)
    decodings = {"greedy": GreedySearchConfig(), "test": config.generation}
    options = dict(decodings=decodings, seed=config.seed, language=config.language.fit(tokenize, run))
    generate = TextGenerator(model, modality, tokenizer, **options, **sizes)

    def validate(params):
        """Scores of greedy captions, which take less time than the decoding of the test."""
        captions = generate(params, validation.source, decoding="greedy")
        return validation.caption_scores(captions, prefix="validation/")

    source = {"kind": "captioning", "source": modality, "target": "text", "shape": shape}
    metadata = source | {"tokenizer": tokenizer.files(), **sizes}
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/cider", metadata=metadata,
    )  # fmt: skip

    # Test: captions of every split, and greedy ones of the split "test".
    def test(params):
        metrics, captions = {}, {}
        for name, split in references.items():
            captions[name] = generate(params, split.source, decoding="test")
            metrics |= split.caption_scores(captions[name], prefix=f"{name}/")
        greedy = generate(params, references["test"].source, decoding="greedy")
        if model.has_contrastive_loss:
            gallery = evaluate.Gallery(splits.tests["test"], config.gallery)
            metrics |= source_text_retrieval(method, params, gallery, tokenize)
        return metrics | references["test"].caption_scores(greedy, prefix="greedy/"), captions["test"]

    metrics, captions = evaluate_seeds(test, result, timer)
    if not run.writes:
        return

    title, details = f"Captions of {modality}s", subtitle(config, result, shown="captions")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        headline = [k for k in metrics if k.endswith(("/factor_accuracy", "/cider", "/bleu"))][:6]
        panels.add_scores(report, metrics, headline)
        quality, marks = panels.caption_quality(references["test"], captions)
        panels.add_generated_texts(
            report, references["test"], modality, quality, marks, measure="factor accuracy"
        )
        panels.add_attention(report, generate, result.params[0], references["test"], captions)
        report.add_figure("Training curves", figures.curves(run.read_metrics(), CURVES))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
