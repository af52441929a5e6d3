"""Images of a caption or a class, by a conditional GAN.

    python experiments/text_to_image_gan.py --judge runs/captioning-... --redescribe runs/captioning-other
    python experiments/text_to_image_gan.py --data folder:PATH --modalities text image --model.generator residual

``--judge RUN`` scores the images by the captioner of a run of captioning.py. Frozen networks take part in the training:
``--redescribe RUN`` another captioner, ``--read-with RUN`` (of contrastive.py) or ``--text-encoder hf:PATH`` an encoder
of captions, ``--image-encoder hf:PATH`` features for the discriminator, ``--first-stage RUN`` a GAN of smaller images,
which ``--model.generator stackgan`` refines (without it both stages are trained, one after the other).
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import open_splits
from xmodal_jax.evaluation.image_judge import JudgeReport, load_judge
from xmodal_jax.evaluation.images import ImageGenerator, SplitImageGenerator, image_sizes
from xmodal_jax.evaluation.learning import LearningEvaluation, image_learning
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.experiment import evaluate_seeds, last_losses, make_loader, start, subtitle, write_report
from xmodal_jax.models import gan as gans
from xmodal_jax.nets.encoders import ConvNetConfig
from xmodal_jax.nets.gan import ObjectGeneratorConfig
from xmodal_jax.report.images import SampleHistory, add_images, add_scores
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.transfer.frozen import FrozenNetworksConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FrozenNetworksConfig):
    """Images from captions or classes."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=20_000, modalities=("text", "image")
    )
    steps: int = 2800
    """Number of training steps, each of --model.d-steps updates of the discriminator and one of the generator."""
    batch_size: int = 32
    eval_every: int = 1400
    judge: pathlib.Path | None = None
    """Directory of a run of captioning.py, whose captioner scores the generated images; None: no such scores."""
    learning: LearningEvaluation = LearningEvaluation()
    """What classifiers learn from generated images; --learning.steps 0: it is not measured."""
    model: gans.GANConfig = gans.GANConfig(
        condition=gans.WordsCondition(auxiliary_weight=0.0), generator=ObjectGeneratorConfig(noise=12),
        discriminator=ConvNetConfig(width=32, norm="none"), penalty=gans.R1Penalty(5.0, every=4),
        reconstruction=gans.Reconstruction(
            30.0, ConvNetConfig(width=64, norm="none", token_positions=True), kl_weight=8.0
        ), features=gans.FrozenFeatures(perceptual_weight=10.0, redescription_weight=5.0),
    )  # fmt: skip
    """Networks and losses of the GAN."""
    optimizer: GANOptimizer = GANOptimizer(
        discriminator=Optimizer(name="muon", learning_rate=1e-3, b1=0.5, clip_norm=5.0), pretrain_fraction=0.5,
        pretrain_restarts=3, generator=Optimizer(name="muon", learning_rate=5e-3, warmup=0.01, final_scale=0.15,
                                                 b1=0.5, clip_norm=5.0, ema=0.99),
    )  # fmt: skip
    """Optimizers of generator and discriminator."""


def main(config: Config) -> None:
    config, run, timer, bad_examples, frozen = start(config)
    captioner = load_judge(config.judge)

    # Data: captions or labels, and their images.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        tokenize = frozen.fit_tokenizer(splits.train, bad_examples)
        options = dict(bad_examples=bad_examples, repeats=config.model.d_steps)
        loader = make_loader(config, splits.train, tokenize, **options)
        evaluated = {**splits.tests, "validation": splits.validation}
        references = {name: ReferenceTexts(split, one_per_picture=True) for name, split in evaluated.items()}
        judge = JudgeReport(captioner, splits.train, references)

    # The method: generator and discriminator, and the frozen networks. A first stage may be trained here.
    sizes = image_sizes(splits.train, tokenize)
    files = {"tokenizer": tokenize and tokenize.tokenizer.files(), "class_names": splits.train.class_names}
    metadata = {"kind": "text_to_image_gan", "source": "text", "target": "image", **sizes, **files}
    networks, metadata = frozen.prepare_networks(loader, sizes, run, timer, metadata)
    gan = gans.make_gan(config.model, **sizes, **networks)
    generator = ImageGenerator(gan, tokenize, noise=config.model.generator.noise)
    generate = SplitImageGenerator(generator, references, seed=config.seed)
    learn = image_learning(config.learning, splits, generator, config.model.condition, seed=config.seed)
    history = SampleHistory(run.path / "samples", generator, generate.conditions["test"], seed=config.seed)

    def validate(params):
        """Adds samples to the history, and scores the images of the validation split."""
        history.add(params)
        return judge.scores({"validation": generate(params, "validation")})

    result = fit(gan, loader, config, config.optimizer, run, timer, evaluate=validate, metadata=metadata)

    # Test: an image for every caption of every split, or for the first caption of every picture.
    def test(params):
        """``(metrics, images of the split "test" and what was learned)``."""
        images, learned = {name: generate(params, name) for name in splits.tests}, learn(params)
        first_stage = judge.scores(generate.first_stage(params, splits.tests), "first_stage_")
        return judge.scores(images, real=True) | first_stage | learned.metrics, (images["test"], learned)

    metrics, (images, learned) = evaluate_seeds(test, result, timer)
    if not run.writes:
        return
    metrics = metrics or last_losses(run)  # without a judge and classes there are no scores
    title, details = "Images from captions", subtitle(config, result, shown="images")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        add_scores(report, metrics, learned, seeds=result.seeds)
        add_images(report, run, generate, result.params[0], references["test"], images, judge, history)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
