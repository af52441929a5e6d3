"""How much each token is attended to, against plain loops over the recorded maps; and the function around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets.test_fusion import DEPTH, LENGTHS, build, inputs, recorded
from tests.support import random_params
from xmodal_jax.nets.attention_maps import attention_maps, token_attention
from xmodal_jax.nets.cross_modal import cross_modal_transform, init_cross_modal
from xmodal_jax.nets.fusion import FUSIONS

LEARNED = {"bottleneck": 4, "perceiver": 16, "gated": 1, "film": 1}
LOOKED_AT = {
    **dict.fromkeys(("co_attention", "merged", "bottleneck", "perceiver", "additive", "gated"), set(LENGTHS)),
    "film": {"text"},  # the others come in as scales and shifts
    "concat": set(),
    "bilinear": set(),
}
NAMES = tuple(LENGTHS)


def spans(names, learned):
    """Where each part of an axis lies."""
    out, start = {}, 0
    for name in names:
        size = learned if name == "" else LENGTHS[name]
        out[name] = range(start, start + size)
        start += size
    return out


def expected_axes(kind, path):
    """Queries and keys of one map, from the modules' definitions."""
    if kind == "merged":
        return NAMES, NAMES
    if kind == "additive":
        return ("",), NAMES
    if kind == "perceiver":
        return ("",), (*NAMES, "")
    if kind in ("gated", "film"):
        return ("", "text"), ("image", "audio") if path.startswith("cross") else ("", "text")
    (own,) = [m for m in NAMES if f"_{m}_" in path]
    if kind == "bottleneck":
        return (own, ""), (own, "")
    return (own,), tuple(m for m in NAMES if m != own) if "cross" in path else (own,)


@pytest.mark.parametrize("kind", FUSIONS)
def test_is_the_mean_over_what_looks_from_outside(kind):
    module, _ = build(kind)
    tokens, present = inputs()
    _, intermediates = recorded(kind)
    found = jax.jit(lambda *args: token_attention(module, *args))(intermediates, tokens, present)
    assert set(found) == LOOKED_AT[kind]
    masks = {
        m: (np.ones(t.values.shape[:2], bool) if t.mask is None else np.asarray(t.mask))
        & np.asarray(present[m])[:, None]
        for m, t in tokens.items()
    }
    sums = {True: {}, False: {}}
    for path, weights in attention_maps(intermediates).items():
        weights = np.asarray(weights, np.float64)
        learned = LEARNED.get(kind, 1)
        queries, keys = expected_axes(kind, path)
        rows, columns = spans(queries, learned), spans(keys, learned)
        for key in (k for k in keys if k):
            for query in queries:
                total = sums[query != key].setdefault(key, np.zeros((len(weights), LENGTHS[key])))
                for b in range(len(weights)):
                    for n, q in enumerate(rows[query]):
                        if query == "" or masks[query][b, n]:
                            total[b] += weights[b, :, q, columns[key]].mean(axis=1) / 1.0
    for m, a in found.items():
        want = sums[True].get(m, sums[False].get(m))
        scale = want.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(a, np.where(scale > 0, want / np.where(scale > 0, scale, 1), 0), atol=1e-5)
        assert not np.asarray(a)[~masks[m]].any()
        some = np.asarray(a).sum(axis=1)
        assert (np.isclose(some, 1, atol=1e-5) | (some == 0)).all()
    assert DEPTH == 2  # maps of more than one layer were averaged


@pytest.mark.parametrize("kind", ["co_attention", "gated", "concat"])
def test_the_transform_is_the_fusion_of_both_inputs(kind):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 7, 5), (3, 11)))
    mask = jnp.asarray(np.arange(7)[None, :] < np.array([[7], [2], [4]]))
    options = dict(kind=kind, width=8, depth=1, heads=2)
    # Gates start closed: random parameters open them, so that the second input counts.
    params = random_params(lambda key: init_cross_modal(key, a, b, **options), jax.random.key(0))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def gradient(a, b):
        out = cross_modal_transform(params, a, b, mask_a=mask, **options)
        return out.pooled.sum(), out

    (_, out), _ = gradient(a, b)
    assert out.pooled.shape == (3, 8) and out.tokens.mask.shape == out.tokens.values.shape[:2]
    if kind == "concat":
        assert not out.attention and not out.maps
    else:
        assert out.attention["b"].shape == (3, 1) and out.attention["a"].shape == (3, 7)
        np.testing.assert_allclose(out.attention["a"].sum(axis=1), 1.0, atol=1e-5)

    poisoned = np.array(a)
    poisoned[1, 2:] = np.inf
    _, (behind, beside) = gradient(jnp.asarray(poisoned), b)
    assert not np.asarray(behind)[~np.asarray(mask)].any() and np.isfinite(beside).all() and np.any(beside)


def test_the_transform_says_what_does_not_fit():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 5, 6))
    init = lambda key: init_cross_modal(key, a, b, kind="concat", width=4)
    params = random_params(init, jax.random.key(0))
    call = lambda a, b, **k: cross_modal_transform(params, a, b, kind="concat", width=4, **k)
    with pytest.raises(ValueError, match=r"mask_b has shape \(2, 3\); b has tokens \(2, 5\)"):
        call(a, b, mask_b=jnp.ones((2, 3), bool))
    with pytest.raises(ValueError, match="got 2 and 1 of them"):
        call(a, b[:1])
    with pytest.raises(ValueError, match="unknown fusion 'sum'"):
        cross_modal_transform(params, a, b, kind="sum")
