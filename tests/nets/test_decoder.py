"""The text decoder: what each position sees, and that one token at a time is the same as all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import random_params
from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.types import Tokens

B, L, M, D, V = 3, 7, 5, 11, 13
RNG = np.random.default_rng(0)
IDS = jnp.asarray(RNG.integers(1, V, (B, L)), jnp.int32)
MEMORY = Tokens(
    jnp.asarray(RNG.normal(size=(B, M, D)), jnp.float32),
    jnp.asarray(
        np.arange(M)[None, :] < np.array([5, 2, 0])[:, None]
    ),  # the last example has nothing to look at
)
SMALL = dict(vocab_size=V, max_length=L, width=12, depth=2, heads=3)


def moved(module, *args):
    """Parameters off their start, so that small embeddings do not hide anything."""
    params = random_params(module.init, jax.random.key(0), *args)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


def one_by_one(module, params, ids, memory):
    def step(variables, token, position, mutable):
        logits, left = module.apply(
            {"params": params, **variables}, token[:, None], memory, position=position, mutable=mutable
        )
        return logits[:, 0], left

    step = jax.jit(step, static_argnums=3)
    out, made = step({}, ids[:, 0], 0, ("cache", "memory"))
    outs, cache, rest = [out], made.pop("cache"), made  # the memory's keys and values never change
    for t in range(1, ids.shape[1]):
        out, left = step({"cache": cache, **rest}, ids[:, t], t, ("cache",))
        cache = left["cache"]
        outs.append(out)
    assert step._cache_size() == 2
    return jnp.stack(outs, axis=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"scan_layers": True, "positions": "sincos"}, {"cross": False}],
    ids=["plain", "scanned", "alone"],
)
def test_cached_decoding_equals_the_uncached(options):
    module = TextDecoder(**SMALL, **options)
    memory = MEMORY if module.cross else None
    params = moved(module, IDS, memory)
    whole = jax.jit(lambda p: module.apply({"params": p}, IDS, memory))(params)
    assert whole.shape == (B, L, V) and whole.dtype == jnp.float32
    np.testing.assert_allclose(one_by_one(module, params, IDS, memory), whole, rtol=2e-5, atol=2e-5)


def test_rows_may_share_their_memory():
    """Two beams to each picture: as if it were there twice."""
    module = TextDecoder(**SMALL)
    params = moved(module, IDS, MEMORY)
    ids = jnp.asarray(RNG.integers(1, V, (2 * B, L)), jnp.int32)
    twice = Tokens(*(jnp.asarray(np.repeat(x, 2, axis=0)) for x in MEMORY))
    shared = one_by_one(module, params, ids, MEMORY)
    whole = jax.jit(lambda p: module.apply({"params": p}, ids, twice))(params)
    np.testing.assert_allclose(shared, whole, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="5 rows cannot share 3 rows"):
        jax.eval_shape(module.apply, {"params": params}, np.asarray(ids)[:5], MEMORY)


def test_no_position_sees_what_follows_or_is_masked():
    module = TextDecoder(**SMALL)
    params = moved(module, IDS, MEMORY)
    table = params["embed"]["embedding"]

    def logit(values, extra, t):
        # Tokens enter by their embeddings: each position's own row of a table as long as the text.
        own = jnp.concatenate([table, table[IDS[0]] + extra])
        changed = {**params, "embed": {"embedding": own}}
        ids = jnp.broadcast_to(V + jnp.arange(L), (B, L))
        wide = TextDecoder(**{**SMALL, "vocab_size": V + L})
        return wide.apply({"params": changed}, ids, Tokens(values, MEMORY.mask))[:, t, 0].sum()

    gradient = jax.jit(jax.grad(logit, (0, 1)), static_argnums=2)
    for t in (0, 3):
        by_memory, by_token = gradient(MEMORY.values, jnp.zeros((L, 12)), t)
        seen = np.abs(np.asarray(by_token)).max(axis=1) > 0
        assert seen[: t + 1].all() and not seen[t + 1 :].any()
        assert ((np.abs(np.asarray(by_memory)).max(axis=2) > 0) == np.asarray(MEMORY.mask)).all()


def test_errors():
    with pytest.raises(ValueError, match="8 positions given"):
        jax.eval_shape(TextDecoder(**SMALL).init, jax.random.key(0), np.ones((1, L + 1), np.int32), MEMORY)
    with pytest.raises(ValueError, match="needs kv"):
        jax.eval_shape(TextDecoder(**SMALL).init, jax.random.key(0), IDS)
    module = TextDecoder(**SMALL, cross=False)
    params = random_params(module.init, jax.random.key(0), IDS)
    with pytest.raises(ValueError, match="one token at a time"):
        module.apply(params, IDS, position=0, mutable=["cache"])
