"""Measured quantities: tables of scikit-learn as vectors, beside scikit-learn's own logistic regression.

    python -m benchmarks.measured
    python -m benchmarks.measured --tables digits --series FOLDER

Each table becomes arrays: all columns as ``vector``, groups of columns as further vectors, and the class as caption and
label. A fifth of the rows, drawn at random, is the test set of all methods. `experiments/contrastive.py` aligns vectors
with captions and classifies by the nearest caption; `experiments/fusion.py` classifies from the groups of columns, also
from each group alone; logistic regression (standardised columns, its default regularisation) gets the same rows.

``--series FOLDER``: a folder of recordings with captions, whose pitch and energy become a ``series``; contrastive
learning then retrieves the caption and the recording from it. About two minutes for each table on two cores.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLES = ("breast_cancer", "digits", "diabetes")
TEST_SHARE = 5
"""One row in this many is a test row."""
FRAME = 160
"""Samples between two values of pitch and energy, at 16 kHz: 10 ms."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which data, and how long the trainings are."""

    tables: tuple[str, ...] = TABLES
    """Tables of scikit-learn."""
    series: pathlib.Path | None = None
    """Folder of recordings with captions, as ``--data folder:PATH``; None: no series."""
    steps: int = 400
    """Training steps of each run."""
    seed: int = 0
    """The first seed of each run."""
    seeds: int = 3
    """Number of seeds of each run, trained together."""
    folder: pathlib.Path | None = None
    """Folder that keeps the runs with their reports; None: they are removed."""


def load_table(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], dict[str, list[int]]]:
    """``(values [N, D], labels [N], class names, columns of each group)`` of a table."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    values, target = np.asarray(data.data, np.float64), np.asarray(data.target)
    columns = list(map(str, data.feature_names))
    if name == "digits":
        half = values.shape[1] // 2
        groups = {"top": [*range(half)], "bottom": [*range(half, 2 * half)]}
        return values, target, tuple(f"the digit {d}" for d in "0123456789"), groups
    if name == "breast_cancer":
        groups = {
            word: [k for k, c in enumerate(columns) if word in c] for word in ("mean", "error", "worst")
        }
        return values, target, tuple(f"a {c} tumour" for c in data.target_names), groups
    slow_or_fast = (target > np.median(target)).astype(int)  # the progression of the disease in a year
    groups = {"body": columns.index("bp") + 1, "serum": len(columns)}
    body = [*range(groups["body"])]
    serum = [*range(groups["body"], groups["serum"])]
    return values, slow_or_fast, ("slow progression", "fast progression"), {"body": body, "serum": serum}


def split_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The training and the test rows, at random."""
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[count // TEST_SHARE :]), np.sort(order[: count // TEST_SHARE])


def write_arrays(folder: pathlib.Path, name: str) -> None:
    """A table as train.npz and test.npz."""
    values, labels, class_names, groups = load_table(name)
    folder.mkdir(parents=True)
    for split, rows in zip(("train", "test"), split_rows(len(values)), strict=True):
        fields: dict[str, Any] = {"vector": values[rows], "label": labels[rows].astype(np.int32)}
        fields |= {f"vector_{group}": values[rows][:, columns] for group, columns in groups.items()}
        fields |= {"caption": np.array(class_names)[labels[rows]], "class_names": np.array(class_names)}
        np.savez(folder / f"{split}.npz", **fields)


def logistic_regression(name: str) -> dict[str, float]:
    """Accuracy on the test rows from all columns, and from each group."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels, _, groups = load_table(name)
    train, test = split_rows(len(values))
    scores = {}
    for group, columns in {"all": [*range(values.shape[1])], **groups}.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(values[train][:, columns], labels[train])
        scores[group] = float(model.score(values[test][:, columns], labels[test]))
    return scores


def run_experiment(
    script: str, flags: list[str], folder: pathlib.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(metrics, timing)`` of one experiment; a metric is a list, one value for each seed, if there are several."""
    command = [sys.executable, f"experiments/{script}.py", *flags, "--run-dir", str(folder), "--no-progress"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text())
    return result.get("per_seed") or result["metrics"], result["timing"]


CONTRASTIVE = (
    "--optimizer.name",
    "adamw",
    "--optimizer.learning-rate",
    "2e-3",
    "--model.text.embedding-std",
    "0.02",
    "--model.text.depth",
    "2",
)
"""Flags of contrastive.py with which the steps and rates here were chosen."""


def run(
    script: str,
    data: str,
    modalities: list[str],
    config: Config,
    folder: pathlib.Path,
    more_flags: Sequence[str] = (),
) -> dict[str, Any]:
    """The metrics of one experiment with the flags that all of these runs share, and ``more_flags``."""
    flags = ["--data", data, "--modalities", *modalities, "--batch-size", "64", "--steps", str(config.steps)]
    flags += ["--seed", str(config.seed), "--seeds", str(config.seeds)]
    flags += CONTRASTIVE if script == "contrastive" else ()
    # The test is of the last parameters, for which no evaluation on validation data is needed.
    return run_experiment(script, [*flags, "--eval-every", "0", *more_flags], folder)[0]


def format_score(value: Any) -> str:
    """Mean and standard deviation over seeds of a metric."""
    values = np.atleast_1d(np.asarray(value, np.float64))
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def compare_table(name: str, config: Config, folder: pathlib.Path) -> list[tuple[str, str, str, str]]:
    """Rows ``(table, columns, ours, logistic regression)``."""
    write_arrays(folder / name, name)
    groups, peer = list(load_table(name)[3]), logistic_regression(name)
    data = f"npz:{folder / name}"
    aligned = run("contrastive", data, ["text", "vector"], config, folder / f"{name}-contrastive")
    # Each group is also to classify alone: training has to show it alone at times.
    alone_at_times = ["--model.modality-dropout", "0.3", "--unimodal-steps", "0"]
    fused = run(
        "fusion", data, [f"vector_{g}" for g in groups], config, folder / f"{name}-fusion", alone_at_times
    )
    ours = {
        f"all, contrastive, {kind}": aligned[f"test/vector_{kind}_accuracy"]
        for kind in ("zero_shot", "linear_probe")
    }
    ours["all, fusion"] = fused["test/accuracy"]
    rows = [(name, columns, format_score(value), f"{peer['all']:.3f}") for columns, value in ours.items()]
    for group in groups:
        value = fused[f"given_vector_{group}/accuracy"]
        rows.append((name, f"{group}, fusion", format_score(value), f"{peer[group]:.3f}"))
    return rows


def pitch_and_energy(samples: np.ndarray) -> np.ndarray:
    """``[frames, 2]`` of a recording ``[T]`` int16 at 16 kHz: the logarithm of the pitch in Hz, NaN where there is no
    voice, and the logarithm of the energy, every 10 ms."""
    import librosa

    wave = samples.astype(np.float32) / 32768
    pitch, _, _ = librosa.pyin(wave, fmin=65, fmax=500, sr=16000, frame_length=1024, hop_length=FRAME)
    energy = librosa.feature.rms(y=wave, frame_length=1024, hop_length=FRAME)[0]
    return np.stack([np.log(pitch), np.log(energy + 1e-5)], axis=1)


def write_series(source_folder: pathlib.Path, folder: pathlib.Path) -> None:
    """Pitch and energy of all recordings, with recording and caption, as train.npz and test.npz."""
    from xmodal_jax.data.open import DataOptions, open_source

    folder.mkdir(parents=True)
    options = DataOptions(modalities=("text", "audio"), progress=False)
    for split in ("train", "test"):
        source = open_source(f"folder:{source_folder}", split, options)
        batch = source.batch(np.arange(len(source)))
        rows = np.flatnonzero(batch["audio_mask"].sum(axis=1) > 4 * FRAME)
        measured = [pitch_and_energy(batch["audio"][k][batch["audio_mask"][k]]) for k in rows]
        longest = batch["audio"].shape[1] // FRAME + 1
        series = np.zeros((len(rows), longest, 2), np.float32)
        mask = np.zeros((len(rows), longest), bool)
        for k, values in enumerate(measured):
            series[k, : len(values)], mask[k, : len(values)] = values, True
        np.savez(
            folder / f"{split}.npz",
            series=series, series_mask=mask, audio=batch["audio"][rows], audio_mask=batch["audio_mask"][rows],
            caption=batch["caption"][rows].astype(str),
        )  # fmt: skip


def compare_series(config: Config, folder: pathlib.Path) -> list[tuple[str, str]]:
    """Rows ``(metric, value)`` of retrieval between pitch and energy, captions and recordings."""
    write_series(config.series, folder / "series")
    spelling = ["--tokenizer", "bpe", "--vocab-size", "260"]  # test words need not occur in training
    modalities = ["text", "series", "audio"]
    metrics = run("contrastive", f"npz:{folder / 'series'}", modalities, config, folder / "aligned", spelling)
    return [
        (name, format_score(value))
        for name, value in metrics.items()
        if "series" in name and "recall" in name
    ]


def print_table(columns: list[str], rows: list[tuple[str, ...]]) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(config.folder or directory).absolute()
        for name in config.tables:
            print_table(
                ["table", "columns", "accuracy", "logistic regression"], compare_table(name, config, folder)
            )
        if config.series is not None:
            print_table(["series", "value"], compare_series(config, folder))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
