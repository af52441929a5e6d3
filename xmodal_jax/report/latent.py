"""What the reports of autoencoders show: what each modality tells of the others, dreams, and the latent space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.latent import Examined, Explorer
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.metrics.coherence import coherence_matrix
from xmodal_jax.models.vae.modalities import Reading, see, to_log_mel
from xmodal_jax.preprocess.vocoder import log_mel_to_waveform
from xmodal_jax.report import figures
from xmodal_jax.report.images import sheet
from xmodal_jax.report.page import Audio, Report, png
from xmodal_jax.train.run import write_atomic
from xmodal_jax.types import kind_of

TRAVERSED = 8
"""Dimensions that a traversal shows: those whose codes vary most."""
SPAN = 2.5
"""A traversal goes so many standard deviations of the codes to either side."""


GROUPS = {
    "cross": "Any modality from others", "joint": "Joint draws", "likelihood": "Likelihood (nats)",
    "reconstruction": "Rebuilt", "latent": "What codes know", "judge": "Judges on real data",
}  # fmt: skip
"""Metrics by the first word of their names, and what a table of them is called."""


def add_scores(
    report: Report,
    metrics: Mapping[str, Any],
    headline: Sequence[str],
    chance: Mapping[str, float] | None = None,
) -> None:
    """Cards of the headline, and a table for each group of metrics."""
    report.add_metrics({k: metrics[k] for k in headline}, headline=headline, chance=chance, title="Headline")
    for group, title in GROUPS.items():
        own = {k: v for k, v in metrics.items() if k.split("/")[0].split("_")[0] == group}
        if own:
            report.add_metrics(own, headline=(), title=title)


class Showcase:
    """Batches of data as cells of a table: pictures, texts, spectrograms with their sound, classes by name."""

    def __init__(
        self,
        config: Reading,
        decode: Callable[[np.ndarray], str] | None,
        class_names: Sequence[str] | None,
    ):
        self.config, self.decode, self.class_names = config, decode, class_names
        f = config.features
        how = dict(sample_rate=f.sample_rate, n_fft=f.window, hop=f.hop, f_max=f.max_hz, iterations=30)
        self._speak = jax.jit(lambda frames: log_mel_to_waveform(frames, **how))

    def picture(self, name: str, batch: Mapping[str, Any], row: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``: an image, or a spectrogram with low bands at the bottom."""
        x = np.asarray(batch[name][row])
        if kind_of(name) == "image":
            return np.broadcast_to(x, (*x.shape[:2], 3)) if x.shape[-1] == 1 else x
        low, high = np.log(self.config.floor), 3.0
        shown = np.clip((x.T[::-1] - low) / (high - low), 0.0, 1.0)
        return np.round(255 * matplotlib.colormaps["magma"](shown)[..., :3]).astype(np.uint8)

    def cell(self, name: str, batch: Mapping[str, Any], row: int) -> Any:
        """One example's modality as the report shows it."""
        kind = kind_of(name)
        if kind == "text":
            ids = np.where(batch[f"{name}_mask"][row], batch[name][row], 0)
            return self.decode(ids) if self.decode else " ".join(map(str, ids))
        if kind == "label":
            label = int(batch[name][row])
            return self.class_names[label] if self.class_names and label >= 0 else str(label)
        return self.picture(name, batch, row)

    def sound(self, name: str, batch: Mapping[str, Any], rows: Sequence[int]) -> list[Audio]:
        """Log-mel frames as sounds, by Griffin-Lim."""
        waves = np.asarray(self._speak(np.asarray(batch[name])[list(rows)]))
        return [Audio(np.clip(wave, -1.0, 1.0), self.config.features.sample_rate) for wave in waves]


def _frames(explorer: Explorer, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of data with log-mel frames in place of waveforms, as the model sees it."""
    seen = see(explorer.config, explorer.modalities, batch)
    audio = [m for m in explorer.modalities if kind_of(m) == "audio"]
    return {**batch, **{m: np.asarray(to_log_mel(explorer.config, seen.targets[m][0])) for m in audio}}


def add_translations(
    report: Report,
    explorer: Explorer,
    params: Any,
    source: Source,
    show: Showcase,
    folder: Path,
    count: int = 3,
) -> None:
    """Any modality from any other: for some examples a row for each given modality, one for all of several; and
    ``any_to_any.png``, the pictures of it."""
    rows = np.linspace(0, len(source) - 1, count).astype(np.int64)
    batch = {**source.batch(rows), "index": np.arange(count, dtype=np.int32)}
    if explorer.transform is not None:
        batch = explorer.transform(batch)
    batch = numeric_fields(batch)
    names, total = explorer.modalities, len(explorer.modalities)
    # Of one modality, all of them are no other row.
    given = np.concatenate([np.eye(total, dtype=bool), np.ones((int(total > 1), total), bool)])
    told = [f"from {m}" for m in names] + ["from all"] * (total > 1)
    codes = jax.jit(explorer.vae.infer)(params, batch, given, explorer.key).z
    decode = jax.jit(
        lambda p, z: explorer.to_batch(jax.tree.map(lambda x: x[0], explorer.vae.decode(p, z, None)))
    )
    made = [jax.tree.map(np.asarray, decode(params, z)) for z in codes]
    real = _frames(explorer, batch)
    body = []
    for k in range(count):
        body.append(["the example", *(show.cell(m, real, k) for m in names)])
        for how, each in zip(told, made, strict=True):
            body.append([how, *(show.cell(m, each, k) for m in names)])
    note = "Each row is one draw: what is given is told again, the rest is made."
    title = "Any modality from any other" if total > 1 else "Told again"
    report.add_table(title, ["", *names], body, note=note)
    for name in names:
        if kind_of(name) == "audio":
            report.add_table(
                "Heard", ["", *told],
                [[f"{name}, example {k}", *(show.sound(name, each, [k])[0] for each in made)] for k in range(count)],
            )  # fmt: skip
    images = [m for m in names if kind_of(m) == "image"]
    if images:
        pictures = [show.picture(m, each, k) for k in range(count) for each in (real, *made) for m in images]
        write_atomic(folder / "any_to_any.png", png(sheet(_same_size(pictures), columns=len(images))))


def _same_size(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures ``[N, H, W, 3]``, smaller ones filled up with black below and to the right."""
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    fill = lambda p: np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)))
    return np.stack([fill(p) for p in pictures])


def add_draws(
    report: Report,
    explorer: Explorer,
    params: Any,
    draws: Mapping[str, np.ndarray],
    show: Showcase,
    count: int = 6,
) -> None:
    """All modalities of joint draws from the prior and the samplers."""
    unfold = jax.jit(
        lambda p, z: explorer.to_batch(
            jax.tree.map(
                lambda x: x[0], explorer.vae.decode(p, explorer.vae.unfold(p, z, explorer.key), None)
            )
        )
    )
    body = []
    for name, shared in draws.items():
        made = jax.tree.map(np.asarray, unfold(params, shared[:count]))
        body += [
            [name, *(show.cell(m, made, k) for m in explorer.modalities)]
            for k in range(min(count, len(shared)))
        ]
    report.add_table(
        "Dreamt", ["drawn from", *explorer.modalities], body,
        note="One shared code a row: modalities should agree with each other.",
    )  # fmt: skip


def add_traversals(
    report: Report,
    explorer: Explorer,
    params: Any,
    codes: np.ndarray,
    show: Showcase,
    folder: Path,
    steps: int = 9,
) -> None:
    """One example's code with one dimension moved, for the dimensions that vary most, and ``traversals.png``."""
    chosen = np.argsort(-codes.std(axis=0))[:TRAVERSED]
    spread = np.linspace(-SPAN, SPAN, steps)
    rows = np.repeat(codes[:1], len(chosen) * steps, axis=0)
    for k, dim in enumerate(chosen):
        rows[k * steps : (k + 1) * steps, dim] = codes[:, dim].mean() + spread * codes[:, dim].std()
    unfold = jax.jit(
        lambda p, z: explorer.to_batch(
            jax.tree.map(lambda x: x[0], explorer.vae.decode(p, explorer.vae.unfold(p, z, None), None))
        )
    )
    made = jax.tree.map(np.asarray, unfold(params, rows))
    first = next((m for m in explorer.modalities if kind_of(m) == "image"), explorer.modalities[0])
    body = [
        [f"dimension {dim}", *(show.cell(first, made, k * steps + step) for step in range(steps))]
        for k, dim in enumerate(chosen)
    ]
    head = ["", *(f"{s:+.1f} sd" for s in spread)]
    note = "The dimensions whose codes vary most, from one example's code."
    report.add_table(f"Traversals ({first})", head, body, note=note)
    if kind_of(first) == "image":
        pictures = np.stack([show.picture(first, made, k) for k in range(len(rows))])
        write_atomic(folder / "traversals.png", png(sheet(pictures, columns=steps)))


def add_map(
    report: Report,
    explorer: Explorer,
    codes: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names,
    limit: int = 300,
) -> None:
    """The codes in two dimensions: of all modalities together, and of each alone, by class."""
    names = [str(class_names[k]) if class_names is not None and k >= 0 else str(k) for k in labels[:limit]]
    together = figures.project_2d(codes["mean"][:limit])
    report.add_figure("Latent space", figures.embedding_map(together, names, title="all modalities"))
    alone = codes["alone"][: max(limit // 3, 5)]
    points = figures.project_2d(np.concatenate([alone[:, k] for k in range(alone.shape[1])]))
    report.add_figure(
        "Latent space",
        figures.embedding_map(
            points, names[: len(alone)] * alone.shape[1], np.repeat(explorer.modalities, len(alone)).tolist(),
            title="each modality alone",
        ),
        note="t-SNE of the codes' means.",
    )  # fmt: skip


def coherence_figure(explorer: Explorer, classes: np.ndarray, labels: np.ndarray) -> Figure:
    """Of every subset of modalities (a row) how often each modality it tells of is of the right class."""
    matrix = coherence_matrix(classes, labels)
    short = [m.removeprefix("image_") for m in explorer.modalities]
    rows = [
        " ".join(name for name, there in zip(short, given, strict=True) if there)
        for given in explorer.subsets
    ]
    return figures.similarity_matrix(
        matrix[: len(rows)], rows, list(explorer.modalities), row_name="given", column_name="made",
        title="right class, by subset", measure="accuracy",
    )  # fmt: skip


def add_latent(
    report: Report,
    explorer: Explorer,
    params: Any,
    data: LatentData,
    found: Examined,
    folder: Path,
    *,
    count: int = 3,
) -> None:
    """All panels of a model: ``count`` test examples translated, coherence, draws, traversals, maps."""
    decode = data.tokenize.tokenizer.decode if data.tokenize else None
    show = Showcase(explorer.config, decode, data.class_names)
    add_translations(report, explorer, params, data.test, show, folder, count=count)
    if len(explorer.modalities) > 1:
        report.add_figure("Coherence", coherence_figure(explorer, found.classes, found.labels))
    add_draws(report, explorer, params, found.draws, show)
    add_traversals(report, explorer, params, found.codes["mean"], show, folder)
    add_map(report, explorer, found.codes, found.labels, data.class_names)
