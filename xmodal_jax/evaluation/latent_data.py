"""The data of experiments with a latent space."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.pipeline import Transform
from xmodal_jax.data.source import Source
from xmodal_jax.data.splits import fit_transforms, open_splits, prepare_source
from xmodal_jax.data.standardise import StandardiseTransform
from xmodal_jax.data.text import TokenizeTransform
from xmodal_jax.data.views import keep_labelled, one_per_picture
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.vae.modalities import ModalityConfigs
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT


class LatentData(NamedTuple):
    """The splits of a data set, of examples whose class is known, or without any classes."""

    modalities: tuple[str, ...]
    class_names: tuple[str, ...] | None
    classes: int
    """Number of classes; 0: no class of an example is known."""
    source: Source
    """Training examples."""
    transform: Transform | None
    """Applied to raw batches of training examples."""
    validation: Source
    test: Source
    factors: np.ndarray
    """``[N, F]``: the known factors of the test examples, see `known_factors`."""
    tokenize: TokenizeTransform | None
    standardise: StandardiseTransform | None = None
    """Of measured quantities; None: there are none."""

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
            "class_names": None if self.class_names is None else list(map(str, self.class_names)),
            **({"standardisation": self.standardise.to_json()} if self.standardise else {}),
        }

    @property
    def end_id(self) -> int:
        """The token that ends a text; -1 without texts."""
        return self.tokenize.tokenizer.eos_id if self.tokenize else -1

    @property
    def pad_id(self) -> int:
        """The token of padding; -1 if the vocabulary has none, or without texts."""
        return self.tokenize.tokenizer.pad_id if self.tokenize else -1


SHAPES_MODALITIES = ("image", "image_sketch", "text", "audio")
"""The modalities of the embedded data set, unless ``--modalities`` chooses others."""


def with_modalities(config: Any) -> Any:
    """The configuration ``config`` of an experiment, with `SHAPES_MODALITIES` where no flag chooses modalities of the
    embedded data set."""
    if config.data != "shapes" or config.input.modalities is not None:
        return config
    return dataclasses.replace(config, input=dataclasses.replace(config.input, modalities=SHAPES_MODALITIES))


def open_latent(
    config: RunConfig, modalities: ModalityConfigs, bad_examples: BadExamples, *, needs_classes: bool = True
) -> LatentData:
    """The data of an experiment: the examples whose class is known, which the judges (classifiers that evaluate
    generated data) need. Of a picture with several captions, validation and test have one example.

    A tokenizer is fitted to the training texts, and standard units to measured quantities; the log-mel frames of speech
    are computed once.

    Args:
      config: of the run.
      modalities: how each kind of data is preprocessed.
      bad_examples: collects the unreadable ones.
      needs_classes: whether data without any class are refused. Otherwise all their examples are used, and it is said
        what the evaluation then lacks.

    Raises:
      ValueError: ``needs_classes``, and no example of a split has a class.
    """
    splits = open_splits(config.data, config.input, bad_examples)
    train, validation, test = splits.train, splits.validation, splits.tests["test"]
    if needs_classes or _has_classes(train):
        train, validation, test = (keep_labelled(split) for split in (train, validation, test))
    else:
        bad_examples.remark(
            "No example has a class (the field 'label'), so that no judge is trained: the distances of samples from "
            "real data, and what latents know of the class, are not measured."
        )
    validation, test = one_per_picture(validation), one_per_picture(test)
    fitted, log_mel = fit_transforms(train, bad_examples, config.text_options), None
    if "audio" in train.modalities:
        log_mel = log_mel_transform(modalities.audio.spectrogram, modalities.audio.floor)
    # ``prepare(split)``: the prepared examples, and the transform of raw batches that remains to be applied to them.
    # Data up to `RESIDENT_LIMIT` bytes are transformed once and kept in memory; then no transform remains.
    prepare = lambda split: prepare_source(split, fitted, limit=RESIDENT_LIMIT, once=log_mel)
    source, transform = prepare(train)
    return LatentData(
        modalities=tuple(train.modalities),
        class_names=train.class_names,
        classes=count_classes(train),
        source=source,
        transform=transform,
        validation=prepare(validation)[0],
        test=prepare(test)[0],
        factors=known_factors(test),
        tokenize=fitted.tokenize,
        standardise=fitted.standardise,
    )


def _has_classes(source: Source) -> bool:
    labels = source.class_labels()
    return labels is not None and bool((labels >= 0).any())


def count_classes(source: Source) -> int:
    """The number of classes of a data set: that of its class names, else its largest label plus 1; 0 if no label is
    known."""
    if not _has_classes(source):
        return 0
    names = source.class_names or ()
    return len(names) or 1 + int(source.class_labels().max())


def known_factors(source: Source) -> np.ndarray:
    """The known factors of each example, int ``[N, F]``.

    In the embedded data set these are the shape, colour, size and place of the first object; in other data sets the
    class is the only factor; without classes there are none (F = 0).
    """
    factors = source.factors()
    if factors is None:
        return (
            source.class_labels()[:, None] if _has_classes(source) else np.zeros((len(source), 0), np.int64)
        )
    of_first_object = [factors[name][:, 0] for name in ("shape", "colour", "size")]  # of [N, objects]
    return np.stack([*of_first_object, factors["place"]], axis=1).astype(np.int64)
