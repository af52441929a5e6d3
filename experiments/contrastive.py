"""A shared embedding space over text, images, speech, video and measured quantities.

    python experiments/contrastive.py
    python experiments/contrastive.py --modalities text image audio video
    python experiments/contrastive.py --data folder:PATH --modalities text image
    python experiments/contrastive.py --data npz:PATH --modalities text vector
    python experiments/contrastive.py --image-encoder hf:FOLDER --text-encoder hf:FOLDER --image-size 224

The first command takes less than three minutes on two cores; docs/results.md has the results of each.
"""

from __future__ import annotations

import dataclasses

from xmodal_jax.data.hard_negatives import HardNegatives
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_transforms, open_splits
from xmodal_jax.evaluation import embeddings as evaluate
from xmodal_jax.evaluation.scene_factors import SceneTests
from xmodal_jax.experiment import choose_recipe, evaluate_seeds, make_loader, start, subtitle, write_report
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.encoders import TextTransformerConfig
from xmodal_jax.report import alignment as panels
from xmodal_jax.report.scene_factors import add_scene_factors
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import ContrastiveRecipeFlags, DataFlags, StartConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.transfer.features import frozen_features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(StartConfig, ContrastiveRecipeFlags):
    """A shared embedding space by contrastive learning."""

    input: DataFlags = DataOptions(train_size=6000, max_seconds=3.2)
    steps: int = 720
    batch_size: int = 128
    """Examples per step, over all devices together. For each example the others of its batch are the negatives."""
    eval_every: int = 360
    negatives: HardNegatives = HardNegatives()
    gallery: int = 500
    """Number of test examples (or images with several captions), all of different meaning, that retrieval searches."""
    prompts: tuple[str, ...] = ()
    """Templates for zero-shot classification, such as "a photo of a {}", which are averaged. Empty: the data set's."""
    cache_features: bool = False
    """Compute features of frozen encoders once, without augmentation; the training data must fit in memory."""
    model: ContrastiveConfig = ContrastiveConfig(text=TextTransformerConfig(depth=1, embedding_std=1.0))
    """Towers and objective."""
    optimizer: Optimizer = Optimizer(name="muon", learning_rate=5e-3)
    """Update rule and learning-rate schedule."""

    def __post_init__(self):
        super().__post_init__()
        evaluate.check_prompts(self.prompts)


def main(config: Config) -> None:
    config, run, timer, bad_examples, pretrained = start(config)

    # Data: training, held-out validation and test splits; tokenizer and standard units are fitted to the training data.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        config = choose_recipe(config, splits, run)
        prepare = fit_transforms(splits.train, bad_examples, config.text_options)
        run.write_later(lambda: prepare.save(run.path))
        features = frozen_features(pretrained, config.model, prepare) if config.cache_features else None
        more = dict(once=features, negatives=config.negatives)
        loader = make_loader(config, splits.train, prepare, bad_examples=bad_examples, **more)
    modalities = tuple(splits.train.modalities)

    # The method, and what is measured while it trains.
    method = make_contrastive(config.model, modalities, vocab_size=prepare.vocab_size)
    method = pretrained.attach(method, prepare.tokenizer)
    optimizer = pretrained.set_learning_rates(config.optimizer, method)
    embed = evaluate.Embedder(method, prepare, batch_size=min(250, config.gallery))
    validation = evaluate.Gallery(splits.validation, config.gallery)

    def validate(params):
        """Retrieval scores; their mean recall@1 over all directions decides the best checkpoint."""
        scores = validation.scores(embed(params, validation), "validation/")
        return {**scores, "validation/recall@1": evaluate.mean_recall(scores)}

    result = fit(
        method, loader, config, optimizer, run, timer, evaluate=validate, monitor="validation/recall@1",
        metadata={"kind": "contrastive", "modalities": modalities, **prepare.metadata},
    )  # fmt: skip

    # Test: retrieval between all pairs, classification, the gap between modalities, and what is read in scenes.
    with timer("evaluation"):
        galleries = {name: evaluate.Gallery(split, config.gallery) for name, split in splits.tests.items()}
        scene_tests = SceneTests(galleries["test"])

    def test(params):
        """``(metrics, (embeddings of the split "test", confusion matrix or None, results on scenes))``."""
        embeddings = {name: embed(params, gallery) for name, gallery in galleries.items()}
        metrics, confusion = evaluate.classification_scores(
            embed, params, splits.train, splits.tests["test"], templates=config.prompts
        )
        for name, gallery in galleries.items():
            metrics |= gallery.scores(embeddings[name], "" if name == "test" else f"{name}/")
        metrics |= panels.gap_scores(embeddings["test"], present=galleries["test"].present)
        scenes = scene_tests.results(embed, params, embeddings["test"])
        return metrics | scenes.scores(), (embeddings["test"], confusion, scenes)

    metrics, (embeddings, confusion, scenes) = evaluate_seeds(test, result, timer)
    if not run.writes:
        return
    title, details = "A shared embedding space", subtitle(config, result, ", ".join(modalities))
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        panels.add_scores(report, metrics, galleries)
        panels.add_embeddings(report, run.read_metrics(), galleries["test"], embeddings, prepare.standardise)
        panels.add_confusion(report, confusion, splits.train)
        add_scene_factors(report, metrics, scenes)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
