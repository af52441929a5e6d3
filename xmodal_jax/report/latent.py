"""What the reports of VAEs show: translations between modalities, samples of the prior, and the latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.latent import LatentEvaluator, LatentResults, SourceLatents
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.metrics.coherence import coherence_matrix
from xmodal_jax.models.vae.modalities import ModalityConfigs, Vocabulary, preprocess
from xmodal_jax.report import figures
from xmodal_jax.report.images import tile_images
from xmodal_jax.report.page import Audio, Report, png
from xmodal_jax.train.run import write_atomic

TRAVERSED_DIMENSIONS = 8
"""Dimensions that a traversal shows: those with the largest variance."""
TRAVERSAL_SPAN = 2.5
"""Standard deviations of the latents that a traversal goes to either side of the mean."""
MAP_EXAMPLES = 300
"""Examples in a map of the latent space."""

GROUPS = {
    "cross": "Generation across modalities", "joint": "Generation from the latent space",
    "likelihood": "Likelihood (nats)", "reconstruction": "Reconstruction", "latent": "Latent probes",
    "judge": "Judges on real data",
}  # fmt: skip
"""Titles of the tables of metrics, by the first word of a metric's name."""


def add_metric_tables(
    report: Report,
    metrics: Mapping[str, Any],
    headline: Sequence[str],
    chance: Mapping[str, float] | None = None,
) -> None:
    """The headline metrics, and a table for each group of metrics."""
    report.add_metrics({k: metrics[k] for k in headline}, headline=headline, chance=chance, title="Headline")
    for group, title in GROUPS.items():
        members = {k: v for k, v in metrics.items() if k.split("/")[0].split("_")[0] == group}
        if members:
            report.add_metrics(members, headline=(), title=title)


class ExampleRenderer:
    """Examples of a batch as cells of a table: images, texts, spectrograms, sounds and names of classes."""

    def __init__(self, configs: ModalityConfigs, vocabulary: Vocabulary):
        self.configs, self.vocabulary = configs, vocabulary
        self._waveforms: dict[str, Any] = {}
        """Compiled functions from spectrograms to waveforms, by modality."""

    def cell(self, name: str, batch: Mapping[str, Any], index: int) -> str | np.ndarray:
        """One example's modality as a text or a uint8 image ``[H, W, 3]``."""
        mask = batch.get(f"{name}_mask")
        shown = self.configs.for_modality(name).show(
            np.asarray(batch[name][index]), None if mask is None else np.asarray(mask[index]), self.vocabulary
        )
        if isinstance(shown, str) or shown.ndim == 3:
            return shown
        return np.round(255 * matplotlib.colormaps["magma"](shown)[..., :3]).astype(np.uint8)

    def sounds(self, name: str, batch: Mapping[str, Any], indices: Sequence[int]) -> list[Audio]:
        """Examples of a modality as sounds."""
        if name not in self._waveforms:
            config = self.configs.for_modality(name)
            self._waveforms[name] = jax.jit(config.waveforms), config.sample_rate
        waveforms, sample_rate = self._waveforms[name]
        waves = np.asarray(waveforms(np.asarray(batch[name])[list(indices)]))
        return [Audio(np.clip(wave, -1.0, 1.0), sample_rate) for wave in waves]


def _image_names(evaluator: LatentEvaluator) -> list[str]:
    """The modalities that are images."""
    return [m for m in evaluator.modalities if evaluator.configs.for_modality(m).is_image]


def _sound_names(evaluator: LatentEvaluator) -> list[str]:
    """The modalities that can be heard."""
    return [m for m in evaluator.modalities if evaluator.configs.for_modality(m).is_sound]


def _with_frames(evaluator: LatentEvaluator, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of data with log-mel frames in place of waveforms, as the model compares and generates them."""
    names = _sound_names(evaluator)
    if not names:
        return dict(batch)
    targets = preprocess(evaluator.configs, names, batch).targets
    frames = evaluator.to_batch({m: targets[m][0] for m in names})
    return {**batch, **{m: np.asarray(frames[m]) for m in names}}


def _make_decoder(evaluator: LatentEvaluator, *, sample_private: bool):
    """The compiled function ``decode(params, shared [N, D])``, which generates all modalities as a batch of N examples
    from shared latents.

    ``sample_private``: whether private latents are sampled; if not, they are the means of their prior.
    """
    key = evaluator.key if sample_private else None

    def decode(params, shared):
        z = evaluator.vae.decoder_latents(params, shared, key)
        # ``x[0]`` drops the axis of latent samples, which has one sample.
        return evaluator.to_batch(jax.tree.map(lambda x: x[0], evaluator.vae.decode(params, z, None)))

    return jax.jit(decode)


def add_translations(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    source: Source,
    renderer: ExampleRenderer,
    folder: Path,
    count: int = 3,
) -> None:
    """Every modality generated from every other: for ``count`` examples a row of the data, one for each modality that
    is observed alone, and one for all of them; and the images of it as ``any_to_any.png``."""
    indices = np.linspace(0, len(source) - 1, count).astype(np.int64)
    batch = {**source.batch(indices), "index": np.arange(count, dtype=np.int32)}
    if evaluator.transform is not None:
        batch = evaluator.transform(batch)
    batch = numeric_fields(batch)
    names, total = evaluator.modalities, len(evaluator.modalities)
    # One modality alone is all of them.
    observed = np.concatenate([np.eye(total, dtype=bool), np.ones((int(total > 1), total), bool)])
    titles = [f"from {m}" for m in names] + ["from all"] * (total > 1)
    latents = jax.jit(evaluator.vae.infer)(params, batch, observed, evaluator.key).z
    decode = jax.jit(
        lambda p, z: evaluator.to_batch(jax.tree.map(lambda x: x[0], evaluator.vae.decode(p, z, None)))
    )
    generated = [jax.tree.map(np.asarray, decode(params, z)) for z in latents]
    real, rows = _with_frames(evaluator, batch), []
    for k in range(count):
        rows.append(["data", *(renderer.cell(m, real, k) for m in names)])
        for title, each in zip(titles, generated, strict=True):
            rows.append([title, *(renderer.cell(m, each, k) for m in names)])
    note = "Each row is one sample of the latents: it reconstructs what is observed and generates the rest."
    title = "Generation across modalities" if total > 1 else "Reconstruction"
    report.add_table(title, ["", *names], rows, note=note)
    for name in _sound_names(evaluator):
        rows = [
            [f"{name}, example {k}", *(renderer.sounds(name, each, [k])[0] for each in generated)]
            for k in range(count)
        ]
        report.add_table("Sound", ["", *titles], rows)
    images = _image_names(evaluator)
    if images:
        cells = [
            renderer.cell(m, each, k) for k in range(count) for each in (real, *generated) for m in images
        ]
        write_atomic(folder / "any_to_any.png", png(tile_images(_pad_images(cells), columns=len(images))))


def _pad_images(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images ``[N, H, W, 3]`` of one size: smaller ones are padded with black below and to the right."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    pad = lambda x: np.pad(x, ((0, height - x.shape[0]), (0, width - x.shape[1]), (0, 0)))
    return np.stack([pad(image) for image in images])


def add_samples(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    draws: Mapping[str, np.ndarray],
    renderer: ExampleRenderer,
    count: int = 6,
) -> None:
    """All modalities generated from shared latents, by the distribution that the latents are sampled from."""
    decode = _make_decoder(evaluator, sample_private=True)
    rows = []
    for name, shared in draws.items():
        generated = jax.tree.map(np.asarray, decode(params, shared[:count]))
        rows += [
            [name, *(renderer.cell(m, generated, k) for m in evaluator.modalities)]
            for k in range(min(count, len(shared)))
        ]
    report.add_table(
        "Samples", ["drawn from", *evaluator.modalities], rows,
        note="The modalities of a row are generated from one shared latent: they should agree with each other.",
    )  # fmt: skip


def add_traversals(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    latents: np.ndarray,
    renderer: ExampleRenderer,
    folder: Path,
    steps: int = 9,
) -> None:
    """Data generated from one example's latent when one of its dimensions is varied, for the dimensions with the
    largest variance; and ``traversals.png``."""
    dims = np.argsort(-latents.std(axis=0))[:TRAVERSED_DIMENSIONS]
    offsets = np.linspace(-TRAVERSAL_SPAN, TRAVERSAL_SPAN, steps)
    varied = np.repeat(latents[:1], len(dims) * steps, axis=0)
    for k, dim in enumerate(dims):
        values = latents[:, dim].mean() + offsets * latents[:, dim].std()
        varied[k * steps : (k + 1) * steps, dim] = values
    decode = _make_decoder(evaluator, sample_private=False)
    generated = jax.tree.map(np.asarray, decode(params, varied))
    images = _image_names(evaluator)
    name = images[0] if images else evaluator.modalities[0]
    rows = [
        [f"dimension {dim}", *(renderer.cell(name, generated, k * steps + step) for step in range(steps))]
        for k, dim in enumerate(dims)
    ]
    note = "One example's latent with one dimension varied, for the dimensions with the largest variance."
    report.add_table(f"Traversals ({name})", ["", *(f"{x:+.1f} sd" for x in offsets)], rows, note=note)
    if images:
        cells = np.stack([renderer.cell(name, generated, k) for k in range(len(varied))])
        write_atomic(folder / "traversals.png", png(tile_images(cells, columns=steps)))


def add_map(
    report: Report,
    evaluator: LatentEvaluator,
    latents: SourceLatents,
    labels: np.ndarray,
    class_names: Sequence[str] | None,
    limit: int = MAP_EXAMPLES,
) -> None:
    """The latents in two dimensions, by class: those given all modalities, and those given each one alone."""
    names = [str(class_names[k]) if class_names is not None and k >= 0 else str(k) for k in labels[:limit]]
    points = figures.project_2d(latents.mean[:limit])
    report.add_figure("Latent space", figures.embedding_map(points, names, title="all modalities"))
    unimodal = latents.unimodal[: max(limit // 3, 5)]
    count = unimodal.shape[1]
    points = figures.project_2d(np.concatenate([unimodal[:, k] for k in range(count)]))
    modalities = np.repeat(evaluator.modalities, len(unimodal)).tolist()
    report.add_figure(
        "Latent space",
        figures.embedding_map(
            points, names[: len(unimodal)] * count, modalities, title="each modality alone"
        ),
        note="t-SNE of the means of the latents.",
    )


def coherence_figure(evaluator: LatentEvaluator, classes: np.ndarray, labels: np.ndarray) -> Figure:
    """For every subset of modalities (a row) how often each modality generated from it shows the right class."""
    matrix = coherence_matrix(classes, labels)
    short = [m.removeprefix("image_") for m in evaluator.modalities]
    subset_names = [
        " ".join(name for name, is_member in zip(short, members, strict=True) if is_member)
        for members in evaluator.subsets
    ]
    return figures.similarity_matrix(
        matrix[: len(subset_names)], subset_names, list(evaluator.modalities), row_name="observed",
        column_name="generated", title="accuracy of the class, by subset", measure="accuracy",
    )  # fmt: skip


def add_latent(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    data: LatentData,
    results: LatentResults,
    folder: Path,
    *,
    count: int = 3,
) -> None:
    """All sections about a model: ``count`` test examples translated, coherence, samples, traversals, maps."""
    decode_text = data.tokenize.tokenizer.decode if data.tokenize else None
    renderer = ExampleRenderer(evaluator.configs, Vocabulary(decode_text, data.class_names))
    add_translations(report, evaluator, params, data.test, renderer, folder, count=count)
    if len(evaluator.modalities) > 1:
        report.add_figure("Coherence", coherence_figure(evaluator, results.classes, results.labels))
    add_samples(report, evaluator, params, results.draws, renderer)
    add_traversals(report, evaluator, params, results.latents.mean, renderer, folder)
    add_map(report, evaluator, results.latents, results.labels, data.class_names)
