"""N-gram language models over token ids, and their fusion with a decoder (shallow fusion)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xmodal_jax.core.decoding import State, Step

_BEGIN = -1
"""Stands for the begin of a text in a context."""


class NGramModel(NamedTuple):
    """Probabilities of the next token given the last ``order - 1`` ones, as an automaton.

    Its S states are the contexts that occur in the texts; a state's row tells the probability of each token, and the
    state after it. Tokens that no text has share the last column.
    """

    log_p: Float[np.ndarray, "states columns"]
    """Logarithm of the probability of each column's token in each state, in nats."""
    following: Int[np.ndarray, "states columns"]
    """The state after each column's token."""
    column: Int[np.ndarray, "vocab"]
    """The column of each token of the vocabulary."""
    start: Int[np.ndarray, ""]
    """The state at the begin of a text."""

    def score(self, tokens: Sequence[int]) -> float:
        """The log-probability of a text, in nats; its ``tokens`` end with the end token and have no begin token."""
        state, total = int(self.start), 0.0
        for token in tokens:
            column = int(self.column[token])
            total += float(self.log_p[state, column])
            state = int(self.following[state, column])
        return total

    def save(self, path: Path) -> None:
        """Writes a file .npz that `NGramModel.load` reads."""
        np.savez_compressed(path, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> NGramModel:
        """The model of a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls._fields})


def fit_ngrams(texts: Iterable[Sequence[int]], *, order: int, vocab_size: int) -> NGramModel:
    r"""An n-gram model of texts, smoothed as by Witten and Bell.

    .. math:: p(w | h) = \frac{c(h, w) + T(h)\, p(w | h')}{c(h) + T(h)}

    Here :math:`c` counts occurrences, :math:`T(h)` is the number of different tokens after the context :math:`h`, and
    :math:`h'` is the context without its first token. Below the distribution of single tokens, whose context is empty,
    stands the uniform one over the vocabulary.
    Witten and Bell 1991, method C; Chen and Goodman 1999, eq. 17.

    Args:
      texts: token ids of each text, which end with the end token and have no begin token.
      order: tokens that the model looks at: the next one and ``order - 1`` before it, at least 1.
      vocab_size: number of tokens of the vocabulary.

    Raises:
      ValueError: ``order`` is below 1, there is no text, or a token is outside of the vocabulary.

    Example::

        model = fit_ngrams([[5, 6, 2], [5, 7, 2]], order=3, vocab_size=10)
        np.exp(model.score([5, 6, 2]))
    """
    if order < 1:
        raise ValueError(f"the order of an n-gram model must be at least 1, got {order}")
    counts = _count(texts, order)
    tokens = sorted(counts[()])  # that the texts have
    if not tokens:
        raise ValueError("an n-gram model needs at least one text")
    if tokens[0] < 0 or tokens[-1] >= vocab_size:
        raise ValueError(f"tokens must lie in 0..{vocab_size - 1}, got {tokens[0]}..{tokens[-1]}")
    column = np.full(vocab_size, len(tokens), np.int32)  # the last one is of tokens that no text has
    column[tokens] = np.arange(len(tokens))
    contexts = sorted(counts, key=lambda context: (len(context), context))  # shorter ones first
    state = {context: k for k, context in enumerate(contexts)}
    p = np.full((len(contexts), len(tokens) + 1), 1.0 / vocab_size)
    following = np.zeros(p.shape, np.int32)
    for k, context in enumerate(contexts):
        after = counts[context]
        if context:
            p[k] = p[state[context[1:]]]
        total, kinds = sum(after.values()), len(after)
        p[k] *= kinds / (total + kinds)
        for token, count in after.items():
            p[k, column[token]] += count / (total + kinds)
        # The next context is the longest one with a state that ends the text so far.
        unknown = following[state[context[1:]]] if context else 0
        following[k] = unknown
        for token in after:
            extended = (*context, token)[-(order - 1) :] if order > 1 else ()
            if extended in state:
                following[k, column[token]] = state[extended]
    start = state.get((_BEGIN,), 0)
    return NGramModel(np.log(p).astype(np.float32), following, column, np.array(start, np.int32))


def _count(texts: Iterable[Sequence[int]], order: int) -> dict[tuple[int, ...], Counter]:
    """How often each token follows each context of up to ``order - 1`` tokens."""
    counts: dict[tuple[int, ...], Counter] = defaultdict(Counter)
    for text in texts:
        padded = (_BEGIN, *text)
        for i in range(1, len(padded)):
            for length in range(min(order - 1, i) + 1):
                counts[padded[i - length : i]][padded[i]] += 1
    return counts


class LanguageModelFusion(NamedTuple):
    """A language model and its weight in shallow fusion."""

    model: NGramModel
    weight: float
    """Weight of its log-probabilities beside those of the decoder, which have the weight 1."""

    def start(
        self, step: Step, logits: Float[Array, "rows vocab"], state: State
    ) -> tuple[Step, Array, State]:
        """The start of decoding, as the functions of `core.decoding` take it, with the language model.

        The score of the next token is ``log p(token) + weight * log p_lm(token)``. It is no logarithm of a
        distribution: a search must not normalise it (`beam_search` with ``normalize=False``). Gülçehre et al. 2015,
        arXiv:1503.03535, eq. 6.
        """
        log_p, following, column, _ = (jnp.asarray(x) for x in self.model)

        def fuse(logits: Array, language_state: Array) -> Array:
            """The score of each token after these states."""
            of_decoder = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
            return of_decoder + self.weight * log_p[language_state][:, column]

        def fused_step(tokens: Array, position: Array, states: tuple[Any, Array]):
            """One step of the decoder and of the language model."""
            state, language_state = states
            logits, state = step(tokens, position, state)
            language_state = following[language_state, column[tokens]]
            return fuse(logits, language_state), (state, language_state)

        begin = jnp.full(logits.shape[0], self.model.start, jnp.int32)
        return fused_step, fuse(logits, begin), (state, begin)
