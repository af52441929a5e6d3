"""Text generated for whole data sets (captions, transcripts), and its scores against reference texts."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.core.decoding import GeneratedTokens
from xmodal_jax.core.language_model import LanguageModelFusion, NGramModel, fit_ngrams
from xmodal_jax.core.text_files import normalise, read_lines
from xmodal_jax.data.shapes.grammar import factor_accuracies
from xmodal_jax.data.source import Source, first_of_group, read_fields
from xmodal_jax.data.text import Tokenizer, TokenizeTransform
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import Gallery, predict_all
from xmodal_jax.metrics.text import caption_scores, error_rates
from xmodal_jax.models.seq2seq import Generation, GenerationConfig, Seq2SeqConfig, make_text_generator
from xmodal_jax.train.config import StartConfig
from xmodal_jax.train.run import Run
from xmodal_jax.types import Method

REFERENCE_COUNT = 5
"""Reference captions of an example, where a data set has several phrasings of a caption."""


LANGUAGE_MODEL_FILE = "language_model.npz"
"""The file of a run's language model in its folder."""


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """An n-gram language model that the decoder's search uses beside the decoder (shallow fusion).

    Raises:
      ValueError: the weight is negative or not finite.
    """

    lines: pathlib.Path | None = None
    """Text file whose lines the language model learns, such as the words of a dictionary; None: no language model."""
    order: int = 6
    """Tokens that the language model looks at: the next one and those before it."""
    weight: float = 0.3
    """Weight of the language model's log-probabilities; those of the decoder have the weight 1."""

    def __post_init__(self):
        """Checks the weight."""
        if not 0 <= self.weight < math.inf:
            raise ValueError(
                f"the weight of a language model must be finite and 0 or more, got {self.weight}"
            )

    def fit(self, tokenize: TokenizeTransform, run: Run) -> LanguageModelFusion | None:
        """The language model of the lines, as the tokenizer cleans and splits them, which is kept in the folder of the
        ``run``; None: there is none. Prints how many lines have words that the tokenizer does not know, which are all
        the same word to it, and how many are cut.

        Raises:
          ValueError: the file is not UTF-8, or has no lines.
        """
        if self.lines is None:
            return None
        stripped = (normalise(line.strip()) for line in read_lines(self.lines))
        lines = [tokenize.clean(line) if tokenize.clean else line for line in stripped if line]
        if not lines:
            raise ValueError(f"--language.lines {self.lines} has no lines")
        tokenizer = tokenize.tokenizer
        ids, mask = tokenizer.encode_batch(lines, max_length=tokenize.max_length)
        is_unknown = (ids == tokenizer.unk_id) & mask & tokenizer.has_unknown_token
        problems = {
            "have words that the tokenizer does not know": is_unknown.any(axis=1).sum(),
            f"are cut to {tokenize.max_length} tokens": (
                tokenizer.lengths(lines) > tokenize.max_length
            ).sum(),
        }
        for problem, count in problems.items():
            if count:
                run.print(f"note: {count} of {len(lines)} lines of --language.lines {self.lines} {problem}")
        texts = [
            row[valid][1:].tolist() for row, valid in zip(ids, mask, strict=True)
        ]  # without the begin token
        model = fit_ngrams(texts, order=self.order, vocab_size=tokenizer.vocab_size)
        run.write_later(lambda: model.save(run.path / LANGUAGE_MODEL_FILE))
        return LanguageModelFusion(model, self.weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGenerationConfig(StartConfig):
    """Options of the experiments that generate text."""

    text_decoder: str | None = None
    """``hf:PATH``: a pretrained language model (GPT-2) as the decoder, from a folder in Hugging Face layout, used with
    its own tokenizer. The cross-attention of the decoder is newly initialised. None: a new decoder."""
    model: Seq2SeqConfig = Seq2SeqConfig()
    """Encoder, decoder and objective."""
    generation: Generation | None = None
    """How text is generated for the test splits: by beam search (beam), the most probable token at each step (greedy),
    random tokens (sample), or the most probable alignment of CTC (ctc). None: by beam search with 4 beams, or by CTC if
    the model has no decoder."""
    language: LanguageModelConfig = LanguageModelConfig()
    """Language model of the decoder's search; CTC does not use it."""

    @property
    def pretrained(self) -> dict[str, str]:
        """The Hugging Face folders of pretrained encoders, by modality, and of the decoder."""
        decoder = {} if self.text_decoder is None else {"decoder": self.text_decoder}
        return {**super().pretrained, **decoder}


def read_language_model(
    folder: pathlib.Path, config: LanguageModelConfig | None
) -> LanguageModelFusion | None:
    """The language model of a run, from its folder; None: it was configured without one."""
    if config is None or config.lines is None:
        return None
    return LanguageModelFusion(NGramModel.load(folder / LANGUAGE_MODEL_FILE), config.weight)


def source_modality(source: Source, candidates: Sequence[str]) -> str:
    """The modality that texts are generated from: the only one of the ``candidates`` in the data set.

    Raises:
      ValueError: the data set has no text, or none or several of the candidates.
    """
    matches = [m for m in source.modalities if m in candidates]
    if "text" not in source.modalities or len(matches) != 1:
        raise ValueError(
            f"text and one of {', '.join(candidates)} are needed, not {', '.join(source.modalities)}: choose by "
            f"--modalities text {candidates[0]}"
        )
    return matches[0]


class TextGenerator:
    """Generates a text for every example of a data set; each decoding configuration is compiled once.

    Args:
      config: of the model.
      modality: the source modality.
      tokenizer: decodes the generated tokens.
      length: the largest number of tokens, including begin and end.
      decodings: ways to generate text by name; None: beam search, or CTC where there is no decoder.
      seed: of sampling.
      batch_size: examples at a time.
      few_shapes: see `predict_all`.
      language: a language model beside the decoder, see `make_text_generator`; None: there is none.

    Raises:
      ValueError: the tokenizer has no begin or no end token.

    Example::

        generate = TextGenerator(model, "image", tokenizer, length=20, decodings={"test": BeamSearchConfig()})
        generate(params, test_split, "test")  # ["a red circle", ...]
    """

    def __init__(
        self,
        config: Seq2SeqConfig,
        modality: str,
        tokenizer: Tokenizer,
        *,
        length: int,
        decodings: Mapping[str, GenerationConfig | None],
        seed: int = 0,
        batch_size: int = 100,
        few_shapes: bool = False,
        language: LanguageModelFusion | None = None,
    ):
        """Builds one text generator for each of the ``decodings``."""
        begin, end = tokenizer.bos_id, tokenizer.eos_id
        if min(begin, end) < 0:
            raise ValueError(
                "the tokenizer has no begin or end token, without which no text can be generated"
            )
        if config.aligns and tokenizer.has_word_zero:
            raise ValueError(
                f"CTC needs id 0 for its blank, which this tokenizer gives to {tokenizer.token(0)!r}: give another "
                "--tokenizer, or --model.objective attention"
            )
        sizes = dict(vocab_size=tokenizer.vocab_size, length=length, begin=begin, end=end)
        self.config, self.modality, self.tokenizer, self.length = config, modality, tokenizer, length
        self._batches = dict(batch_size=batch_size, few_shapes=few_shapes)
        self._generate: dict[str, Callable[..., GeneratedTokens]] = {}
        for name, generation in decodings.items():
            # Each is one function object, which `predict_all` compiles once.
            options = dict(generation=generation, language=language)
            generate = make_text_generator(config, modality, **options, **sizes)
            self._generate[name] = functools.partial(generate, key=jax.random.key(seed))

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The model's inputs from a raw batch: the source modality with its mask, and which examples have it."""
        size = len(batch[self.modality])
        fields = {k: v for k, v in batch.items() if k.removesuffix("_mask") == self.modality}
        present = {k: v for k, v in batch.get("present", {}).items() if k == self.modality}
        return {**fields, "present": present, "index": np.arange(size, dtype=np.int32)}

    def __call__(self, params: Any, source: Source, decoding: str) -> list[str]:
        """A text for each example of ``source``. ``decoding``: name of the decoding configuration."""
        generated = predict_all(
            self._generate[decoding], params, source, transform=self.inputs, **self._batches
        )
        return self.tokenizer.decode_batch(generated.tokens, generated.mask)


class ReferenceTexts:
    """A split with the texts that should be generated for it, read once: its captions, or without captions the names
    of its classes.

    Args:
      source: the split.
      clean: normalises the texts as the tokenizer does; None: they stay unchanged.
      limit: reads the first ``limit`` examples only.
      exclude: texts whose examples are left out, such as the sentences of the training data.
      one_per_picture: whether examples that show the same picture (see `Source.groups`) become one, with the texts of
        all of them as its references.

    Raises:
      ValueError: no example is left.
    """

    source: Source
    """The examples that are left."""
    texts: list[str]
    """The text of each example; of a picture with several captions the first."""
    references: list[list[str]]
    """All correct texts of each example: its own, and other phrasings where the data set has them, or the other
    captions of its picture."""
    meanings: list[Any] | None
    """What each text means (see `Source.meanings`); None: unknown."""
    excluded: int
    """Number of examples that were left out."""

    def __init__(
        self,
        source: Source,
        clean: Callable[[str], str] | None = None,
        *,
        limit: int | None = None,
        exclude: set[str] = frozenset(),
        one_per_picture: bool = False,
    ):
        """Reads the texts, and leaves out the examples whose text is in ``exclude``."""
        source = Subset(source, np.arange(len(source))[:limit])
        captions = read_fields(source, ("caption",)).get("caption")
        captions = _class_texts(source) if captions is None else captions
        texts = [str(c) if clean is None else clean(str(c)) for c in captions]
        indices = np.array([i for i, text in enumerate(texts) if text not in exclude], np.int64)
        if not indices.size:
            raise ValueError(
                "nothing is left of a split: training has all of its texts (--no-unseen keeps them)"
            )
        self.excluded = len(texts) - len(indices)
        references = {
            i: [texts[i]] for i in indices.tolist()
        }  # by the index of an example, all its correct texts
        if one_per_picture:
            references = _texts_by_picture(first_of_group(source), texts, indices)
            indices = np.array([*references], np.int64)
        self.source = Subset(source, indices)
        self.references = list(references.values())
        self.texts = [known[0] for known in self.references]
        self.meanings = source.meanings(indices)
        if self.meanings is not None:
            # The data set can phrase the caption of an example in several ways; phrasing 0 is its text.
            phrasings = [
                source.captions(indices, k) for k in range(1, REFERENCE_COUNT)
            ]  # a list of texts for each k
            self.references = [[text, *more] for text, *more in zip(self.texts, *phrasings, strict=True)]

    def first(self, count: int) -> ReferenceTexts:
        """The first ``count`` texts alone."""
        few = copy.copy(self)
        few.source = Subset(self.source, np.arange(min(count, len(self.texts))))
        few.texts, few.references = self.texts[:count], self.references[:count]
        few.meanings = None if self.meanings is None else self.meanings[:count]
        return few

    def caption_scores(self, generated: Sequence[str], prefix: str) -> dict[str, float]:
        """Scores of the ``generated`` captions against the references; ``prefix`` is put before their names.

        These are the scores of `metrics.text.caption_scores` and, if the meanings are known, those of
        `data.shapes.grammar.factor_accuracies`; if not, ``exact_accuracy``, the fraction of captions that equal a
        reference.
        """
        scores = caption_scores(generated, self.references)
        if self.meanings is not None:
            scores = factor_accuracies(generated, self.meanings) | scores
        else:
            pairs = zip(generated, self.references, strict=True)
            equals_reference = [text in references for text, references in pairs]
            scores = {"exact_accuracy": float(np.mean(equals_reference))} | scores
        return {f"{prefix}{name}": value for name, value in scores.items()}

    def error_rates(self, generated: Sequence[str], prefix: str) -> dict[str, float]:
        """The rates of `metrics.text.error_rates`, and ``exact_accuracy``, the fraction of texts without an error."""
        exact = np.mean([a == b for a, b in zip(generated, self.texts, strict=True)])
        scores = error_rates(generated, self.texts) | {"exact_accuracy": float(exact)}
        return {f"{prefix}{name}": value for name, value in scores.items()}


def _class_texts(source: Source) -> list[str]:
    """The name of the class of each example; "" where it is unknown, or has no name."""
    labels = source.class_labels()
    if labels is None or source.class_names is None:
        return [""] * len(source)
    return [source.class_names[k] if k >= 0 else "" for k in labels]


def _texts_by_picture(
    first_of_group: np.ndarray, texts: Sequence[str], indices: np.ndarray
) -> dict[int, list[str]]:
    """Groups the examples ``indices`` by picture. Returns the texts of each picture's examples, keyed by the first of
    these examples.

    ``first_of_group [N]``: for each example of the data set the index of the first one that shows the same picture
    (see `data.source.first_of_group`). An example without a text (``""``) is left out if another example of the same
    picture has one.
    """
    examples_by_picture: dict[int, list[int]] = {}
    for index in indices.tolist():
        examples_by_picture.setdefault(int(first_of_group[index]), []).append(index)
    by_example = {}
    for examples in examples_by_picture.values():
        examples = [i for i in examples if texts[i]] or examples[:1]
        by_example[examples[0]] = [texts[i] for i in examples]
    return by_example


def source_text_retrieval(
    method: Method, params: Any, gallery: Gallery, transform: Callable
) -> dict[str, float]:
    """Retrieval scores between the source modality and its texts, among the examples of ``gallery``.

    ``method``: from `make_seq2seq` with the contrastive objective; it embeds both. ``params``: its parameters.
    ``transform``: of raw batches, such as tokenization.
    """
    output = predict_all(method.predict, params, gallery, transform=transform)
    return gallery.scores(output.embeddings)
