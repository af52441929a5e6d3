"""Measured quantities beside images and captions: what a few noisy measurements of an image add, and what they lack.

    python -m benchmarks.measured_images --images folder:FASHION

Each image has 16 measurements as ``vector``: the mean intensity of the cells of a grid of 4 by 4, plus normal noise
whose standard deviation is ``--noise`` times that of the cell over the training images. So the measurements tell less
than the image. The captions name the class ("a photo of a sandal").

- `experiments/contrastive.py` aligns images, captions and measurements: classes by the nearest caption, from the image
  and from the vector, and retrieval in all directions, where all examples of a class are right answers;
- the same without captions ("pairs"): which of 500 images do these measurements belong to, and back?
- `experiments/fusion.py` classifies from image and vector, with modality dropout, and with either missing;
- `experiments/multimodal_vae.py` has one latent space for image, vector and caption: judges say whether what is drawn
  from one modality shows the class of the other.

Beside them stands scikit-learn's logistic regression on the measurements. ``--folder FOLDER`` keeps the runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.measured import CONTRASTIVE, format_score, print_table, run_experiment
from xmodal_jax.data import DataOptions, open_source

Run = Literal["contrastive", "pairs", "fusion", "multimodal_vae"]
CELLS = 4
"""Cells of the grid along each side."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which images, and how long the trainings are."""

    images: str
    """Labelled images with captions, as ``--data`` names them: ``folder:PATH``, ``npz:PATH``."""
    runs: tuple[Run, ...] = ("contrastive", "pairs", "fusion", "multimodal_vae")
    """Which runs to train."""
    train_size: int = 10_000
    """Number of training images."""
    noise: float = 1.0
    """Standard deviation of the noise of a measurement, in those of the measured quantity."""
    contrastive_steps: int = 600
    fusion_steps: int = 600
    vae_steps: int = 600
    seeds: int = 3
    """Seeds of each run, trained together."""
    folder: pathlib.Path | None = None
    """Folder that keeps the runs with their reports; None: they are removed."""


def cell_means(images: np.ndarray) -> np.ndarray:
    """The mean intensity of each of the 16 cells of images uint8 ``[N, H, W, 3]``, in [0, 1], float64 ``[N, 16]``."""
    grey = images.mean(axis=3) / 255.0
    rows = np.array_split(grey, CELLS, axis=1)
    means = [cell.mean(axis=(1, 2)) for row in rows for cell in np.array_split(row, CELLS, axis=2)]
    return np.stack(means, axis=1)


def read_split(config: Config, split: str) -> dict[str, Any]:
    """Images, captions and labels of a split as arrays, at most ``train_size`` of them."""
    options = DataOptions(modalities=("text", "image"), progress=False)
    source = open_source(config.images, split, options)
    batch = source.batch(np.arange(min(len(source), config.train_size)))
    captions = np.asarray(batch["caption"]).astype(str)
    label = np.asarray(batch["label"], np.int32)
    # A class is called after its caption, without what all captions have in common.
    of_class = [captions[label == k][0] for k in range(label.max() + 1)]
    names = np.array([caption[len(os.path.commonprefix(of_class)) :] for caption in of_class])
    return {"image": batch["image"], "caption": captions, "label": label, "class_names": names}


def write_measured(config: Config, folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images with their measurements as train.npz and test.npz; returns ``(vector, label)`` of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = np.array([f"row {r + 1}, column {c + 1}" for r in range(CELLS) for c in range(CELLS)])
    deviation, measured = None, {}
    for split in ("train", "test"):
        fields = read_split(config, split)
        means = cell_means(fields["image"])
        deviation = means.std(axis=0) if deviation is None else deviation
        vector = means + config.noise * deviation * rng.standard_normal(means.shape)
        np.savez(folder / f"{split}.npz", vector=vector, vector_feature_names=names, **fields)
        measured[split] = vector, fields["label"]
    return measured


def logistic_regression(measured: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Test accuracy of scikit-learn's logistic regression on the standardised measurements."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(model.fit(*measured["train"]).score(*measured["test"]))


def flags_of(run: Run, config: Config) -> list[str]:
    """The flags of a run; the others are the defaults of its experiment."""
    if run in ("contrastive", "pairs"):
        modalities = ["text", "image", "vector"] if run == "contrastive" else ["image", "vector"]
        flags = ["--modalities", *modalities, "--steps", str(config.contrastive_steps)]
        flags += ["--batch-size", "128", "--eval-every", str(max(1, config.contrastive_steps // 3))]
        return [*flags, *CONTRASTIVE]
    if run == "fusion":
        flags = ["--modalities", "image", "vector", "--steps", str(config.fusion_steps), "--batch-size", "64"]
        flags += ["--model.modality-dropout", "0.3"]
        return [*flags, "--eval-every", str(max(1, config.fusion_steps // 3))]
    flags = ["--modalities", "image", "vector", "text", "--steps", str(config.vae_steps)]
    return [*flags, "--eval-every", str(max(1, config.vae_steps // 2))]


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(config.folder or directory).absolute()
        measured = write_measured(config, folder / "data")
        print(f"logistic regression on the measurements: {logistic_regression(measured):.3f}", flush=True)
        for run in config.runs:
            flags = ["--data", f"npz:{folder / 'data'}", "--seeds", str(config.seeds), *flags_of(run, config)]
            script = "contrastive" if run == "pairs" else run
            metrics, timing = run_experiment(script, flags, folder / run)
            print_table([run, "value"], [(name, format_score(value)) for name, value in metrics.items()])
            print(json.dumps(timing))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
