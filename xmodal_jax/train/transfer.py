"""Starting from another run's encoders (and decoder, where both have one): ``--init-from RUN``."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.data.text import Tokenizer, tokenizer_from
from xmodal_jax.models.towers import AudioFeatures
from xmodal_jax.nets.encoders import EncoderConfig
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.types import MODALITIES, Method, Params

Model = TypeVar("Model")

PARTS = (*MODALITIES, "decoder", "ctc")
"""What is carried over, by its name in the parameters."""

_WORDS = {"embed/embedding": 0, "logits/kernel": 1, "logits/bias": 0}
"""Parameters with an entry for each token of the vocabulary, and along which axis."""


class Encoders(NamedTuple):
    """The trained encoders of a run, and what else it has of `PARTS`."""

    params: Mapping[str, Params]
    """By the names of `PARTS`."""
    configs: Mapping[str, EncoderConfig]
    """Of those that have one."""
    features: AudioFeatures
    tokenizer: Tokenizer | None
    source: str

    def configure(self, model: Model) -> Model:
        """A model's configuration with these encoders in place of its own (and their spectrogram, if they hear)."""
        features = {"features": self.features} if "audio" in self.configs else {}
        own = {field.name for field in dataclasses.fields(model)}
        return dataclasses.replace(model, **{k: c for k, c in self.configs.items() if k in own}, **features)

    def optimize(self, optimizer: Optimizer, modalities: tuple[str, ...], rate: float) -> Optimizer:
        """An optimizer whose learning rate is ``rate`` times as high for these encoders; 0 freezes them."""
        names = [m for m in modalities if m in self.params]
        if rate == 1.0 or not names:
            return optimizer
        pattern = f"^({'|'.join(names)})/"
        if rate == 0.0:
            return dataclasses.replace(optimizer, freeze=(*optimizer.freeze, pattern))
        return dataclasses.replace(optimizer, rates=((pattern, rate), *optimizer.rates))

    def start(self, method: Method, tokenizer: Tokenizer | None) -> Method:
        """``method``, initialised with these encoders under ``params[modality]``.

        What belongs to a word is carried over by the word: one that the other run did not know keeps its random
        start. Learned positions are carried over as far as both reach.
        """

        def init(key, batch):
            params = dict(method.init(key, batch))
            for name in self.params:
                if name in params:
                    params[name] = self._carry(name, params[name], tokenizer)
            return params

        return Method(init, method.loss, method.predict)

    def _carry(self, modality: str, new: Params, tokenizer: Tokenizer | None) -> Params:
        old = dict(
            zip(trees.leaf_names(self.params[modality]), jax.tree.leaves(self.params[modality]), strict=True)
        )
        missing = set(trees.leaf_names(new)) ^ set(old)
        if missing:
            raise ValueError(
                f"{self.source}: its {modality} part and this one's differ in {sorted(missing)[0]!r}: they need the "
                "same configuration"
            )

        def one(name, x):
            value = jnp.asarray(old[name], x.dtype)
            if modality in ("text", "decoder", "ctc") and name in _WORDS:
                axis = _WORDS[name]
                words = self._words(jnp.moveaxis(value, axis, 0), jnp.moveaxis(x, axis, 0), tokenizer)
                return jnp.moveaxis(words, 0, axis)
            if name.startswith("positions") and value.shape[1:] == x.shape[1:]:
                both = min(len(value), len(x))
                return x.at[:both].set(value[:both])
            if value.shape != x.shape:
                raise ValueError(
                    f"{self.source}: {modality}/{name} has shape {value.shape}, here it is {x.shape}: the data differ "
                    "in size (such as --image-size), or the runs in their configuration"
                )
            return value

        return trees.map_with_name(one, new)

    def _words(self, old: jax.Array, new: jax.Array, tokenizer: Tokenizer | None) -> jax.Array:
        if self.tokenizer is None or tokenizer is None:
            raise ValueError(f"{self.source}: no tokenizer is kept beside what reads or writes text in it")
        theirs, ours = self.tokenizer.vocabulary(), tokenizer.vocabulary()
        shared = [word for word in ours if word in theirs]
        if not shared:
            raise ValueError(f"{self.source}: its tokenizer and this one have no token in common")
        rows = jnp.array([ours[w] for w in shared]), jnp.array([theirs[w] for w in shared])
        return new.at[rows[0]].set(old[rows[1]])


def load_encoders(run: pathlib.Path, *, seed: int | None = None) -> Encoders:
    """The encoders in a run's newest checkpoint (its contrastive towers', or those of a fusion run).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has several seeds and ``seed`` is none of them, or it has no encoder.
    """
    kept = restore_run(run, seed=seed)
    model = kept.meta["config"].get("model", {})
    params: dict[str, Any] = {}
    for name in PARTS:
        if name in kept.params and (name in model or name == "ctc"):
            params[name] = kept.params[name].get("encoder", kept.params[name])
    if not params:
        raise ValueError(f"{run} has no encoder of {', '.join(MODALITIES)}: give a run of another experiment")
    configs = {name: EncoderConfig(**model[name]) for name in params if name in model}
    features = AudioFeatures(**model["features"]) if "features" in model else AudioFeatures()
    files = kept.meta.get("tokenizer")
    return Encoders(params, configs, features, tokenizer_from(files) if files else None, str(run))
