"""Three ways to run the same step: ``jit`` on one device, ``pmap`` over devices, ``sharded`` over a mesh.

All three compute the same loss and gradients for the same global batch and key. An `Engine` hides how state and
batches lie on the devices: the loop hands it host arrays and gets host arrays back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Mode = Literal["jit", "pmap", "sharded"]

AXIS = "data"
"""Name of the axis that the batch is split over."""

MIN_SHARDED_SIZE = 2**12
"""Arrays with fewer elements stay whole on every device: gathering them costs more than it saves."""


class Engine(NamedTuple):
    """Where a program's state and batches live, and how its steps run."""

    mode: Mode
    devices: int
    init: Callable[[Any, Any], Any]
    """``init(seed_key, batch) -> state``, laid out on the devices."""
    run: Callable[[Any, Any, Any], tuple[Any, Any]]
    """``run(state, resident, xs) -> (state, metrics)``: as many steps as ``xs`` has entries along its first axis, in
    one program; the state is donated. ``metrics`` leaves have shape ``[K, ...]``."""
    put: Callable[[Any], Any]
    """Host arrays ``[K, B, ...]`` (this process's rows) to devices."""
    put_resident: Callable[[Any], Any]
    """A whole data set to every device."""
    fetch: Callable[[Any], Any]
    """The state with one (possibly sharded) copy of each array: for evaluation and checkpoints."""
    place: Callable[[Any], Any]
    """The inverse of fetch."""
    abstract: Callable[[Any, Any], Any]
    """Shapes and shardings that a checkpoint is restored to: ``abstract(seed_key, batch)``, in fetch's layout."""


def draw_batch(resident, x):
    """The batch of one step: rows of the resident data set, or ``x`` itself where the data comes from the host."""
    if resident is None:
        return x
    batch = jax.tree.map(lambda a: jnp.take(a, x["row"], axis=0), resident)
    return {**batch, "index": x["index"]}


def _steps(step: Callable) -> Callable:
    """K steps in one program. A single step runs without `lax.scan`, whose loop can cost on some platforms."""

    def run(state, resident, xs):
        body = lambda state, x: step(state, draw_batch(resident, x))
        if jax.tree.leaves(xs)[0].shape[0] == 1:
            state, metrics = body(state, jax.tree.map(lambda x: x[0], xs))
            return state, jax.tree.map(lambda m: jnp.asarray(m)[None], metrics)
        return jax.lax.scan(body, state, xs)

    return run


def make_engine(
    mode: Mode,
    init: Callable,
    make_step: Callable,
    *,
    fsdp: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Engine:
    """An engine for ``init(key, batch) -> state`` and ``make_step(axis_name) -> step``.

    ``fsdp``: over how many devices each large array of the state is split in the sharded mode (it must divide the
    number of devices; the rest is data parallelism). ``devices``: those to use, all of them by default.
    """
    if fsdp != 1 and mode != "sharded":
        raise ValueError(f"fsdp={fsdp} needs parallel='sharded', got {mode!r}")
    if mode == "jit":
        return _jit(init, make_step(None))
    if mode == "pmap":
        return _pmap(init, make_step(AXIS), devices)
    if mode == "sharded":
        return _sharded(init, make_step(None), make_mesh(fsdp, devices))
    raise ValueError(f"parallel must be jit, pmap or sharded, got {mode!r}")


def _jit(init, step) -> Engine:
    if jax.process_count() > 1:
        raise ValueError("parallel='jit' runs on one device; with several processes choose pmap or sharded")
    same = lambda tree: tree
    return Engine(
        mode="jit",
        devices=1,
        init=jax.jit(init),
        run=jax.jit(_steps(step), donate_argnums=0),
        put=jax.device_put,
        put_resident=jax.device_put,
        fetch=same,
        place=jax.device_put,
        abstract=lambda key, batch: jax.eval_shape(init, key, batch),
    )


def _pmap(init, step, chosen) -> Engine:
    devices = jax.local_device_count() if chosen is None else len(chosen)
    run = jax.pmap(_steps(step), axis_name=AXIS, in_axes=(0, None, 1), donate_argnums=0, devices=chosen)

    def put(xs):
        def split(x):
            if x.shape[1] % devices:
                raise ValueError(
                    f"the batch of {x.shape[1]} does not divide by the {devices} devices of pmap"
                )
            return x.reshape(x.shape[0], devices, x.shape[1] // devices, *x.shape[2:])

        return jax.tree.map(split, xs)

    def first(tree):
        return jax.tree.map(lambda x: x.addressable_shards[0].data.reshape(x.shape[1:]), tree)

    def run_first(state, resident, xs):
        state, metrics = run(state, resident, xs)
        return state, first(metrics)

    replicate = jax.pmap(lambda tree, _: tree, in_axes=(None, 0), devices=chosen)
    place = lambda tree: replicate(tree, np.zeros(devices, np.int8))
    compute_init = jax.jit(init)
    return Engine(
        mode="pmap",
        devices=devices * jax.process_count(),
        init=lambda key, batch: place(compute_init(key, batch)),
        run=run_first,
        put=put,
        put_resident=jax.device_put,
        fetch=first,
        place=place,
        abstract=lambda key, batch: jax.eval_shape(init, key, batch),
    )


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (all by default) as a mesh ``data x fsdp``."""
    count = jax.device_count() if devices is None else len(devices)
    if count % fsdp:
        raise ValueError(f"fsdp={fsdp} does not divide the {count} devices")
    shape, kinds = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (AXIS, "fsdp"), axis_types=kinds, devices=devices)


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How one array of the state is split: its largest axis that divides by ``fsdp``, if it is large enough at all."""
    if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    fitting = [axis for axis in range(len(shape)) if shape[axis] % fsdp == 0]
    if not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda a: shape[a])
    return PartitionSpec(*(("fsdp" if a == axis else None) for a in range(len(shape))))


def _sharded(init, step, mesh: Mesh) -> Engine:
    fsdp = mesh.shape["fsdp"]
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(None, (AXIS, "fsdp")))
    layout = lambda tree: jax.tree.map(lambda x: NamedSharding(mesh, leaf_spec(x.shape, fsdp)), tree)

    def init_sharded(key, batch):
        # Laid out by the compiler from the start: no device ever holds the whole state.
        return jax.jit(init, out_shardings=layout(jax.eval_shape(init, key, batch)))(key, batch)

    def constrained(state, resident, xs):
        shardings = layout(state)
        state, metrics = _steps(step)(state, resident, xs)
        return jax.lax.with_sharding_constraint(state, shardings), metrics

    def put(xs):
        def split(x):
            if (x.shape[1] * jax.process_count()) % mesh.size:
                raise ValueError(
                    f"the batch of {x.shape[1]} does not divide by the {mesh.size} devices of the mesh"
                )
            return jax.make_array_from_process_local_data(rows, np.asarray(x))

        return jax.tree.map(split, xs)

    def abstract(key, batch):
        shapes = jax.eval_shape(init, key, batch)
        as_struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(as_struct, shapes, layout(shapes))

    return Engine(
        mode="sharded",
        devices=mesh.size,
        init=init_sharded,
        run=jax.jit(constrained, donate_argnums=0),
        put=put,
        put_resident=lambda tree: jax.device_put(tree, whole),
        fetch=lambda tree: tree,
        place=lambda tree: jax.device_put(tree, layout(tree)),
        abstract=abstract,
    )
