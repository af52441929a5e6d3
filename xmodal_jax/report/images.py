"""Tables and files of generated images, for the reports of experiments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.source import read_fields
from xmodal_jax.evaluation.image_judge import JudgeReport, r_precision_chance, small_accuracies
from xmodal_jax.evaluation.images import ImageGenerator, SplitImageGenerator
from xmodal_jax.evaluation.learning import LearningScores
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.report import figures
from xmodal_jax.report import text as text_report
from xmodal_jax.report.learning import add_learning
from xmodal_jax.report.page import Report, png
from xmodal_jax.train.run import Run, write_atomic

HISTORY_CAPTIONS = 64
"""Number of captions that a `SampleHistory` generates images for."""
TRUNCATIONS = (0.3, 0.6, 1.0, 1.4)
"""Factors of the noise in the table of truncations."""


CURVES = (
    *("train/d_loss", "train/g_loss", "train/g_reconstruction"),
    *("validation/factor_accuracy", "validation/judge_kernel_distance"),
)
"""Metrics in the figure of curves."""
IMAGE_FILES = 200
"""Number of images that `add_images` writes as files, real and generated."""


def add_scores(
    report: Report,
    metrics: Mapping[str, Any],
    learned: LearningScores | None = None,
    *,
    seeds: Sequence[int] = (0,),
) -> None:
    """Cards of at most six metrics: the most telling ones of a judge (a trained captioner), or without a judge the
    first ones. A table of all metrics, and bars of the accuracy of each factor of a scene. Prints and shows which
    seeds have not learned what the captions say.

    ``metrics``: by name, a number or one per seed. ``learned``: what classifiers learn from the images, in tables of
    its own; None: nothing is known of it.
    """
    if failures := describe_failures(metrics, seeds):
        report.add_text("What was not learned", "\n".join(failures))
        print(*failures, sep="\n")
    endings = ("/factor_accuracy", "/judge_kernel_distance", "/judge_kernel_distance_real")
    on_cards = [k for k in metrics if k.endswith(endings) or "/r_precision" in k] or list(metrics)
    chance = {k: r_precision_chance(k) for k in on_cards if "/r_precision" in k}
    text_report.add_scores(report, metrics, on_cards[:6], chance=chance)
    if learned is not None:
        add_learning(report, learned)


def describe_failures(metrics: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
    """A sentence for each of the ``seeds`` whose images seldom show what their captions say, see `small_accuracies`.
    ``metrics``: by name, a number or one per seed."""
    sentences = []
    for k, seed in enumerate(seeds):
        of_seed = {name: float(np.ravel(value)[k]) for name, value in metrics.items() if np.size(value) > k}
        small = small_accuracies(of_seed)
        if small:
            parts = [
                f"{name.removesuffix('_accuracy')} {generated:.2f} (real images: {real:.2f})"
                for name, (generated, real) in small.items()
            ]
            sentences.append(
                f"Seed {seed}: the images seldom show what their captions say: {', '.join(parts)}. More steps "
                "(--steps) or another --seed may help."
            )
    return sentences


class SampleHistory:
    """Images generated for the same captions and the same noise at several times of the training; each time they are
    written as a PNG file."""

    def __init__(
        self, folder: Path, generator: ImageGenerator, conditions: dict[str, np.ndarray], *, seed: int
    ):
        """``folder``: where the files go. ``conditions``: those of a split, arrays ``[N, ...]`` by name; the first
        `HISTORY_CAPTIONS` are used. ``seed``: of the noise."""
        self.folder, self.generator = folder, generator
        self.conditions = {name: values[:HISTORY_CAPTIONS] for name, values in conditions.items()}
        self.noise = generator.sample_noise(len(next(iter(self.conditions.values()))), seed)
        self.samples: list[np.ndarray] = []
        """The images of each time, uint8 ``[N, H, W, C]``."""

    def add(self, params: Any) -> None:
        """Generates images with the current parameters ``params``, and writes them as the next file."""
        self.samples.append(self.generator(params, self.conditions, self.noise))
        path = self.folder / f"{len(self.samples):03d}.png"
        write_atomic(path, png(tile_images(self.samples[-1], columns=8)))


def add_images(
    report: Report,
    run: Run,
    generate: SplitImageGenerator,
    params: Any,
    test: ReferenceTexts,
    images: np.ndarray,
    judge: JudgeReport,
    history: SampleHistory,
) -> None:
    """Everything that a GAN's report shows: samples, their history, interpolations and training curves. Also writes
    images as files in the run's folder, with the real images of the same captions.

    Args:
      report: gets the sections.
      run: its directory gets the files.
      generate: generates the images of a split.
      params: of the GAN.
      test: the test split.
      images: uint8 ``[N, H, W, C]``, one for each caption of ``test``, which ``generate`` has made with ``params``.
      judge: the trained captioner that captions these images.
      history: samples during training.
    """
    texts, conditions = test.texts, generate.conditions["test"]
    real = read_fields(test.source, ("image",))["image"]
    samples = [images, *(generate(params, "test", sample=k) for k in range(1, 4))]  # other noise for each k
    add_samples(report, "Samples", texts, real, samples, judge.captions(images))
    add_stages(report, texts, real, generate.first_stage(params, ["test"]).get("test"), images)
    add_history(report, history, texts)
    add_interpolations(report, generate.generator, params, conditions, texts, seed=generate.seed)
    report.add_figure("Training curves", figures.curves(run.read_metrics(), CURVES))
    write_images(run.path / "generated", images[:IMAGE_FILES], texts[:IMAGE_FILES])
    write_images(run.path / "real", real[:IMAGE_FILES], texts[:IMAGE_FILES])
    write_comparison(run.path / "grid.png", real, images)


def tile_images(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Images ``[N, H, W, C]`` as one image, a grid with ``columns`` images in a row; empty cells of the last row are
    black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)  # rounded up
    padded = np.zeros((rows * columns, height, width, channels), images.dtype)
    padded[:count] = images
    # [rows, columns, H, W, C] -> [rows, H, columns, W, C]: the pixels of a row of the grid follow each other.
    grid = padded.reshape(rows, columns, height, width, channels)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def write_images(folder: Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """Writes images as PNG files, and their captions to ``metadata.jsonl``: a folder data set, as `experiments/rate.py`
    reads it."""
    lines = []
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        name = f"{k:05d}.png"
        write_atomic(folder / name, png(image))
        lines.append(json.dumps({"file_name": name, "text": str(caption)}) + "\n")
    write_atomic(folder / "metadata.jsonl", "".join(lines))


def write_comparison(
    path: Path, real: np.ndarray, generated: np.ndarray, *, columns: int = 12, bands: int = 2
) -> None:
    """Writes a PNG file that compares real and generated images: ``bands`` times a row of real images, above a row of
    the images generated for the same captions. ``real`` and ``generated``: uint8 ``[N, H, W, C]``."""
    columns = min(columns, len(real))
    # The index of the first image of each band; incomplete bands are left out.
    starts = [start for start in range(0, bands * columns, columns) if start + columns <= len(real)]
    rows = [images[start : start + columns] for start in starts for images in (real, generated)]
    write_atomic(path, png(tile_images(np.concatenate(rows), columns=columns)))


def add_samples(
    report: Report,
    title: str,
    captions: Sequence[str],
    real: np.ndarray,
    generated: Sequence[np.ndarray],
    judge_captions: Sequence[str] | None,
    count: int = 24,
) -> None:
    """A table with a row for each of the first ``count`` examples: its caption, its real image, generated images, and
    the judge's caption of the first generated one. The judge is a trained captioner.

    ``generated``: several arrays of images ``[N, H, W, C]``, of different noise. ``judge_captions``: of the first of
    these arrays; None: there is no judge, and the table has no such column.
    """
    columns = ["caption", "real", *["generated"] * len(generated)]
    if judge_captions is not None:
        columns.append("judge's caption of the first")
    rows = []
    for k in range(min(count, len(real))):
        row = [captions[k], real[k], *(images[k] for images in generated)]
        if judge_captions is not None:
            row.append(judge_captions[k])
        rows.append(row)
    report.add_table(title, columns, rows)


def add_stages(
    report: Report,
    captions: Sequence[str],
    real: np.ndarray,
    first: np.ndarray | None,
    second: np.ndarray,
    count: int = 12,
) -> None:
    """A table of the first ``count`` captions with their real image and those of both stages of a GAN, of the same
    noise; nothing if ``first`` is None. All images are uint8 ``[N, H, W, C]``, those of the first stage enlarged."""
    if first is None:
        return
    rows = [[captions[k], real[k], first[k], second[k]] for k in range(min(count, len(real)))]
    report.add_table(
        "Both stages", ["caption", "real", "first stage", "second stage"], rows,
        note="The images of the first stage are enlarged by cubic interpolation, and scored so (first_stage_test/...).",
    )  # fmt: skip


def add_history(report: Report, history: SampleHistory, captions: Sequence[str], count: int = 6) -> None:
    """A table of the images that were generated for the first ``count`` captions in up to 8 evaluations during
    training; nothing if there was none."""
    if not history.samples:
        return
    total = len(history.samples)
    evaluations = np.unique(np.linspace(0, total - 1, min(8, total)).astype(int))  # evenly spaced
    rows = [
        [captions[k], *(history.samples[t][k] for t in evaluations)] for k in range(min(count, len(captions)))
    ]
    report.add_table(
        "Samples during training", ["caption", *(f"evaluation {t + 1}" for t in evaluations)], rows,
        note="The same noise each time.",
    )  # fmt: skip


def add_interpolations(
    report: Report,
    generator: ImageGenerator,
    params: Any,
    conditions: dict[str, np.ndarray],
    captions: Sequence[str],
    *,
    seed: int,
) -> None:
    """Tables of generated images for the first captions, a row each: the noise interpolated, the caption interpolated
    to the next one, and the noise scaled (truncation).

    ``params``: what `types.GAN.predict` takes. ``conditions``: of the captions, arrays ``[N, ...]`` by name. ``seed``:
    of the noise.
    """
    steps = 8

    def repeated_condition(k: int, count: int) -> dict[str, np.ndarray]:
        """The condition of caption k, ``count`` times."""
        return {name: np.repeat(values[k : k + 1], count, axis=0) for name, values in conditions.items()}

    rows = []
    for k in range(min(4, len(captions))):
        start, end = generator.sample_noise(2, seed + k)
        images = generator(params, repeated_condition(k, steps), slerp(start, end, steps))
        rows.append([captions[k], *images])
    report.add_table("Interpolation of the noise", ["caption", *[""] * steps], rows)
    rows = []
    for k in range(min(4, len(captions) - 1)):
        # The generator blends the condition with the one in the fields "toward_...", by the fraction "blend".
        next_condition = repeated_condition(k + 1, steps)
        toward = {f"toward_{name}": v for name, v in next_condition.items() if name != "index"}
        blend = {"blend": np.linspace(0.0, 1.0, steps, dtype=np.float32)}
        noise = np.repeat(generator.sample_noise(1, seed + k), steps, axis=0)
        images = generator(params, repeated_condition(k, steps) | toward | blend, noise)
        rows.append([captions[k], *images, captions[k + 1]])
    if rows:
        report.add_table("Interpolation of captions", ["from", *[""] * steps, "to"], rows)
    rows = []
    for k in range(min(4, len(captions))):
        # Two images for each factor of the noise: small factors give more typical, but less varied images.
        noise = generator.sample_noise(2, seed + k)
        scaled = np.concatenate([factor * noise for factor in TRUNCATIONS])
        rows.append([captions[k], *generator(params, repeated_condition(k, len(scaled)), scaled)])
    headings = [f"noise × {factor}" for factor in TRUNCATIONS for _ in range(2)]
    report.add_table("Truncation", ["caption", *headings], rows)


def slerp(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Spherical interpolation ``[steps, D]`` from ``a [D]`` to ``b [D]`` (Shoemake 1985).

    ``(sin((1 - t) w) a + sin(t w) b) / sin(w)`` for ``t`` from 0 to 1, where ``w`` is the angle between ``a`` and
    ``b``; linear interpolation where they are parallel.
    """
    unit = lambda x: x / np.linalg.norm(x)
    angle = np.arccos(np.clip(unit(a) @ unit(b), -1.0, 1.0))
    t = np.linspace(0.0, 1.0, steps)[:, None]  # [steps, 1]
    if np.sin(angle) < 1e-6:
        return ((1.0 - t) * a[None] + t * b[None]).astype(np.float32)
    return ((np.sin((1.0 - t) * angle) * a[None] + np.sin(t * angle) * b[None]) / np.sin(angle)).astype(
        np.float32
    )
