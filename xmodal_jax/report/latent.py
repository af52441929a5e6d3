"""What the reports of VAEs show: translations between modalities, samples of the prior, and the latent space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import Source
from xmodal_jax.data.standardise import StandardiseTransform
from xmodal_jax.evaluation.latent import LatentEvaluator, LatentResults, SourceLatents
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.metrics.coherence import coherence_matrix
from xmodal_jax.metrics.information_gain import mean_gain
from xmodal_jax.models.vae.modalities import ModalityConfigs, Vocabulary, preprocess
from xmodal_jax.report import figures
from xmodal_jax.report.images import tile_images
from xmodal_jax.report.learning import add_learning
from xmodal_jax.report.measured import show_standard
from xmodal_jax.report.page import Audio, Report, png
from xmodal_jax.train.run import write_atomic
from xmodal_jax.types import is_measured

TRAVERSED_DIMENSIONS = 8
"""Dimensions that a traversal shows: those with the largest variance."""
TRAVERSAL_SPAN = 2.5
"""How far a traversal goes from the mean to either side, in standard deviations of the latents."""
MAP_EXAMPLES = 300
"""Examples in a map of the latent space."""

GROUPS = {
    "cross": "Generation across modalities", "joint": "Generation from the latent space",
    "likelihood": "Likelihood (nats)", "reconstruction": "Reconstruction", "latent": "Latent probes",
    "speech": "Error rates of generated speech", "judge": "Judges on real data",
    "learning": "Learning from generated images",
}  # fmt: skip
"""Titles of the tables of metrics, by the first word of a metric's name."""


def add_metric_tables(
    report: Report,
    metrics: Mapping[str, Any],
    headline: Sequence[str],
    chance: Mapping[str, float] | None = None,
) -> None:
    """Cards of the headline metrics, and a table for each group of metrics in `GROUPS`. ``headline``: names of metrics.
    ``chance``: values of a random prediction, by name, shown on the cards."""
    report.add_metrics({k: metrics[k] for k in headline}, headline=headline, chance=chance, title="Headline")
    for group, title in GROUPS.items():
        # The group is the first word of a name, such as "joint" of "joint_prior/coherence". Metrics of single pairs of
        # modalities ("cross/image_to_text/coherence") are in the matrix of `coherence_figure`.
        members = {
            k: v for k, v in metrics.items() if k.split("/")[0].split("_")[0] == group and k.count("/") == 1
        }
        if members:
            report.add_metrics(members, headline=(), title=title)


LEADING = ("cross/coherence", "joint_prior/coherence", "speech_from_text/wer", "likelihood/")
"""What the names of the metrics on cards begin with."""


def add_coherence_tables(report: Report, metrics: Mapping[str, Any], *, classes: int) -> None:
    """`add_metric_tables` with cards of the first six metrics in `LEADING`, and the chance of one in ``classes`` on
    those of generation across modalities."""
    headline = [name for name in metrics if name.startswith(LEADING)][:6]
    chance = {name: 1 / classes for name in headline if "cross" in name}
    add_metric_tables(report, metrics, headline, chance)
    add_pair_table(report, metrics, chance=1 / classes)


PAIR_GROUPS = {
    "right in most cases": 2 / 3,
    "right in some cases": 1 / 3,
    "wrong in most cases": 0.1,
    "about as often right as by chance": -math.inf,
}
"""What is said of a pair of modalities, and the smallest score for it: ``(c - chance) / (1 - chance)`` of the coherence
c, which is 1 where the class is always right, and 0 by chance."""


def add_pair_table(report: Report, metrics: Mapping[str, Any], *, chance: float) -> None:
    """A table that says which modalities can be generated from which other one: the pairs of modalities by how often
    the class is right (`PAIR_GROUPS`). Without metrics of pairs, as of a model of one modality, there is no table.

    ``metrics``: among them ``cross/<observed>_to_<target>/coherence``, a number or one per seed. ``chance``: the
    coherence of random classes.
    """
    pairs = {
        name.split("/")[1].replace("_to_", " to "): float(np.mean(value))
        for name, value in metrics.items()
        if name.startswith("cross/") and name.endswith("/coherence") and name.count("/") == 2
    }
    groups: dict[str, list[str]] = {name: [] for name in PAIR_GROUPS}
    for pair, coherence in sorted(pairs.items(), key=lambda item: -item[1]):
        score = (coherence - chance) / (1 - chance)
        group = next(name for name, smallest in PAIR_GROUPS.items() if score >= smallest)
        groups[group].append(f"{pair} {coherence:.2f}")
    rows = [[name, ", ".join(members)] for name, members in groups.items() if members]
    if rows:
        note = f"How often the class of what is generated from one modality is right; by chance {chance:.2f}."
        report.add_table("What can be generated from what", ["the class is", "pairs"], rows, note)


class ExampleRenderer:
    """Examples of a batch as cells of a table: images, texts, spectrograms, sounds, measured quantities and names of
    classes."""

    def __init__(
        self,
        configs: ModalityConfigs,
        vocabulary: Vocabulary,
        standardise: StandardiseTransform | None = None,
    ):
        """``standardise``: the transform that the batches have passed, for names and units of measured quantities."""
        self.configs, self.vocabulary, self.standardise = configs, vocabulary, standardise
        self._waveforms: dict[str, Any] = {}
        """Pairs of a compiled function from spectrograms to waveforms and the sample rate in Hz, by modality."""

    def cell(self, name: str, batch: Mapping[str, Any], index: int) -> str | np.ndarray:
        """The modality ``name`` of the example at ``index`` of a batch, as a text or a uint8 image ``[H, W, 3]``."""
        mask = batch.get(f"{name}_mask")
        if is_measured(name):
            values, known = np.asarray(batch[name][index]), None if mask is None else np.asarray(mask[index])
            return show_standard(name, values, known, self.standardise)
        picture = self.configs.for_modality(name).show(
            np.asarray(batch[name][index]), None if mask is None else np.asarray(mask[index]), self.vocabulary
        )
        if isinstance(picture, str) or picture.ndim == 3:
            return picture
        # A spectrogram, [H, W] in [0, 1]: coloured, without the colour map's transparency.
        return np.round(255 * matplotlib.colormaps["magma"](picture)[..., :3]).astype(np.uint8)

    def sounds(self, name: str, batch: Mapping[str, Any], indices: Sequence[int]) -> list[Audio]:
        """The examples at ``indices`` of a batch as sounds, from their spectrograms in the field ``name``."""
        if name not in self._waveforms:
            config = self.configs.for_modality(name)
            self._waveforms[name] = jax.jit(config.waveforms), config.sample_rate
        waveforms, sample_rate = self._waveforms[name]
        waves = np.asarray(waveforms(np.asarray(batch[name])[list(indices)]))
        return [Audio(np.clip(wave, -1.0, 1.0), sample_rate) for wave in waves]


def make_renderer(evaluator: LatentEvaluator, data: LatentData) -> ExampleRenderer:
    """Renders examples of ``data`` and what the model generates."""
    decode_text = data.tokenize.tokenizer.decode if data.tokenize else None
    return ExampleRenderer(evaluator.configs, Vocabulary(decode_text, data.class_names), data.standardise)


def _image_names(evaluator: LatentEvaluator) -> list[str]:
    """The modalities that are images."""
    return [m for m in evaluator.modalities if evaluator.configs.for_modality(m).is_image]


def _sound_names(evaluator: LatentEvaluator) -> list[str]:
    """The modalities that can be heard."""
    return [m for m in evaluator.modalities if evaluator.configs.for_modality(m).is_sound]


def with_frames(evaluator: LatentEvaluator, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of data with log-mel frames in place of waveforms, since the model reconstructs frames."""
    names = _sound_names(evaluator)
    if not names:
        return dict(batch)
    targets = preprocess(evaluator.configs, names, batch).targets
    frames = evaluator.to_batch({m: targets[m][0] for m in names})  # without the targets' masks
    return {**batch, **{m: np.asarray(frames[m]) for m in names}}


def _make_decoder(evaluator: LatentEvaluator, *, sample_private: bool):
    """The compiled function ``decode(params, shared [N, D])``, which generates all modalities as a batch of N examples
    from shared latents.

    ``sample_private``: whether private latents, those of one modality each, are sampled from their prior; if not, they
    are its mean.
    """
    key = evaluator.key if sample_private else None

    def decode(params, shared):
        """All modalities of N examples, from shared latents ``[N, D]``."""
        z = evaluator.vae.decoder_latents(params, shared, key)
        return evaluator.decode_sample(params, z)

    return jax.jit(decode)


def read_batch(evaluator: LatentEvaluator, source: Source, indices: np.ndarray) -> dict[str, Any]:
    """The examples ``indices`` of ``source`` as a batch of the model, numbered from 0."""
    batch = {**source.batch(indices), "index": np.arange(len(indices), dtype=np.int32)}
    return numeric_fields(batch if evaluator.transform is None else evaluator.transform(batch))


def add_translations(
    report: Report,
    evaluator: LatentEvaluator,
    params: Any,
    source: Source,
    renderer: ExampleRenderer,
    folder: Path,
    count: int = 3,
) -> None:
    """A table of every modality generated from every other one, and its images as ``any_to_any.png`` in ``folder``.

    Each of ``count`` examples of ``source`` has several rows: the data, what is generated from each modality alone, and
    what is generated from all modalities. ``params``: of the model in ``evaluator``. ``renderer``: turns examples into
    cells of the table.
    """
    indices = np.linspace(0, len(source) - 1, count).astype(np.int64)
    batch = read_batch(evaluator, source, indices)
    names, total = evaluator.modalities, len(evaluator.modalities)  # total: M modalities
    # The observed modalities, [subsets, modalities]: each one alone, and all of them (the same if there is only one).
    observed = np.concatenate([np.eye(total, dtype=bool), np.ones((int(total > 1), total), bool)])
    titles = [f"from {m}" for m in names] + ["from all"] * (total > 1)
    # [subsets, modalities, 1, count, D']: the latents that each modality is decoded from.
    latents = jax.jit(evaluator.vae.infer)(params, batch, observed, evaluator.key).z
    decode = jax.jit(evaluator.decode_sample)
    generated = [jax.tree.map(np.asarray, decode(params, z)) for z in latents]  # a batch for each subset
    real, rows = with_frames(evaluator, batch), []
    for k in range(count):
        rows.append(["data", *(renderer.cell(m, real, k) for m in names)])
        for title, outputs in zip(titles, generated, strict=True):
            rows.append([title, *(renderer.cell(m, outputs, k) for m in names)])
    note = "Each row is one sample of the latents: it reconstructs what is observed and generates the rest."
    title = "Generation across modalities" if total > 1 else "Reconstruction"
    report.add_table(title, ["", *names], rows, note=note)
    for name in _sound_names(evaluator):
        rows = [
            [f"{name}, example {k}", *(renderer.sounds(name, outputs, [k])[0] for outputs in generated)]
            for k in range(count)
        ]
        report.add_table("Sound", ["", *titles], rows)
    images = _image_names(evaluator)
    if images:
        # In the order of the table: a row of images for each example and each batch (the data, then each subset's).
        cells = [
            renderer.cell(m, examples, k)
            for k in range(count)
            for examples in (real, *generated)
            for m in images
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
    """A table of all modalities generated from the first ``count`` samples of the shared latents of each distribution,
    a row per sample.

    ``draws``: samples ``[N, D]`` by the name of the distribution that they are drawn from, such as the prior.
    """
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
    """A table of latent traversals, and its images as ``traversals.png`` in ``folder``.

    Each row shows what is generated from the first example's latent when one dimension is varied in ``steps`` steps,
    for the dimensions with the largest variance. ``latents``: of the test split, ``[N, D]``. ``params``: of the model
    in ``evaluator``. ``renderer``: turns examples into cells of the table.
    """
    dims = np.argsort(-latents.std(axis=0))[:TRAVERSED_DIMENSIONS]
    offsets = np.linspace(-TRAVERSAL_SPAN, TRAVERSAL_SPAN, steps)  # in standard deviations
    varied = np.repeat(latents[:1], len(dims) * steps, axis=0)  # [dims * steps, D]
    for k, dim in enumerate(dims):
        varied[k * steps : (k + 1) * steps, dim] = latents[:, dim].mean() + offsets * latents[:, dim].std()
    decode = _make_decoder(evaluator, sample_private=False)
    generated = jax.tree.map(np.asarray, decode(params, varied))
    # One modality is shown: the first image modality, if there is one.
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
    """Scatter plots of the latents in two dimensions, coloured by class: the means of the posteriors given all
    modalities, and of those given each modality alone.

    ``labels``: class of each example; -1: unknown. ``limit``: number of examples in the first plot.
    """
    name_of = lambda k: str(class_names[k]) if class_names is not None else str(k)
    names = [name_of(k) if k >= 0 else "unknown" for k in labels[:limit]]
    points = figures.project_2d(latents.mean[:limit])
    report.add_figure("Latent space", figures.embedding_map(points, names, title="all modalities"))
    # Fewer examples, as each has a point for every modality; t-SNE needs 5 points.
    unimodal = latents.unimodal[: max(limit // 3, 5)]  # [N, modalities, D]
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
    """A matrix of conditional coherence: a row for each subset of observed modalities, a column for each generated
    modality; an entry is the fraction of generated examples that a classifier assigns to the right class.

    ``classes [subsets + 1, modalities, N]``: the assigned classes; the last subset, of all modalities, is not shown.
    ``labels [N]``: the right ones.
    """
    matrix = coherence_matrix(classes, labels)
    short = [m.removeprefix("image_") for m in evaluator.modalities]
    subset_names = [  # a subset is a bool for each modality
        " ".join(name for name, is_member in zip(short, subset, strict=True) if is_member)
        for subset in evaluator.subsets
    ]
    return figures.similarity_matrix(
        matrix[: len(subset_names)], subset_names, list(evaluator.modalities), row_name="observed",
        column_name="generated", title="accuracy of the class, by subset", measure="accuracy", numbers=True,
    )  # fmt: skip


def add_information_gain(report: Report, evaluator: LatentEvaluator, results: LatentResults) -> None:
    """Which missing modality is worth acquiring next: heat maps of the expected and of the realised gain, and how well
    the two agree. Nothing where it was not to be measured; a sentence where the model does not allow it."""
    title, gains = "Which modality to acquire next", results.gains
    if gains is None:
        if results.wants_gains and evaluator.vae.posterior is None and len(evaluator.modalities) > 1:
            report.add_text(
                title,
                "Not measured: the density of this model's posterior is not known for all subsets of the modalities, "
                "the empty one included, so that no divergence between two of them can be computed.",
            )
        return
    short = [m.removeprefix("image_") for m in gains.modalities]
    for kind, values in (("expected", gains.expected), ("realised", gains.realised)):
        matrix = mean_gain(values)
        report.add_figure(
            title,
            figures.gain_matrix(matrix, gains.subset_names(), short, title=f"{kind} information gain"),
            note="What one more modality tells about the latents in nats, a mean over test examples. Expected: by the "
            "model alone, which draws what is missing. Realised: with the example's own.",
        )
    report.add_metrics(gains.agreement._asdict(), headline=(), title="Expected and realised gain")


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
    """All sections about a model: ``count`` test examples translated, coherence, samples, traversals, maps.

    ``params``: of the model in ``evaluator``. ``results``: its evaluation. ``folder``: where images are also written.
    """
    renderer = make_renderer(evaluator, data)
    add_translations(report, evaluator, params, data.test, renderer, folder, count=count)
    if len(evaluator.modalities) > 1:
        report.add_figure("Coherence", coherence_figure(evaluator, results.classes, results.labels))
    add_information_gain(report, evaluator, results)
    if results.learned is not None:
        add_learning(report, results.learned)
    add_samples(report, evaluator, params, results.draws, renderer)
    add_traversals(report, evaluator, params, results.latents.mean, renderer, folder)
    add_map(report, evaluator, results.latents, results.labels, data.class_names)
