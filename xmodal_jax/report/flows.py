"""What only reports of flows show: images by other samplers and guidance, and images that were changed."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from xmodal_jax.data.source import read_fields
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.image_judge import JudgeReport
from xmodal_jax.evaluation.images import ImageGenerator, SplitImageGenerator
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.models.flow import EulerSampler, FlowModel, HeunSampler, JumpSampler
from xmodal_jax.models.flow.samplers import Sampler
from xmodal_jax.preprocess.image import to_pixels
from xmodal_jax.report.page import Report

EXAMPLES = 6
"""Number of captions in the tables."""
SCORED = 500
"""Largest number of images by which samplers are compared."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
"""Strengths of guidance in the table of guidance."""
STRENGTHS = (0.3, 0.5, 0.7, 0.85)
"""Strengths in the table of changed images."""
SCORES = ("factor_accuracy", "exact_accuracy", "judge_kernel_distance", "judge_frechet_distance")
"""The judge's scores in the table of samplers."""


def add_flow_images(
    report: Report,
    flow: FlowModel,
    generate: SplitImageGenerator,
    params: Any,
    test: ReferenceTexts,
    judge: JudgeReport,
) -> None:
    """The tables below, of the test split: samplers, guidance, and changed images.

    Args:
      report: gets the tables.
      flow: the model.
      generate: generates the images of a split.
      params: the model's parameters.
      test: the test split.
      judge: a trained captioner that scores images; without one the samplers have no scores.
    """
    add_samplers(report, flow, generate, params, test, judge)
    few = {name: values[:EXAMPLES] for name, values in generate.conditions["test"].items()}
    if flow.config.condition.dropout:
        add_guidance(report, flow, generate.generator, params, few, test, seed=generate.seed)
    add_changes(report, flow, params, few, test, seed=generate.seed)


def samplers_to_compare(flow: FlowModel) -> dict[str, Sampler]:
    """Samplers by name, from few to many evaluations of the network, all with the guidance of the run."""
    config = flow.config.sampler
    options = dict(guidance=config.guidance, guidance_interval=config.guidance_interval)
    samplers: list[Sampler] = [EulerSampler(steps=n, **options) for n in (1, 4, 12)]
    samplers.append(HeunSampler(steps=25, **options))
    if flow.config.objective.predicts_mean:
        samplers = [JumpSampler(steps=n, **options) for n in (1, 2, 4)] + samplers
    return {f"{sampler.name} {sampler.steps}": sampler for sampler in samplers}


def _with_sampler(flow: FlowModel, sampler: Sampler) -> FlowModel:
    """The flow with another sampler."""
    return dataclasses.replace(flow, config=dataclasses.replace(flow.config, sampler=sampler))


def _generator(flow: FlowModel, sampler: Sampler, like: ImageGenerator) -> ImageGenerator:
    """The generator of images with another sampler, and the tokenization of ``like``."""
    return ImageGenerator(_with_sampler(flow, sampler).method, like.tokenize, noise=flow.dimensions)


def add_samplers(
    report: Report,
    flow: FlowModel,
    generate: SplitImageGenerator,
    params: Any,
    test: ReferenceTexts,
    judge: JudgeReport,
) -> None:
    """The same noise by different samplers: images of the first captions and, with a judge, the scores of at most
    `SCORED` images."""
    conditions, texts = generate.conditions["test"], test.texts
    count = min(SCORED if judge.judge is not None else EXAMPLES, len(texts))
    conditions = {name: values[:count] for name, values in conditions.items()}
    noise = generate.generator.sample_noise(count, generate.seed)
    columns, rows = {}, []
    for name, sampler in samplers_to_compare(flow).items():
        generator, start = _generator(flow, sampler, generate.generator), time.perf_counter()
        columns[name] = generator(params, conditions, noise)
        seconds = (time.perf_counter() - start) / count
        scores = judge.scores({"test": columns[name]})
        rows.append(
            [name, *(round(scores[f"test/{s}"], 4) for s in SCORES if scores), f"{1e3 * seconds:.1f}"]
        )
    shown = [[texts[k], *(images[k] for images in columns.values())] for k in range(min(EXAMPLES, count))]
    report.add_table("Samplers", ["caption", *columns], shown, note="The name, and its number of steps.")
    headings = ["sampler", *(SCORES if judge.judge is not None else ()), "ms per image"]
    report.add_table(
        "Scores of the samplers", headings, rows, note=f"Of {count} images. The time includes compilation."
    )


def add_guidance(
    report: Report,
    flow: FlowModel,
    generator: ImageGenerator,
    params: Any,
    conditions: dict[str, np.ndarray],
    test: ReferenceTexts,
    *,
    seed: int,
) -> None:
    """The same noise with different strengths of guidance, for each of ``conditions``."""
    count = len(next(iter(conditions.values())))
    noise = generator.sample_noise(count, seed)
    columns = []
    for guidance in GUIDANCE:
        sampler = dataclasses.replace(flow.config.sampler, guidance=guidance)
        columns.append(_generator(flow, sampler, generator)(params, conditions, noise))
    rows = [[test.texts[k], *(images[k] for images in columns)] for k in range(count)]
    report.add_table("Guidance", ["caption", *(f"× {guidance:g}" for guidance in GUIDANCE)], rows)


def add_changes(
    report: Report,
    flow: FlowModel,
    params: Any,
    conditions: dict[str, np.ndarray],
    test: ReferenceTexts,
    *,
    seed: int,
) -> None:
    """Real images changed toward the caption of the next one, by different strengths."""
    count = len(next(iter(conditions.values())))
    real = read_fields(test.source, ("image",))["image"][:count]
    toward = {name: np.roll(values, -1, axis=0) for name, values in conditions.items()}
    noise = np.random.default_rng(seed).standard_normal((count, flow.dimensions), np.float32)
    change = lambda params, batch: to_pixels(flow.edit(params, batch, batch["noise"], start=batch["start"]))
    columns = []
    for strength in STRENGTHS:
        fields = {**toward, "image": real, "noise": noise, "index": np.arange(count, dtype=np.int32)}
        source = ArraySource({**fields, "start": np.full(count, 1.0 - strength, np.float32)})
        columns.append(predict_all(change, params, source))
    texts = test.texts[:count]
    rows = [[real[k], texts[(k + 1) % count], *(images[k] for images in columns)] for k in range(count)]
    headings = ["real image", "new caption", *(f"strength {strength:g}" for strength in STRENGTHS)]
    report.add_table("Changed images", headings, rows, note="Strength 0 changes nothing, 1 is a new image.")
