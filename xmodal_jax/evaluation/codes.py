"""Training autoencoders of several modalities within a run, and the codes of whole data sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import choose_batch_size
from xmodal_jax.evaluation import latent
from xmodal_jax.evaluation.embeddings import predict_all, take_evenly
from xmodal_jax.evaluation.generated_speech import EXAMPLES as SPEECH_EXAMPLES
from xmodal_jax.evaluation.generated_speech import SpeechEvaluator, complete_examples, speech_metrics
from xmodal_jax.evaluation.latent import (
    SMOKE,
    LatentEvaluation,
    LatentEvaluator,
    LatentResults,
    coherence_metrics,
    shrink_latent,
)
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.learning import LearningEvaluation
from xmodal_jax.models.flow.codes import CodeModel
from xmodal_jax.models.flow.multimodal import CODES, FROZEN, MultimodalFlow, code_statistics
from xmodal_jax.models.vae.networks import make_groups
from xmodal_jax.nets.decoders import Size
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import TrainingResult, fit, shapes_of
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.types import Method

EVALUATION = LatentEvaluation(
    examples=500, draws=500, densities=(), latents=500, disentanglement=False,
    learning=LearningEvaluation(examples=500, real_sizes=(200,)),
)  # fmt: skip
"""What is evaluated of a flow by default: generation takes longer than in a VAE, so that fewer examples are evaluated,
also of those whose latents are encoded, which generates what a single modality leaves out. No density is needed."""
FOLDER = "autoencoders"
"""The folder of a run's directory that holds the training of its autoencoders."""


def fit_autoencoders(
    method: Method,
    loader: Loader,
    config: RunConfig,
    optimizer: Optimizer,
    run: Run,
    timer: Timer,
    steps: int,
) -> Any:
    """Trains autoencoders for ``steps`` steps with one seed, and returns their parameters.

    This training is a run of its own, in the folder ``autoencoders`` of the directory of ``run``, with its own
    checkpoints: a run that is resumed goes on in this training, or takes its last checkpoint if it has ended.
    ``config``: of the whole run; batch size and data options are taken from it.
    """
    config = dataclasses.replace(config, steps=steps, eval_every=0, patience=0, seeds=1)
    options = dict(resume=config.resume, writer=run.writes, tensorboard=False)
    with Run.create(run.path / FOLDER, config, **options) as own_run:
        run.print("training the autoencoders")
        flag = "--autoencoder-steps"
        return fit(method, loader, config, optimizer, own_run, timer, steps_flag=flag).params[0]


class EncodedSource(NamedTuple):
    """The codes of a data set."""

    source: ArraySource
    """Standardised codes ``<modality>_codes [N, tokens, dims]``, 0 where the modality is missing, and ``present``."""
    statistics: Mapping[str, Mapping[str, np.ndarray]]
    """Mean and standard deviation of every dimension of a code, by modality."""


def encode_source(
    model: CodeModel, params: Any, source: Source, transform: Callable | None, *, batch_size: int = 250
) -> EncodedSource:
    """The codes of all examples of ``source``, standardised by their own statistics.

    ``transform``: of raw batches, such as tokenization; None: there is none.

    Raises:
      ValueError: no example has one of the modalities.
    """
    codes, present = predict_all(model.encode, params, source, batch_size=batch_size, transform=transform)
    present = dict(zip(model.modalities, np.ascontiguousarray(present.T), strict=True))
    fields, statistics = {}, {}
    for m in model.modalities:
        if not present[m].any():
            raise ValueError(f"no example has the modality {m}: leave it out, or give examples that have it")
        s = code_statistics(codes[m], present[m])
        statistics[m] = {"mean": s.mean, "std": s.std}
        standard = (codes[m] - s.mean) / s.std
        fields[m + CODES] = np.where(present[m][:, None, None], standard, np.float32(0.0)).astype(np.float32)
    return EncodedSource(ArraySource({**fields, "present": present}), statistics)


def make_code_loader(encoded: EncodedSource, config: RunConfig, bad_examples: BadExamples) -> Loader:
    """Batches of codes, on which the flow is trained."""
    batch_size = choose_batch_size(config.batch_size, encoded.source, bad_examples)
    return Loader(encoded.source, batch_size=batch_size, seed=config.seed)


def flow_metadata(sizes: Mapping[str, Size], data: LatentData, example: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps so that the run can be used on new data (`inference.load`). ``example``: a batch of data,
    from which codes are computed."""
    size_lists = {m: [*size.shape, size.values] for m, size in sizes.items()}
    modalities = [name for group in make_groups(sizes) for name in group.names]
    of_model = {"kind": "multimodal_flow", "modalities": modalities, "sizes": size_lists}
    return {**of_model, **data.metadata, "shapes": shapes_of(example)}


def freeze_trained(optimizer: Optimizer) -> Optimizer:
    """``optimizer`` for the training of the flow, which leaves autoencoders and statistics as they are."""
    return dataclasses.replace(optimizer, freeze=(*optimizer.freeze, *FROZEN))


def make_validation(
    evaluator: LatentEvaluator, judge_params: Any, source: Source, *, examples: int = 200
) -> Callable[[Any], dict[str, float]]:
    """``validate(params)``: how often data generated from ``examples`` examples of ``source`` show their class, as the
    judges with ``judge_params`` see it."""
    source = take_evenly(source, examples)

    def validate(params: Any) -> dict[str, float]:
        metrics = coherence_metrics(evaluator, params, judge_params, source)[0]
        return {f"validation/{name.split('/')[1]}": value for name, value in metrics.items()}

    return validate


def shrink_flow(config: Any) -> Any:
    """The configuration ``config`` of a flow over codes, reduced to that of a ``--smoke`` run."""
    return dataclasses.replace(
        shrink_latent(config), autoencoder_steps=4, evaluation=dataclasses.replace(SMOKE, densities=())
    )


def evaluate_seeds(
    flow: MultimodalFlow,
    evaluator: LatentEvaluator,
    trained: TrainingResult,
    judge_params: Any,
    data: LatentData,
    evaluation: LatentEvaluation,
    speech: SpeechEvaluator | None = None,
) -> list[LatentResults]:
    """`evaluation.latent.evaluate_seeds` of a flow, whose likelihood is that of codes and not of data
    (`code_likelihood`). ``speech``: transcribes generated speech; None: nothing does."""
    results = latent.evaluate_seeds(evaluator, trained, judge_params, data, evaluation, has_likelihood=False)
    log_density = lambda params, batch: flow.code_log_density(params, batch, evaluator.key)
    for k, params in enumerate(trained.params):
        metrics = code_likelihood(log_density, flow.dim, evaluator, params, data.test)
        if speech is not None:
            count = min(evaluation.examples, SPEECH_EXAMPLES)
            transcribed = speech(evaluator, params, data.test, results[k].draws["prior"], examples=count)
            metrics |= speech_metrics(transcribed)
            results[k] = results[k]._replace(speech=transcribed)
        results[k] = results[k]._replace(metrics=results[k].metrics | metrics)
    return results


LIKELIHOOD_EXAMPLES = 100
"""Largest number of test examples whose codes' likelihood is computed."""


def code_likelihood(
    log_density: Callable[[Any, Any], Any], dim: int, evaluator: LatentEvaluator, params: Any, source: Source
) -> dict[str, float]:
    """``likelihood/code_nats_per_dim``: the mean over examples of the negative log-density of the standardised codes of
    all modalities, by their dimensions; lower is better, and a standard normal distribution has about 1.42.
    ``likelihood/code_nats_per_dim_se``: its standard error. Nothing if fewer than two examples have all modalities.

    ``log_density(params, batch) -> [B]`` in nats, of codes of ``dim`` dimensions.
    """
    complete = complete_examples(evaluator, source)
    if complete is None or len(complete) < 2:
        return {}
    chosen = take_evenly(complete, LIKELIHOOD_EXAMPLES)
    nats = -np.float64(predict_all(log_density, params, chosen, transform=evaluator.transform)) / dim
    error = float(nats.std(ddof=1) / np.sqrt(len(nats)))
    name = "likelihood/code_nats_per_dim"
    return {name: float(nats.mean()), f"{name}_se": error}
