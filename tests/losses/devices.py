"""The same losses on one device, and split over several by pmap and by shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

MODES = ("pmap", "shard_map")
LAYOUTS = [(8, "pmap"), (2, "shard_map")]
"""Devices and mode: each mode once, with many devices and with two, where each has one neighbour in the ring."""


def values_and_gradients(losses, split, shared, devices=1, mode="pmap"):
    """``{name: (value, gradients)}`` for ``losses``, a dict of ``f(split, shared, axis_name) -> share``.

    ``split`` and ``shared`` are dicts of arrays; gradients are for the floating ones. A gradient of
    ``shared`` is summed over devices.
    """
    floats = lambda tree: {k: v for k, v in tree.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def every(split, shared, axis_name):
        def one(loss):
            def of(fs, fr):
                share = loss({**split, **fs}, {**shared, **fr}, axis_name)
                return jax.lax.psum(share, axis_name) if mode == "shard_map" and axis_name else share

            return of

        return {
            k: jax.value_and_grad(one(f), (0, 1))(floats(split), floats(shared)) for k, f in losses.items()
        }

    if devices == 1:
        return jax.jit(lambda s, r: every(s, r, None))(split, shared)
    if mode == "pmap":
        parts = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in split.items()}
        out = jax.pmap(
            lambda s, r: every(s, r, "data"),
            axis_name="data",
            in_axes=(0, None),
            devices=jax.devices()[:devices],
        )(parts, shared)
        join = lambda g: {k: v.reshape(-1, *v.shape[2:]) for k, v in g.items()}
        total = lambda g: {k: v.sum(0) for k, v in g.items()}
        return {k: (v.sum(), (join(gs), total(gr))) for k, (v, (gs, gr)) in out.items()}
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    data, none = PartitionSpec("data"), PartitionSpec()
    specs = {name: (none, (data, none)) for name in losses}
    # The gradient of a sum over devices, taken inside: shard_map itself sums what is owed to a shared array.
    mapped = jax.shard_map(
        lambda s, r: every(s, r, "data"), mesh=mesh, in_specs=(data, none), out_specs=specs
    )
    return jax.jit(mapped)(split, shared)


def assert_same(got, want, rtol=1e-5):
    """Every value and gradient, relative to its largest element."""
    for name in want:
        jax.tree.map(
            lambda x, y, name=name: np.testing.assert_allclose(
                x, y, rtol=0, atol=rtol * max(float(np.abs(y).max()), 1e-3), err_msg=name
            ),
            got[name],
            want[name],
        )
