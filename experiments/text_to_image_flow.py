"""Images of a caption or a class, by flow matching.

    python experiments/text_to_image_flow.py --judge runs/captioning-...
    python experiments/text_to_image_flow.py --model.objective mean_flow --model.sampler jump
    python experiments/text_to_image_flow.py --data folder:PATH --modalities text image
    python experiments/text_to_image_flow.py --data folder:PATH --model.condition class

``--judge RUN`` scores the images by the captioner of a run of captioning.py. It takes no part in the training.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.splits import fit_tokenizer, open_splits
from xmodal_jax.evaluation.image_judge import JudgeReport, load_judge
from xmodal_jax.evaluation.images import ImageGenerator, SplitImageGenerator, image_sizes
from xmodal_jax.evaluation.learning import LearningEvaluation, image_learning
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.experiment import evaluate_seeds, last_losses, make_loader, start, subtitle, write_report
from xmodal_jax.models.flow import FlowConfig, FlowMatching, HeunSampler, make_flow
from xmodal_jax.models.flow.config import with_condition_like
from xmodal_jax.nets.dit import DiTConfig
from xmodal_jax.report.flows import add_flow_images
from xmodal_jax.report.images import SampleHistory, add_images, add_scores
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Images from captions or classes."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(
        train_size=20_000, modalities=("text", "image")
    )
    steps: int = 5000
    batch_size: int = 32
    eval_every: int = 2500
    judge: pathlib.Path | None = None
    """Directory of a run of captioning.py, whose captioner scores the generated images; None: no such scores."""
    learning: LearningEvaluation = LearningEvaluation()
    """What classifiers learn from generated images; --learning.steps 0: it is not measured."""
    model: FlowConfig = FlowConfig(
        objective=FlowMatching(prediction="data", time_mean=-1.2, time_std=0.8),
        network=DiTConfig(width=96, depth=3),
        sampler=HeunSampler(guidance=2.0, steps=12),
    )
    """Network, objective and sampler of the flow."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=5e-3, ema=0.999)
    """Update rule and learning-rate schedule; images are generated with the average of the parameters (ema)."""


def options_like(config: RunConfig) -> dict:
    """The options of a flow that is compared with a GAN of ``config``: a model with its condition, and an optimizer."""
    flow = Config()
    return dict(model=with_condition_like(flow.model, config.model.condition), optimizer=flow.optimizer)


def main(config: Config) -> None:
    config, run, timer, bad_examples, _ = start(config)
    captioner = load_judge(config.judge)

    # Data: captions or labels, and their images.
    with timer("data"):
        splits = open_splits(config.data, config.input, bad_examples)
        tokenize = None
        if "text" in splits.train.modalities:
            tokenize, _ = fit_tokenizer(splits.train, bad_examples, **config.text_options)
        loader = make_loader(config, splits.train, tokenize, bad_examples=bad_examples)
        evaluated = {**splits.tests, "validation": splits.validation}
        references = {name: ReferenceTexts(split, one_per_picture=True) for name, split in evaluated.items()}
        judge = JudgeReport(captioner, splits.train, references)

    # The method.
    sizes = image_sizes(splits.train, tokenize)
    flow = make_flow(config.model, **sizes)
    generator = ImageGenerator(flow.method, tokenize, noise=flow.dimensions)
    generate = SplitImageGenerator(generator, references, seed=config.seed)
    learn = image_learning(config.learning, splits, generator, config.model.condition, seed=config.seed)
    history = SampleHistory(run.path / "samples", generator, generate.conditions["test"], seed=config.seed)

    def validate(params):
        """Adds samples to the history, and scores the images of the validation split."""
        history.add(params)
        return judge.scores({"validation": generate(params, "validation")})

    files = {"tokenizer": tokenize and tokenize.tokenizer.files(), "class_names": splits.train.class_names}
    metadata = {"kind": "text_to_image_flow", "source": "text", "target": "image", **sizes, **files}
    result = fit(
        flow.method, loader, config, config.optimizer, run, timer, evaluate=validate, metadata=metadata
    )

    # Test: an image for every caption of every split, or for the first caption of every picture.
    def test(params):
        """``(metrics, images of the split "test" and what was learned)``."""
        images, learned = {name: generate(params, name) for name in splits.tests}, learn(params)
        return judge.scores(images, real=True) | learned.metrics, (images["test"], learned)

    metrics, (images, learned) = evaluate_seeds(test, result, timer)
    if not run.writes:
        return
    metrics = metrics or last_losses(run)  # without a judge and classes there are no scores
    title, details = "Images from captions, by a flow", subtitle(config, result, shown="images")
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        add_scores(report, metrics, learned, seeds=result.seeds)
        add_images(report, run, generate, result.params[0], references["test"], images, judge, history)
        add_flow_images(report, flow, generate, result.params[0], references["test"], judge)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
