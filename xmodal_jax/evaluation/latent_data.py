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
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT


class LatentData(NamedTuple):
    """The splits of a data set, of examples whose class is known."""

    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None
    classes: int
    source: Source
    """Training examples."""
    transform: Transform | None
    """Applied to raw batches of training examples."""
    validation: Source
    test: Source
    factors: np.ndarray
    """``[N, F]``: the known factors of the test examples, see `known_factors`."""
    tokenize: TokenizeTransform | None

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary; 0 without texts."""
        return self.tokenize.tokenizer.vocab_size if self.tokenize else 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The settings that a checkpoint keeps, so that data can be preprocessed in the same way."""
        return {
            "tokenizer": self.tokenize.tokenizer.files() if self.tokenize else None,
            "length": self.tokenize.max_length if self.tokenize else None,
            "classes": self.classes,
        }

    @property
    def end_id(self) -> int:
        """The token that ends a text; -1 without texts."""
        return self.tokenize.tokenizer.eos_id if self.tokenize else -1


def open_latent(config: RunConfig, modalities: ModalityConfigs, bad_examples: BadExamples) -> LatentData:
    """The data of an experiment: examples whose class is known, which the judges need; texts tokenized, speech as
    log-mel frames that are computed once."""
    splits = open_splits(config.data, config.input, bad_examples)
    train, validation, test = (
        keep_labelled(part) for part in (splits.train, splits.validation, splits.tests["test"])
    )
    tokenize = (
        fit_tokenizer(train, bad_examples, **config.text_options)[0] if "text" in train.modalities else None
    )
    audio, once = modalities.audio, None
    if "audio" in train.modalities:
        once = log_mel_transform(audio.spectrogram, audio.floor)
    prepare = lambda part: prepare_source(part, tokenize, limit=RESIDENT_LIMIT, once=once)
    source, transform = prepare(train)
    return LatentData(
        tuple(train.modalities), train.class_names, count_classes(train), source, transform,
        prepare(validation)[0], prepare(test)[0], known_factors(test), tokenize,
    )  # fmt: skip


def count_classes(source: Source) -> int:
    """The number of classes of a labelled data set: that of its class names, else its largest label plus 1."""
    names = source.class_names or ()
    return len(names) or 1 + int(source.class_labels().max())


def known_factors(source: Source) -> np.ndarray:
    """The known factors of each example, int ``[N, F]``: of the embedded data set the shape, colour, size and place of
    the first object; of others the class alone."""
    factors = source.factors()
    if factors is None:
        return source.class_labels()[:, None]
    parts = [factors[name][:, 0] for name in ("shape", "colour", "size")] + [factors["place"]]
    return np.stack(parts, axis=1).astype(np.int64)
