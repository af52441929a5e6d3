"""Training, validation and test data by name, tokenized and, where they fit, in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples, with_count
from xmodal_jax.data.held_out import open_parts
from xmodal_jax.data.mixture_splits import DataSpec, open_mixture, split_options
from xmodal_jax.data.open import DataOptions
from xmodal_jax.data.order import share_out
from xmodal_jax.data.source import RawBatch, Source, split_indices
from xmodal_jax.data.standardise import StandardiseTransform, fit_standardisation
from xmodal_jax.data.table import evenly_spaced
from xmodal_jax.data.text import (
    Tokenizer,
    TokenizeTransform,
    caption_fields,
    clean_text,
    load_hf_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from xmodal_jax.data.views import TransformedSource, one_per_picture, read_into_memory
from xmodal_jax.pretrained.files import find_folder
from xmodal_jax.types import kind_of

DEFAULT_VOCAB_SIZE = {"word": 10_000, "wordpiece": 4_000, "bpe": 4_000}
"""The kinds of tokenizers that are trained, each with the default size of its vocabulary."""
CAPTION_SAMPLE = 50_000
"""Number of captions, at most, that a tokenizer is trained on and that the text length is fitted to."""
FEW_EXAMPLES = 100
"""A validation or test split of fewer examples is noted: one example more or less that is right changes its scores by
more than a percent."""
USUAL_TEXT_LENGTH = 128
"""Tokens that a single caption can give to all texts; see `choose_text_length`."""


class Splits(NamedTuple):
    """The data of an experiment."""

    train: Source
    validation: Source
    tests: dict[str, Source]
    """By name: ``test``, and for the embedded data set ``compositions`` and ``voices`` as well."""


def open_splits(
    spec: DataSpec, options: DataOptions, bad_examples: BadExamples, *, validation: int = 300
) -> Splits:
    """Open the training, validation and test splits of a data set, see `open_parts` for how they are chosen; or those
    of a mixture of several, see `open_mixture`.

    ::

        splits = open_splits("shapes", DataOptions(train_size=5000), BadExamples())
        splits.tests["compositions"].batch(np.arange(8))

    Args:
      spec: one of the forms of ``--data`` (see `open_source`), or several, each with or without options of its own
        (``shapes?modalities=text,image``).
      options: how to read it. ``missing`` and ``incomplete`` only affect the training set.
      bad_examples: collects bad examples of all splits.
      validation: number of training examples to hold out by default; a tenth of them, if that is fewer.
    """
    if isinstance(spec, str) and options.test_data is None and options.data_weights is None:
        spec, options = split_options(spec, options)
        splits = Splits(*open_parts(spec, options, bad_examples, validation=validation))
    else:
        splits = Splits(*open_mixture(spec, options, bad_examples, validation=validation))
    note_few_examples(splits, bad_examples)
    return splits


def note_few_examples(splits: Splits, bad_examples: BadExamples) -> None:
    """Notes the validation and test splits that have fewer than `FEW_EXAMPLES` examples, of different pictures."""
    for name, split in {"validation": splits.validation, **splits.tests}.items():
        count = len(one_per_picture(split))
        if count < FEW_EXAMPLES:
            use = " and the best checkpoint is chosen by chance" if name == "validation" else ""
            things = "{examples}" if count == len(split) else "examples of {pictures}"
            # With the number in the sentence, as splits of several data sets are told apart and not added up.
            things = with_count(things, count)
            bad_examples.note(
                f"The split {name!r} has {things}, so few that its scores mean little{use}.", once=True
            )


def choose_batch_size(batch_size: int, source: Source, bad_examples: BadExamples) -> int:
    """``batch_size``, or the largest power of two up to the number of examples if that is less, which is noted: a batch
    must not hold an example twice. A part of a mixture must have as many examples as its share of the batch."""
    limit, of_part = len(source), ""
    if (parts := source.parts()) is not None and source.part_weights is not None:
        sizes = np.bincount(parts, minlength=len(source.part_weights))
        shares = share_out(len(parts), np.where(sizes > 0, source.part_weights, 0.0)) / len(parts)
        limit = int(min(size / share for size, share in zip(sizes, shares, strict=True) if size))
        of_part = (
            " in the part of the mixture that has the fewest for its weight" if limit < len(source) else ""
        )
    if batch_size <= limit:
        return batch_size
    smaller = 1 << (limit.bit_length() - 1)
    bad_examples.note(
        f"There are {{examples}} for training{of_part}, fewer than the batch size {batch_size}: it is reduced to "
        f"{smaller}, so that no batch holds an example twice.",
        len(source),
    )
    return smaller


def read_captions(
    source: Source, clean: Callable[[str], str] | None = None, *, limit: int = CAPTION_SAMPLE
) -> list[str]:
    """The captions (after ``clean``) of at most ``limit`` examples, evenly spread; ``""`` where a text is missing.

    Raises:
      ValueError: the examples have no captions.
    """
    indices = evenly_spaced(len(source), limit)
    captions = []
    # In chunks, because many sources read images and sounds as well.
    for chunk in split_indices(indices):
        batch = source.caption_batch(chunk)
        fields = caption_fields(batch)
        if not fields:
            raise ValueError(_missing_captions(source))
        for field in fields:
            texts = np.ravel(batch[field]).tolist()
            captions += [str(c) if clean is None else clean(str(c)) for c in texts]
    return captions


def _missing_captions(source: Source) -> str:
    """The error message for a data set without captions."""
    if "text" in source.modalities:
        return (
            "the data set has texts as token ids (text) and not as strings: the words that they stand for are unknown. "
            "Give strings in the field caption, from which a tokenizer makes the ids"
        )
    return (
        f"the data set has no captions, only {', '.join(source.modalities)}: add them (text in metadata, caption in "
        "arrays), or choose an experiment without text"
    )


def make_tokenizer(kind: str, captions: list[str], vocab_size: int | None = None) -> Tokenizer:
    """A tokenizer of the kind ``word``, ``wordpiece`` or ``bpe`` trained on ``captions``, or one from a folder.

    Args:
      kind: see above; or a folder, that of a run's tokenizer (``RUN/tokenizer``, or ``run:RUN``) or of a Hugging Face
        tokenizer.
      captions: what to train on.
      vocab_size: number of tokens at most; None: that of `DEFAULT_VOCAB_SIZE`, or of the folder.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: ``vocab_size`` is given for a tokenizer from a folder, or is too small.
    """
    if kind in DEFAULT_VOCAB_SIZE:
        size = DEFAULT_VOCAB_SIZE[kind] if vocab_size is None else vocab_size
        return train_tokenizer(captions, kind=kind, vocab_size=size)
    if vocab_size is not None:
        raise ValueError(
            f"--vocab-size {vocab_size} is for a tokenizer that is trained ({', '.join(DEFAULT_VOCAB_SIZE)}); that of "
            f"{kind} has its own vocabulary: leave it out"
        )
    if kind.startswith("run:"):
        return load_tokenizer(Path(kind.removeprefix("run:")) / "tokenizer")
    folder = find_folder(kind.removeprefix("hf:"))
    return load_tokenizer(folder) if (folder / "special_tokens.json").is_file() else load_hf_tokenizer(folder)


def make_text_cleaner(kind: str) -> Callable[[str], str] | None:
    """A function that cleans a text before it is tokenized; None: no text is changed.

    Args:
      kind: one of `TEXT_CLEANERS`, or ``none``.

    Example::

        make_text_cleaner("whisper")("Plus [+], P.M.")  # "plus p m"
    """
    return None if kind == "none" else TEXT_CLEANERS[kind]()


def _without_stop_words() -> Callable[[str], str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: it takes a second to import

    return functools.partial(clean_text, stop_words=ENGLISH_STOP_WORDS)


def _whisper_normalizer(name: str) -> Callable[[str], str]:
    """A normaliser of transformers by the name of its class; some leave double spaces, or one at the end."""
    from transformers.models.whisper import english_normalizer

    arguments = ({},) if name == "EnglishTextNormalizer" else ()  # no table of British and American spellings
    normalize = getattr(english_normalizer, name)(*arguments)
    return lambda text: clean_text(normalize(text))


TEXT_CLEANERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "lower": lambda: clean_text,
    "stop": _without_stop_words,
    "whisper": lambda: _whisper_normalizer("BasicTextNormalizer"),
    "whisper_english": lambda: _whisper_normalizer("EnglishTextNormalizer"),
}
"""The ways to clean texts, as functions that make the cleaning function: ``lower``, lower case; ``stop``, also without
English stop words; ``whisper``, the normaliser of Whisper for all languages, lower case without punctuation and without
what stands in brackets; ``whisper_english``, its normaliser for English, which also writes numbers as digits and
expands contractions. Radford et al. 2022, arXiv:2212.04356, appendix C."""


def choose_text_length(tokenizer: Tokenizer, captions: list[str]) -> int:
    """Tokens that a text can have: those of the longest of ``captions``, and two more for longer ones to come.

    A few captions that are far longer than the others do not decide: beyond `USUAL_TEXT_LENGTH` tokens, a text has at
    most four times as many as nine of ten captions have. Longer ones are cut, which is noted.
    """
    texts = [caption for caption in captions if caption] or captions  # "": the text is missing
    longest, usual = (tokenizer.fit_length(texts, cover=cover) for cover in (1.0, 0.9))
    return min(longest, max(USUAL_TEXT_LENGTH, 4 * usual)) + 2


def fit_tokenizer(
    train: Source,
    bad_examples: BadExamples,
    *,
    tokenizer: str,
    vocab_size: int | None,
    cleanup: str,
    length: int | None = None,
    max_length: int | None = None,
) -> tuple[TokenizeTransform, list[str]]:
    """A tokenizer for the captions of ``train``, as a transform of batches, and those captions after cleaning.

    Args:
      train: training examples with captions.
      bad_examples: notes captions that are cut.
      tokenizer, vocab_size: see `make_tokenizer`.
      cleanup: see `make_text_cleaner`.
      length: tokens that a text has at most; None: see `choose_text_length`, but no more than the tokenizer was made
        for (``model_max_length`` of a Hugging Face tokenizer).
      max_length: the most tokens that the model takes; None: any number.

    Raises:
      ValueError: ``length`` exceeds ``max_length``.
    """
    if length is not None and max_length is not None and length > max_length:
        raise ValueError(
            f"--text-length {length}: the pretrained text model takes at most {max_length} tokens"
        )
    clean = make_text_cleaner(cleanup)
    captions = read_captions(train, clean)
    fitted = make_tokenizer(tokenizer, captions, vocab_size)
    if length is None:
        limits = (choose_text_length(fitted, captions), max_length, fitted.max_tokens)
        length = min(limit for limit in limits if limit is not None)
    return TokenizeTransform(fitted, length, clean=clean, bad_examples=bad_examples), captions


class FittedTransforms(NamedTuple):
    """What is fitted to the training data and applied to all batches: tokenization of captions, and standardisation of
    measured quantities. It is itself a transform of batches."""

    tokenize: TokenizeTransform | None = None
    """None: there are no captions."""
    standardise: StandardiseTransform | None = None
    """None: there are no measured quantities."""

    def __call__(self, batch: RawBatch) -> RawBatch:
        """The batch with token ids of its captions, and its measured quantities in standard units."""
        for transform in self:
            batch = batch if transform is None else transform(batch)
        return batch

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the captions; None: there are none."""
        return None if self.tokenize is None else self.tokenize.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of token ids; 0 without captions."""
        return 0 if self.tokenize is None else self.tokenize.tokenizer.vocab_size

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that other data can be prepared in the same way: ``tokenizer`` (its files) and
        ``max_length``, and ``standardisation``, those that there are."""
        metadata: dict[str, Any] = {}
        if self.tokenize is not None:
            metadata = {"max_length": self.tokenize.max_length, "tokenizer": self.tokenize.tokenizer.files()}
        if self.standardise is not None:
            metadata["standardisation"] = self.standardise.to_json()
        return metadata

    def save(self, folder: str | Path) -> None:
        """Writes what there is into a folder that exists: the tokenizer to ``tokenizer/``, the statistics to
        ``standardisation.json``."""
        if self.tokenizer is not None:
            self.tokenizer.save(Path(folder) / "tokenizer")
        if self.standardise is not None:
            self.standardise.save(folder)


def fit_transforms(
    train: Source, bad_examples: BadExamples, text_options: Mapping[str, Any]
) -> FittedTransforms:
    """The transforms that training data with captions or measured quantities need.

    ::

        prepare = fit_transforms(splits.train, bad_examples, config.text_options)
        loader = Loader(splits.train, batch_size=64, seed=0, transform=prepare)

    Args:
      train: training examples.
      bad_examples: notes captions that are cut, and features that are constant.
      text_options: the keyword arguments of `fit_tokenizer`.
    """
    tokenize = None
    if "text" in map(kind_of, train.modalities):
        tokenize, _ = fit_tokenizer(train, bad_examples, **text_options)
    return FittedTransforms(tokenize, fit_standardisation(train, bad_examples))


def prepare_source(
    source: Source,
    tokenize: Callable[[RawBatch], RawBatch] | None,
    *,
    limit: int,
    once: Callable[[RawBatch], RawBatch] | None = None,
) -> tuple[Source, Callable[[RawBatch], RawBatch] | None]:
    """``(source, transform)`` for a `Loader`.

    If the source takes at most ``limit`` bytes, it is read into memory and transformed by ``tokenize`` (a
    `TokenizeTransform`, `FittedTransforms` or another transform), and the transform is None. Otherwise it is returned
    unchanged, with ``tokenize`` as the transform.

    ``once``: a preprocessing step that a model would otherwise apply to every batch (such as
    `models.towers.precompute_spectrograms`). It is applied once to a source in memory, and left to the model otherwise.
    """
    transformed = source if once is None else TransformedSource(source, once)
    in_memory = read_into_memory(transformed, tokenize, limit=limit, drop=("factors",))
    return (source, tokenize) if in_memory is None else (in_memory, None)
