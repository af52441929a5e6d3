"""One latent space for several modalities: any of them from any others, and all of them at once.

    python experiments/multimodal_vae.py
    python experiments/multimodal_vae.py --model.model mmvae_plus --missing 0.5
    python experiments/multimodal_vae.py --data poly:npz:PATH --views 5
    python experiments/multimodal_vae.py --data poly:tfds:mnist --model.model mopoe --seeds 2
    python experiments/multimodal_vae.py --data folder:PATH --image-encoder hf:PATH --text-encoder hf:PATH

The first translates between pictures, sketches, captions and speech of the embedded data set's scenes with one object.
Judges, a classifier of each modality, are trained beside it and say whether what is made is of the right class.
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
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.models.vae.multimodal import MultimodalVAEConfig, make_multimodal_vae
from xmodal_jax.report import figures
from xmodal_jax.report import latent as latent_report
from xmodal_jax.report.page import Report
from xmodal_jax.train.command_line import parse
from xmodal_jax.train.config import shrink
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run, stack_scores
from xmodal_jax.transfer.autoencoders import LatentConfig, pretrained_readers

SHAPES = ("image", "image_sketch", "text", "audio")
"""What is read of the embedded data set unless ``--modalities`` says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LatentConfig):
    """A multimodal VAE."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000, max_seconds=3.0)
    """How the data set is read."""
    steps: int = 1500
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 750
    """Steps between evaluations on validation data; 0: only at the end."""
    judge_steps: int = 300
    """Steps of the judges' training."""
    model: MultimodalVAEConfig = MultimodalVAEConfig(model="mvtcae")
    """The model."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Optimizer and schedule."""
    evaluation: scores.LatentEvaluation = scores.LatentEvaluation()
    """How much is evaluated."""


def main(config: Config) -> None:
    runtime.configure()
    timer = runtime.Timer()
    if config.data == "shapes" and config.input.modalities is None:
        config = dataclasses.replace(config, input=dataclasses.replace(config.input, modalities=SHAPES))
    if config.smoke:
        config = scores.shrink_latent(shrink(config))
    config, readers = pretrained_readers(config)
    run = Run.create(config.run_dir, config, resume=config.resume)
    model = config.model

    # Data: examples whose class is known, for the judges; speech as frames, computed once.
    bad_examples = BadExamples(config.input.on_bad_example)
    with timer("data"):
        data = open_latent(config, model, bad_examples)
    loader = Loader(data.source, batch_size=config.batch_size, seed=config.seed, transform=data.transform)

    # The method: encoders and decoders of all modalities, an objective.
    example = numeric_fields(loader.example())
    sizes = sizes_of(example, data.modalities, model, vocab_size=data.vocab_size, classes=data.classes)
    vae, judges = make_multimodal_vae(model, sizes), make_judges(model, sizes, data.classes)
    explorer = scores.Explorer(vae, model, judges, seed=config.seed, end=data.end)

    # Judges first, so that validation can ask them.
    judged = scores.fit_judges(judges, loader, config, run, timer, config.judge_steps)
    watched = scores.first(data.validation, config.evaluation.examples)

    def validate(params):
        found, _ = scores.coherence_scores(explorer, params, judged, watched)
        return {f"validation/{name.split('/')[1]}": value for name, value in found.items()}

    metadata = {"modalities": vae.modalities, "sizes": {m: [*s.shape, s.values] for m, s in sizes.items()}}
    optimizer, method = readers.optimize(config.optimizer), readers.start(vae.method, sizes)
    result = fit(
        method, loader, config, optimizer, run, timer,
        evaluate=validate, monitor="validation/coherence", metadata=metadata | data.metadata,
    )  # fmt: skip

    # Test: translation, dreams, likelihood, the latent space.
    with timer("evaluation"):
        tested = [
            scores.examine(
                explorer, params, judged, data.source, data.test, data.factors, config.evaluation, seed
            )
            for params, seed in zip(result.params, result.seeds, strict=True)
        ]
        metrics = stack_scores([each.scores for each in tested])
    if not run.writes:
        return

    with timer("report"):
        seeds = f" · {config.seeds} seeds, pictures of the first" if config.seeds > 1 else ""
        subtitle = f"{config.data} · {model.model} · {result.steps} steps{seeds}"
        report = Report("One latent space for several modalities", subtitle)
        leading = ("cross/coherence", "joint_prior/coherence", "likelihood/")
        headline = [k for k in metrics if k.startswith(leading)][:6]
        chance = {k: 1 / data.classes for k in headline if "cross" in k}
        latent_report.add_scores(report, metrics, headline, chance)
        latent_report.add_latent(report, explorer, result.params[0], data, tested[0], run.path)
        report.add_figure("Training curves", figures.curves(run.read_metrics()))
    finish(
        run, report, metrics, headline=headline[:4], bad_examples=bad_examples, timer=timer, seeds=result.seeds,
        diverged=result.diverged, steps=result.steps, parameters=trees.count(result.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(parse(Config, __doc__))
