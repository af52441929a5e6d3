"""Tokens per second of text generation, with and without the key-value cache.

    python -m benchmarks.decoding

A decoder like that of the default captioning run generates 64 tokens per example in one program, attending to 16 source
tokens, greedily and by beam search with 4 beams. Without the cache each step processes the whole text again, padded to
its full length, as a program with fixed shapes must. The table has the fraction of equal tokens. Medians, timed in turn
after warming up, without the encoding of the source.
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

VOCABULARY, SOURCE_LENGTH, BEAMS = 1000, 16, 4
UNREACHABLE_END = VOCABULARY  # an end token that is never generated, so that every text has the full length


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Sizes to time."""

    length: int = 64
    """Tokens to generate for each example."""
    batches: tuple[int, ...] = (1, 16)
    """Batch sizes."""
    sizes: tuple[tuple[int, int], ...] = ((128, 2), (256, 4))
    """Width and depth of the decoders."""
    rounds: int = 5
    """Timings of each; the table has the median."""


def make_generators(width: int, depth: int, batch: int, length: int, beams: int):
    """Generation with and without the cache, two compiled functions without arguments that return the tokens."""
    config = TextDecoderConfig(width=width, depth=depth, heads=4)
    decoder = build_decoder(config, vocab_size=VOCABULARY, max_length=length + 1)
    rng = np.random.default_rng(0)
    memory = Tokens(jnp.asarray(rng.normal(size=(batch, SOURCE_LENGTH, width)), jnp.float32), None)
    params = decoder.init(jax.random.key(0), jnp.zeros((batch, 2), jnp.int32), memory)["params"]
    # Larger weights: a new decoder, whose distributions are nearly uniform, would repeat one token.
    params = jax.tree.map(lambda x: x * 3, params)
    begin = jnp.ones(batch, jnp.int32)

    def generate(step, logits, state):
        if beams == 1:
            return sample(step, logits, state, length=length, end=UNREACHABLE_END).tokens
        return beam_search(step, logits, state, beams=beams, length=length, end=UNREACHABLE_END).tokens

    def cached(params, memory):
        return generate(*start_decoding(decoder, params, memory, begin))

    def uncached(params, memory):
        def step(tokens, position, ids):
            source = Tokens(jnp.repeat(memory.values, len(tokens) // batch, axis=0), None)
            ids = jax.lax.dynamic_update_slice(ids, tokens[:, None], (0, position))
            logits = decoder.apply({"params": params}, ids, source)
            return jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False), ids

        return generate(step, *step(begin, 0, jnp.zeros((batch, length + 1), jnp.int32)))

    cached, uncached = (jax.jit(f).lower(params, memory).compile() for f in (cached, uncached))
    return lambda: cached(params, memory), lambda: uncached(params, memory)


def main(arguments: Arguments) -> None:
    rows = []
    cases = [(s, n, b) for s in arguments.sizes for n in arguments.batches for b in (1, BEAMS)]
    for (width, depth), batch, beams in tqdm(cases, file=sys.stderr):
        both = make_generators(width, depth, batch, arguments.length, beams)
        texts = [np.asarray(generate()) for generate in both]
        same = float((texts[0] == texts[1]).mean())
        times: list[list[float]] = [[], []]
        for _ in range(arguments.rounds):
            for generate, seconds in zip(both, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(generate())
                seconds.append(time.perf_counter() - start)
        fast, slow = (batch * arguments.length / float(np.median(seconds)) for seconds in times)
        search = "greedy" if beams == 1 else f"beams {beams}"
        rows.append(
            f"| {width} x {depth} | {batch} | {search} | {fast:,.0f} | {slow:,.0f} | {fast / slow:.1f} | {same:.1%} |"
        )
    print("| width x depth | batch | search | tokens/s | without the cache | ratio | equal tokens |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    chosen = tyro.cli(Arguments, description=__doc__)
    runtime.configure()
    main(chosen)
