"""One latent space for several modalities: any of them from any others, and all of them at once.

    python experiments/multimodal_vae.py
    python experiments/multimodal_vae.py --model.model mmvae_plus --missing 0.5
    python experiments/multimodal_vae.py --data poly:npz:PATH --views 5
    python experiments/multimodal_vae.py --data poly:tfds:mnist --model.model mvtcae --seeds 2

The first translates between pictures, sketches, captions and speech of the embedded data set's scenes with one object.
Judges, a classifier of each modality, are trained beside it and say whether what is made is of the right class.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from xmodal_jax.core import runtime, trees
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.pipeline import Loader, as_device_batch
from xmodal_jax.data.problems import Problems
from xmodal_jax.data.splits import learn_text, open_splits, prepare
from xmodal_jax.data.views import labelled
from xmodal_jax.models.judges import make_judges
from xmodal_jax.models.multimodal_vae import MultimodalVAEConfig, make_multimodal_vae, sizes_of
from xmodal_jax.models.speech import frames_of
from xmodal_jax.train import figures, latent_report
from xmodal_jax.train import latent_scores as scores
from xmodal_jax.train.config import RunConfig, shrink
from xmodal_jax.train.evaluate import stack_scores
from xmodal_jax.train.finish import finish
from xmodal_jax.train.loop import RESIDENT_LIMIT, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.report import Report
from xmodal_jax.train.run import Run

SHAPES = ("image", "image_sketch", "text", "audio")
"""What is read of the embedded data set unless ``--modalities`` says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A multimodal VAE."""

    input: Annotated[DataOptions, tyro.conf.arg(name="")] = DataOptions(train_size=20_000, max_seconds=3.0)
    """How the data set is read."""
    steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 64
    """Examples per step, over all devices together."""
    eval_every: int = 1000
    """Steps between evaluations on validation data; 0: only at the end."""
    judge_steps: int = 500
    """Steps of the judges' training."""
    model: MultimodalVAEConfig = MultimodalVAEConfig()
    """The model."""
    optimizer: Optimizer = Optimizer("muon", learning_rate=1e-2)
    """Optimizer and schedule."""
    evaluation: scores.LatentEvaluation = scores.LatentEvaluation()
    """How much is evaluated."""


def main(config: Config) -> None:
    runtime.configure()
    watch = runtime.Stopwatch()
    if config.data == "shapes" and config.input.modalities is None:
        config = dataclasses.replace(config, input=dataclasses.replace(config.input, modalities=SHAPES))
    if config.smoke:
        config = scores.shrink_latent(shrink(config))
    run = Run.create(config.run_dir, config, resume=config.resume)
    model = config.model

    # Data: examples whose class is known, for the judges; speech as frames, computed once.
    problems = Problems(config.input.on_bad_example)
    with watch("data"):
        splits = open_splits(config.data, config.input, problems)
        train, validation = labelled(splits.train), labelled(splits.validation)
        test = labelled(splits.tests["test"])
        factors = scores.known_factors(test)
        modalities = tuple(train.modalities)
        tokenize = None
        if "text" in modalities:
            tokenize, _ = learn_text(train, problems, **config.reading)
        once = frames_of(model.features, model.floor) if "audio" in modalities else None
        source, transform = prepare(train, tokenize, limit=RESIDENT_LIMIT, once=once)
        validation, test = (
            prepare(part, tokenize, limit=RESIDENT_LIMIT, once=once)[0] for part in (validation, test)
        )
    loader = Loader(source, batch_size=config.batch_size, seed=config.seed, transform=transform)

    # The method: encoders and decoders of all modalities, an objective.
    classes = scores.count_classes(train)
    example = as_device_batch(loader.example())
    vocabulary = tokenize.tokenizer.vocab_size if tokenize else 0
    sizes = sizes_of(example, modalities, model, vocab_size=vocabulary, classes=classes)
    vae, judges = make_multimodal_vae(model, sizes), make_judges(model, sizes, classes)
    end = tokenize.tokenizer.eos_id if tokenize else -1
    explorer = scores.Explorer(vae, model, judges, seed=config.seed, end=end)

    # Judges first, so that validation can ask them.
    judged = scores.fit_judges(judges, loader, config, run, watch, config.judge_steps)
    watched = scores.first(validation, config.evaluation.examples)

    def validate(params):
        found, _ = scores.coherence_scores(explorer, params, judged, watched)
        return {f"validation/{name.split('/')[1]}": value for name, value in found.items()}

    facts = {"modalities": vae.modalities, "sizes": {m: [*s.shape, s.values] for m, s in sizes.items()}}
    facts |= {"tokenizer": tokenize.tokenizer.files() if tokenize else None, "classes": classes}
    fitted = fit(
        vae.method, loader, config, config.optimizer, run, watch,
        evaluate=validate, monitor="validation/coherence", meta=facts,
    )  # fmt: skip

    # Test: translation, dreams, likelihood, the latent space.
    with watch("evaluation"):
        tested = [
            scores.examine(explorer, params, judged, source, test, factors, config.evaluation, seed)
            for params, seed in zip(fitted.params, fitted.seeds, strict=True)
        ]
        metrics = stack_scores([each.scores for each in tested])
    if not run.writes:
        return

    with watch("report"):
        seeds = f" · {config.seeds} seeds, pictures of the first" if config.seeds > 1 else ""
        subtitle = f"{config.data} · {model.model} · {fitted.steps} steps{seeds}"
        report = Report("One latent space for several modalities", subtitle)
        headline = [
            k for k in metrics if k.startswith(("cross/coherence", "joint_prior/coherence", "likelihood/"))
        ][:6]
        report.add_metrics(
            metrics, headline=headline, chance={k: 1 / classes for k in headline if "cross" in k}
        )
        show = latent_report.Showcase(
            model, tokenize.tokenizer.decode if tokenize else None, train.class_names
        )
        params, found = fitted.params[0], tested[0]
        latent_report.add_translations(report, explorer, params, test, show, run.path)
        report.add_figure("Coherence", latent_report.coherence_figure(explorer, found.classes, found.labels))
        latent_report.add_draws(report, explorer, params, found.draws, show)
        latent_report.add_traversals(report, explorer, params, found.codes["mean"], show, run.path)
        latent_report.add_map(report, explorer, found.codes, found.labels, train.class_names)
        report.add_figure("Curves", figures.curves(run.read_metrics()))
    finish(
        run, report, metrics, headline=headline[:4], problems=problems, watch=watch, seeds=fitted.seeds,
        diverged=fitted.diverged, steps=fitted.steps, parameters=trees.count(fitted.params[0]),
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__, config=(tyro.conf.AvoidSubcommands,)))
