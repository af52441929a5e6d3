"""Sequences from a model that gives the next token's logits: greedy, sampled, beam search, each in one program.

A model takes part as a function of one token per row and its state::

    step(tokens [N] int32, position scalar int32, state) -> (logits [N, V], state)

``state`` is a pytree of arrays of N rows (a key-value cache); what all steps share, such as the encoder's output,
``step`` closes over. Decoding starts from the ``logits`` that follow the start token, which stands at position 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.types import ExampleKeys

State = Any
Step = Callable[[Array, Array, State], tuple[Array, State]]


class Generated(NamedTuple):
    """What was generated; of beam search ``[B, beams, …]``, the best first."""

    tokens: Int[Array, "*rows length"]
    """Without the end token, padded with 0."""
    mask: Bool[Array, "*rows length"]
    """True on the tokens."""
    log_probability: Float[Array, "*rows"]
    """Of the tokens and the end token (if there was room for one), in nats, by the model's own distribution."""


def filter_logits(
    logits: Float[Array, "rows vocab"], *, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, "rows vocab"]:
    """Minus infinity for all but the ``top_k`` most probable tokens, and for those outside the nucleus: the smallest
    set of most probable tokens whose probabilities add up to ``top_p`` (Holtzman et al. 2020, arXiv:1904.09751, eq. 3).
    """
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        order = jnp.argsort(-logits, axis=-1)
        sorted_p = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
        before = jnp.cumsum(sorted_p, axis=-1) - sorted_p
        outside = jnp.put_along_axis(
            jnp.zeros(logits.shape, bool), order, before >= top_p, axis=-1, inplace=False
        )
        logits = jnp.where(outside, -jnp.inf, logits)
    return logits


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
) -> Generated:
    """Up to ``length`` tokens (the end token included) for each row; stops when all rows have ended.

    ``keys``: one per row; a row's tokens depend on its own key alone. None is greedy decoding: always the most
    probable token. ``temperature`` divides the logits before ``top_k`` and ``top_p`` (see `filter_logits`).

    Raises:
      ValueError: a temperature, ``top_k`` or ``top_p`` out of range.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}; keys=None is greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    rows = logits.shape[0]

    def choose(logits, t):
        if keys is None:
            return logits.argmax(axis=-1)
        kept = filter_logits(logits.astype(jnp.float32) / temperature, top_k=top_k, top_p=top_p)
        now = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
        return jax.vmap(jax.random.categorical)(now, kept)

    def body(carry):
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
    goes_on = lambda carry: (carry[0] < length) & ~carry[5].all()
    _, _, _, tokens, counts, _, total = jax.lax.while_loop(goes_on, body, start)
    return Generated(tokens, jnp.arange(length)[None, :] < counts[:, None], total)


def _log_probability(logits: Array, chosen: Array) -> Array:
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(logs, chosen[:, None], axis=1)[:, 0]


def length_norm(length: Array | int, penalty: float) -> Array | float:
    """``((5 + length) / 6) ** penalty``: what log-probabilities are divided by to compare sequences of different
    lengths (the end token counts). Wu et al. 2016, arXiv:1609.08144, eq. 14."""
    return ((5.0 + length) / 6.0) ** penalty


class _Beams(NamedTuple):
    """Sequences of each row, ``[B, K, …]``."""

    tokens: Array
    counts: Array
    total: Array
    """Log-probability."""
    score: Array
    """By which they are ranked."""


def _pick(tree: Any, index: Int[Array, "batch beams"]) -> Any:
    """Of ``[B, M, …]`` those at ``index``."""
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
) -> Generated:
    """The ``beams`` best sequences found for each row, by log-probability over `length_norm`, best first.

    The rows of ``logits`` and ``state`` are those of `sample` with each repeated ``beams`` times (``[B * beams, …]``,
    equal at the start). Sequences that have ended are kept apart from those that go on, of which there are always
    ``beams``, and the search stops when none that goes on can still beat those. What has not ended at ``length``
    competes only in a row where nothing has ended.

    Raises:
      ValueError: fewer than one beam, a vocabulary smaller than ``beams``, rows that do not divide, a negative penalty.
    """
    rows, vocab = logits.shape
    if beams < 1 or rows % beams:
        raise ValueError(f"beams must be at least 1 and divide the {rows} rows of the logits, got {beams}")
    if penalty < 0:
        raise ValueError(f"the length penalty must not be negative, got {penalty}")
    if vocab < 2 * beams:
        raise ValueError(f"{beams} beams need a vocabulary of {2 * beams} tokens at least, got {vocab}")
    batch = rows // beams
    apart = lambda tree: jax.tree.map(lambda x: x.reshape(batch, beams, *x.shape[1:]), tree)
    together = lambda tree: jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), tree)
    nothing = _Beams(
        jnp.zeros((batch, beams, length), jnp.int32), jnp.zeros((batch, beams), jnp.int32),
        jnp.full((batch, beams), -jnp.inf), jnp.full((batch, beams), -jnp.inf),
    )  # fmt: skip

    def body(carry):
        t, logits, state, alive, ended = carry
        logs = jax.nn.log_softmax(apart(logits).astype(jnp.float32), axis=-1)
        found = (alive.total[:, :, None] + logs).reshape(batch, beams * vocab)
        # Twice as many as needed: at most half of them end, one for each beam.
        total, place = jax.lax.top_k(found, 2 * beams)
        parent, token = place // vocab, (place % vocab).astype(jnp.int32)
        ends = token == end
        tokens, counts = _pick((alive.tokens, alive.counts), parent)
        norm = length_norm(t + 1, penalty)
        stopped = _Beams(tokens, counts, total, jnp.where(ends, total / norm, -jnp.inf))
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, :, None], (0, 0, t))
        going = _Beams(tokens, counts + 1, total, jnp.where(ends, -jnp.inf, total))

        best = jax.lax.top_k(going.score, beams)[1]
        alive, parent, last = _pick((going, parent, token), best)
        alive = alive._replace(total=alive.score)  # one that ended never goes on
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), ended, stopped)
        ended = _pick(both, jax.lax.top_k(both.score, beams)[1])
        logits, state = step(together(last), t + 1, together(_pick(apart(state), parent)))
        return t + 1, logits, state, alive, ended

    def goes_on(carry):
        t, _, _, alive, ended = carry
        # A sum of logarithms only falls, and no norm is larger than that of the full length.
        reachable = alive.total.max(axis=1) / length_norm(length, penalty)
        return (t < length) & (ended.score.min(axis=1) < reachable).any()

    first = nothing._replace(total=nothing.total.at[:, 0].set(0.0))  # equal beams would stay equal
    start = (jnp.int32(0), logits, state, first, nothing)
    _, _, _, alive, ended = jax.lax.while_loop(goes_on, body, start)
    none = jnp.isneginf(ended.score).all(axis=1)
    alive = alive._replace(score=alive.total / length_norm(length, penalty))
    choose = lambda a, b: jnp.where(none.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    best = jax.tree.map(choose, alive, ended)
    mask = jnp.arange(length)[None, None, :] < best.counts[:, :, None]
    return Generated(best.tokens, mask, best.total)


def ctc_greedy(
    logits: Float[Array, "batch frames vocab"], mask: Bool[Array, "batch frames"], *, blank: int = 0
) -> Generated:
    """The most probable token of each frame, repetitions merged and blanks left out: ``[B, frames]``, packed to the
    left. Its log-probability is that of this one alignment. Graves et al. 2006, sec. 3.2 (best path decoding)."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    best = jnp.where(mask, logs.argmax(axis=-1), blank).astype(jnp.int32)
    before = jnp.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    kept = (best != blank) & (best != before)
    frames = best.shape[1]
    place = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, frames)  # what is left out falls off the end
    pack = lambda tokens, place: jnp.zeros(frames, jnp.int32).at[place].set(tokens, mode="drop")
    tokens = jax.vmap(pack)(best, place)
    total = jnp.where(mask, logs.max(axis=-1), 0.0).sum(axis=1)
    return Generated(tokens, jnp.arange(frames)[None, :] < kept.sum(axis=1)[:, None], total)
