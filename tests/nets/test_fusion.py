import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import fusion as oracle
from tests.support import random_params
from xmodal_jax.nets.attention_maps import attention_maps, token_attention
from xmodal_jax.nets.fusion import FUSIONS, build_fusion
from xmodal_jax.types import Tokens

B, WIDTH, DEPTH = 5, 12, 2
LENGTHS, WIDTHS = {"text": 7, "image": 5, "audio": 3}, {"text": 6, "image": 11, "audio": 12}
PRESENT = {  # the last example has nothing at all
    "text": np.array([True, True, False, True, False]),
    "image": np.array([True, False, True, True, False]),
    "audio": np.array([True, True, True, False, False]),
}


def inputs(names=("text", "image", "audio")):
    rng = np.random.default_rng(0)
    tokens = {m: rng.normal(size=(B, LENGTHS[m], WIDTHS[m])).astype(np.float32) for m in names}
    masks = {m: np.arange(LENGTHS[m])[None, :] < rng.integers(1, LENGTHS[m] + 1, B)[:, None] for m in names}
    tokens = {
        m: Tokens(jnp.asarray(tokens[m]), None if m == "image" else jnp.asarray(masks[m])) for m in names
    }
    return tokens, {m: jnp.asarray(PRESENT[m]) for m in names}


def hidden(tokens, present):
    """Which positions nobody may look at."""
    return {
        m: ~(
            (np.ones(t.values.shape[:2], bool) if t.mask is None else np.asarray(t.mask))
            & np.asarray(present[m])[:, None]
        )
        for m, t in tokens.items()
    }


@functools.cache
def build(kind):
    """The module with random parameters, so that closed gates and zero weights are open."""
    module = build_fusion(kind, width=WIDTH, depth=DEPTH, heads=3, modalities=tuple(LENGTHS))
    params = random_params(module.init, jax.random.key(0), *inputs())
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


@functools.cache
def differentiated(kind):
    """``run(params, tokens, present)``: what the module gives, and its gradients by the parameters and the tokens;
    compiled once for all tests."""
    module, _ = build(kind)

    def total(params, values, tokens, present):
        fused = module.apply(params, {m: Tokens(values[m], t.mask) for m, t in tokens.items()}, present)
        return jnp.sin(fused.pooled).sum(), fused

    gradient = jax.jit(jax.grad(total, (0, 1), has_aux=True))

    def run(params, tokens, present):
        gradients, fused = gradient(params, {m: t.values for m, t in tokens.items()}, tokens, present)
        return jax.tree.map(np.asarray, (fused, *gradients))

    return run


@functools.cache
def recorded(kind):
    """What the module gives for `inputs`, and the attention maps that it records."""
    module, params = build(kind)
    record = jax.jit(lambda *args: module.apply(*args, mutable=["intermediates"]))
    fused, state = record(params, *inputs())
    return fused, state.get("intermediates", {})


@pytest.mark.parametrize("kind", FUSIONS)
def test_is_the_papers_arithmetic_and_every_modality_counts(kind):
    (_, params), run = build(kind), differentiated(kind)
    tokens, present = inputs()
    fused = run(params, tokens, present)[0]
    values, pooled = oracle.fuse(
        kind,
        jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"]),
        {m: tuple(None if x is None else np.asarray(x) for x in tokens[m]) for m in LENGTHS},
        {m: np.asarray(p) for m, p in present.items()},
        DEPTH,
    )
    np.testing.assert_allclose(fused.pooled, pooled, atol=2e-5, rtol=2e-5)
    content = np.ones(values.shape[:2], bool) if fused.tokens.mask is None else np.asarray(fused.tokens.mask)
    np.testing.assert_allclose(
        np.asarray(fused.tokens.values)[content], values[content], atol=2e-5, rtol=2e-5
    )

    # One that is there changes the result, whichever of the others are missing.
    for others in (True, False):
        for m in tokens:
            there = {n: np.full(B, n == m or others) for n in tokens}
            moved = {n: Tokens(np.asarray(t.values) + (n == m), t.mask) for n, t in tokens.items()}
            one, other = (run(params, t, there)[0].pooled for t in (tokens, moved))
            assert (np.abs(one - other).max(axis=1) > 1e-4).all(), (kind, m, others)


@pytest.mark.parametrize("kind", FUSIONS)
def test_what_is_hidden_has_no_influence_and_no_gradient(kind):
    (_, params), run = build(kind), differentiated(kind)
    tokens, present = inputs()
    behind = hidden(tokens, present)
    fused, _, found = run(params, tokens, present)
    for m in tokens:
        size = np.abs(found[m]).max(axis=-1)
        assert (size[behind[m]] == 0).all() and (size[~behind[m]] > 0).all()
    for poison in np.float32([1e3, np.inf, np.nan]):
        changed = {
            m: Tokens(np.where(behind[m][:, :, None], poison, t.values), t.mask) for m, t in tokens.items()
        }
        np.testing.assert_array_equal(run(params, changed, present)[0].pooled, fused.pooled)

    # A modality that nobody has gives its parameters no gradient.
    _, found, _ = run(params, tokens, {**present, "audio": np.zeros(B, bool)})
    project = {m: np.asarray(found["params"][f"project_{m}"]["kernel"]) for m in LENGTHS}
    assert not project["audio"].any() and project["text"].any()


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("names", [("image",), ("audio", "text")])
def test_any_number_of_modalities(kind, names):
    tokens, _ = inputs(names)
    module = build_fusion(kind, width=WIDTH, depth=1, heads=2)
    fused = jax.jit(module.apply)(random_params(module.init, jax.random.key(0), tokens), tokens)
    assert fused.pooled.shape == (B, WIDTH) and fused.pooled.dtype == jnp.float32
    assert fused.tokens.values.shape[::2] == (B, WIDTH) and np.isfinite(fused.pooled).all()


@pytest.mark.parametrize(
    "kind", ["co_attention", "merged", "bottleneck", "gated", "perceiver", "additive", "film"]
)
def test_attention_maps_sum_to_one_and_leave_out_what_is_hidden(kind):
    tokens, present = inputs()
    plain = differentiated(kind)(build(kind)[1], tokens, present)[0]
    fused, intermediates = recorded(kind)
    np.testing.assert_allclose(fused.pooled, plain.pooled, atol=1e-6)
    maps = jax.tree.map(np.asarray, attention_maps(intermediates))
    assert maps
    for name, weights in maps.items():
        assert weights.ndim == 4 and weights.shape[0] == B
        rows = weights.sum(axis=-1)
        assert (np.isclose(rows, 1, atol=1e-5) | (rows == 0)).all(), name
    if kind in ("merged", "additive"):
        keys = np.concatenate([hidden(tokens, present)[m] for m in LENGTHS], axis=1)
        for weights in maps.values():
            assert (np.where(keys[:, None, None, :], weights, 0.0) == 0).all()


@pytest.mark.parametrize(
    "names",
    [("text", "image", "audio"), pytest.param(("text", "image"), marks=pytest.mark.slow)],
    ids=["three", "two"],
)
@pytest.mark.parametrize(
    "kind", ["merged", "gated"]
)  # the two ways there are: repeated, and queries side by side
def test_tokens_that_examples_share_are_as_good_as_repeated(kind, names):
    """Three examples to a picture and to a sound, of which some lack the one or the other."""
    module = build_fusion(kind, width=WIDTH, depth=1, heads=3, modalities=tuple(LENGTHS))
    params = random_params(module.init, jax.random.key(0), *inputs())
    rng = np.random.default_rng(3)
    of = lambda m, rows: jnp.asarray(rng.normal(size=(rows, LENGTHS[m], WIDTHS[m])).astype(np.float32))
    tokens = {
        "text": Tokens(of("text", 6), jnp.asarray(rng.random((6, LENGTHS["text"])) < 0.7)),
        "image": Tokens(of("image", 2), None),
        "audio": Tokens(of("audio", 2), jnp.asarray([[True, True, False], [True, False, False]])),
    }
    present = {
        "text": jnp.array([1, 1, 0, 1, 1, 1], bool),
        "image": jnp.array([1, 0, 1, 0, 0, 0], bool),
        "audio": jnp.array([1, 0, 1, 1, 1, 1], bool),
    }

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params, tokens, present):
        fused, state = module.apply(params, tokens, present, mutable=["intermediates"])
        attention = token_attention(module, state.get("intermediates", {}), tokens, present)
        return jnp.sin(fused.pooled).sum(), (fused.pooled, attention)

    repeated = {m: jax.tree.map(lambda x: np.repeat(x, 6 // len(x), axis=0), t) for m, t in tokens.items()}
    part = lambda xs: {m: xs[m] for m in names}
    (ours, (one, looks)), (theirs, (other, same_looks)) = (
        run(params, part(t), part(present)) for t in (tokens, repeated)
    )
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    assert looks.keys() == same_looks.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), looks, same_looks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    with pytest.raises(ValueError, match="2 rows of image cannot be shared by 5 examples"):
        jax.eval_shape(module.apply, params, {"image": tokens["image"]}, {"image": np.ones(5, bool)})


def test_gates_start_closed():
    """A new gated fusion is its first modality's transformer: the others change nothing until the gates open."""
    tokens, present = inputs()
    module = build_fusion("gated", width=WIDTH, depth=1, heads=3, modalities=("text", "image", "audio"))
    params, apply = jax.jit(module.init)(jax.random.key(0), tokens, present), jax.jit(module.apply)
    other = {m: Tokens(np.asarray(t.values) + (m != "text"), t.mask) for m, t in tokens.items()}
    a, b = (apply(params, t, present).pooled for t in (tokens, other))
    np.testing.assert_array_equal(a, b)


def test_errors_say_what_to_do():
    tokens, present = inputs(("text", "image"))
    with pytest.raises(ValueError, match="unknown fusion 'sum': choose from co_attention, merged"):
        build_fusion("sum")
    with pytest.raises(ValueError, match="present names 'video', but there are tokens of text, image only"):
        extra = {**present, "video": present["text"]}
        jax.eval_shape(lambda key: build_fusion("concat").init(key, tokens, extra), jax.random.key(0))
    with pytest.raises(ValueError, match="at least one modality"):
        jax.eval_shape(build_fusion("concat").init, jax.random.key(0), {})
