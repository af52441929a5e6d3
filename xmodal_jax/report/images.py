"""Tables and files of generated images, for the reports of experiments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.source import read_fields
from xmodal_jax.evaluation.image_judge import JudgeReport
from xmodal_jax.evaluation.images import ImageGenerator, SplitImageGenerator
from xmodal_jax.evaluation.text import ReferenceTexts
from xmodal_jax.report import figures
from xmodal_jax.report.page import Report, png
from xmodal_jax.train.run import Run, write_atomic

HISTORY_CAPTIONS = 64
"""Number of captions that a `SampleHistory` generates images for."""
TRUNCATIONS = (0.3, 0.6, 1.0, 1.4)
"""Factors of the noise in the table of truncations."""


CURVES = (
    *("train/d_loss", "train/g_loss", "train/g_reconstruction"),
    *("validation/factor_accuracy", "validation/kid"),
)
"""Metrics in the figure of curves."""
IMAGE_FILES = 200
"""Number of images that `add_images` writes as files, real and generated."""


class SampleHistory:
    """Images of the same captions and the same noise, generated as training goes on and written as PNG files."""

    def __init__(
        self, folder: Path, generator: ImageGenerator, conditions: dict[str, np.ndarray], *, seed: int
    ):
        """``folder``: where the files go. ``conditions``: of a split, of which the first ones are used."""
        self.folder, self.generator = folder, generator
        self.conditions = {name: values[:HISTORY_CAPTIONS] for name, values in conditions.items()}
        self.noise = generator.sample_noise(len(next(iter(self.conditions.values()))), seed)
        self.samples: list[np.ndarray] = []
        """uint8 ``[N, H, W, C]`` of each time."""

    def add(self, params: Any) -> None:
        """Generates images with the parameters of now, and writes them as the next file."""
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
    """The images of a GAN's test split, in the report and as files in the run's folder, and the curves of training.

    Args:
      images: uint8 ``[N, H, W, C]``, one for each caption of ``test``, which ``generate`` has made with ``params``.
      judge: captions these images.
      history: samples during training.
    """
    texts, conditions = test.texts, generate.conditions["test"]
    real = read_fields(test.source, ("image",))["image"]
    samples = [images, *(generate(params, "test", k) for k in range(1, 4))]
    add_samples(report, "Samples", texts, real, samples, judge.captions(images))
    add_history(report, history, texts)
    add_interpolations(report, generate.generator, params, conditions, texts, seed=generate.seed)
    report.add_figure("Training curves", figures.curves(run.read_metrics(), CURVES))
    write_images(run.path / "generated", images[:IMAGE_FILES], texts[:IMAGE_FILES])
    write_images(run.path / "real", real[:IMAGE_FILES], texts[:IMAGE_FILES])
    write_comparison(run.path / "grid.png", real, images)


def tile_images(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Images ``[N, H, W, C]`` as one image with ``columns`` in a row; black where the last row has none."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), images.dtype)
    padded[:count] = images
    return (
        padded.reshape(rows, columns, height, width, channels)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, channels)
    )


def write_images(folder: Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """Writes images as PNG files with a ``metadata.jsonl``: a folder data set, as `experiments/rate.py` takes it."""
    lines = []
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        write_atomic(folder / f"{k:05d}.png", png(image))
        lines.append(json.dumps({"file_name": f"{k:05d}.png", "text": str(caption)}) + "\n")
    write_atomic(folder / "metadata.jsonl", "".join(lines))


def write_comparison(
    path: Path, real: np.ndarray, generated: np.ndarray, *, columns: int = 12, bands: int = 2
) -> None:
    """Writes a PNG file with ``bands`` rows of real images, each above a row of those generated for their captions."""
    columns = min(columns, len(real))
    starts = [k for k in range(0, bands * columns, columns) if k + columns <= len(real)]
    rows = [images[k : k + columns] for k in starts for images in (real, generated)]
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
    """A table of captions, real images, several generated ones, and the judge's captions of the first of these."""
    columns = ["caption", "real", *["generated"] * len(generated)]
    columns += ["judge's caption of the first"] * (judge_captions is not None)
    body = [
        [captions[k], real[k], *(images[k] for images in generated)]
        + ([judge_captions[k]] if judge_captions is not None else [])
        for k in range(min(count, len(real)))
    ]
    report.add_table(title, columns, body)


def add_history(report: Report, history: SampleHistory, captions: Sequence[str], count: int = 6) -> None:
    """A table of images of the same captions and noise, at up to 8 times of the training."""
    if not history.samples:
        return
    times = np.unique(np.linspace(0, len(history.samples) - 1, min(8, len(history.samples))).astype(int))
    body = [[captions[k], *(history.samples[t][k] for t in times)] for k in range(min(count, len(captions)))]
    report.add_table(
        "Samples during training", ["caption", *(f"evaluation {t + 1}" for t in times)], body,
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
    """Tables of spherical interpolations of the noise, of interpolations between captions, and of truncations."""
    steps = 8
    repeat = lambda k, n: {
        name: np.repeat(values[k : k + 1], n, axis=0) for name, values in conditions.items()
    }
    body = []
    for k in range(min(4, len(captions))):
        a, b = generator.sample_noise(2, seed + k)
        body.append([captions[k], *generator(params, repeat(k, steps), slerp(a, b, steps))])
    report.add_table("Interpolation of the noise", ["caption", *[""] * steps], body)
    body = []
    for k in range(min(4, len(captions) - 1)):
        targets = {f"toward_{name}": v for name, v in repeat(k + 1, steps).items() if name != "index"}
        blend = {"blend": np.linspace(0.0, 1.0, steps, dtype=np.float32)}
        noise = np.repeat(generator.sample_noise(1, seed + k), steps, axis=0)
        images = generator(params, repeat(k, steps) | targets | blend, noise)
        body.append([captions[k], *images, captions[k + 1]])
    if body:
        report.add_table("Interpolation of captions", ["from", *[""] * steps, "to"], body)
    body = []
    for k in range(min(4, len(captions))):
        noise = generator.sample_noise(2, seed + k)
        scaled = np.concatenate([factor * noise for factor in TRUNCATIONS])
        body.append([captions[k], *generator(params, repeat(k, len(scaled)), scaled)])
    names = [f"noise × {factor}" for factor in TRUNCATIONS for _ in range(2)]
    report.add_table("Truncation", ["caption", *names], body)


def slerp(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Spherical interpolation ``[steps, D]`` from a to b, with interpolated length (Shoemake 1985)."""
    unit = lambda x: x / np.linalg.norm(x)
    angle = np.arccos(np.clip(unit(a) @ unit(b), -1.0, 1.0))
    t = np.linspace(0.0, 1.0, steps)[:, None]
    if np.sin(angle) < 1e-6:
        return ((1.0 - t) * a[None] + t * b[None]).astype(np.float32)
    return ((np.sin((1.0 - t) * angle) * a[None] + np.sin(t * angle) * b[None]) / np.sin(angle)).astype(
        np.float32
    )
