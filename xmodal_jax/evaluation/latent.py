"""How good a multimodal VAE is: coherence, likelihood, distance to real data, and what its latent space holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.source import Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.evaluation.samplers import Sampler, fit_flow, fit_gaussian_mixture
from xmodal_jax.metrics.classification import linear_probe
from xmodal_jax.metrics.clustering import clustering_accuracy
from xmodal_jax.metrics.coherence import cross_coherence, joint_coherence, subsets
from xmodal_jax.metrics.disentanglement import dci, mutual_information_gap, sap
from xmodal_jax.metrics.generative import frechet_distance, kernel_distance, moments
from xmodal_jax.metrics.reconstruction import mse, ssim
from xmodal_jax.models.vae.generation import as_batch
from xmodal_jax.models.vae.judges import Judges
from xmodal_jax.models.vae.modalities import Reading, to_log_mel
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.loop import fit
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.types import kind_of

FEWEST = 16
"""Examples without which a part of them may show no two values of some factor."""
KID_SUBSETS = 20
"""Subsets of a kernel distance."""


@dataclasses.dataclass(frozen=True)
class LatentEvaluation:
    """How much is evaluated."""

    examples: int = 1000
    """Test examples, at most, that are translated from every subset of their modalities."""
    draws: int = 1000
    """Joint draws of the prior and of each sampler."""
    samplers: tuple[str, ...] = ("mixture", "flow")
    """What is fitted to the training data's codes and drawn from beside the prior: "mixture" (of Gaussians),
    "flow"."""
    components: int = 10
    """Of the mixture."""
    flow_steps: int = 1000
    """Of the flow's training."""
    codes: int = 4000
    """Training examples, at most, that samplers, clusters and probes are fitted to."""
    likelihood_examples: int = 200
    """Test examples, at most, whose likelihood is estimated."""
    likelihood_samples: int = 100
    """Importance samples of each."""
    disentanglement: bool = True
    """Whether codes are compared with the known factors of the examples, where there are two or more (and 16 examples
    at least)."""

    def __post_init__(self):
        for field in (
            "examples",
            "draws",
            "components",
            "flow_steps",
            "codes",
            "likelihood_examples",
            "likelihood_samples",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        unknown = sorted(set(self.samplers) - {"mixture", "flow"})
        if unknown:
            raise ValueError(f"samplers: {unknown[0]!r} is neither 'mixture' nor 'flow'")


SMOKE = LatentEvaluation(
    examples=24, draws=24, components=2, flow_steps=20, codes=40, likelihood_examples=10, likelihood_samples=3,
    samplers=("flow",), disentanglement=False,
)  # fmt: skip
"""Enough to see that all of it works."""


def shrink_latent(config: Any) -> Any:
    """The configuration of a ``--smoke`` run of an experiment with a latent space, after `train.config.shrink`."""
    # A third of the embedded data set's scenes have one object, and samplers want some codes.
    more = dataclasses.replace(config.input, train_size=150)
    return dataclasses.replace(config, input=more, judge_steps=4, evaluation=SMOKE)


def fit_judges(judges: Judges, loader: Loader, config: RunConfig, run: Run, timer: Timer, steps: int) -> Any:
    """Parameters of judges trained for ``steps`` steps, one seed, kept in ``judges`` of the run's directory."""
    config = dataclasses.replace(config, steps=steps, eval_every=0, checkpoint_every=0, patience=0, seeds=1)
    where = dict(resume=config.resume, writer=run.writes, tensorboard=False)
    with Run.create(run.path / "judges", config, **where) as own:
        run.print("training the judges")
        optimizer = Optimizer("muon", learning_rate=5e-3)
        return fit(judges.method, loader, config, optimizer, own, timer).params[0]


class Explorer:
    """A multimodal VAE over whole data sets: what it makes of them, what it dreams, what judges say of both.
    Programs are compiled once and serve all seeds."""

    def __init__(
        self,
        vae: MultimodalVAE,
        config: Reading,
        judges: Judges,
        *,
        seed: int = 0,
        end: int = -1,
        transform: Callable | None = None,
        batch_size: int = 100,
    ):
        self.vae, self.config, self.judges, self.end = vae, config, judges, end
        self.modalities, count = vae.modalities, len(vae.modalities)
        self.batch_size, self.transform, self.key = batch_size, transform, jax.random.key(seed)
        self.subsets = subsets(count, tuple(range(1, count))) if count > 1 else np.zeros((0, 1), bool)
        self._translate = lambda both, batch: self._translated(both, batch)
        self._rebuild = lambda both, batch: self._rebuilt(both, batch)
        self._codes = lambda both, batch: self._coded(both, batch)
        self._dream = lambda both, batch: self._dreamt(both, batch)
        self._verdict = lambda both, batch: judges.method.predict(both["judges"], batch)
        self._likelihoods: dict[Any, Callable] = {}

    def _all(self, program, params, judged, source: Source, **how):
        how = {"batch_size": self.batch_size, "transform": self.transform} | how
        return predict_all(program, {"vae": params, "judges": judged}, source, **how)

    def to_batch(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """What a decoder gave, ``[B, ...]``, as a batch of data."""
        return as_batch(dict(outputs), lambda x: to_log_mel(self.config, x), end=self.end)

    def _judge(self, both, z, key):
        made = jax.tree.map(lambda x: x[0], self.vae.decode(both["vae"], z, key))
        return self.judges.method.predict(both["judges"], self.to_batch(made))

    def _translated(self, both, batch):
        given = jnp.concatenate([jnp.asarray(self.subsets), jnp.ones((1, len(self.modalities)), bool)])
        codes = self.vae.infer(both["vae"], batch, given, self.key).z

        def of_one(z):
            verdict = self._judge(both, z, None)
            return verdict.logits.argmax(axis=-1), verdict.features

        classes, features = jax.lax.map(of_one, codes)
        alone = features[: len(self.modalities)]
        everyone = jnp.ones(len(batch["index"]), bool)
        present = jnp.stack([batch.get("present", {}).get(m, everyone) for m in self.modalities], axis=1)
        swap = lambda x: jnp.moveaxis(x, 0, 1)
        return {"classes": swap(classes), "alone": swap(alone), "present": present}

    def _rebuilt(self, both, batch):
        z = self.vae.infer(both["vae"], batch, jnp.ones(len(self.modalities), bool), None).z
        made = jax.tree.map(lambda x: x[0], self.vae.decode(both["vae"], z, None))
        found = {}
        for name in self.modalities:
            if kind_of(name) == "image":
                real = jnp.asarray(batch[name]).astype(jnp.float32) / 255.0
                found[f"{name}/mse"] = mse(made[name], real)
                if min(real.shape[1:3]) >= 11:
                    found[f"{name}/ssim"] = ssim(made[name], real)
            elif kind_of(name) == "text":
                mask = batch[f"{name}_mask"]
                right = ((made[name] == batch[name]) & mask).sum(axis=1)
                found[f"{name}/token_accuracy"] = right / jnp.maximum(mask.sum(axis=1), 1)
        there = batch.get("present", {})
        missing = lambda name, x: jnp.where(there[name], x, jnp.nan) if name in there else x
        return {name: missing(name.split("/")[0], x) for name, x in found.items()}

    def _coded(self, both, batch):
        count = len(self.modalities)
        given = jnp.concatenate([jnp.eye(count, dtype=bool), jnp.ones((1, count), bool)])
        means = self.vae.infer(both["vae"], batch, given, None).shared[:, 0]
        drawn = self.vae.infer(both["vae"], batch, given[-1], self.key).shared[0]
        return {"alone": jnp.moveaxis(means[:-1], 0, 1), "mean": means[-1], "drawn": drawn}

    def _dreamt(self, both, batch):
        key = jax.random.fold_in(self.key, batch["index"][0])
        z = self.vae.unfold(both["vae"], batch["shared"], key)
        verdict = self._judge(both, z, None)
        return {"classes": verdict.logits.argmax(axis=-1), "features": verdict.features}

    def codes(self, params, judged, source: Source) -> dict[str, np.ndarray]:
        """Codes of a data set: ``alone [N, M, D]`` of each modality, ``mean`` and ``drawn [N, D]`` of all."""
        return self._all(self._codes, params, judged, source)

    def dream(self, params, judged, shared: np.ndarray) -> dict[str, np.ndarray]:
        """What the judges say of joint draws from shared codes ``[N, D]``: ``classes [N, M]``, ``features``."""
        rows = ArraySource({"shared": np.asarray(shared, np.float32)})
        index = lambda batch: {**batch, "index": np.asarray(batch["index"], np.int32)}
        return self._all(self._dream, params, judged, rows, transform=index)

    def prior(self, params, count: int) -> np.ndarray:
        """``count`` shared codes of the model's own prior."""
        return np.asarray(jax.jit(self.vae.prior, static_argnums=2)(params, self.key, count))

    def verdict(self, judged, source: Source):
        """What the judges say of the data themselves, a `Verdict`."""
        return self._all(self._verdict, None, judged, source)

    def translate(self, params, judged, source: Source) -> dict[str, np.ndarray]:
        """What is made of every subset of the modalities, and of all of them (last): ``classes [N, S + 1, M]``,
        features ``alone [N, M, M, H]`` of what one modality alone tells of each, and which were ``present [N, M]``."""
        return self._all(self._translate, params, judged, source)

    def rebuild(self, params, source: Source) -> dict[str, np.ndarray]:
        """How far the data are from what is made of all their modalities, ``[N]`` by name; NaN where missing."""
        return self._all(self._rebuild, params, {}, source)

    def likelihood(
        self, params, source: Source, given: tuple[bool, ...], told: tuple[bool, ...], samples: int
    ) -> np.ndarray:
        """``log p(x_told)`` ``[N]`` in nats, by importance samples of ``q(z | x_given)``."""
        how = (given, told, samples)
        if how not in self._likelihoods:
            self._likelihoods[how] = lambda both, batch: self.vae.log_likelihood(
                both["vae"], batch, self.key, np.array(given), np.array(told), samples
            )
        return self._all(self._likelihoods[how], params, {}, source, batch_size=10)


def first(source: Source, count: int) -> Subset:
    """At most ``count`` examples, evenly spread."""
    return Subset(source, spread(len(source), count))


def spread(size: int, count: int) -> np.ndarray:
    """At most ``count`` indices of ``size`` examples, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


def fit_samplers(codes: np.ndarray, how: LatentEvaluation, seed: int) -> dict[str, Sampler]:
    """The samplers of ``how``, fitted to codes ``[N, D]``."""
    fits = {
        "mixture": lambda: fit_gaussian_mixture(codes, components=how.components, seed=seed),
        "flow": lambda: fit_flow(codes, seed=seed, steps=how.flow_steps),
    }
    return {name: fits[name]() for name in how.samplers}


def coherence_scores(
    explorer: Explorer, params, judged, source: Source
) -> tuple[dict[str, float], dict[str, Any]]:
    """``cross/coherence@k`` of k given modalities, ``cross/fid`` and ``cross/kid`` of what one modality alone tells
    of the others (means over pairs); and what they were made of."""
    labels, real = source.class_labels(), real_features(explorer, judged, source)
    if len(explorer.modalities) == 1:
        return {}, {"classes": np.zeros((1, 1, 0), int), "real": real}
    found = explorer.translate(params, judged, source)
    classes = np.moveaxis(found["classes"], 0, -1)  # [S + 1, M, N]
    here = np.array([found["present"][:, members].all(axis=1) for members in explorer.subsets])
    scores = cross_coherence(classes[:-1], labels, explorer.subsets, here)
    fid, kid = [], []
    for told in range(len(explorer.modalities)):
        for given in range(len(explorer.modalities)):
            if given != told and kind_of(explorer.modalities[told]) == "image":
                shown, made = (
                    _not_missing(real[:, told]),
                    found["alone"][found["present"][:, given], given, told],
                )
                fid.append(frechet_distance(moments(shown), moments(made)))
                kid.append(_kid(shown, made))
    if fid:
        scores |= {"fid": float(np.mean(fid)), "kid": float(np.mean(kid))}
    return {f"cross/{k}": float(v) for k, v in scores.items()}, {"classes": classes, "real": real}


def _kid(a, b) -> float:
    size = max(2, min(1000, len(a) // 2, len(b) // 2))
    return kernel_distance(a, b, seed=0, subsets=KID_SUBSETS, subset_size=size).mean


def real_features(explorer: Explorer, judged, source: Source) -> np.ndarray:
    """The judges' features of the data themselves, ``[N, M, H]``; NaN where a modality is missing."""
    features = explorer.verdict(judged, source).features
    return np.where(present_in(explorer, source)[:, :, None], features, np.nan)


def present_in(explorer: Explorer, source: Source) -> np.ndarray:
    """Which examples have which of the explorer's modalities, bool ``[N, M]``."""
    held, everyone = source.presence(), np.ones(len(source), bool)
    return np.stack([held.get(m, everyone) for m in explorer.modalities], axis=1)


def _not_missing(features: np.ndarray) -> np.ndarray:
    """The rows ``[N, H]`` of what is not missing."""
    return features[np.isfinite(features).all(axis=1)]


def judge_accuracy(explorer: Explorer, judged, source: Source) -> dict[str, float]:
    """``judge/<modality>`` on real data: what coherence can reach."""
    classes = explorer.verdict(judged, source).logits.argmax(axis=-1)
    labels = source.class_labels()
    counts = present_in(explorer, source) & (labels >= 0)[:, None]
    return {
        f"judge/{m}": float((classes[:, k] == labels)[counts[:, k]].mean())
        for k, m in enumerate(explorer.modalities)
    }


def joint_scores(
    explorer: Explorer, params, judged, draws: Mapping[str, np.ndarray], real: np.ndarray
) -> dict[str, float]:
    """Of each source of shared codes (the prior, samplers) ``joint_<name>/coherence``, the share of draws whose
    modalities are all of one class, and of its images ``joint_<name>/fid`` and ``/kid`` (means over modalities)."""
    images = [k for k, m in enumerate(explorer.modalities) if kind_of(m) == "image"]
    scores = {}
    for name, shared in draws.items():
        found = explorer.dream(params, judged, shared)
        if len(explorer.modalities) > 1:
            scores[f"joint_{name}/coherence"] = float(joint_coherence(found["classes"].T))
        if images:
            pairs = [(_not_missing(real[:, k]), found["features"][:, k]) for k in images]
            scores[f"joint_{name}/fid"] = float(
                np.mean([frechet_distance(moments(a), moments(b)) for a, b in pairs])
            )
            scores[f"joint_{name}/kid"] = float(np.mean([_kid(a, b) for a, b in pairs]))
    return scores


def reconstruction_scores(explorer: Explorer, params, source: Source) -> dict[str, float]:
    """``reconstruction_<modality>/mse`` and ``/ssim`` of images, ``/token_accuracy`` of texts (of the tokens that
    count), all modalities given; means over the examples that have the modality."""
    found = explorer.rebuild(params, source)
    return {f"reconstruction_{name}": float(np.nanmean(values)) for name, values in found.items()}


def likelihood_scores(explorer: Explorer, params, source: Source, how: LatentEvaluation) -> dict[str, float]:
    """``likelihood/joint``, the mean over examples of ``log p(x_1..M)`` in nats, and ``likelihood/conditional``,
    that of the first modality given the others, as the difference of two estimates."""
    count = len(explorer.modalities)
    everything, others = (True,) * count, (False,) + (True,) * (count - 1)
    source = first(source, how.likelihood_examples)
    estimate = lambda given, told: float(
        explorer.likelihood(params, source, given, told, how.likelihood_samples).mean()
    )
    whole = estimate(everything, everything)
    if count == 1:
        return {"likelihood/test": whole}
    scores, rest = {"likelihood/joint": whole}, estimate(others, others)
    if np.isfinite(rest):
        scores["likelihood/conditional"] = whole - rest
    return scores


def latent_scores(
    explorer: Explorer,
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    factors: np.ndarray,
    how: LatentEvaluation,
    seed: int,
) -> dict[str, float]:
    """``latent/...``: a linear probe of the class on all modalities' mean code and on each one's, k-means against the
    classes, and MIG, DCI and SAP against the ``factors [N, F]`` of the test examples, if there are several."""
    fit, known = train_labels >= 0, test_labels >= 0

    def probe(a, b):
        mean, scale = a[fit].mean(axis=0, keepdims=True), a[fit].std(axis=0, keepdims=True) + 1e-6
        standard = lambda x: (x - mean) / scale
        # Regularised more than by default: dimensions that say nothing are noise of the same size as the others.
        return linear_probe(
            standard(a[fit]), train_labels[fit], standard(b[known]), test_labels[known], inverse_l2=0.01
        )

    scores = {"latent/probe": probe(train["mean"], test["mean"])}
    for k, name in enumerate(explorer.modalities if len(explorer.modalities) > 1 else ()):
        scores[f"latent/probe_{name}"] = probe(train["alone"][:, k], test["alone"][:, k])
    clusters = clustering_accuracy(test["mean"][known], test_labels[known], seed=seed)
    scores |= {
        "latent/clustering": float(clusters.accuracy),
        "latent/adjusted_rand": float(clusters.adjusted_rand),
    }
    if how.disentanglement and factors.shape[1] > 1 and len(factors) >= FEWEST:
        codes = test["mean"]
        parts = dci(codes, factors, seed=seed, rounds=20)
        scores |= {
            "latent/mig": float(mutual_information_gap(codes, factors)),
            "latent/sap": float(sap(codes, factors, seed=seed)),
            "latent/dci_disentanglement": float(parts.disentanglement),
            "latent/dci_completeness": float(parts.completeness),
            "latent/dci_informativeness": float(parts.informativeness),
        }
    return scores


class Examined(NamedTuple):
    """All scores of one seed, and what the report shows of it."""

    scores: dict[str, float]
    classes: np.ndarray
    """``[S, M, N]``: what judges see in what each subset of modalities tells."""
    labels: np.ndarray
    codes: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    """Shared codes of the prior and of each sampler."""


def examine(
    explorer: Explorer,
    params: Any,
    judged: Any,
    train: Source,
    test: Source,
    factors: np.ndarray,
    how: LatentEvaluation,
    seed: int,
    likelihood: bool = True,
) -> Examined:
    """Everything that `LatentEvaluation` asks for, of one seed. ``factors``: of the test examples, see
    `known_factors`; ``likelihood``: whether the model has one."""
    factors = factors[spread(len(test), how.examples)]
    test, train = first(test, how.examples), first(train, how.codes)
    labels, train_labels = test.class_labels(), train.class_labels()
    found, seen = coherence_scores(explorer, params, judged, test)
    found |= judge_accuracy(explorer, judged, test)
    codes = explorer.codes(params, judged, test)
    train_codes = explorer.codes(params, judged, train)
    draws = {}
    if explorer.vae.prior is not None:
        draws["prior"] = explorer.prior(params, how.draws)
    samplers = fit_samplers(train_codes["drawn"], how, seed)
    draws |= {name: sampler.sample(how.draws, seed) for name, sampler in samplers.items()}
    found |= joint_scores(explorer, params, judged, draws, seen["real"])
    found |= reconstruction_scores(explorer, params, test)
    if likelihood:
        found |= likelihood_scores(explorer, params, test, how)
    found |= latent_scores(explorer, train_codes, codes, train_labels, labels, factors, how, seed)
    return Examined(found, seen["classes"], labels, codes, draws)
