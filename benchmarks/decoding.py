"""Tokens per second of text generation, with the key-value cache and without.

    python -m benchmarks.decoding

A decoder of the default captioning run's kind writes 64 tokens for each row, in one program, about 16 tokens of memory:
greedily and by beam search of 4. Without the cache each step reads the whole text anew, padded to its full length, as a
program of fixed shapes must. Both are checked to write the same tokens. Warmed up, interleaved, medians; encoding the
source is left out.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from xmodal_jax.core import runtime
from xmodal_jax.core.decoding import beam_search, sample
from xmodal_jax.models.seq2seq import start_decoding
from xmodal_jax.nets.encoders import TextDecoderConfig, build_decoder
from xmodal_jax.types import Tokens

VOCABULARY, MEMORY, BEAMS = 1000, 16, 4
NEVER = VOCABULARY  # an end token that is never chosen: every row is as long as it can be


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes to time."""

    length: int = 64
    """Tokens that each row gets."""
    batches: tuple[int, ...] = (1, 16)
    """Rows at once."""
    sizes: tuple[tuple[int, int], ...] = ((128, 2), (256, 4))
    """Width and depth of the decoders."""
    rounds: int = 5
    """Timings of each; the median counts."""


def writers(width: int, depth: int, batch: int, length: int, beams: int):
    """``(cached, uncached)``, each a compiled function without arguments that gives the tokens."""
    config = TextDecoderConfig(width=width, depth=depth, heads=4)
    decoder = build_decoder(config, vocab_size=VOCABULARY, max_length=length + 1)
    rng, rows = np.random.default_rng(0), batch * beams
    memory = Tokens(jnp.asarray(rng.normal(size=(batch, MEMORY, width)), jnp.float32), None)
    params = decoder.init(jax.random.key(0), jnp.zeros((batch, 2), jnp.int32), memory)["params"]
    # At its start a decoder would write one token only, being sure of none.
    params = jax.tree.map(lambda x: x * 3, params)
    begin = jnp.ones(rows, jnp.int32)

    def generate(step, logits, state):
        if beams == 1:
            return sample(step, logits, state, length=length, end=NEVER).tokens
        return beam_search(step, logits, state, beams=beams, length=length, end=NEVER).tokens

    def cached(params, memory):
        return generate(*start_decoding(decoder, params, memory, begin))

    def uncached(params, memory):
        each = Tokens(jnp.repeat(memory.values, beams, axis=0), None)

        def step(tokens, position, texts):
            texts = jax.lax.dynamic_update_slice(texts, tokens[:, None], (0, position))
            logits = decoder.apply({"params": params}, texts, each)
            return jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False), texts

        return generate(step, *step(begin, 0, jnp.zeros((rows, length + 1), jnp.int32)))

    cached, uncached = (jax.jit(f).lower(params, memory).compile() for f in (cached, uncached))
    return lambda: cached(params, memory), lambda: uncached(params, memory)


def main(arguments: Arguments) -> None:
    rows = []
    cases = [(s, n, b) for s in arguments.sizes for n in arguments.batches for b in (1, BEAMS)]
    for (width, depth), batch, beams in tqdm(cases, file=sys.stderr):
        both = writers(width, depth, batch, arguments.length, beams)
        texts = [np.asarray(write()) for write in both]
        same = float((texts[0] == texts[1]).mean())
        times: list[list[float]] = [[], []]
        for _ in range(arguments.rounds):
            for write, taken in zip(both, times, strict=True):
                begun = time.perf_counter()
                jax.block_until_ready(write())
                taken.append(time.perf_counter() - begun)
        fast, slow = (batch * arguments.length / float(np.median(taken)) for taken in times)
        how = "greedy" if beams == 1 else f"beams {beams}"
        rows.append(
            f"| {width} x {depth} | {batch} | {how} | {fast:,.0f} | {slow:,.0f} | {fast / slow:.1f} | {same:.1%} |"
        )
    print("| width x depth | rows | how | tokens/s | without the cache | ratio | equal tokens |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    runtime.configure()
    main(chosen)
