"""Evaluation of a VAE of one or several modalities: coherence, likelihood, distance of generated from real data, and
what its latents hold.

Judges are pretrained classifiers of each modality, `models.vae.judges.Judges`. They predict the class that
generated data show; distances between generated and real data are measured in their features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.checks import check_sizes
from xmodal_jax.core.runtime import Timer, announce_evaluation
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import evenly_spread, predict_all, take_evenly
from xmodal_jax.evaluation.information_gain import (
    InformationGainEvaluator,
    InformationGains,
    lacks_modalities,
)
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.latent_density import MIN_LATENTS, LatentDensity, fit_flow, fit_gaussian_mixture
from xmodal_jax.evaluation.learning import (
    Generate,
    LearningEvaluation,
    LearningEvaluator,
    LearningScores,
    make_learning_evaluator,
    nothing_to_learn,
)
from xmodal_jax.evaluation.matching_density import NAME, fit_flow_matching, save_density
from xmodal_jax.evaluation.speech import TranscribedSpeech
from xmodal_jax.metrics.classification import linear_probe
from xmodal_jax.metrics.clustering import kmeans_clustering
from xmodal_jax.metrics.coherence import coherence_matrix, cross_coherence, joint_coherence, subsets
from xmodal_jax.metrics.disentanglement import dci, mutual_information_gap, sap
from xmodal_jax.metrics.generative import frechet_distance, kernel_distance, moments
from xmodal_jax.models.vae.judges import JudgeOutputs, Judges
from xmodal_jax.models.vae.modalities import ModalityConfigs, as_batch
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.train.config import RunConfig, shrink
from xmodal_jax.train.loop import TrainingResult, fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.types import kind_of

MIN_EXAMPLES = 16
"""With fewer examples disentanglement is not measured: a part of them may have one value of a factor only."""
KERNEL_DISTANCE_SUBSETS = 20
"""Subsets over which a kernel distance is averaged."""
LIKELIHOOD_BATCH_SIZE = 10
"""Examples at a time in likelihood estimates: each is decoded from many importance samples at once."""
DENSITIES = ("mixture", "flow", "flow_matching")
"""The densities that can be fitted to latents after training."""


@dataclasses.dataclass(frozen=True)
class LatentEvaluation:
    """What is evaluated, and on how many examples."""

    examples: int = 1000
    """Largest number of test examples that are translated from every subset of their modalities."""
    draws: int = 1000
    """Number of joint samples that are generated from the prior and from each fitted density."""
    densities: tuple[str, ...] = DENSITIES
    """Densities that are fitted to the latents of training examples and sampled in place of the prior: "mixture" (of
    Gaussians), "flow" (a normalizing flow, by maximum likelihood), "flow_matching" (a flow along a differential
    equation, by flow matching)."""
    components: int = 10
    """Number of Gaussians in the fitted mixture density."""
    flow_steps: int = 1000
    """Training steps of the fitted flow density."""
    flow_matching_steps: int = 1000
    """Training steps of the density that is fitted by flow matching."""
    latents: int = 4000
    """Largest number of training examples whose latents are used to fit densities, and to fit the probes that predict
    classes from latents."""
    likelihood_examples: int = 200
    """Largest number of test examples whose likelihood is estimated."""
    likelihood_samples: int = 100
    """Importance samples of the likelihood estimate of each example."""
    information_gain: bool | None = None
    """Whether the report says which missing modality is worth acquiring next: the information that each is expected to
    give about the latents, by what is observed. None: where training or test examples lack modalities."""
    information_examples: int = 100
    """Largest number of test examples whose information gain is estimated."""
    information_draws: int = 8
    """Draws of the modalities that are not observed in the estimate of the information gain."""
    disentanglement: bool = True
    """Whether disentanglement is measured: latents are compared with the known factors of the examples, if there are at
    least two factors and 16 examples."""
    learning: LearningEvaluation = LearningEvaluation()
    """What classifiers learn from generated images."""

    def __post_init__(self):
        """Checks the numbers and the names of the densities."""
        check_sizes(self)
        unknown = sorted(set(self.densities) - set(DENSITIES))
        if unknown:
            raise ValueError(f"densities: {unknown[0]!r} is none of {', '.join(DENSITIES)}")
        if self.latents < MIN_LATENTS and (flows := set(self.densities) - {"mixture"}):
            raise ValueError(
                f"latents must be at least {MIN_LATENTS} for the densities {', '.join(sorted(flows))}, got "
                f"{self.latents}"
            )


SMOKE = LatentEvaluation(
    examples=24, draws=24, components=2, flow_steps=20, latents=40, likelihood_examples=10, likelihood_samples=3,
    densities=("flow",), disentanglement=False, information_examples=4, information_draws=1,
    learning=LearningEvaluation().shrink(),
)  # fmt: skip
"""Just enough to run every part of the evaluation."""


def shrink_latent(config: Any) -> Any:
    """The configuration ``config`` of an experiment with a latent space, reduced to that of a ``--smoke`` run: a few
    steps on little data, which only shows that everything runs."""
    config = shrink(config)
    # In the embedded data set only scenes with one object (a third of them) have a class, and only these are used: 150
    # scenes leave about 50, enough to fit a density.
    data = dataclasses.replace(config.input, train_size=150)
    return dataclasses.replace(config, input=data, judge_steps=4, evaluation=SMOKE)


def fit_judges(
    judges: Judges | None, loader: Loader, config: RunConfig, run: Run, timer: Timer, steps: int
) -> Any:
    """Trains the judges (classifiers of each modality) for ``steps`` steps with one seed; returns their parameters, or
    None without judges.

    This training is a run of its own, in the folder ``judges`` of the directory of ``run``. ``config``: of the VAE's
    run; the judges' training takes batch size and data options from it, but has no evaluations and checkpoints.
    """
    if judges is None:
        return None
    config = dataclasses.replace(config, steps=steps, eval_every=0, checkpoint_every=0, patience=0, seeds=1)
    options = dict(resume=config.resume, writer=run.writes, tensorboard=False)
    with Run.create(run.path / "judges", config, **options) as judge_run:
        run.print("training the judges")
        optimizer = Optimizer("muon", learning_rate=5e-3)
        result = fit(judges.method, loader, config, optimizer, judge_run, timer, steps_flag="--judge-steps")
        return result.params[0]  # of the only seed


class SourceLatents(NamedTuple):
    """Latents of the N examples of a data set."""

    unimodal: np.ndarray
    """``[N, M, D]``: means given each modality alone."""
    mean: np.ndarray
    """``[N, D]``: means given all modalities."""
    samples: np.ndarray
    """``[N, D]``: one sample each, given all modalities."""


class Translations(NamedTuple):
    """The classes and features that the judges (classifiers of each modality) give data that the VAE generated for N
    examples.

    For each of S subsets of the modalities (neither empty nor full), and for the full set, all M modalities are
    generated from latents that are inferred from this subset.
    """

    classes: np.ndarray
    """``[N, S + 1, M]``: the class that the judge of each generated modality (last axis) gives it. The second axis is
    the subset that it is generated from; the last entry is the set of all modalities."""
    unimodal_features: np.ndarray
    """``[N, M, M, H]``: features of what is generated from one modality (second axis) alone."""
    present: np.ndarray
    """``[N, M]``: which modalities each example has."""


class LatentEvaluator:
    """Applies a VAE and its judges (classifiers of each modality) to whole data sets. Programs are compiled once and
    serve all seeds."""

    def __init__(
        self,
        vae: MultimodalVAE,
        configs: ModalityConfigs,
        judges: Judges | None,
        *,
        seed: int = 0,
        end_id: int = -1,
        pad_id: int = 0,
        transform: Callable | None = None,
        batch_size: int = 100,
    ):
        """
        Args:
          vae: the model.
          configs: how its modalities are preprocessed.
          judges: trained classifiers, one for each modality, which evaluate generated data; None for data without
            classes, whose scores that need a judge or a class are then left out.
          seed: seed of every random draw.
          end_id: the token that ends a text.
          pad_id: the token of padding; -1: every token is content.
          transform: of raw batches, such as tokenization; None: there is none.
          batch_size: examples at a time.
        """
        self.vae, self.configs, self.judges = vae, configs, judges
        self.end_id, self.pad_id = end_id, pad_id
        self.modalities, count = vae.modalities, len(vae.modalities)
        self.batch_size, self.transform, self.key = batch_size, transform, jax.random.key(seed)
        self.subsets = subsets(count, sizes=range(1, count)) if count > 1 else np.zeros((0, 1), bool)
        """``[S, M]``: all subsets of the modalities but the empty and the full one."""
        self._likelihood_programs: dict[Any, Callable] = {}
        self._gain_evaluators: dict[int, InformationGainEvaluator] = {}
        self.seed = seed

    # What is computed for a batch; ``params`` holds those of the VAE and of the judges.

    def _generate(self, params, z) -> dict[str, Any]:
        """The likeliest data of every modality, ``[B, ...]`` by name, from one latent sample per example.

        ``z [M, 1, B, D']``: the latents that each modality is decoded from, see `MultimodalVAE.decode`.
        ``params["vae"]``: the VAE's parameters.
        """
        return jax.tree.map(lambda x: x[0], self.vae.decode(params["vae"], z, key=None))

    def _judge_generated(self, params, z) -> JudgeOutputs:
        """Logits and features, by the judge (classifier) of each modality, of data generated from the latents ``z [M,
        1, B, D']``: one sample of each example.

        ``params``: ``{"vae": ..., "judges": ...}``.
        """
        return self.judges.method.predict(params["judges"], self.to_batch(self._generate(params, z)))

    def _judge(self, params, batch) -> JudgeOutputs:
        """Logits and features of the batch's real data, by the judge (classifier) of each modality."""
        return self.judges.method.predict(params["judges"], batch)

    def _translate(self, params, batch) -> Translations:
        """The classes that the judges (classifiers of each modality) give to data generated from each subset of the
        modalities, and their features of data generated from each single modality.

        ``params``: ``{"vae": ..., "judges": ...}``. `self.subsets` are all subsets but the empty and the full one.
        """
        count = len(self.modalities)
        # [S + 1, M]: the last row is the set of all modalities.
        observed = jnp.concatenate([jnp.asarray(self.subsets), jnp.ones((1, count), bool)])
        # Translations come from samples of the latents, as coherence and distances are those of a distribution.
        latents = self.vae.infer(params["vae"], batch, observed, self.key).z

        def judge_subset(z):
            """Classes ``[B, M]`` and features ``[B, M, H]`` of what is generated from one subset's latents ``z [M, 1,
            B, D']``."""
            outputs = self._judge_generated(params, z)
            return outputs.logits.argmax(axis=-1), outputs.features

        classes, features = jax.lax.map(judge_subset, latents)  # [S + 1, B, M] and [S + 1, B, M, H]
        unimodal = features[:count]  # `subsets` are ordered by size: the first M have one modality each
        # Modalities that the batch's field "present" does not name are present in all examples.
        all_present = jnp.ones(len(batch["index"]), bool)
        present = jnp.stack([batch.get("present", {}).get(m, all_present) for m in self.modalities], axis=1)
        examples_first = lambda x: jnp.moveaxis(x, 0, 1)
        return Translations(examples_first(classes), examples_first(unimodal), present)

    def _reconstruct(self, params, batch) -> dict[str, Any]:
        """``{"<modality>/<metric>": [B]}``: reconstruction metrics of data generated from all modalities of an example;
        NaN where it lacks the modality. ``params["vae"]``: the VAE's parameters."""
        observed = jnp.ones(len(self.modalities), bool)
        # Reconstructions come from the means of the latents (no key), without sampling noise.
        z = self.vae.infer(params["vae"], batch, observed, key=None).z
        generated, metrics = self._generate(params, z), {}
        for name in self.modalities:
            values = self.configs.for_modality(name).reconstruction_metrics(
                generated[name], batch[name], batch.get(f"{name}_mask")
            )
            metrics |= {f"{name}/{metric}": value for metric, value in values.items()}
        present = batch.get("present", {})

        def nan_where_missing(modality, values):
            """``values [B]`` of a modality, NaN in the examples that lack it."""
            return jnp.where(present[modality], values, jnp.nan) if modality in present else values

        return {name: nan_where_missing(name.split("/")[0], x) for name, x in metrics.items()}

    def _encode(self, params, batch) -> SourceLatents:
        """The batch's shared latents: their means given each modality alone and given all, and a sample given all.

        ``params["vae"]``: the VAE's parameters. `MultimodalVAE.infer` returns one latent sample of each example (first
        axis of ``shared``), or the mean without a key.
        """
        count = len(self.modalities)
        # One mask for each modality alone, and last the mask of all: [M + 1, M].
        observed = jnp.concatenate([jnp.eye(count, dtype=bool), jnp.ones((1, count), bool)])
        means = self.vae.infer(params["vae"], batch, observed, key=None).shared[:, 0]  # [M + 1, B, D]
        samples = self.vae.infer(params["vae"], batch, observed[-1], self.key).shared[0]  # [B, D]
        # The axis of examples comes first in all results: [B, M, D].
        return SourceLatents(jnp.moveaxis(means[:-1], 0, 1), means[-1], samples)

    def _judge_latents(self, params, batch) -> JudgeOutputs:
        """Logits and features, by the judge (classifier) of each modality, of data generated from shared latents, the
        batch's field ``shared [B, D]``.

        Private latents are drawn from their prior. ``params``: ``{"vae": ..., "judges": ...}``.
        """
        # `decoder_latents` numbers the examples of each batch from 0. The key depends on the index of the batch's first
        # example, so that no two batches get the same noise.
        key = jax.random.fold_in(self.key, batch["index"][0])
        z = self.vae.decoder_latents(params["vae"], batch["shared"], key)
        return self._judge_generated(params, z)

    # The same for whole data sets.

    def _predict_all(self, program, params, judge_params, source: Source, **options):
        """``program({"vae": params, "judges": judge_params}, batch)`` for all examples of ``source``, see
        `predict_all`.

        ``params``: of the VAE; ``judge_params``: of the judges. Either is None or empty where ``program`` does not use
        it. ``options``: those of `predict_all` that differ from the evaluator's, such as ``batch_size``.
        """
        options = {"batch_size": self.batch_size, "transform": self.transform} | options
        return predict_all(program, {"vae": params, "judges": judge_params}, source, **options)

    def to_batch(self, generated: Mapping[str, Any]) -> dict[str, Any]:
        """Generated data ``[B, ...]`` as a batch of data."""
        return as_batch(self.configs, dict(generated), end_id=self.end_id, pad_id=self.pad_id)

    def decode_sample(self, params, z: Any) -> dict[str, Any]:
        """The likeliest data of all modalities as a batch of N examples, decoded from ``z [modalities, 1, N, D']``: one
        sample of the latents for each example."""
        # Without a random key (None) texts and classes are the likeliest ones. Arrays [1, N, ...]: drop the first axis.
        outputs = self.vae.decode(params, z, key=None)
        return self.to_batch(jax.tree.map(lambda x: x[0], outputs))

    def encode(self, params, source: Source) -> SourceLatents:
        """Latents of all examples."""
        return self._predict_all(self._encode, params, {}, source, progress="encoding")

    def translate(self, params, judge_params, source: Source) -> Translations:
        """The classes and features, by the judge (classifier) of each modality, of data generated from each subset of
        the modalities of each example."""
        return self._predict_all(self._translate, params, judge_params, source, progress="translating")

    def reconstruct(self, params, source: Source) -> dict[str, np.ndarray]:
        """Reconstruction metrics per example, of data generated from all its modalities: ``[N]`` for each
        ``modality/metric``, NaN where the modality is missing."""
        return self._predict_all(self._reconstruct, params, {}, source, progress="reconstructing")

    def judge(self, judge_params, source: Source) -> JudgeOutputs:
        """Logits and features of the real examples of ``source``, by the judge (classifier) of each modality."""
        return self._predict_all(
            self._judge, params=None, judge_params=judge_params, source=source, progress="judging the data"
        )

    def judge_draws(self, params, judge_params, shared: np.ndarray) -> JudgeOutputs:
        """Logits and features, by the judge (classifier) of each modality, of data generated from latents ``shared [N,
        D]``, such as samples of the prior. ``params``: of the VAE; ``judge_params``: of the judges."""
        source = ArraySource({"shared": np.asarray(shared, np.float32)})
        # In place of the evaluator's transform, which is for data; it only gives ``index`` the type that keys need.
        transform = lambda batch: {**batch, "index": np.asarray(batch["index"], np.int32)}
        return self._predict_all(
            self._judge_latents,
            params,
            judge_params,
            source,
            transform=transform,
            progress="judging the samples",
        )

    def sample_prior(self, params, count: int) -> np.ndarray:
        """``count`` shared latents of the model's prior."""
        return np.asarray(jax.jit(self.vae.sample_prior, static_argnums=2)(params, self.key, count))

    def log_likelihood(
        self, params, source: Source, observed: tuple[bool, ...], targets: tuple[bool, ...], samples: int
    ) -> np.ndarray:
        """``log p(x_targets)`` of each example of ``source``, ``[N]`` in nats, from ``samples`` importance samples of
        ``q(z | x_observed)``. ``params``: of the VAE.

        ``observed`` and ``targets``: for each modality whether it is one.
        """
        # `predict_all` compiles each function object once, so the function of each combination of arguments is kept.
        arguments = (observed, targets, samples)
        if arguments not in self._likelihood_programs:
            self._likelihood_programs[arguments] = lambda params, batch: self.vae.log_likelihood(
                params["vae"], batch, self.key, np.array(observed), np.array(targets), samples
            )
        program = self._likelihood_programs[arguments]
        options = {"batch_size": LIKELIHOOD_BATCH_SIZE, "progress": "likelihood"}
        return self._predict_all(program, params, {}, source, **options)

    def information_gains(self, params, source: Source, draws: int) -> InformationGains:
        """What each modality that is not observed tells about the latents, expected and realised, for each example and
        subset of observed modalities. ``draws``: of the modalities that are not observed."""
        if draws not in self._gain_evaluators:  # kept, so that its program is compiled once
            self._gain_evaluators[draws] = InformationGainEvaluator(
                self.vae, self.configs, draws=draws, seed=self.seed, end_id=self.end_id, pad_id=self.pad_id,
                transform=self.transform, batch_size=self.batch_size,
            )  # fmt: skip
        return self._gain_evaluators[draws](params, source)


def fit_densities(latents: np.ndarray, evaluation: LatentEvaluation, seed: int) -> dict[str, LatentDensity]:
    """The densities in ``evaluation.densities``, fitted to latents ``[N, D]``, by name. ``seed``: of the fits."""
    fits = {
        "mixture": lambda: fit_gaussian_mixture(latents, components=evaluation.components, seed=seed),
        "flow": lambda: fit_flow(latents, seed=seed, steps=evaluation.flow_steps),
        "flow_matching": lambda: fit_flow_matching(latents, seed=seed, steps=evaluation.flow_matching_steps),
    }
    return {name: fits[name]() for name in evaluation.densities}


def image_indices(evaluator: LatentEvaluator) -> list[int]:
    """The modalities that are images, by their index."""
    is_image = lambda name: evaluator.configs.for_modality(name).is_image
    return [k for k, name in enumerate(evaluator.modalities) if is_image(name)]


def present_matrix(evaluator: LatentEvaluator, source: Source) -> np.ndarray:
    """Which examples have which of the evaluator's modalities, bool ``[N, M]``."""
    presence, all_present = source.presence(), np.ones(len(source), bool)
    return np.stack([presence.get(m, all_present) for m in evaluator.modalities], axis=1)


def real_features(evaluator: LatentEvaluator, judge_params, source: Source) -> np.ndarray:
    """Features of the real examples of ``source`` by the judge (classifier) of each modality, ``[N, M, H]``; NaN where
    a modality is missing."""
    features = evaluator.judge(judge_params, source).features
    return np.where(present_matrix(evaluator, source)[:, :, None], features, np.nan)


def _drop_missing(features: np.ndarray) -> np.ndarray:
    """The features ``[N, H]`` that are not NaN."""
    return features[np.isfinite(features).all(axis=1)]


def _kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The kernel distance between two sets of features ``[N, H]``, a mean over random subsets of up to half of the
    smaller set (at least 2 examples, at most 1000)."""
    size = max(2, min(1000, len(a) // 2, len(b) // 2))
    return kernel_distance(a, b, seed=0, subsets=KERNEL_DISTANCE_SUBSETS, subset_size=size).mean


def coherence_metrics(
    evaluator: LatentEvaluator, params, judge_params, source: Source
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Whether modalities that are generated from others show the class of their example (cross-coherence).

    Args:
      evaluator, params, judge_params: the model and the classifiers of its modalities (judges), the parameters of the
        model, and those of the judges.
      source: examples with known classes, whose modalities are translated into each other.

    Returns:
      Three values. The metrics: ``cross/coherence@k`` for k observed modalities, and ``cross/judge_frechet_distance``
      and ``cross/judge_kernel_distance`` of images generated from one other modality, as means over pairs of
      modalities; no metrics if there is one modality only. The classes ``[S + 1, M, N]`` that the judges (classifiers
      of each modality) give to data generated from each subset of the modalities, and last from all of them. The
      features of real data (`real_features`).
    """
    labels, real = source.class_labels(), real_features(evaluator, judge_params, source)
    if len(evaluator.modalities) == 1:
        return {}, np.zeros((1, 1, 0), int), real  # nothing is generated from another modality: no classes
    translations = evaluator.translate(params, judge_params, source)
    present = translations.present
    classes = np.moveaxis(translations.classes, 0, -1)  # [S + 1, M, N]
    # Which examples have all modalities of a subset, [S, N].
    subset_present = np.array([present[:, members].all(axis=1) for members in evaluator.subsets])
    metrics = cross_coherence(classes[:-1], labels, evaluator.subsets, subset_present)
    # Distances of each image modality (``target``) generated from each other modality (``observed``).
    frechet, kernel = [], []
    for target in image_indices(evaluator):
        for observed in range(len(evaluator.modalities)):
            if observed != target:
                real_images = _drop_missing(real[:, target])
                generated = translations.unimodal_features[present[:, observed], observed, target]
                frechet.append(frechet_distance(moments(real_images), moments(generated)))
                kernel.append(_kernel_distance(real_images, generated))
    if frechet:
        metrics |= {
            "judge_frechet_distance": float(np.mean(frechet)),
            "judge_kernel_distance": float(np.mean(kernel)),
        }
    return {f"cross/{name}": float(value) for name, value in metrics.items()}, classes, real


def pair_coherence(evaluator: LatentEvaluator, classes: np.ndarray, source: Source) -> dict[str, float]:
    """``cross/<observed>_to_<target>/coherence``: how often a modality that is generated from one other alone shows the
    class of its example (macro accuracy), for every ordered pair of modalities.

    ``classes``: as `coherence_metrics` returns them for the examples of ``source``. A pair has no metric where no
    example of a known class has the observed modality.
    """
    names = evaluator.modalities
    single = np.flatnonzero(evaluator.subsets.sum(axis=1) == 1)  # rows of subsets with one modality
    observed = evaluator.subsets[single].argmax(axis=1)
    present = present_matrix(evaluator, source)[:, observed].T
    matrix = coherence_matrix(classes[single], source.class_labels(), present)
    return {
        f"cross/{names[row]}_to_{target}/coherence": float(matrix[k, column])
        for k, row in enumerate(observed)
        for column, target in enumerate(names)
        if column != row and np.isfinite(matrix[k, column])
    }


def judge_accuracy(evaluator: LatentEvaluator, judge_params, source: Source) -> dict[str, float]:
    """``judge/<modality>``: the accuracy on the real data ``source`` of the judge (classifier) of each modality, which
    limits the coherence that it can measure. ``judge_params``: of the judges in ``evaluator``."""
    classes = evaluator.judge(judge_params, source).logits.argmax(axis=-1)
    labels = source.class_labels()
    counted = (
        present_matrix(evaluator, source) & (labels >= 0)[:, None]
    )  # [N, M]: present, and of a known class
    return {
        f"judge/{m}": float((classes[:, k] == labels)[counted[:, k]].mean())
        for k, m in enumerate(evaluator.modalities)
    }


def joint_metrics(
    evaluator: LatentEvaluator, params, judge_params, draws: Mapping[str, np.ndarray], real: np.ndarray
) -> dict[str, float]:
    """Coherence and image quality of data generated from sampled shared latents.

    Args:
      evaluator, params, judge_params: the model and the classifiers of its modalities (judges), the parameters of the
        model, and those of the judges.
      draws: shared latents ``[N, D]``, by the name of the distribution that they are sampled from.
      real: the classifiers' features of real data ``[N, M, H]``, see `real_features`.

    Returns:
      ``joint_<name>/coherence``: the fraction of samples whose modalities all show the same class;
      ``joint_<name>/judge_frechet_distance`` and ``/judge_kernel_distance``: distances between the judges' features of
      generated and of real images, means over image modalities.
    """
    images, metrics = image_indices(evaluator), {}
    for name, shared in draws.items():
        outputs = evaluator.judge_draws(params, judge_params, shared)
        if len(evaluator.modalities) > 1:
            classes = outputs.logits.argmax(axis=-1)
            metrics[f"joint_{name}/coherence"] = float(joint_coherence(classes.T))  # from classes [M, N]
        if images:
            # Features of real and of generated images, for each image modality.
            pairs = [(_drop_missing(real[:, k]), outputs.features[:, k]) for k in images]
            frechet = [frechet_distance(moments(a), moments(b)) for a, b in pairs]
            metrics[f"joint_{name}/judge_frechet_distance"] = float(np.mean(frechet))
            metrics[f"joint_{name}/judge_kernel_distance"] = float(
                np.mean([_kernel_distance(a, b) for a, b in pairs])
            )
    return metrics


def reconstruction_metrics(evaluator: LatentEvaluator, params, source: Source) -> dict[str, float]:
    """``reconstruction_<modality>/mse`` and ``/ssim`` of images, ``/token_accuracy`` of texts (over tokens that are no
    padding), from all modalities; means over the examples that have the modality."""
    values = evaluator.reconstruct(params, source)
    return {f"reconstruction_{name}": float(np.nanmean(x)) for name, x in values.items()}


def likelihood_metrics(
    evaluator: LatentEvaluator, params, source: Source, evaluation: LatentEvaluation
) -> dict[str, float]:
    """Log-likelihoods in nats of the model in ``evaluator`` with the parameters ``params``, means over examples of
    ``source``. ``evaluation``: the numbers of examples and of importance samples.

    ``likelihood/joint``: ``log p`` of all modalities that an example has. ``likelihood/conditional``: the difference
    of the joint and of ``log p(x_2, ..., x_M)``, which is ``log p(x_1 | x_2, ..., x_M)``, over the examples that have
    ``x_1`` (for an example with ``x_1`` alone it is ``log p(x_1)``). For a model of one modality only
    ``likelihood/test``. A mean over no example is left out.
    """
    count, samples = len(evaluator.modalities), evaluation.likelihood_samples
    all_modalities, all_but_first = (True,) * count, (False,) + (True,) * (count - 1)
    source = take_evenly(source, evaluation.likelihood_examples)
    present = present_matrix(evaluator, source)  # [N, M]

    def estimate(modalities: tuple[bool, ...]) -> np.ndarray:
        """``log p`` of these modalities ``[N]``, with latents inferred from the same ones."""
        return np.float64(
            evaluator.log_likelihood(params, source, observed=modalities, targets=modalities, samples=samples)
        )

    joint, metrics = estimate(all_modalities), {}
    has_any, has_first = present.any(axis=1), present[:, 0]
    if has_any.any():
        metrics["likelihood/test" if count == 1 else "likelihood/joint"] = float(joint[has_any].mean())
    if count > 1 and has_first.any():
        conditional = float((joint - estimate(all_but_first))[has_first].mean())
        # It is NaN for JNF with three or more modalities: given several modalities, but not all, JNF samples the
        # latents by Hamiltonian Monte Carlo, and their density is not known. ``joint`` is not NaN: given all
        # modalities, the density is known in every model.
        if np.isfinite(conditional):
            metrics["likelihood/conditional"] = conditional
    return metrics


class LabelledLatents(NamedTuple):
    """Latents, and the class of each example (-1 where unknown)."""

    latents: SourceLatents
    labels: np.ndarray


def latent_metrics(
    modalities: tuple[str, ...], train: LabelledLatents, test: LabelledLatents, seed: int
) -> dict[str, float]:
    """Whether the latents hold the class: probes are fitted to the latents ``train`` and scored on ``test``.

    ``latent/probe`` and ``latent/probe_<modality>``: accuracy of a linear classifier of the mean latents, given all
    modalities and given one alone. ``latent/clustering_accuracy`` (ACC, by the best one-to-one assignment),
    ``latent/clustering_purity`` and ``latent/adjusted_rand``: agreement of k-means clusters of the mean latents with
    the classes. ``seed``: of k-means.
    """
    known = test.labels >= 0  # -1 is an unknown class
    metrics = {"latent/probe": _probe(train.latents.mean, train.labels, test.latents.mean, test.labels)}
    # Given the only modality of a model is the same as given all.
    for k, name in enumerate(modalities if len(modalities) > 1 else ()):
        metrics[f"latent/probe_{name}"] = _probe(
            train.latents.unimodal[:, k], train.labels, test.latents.unimodal[:, k], test.labels
        )
    clusters = kmeans_clustering(test.latents.mean[known], test.labels[known], seed=seed)
    return metrics | {
        "latent/clustering_accuracy": float(clusters.accuracy),
        "latent/clustering_purity": float(clusters.purity),
        "latent/adjusted_rand": float(clusters.adjusted_rand),
    }


def _probe(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy on the test latents ``[N, D]`` of a linear classifier that is fitted to the training latents.

    Examples with an unknown class (-1) are left out. Labels are int ``[N]``.
    """
    train_known, test_known = train_labels >= 0, test_labels >= 0
    # Standardised by dimension, with the statistics of the training latents.
    mean = train[train_known].mean(axis=0, keepdims=True)
    scale = train[train_known].std(axis=0, keepdims=True) + 1e-6
    standardise = lambda x: (x - mean) / scale
    # Stronger regularisation than by default: after standardising, latent dimensions without information are noise as
    # large as the others.
    return linear_probe(
        standardise(train[train_known]), train_labels[train_known],
        standardise(test[test_known]), test_labels[test_known], inverse_l2=0.01,
    )  # fmt: skip


def disentanglement_metrics(latents: np.ndarray, factors: np.ndarray, seed: int) -> dict[str, float]:
    """How well single dimensions of the latents ``[N, D]`` match single factors ``[N, F]``.

    ``latent/mig``: mutual information gap; ``latent/sap``: separated attribute predictability; ``latent/dci_...``:
    disentanglement, completeness and informativeness (an accuracy), from 20 rounds of gradient boosting. In each round
    a factor gets one tree for each of its values (with two values one tree). No metrics if there is only one factor,
    or fewer than `MIN_EXAMPLES` examples. ``seed``: of the random splits.
    """
    if factors.shape[1] < 2 or len(factors) < MIN_EXAMPLES:
        return {}
    scores = dci(latents, factors, seed=seed, rounds=20)
    return {
        "latent/mig": float(mutual_information_gap(latents, factors)),
        "latent/sap": float(sap(latents, factors, seed=seed)),
        "latent/dci_disentanglement": float(scores.disentanglement),
        "latent/dci_completeness": float(scores.completeness),
        "latent/dci_informativeness": float(scores.informativeness),
    }


class LatentResults(NamedTuple):
    """All metrics of one seed, and what the report shows of it."""

    metrics: dict[str, float]
    classes: np.ndarray
    """``[S + 1, M, N]``: the class that the judge (classifier) of each modality gives to data generated from each
    subset of the modalities."""
    labels: np.ndarray
    """``[N]``: the class of each example; -1: unknown."""
    latents: SourceLatents
    draws: dict[str, np.ndarray]
    """Shared latents drawn from the prior and from each fitted density."""
    densities: Mapping[str, LatentDensity] = MappingProxyType({})
    """The fitted densities of the shared latents, by name."""
    gains: InformationGains | None = None
    """The information that each missing modality gives; None: it is not measured."""
    wants_gains: bool = False
    """Whether ``gains`` would be measured if the model had them."""
    learned: LearningScores | None = None
    """What classifiers learn from generated images; None: it is not measured."""
    speech: Mapping[str, TranscribedSpeech] = MappingProxyType({})
    """Generated speech by what it was generated from (`evaluation.generated_speech`); empty without a recogniser."""


def evaluate_latent(
    evaluator: LatentEvaluator,
    params: Any,
    judge_params: Any,
    train: Source,
    test: Source,
    factors: np.ndarray,
    evaluation: LatentEvaluation,
    seed: int,
    has_likelihood: bool = True,
    learn: LearningEvaluator | None = None,
) -> LatentResults:
    """All metrics of the model's parameters of one seed.

    Args:
      evaluator: the model and its judges, classifiers of each modality.
      params: the model's parameters.
      judge_params: the judges' parameters.
      train: examples to whose latents densities and probes are fitted.
      test: examples to evaluate.
      factors: of the test examples, see `evaluation.latent_data.known_factors`.
      evaluation: what is evaluated, and on how many examples.
      seed: seed of the fitted densities, of k-means and of random splits.
      has_likelihood: whether the model can estimate a likelihood.
      learn: measures what classifiers learn from generated images; None: nothing does.
    """
    # The factors of the same examples as those that `take_evenly` takes.
    factors = factors[evenly_spread(len(test), evaluation.examples)]
    test, train = take_evenly(test, evaluation.examples), take_evenly(train, evaluation.latents)
    labels, train_labels = test.class_labels(), train.class_labels()
    metrics, classes, real = {}, np.zeros((1, 1, 0), int), None
    if evaluator.judges is None:  # no class is known
        labels, train_labels = np.full(len(test), -1), np.full(len(train), -1)
    else:
        metrics, classes, real = coherence_metrics(evaluator, params, judge_params, test)
        if len(evaluator.modalities) > 1:
            metrics |= pair_coherence(evaluator, classes, test)
        metrics |= judge_accuracy(evaluator, judge_params, test)
    latents, train_latents = evaluator.encode(params, test), evaluator.encode(params, train)
    # Shared latents by the distribution that they are drawn from. A prior that depends on the label has no samples
    # here.
    draws = {}
    if evaluator.vae.sample_prior is not None:
        draws["prior"] = evaluator.sample_prior(params, evaluation.draws)
    # Fitted to samples of q(z | x), not to its means: the decoder was trained on such samples.
    densities = fit_densities(train_latents.samples, evaluation, seed)
    draws |= {name: density.sample(evaluation.draws, seed) for name, density in densities.items()}
    if real is not None:
        metrics |= joint_metrics(evaluator, params, judge_params, draws, real)
    metrics |= reconstruction_metrics(evaluator, params, test)
    if has_likelihood:
        metrics |= likelihood_metrics(evaluator, params, test, evaluation)
    if evaluator.judges is not None:
        metrics |= latent_metrics(
            evaluator.modalities,
            train=LabelledLatents(train_latents, train_labels),
            test=LabelledLatents(latents, labels),
            seed=seed,
        )
    if evaluation.disentanglement:
        metrics |= disentanglement_metrics(latents.mean, factors, seed)
    gains, wants_gains = None, evaluation.information_gain
    if wants_gains is None:
        wants_gains = lacks_modalities(evaluator.modalities, train, test)
    if wants_gains and evaluator.vae.posterior is not None:
        acquired = take_evenly(test, evaluation.information_examples)
        gains = evaluator.information_gains(params, acquired, evaluation.information_draws)
        metrics |= gains.metrics()
    learned = None
    if learn is not None:
        learned = learn(params)
        metrics |= learned.metrics
    return LatentResults(metrics, classes, labels, latents, draws, densities, gains, wants_gains, learned)


def generation_inputs(evaluator: LatentEvaluator, target: str) -> tuple[str, ...]:
    """The modalities that images of a known class are generated from: the class, else texts, else all but ``target``;
    empty: there are no others."""
    others = tuple(m for m in evaluator.modalities if m != target)
    by_kind = (tuple(m for m in others if kind_of(m) == kind) for kind in ("label", "text"))
    return next(filter(None, by_kind), others)


def latent_learning(
    evaluator: LatentEvaluator, data: LatentData, options: LearningEvaluation
) -> LearningEvaluator:
    """What classifiers learn from the images that a VAE generates for the classes of training examples, if it is
    conditional, else from their texts (or all their other modalities)."""
    images = image_indices(evaluator)
    if not images:
        return nothing_to_learn("No modality is an image.", options)
    target, by_class = evaluator.modalities[images[0]], evaluator.vae.class_latents is not None
    inputs = () if by_class else generation_inputs(evaluator, target)
    if not inputs and not by_class:
        return nothing_to_learn(
            "The model generates images from noise alone, so that their classes are not known. A conditional model "
            "(--model cvae) generates images of a class.",
            options,
        )
    observed = np.array([m in inputs for m in evaluator.modalities])

    def generate_batch(params, batch):
        """An image of each example's class, or from its inputs."""
        if by_class:
            # The noise is numbered from 0 in each batch: the key depends on the first example's index.
            key = jax.random.fold_in(evaluator.key, batch["index"][0])
            z = evaluator.vae.class_latents(params, batch["label"], key)
        else:
            z = evaluator.vae.infer(params, batch, observed, evaluator.key).z
        return evaluator.decode_sample(params, z)[target]

    def make_generate(train: Source) -> Generate:
        options = dict(batch_size=evaluator.batch_size, transform=data.transform)
        return lambda params, indices: predict_all(generate_batch, params, Subset(train, indices), **options)

    splits = (data.source, data.validation, data.test)
    return make_learning_evaluator(options, splits, make_generate, modality=target, needed=inputs)


def evaluate_seeds(
    evaluator: LatentEvaluator,
    trained: TrainingResult,
    judge_params: Any,
    data: LatentData,
    evaluation: LatentEvaluation,
    has_likelihood: bool = True,
    run: Run | None = None,
) -> list[LatentResults]:
    """`evaluate_latent` for the parameters of each seed of a training, in the order of ``trained.seeds``.

    ``judge_params``: of the judges, which serve all seeds. ``has_likelihood``: whether the model can estimate one.
    ``run``: the run, which keeps the densities that are fitted by flow matching, so that `inference.load` can sample
    from them; None: they are not stored.
    """
    announce_evaluation()
    learn = latent_learning(evaluator, data, evaluation.learning)
    results = [
        evaluate_latent(
            evaluator, params, judge_params, train=data.source, test=data.test, factors=data.factors,
            evaluation=evaluation, seed=seed, has_likelihood=has_likelihood, learn=learn,
        )
        for params, seed in zip(trained.params, trained.seeds, strict=True)
    ]  # fmt: skip
    if run is not None and run.writes:
        for params, each in zip(trained.params, results, strict=True):
            if NAME in each.densities:
                save_density(run.path, params, each.densities[NAME])
    return results
