"""One latent space for several modalities: each can be generated from any others, or all from a sample of the prior.

    python experiments/multimodal_vae.py
    python experiments/multimodal_vae.py --model mmvae_plus --model.samples 5 --missing 0.5
    python experiments/multimodal_vae.py --data poly:npz:PATH --views 5
    python experiments/multimodal_vae.py --data poly:tfds:mnist --model mopoe --seeds 2
    python experiments/multimodal_vae.py --data folder:PATH --image-encoder hf:PATH --text-encoder hf:PATH

The first command translates between images, sketches, captions and speech of the embedded data set's scenes with one
object. Judges, a classifier of each modality, are trained beside it and tell whether generated data show the right
class.
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
from xmodal_jax.evaluation.latent_data import open_latent, with_modalities
from xmodal_jax.experiment import start, subtitle, write_report
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEModel, MVTCAEConfig
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.train.command_line import run_script
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import stack_scores
from xmodal_jax.transfer.autoencoders import LatentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """A multimodal VAE."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000, max_seconds=3.0)
    """Options of the data set, such as its number of examples; their flags have no prefix (``--train-size``)."""
    steps: int = 1500
    """Number of training steps; each updates the parameters once."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 750
    """Steps between evaluations on validation data; 0: only at the end."""
    judge_steps: int = 300
    """Training steps of each judge, a classifier that evaluates the generated data of one modality."""
    model: MultimodalVAEModel = MVTCAEConfig()
    """Multimodal VAE to train."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Update rule and learning-rate schedule."""
    evaluation: evaluation.LatentEvaluation = evaluation.LatentEvaluation()
    """Numbers of examples and of samples in the evaluation of the trained model."""


def main(config: Config) -> None:
    config = with_modalities(config)
    config, run, timer, bad_examples, pretrained = start(config, shrink=evaluation.shrink_latent)
    model = config.model

    # Data: examples whose class is known, which the judges need; speech as frames, computed once.
    with timer("data"):
        data = open_latent(config, model, bad_examples)
    batch_size = choose_batch_size(config.batch_size, data.source, bad_examples)
    loader = Loader(data.source, batch_size=batch_size, seed=config.seed, transform=data.transform)
    example = numeric_fields(loader.example())
    sizes = sizes_of(example, data.modalities, model, vocab_size=data.vocab_size, classes=data.classes)

    # The method, and the judges, which are trained first so that validation can use them.
    vae, judges = make_multimodal_vae(model, sizes), make_judges(model, sizes, data.classes)
    judge_params = evaluation.fit_judges(judges, loader, config, run, timer, config.judge_steps)
    evaluator = evaluation.LatentEvaluator(
        vae, model, judges, seed=config.seed, end_id=data.end_id, pad_id=data.pad_id
    )
    validation = take_evenly(data.validation, config.evaluation.examples)

    def validate(params):
        """Coherence: how often generated data show the class of the data that they are generated from."""
        metrics = evaluation.coherence_metrics(evaluator, params, judge_params, validation)[0]
        return {f"validation/{name.split('/')[1]}": value for name, value in metrics.items()}

    metadata = {"modalities": vae.modalities, "sizes": {m: [*s.shape, s.values] for m, s in sizes.items()}}
    optimizer, method = pretrained.set_learning_rates(config.optimizer), pretrained.attach(vae.method, sizes)
    result = fit(
        method, loader, config, optimizer, run, timer, evaluate=validate, monitor="validation/coherence",
        metadata={"kind": "multimodal_vae"} | metadata | data.metadata,
    )  # fmt: skip

    # Test: generation across modalities and from the prior, likelihood, latent probes.
    with timer("evaluation"):
        options = dict(has_likelihood=model.has_prior, run=run)
        results = evaluation.evaluate_seeds(
            evaluator, result, judge_params, data, config.evaluation, **options
        )
    metrics = stack_scores([each.metrics for each in results])
    if not run.writes:
        return

    title, details = "One latent space for several modalities", subtitle(config, result, model.name)
    with write_report(run, title, details, metrics, timer, bad_examples, result) as report:
        latent_report.add_coherence_tables(report, metrics, classes=data.classes)
        latent_report.add_latent(report, evaluator, result.params[0], data, results[0], run.path)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
