"""A latent space of one modality: what it holds, what can be rebuilt from it, what it dreams.

    python experiments/vae.py
    python experiments/vae.py --model.model iwae --model.samples 10
    python experiments/vae.py --data npz:PATH --model.model aae --steps 5000

The first is a variational autoencoder of pictures of the embedded data set's scenes with one object. A classifier,
trained beside it on the data, lends the features that compare what is dreamt with the data.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.evaluation import latent as scores
from xmodal_jax.evaluation.latent_data import open_latent
from xmodal_jax.experiment import finish
from xmodal_jax.models.vae.adapter import as_multimodal
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.single import MODELS, VAEConfig, make_vae, size_of
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.transfer.autoencoders import LatentConfig, pretrained_readers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """An autoencoder of one modality."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000)
    """How the data set is read."""
    modality: str = "image"
    """Which of the data set's modalities."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 1000
    """Steps between evaluations on validation data; 0: only at the end."""
    judge_steps: int = 500
    """Steps of the training of the classifier that judges."""
    model: VAEConfig = VAEConfig()
    """The model."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Optimizer and schedule; of jsd_vae and aae the autoencoder's."""
    critic: Optimizer = Optimizer("adam", learning_rate=1e-3, b1=0.5, schedule="constant", clip_norm=None)
    """The critic's (jsd_vae, aae)."""
    evaluation: scores.LatentEvaluation = scores.LatentEvaluation()
    """How much is evaluated."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    config = dataclasses.replace(
        config, input=dataclasses.replace(config.input, modalities=(config.modality,))
    )
    if config.smoke:
        config = scores.shrink_latent(shrink(config))
    config, readers = pretrained_readers(config)
    run = Run.create(config.run_dir, config, resume=config.resume)
    model, modality = config.model, config.modality

    # Data: examples whose class is known, for the judge.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        data = open_latent(config, model, bad_examples)
    loader = Loader(data.source, batch_size=config.batch_size, seed=config.seed, transform=data.transform)

    # The method, and who judges.
    example = numeric_fields(loader.example())
    size = size_of(example, modality, model, vocab_size=data.vocab_size, classes=data.classes)
    vae, judges = (
        make_vae(model, modality, size, classes=data.classes),
        make_judges(model, {modality: size}, data.classes),
    )
    whole = as_multimodal(vae, model, modality, data.classes)
    explorer = scores.Explorer(whole, model, judges, seed=config.seed, end=data.end)
    judged = scores.fit_judges(judges, loader, config, run, timer, config.judge_steps)
    watched = scores.first(data.validation, config.evaluation.examples)

    def validate(params):
        found = scores.reconstruction_scores(explorer, params, watched)
        return {f"validation/{name.split('/')[1]}": value for name, value in found.items()}

    optimizer = readers.optimize(config.optimizer)
    if MODELS[model.model].opponent:
        optimizer = GANOptimizer(discriminator=config.critic, generator=optimizer)
    metadata = data.metadata | {"modality": modality, "size": [*size.shape, size.values]}
    method = readers.start(vae.method, {modality: size})
    result = fit(method, loader, config, optimizer, run, timer, evaluate=validate, metadata=metadata)

    # Test: what is rebuilt, dreamt and known.
    with timer("evaluation"):
        density = MODELS[model.model].density
        tested = [
            scores.examine(
                explorer,
                params,
                judged,
                data.source,
                data.test,
                data.factors,
                config.evaluation,
                seed,
                density,
            )  # fmt: skip
            for params, seed in zip(result.params, result.seeds, strict=True)
        ]
        metrics = stack_scores([each.scores for each in tested])
    if not run.writes:
        return

    with timer("report"):
        seeds = f" · {config.seeds} seeds, pictures of the first" if config.seeds > 1 else ""
        report = Report("A latent space", f"{config.data} · {model.model} · {result.steps} steps{seeds}")
        leading = ("reconstruction_", "likelihood/", "joint_prior/kid", "latent/probe")
        headline = [k for k in metrics if k.startswith(leading)][:6]
        latent_report.add_scores(report, metrics, headline)
        latent_report.add_latent(report, explorer, result.params[0], data, tested[0], run.path, count=8)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer, seeds=result.seeds,
        diverged=result.diverged, steps=result.steps, parameters=trees.count(result.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
