"""Which missing modality to acquire next, by a multimodal VAE: the information gain about the latents that the model
expects of each candidate modality, and the realised gain where the example has the candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from xmodal_jax.core.random import batch_keys, fold_in_name
from xmodal_jax.data.source import Source
from xmodal_jax.evaluation.embeddings import predict_all
from xmodal_jax.metrics.coherence import subsets
from xmodal_jax.metrics.information_gain import (
    GainAgreement,
    compare_gains,
    expected_information_gain,
    information_gain,
    mean_gain,
)
from xmodal_jax.models.vae.modalities import ModalityConfigs, NetworkInputs, as_batch, preprocess
from xmodal_jax.models.vae.multimodal import MultimodalVAE
from xmodal_jax.types import Batch, ExampleKeys, Params

ALL_SUBSETS_UP_TO = 5
"""Largest number M of modalities for which all 2^M - 1 subsets are observed in turn; of more modalities only the
subsets of none, one, and all but one."""
PREFIX = "test/information_gain/"
"""Of the names of the metrics."""


class InformationGains(NamedTuple):
    """Gains of information about the shared latents in nats, for N examples, S subsets A of observed modalities, and
    each of M modalities m as the next one; NaN where m is in A already, or the example lacks one of A."""

    expected: np.ndarray
    """``[N, S, M]``: ``I(z; x_m | x_A)`` by the model."""
    realised: np.ndarray
    """``[N, S, M]``: ``KL(q(z | x_A, x_m) || q(z | x_A))`` with the example's own x_m; also NaN where it lacks it."""
    subsets: np.ndarray
    """bool ``[S, M]``: the modalities that are observed in each subset."""
    modalities: tuple[str, ...]

    @property
    def agreement(self) -> GainAgreement:
        """How well expected and realised gains agree."""
        return compare_gains(self.expected, self.realised)

    def subset_names(self, separator: str = " ") -> list[str]:
        """A name for each subset: its modalities joined by ``separator``; "nothing" for the empty one."""
        names = [
            separator.join(name for name, member in zip(self.modalities, subset, strict=True) if member)
            for subset in self.subsets
        ]
        return [name or "nothing" for name in names]

    def metrics(self) -> dict[str, float]:
        """``test/information_gain/``: ``expected/given_<A>/<m>`` and ``realised/given_<A>/<m>`` (means over examples,
        in nats), and how well the two agree (`metrics.GainAgreement`)."""
        metrics = {}
        for kind, gains in (("expected", self.expected), ("realised", self.realised)):
            means = mean_gain(gains)
            for s, observed in enumerate(self.subset_names("_")):
                metrics |= {
                    f"{PREFIX}{kind}/given_{observed}/{name}": float(means[s, m])
                    for m, name in enumerate(self.modalities)
                    if np.isfinite(means[s, m])
                }
        agreement = self.agreement._asdict()
        return metrics | {f"{PREFIX}{name}": x for name, x in agreement.items() if np.isfinite(x)}


class InformationGainEvaluator:
    """Expected and realised gains of information of whole data sets, by one compiled program for all parameters."""

    def __init__(
        self,
        vae: MultimodalVAE,
        configs: ModalityConfigs,
        *,
        draws: int = 8,
        samples: int = 16,
        seed: int = 0,
        end_id: int = -1,
        pad_id: int = 0,
        transform: Callable | None = None,
        batch_size: int = 50,
    ):
        """
        Args:
          vae: the model.
          configs: how its modalities are preprocessed.
          draws: number of Monte-Carlo draws of the unobserved modalities, for each example and subset.
          samples: number of latents for each divergence between mixtures; unused where it has a closed form.
          seed: seed of every draw.
          end_id, pad_id: ids of the token that ends a text and of padding; end_id -1: texts have no end token.
          transform: applied to raw batches, such as tokenization; None: there is none.
          batch_size: number of examples that are computed at a time.

        Raises:
          ValueError: the density of the model's posterior is not known, or it has no prior or one modality only.
        """
        if vae.posterior is None:
            raise ValueError(
                "this model has no information gain: the density of its posterior is not known (nexus, mhvae, jnf), it "
                "has no prior (mmvm), or it has one modality only"
            )
        self.vae, self.configs, self.draws, self.samples = vae, configs, draws, samples
        self.end_id, self.pad_id = end_id, pad_id
        self.transform, self.batch_size, self.key = transform, batch_size, jax.random.key(seed)
        self.subsets = observed_subsets(len(vae.modalities))

    def __call__(self, params: Params, source: Source) -> InformationGains:
        """Computes the gains of every example of ``source``."""
        expected, realised = predict_all(
            self._gains, params, source, batch_size=self.batch_size, transform=self.transform
        )
        return InformationGains(expected, realised, self.subsets, self.vae.modalities)

    def _gains(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """Expected and realised gains ``[B, S, M]`` of a batch."""
        modalities = self.vae.modalities
        real = preprocess(self.configs, modalities, batch)
        # A modality that the example lacks is a candidate too, so all count as present here. Results for subsets A that
        # the example does not have are masked below.
        inputs = real._replace(present=jnp.ones_like(real.present))
        keys = fold_in_name(batch_keys(self.key, batch), "information_gain")
        gains_of_subset = lambda observed: self._gains_of_subset(params, inputs, observed, keys)
        # One subset after the other, so that memory does not grow with their number: [S, M, B].
        expected, realised = jax.lax.map(gains_of_subset, jnp.asarray(self.subsets))
        has_observed = (~self.subsets[:, :, None] | real.present[None]).all(axis=1)  # [S, B]
        is_candidate = jnp.asarray(~self.subsets)[:, :, None] & has_observed[:, None]  # [S, M, B]
        mask = lambda gains, counted: jnp.moveaxis(jnp.where(counted, gains, jnp.nan), -1, 0)
        return mask(expected, is_candidate), mask(realised, is_candidate & real.present[None])

    def _gains_of_subset(
        self, params: Params, inputs: NetworkInputs, observed: Bool[Array, "m"], keys: ExampleKeys
    ) -> tuple[Array, Array]:
        """Expected and realised gains ``[M, B]``, given the ``observed`` modalities of ``inputs``. ``keys``: of the
        examples."""
        vae = self.vae
        candidates = jnp.eye(len(vae.modalities), dtype=bool) | observed[None]  # A and m, for each m: [M, M]
        current = vae.posterior(params, inputs, observed)
        update = lambda inputs: vae.posterior(params, inputs, candidates)

        def simulate(keys: ExampleKeys) -> NetworkInputs:
            """The inputs with a draw of ``p(x_m | x_A)`` in place of each modality that is not observed."""
            shared = current.sample(keys, "shared", 1)
            z = vae.decoder_samples(params, inputs, shared, observed, keys)
            # `vae.sample` takes one key for the whole batch. The first example's differs between batches and draws.
            data = jax.tree.map(lambda x: x[0], vae.sample(params, z, fold_in_name(keys[0], "noise")))
            drawn = as_batch(self.configs, data, end_id=self.end_id, pad_id=self.pad_id)
            drawn = preprocess(self.configs, vae.modalities, drawn)
            return _observed_or_drawn(inputs, drawn, dict(zip(vae.modalities, observed, strict=True)))

        expected = expected_information_gain(
            current, simulate, update, keys, draws=self.draws, samples=self.samples
        )
        return expected.mean(axis=0), information_gain(update(inputs), current, keys, samples=self.samples)


def observed_subsets(count: int) -> np.ndarray:
    """The subsets of M = ``count`` modalities that are observed in turn, bool ``[S, M]``, the empty one first; see
    `ALL_SUBSETS_UP_TO`. The full subset is left out: nothing can be added to it."""
    sizes = range(count) if count <= ALL_SUBSETS_UP_TO else (0, 1, count - 1)
    return np.concatenate([np.zeros((1, count), bool), subsets(count, sizes=[k for k in sizes if k])])


def _observed_or_drawn(
    inputs: NetworkInputs, drawn: NetworkInputs, observed: dict[str, Array]
) -> NetworkInputs:
    """The encoders' inputs of the ``observed`` modalities from ``inputs``, those of the others from ``drawn``."""
    chosen = {}
    for name, is_observed in observed.items():
        (x, mask), (drawn_x, drawn_mask) = inputs.inputs[name], drawn.inputs[name]
        if mask is not None and drawn_mask is not None:
            mask = jnp.where(is_observed, mask, drawn_mask)
        chosen[name] = jnp.where(is_observed, x, drawn_x.astype(x.dtype)), mask
    return inputs._replace(inputs=chosen)


def best_next_modality(gains: np.ndarray, modalities: Sequence[str]) -> list[str | None]:
    """For each example the modality with the largest gain, of ``gains [N, M]``; None where all are NaN: none to
    acquire.

    Example::

        gains = InformationGainEvaluator(vae, config)(params, source)
        best_next_modality(gains.expected[:, 0], gains.modalities)  # the subset 0: nothing is observed
    """
    finite = np.isfinite(gains)
    best = np.where(finite, gains, -np.inf).argmax(axis=1)
    return [
        modalities[m] if any_finite else None for m, any_finite in zip(best, finite.any(axis=1), strict=True)
    ]


def lacks_modalities(modalities: Sequence[str], *sources: Source) -> bool:
    """Whether any example of the data sets lacks one of the modalities."""
    return any(
        not source.presence().get(name, np.ones(1, bool)).all() for source in sources for name in modalities
    )
