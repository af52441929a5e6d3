import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core import accumulation, collectives

VALUES = np.array([3.0, 20.0, 7.0, 9.0, 5.0, 11.0, 13.0, 4.0])
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 0.0, 3.0, 1.0])


def loss(params, batch, key):
    """Two means with different denominators, and a number that does not depend on the batch."""
    errors = (params * batch["x"] - 1.0) ** 2
    first = collectives.batch_mean(errors, batch["w"])
    second = collectives.batch_mean(jnp.abs(params * batch["x"]), (batch["w"] > 0.7).astype(jnp.float32))
    constant = collectives.share(params**2)
    return first + 2.0 * second + constant, {"second": second, "constant": constant}


def expected(params):
    second = np.abs(params * VALUES)[WEIGHTS > 0.7].mean()
    first = (WEIGHTS * (params * VALUES - 1) ** 2).sum() / WEIGHTS.sum()
    return first + 2 * second + params**2, {"second": second, "constant": params**2}


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_parts_with_different_denominators_give_the_whole_batchs_value(count):
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    batch = {"x": jnp.float32(VALUES), "w": jnp.float32(WEIGHTS)}
    run = jax.jit(accumulation.accumulated(grad_fn, loss, count))
    (value, aux), gradient = run(jnp.float32(0.3), batch, jax.random.key(0))
    want, want_aux = expected(0.3)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for name, x in want_aux.items():
        np.testing.assert_allclose(aux[name], x, rtol=1e-6)
    step = 1e-6
    numeric = (expected(0.3 + step)[0] - expected(0.3 - step)[0]) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5)


def test_a_part_without_any_weight_has_no_influence():
    batch = {"x": jnp.float32(VALUES), "w": jnp.float32(WEIGHTS * (np.arange(8) % 2))}
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    whole, parts = (
        accumulation.accumulated(grad_fn, loss, count)(jnp.float32(0.3), batch, jax.random.key(0))
        for count in (1, 2)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, parts)


@pytest.mark.parametrize(
    "whole_batch_operation",
    [
        lambda x: collectives.psum(x.sum(), None),
        lambda x: collectives.all_gather(x, None).sum(),
        lambda x: collectives.roll_batch(x).sum(),
        lambda x: x.sum() + collectives.global_index(len(x)).sum(),
    ],
)
def test_a_loss_over_the_whole_batch_is_refused(whole_batch_operation):
    run = lambda params, batch, key: (params * whole_batch_operation(batch["x"]), {})
    grad_fn = jax.value_and_grad(run, has_aux=True)
    batch, key = {"x": jnp.float32(VALUES)}, jax.random.key(0)
    accumulation.accumulated(grad_fn, run, 1)(jnp.float32(1.0), batch, key)
    with pytest.raises(ValueError, match="accumulate = 2 .* needs the whole batch"):
        accumulation.accumulated(grad_fn, run, 2)(jnp.float32(1.0), batch, key)


def test_a_batch_that_does_not_divide_is_refused():
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    with pytest.raises(ValueError, match="accumulate = 3 does not divide a batch of 8"):
        batch = {"x": jnp.float32(VALUES), "w": jnp.float32(WEIGHTS)}
        accumulation.accumulated(grad_fn, loss, 3)(jnp.float32(0.3), batch, jax.random.key(0))
