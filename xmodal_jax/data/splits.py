"""Training, validation and test data by name, tokenized and, where it fits, in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.open import DataOptions, open_source, open_training
from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.text import (
    Tokenizer,
    TokenizeTransform,
    caption_fields,
    clean_text,
    load_hf_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from xmodal_jax.data.views import TransformedSource, read_into_memory
from xmodal_jax.pretrained.files import find_folder

TRAINED = ("word", "wordpiece", "bpe")
VOCABULARY = {"word": 10_000, "wordpiece": 4_000, "bpe": 4_000}
CAPTION_SAMPLE = 50_000
"""Captions that a tokenizer is trained on and that the text length is fitted to, at most."""


class Splits(NamedTuple):
    """The data of an experiment."""

    train: Source
    validation: Source
    tests: dict[str, Source]
    """By name: ``test``, and for the embedded data set ``compositions`` and ``voices`` as well."""


def open_splits(
    spec: str, options: DataOptions, bad_examples: BadExamples, *, validation: int = 300
) -> Splits:
    """Opens the training and test splits of ``spec`` and holds ``validation`` training examples out.

    ``options.missing`` and ``options.incomplete`` concern what training sees: the examples held out are read as the
    test splits are.
    """
    train, held_out = open_training(spec, options, bad_examples=bad_examples, validation=validation)
    tests = {name: open_source(spec, name, options, bad_examples=bad_examples) for name in train.test_splits}
    return Splits(train, held_out, tests)


def read_captions(
    source: Source, clean: Callable[[str], str] | None = None, *, limit: int = CAPTION_SAMPLE
) -> list[str]:
    """The captions (cleaned) of at most ``limit`` examples, evenly spread; ``""`` where a text is missing."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(limit, len(source))).astype(np.int64))
    captions = []
    for part in np.array_split(
        rows, -(-len(rows) // 1000)
    ):  # pictures and sounds come along: not all at once
        batch = source.batch(part)
        for field in caption_fields(batch) or ["caption"]:
            found = np.ravel(batch[field]).tolist()
            captions += [str(c) if clean is None else clean(str(c)) for c in found]
    return captions


def make_tokenizer(kind: str, captions: list[str], vocab_size: int | None = None) -> Tokenizer:
    """A tokenizer trained on ``captions`` (``word``, ``wordpiece``, ``bpe``), or that of a folder: a run's
    ``tokenizer``, or Hugging Face's."""
    if kind in TRAINED:
        return train_tokenizer(captions, kind=kind, vocab_size=vocab_size or VOCABULARY[kind])
    folder = find_folder(kind.removeprefix("hf:"))
    return load_tokenizer(folder) if (folder / "special_tokens.json").is_file() else load_hf_tokenizer(folder)


def make_text_cleaner(kind: str) -> Callable[[str], str] | None:
    """``none``; ``lower``: lower-case; ``stop``: lower-case and without English stop words."""
    if kind == "none":
        return None
    if kind == "lower":
        return clean_text
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: it takes a second to import

    return functools.partial(clean_text, stop_words=ENGLISH_STOP_WORDS)


def choose_text_length(tokenizer: Tokenizer, captions: list[str]) -> int:
    """Tokens that a caption may have: the longest of ``captions`` and two more, for longer ones to come."""
    return tokenizer.fit_length(captions) + 2


def fit_tokenizer(
    train: Source, bad_examples: BadExamples, *, tokenizer: str, vocab_size: int | None, cleanup: str
) -> tuple[TokenizeTransform, list[str]]:
    """A tokenizer for the captions of ``train``, as a transform of batches, and those captions after cleaning.

    See `make_text_cleaner` for ``cleanup``, `make_tokenizer` for ``tokenizer`` and ``vocab_size``, and
    `choose_text_length` for the number of tokens that a text gets.
    """
    clean = make_text_cleaner(cleanup)
    captions = read_captions(train, clean)
    learned = make_tokenizer(tokenizer, captions, vocab_size)
    return TokenizeTransform(
        learned, choose_text_length(learned, captions), clean=clean, bad_examples=bad_examples
    ), captions


def prepare_source(
    source: Source,
    tokenize: TokenizeTransform | None,
    *,
    limit: int,
    once: Callable[[RawBatch], RawBatch] | None = None,
) -> tuple[Source, TokenizeTransform | None]:
    """``(source, transform)`` for a loader: read, tokenized and kept in memory if it fits ``limit`` bytes.

    ``once``: what a model would else do with every batch (such as `models.towers.spectrograms`); done while a source
    that fits is read, and left to the model where it does not.
    """
    whole = source if once is None else TransformedSource(source, once)
    kept = read_into_memory(whole, tokenize, limit=limit, drop=("factors",))
    return (source, tokenize) if kept is None else (kept, None)
