"""Text about other modalities: written over whole data sets, and scored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.core.decoding import GeneratedTokens
from xmodal_jax.data.shapes.grammar import factor_accuracies
from xmodal_jax.data.source import Source, read_fields
from xmodal_jax.data.text import Tokenizer
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation.embeddings import Gallery, predict_all, retrieval_scores
from xmodal_jax.metrics.text import caption_scores, error_rates
from xmodal_jax.models.seq2seq import GenerationConfig, Seq2SeqConfig, make_text_generator
from xmodal_jax.train.config import StartConfig
from xmodal_jax.types import Method

REFERENCE_COUNT = 5
"""References of a caption where a data set knows other words for the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextGenerationConfig(StartConfig):
    """What the experiments that write text share."""

    text_decoder: str | None = None
    """``hf:PATH``: a pretrained language model (GPT-2) as the decoder, with its tokenizer; cross-attention is new."""
    model: Seq2SeqConfig = Seq2SeqConfig()
    """Encoder, decoder and objective."""
    generation: GenerationConfig = GenerationConfig()
    """How text is generated at the test."""

    @property
    def pretrained(self) -> dict[str, str]:
        own = {} if self.text_decoder is None else {"decoder": self.text_decoder}
        return {**super().pretrained, **own}


def source_modality(source: Source, known: Sequence[str]) -> str:
    """The one of the ``known`` modalities that texts are to be about.

    Raises:
      ValueError: the data set has no text, or none or several of them.
    """
    found = [m for m in source.modalities if m in known]
    if "text" not in source.modalities or len(found) != 1:
        raise ValueError(
            f"text and one of {', '.join(known)} are needed, not {', '.join(source.modalities)}: choose by "
            f"--modalities text {known[0]}"
        )
    return found[0]


class TextGenerator:
    """Texts about whole data sets, by the decoding configurations in ``decodings``, each compiled once."""

    def __init__(
        self,
        config: Seq2SeqConfig,
        source: str,
        tokenizer: Tokenizer,
        *,
        length: int,
        decodings: Mapping[str, GenerationConfig],
        seed: int = 0,
        batch_size: int = 100,
    ):
        begin, end = tokenizer.bos_id, tokenizer.eos_id
        if min(begin, end) < 0:
            raise ValueError(
                "the tokenizer has no begin or end token, without which no text can be generated"
            )
        sizes = dict(vocab_size=tokenizer.vocab_size, length=length, begin=begin, end=end)
        self.config, self.source, self.tokenizer, self.length = config, source, tokenizer, length
        self.batch_size = batch_size
        self._write: dict[str, Callable[..., GeneratedTokens]] = {}
        for name, generation in decodings.items():
            write = make_text_generator(config, source, generation=generation, **sizes)
            self._write[name] = functools.partial(write, key=jax.random.key(seed))

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model takes of a raw batch."""
        size = len(batch[self.source])
        fields = {k: v for k, v in batch.items() if k.removesuffix("_mask") == self.source}
        there = {k: v for k, v in batch.get("present", {}).items() if k == self.source}
        return {**fields, "present": there, "index": np.arange(size, dtype=np.int32)}

    def __call__(self, params: Any, source: Source, way: str) -> list[str]:
        """A text about each example."""
        made = predict_all(
            self._write[way], params, source, batch_size=self.batch_size, transform=self.inputs
        )
        return self.tokenizer.decode_batch(made.tokens)


class ReferenceTexts:
    """A split with what ought to be written about it, read once.

    ``unlike``: texts whose examples are left out, such as the sentences of the training data.
    """

    def __init__(
        self,
        source: Source,
        clean: Callable[[str], str] | None = None,
        *,
        limit: int | None = None,
        unlike: set[str] = frozenset(),
    ):
        source = Subset(source, np.arange(len(source))[:limit])
        said = read_fields(source, ("caption",))["caption"]
        texts = [str(c) if clean is None else clean(str(c)) for c in said]
        kept = np.array([i for i, text in enumerate(texts) if text not in unlike], np.int64)
        if not kept.size:
            raise ValueError(
                "nothing is left of a split: training has all of its texts (--no-unseen keeps them)"
            )
        self.left_out = len(texts) - len(kept)
        self.source = Subset(source, kept)
        self.texts = [texts[i] for i in kept]
        self.meanings = source.meanings(kept)
        self.references = [[text] for text in self.texts]
        if self.meanings is not None:
            others = [source.captions(kept, k) for k in range(1, REFERENCE_COUNT)]
            self.references = [[text, *more] for text, *more in zip(self.texts, *others, strict=True)]

    def caption_scores(self, written: Sequence[str], prefix: str) -> dict[str, float]:
        """`metrics.text.caption_scores`, and where the meanings are known `data.shapes.grammar.factor_accuracies`; else
        ``exact_accuracy``, the share of captions that equal a reference."""
        scores = caption_scores(written, self.references)
        if self.meanings is not None:
            scores = factor_accuracies(written, self.meanings) | scores
        else:
            right = [text in known for text, known in zip(written, self.references, strict=True)]
            scores = {"exact_accuracy": float(np.mean(right))} | scores
        return {f"{prefix}{name}": value for name, value in scores.items()}

    def error_rates(self, written: Sequence[str], prefix: str) -> dict[str, float]:
        """`metrics.text.error_rates`, and ``exact_accuracy``, the share of texts without error."""
        right = np.mean([a == b for a, b in zip(written, self.texts, strict=True)])
        scores = error_rates(written, self.texts) | {"exact_accuracy": float(right)}
        return {f"{prefix}{name}": value for name, value in scores.items()}


def retrieval(method: Method, params: Any, gallery: Gallery, transform: Callable) -> dict[str, float]:
    """`evaluation.embeddings.retrieval_scores` between source and text, of a method with the contrastive loss."""
    answer = predict_all(method.predict, params, gallery, transform=transform)
    return retrieval_scores(answer.embeddings, ids=gallery.ids)
