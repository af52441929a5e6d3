"""What the reports of experiments that draw pictures show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.evaluation.images import Artist
from xmodal_jax.report.page import Report, png
from xmodal_jax.train.run import write_atomic

DIARY = 64
"""Captions that are drawn again and again."""
TRUNCATIONS = (0.3, 0.6, 1.0, 1.4)


class Diary:
    """Pictures of the same captions with the same noise, drawn as training goes on and kept as PNG files."""

    def __init__(self, folder: Path, artist: Artist, asked: dict[str, np.ndarray], *, seed: int):
        self.folder, self.artist = folder, artist
        self.asked = {name: values[:DIARY] for name, values in asked.items()}
        self.noise = artist.draw_noise(len(next(iter(self.asked.values()))), seed)
        self.pages: list[np.ndarray] = []

    def add(self, params: Any) -> None:
        """One more page."""
        self.pages.append(self.artist(params, self.asked, self.noise))
        write_atomic(self.folder / f"{len(self.pages):03d}.png", png(sheet(self.pages[-1], columns=8)))


def sheet(images: np.ndarray, *, columns: int) -> np.ndarray:
    """Pictures ``[N, H, W, C]`` as one, in rows of ``columns``; the last row is filled up with black."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, channels), images.dtype)
    filled[:count] = images
    return (
        filled.reshape(rows, columns, height, width, channels)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width, channels)
    )


def write_pictures(folder: Path, images: np.ndarray, captions: Sequence[str]) -> None:
    """Pictures as PNG files with a ``metadata.jsonl``: a data set of its own, which `experiments/rate.py` takes."""
    lines = []
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        write_atomic(folder / f"{k:05d}.png", png(image))
        lines.append(json.dumps({"file_name": f"{k:05d}.png", "text": str(caption)}) + "\n")
    write_atomic(folder / "metadata.jsonl", "".join(lines))


def write_grid(path: Path, real: np.ndarray, drawn: np.ndarray, *, columns: int = 12, bands: int = 2) -> None:
    """Pictures of a split, each above what was drawn for its caption, as one PNG file."""
    columns = min(columns, len(real))
    starts = [k for k in range(0, bands * columns, columns) if k + columns <= len(real)]
    rows = [part[k : k + columns] for k in starts for part in (real, drawn)]
    write_atomic(path, png(sheet(np.concatenate(rows), columns=columns)))


def add_pairs(
    report: Report,
    title: str,
    captions: Sequence[str],
    real: np.ndarray,
    drawn: Sequence[np.ndarray],
    said: Sequence[str] | None,
    count: int = 24,
) -> None:
    """A table of captions, the split's own picture, several drawn for it, and what the judge reads off the first."""
    columns = ["asked for", "real", *["drawn"] * len(drawn)] + ["read off the first"] * (said is not None)
    body = [
        [captions[k], real[k], *(each[k] for each in drawn)] + ([said[k]] if said is not None else [])
        for k in range(min(count, len(real)))
    ]
    report.add_table(title, columns, body)


def add_progress(report: Report, diary: Diary, captions: Sequence[str], count: int = 6) -> None:
    """The pages of a diary, a row per caption."""
    if not diary.pages:
        return
    chosen = np.unique(np.linspace(0, len(diary.pages) - 1, min(8, len(diary.pages))).astype(int))
    body = [[captions[k], *(diary.pages[p][k] for p in chosen)] for k in range(min(count, len(captions)))]
    report.add_table(
        "Along training", ["asked for", *(f"evaluation {p + 1}" for p in chosen)], body,
        note="The same noise each time.",
    )  # fmt: skip


def add_interpolations(
    report: Report,
    artist: Artist,
    params: Any,
    asked: dict[str, np.ndarray],
    captions: Sequence[str],
    *,
    seed: int,
) -> None:
    """From one noise to another under one caption (along the sphere), from one caption to the next under one noise, and
    how the noise's size matters."""
    steps = 8
    pick = lambda k, n: {name: np.repeat(values[k : k + 1], n, axis=0) for name, values in asked.items()}
    body = []
    for k in range(min(4, len(captions))):
        a, b = artist.draw_noise(2, seed + k)
        body.append([captions[k], *artist(params, pick(k, steps), slerp(a, b, steps))])
    report.add_table("From one noise to another", ["asked for", *[""] * steps], body)
    body = []
    for k in range(min(4, len(captions) - 1)):
        there = {f"toward_{name}": v for name, v in pick(k + 1, steps).items() if name != "index"}
        blend = {"blend": np.linspace(0.0, 1.0, steps, dtype=np.float32)}
        noise = np.repeat(artist.draw_noise(1, seed + k), steps, axis=0)
        body.append([captions[k], *artist(params, pick(k, steps) | there | blend, noise), captions[k + 1]])
    if body:
        report.add_table("From one caption to another", ["from", *[""] * steps, "to"], body)
    body = []
    for k in range(min(4, len(captions))):
        noise = artist.draw_noise(2, seed + k)
        scaled = np.concatenate([size * noise for size in TRUNCATIONS])
        body.append([captions[k], *artist(params, pick(k, len(scaled)), scaled)])
    names = [f"noise × {size}" for size in TRUNCATIONS for _ in range(2)]
    report.add_table("Truncation", ["asked for", *names], body)


def slerp(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """``[steps, D]`` from a to b along the great circle, with the length in between (Shoemake 1985)."""
    unit = lambda x: x / np.linalg.norm(x)
    angle = np.arccos(np.clip(unit(a) @ unit(b), -1.0, 1.0))
    t = np.linspace(0.0, 1.0, steps)[:, None]
    if np.sin(angle) < 1e-6:
        return ((1.0 - t) * a[None] + t * b[None]).astype(np.float32)
    return ((np.sin((1.0 - t) * angle) * a[None] + np.sin(t * angle) * b[None]) / np.sin(angle)).astype(
        np.float32
    )
