import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from xmodal_jax.core import collectives

DEVICES = 4


def over_devices(mode, fn, *arrays):
    """``fn`` on each device's part; the results stacked by device."""
    devices = jax.devices()[:DEVICES]
    if mode == "pmap":
        return jax.pmap(fn, "data", devices=devices)(*(x.reshape(DEVICES, -1, *x.shape[1:]) for x in arrays))
    data = PartitionSpec("data")
    stacked = lambda *args: jax.tree.map(lambda x: x[None], fn(*args))
    return jax.jit(
        jax.shard_map(stacked, mesh=Mesh(np.array(devices), ("data",)), in_specs=data, out_specs=data)
    )(*arrays)


MODES = pytest.mark.parametrize("mode", ["pmap", "shard_map"])
X = jnp.arange(12.0) ** 2 / 7
W = jnp.array([0.0, 1, 2, 0, 0, 0, 3, 1, 1, 0, 2, 5])


def test_without_an_axis_everything_is_the_identity():
    assert collectives.psum(X, None) is X and collectives.all_gather(X, None) is X
    assert collectives.axis_index(None) == 0 and collectives.axis_size(None) == 1
    assert collectives.share(X[3]) == X[3]
    np.testing.assert_array_equal(collectives.global_index(3), [0, 1, 2])


@pytest.mark.parametrize(
    "function",
    [
        collectives.psum,
        collectives.all_gather,
        lambda x, axis_name: collectives.batch_mean(x, axis_name=axis_name),
        lambda x, axis_name: collectives.global_mean(x, axis_name=axis_name),
        lambda x, axis_name: collectives.share(x[0], axis_name=axis_name),
        lambda x, axis_name: collectives.global_index(3, axis_name=axis_name),
        lambda x, axis_name: collectives.roll_batch(x, axis_name=axis_name),
        lambda x, axis_name: collectives.axis_size(axis_name),
    ],
)
def test_an_axis_that_does_not_exist_is_named(function):
    for call in (function, jax.jit(function, static_argnums=1)):
        with pytest.raises(ValueError, match="axis_name is 'data', but there is no such axis here: call"):
            call(X, "data")
    jax.vmap(lambda x: function(x, "data"), axis_name="data")(X[None])


def test_the_mean_that_refuses_its_arguments_is_named():
    with pytest.raises(ValueError, match="^global_mean: weights must be"):
        collectives.global_mean(X, W[:3])


@MODES
def test_batch_mean_shares_sum_to_the_weighted_mean(mode):
    """One device holds no weight at all; a value of weight 0 is infinite."""
    x = X.at[0].set(jnp.inf)
    want = np.average(np.asarray(x)[W > 0], weights=np.asarray(W)[W > 0])
    np.testing.assert_allclose(collectives.batch_mean(x, W), want, rtol=1e-6)

    def share(x, w):
        return jax.value_and_grad(lambda x: collectives.batch_mean(x, w, axis_name="data"))(x)

    shares, grads = over_devices(mode, share, x, W)
    np.testing.assert_allclose(shares.sum(), want, rtol=1e-6)
    np.testing.assert_allclose(grads.reshape(-1), W / W.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        over_devices(mode, lambda x: collectives.batch_mean(x, axis_name="data"), X).sum(),
        X.mean(),
        rtol=1e-6,
    )


def test_batch_mean_without_weight_is_zero():
    value, grad = jax.value_and_grad(collectives.batch_mean)(X * jnp.nan, jnp.zeros_like(X))
    assert value == 0 and not grad.any()


@MODES
def test_gather_is_in_device_order_and_its_gradient_comes_home(mode):
    """Device k weighs all examples by k + 1: each example is owed the sum over devices, 1 + 2 + 3 + 4."""

    def fn(x):
        def loss(x):
            everyone = collectives.all_gather(x, "data")
            return (collectives.axis_index("data") + 1) * jnp.sum(everyone**2), everyone

        return jax.grad(loss, has_aux=True)(x)

    grad, gathered = over_devices(mode, fn, X)
    np.testing.assert_array_equal(gathered, np.broadcast_to(X, (DEVICES, 12)))
    np.testing.assert_allclose(grad.reshape(-1), 10 * 2 * X, rtol=1e-6)


@MODES
def test_share_of_a_common_value_and_its_gradient(mode):
    """(sum x)^2 is known to every device; the gradient of the sum of shares is 2 sum x."""

    def fn(x):
        return jax.value_and_grad(
            lambda x: collectives.share(collectives.psum(x.sum(), "data") ** 2, axis_name="data")
        )(x)

    shares, grads = over_devices(mode, fn, X)
    np.testing.assert_allclose(shares, np.full(DEVICES, X.sum() ** 2 / DEVICES), rtol=1e-6)
    np.testing.assert_allclose(grads.reshape(-1), np.full(12, 2 * X.sum()), rtol=1e-6)


@MODES
def test_global_index(mode):
    got = over_devices(mode, lambda x: collectives.global_index(x.shape[0], axis_name="data"), X)
    np.testing.assert_array_equal(got.reshape(-1), np.arange(12))


@MODES
def test_rolled_is_the_predecessor_in_the_global_batch(mode):
    """Also of what has more axes or is not a number; the gradient goes back to the predecessor's device."""
    pairs = jnp.stack([X, -W], axis=1)
    np.testing.assert_array_equal(collectives.roll_batch(pairs), np.roll(pairs, 1, axis=0))

    def fn(x, pairs, w):
        shift = lambda x: collectives.roll_batch(x, axis_name="data")
        grad = jax.grad(lambda x: jnp.sum(w * shift(x) ** 2))(x)
        return shift(pairs), shift(w > 1), grad

    moved, flags, grad = over_devices(mode, fn, X, pairs, W)
    np.testing.assert_array_equal(moved.reshape(12, 2), np.roll(pairs, 1, axis=0))
    np.testing.assert_array_equal(flags.reshape(-1), np.roll(W > 1, 1))
    np.testing.assert_allclose(grad.reshape(-1), np.roll(W, -1) * 2 * X, rtol=1e-6)


def test_rows_are_pinned_inside_a_mesh_only():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = jnp.ones((16, 3))

    def pinned(fn, x):
        return "sharding_constraint" in str(jax.make_jaxpr(fn)(x))

    assert not pinned(collectives.shard_examples, x) and collectives.mesh_size() == 1
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert collectives.mesh_size() == 8
        assert pinned(collectives.shard_examples, x)
        assert pinned(jax.vmap(collectives.shard_examples), jnp.ones((2, 16, 3)))  # several seeds
        assert not pinned(collectives.shard_examples, jnp.ones((12, 3)))  # does not divide
        manual = jax.shard_map(
            collectives.shard_examples, in_specs=jax.P(("data", "fsdp")), out_specs=jax.P(("data", "fsdp"))
        )
        assert not pinned(manual, x)  # each device already has its own rows


def test_the_chosen_implementation_depends_on_the_logits_per_device():
    from xmodal_jax.losses.contrastive import AUTO_GLOBAL_LOGITS, choose_implementation

    choose = lambda batch_size: choose_implementation("auto", batch_size)
    size = int(AUTO_GLOBAL_LOGITS**0.5)
    assert choose(size) == "global" and choose(2 * size) == "tiled"
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert choose(2 * size) == "global" and choose(4 * size) == "tiled"
