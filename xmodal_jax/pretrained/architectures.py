"""The table of architectures: a new one touches this file and its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn

from xmodal_jax.pretrained import bert
from xmodal_jax.pretrained.encoder import Options
from xmodal_jax.pretrained.rules import Rule


class Architecture(NamedTuple):
    """One ``model_type`` of a ``config.json``, read as the encoder of one modality."""

    make: Callable[[SimpleNamespace, Options], nn.Module]
    """The module of a configuration."""
    rules: Callable[[nn.Module], list[Rule]]
    """Its parameters in a checkpoint."""
    prefixes: tuple[str, ...] = ("",)
    """What the names in a checkpoint may begin with: the first that fits is left off."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of names that a checkpoint may have as well: heads of other tasks, buffers."""


_BERT = Architecture(bert.make, bert.rules, bert.PREFIXES, bert.IGNORED)

ARCHITECTURES: Mapping[str, Mapping[str, Architecture]] = {
    "text": {"bert": _BERT, "roberta": _BERT, "xlm-roberta": _BERT},
    "image": {},
    "audio": {},
    "video": {},
}
"""``ARCHITECTURES[modality][model_type]``."""


def architecture(modality: str, model_type: str) -> Architecture:
    """The architecture of a ``model_type`` as the encoder of a modality.

    Raises:
      ValueError: there is none.
    """
    known = ARCHITECTURES.get(modality, {})
    if model_type not in known:
        other = [m for m, of in ARCHITECTURES.items() if model_type in of]
        hint = f"; it is an encoder of {' and '.join(other)}" if other else ""
        raise ValueError(
            f"config.json says model_type {model_type!r}; pretrained encoders of {modality} are "
            f"{', '.join(sorted(known))}{hint}"
        )
    return known[model_type]
