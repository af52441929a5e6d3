import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal_jax.train.muon import matrix_axes, newton_schulz
from xmodal_jax.train.optim import Optimizer, learning_rate_schedule, make_optimizer, resolve_lr_multipliers


def params():
    rng = np.random.default_rng(0)
    leaf = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
    return {"a": {"kernel": leaf(3, 5), "bias": leaf(5)}, "b": {"kernel": leaf(5, 2)}}


def run(config, steps=7):
    tx, p = make_optimizer(config, steps), params()
    state = tx.init(p)
    for i in range(steps):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x + i), p)
        updates, state = tx.update(grads, state, p)
        p = optax.apply_updates(p, updates)
    return p


def test_adamw_is_optax_adamw():
    config = Optimizer(learning_rate=0.01, warmup=0.0, schedule="constant", clip_norm=None, weight_decay=0.3)
    tx, p = (
        optax.adamw(
            0.01,
            b2=0.98,
            weight_decay=0.3,
            mask=lambda t: {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}},
        ),
        params(),
    )
    state = tx.init(p)
    for i in range(7):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x + i), p)
        updates, state = tx.update(grads, state, p)
        p = optax.apply_updates(p, updates)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), run(config), p)


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "sgd", "adafactor", "muon"])
def test_frozen_parameters_stay_and_others_move(name):
    before, after = params(), run(Optimizer(name=name, freeze=("^a/",)))
    np.testing.assert_array_equal(before["a"]["kernel"], after["a"]["kernel"])
    assert np.abs(before["b"]["kernel"] - after["b"]["kernel"]).min() > 0


def orthogonalised(matrix):
    """Five steps of the quintic Newton-Schulz iteration, and the root mean square 0.2 (NumPy)."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return 0.2 * np.sqrt(max(matrix.shape)) * x


def test_muon_knows_the_matrices_of_stacked_transformers():
    path = "experts_text_11/features/encoder/{}attention/qkv/kernel"
    assert matrix_axes(path.format(""), 5) == (
        (0, 2),
        (1,),
        (3, 4),
    )  # [modalities, inputs, 3, heads, head width]
    assert matrix_axes(path.format("layers/"), 6) == ((0, 1, 3), (2,), (4, 5))  # [modalities, layers, ...]


def test_muon_orthogonalises_each_matrix_and_moves_the_rest_like_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 5, 7), "bias": (7,)},
        "attention": {"qkv": {"kernel": (7, 3, 2, 5)}, "out": {"kernel": (2, 5, 7)}},
        "layers": {"query": {"kernel": (2, 7, 2, 5)}},
        "embed": {"embedding": (11, 7)},
    }
    grads = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    config = Optimizer(
        name="muon", learning_rate=0.01, warmup=0.0, schedule="constant", clip_norm=None, weight_decay=0.0
    )
    tx = make_optimizer(config, 5)
    params = jax.tree.map(jnp.ones_like, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    updates = jax.tree.map(lambda u: -np.asarray(u, np.float64) / 0.01, updates)
    g = jax.tree.map(lambda x: np.asarray(x, np.float64), grads)

    def check(update, gradient):
        np.testing.assert_allclose(update, orthogonalised(gradient), rtol=2e-3, atol=2e-4)

    check(updates["conv"]["kernel"].reshape(45, 7), g["conv"]["kernel"].reshape(45, 7))
    check(
        updates["attention"]["out"]["kernel"].reshape(10, 7), g["attention"]["out"]["kernel"].reshape(10, 7)
    )
    qkv = lambda tree: tree["attention"]["qkv"]["kernel"].transpose(1, 0, 2, 3).reshape(3, 7, 10)
    query = lambda tree: tree["layers"]["query"]["kernel"].reshape(2, 7, 10)
    for pick in (qkv, query):
        for update, gradient in zip(pick(updates), pick(g), strict=True):
            check(update, gradient)
    # Adam's first step with Nesterov momentum, elements that are not tiny: ((1 - b1) / (1 - b1) + b1 (1 - b1) /
    # (1 - b1^2)) / 1 of the sign, which is 0.9 / 1.9 + 1 (Dozat 2016).
    for update, gradient in (
        (updates["conv"]["bias"], g["conv"]["bias"]),
        (updates["embed"]["embedding"], g["embed"]["embedding"]),
    ):
        np.testing.assert_allclose(update, np.sign(gradient) * (0.9 * 0.1 / (1 - 0.81) + 1.0), rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 7, 11), (3, 7, 14), (1, 5, 61)], ids=["near square", "twice", "wide"])
def test_newton_schulz_of_singular_values_far_apart(shape):
    """Against float64 in the plain form, with singular values over four orders of magnitude."""
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    x = (u * np.logspace(0, -4, shape[1])) @ v
    found = jax.jit(newton_schulz)(jnp.asarray(x, jnp.float32))
    x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
    for _ in range(5):
        gram = x @ x.transpose(0, 2, 1)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    np.testing.assert_allclose(found, x, atol=1e-3)
    assert np.abs(x).max() > 0.1


def test_newton_schulz_keeps_the_singular_vectors_and_makes_the_values_about_one():
    """By the definition, U V^T of U S V^T, with singular values from 1 to 30."""
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=(2, 7, 11)), full_matrices=False)
    x = (u * np.linspace(30, 1, 7)) @ v
    found = np.asarray(jax.jit(newton_schulz)(jnp.asarray(x, jnp.float32)), np.float64)
    values = np.einsum("kij,kil,kml->kjm", u, found, v)  # in the bases of the singular vectors
    diagonal = np.einsum("kii->ki", values)
    assert diagonal.min() > 0.65 and diagonal.max() < 1.25
    np.testing.assert_allclose(values - diagonal[:, :, None] * np.eye(7), 0.0, atol=1e-4)


def test_frozen_parameters_keep_no_state():
    tx = make_optimizer(Optimizer(freeze=("^a/",)), 7)
    sizes = {x.size for x in jax.tree.leaves(tx.init(params()))}
    assert 15 not in sizes and 10 in sizes


def test_rates_scale_the_update():
    config = dict(learning_rate=0.01, warmup=0.0, schedule="constant", weight_decay=0.0, clip_norm=None)
    full, half = (
        run(Optimizer(**config), 1),
        run(Optimizer(**config, lr_multipliers=(("^a/", 0.5), (".*", 1.0))), 1),
    )
    start = params()
    np.testing.assert_allclose(
        half["a"]["kernel"] - start["a"]["kernel"],
        0.5 * (full["a"]["kernel"] - start["a"]["kernel"]),
        rtol=1e-4,
    )
    np.testing.assert_array_equal(half["b"]["kernel"], full["b"]["kernel"])


def test_every_parameter_must_be_covered_and_every_rule_used():
    with pytest.raises(ValueError, match="'b/kernel' is covered by no rule"):
        resolve_lr_multipliers(Optimizer(lr_multipliers=(("^a/", 1.0),)), params())
    with pytest.raises(ValueError, match="matches no parameter"):
        resolve_lr_multipliers(Optimizer(freeze=("^c/",)), params())
    with pytest.raises(ValueError, match="matches no parameter"):
        make_optimizer(Optimizer(lr_multipliers=(("^c/", 1.0), (".*", 1.0))), 5).init(params())


def test_l2_and_l1_are_the_gradients_of_their_penalties():
    p = params()
    zero = jax.tree.map(jnp.zeros_like, p)
    config = dict(name="sgd", b1=0.0, learning_rate=1.0, warmup=0.0, schedule="constant", weight_decay=0.0)
    tx = make_optimizer(Optimizer(**config, clip_norm=None, l1=0.2, l2=0.3), 3)
    updates, _ = tx.update(zero, tx.init(p), p)
    penalty = lambda p: sum(
        0.2 * jnp.abs(w).sum() + 0.3 * (w**2).sum() for w in (p["a"]["kernel"], p["b"]["kernel"])
    )
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-5), updates, jax.grad(penalty)(p))


def test_schedule_warms_up_to_the_peak_and_ends_at_its_final_share():
    rate = learning_rate_schedule(Optimizer(learning_rate=0.5, warmup=10.0, final_scale=0.1), 100)
    np.testing.assert_allclose([rate(0), rate(10), rate(100)], [0.05, 0.5, 0.05], rtol=1e-6)
    assert float(rate(5)) < float(rate(9)) < 0.5


def test_a_bad_description_is_refused():
    with pytest.raises(ValueError, match="ema"):
        Optimizer(ema=1.0)
    with pytest.raises(ValueError, match="not a regular expression"):
        Optimizer(freeze=("(",))


def test_what_decays_may_all_be_frozen_but_must_be_there():
    params = {"encoder": {"kernel": jnp.ones((2, 3))}, "scale": jnp.ones(())}
    frozen = Optimizer(freeze=("^encoder/",))
    tx = make_optimizer(frozen, 3)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert not updates["encoder"]["kernel"].any() and updates["scale"] != 0
    for config in (Optimizer(decay_mask="kernal$"), Optimizer(decay_mask="kernal$", freeze=("^encoder/",))):
        with pytest.raises(ValueError, match="decay_mask 'kernal\\$' matches no parameter"):
            make_optimizer(config, 3).init(params)


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_learning_rate_is_positive_and_finite(learning_rate):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
        Optimizer(learning_rate=learning_rate)


def test_b2_goes_from_its_start_to_its_end_along_half_a_cosine():
    """Adam's rule in NumPy, with ``b2`` of each step in the average and in its correction."""
    config = Optimizer(
        "adam", 1e-2, schedule="constant", warmup=0.0, clip_norm=None, b1=0.0, b2=0.9, final_b2=0.99
    )
    steps, p = 4, {"kernel": jnp.zeros(3)}
    tx = make_optimizer(config, steps)
    state, update = tx.init(p), jax.jit(tx.update)
    grads, average = np.random.default_rng(0).normal(size=(steps, 3)), np.zeros(3)
    expected_b2 = [0.9, 0.99 - 0.09 * (1 + np.sqrt(0.5)) / 2, 0.945, 0.99 - 0.09 * (1 - np.sqrt(0.5)) / 2]
    for k, (g, b2) in enumerate(zip(grads, expected_b2, strict=True)):
        updates, state = update({"kernel": jnp.float32(g)}, state, p)
        average = b2 * average + (1 - b2) * g**2
        wanted = -1e-2 * g / (np.sqrt(average / (1 - b2 ** (k + 1))) + 1e-8)
        np.testing.assert_allclose(updates["kernel"], wanted, rtol=1e-4)
    constant = make_optimizer(dataclasses.replace(config, final_b2=None), steps).init(p)
    assert jax.tree.structure(constant) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="muon has no final_b2: choose adamw or adam"):
        Optimizer("muon", final_b2=0.99)
    with pytest.raises(ValueError, match=r"final_b2 must lie in \[0, 1\), got 1.0"):
        Optimizer("adam", final_b2=1.0)
