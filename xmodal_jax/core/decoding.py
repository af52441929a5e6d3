"""Decoding: sequences from a model of the next token, by greedy search, sampling, beam search or CTC.

The model is a function of the newest token of each of N sequences and a state::

    step(tokens [N] int32, position scalar int32, state) -> (logits [N, V], state)

``state`` is a pytree of arrays ``[N, ...]``, such as a key-value cache. Arrays that do not change from step to step,
such as the output of an encoder, belong into the closure of ``step``. Decoding starts from the ``logits`` that follow
the begin token, which has position 0. Each search is one compiled loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.core.checks import check_shapes
from xmodal_jax.types import ExampleKeys

State = Any
"""A pytree of arrays ``[N, ...]``, one entry for each of N sequences."""
Step = Callable[[Array, Array, State], tuple[Array, State]]
"""The model; see the module's docstring."""


class GeneratedTokens(NamedTuple):
    """Generated sequences; those of a beam search are ``[B, beams, ...]``, best first."""

    tokens: Int[Array, "*rows length"]
    """Token ids without the end token, padded with 0."""
    mask: Bool[Array, "*rows length"]
    """True on the tokens."""
    log_probability: Float[Array, "*rows"]
    """Log-probability of the tokens and of the end token (where the sequence has ended), in nats, by the model's own
    distribution (before temperature, ``top_k`` and ``top_p``)."""


@check_shapes
def filter_logits(
    logits: Float[Array, "rows vocab"], *, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, "rows vocab"]:
    """Logits of the next token with those of improbable tokens set to minus infinity.

    Args:
      logits: of the next token of each sequence.
      top_k: the number of most probable tokens to keep; None: all.
      top_p: the probability of the nucleus to keep, the smallest set of most probable tokens whose probabilities
        add up to ``top_p`` (Holtzman et al. 2020, arXiv:1904.09751, eq. 3), in (0, 1]; None: all. The most probable
        token is always kept.

    Raises:
      ValueError: ``top_k`` or ``top_p`` is out of range.

    Example::

        filter_logits(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), top_p=0.7)  # keeps the first two
    """
    check_sampling(top_k=top_k, top_p=top_p)
    if top_k is not None:
        largest, _ = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))
        logits = jnp.where(logits < largest[:, -1:], -jnp.inf, logits)
    if top_p is not None:
        order = jnp.argsort(-logits, axis=-1)  # tokens by falling probability
        sorted_p = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
        # A token is outside of the nucleus if the more probable ones already add up to top_p.
        p_of_more_probable = jnp.cumsum(sorted_p, axis=-1) - sorted_p
        outside = jnp.put_along_axis(
            jnp.zeros(logits.shape, bool), order, p_of_more_probable >= top_p, axis=-1, inplace=False
        )
        logits = jnp.where(outside, -jnp.inf, logits)
    return logits


def check_sampling(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """Raises ValueError where an option of `sample` or `filter_logits` is out of range, so that no token is left."""
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}; keys=None is greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def _check_rows(logits: Array, **trees: Any) -> int:
    """The number of rows N of the logits ``[N, V]``; raises ValueError where an array of ``trees`` has other rows.

    ``trees``: pytrees whose arrays have one row per sequence, by the name of the argument.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [rows, vocab], got {list(logits.shape)}")
    rows = logits.shape[0]
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.ndim < 1 or leaf.shape[0] != rows:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} must have {rows} rows as the logits have, got an array "
                    f"{list(leaf.shape)}"
                )
    return rows


def sample(
    step: Step,
    logits: Float[Array, "rows vocab"],
    state: State,
    *,
    length: int,
    end: int,
    keys: ExampleKeys | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> GeneratedTokens:
    """Samples up to ``length`` tokens (including the end token) of each of N sequences; stops when all have ended.

    Args:
      step: the model, ``step(tokens [N], position, state) -> (logits [N, V], state)``; see the module's docstring.
      logits: of each sequence's first token.
      state: the model's state before the first token, a pytree of arrays ``[N, ...]``.
      length: the largest number of tokens.
      end: id of the end token.
      keys: one random key per sequence, on which the tokens of this sequence alone depend. None decodes greedily,
        taking the most probable token each time.
      temperature: divides the logits, before ``top_k`` and ``top_p`` apply.
      top_k, top_p: see `filter_logits`.

    Raises:
      ValueError: ``temperature``, ``top_k`` or ``top_p`` is out of range, or ``state`` or ``keys`` have not as many
        rows as the logits.
    """
    check_sampling(temperature, top_k, top_p)
    rows = _check_rows(logits, state=state, keys=keys)

    def choose(logits, t):
        """The token at position t of each sequence, ``[N]``."""
        if keys is None:
            return logits.argmax(axis=-1)
        filtered = filter_logits(logits.astype(jnp.float32) / temperature, top_k=top_k, top_p=top_p)
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
        return jax.vmap(jax.random.categorical)(step_keys, filtered)

    def body(carry):
        """One step: chooses the next token of each sequence and runs the model on it.

        The carry: position, the model's logits and state, tokens ``[N, length]``, number of tokens of each sequence,
        whether it has ended, and its log-probability.
        """
        t, logits, state, tokens, counts, ended, total = carry
        chosen = choose(logits, t).astype(jnp.int32)
        total += jnp.where(ended, 0.0, _log_probability(logits, chosen))
        ended |= chosen == end
        chosen = jnp.where(ended, 0, chosen)
        tokens = jax.lax.dynamic_update_slice(tokens, chosen[:, None], (0, t))
        logits, state = step(chosen, t + 1, state)
        return t + 1, logits, state, tokens, counts + ~ended, ended, total

    start = (
        jnp.int32(0), logits, state, jnp.zeros((rows, length), jnp.int32), jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool), jnp.zeros(rows, jnp.float32),
    )  # fmt: skip

    def unfinished(carry):
        """Whether there is room for another token, and a sequence that has not ended."""
        t, *_, ended, _ = carry
        return (t < length) & ~ended.all()

    _, _, _, tokens, counts, _, total = jax.lax.while_loop(unfinished, body, start)
    return GeneratedTokens(tokens, jnp.arange(length)[None, :] < counts[:, None], total)


def _log_probability(logits: Array, chosen: Array) -> Array:
    """The log-probability ``[N]`` of the chosen tokens ``[N]`` under logits ``[N, V]``, in nats."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logs, chosen[:, None], axis=1)[:, 0]


def length_norm(length: Array | int, penalty: float) -> Array | float:
    """The divisor of a sequence's log-probability in beam search, ``((5 + length) / 6) ** penalty``.

    ``length`` counts the end token. Wu et al. 2016, arXiv:1609.08144, eq. 14.
    """
    return ((5.0 + length) / 6.0) ** penalty


class _Beams(NamedTuple):
    """``K`` sequences per example: arrays ``[B, K, ...]``."""

    tokens: Array
    """Token ids ``[B, K, length]``, padded with 0."""
    counts: Array
    """Number of tokens of each sequence."""
    total: Array
    """Log-probability of each sequence, in nats."""
    score: Array
    """What the sequences are ranked by; minus infinity excludes a sequence."""


def _take_beams(tree: Any, index: Int[Array, "batch beams"]) -> Any:
    """Selects beams of each example, given their indices, from a pytree of arrays ``[B, M, ...]``: ``[B, K, ...]``."""
    return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, index), tree)


def beam_search(
    step: Step,
    logits: Float[Array, "rows vocab"],
    state: State,
    *,
    beams: int,
    length: int,
    end: int,
    penalty: float = 0.6,
    normalize: bool = True,
) -> GeneratedTokens:
    """Beam search: the ``beams`` sequences of highest log-probability divided by `length_norm`, best first.

    Finished sequences are kept in a list of their own beside the ``beams`` unfinished ones. The search stops when no
    unfinished sequence can still beat the finished ones. At ``length`` tokens, sequences without an end token compete
    with the finished ones by the same score, so that there are always ``beams`` results (a sequence of probability 0
    is empty and has the log-probability minus infinity).

    Args:
      step: the model; see the module's docstring. It is called with ``B * beams`` sequences, those of an example next
        to each other: repeat what its closure holds for each example, as ``jnp.repeat(x, beams, axis=0)`` does.
      logits, state: arrays ``[B, ...]``, an entry for each example; they are repeated for the beams here.
      beams: sequences per example.
      length: the largest number of tokens, including the end token.
      end: id of the end token.
      penalty: exponent p of the length normalisation: a sequence of n tokens is ranked by its log-probability divided
        by ``((5 + n) / 6) ** p``. 0: not normalised, which favours short sequences; larger values favour longer ones.
      normalize: whether the probabilities of the next token are the softmax of the logits. False: the logits are scores
        of at most 0 that are added up as they are, such as those of a decoder with a language model
        (`core.language_model`).

    Returns:
      Arrays ``[B, beams, ...]``.

    Raises:
      ValueError: fewer than one beam or token; a state that is not of as many examples as the logits; a vocabulary of
        fewer than ``2 * beams`` tokens; a negative penalty.
    """
    batch = _check_rows(logits, state=state)
    vocab = logits.shape[1]
    if beams < 1 or length < 1:
        raise ValueError(f"beams and length must be at least 1, got {beams} and {length}")
    if penalty < 0:
        raise ValueError(f"the length penalty must not be negative, got {penalty}")
    if vocab < 2 * beams:
        raise ValueError(f"{beams} beams need a vocabulary of {2 * beams} tokens at least, got {vocab}")
    search = _BeamSearch(step, batch, beams, vocab, length, end, penalty, normalize)
    logits, state = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), (logits, state))
    alive, ended = search.start()
    start = (jnp.int32(0), logits, state, alive, ended)
    _, _, _, alive, ended = jax.lax.while_loop(search.unfinished, search.advance, start)
    best = search.best(alive, ended)
    mask = jnp.arange(length)[None, None, :] < best.counts[:, :, None]
    return GeneratedTokens(best.tokens, mask, best.total)


@dataclasses.dataclass(frozen=True)
class _BeamSearch:
    """The loop of a beam search over ``(t, logits, state, alive, ended)``.

    ``t`` is the number of tokens so far. ``logits``, of the next token, and the model's ``state`` are arrays ``[B *
    beams, ...]``. ``alive`` and ``ended`` are the unfinished and the finished sequences, `_Beams`.
    """

    step: Step
    """The model; see the module's docstring."""
    batch: int
    """Number of examples B."""
    beams: int
    """Sequences of each example."""
    vocab: int
    """Number of tokens of the vocabulary."""
    length: int
    """Largest number of tokens of a sequence, including the end token."""
    end: int
    """Id of the end token."""
    penalty: float
    """Exponent of the length normalisation, see `length_norm`."""
    normalize: bool
    """Whether the logits are normalised to log-probabilities."""

    def split(self, tree: Any) -> Any:
        """Arrays ``[B * beams, ...]`` to ``[B, beams, ...]``."""
        return jax.tree.map(lambda x: x.reshape(self.batch, self.beams, *x.shape[1:]), tree)

    def merge(self, tree: Any) -> Any:
        """Arrays ``[B, beams, ...]`` to ``[B * beams, ...]``."""
        return jax.tree.map(lambda x: x.reshape(self.batch * self.beams, *x.shape[2:]), tree)

    def start(self) -> tuple[_Beams, _Beams]:
        """``(alive, ended)``: the unfinished and the finished beams before the first token."""
        shape = (self.batch, self.beams)
        empty = _Beams(
            jnp.zeros((*shape, self.length), jnp.int32), jnp.zeros(shape, jnp.int32),
            jnp.full(shape, -jnp.inf), jnp.full(shape, -jnp.inf),
        )  # fmt: skip
        # At first only one beam of each example has a finite log-probability: equal beams would stay equal.
        return empty._replace(total=empty.total.at[:, 0].set(0.0)), empty

    def advance(self, carry):
        """One step of the loop: extends the sequences by one token, keeps the best and runs the model on them.

        The carry: position t, the model's logits and state ``[B * beams, ...]``, and the unfinished and the finished
        beams ``[B, beams, ...]``.
        """
        t, logits, state, alive, ended = carry
        logs = self.split(logits).astype(jnp.float32)
        if self.normalize:
            logs = jax.nn.log_softmax(logs, axis=-1)
        totals = (alive.total[:, :, None] + logs).reshape(self.batch, self.beams * self.vocab)
        # The candidates are the best continuations of all beams. With twice as many as beams, enough do not end: each
        # beam has a single continuation that ends.
        total, index = jax.lax.top_k(totals, 2 * self.beams)
        # The beam that each candidate continues, and its next token: [B, 2 * beams].
        parent, token = index // self.vocab, (index % self.vocab).astype(jnp.int32)
        ends = token == self.end
        tokens, counts = _take_beams((alive.tokens, alive.counts), parent)
        norm = length_norm(t + 1, self.penalty)
        newly_ended = _Beams(tokens, counts, total, jnp.where(ends, total / norm, -jnp.inf))
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, :, None], (0, 0, t))
        continued = _Beams(tokens, counts + 1, total, jnp.where(ends, -jnp.inf, total))

        _, best = jax.lax.top_k(continued.score, self.beams)
        alive, parent, last = _take_beams((continued, parent, token), best)
        # The score is minus infinity where a sequence has ended, so that it is never continued.
        alive = alive._replace(total=alive.score)
        all_ended = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), ended, newly_ended)
        ended = _take_beams(all_ended, jax.lax.top_k(all_ended.score, self.beams)[1])
        # Each new sequence takes over the model's state of the one that it continues.
        state = self.merge(_take_beams(self.split(state), parent))
        logits, state = self.step(self.merge(last), t + 1, state)
        return t + 1, logits, state, alive, ended

    def unfinished(self, carry):
        """Whether, in any example, an unfinished sequence can still beat a finished one."""
        t, _, _, alive, ended = carry
        # A log-probability only falls as a sequence grows, and no norm is larger than that of the full length.
        reachable = alive.total.max(axis=1) / length_norm(self.length, self.penalty)
        return (t < self.length) & (ended.score.min(axis=1) < reachable).any()

    def best(self, alive: _Beams, ended: _Beams) -> _Beams:
        """The sequences of highest score of each example, best first, among the finished and the unfinished ones.

        If the search has stopped before the full length, no unfinished sequence can still beat a finished one: its
        score at the full length, at most what it has here, is not above theirs, and of equals the finished come first.
        """
        alive = alive._replace(score=alive.total / length_norm(self.length, self.penalty))
        candidates = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), ended, alive)
        return _take_beams(candidates, jax.lax.top_k(candidates.score, self.beams)[1])


@check_shapes
def ctc_greedy(
    logits: Float[Array, "batch frames vocab"], mask: Bool[Array, "batch frames"], *, blank: int = 0
) -> GeneratedTokens:
    """CTC's best path: the most probable token of each frame, with repetitions merged and blanks removed.

    The tokens are ``[B, frames]``, packed to the left. Their log-probability is that of this one alignment. Graves et
    al. 2006, sec. 3.2 (best path decoding).
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    best = jnp.where(mask, logs.argmax(axis=-1), blank).astype(jnp.int32)
    best_before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)  # of the frame before
    is_token = (best != blank) & (best != best_before)
    frames = best.shape[1]
    # The place of each frame's token in the result. Frames without a token get an index past the end, where "drop"
    # discards them.
    index = jnp.where(is_token, jnp.cumsum(is_token, axis=1) - 1, frames)
    pack = lambda tokens, index: jnp.zeros(frames, jnp.int32).at[index].set(tokens, mode="drop")
    tokens = jax.vmap(pack)(best, index)
    total = jnp.where(mask, logs.max(axis=-1), 0.0).sum(axis=1)
    return GeneratedTokens(tokens, jnp.arange(frames)[None, :] < is_token.sum(axis=1)[:, None], total)
