from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.losses.devices import LAYOUTS, assert_same, values_and_gradients
from tests.oracles import contrastive as oracle
from xmodal_jax.core.collectives import batch_mean, global_mean
from xmodal_jax.losses import changed_text_loss, info_nce, sigmoid_loss, triplet_loss

DUPLICATES = ("ignore", "exclude", "positive")
IMPLEMENTATIONS = ("global", "tiled", "ring")


def make(size, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, size, dim)).astype(np.float32)
    b = 0.5 * a + b  # pairs are alike, though not so much that a loss saturates
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    present = rng.random(size) < 0.8
    present[0] = True
    match = rng.integers(-1, 5, size).astype(np.int32)
    ids = np.stack([match, rng.integers(-1, 7, size).astype(np.int32)], axis=1)
    arrays = {"a": unit(a), "b": unit(b), "present": present, "match": match, "ids": ids}
    return {k: jnp.asarray(v) for k, v in arrays.items()}


SHARED = {"temperature": jnp.float32(0.3), "bias": jnp.float32(-1.7)}


def mean_of(fn, duplicates, match="match", **options):
    def loss(split, shared, axis_name):
        if fn is info_nce:
            shared = {"temperature": shared["temperature"]}
        elif fn is triplet_loss:
            shared = {"margin": shared["temperature"]}
        terms = fn(
            split["a"],
            split["b"],
            present=split["present"],
            match=split[match],
            duplicates=duplicates,
            axis_name=axis_name,
            **shared,
            **options,
        )
        return batch_mean(terms, split["present"].astype(jnp.float32), axis_name=axis_name)

    return loss


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_values_are_the_definitions(duplicates):
    x = make(13)
    arrays = [np.asarray(x[k]) for k in ("a", "b")]
    where = {"present": np.asarray(x["present"]), "ids": np.asarray(x["match"]), "duplicates": duplicates}
    present = {"present": x["present"], "match": x["match"]}

    @jax.jit
    def every(a, b, present):
        given = dict(present, duplicates=duplicates)
        pairs = [
            info_nce(a, b, temperature=0.3, **given),
            sigmoid_loss(a, b, temperature=0.3, bias=-1.7, **given),
        ]
        if duplicates != "positive":
            pairs += [triplet_loss(a, b, hardest=hardest, **given) for hardest in (True, False)]
        return pairs

    got, of_sigmoid, *of_triplet = every(x["a"], x["b"], present)
    np.testing.assert_allclose(got, oracle.info_nce(*arrays, 0.3, **where), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        of_sigmoid, oracle.sigmoid_loss(*arrays, 0.3, -1.7, **where), rtol=1e-5, atol=1e-6
    )
    if duplicates != "positive":
        for hardest, got in zip((True, False), of_triplet, strict=True):
            want = oracle.triplet_loss(*arrays, 0.2, hardest, **where)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_several_kinds_of_ids_match_by_any_of_them(duplicates):
    """Equal texts and equal pictures: examples 0 and 1 share a text, 1 and 2 a picture, and 0 and 2 nothing."""
    x = make(13)
    ids = np.random.default_rng(1).integers(-1, 5, (13, 2)).astype(np.int32)
    ids[:3] = [[7, 8], [7, 9], [6, 9]]
    arrays, present = [np.asarray(x[k]) for k in ("a", "b")], x["present"].at[:3].set(True)
    where = {"present": np.asarray(present), "ids": ids, "duplicates": duplicates}

    @jax.jit
    def every(a, b):
        options = dict(present=present, match=jnp.asarray(ids), duplicates=duplicates)
        outputs = [
            loss(a, b, temperature=0.3, implementation=implementation, tile=5, **extra, **options)
            for loss, extra in ((info_nce, {}), (sigmoid_loss, {"bias": -1.7}))
            for implementation in IMPLEMENTATIONS
        ]
        return outputs, triplet_loss(a, b, **options) if duplicates != "positive" else None

    outputs, of_triplet = every(x["a"], x["b"])
    want = [oracle.info_nce(*arrays, 0.3, **where)] * 3 + [
        oracle.sigmoid_loss(*arrays, 0.3, -1.7, **where)
    ] * 3
    np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-6)
    if of_triplet is not None:
        want = oracle.triplet_loss(*arrays, 0.2, True, **where)
        np.testing.assert_allclose(of_triplet, want, rtol=1e-5, atol=1e-6)


def test_duplicates_without_match_are_unknown():
    x = make(7)
    loss = jax.jit(partial(info_nce, temperature=0.3), static_argnames="duplicates")
    plain = loss(x["a"], x["b"])
    unknown = np.full(7, -1, np.int32)
    for duplicates in ("exclude", "positive"):
        for match in (None, unknown):
            got = loss(x["a"], x["b"], match=match, duplicates=duplicates)
            np.testing.assert_allclose(got, plain, rtol=1e-6)


@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_implementations_agree_in_value_and_every_gradient(duplicates):
    """13 columns in tiles of 5: the last tile is padded."""
    implementations = {
        f"{fn.__name__} {implementation}": mean_of(fn, duplicates, implementation=implementation, tile=5)
        for fn in (info_nce, sigmoid_loss)
        for implementation in IMPLEMENTATIONS
    }
    out = values_and_gradients(implementations, make(13), SHARED)
    for name, got in out.items():
        want = out[name.split()[0] + " global"]
        assert float(jnp.abs(want[1][1]["temperature"])) > 1e-3
        assert_same({name: got}, {name: want})


LOSSES = {
    "info_nce global": mean_of(info_nce, "positive", implementation="global"),
    "info_nce tiled": mean_of(info_nce, "exclude", implementation="tiled", tile=2),
    "info_nce ring": mean_of(info_nce, "positive", implementation="ring", tile=2, match="ids"),
    "sigmoid global": mean_of(sigmoid_loss, "exclude", implementation="global"),
    "sigmoid tiled": mean_of(sigmoid_loss, "positive", implementation="tiled", tile=2),
    "sigmoid ring": mean_of(sigmoid_loss, "positive", implementation="ring", tile=2),
    "triplet": mean_of(triplet_loss, "exclude"),
}


@pytest.fixture(scope="module")
def one_device():
    return values_and_gradients(LOSSES, make(24), SHARED)


@pytest.mark.parametrize(("devices", "mode"), LAYOUTS)
def test_devices_do_not_change_the_result(devices, mode, one_device):
    assert_same(values_and_gradients(LOSSES, make(24), SHARED, devices, mode), one_device)


def test_ring_gathers_no_embeddings():
    """The compiled ring holds no array of the global batch of embeddings, and the global implementation does."""
    x = make(24, dim=11)
    parts = [x[k].reshape(4, 6, 11) for k in ("a", "b")]

    def program(implementation):
        def loss(a, b):
            return batch_mean(
                info_nce(a, b, temperature=0.3, axis_name="data", implementation=implementation, tile=3),
                axis_name="data",
            )

        return jax.pmap(jax.grad(loss), "data", devices=jax.devices()[:4]).lower(*parts).compile().as_text()

    assert "all-gather" in program("global")
    ring = program("ring")
    assert "collective-permute" in ring and "all-gather" not in ring and "24,11" not in ring


def test_tiled_serves_a_batch_that_the_compiler_splits():
    """Under jit over a mesh, with no axis name."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    x = make(24)
    loss = {"loss": mean_of(info_nce, "positive", implementation="tiled", tile=8)}
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert_same(values_and_gradients(loss, split, SHARED), values_and_gradients(loss, x, SHARED))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_absent_examples_have_no_part(implementation):
    """Masked equals sliced, and an absent example's gradient is exactly zero, were it infinite."""
    x = make(11)
    keep = np.flatnonzero(x["present"])
    absent = np.flatnonzero(~np.asarray(x["present"]))
    a, b = np.array(x["a"]), np.asarray(x["b"])
    a[absent[0]] = np.inf

    @jax.jit
    def losses(a, b, present):
        kwargs = {
            "temperature": 0.3,
            "present": present,
            "implementation": implementation,
            "tile": 4,
            "normalize": True,
        }
        return info_nce(a, b, **kwargs), sigmoid_loss(a, b, bias=-1.0, **kwargs)

    masked, sliced = jax.tree.map(
        np.asarray, (losses(a, b, x["present"]), losses(a[keep], b[keep], np.ones(len(keep), bool)))
    )
    for m, s in zip(masked, sliced, strict=True):
        np.testing.assert_allclose(m[keep], s, rtol=1e-5)
        np.testing.assert_array_equal(m[absent], 0.0)
    total = lambda a, b: sum(t.sum() for t in losses(a, b, x["present"]))
    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(total, (0, 1)))(a, b))
    for g in grads:
        np.testing.assert_array_equal(g[absent], 0.0)
        assert np.isfinite(g).all() and np.abs(g[keep]).min() > 0


def test_a_batch_without_examples_is_zero():
    x = make(5)

    @jax.jit
    def every(a, b, present):
        given = dict(temperature=0.3, present=present)
        losses = [
            partial(info_nce, implementation=implementation, **given) for implementation in IMPLEMENTATIONS
        ]
        found = [jax.value_and_grad(lambda a, loss=loss: loss(a, b).sum())(a) for loss in losses]
        return found, triplet_loss(a, b, present=present)

    found, of_triplet = jax.tree.map(np.asarray, every(x["a"], x["b"], np.zeros(5, bool)))
    for value, grad in found:
        assert value == 0 and not grad.any()
    assert not of_triplet.any()


global_info_nce = jax.jit(partial(info_nce, implementation="global"), static_argnames="duplicates")


@given(st.integers(1, 9), st.floats(0.05, 2.0))
def test_constant_logits_give_the_logarithm_of_the_batch_size(size, temperature):
    same = np.full((9, 3), np.sqrt(1 / 3), np.float32)
    got = np.asarray(global_info_nce(same, same, temperature=temperature, present=np.arange(9) < size))
    np.testing.assert_allclose(got[:size], np.log(size), rtol=1e-5, atol=1e-6)


@given(st.permutations(range(7)), st.integers(0, 2**16))
def test_order_of_the_batch_does_not_matter(order, seed):
    x = make(7, seed=seed)
    order, x = np.array(order), jax.tree.map(np.asarray, x)
    term = lambda x: np.asarray(
        global_info_nce(x["a"], x["b"], temperature=0.2, match=x["match"], duplicates="positive")
    )
    np.testing.assert_allclose(term({k: v[order] for k, v in x.items()}), term(x)[order], rtol=1e-5)


def test_low_precision_embeddings_keep_their_type():
    x = make(13)
    a, b = x["a"].astype(jnp.bfloat16), x["b"].astype(jnp.bfloat16)
    term = lambda implementation: (
        lambda a: info_nce(a, b, temperature=0.3, implementation=implementation, tile=4).mean()
    )
    out = jax.jit(
        lambda a: {
            implementation: jax.value_and_grad(term(implementation))(a)
            for implementation in ("tiled", "global")
        }
    )(a)
    for value, grad in out.values():
        assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
        want = oracle.info_nce(np.float32(a), np.float32(b), 0.3).mean()
        np.testing.assert_allclose(value, want, rtol=2e-2)
    np.testing.assert_allclose(np.float32(out["tiled"][1]), np.float32(out["global"][1]), atol=2e-3)


def test_the_example_in_the_docstring_runs():
    import doctest

    from xmodal_jax.losses import contrastive

    test = doctest.DocTestFinder().find(contrastive.info_nce, globs={})[0]
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


MAPS = ("pmap", "shard_map", "shard_map without check_vma", "jit over a mesh")


@pytest.mark.parametrize("how", MAPS)
@pytest.mark.parametrize("implementation", ["global", "tiled"])
def test_the_gradient_of_the_global_mean_averaged_over_devices_is_that_of_one_device(how, implementation):
    """A training step as a user writes it: parameters on every device, a part of the batch on each of four."""
    x, kernel = make(12), jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
    weights = x["present"].astype(jnp.float32)

    def gradient(kernel, a, b, weights, axis_name=None):
        def loss(kernel):
            options = dict(present=weights > 0, axis_name=axis_name, implementation=implementation)
            terms = info_nce(a @ kernel, b @ kernel, temperature=0.3, normalize=True, **options)
            return global_mean(terms, weights, axis_name=axis_name)

        value, grad = jax.value_and_grad(loss)(kernel)
        return (value, grad) if axis_name is None else jax.lax.pmean((value, grad), axis_name)

    one_device = jax.jit(gradient)(kernel, x["a"], x["b"], weights)
    devices = jax.devices()[:4]
    mesh, data, none = Mesh(np.array(devices), ("data",)), PartitionSpec("data"), PartitionSpec()
    on_axis = partial(gradient, axis_name="data")
    if how == "pmap":
        parts = [v.reshape(4, -1, *v.shape[1:]) for v in (x["a"], x["b"], weights)]
        several = jax.pmap(on_axis, axis_name="data", in_axes=(None, 0, 0, 0), devices=devices)(
            kernel, *parts
        )
        several = jax.tree.map(lambda copies: copies[0], several)
    elif how == "jit over a mesh":
        split = lambda v: jax.device_put(v, NamedSharding(mesh, data))
        several = jax.jit(gradient)(
            jax.device_put(kernel, NamedSharding(mesh, none)), split(x["a"]), split(x["b"]), split(weights)
        )
    else:
        mapped = jax.shard_map(
            on_axis, mesh=mesh, in_specs=(none, data, data, data), out_specs=none,
            check_vma=how == "shard_map",
        )  # fmt: skip
        several = jax.jit(mapped)(kernel, x["a"], x["b"], weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), several, one_device)


def test_a_changed_text_is_told_by_the_softmax_of_two_logits():
    data = make(11)
    x, text, changed = (np.asarray(v, np.float64) for v in (data["a"], data["b"], data["b"][::-1]))
    logits = np.stack([(x * text).sum(axis=1), (x * changed).sum(axis=1)]) / 0.07
    expected = -np.log(np.exp(logits[0]) / np.exp(logits).sum(axis=0))
    found = changed_text_loss(data["a"], data["b"], data["b"][::-1], temperature=0.07)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(changed_text_loss(data["a"], data["b"], data["b"][::-1], temperature=1e-6)).all()
