"""Corrections of the modality gap of a trained shared embedding space: without further training, the embeddings of
each modality are translated, so that the modalities have the same mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.core.similarity import l2_normalize

Means = dict[str, np.ndarray]
"""The mean embedding ``[dim]`` of each modality."""


def _from_common_mean(means: Means) -> Means:
    """Each modality's mean minus the mean of all modalities' means."""
    common = np.mean(list(means.values()), axis=0)
    return {modality: mean - common for modality, mean in means.items()}


GAP_CORRECTIONS: dict[str, Callable[[Means], Means]] = {"shift": _from_common_mean, "center": dict}
"""By name of a correction, the vectors that it subtracts from the modalities' embeddings, a function of their means."""
CorrectionKind = Literal["shift", "center"]
"""The names of `GAP_CORRECTIONS`."""


class GapCorrection(NamedTuple):
    """A correction of the modality gap: subtracts a vector from all embeddings of a modality and scales the results to
    unit length. `fit_gap_correction` makes one."""

    offsets: Mapping[str, np.ndarray]
    """By modality, the vector ``[dim]`` that is subtracted."""

    def __call__(self, embeddings: Mapping[str, Any]) -> dict[str, Float[Array, "n dim"]]:
        """The corrected unit vectors of the ``embeddings`` ``[n, dim]`` of each modality.

        Raises:
          ValueError: the correction was fitted without one of the modalities.
        """
        if unknown := [modality for modality in embeddings if modality not in self.offsets]:
            raise ValueError(
                f"the correction of the modality gap was fitted to {', '.join(self.offsets)}, not to "
                f"{', '.join(unknown)}: fit it to data that have all modalities"
            )
        subtract = lambda x, offset: l2_normalize(jnp.asarray(x) - offset[None, :])
        return {modality: subtract(x, self.offsets[modality]) for modality, x in embeddings.items()}


def fit_gap_correction(
    embeddings: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray] | None = None,
    *,
    kind: CorrectionKind = "shift",
    strength: float = 1.0,
) -> GapCorrection:
    r"""Fits a correction of the modality gap to the mean embeddings of training or validation examples.

    A unit vector x of the modality m becomes

    .. math:: \frac{x - s\,\delta_m}{\|x - s\,\delta_m\|}, \qquad
              \delta_m = \mu_m - \tfrac{1}{M} \sum_k \mu_k \;\text{(shift)}, \quad \delta_m = \mu_m \;\text{(center)}

    for the means :math:`\mu` of M modalities and the strength s. Of two modalities the shift is that of Liang et al.
    by :math:`\lambda = s / 2` times the difference of their means. Before the vectors are scaled to unit length, s = 1
    gives all modalities the same mean: that of all means (shift), or 0 (center).

    Args:
      embeddings: unit vectors ``[N, dim]`` of each modality. They must not be those of the examples that are evaluated
        afterwards.
      present: which examples have a modality, bool ``[N]``; the others do not count. None: all.
      kind: which correction, see above.
      strength: s; 0 changes nothing.

    Raises:
      ValueError: the kind is unknown, the strength is not finite, or no example has one of the modalities.

    Example::

        correct = fit_gap_correction(train_embeddings)
        test_embeddings = correct(test_embeddings)

    References:
      Liang et al. 2022, Mind the Gap, arXiv:2203.02053, section 4.2.
    """
    if kind not in GAP_CORRECTIONS:
        raise ValueError(f"the kind of correction is one of {', '.join(GAP_CORRECTIONS)}, got {kind!r}")
    if not np.isfinite(strength):
        raise ValueError(f"the strength of the correction must be finite, got {strength}")
    means = {}
    for modality, vectors in embeddings.items():
        mask = (present or {}).get(modality)
        vectors = np.asarray(vectors, np.float64) if mask is None else np.float64(vectors)[mask]
        if not len(vectors):
            raise ValueError(f"no example has {modality}, so that its mean embedding is unknown")
        means[modality] = vectors.mean(axis=0)
    offsets = GAP_CORRECTIONS[kind](means)
    return GapCorrection({modality: np.float32(strength * x) for modality, x in offsets.items()})


class CorrectedPredict:
    """``predict(params, batch)`` of a contrastive method, followed by a correction of the modality gap. A function
    object, because `evaluation.predict_all` compiles each function once."""

    def __init__(self, predict: Callable[..., dict[str, jax.Array]], correction: GapCorrection):
        """``predict``: gives the unit vectors of each modality."""
        self._predict, self._correction = predict, correction

    def __call__(self, params, batch) -> dict[str, jax.Array]:
        """The corrected unit vectors ``[B, dim]`` of each modality in the batch."""
        return self._correction(self._predict(params, batch))
