"""The data of experiments with a latent space."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.pipeline import Transform
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import fit_tokenizer, open_splits, prepare_source
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.data.views import keep_labelled
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.vae.modalities import Reading
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT


class LatentData(NamedTuple):
    """Examples whose class is known, ready to be learned from."""

    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None
    classes: int
    source: Source
    """For training, with the ``transform`` of its loader."""
    transform: Transform | None
    validation: Source
    test: Source
    factors: np.ndarray
    """Of the test examples, see `known_factors`."""
    tokenize: TokenizeTransform | None

    @property
    def vocab_size(self) -> int:
        """Of the texts' tokens; 0 without texts."""
        return self.tokenize.tokenizer.vocab_size if self.tokenize else 0

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint has to say of them."""
        return {
            "tokenizer": self.tokenize.tokenizer.files() if self.tokenize else None,
            "length": self.tokenize.max_length if self.tokenize else None,
            "classes": self.classes,
        }

    @property
    def end(self) -> int:
        """The token that ends a text; -1 without texts."""
        return self.tokenize.tokenizer.eos_id if self.tokenize else -1


def open_latent(config: RunConfig, reading: Reading, bad_examples: BadExamples) -> LatentData:
    """The data of an experiment: examples whose class is known, for the judges; texts tokenized, speech as frames,
    computed once."""
    splits = open_splits(config.data, config.input, bad_examples)
    train, validation, test = (
        keep_labelled(part) for part in (splits.train, splits.validation, splits.tests["test"])
    )
    tokenize = (
        fit_tokenizer(train, bad_examples, **config.text_options)[0] if "text" in train.modalities else None
    )
    once = log_mel_transform(reading.features, reading.floor) if "audio" in train.modalities else None
    ready = lambda part: prepare_source(part, tokenize, limit=RESIDENT_LIMIT, once=once)
    source, transform = ready(train)
    return LatentData(
        tuple(train.modalities), train.class_names, count_classes(train), source, transform,
        ready(validation)[0], ready(test)[0], known_factors(test), tokenize,
    )  # fmt: skip


def count_classes(source: Source) -> int:
    """How many classes a labelled data set has: its names', else up to its largest label."""
    names = source.class_names or ()
    return len(names) or 1 + int(source.class_labels().max())


def known_factors(source: Source) -> np.ndarray:
    """What is known of each example, int ``[N, F]``: of the embedded data set the first object's shape, colour and
    size and its place; else the class."""
    factors = source.factors()
    if factors is None:
        return source.class_labels()[:, None]
    parts = [factors[name][:, 0] for name in ("shape", "colour", "size")] + [factors["place"]]
    return np.stack(parts, axis=1).astype(np.int64)
