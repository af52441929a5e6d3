"""A latent space of one modality: reconstruction, samples, and what its dimensions capture.

    python experiments/vae.py
    python experiments/vae.py --model iwae --model.samples 10
    python experiments/vae.py --data npz:PATH --model aae --steps 5000

The first command trains a VAE of scenes with one object; a classifier's features compare generated with real images.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.splits import choose_batch_size
from xmodal_jax.evaluation import latent as evaluation
from xmodal_jax.evaluation.embeddings import take_evenly
from xmodal_jax.evaluation.latent_data import open_latent
from xmodal_jax.experiment import start, subtitle, write_report
from xmodal_jax.models.vae.adapter import as_multimodal
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AutoencoderModel, VAEConfig
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.gan_step import GANOptimizer
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import stack_scores
from xmodal_jax.transfer.autoencoders import LatentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """An autoencoder of one modality."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000)
    """Options of the data set, such as its number of examples; their flags have no prefix (``--train-size``)."""
    modality: str = "image"
    """Modality of the data set that is encoded and decoded, such as image or audio."""
    steps: int = 3000
    """Number of training steps; each updates the parameters once."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 1000
    """Steps between evaluations on validation data; 0: only at the end."""
    judge_steps: int = 500
    """Training steps of the classifier whose features compare generated with real data."""
    model: AutoencoderModel = VAEConfig()
    """Autoencoder to train."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Update rule and learning-rate schedule of the autoencoder."""
    critic: Optimizer = Optimizer("adam", learning_rate=1e-3, b1=0.5, schedule="constant", clip_norm=None)
    """Update rule and learning-rate schedule of the critic (models jsd_vae and aae)."""
    evaluation: evaluation.LatentEvaluation = evaluation.LatentEvaluation()
    """Numbers of examples and of samples in the evaluation of the trained model."""


def main(config: Config) -> None:
    data_options = dataclasses.replace(config.input, modalities=(config.modality,))
    config = dataclasses.replace(config, input=data_options)
    config, run, timer, bad_examples, pretrained = start(config, shrink=evaluation.shrink_latent)
    model, modality = config.model, config.modality

    # Data: examples whose class is known, which the judge needs; without any classes there is no judge.
    with timer("data"):
        data = open_latent(config, model, bad_examples, needs_classes=model.conditional)
    batch_size = choose_batch_size(config.batch_size, data.source, bad_examples)
    loader = Loader(data.source, batch_size=batch_size, seed=config.seed, transform=data.transform)
    counts = dict(vocab_size=data.vocab_size, classes=data.classes)
    sizes = sizes_of(numeric_fields(loader.example()), (modality,), model, **counts)

    # The method, and the judge, which is trained first.
    size = sizes[modality]
    vae = make_vae(model, modality, size, classes=data.classes)
    judges = make_judges(model, sizes, data.classes) if data.classes else None
    judge_params = evaluation.fit_judges(judges, loader, config, run, timer, config.judge_steps)
    evaluator = evaluation.LatentEvaluator(
        as_multimodal(vae, model, modality, data.classes), model, judges,
        seed=config.seed, end_id=data.end_id, pad_id=data.pad_id,
    )  # fmt: skip
    validation = take_evenly(data.validation, config.evaluation.examples)

    def validate(params):
        """Reconstruction errors of the validation examples."""
        metrics = evaluation.reconstruction_metrics(evaluator, params, validation)
        return {f"validation/{name.split('/')[1]}": value for name, value in metrics.items()}

    optimizer, method = pretrained.set_learning_rates(config.optimizer), pretrained.attach(vae.method, sizes)
    if model.critic_objective is not None:
        optimizer = GANOptimizer(discriminator=config.critic, generator=optimizer)
    metadata = data.metadata | {"kind": "vae", "modality": modality, "size": [*size.shape, size.values]}
    result = fit(method, loader, config, optimizer, run, timer, evaluate=validate, metadata=metadata)

    # Test: reconstruction, samples, likelihood, latent probes.
    with timer("evaluation"):
        arguments = (evaluator, result, judge_params, data, config.evaluation)
        results = evaluation.evaluate_seeds(*arguments, has_likelihood=model.has_likelihood, run=run)
    metrics = stack_scores([each.metrics for each in results])
    if not run.writes:
        return
    title, details = "A latent space", subtitle(config, result, model.name)
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        leading = ("reconstruction_", "likelihood/", "joint_prior/judge_kernel_distance", "latent/probe")
        headline = [k for k in metrics if k.startswith(leading)][:6]
        latent_report.add_metric_tables(report, metrics, headline)
        latent_report.add_latent(report, evaluator, result.params[0], data, results[0], run.path, count=8)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
