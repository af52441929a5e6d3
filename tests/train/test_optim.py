import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal_jax.train.optim import Optimizer, learning_rate, make_optimizer, rate_factors


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


@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "sgd", "adafactor"])
def test_frozen_parameters_stay_and_others_move(name):
    before, after = params(), run(Optimizer(name=name, freeze=("^a/",)))
    np.testing.assert_array_equal(before["a"]["kernel"], after["a"]["kernel"])
    assert np.abs(before["b"]["kernel"] - after["b"]["kernel"]).min() > 0


def test_frozen_parameters_keep_no_state():
    tx = make_optimizer(Optimizer(freeze=("^a/",)), 7)
    sizes = {x.size for x in jax.tree.leaves(tx.init(params()))}
    assert 15 not in sizes and 10 in sizes


def test_rates_scale_the_update():
    config = dict(learning_rate=0.01, warmup=0.0, schedule="constant", weight_decay=0.0, clip_norm=None)
    full, half = run(Optimizer(**config), 1), run(Optimizer(**config, rates=(("^a/", 0.5), (".*", 1.0))), 1)
    start = params()
    np.testing.assert_allclose(
        half["a"]["kernel"] - start["a"]["kernel"],
        0.5 * (full["a"]["kernel"] - start["a"]["kernel"]),
        rtol=1e-4,
    )
    np.testing.assert_array_equal(half["b"]["kernel"], full["b"]["kernel"])


def test_every_parameter_must_be_covered_and_every_rule_used():
    with pytest.raises(ValueError, match="'b/kernel' is covered by no rule"):
        rate_factors(Optimizer(rates=(("^a/", 1.0),)), params())
    with pytest.raises(ValueError, match="matches no parameter"):
        rate_factors(Optimizer(freeze=("^c/",)), params())
    with pytest.raises(ValueError, match="matches no parameter"):
        make_optimizer(Optimizer(rates=(("^c/", 1.0), (".*", 1.0))), 5).init(params())


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
    rate = learning_rate(Optimizer(learning_rate=0.5, warmup=10.0, final_scale=0.1), 100)
    np.testing.assert_allclose([rate(0), rate(10), rate(100)], [0.05, 0.5, 0.05], rtol=1e-6)
    assert float(rate(5)) < float(rate(9)) < 0.5


def test_a_bad_description_is_refused():
    with pytest.raises(ValueError, match="ema"):
        Optimizer(ema=1.0)
    with pytest.raises(ValueError, match="not a regular expression"):
        Optimizer(freeze=("(",))
