"""Three ways to run the same step: ``jit`` on one device, ``pmap`` over devices, ``sharded`` over a mesh.

All three compute the same loss and gradients for the same global batch and key, in one process or in several. An
`Engine` hides how state and batches are laid out on the devices: its caller passes host arrays and gets host arrays.

Several seeds train at once as a leading axis of the state, in all three modes (see `over_seeds`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from xmodal_jax.core.runtime import jit_once

Mode = Literal["jit", "pmap", "sharded"]
SeedsForm = Literal["auto", "vmap", "map"]

AXIS = "data"
"""Name of the axis of devices that the batch is split over."""

MIN_SHARDED_SIZE = 2**12
"""Arrays with fewer elements are not split over devices (fsdp): gathering them would cost more than it saves."""

MAX_VMAPPED_SIZE = 2**18
"""On the CPU, seeds whose state has more elements than this train one after the other inside the step."""


class DeviceData(NamedTuple):
    """The arrays on the devices that every step reads and none changes: data set and frozen parameters."""

    data: Any = None
    """A whole data set (see ``Engine.put_resident``); None: batches come from the host."""
    frozen: Any = None
    """Parameters of frozen networks (see ``Engine.put_frozen``); None: there are none."""


class Engine(NamedTuple):
    """The programs of a training in one mode: initialisation, steps, and how state and batches get to the devices."""

    mode: Mode
    devices: int
    """Number of devices that the batch is split over, of all processes together."""
    local_devices: int
    """Number of these devices that belong to this process."""
    seeds: int | None
    """Length of the state's leading axis, which is that of seeds; None: one seed, and no such axis."""
    init: Callable[[Any, Any], Any]
    """``init(seed_key, batch) -> state``, on the devices; with seeds ``seed_key`` is a key array ``[N]``."""
    run: Callable[[Any, Any, Any], tuple[Any, Any]]
    """``run(state, device_data, scan_inputs) -> (state, metrics)``: K steps in one compiled call. ``scan_inputs`` holds
    the inputs of the steps along its first axis (see `draw_batch`). ``device_data``: a `DeviceData`, or None for an
    empty one. The state is donated. The arrays of ``metrics`` have shape ``[K, ...]``, with seeds ``[K, N, ...]``."""
    needed_memory: Callable[[Any, Any, Any], int]
    """``needed_memory(state, device_data, scan_inputs)``: the bytes that each device needs for ``run``, by the compiled
    program."""
    put: Callable[[Any], Any]
    """Copies the inputs of K steps ``[K, B, ...]`` (with seeds ``[K, N, B, ...]``) from the host to the devices; B is
    the size of this process's part of the batch."""
    put_resident: Callable[[Any], Any]
    """Copies a whole data set, the same in every process, from the host to every device."""
    put_frozen: Callable[[Any], Any]
    """Copies parameters of frozen networks from the host to the devices; ``fsdp`` splits them as it does the state."""
    fetch: Callable[[Any], Any]
    """The state with one (possibly sharded) copy of each array, for evaluation and checkpoints."""
    put_state: Callable[[Any], Any]
    """The inverse of ``fetch``: a state from a checkpoint, laid out for ``run``."""
    abstract: Callable[[Any, Any], Any]
    """``abstract(seed_key, batch)``: shapes and shardings of the state as ``fetch`` returns it, to restore a checkpoint
    to."""


def draw_batch(data, step_input):
    """The batch of one step.

    Without ``data`` it is ``step_input`` itself. With a data set on the devices, ``step_input`` has the numbers of the
    examples to take: ``{"row": int [B], "index": int [B]}``, in the data set and in the stream of all examples drawn.
    """
    if data is None:
        return step_input
    batch = jax.tree.map(lambda field: jnp.take(field, step_input["row"], axis=0), data)
    return {**batch, "index": step_input["index"]}


def over_seeds(
    step: Callable, strategy: SeedsForm = "auto", frozen_by_seed: Collection[str] = ()
) -> Callable:
    """Vectorises ``step(state, device_data, inputs)`` over seeds, the first axis of the arrays of ``state`` and of
    ``inputs``; all seeds share ``device_data``, except for the frozen networks with a name in ``frozen_by_seed``, whose
    arrays have an axis of seeds as well.

    ``strategy``: "vmap" runs the operations of all seeds together, "map" one seed after the other in the same program;
    the results are the same. "auto" takes "vmap", except on the CPU for large states (`MAX_VMAPPED_SIZE`), where the
    operations of one seed occupy the whole machine and several at once only exceed its cache (see benchmarks/seeds.py).
    """

    def run(state, device_data, inputs):
        """One step of all seeds."""
        elements_per_seed = sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(state))
        one_by_one = strategy == "map" or (
            strategy == "auto" and jax.default_backend() == "cpu" and elements_per_seed > MAX_VMAPPED_SIZE
        )
        seed_frozen = {name: device_data.frozen[name] for name in frozen_by_seed}

        def step_of_seed(state, seed_frozen, inputs):
            """The step of one seed."""
            if not seed_frozen:
                return step(state, device_data, inputs)
            return step(state, device_data._replace(frozen={**device_data.frozen, **seed_frozen}), inputs)

        if one_by_one:
            return jax.lax.map(lambda seed: step_of_seed(*seed), (state, seed_frozen, inputs))
        return jax.vmap(step_of_seed)(state, seed_frozen, inputs)

    return run


def _steps(step: Callable) -> Callable:
    """``run(state, device_data, scan_inputs) -> (state, metrics)``, which makes K steps by ``step``. The arrays of
    ``scan_inputs`` and ``metrics`` are ``[K, ...]``."""

    def run(state, device_data, scan_inputs):
        """K steps in one program."""
        one_step = lambda state, step_input: step(state, device_data, step_input)
        if jax.tree.leaves(scan_inputs)[0].shape[0] == 1:
            # A single step runs without `lax.scan`, whose loop is slow on some platforms.
            state, metrics = one_step(state, jax.tree.map(lambda x: x[0], scan_inputs))
            return state, jax.tree.map(lambda m: jnp.asarray(m)[None], metrics)
        return jax.lax.scan(one_step, state, scan_inputs)

    return run


def make_engine(
    mode: Mode,
    init: Callable,
    make_step: Callable,
    *,
    fsdp: int = 1,
    seeds: int | None = None,
    seeds_form: SeedsForm = "auto",
    devices: Sequence[jax.Device] | None = None,
    frozen_by_seed: Collection[str] = (),
) -> Engine:
    """An engine for ``init(key, batch) -> state`` and ``make_step(axis_name) -> step(state, batch)``; with frozen
    parameters ``step(state, batch, frozen)``.

    Args:
      fsdp: in the mode "sharded", the number of devices over which each large array of the state is split. It must
        divide the number of devices; the rest is data parallelism.
      seeds: number of seeds to train at once; None: one, and a state without an axis of seeds.
      seeds_form: see `over_seeds`.
      devices: the devices to use; None: all.
      frozen_by_seed: see `over_seeds`.

    Raises:
      ValueError: the mode is unknown, or ``fsdp`` or the number of processes does not suit it.
    """
    if fsdp != 1 and mode != "sharded":
        raise ValueError(f"fsdp={fsdp} needs parallel='sharded', got {mode!r}")

    def make_run(axis):
        """`Engine.run` before compilation. ``axis``: name of the axis of devices that each device sums its losses over;
        None: one program for the whole batch, which the compiler may split."""
        step = make_step(axis)

        def draw_and_step(state, device_data, step_input):
            data, frozen = DeviceData() if device_data is None else device_data
            batch = draw_batch(data, step_input)
            return step(state, batch) if frozen is None else step(state, batch, frozen)

        if seeds is None:
            return _steps(draw_and_step)
        return _steps(over_seeds(draw_and_step, seeds_form, frozen_by_seed))

    if seeds is not None:
        init = jax.vmap(init, in_axes=(0, None))
    if mode == "jit":
        return _jit(init, make_run(None), seeds)
    if mode == "pmap":
        return _pmap(init, make_run(AXIS), seeds, devices)
    if mode == "sharded":
        return _sharded(init, make_run(None), seeds, make_mesh(fsdp, devices))
    raise ValueError(f"parallel must be jit, pmap or sharded, got {mode!r}")


def _batch_axis(seeds: int | None) -> int:
    """The axis of examples in the inputs of `Engine.run`: ``[K, B, ...]``, with several seeds ``[K, N, B, ...]``."""
    return 1 if seeds is None else 2


def _needed_memory(run: Callable) -> Callable[..., int]:
    """A function of the same arguments as ``run``, which is jitted or pmapped: the bytes that its program needs on each
    device. The program is compiled for that, and the later call of ``run`` uses it."""

    def needed_memory(*args):
        analysis = run.lower(*args).compile().memory_analysis()
        sizes = analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.temp_size_in_bytes
        # Donated arguments share memory with outputs: those bytes count once.
        return sum(sizes) - analysis.alias_size_in_bytes

    return needed_memory


def _jit(init, run, seeds) -> Engine:
    """The engine for one device. ``init`` and ``run``: see `Engine`, before compilation."""
    if jax.process_count() > 1:
        raise ValueError(
            f"--parallel jit runs on one device, and there are {jax.process_count()} processes: choose "
            "--parallel pmap or sharded"
        )
    identity = lambda tree: tree
    run = jax.jit(run, donate_argnums=0)
    # The state is bound to its device from the start, as a restored one is: else a resumed run would compile the step
    # twice, once for the restored arrays beside the unbound ones of the host, once for those that it returns.
    device = jax.local_devices()[0]
    return Engine(
        mode="jit",
        devices=1,
        local_devices=1,
        seeds=seeds,
        init=jit_once(init, out_shardings=SingleDeviceSharding(device)),
        run=run,
        needed_memory=_needed_memory(run),
        put=jax.device_put,
        put_resident=jax.device_put,
        put_frozen=jax.device_put,
        fetch=identity,
        put_state=lambda tree: jax.device_put(tree, device),
        abstract=lambda key, batch: jax.eval_shape(init, key, batch),
    )


def _pmap(init, run, seeds, devices) -> Engine:
    """The engine for data parallelism by `jax.pmap`: every device has a copy of the state and a part of the batch.

    ``init`` and ``run``: see `Engine`, before compilation. On the devices the state has a leading axis of copies, one
    per device; outside of the engine it has none.
    """
    axis = _batch_axis(seeds)
    local = jax.local_devices() if devices is None else list(devices)
    replicated = NamedSharding(
        Mesh(np.array(jax.devices() if devices is None else local), AXIS), PartitionSpec()
    )
    # pmap maps over the copies of the state and of the device data, and over the devices' parts of the batch.
    run = jax.pmap(run, axis_name=AXIS, in_axes=(0, 0, axis), donate_argnums=0, devices=devices)

    def put(scan_inputs):
        """Splits the batch over the devices: ``[..., B, ...]`` to ``[..., devices, B / devices, ...]``."""

        def split(x):
            """One array of the batch: each device gets a contiguous piece."""
            if x.shape[axis] % len(local):
                raise ValueError(
                    f"the batch of {x.shape[axis]} does not divide by the {len(local)} devices of pmap"
                )
            return x.reshape(*x.shape[:axis], len(local), x.shape[axis] // len(local), *x.shape[axis + 1 :])

        return jax.tree.map(split, scan_inputs)

    # A device's shard is [1, ...]. All arrays in one program: one for each array would take seconds to compile.
    drop_copy_axis = jax.jit(lambda tree: jax.tree.map(lambda x: x.reshape(x.shape[1:]), tree))

    def take_copy(tree, k):
        """The copy on device ``k`` of this process, without the axis of copies."""
        return drop_copy_axis(jax.tree.map(lambda x: x.addressable_shards[k].data, tree))

    def fetch(tree):
        """Arrays without the axis of copies, replicated over all devices (of all processes), from their equal
        copies."""
        join = lambda *copies: jax.make_array_from_single_device_arrays(
            copies[0].shape, replicated, list(copies)
        )
        return jax.tree.map(join, *(take_copy(tree, k) for k in range(len(local))))

    def run_and_read(state, device_data, scan_inputs):
        """The steps on all devices; the metrics are equal there, and the first device's are returned."""
        state, metrics = run(state, device_data, scan_inputs)
        return state, take_copy(metrics, k=0)

    # pmap needs an argument with an axis of devices: the zeros, which are not used.
    broadcast = jax.pmap(lambda tree, _: tree, in_axes=(None, 0), devices=devices)
    placed = np.zeros(len(local), np.int8)
    # Over several processes pmap cannot return nothing: there may be no frozen parameters.
    replicate = lambda tree: broadcast(tree, placed) if jax.tree.leaves(tree) else tree
    compute_init = jit_once(init)

    def abstract(key, batch):
        """Shapes of the state as `fetch` returns it."""
        as_struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)
        return jax.tree.map(as_struct, jax.eval_shape(init, key, batch))

    return Engine(
        mode="pmap",
        devices=replicated.mesh.size,
        local_devices=len(local),
        seeds=seeds,
        init=lambda key, batch: replicate(compute_init(key, batch)),
        run=run_and_read,
        needed_memory=_needed_memory(run),
        put=put,
        put_resident=replicate,
        put_frozen=replicate,
        fetch=fetch,
        put_state=lambda tree: replicate(jax.tree.map(lambda x: x.addressable_shards[0].data, tree)),
        abstract=abstract,
    )


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (None: all) as a mesh with the axes "data" and "fsdp", the latter of length ``fsdp``.

    Raises:
      ValueError: ``fsdp`` does not divide the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if count % fsdp:
        raise ValueError(f"fsdp={fsdp} does not divide the {count} devices")
    shape, kinds = (count // fsdp, fsdp), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, (AXIS, "fsdp"), axis_types=kinds, devices=devices)


def leaf_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How an array of the state is split over the mesh axis "fsdp" of length ``fsdp``: along the largest of its axes
    that this length divides. Small arrays (`MIN_SHARDED_SIZE`) and those without such an axis are not split."""
    if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    fitting = [axis for axis in range(len(shape)) if shape[axis] % fsdp == 0]
    if not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda a: shape[a])
    return PartitionSpec(*(("fsdp" if a == axis else None) for a in range(len(shape))))


def state_layout(tree: Any, mesh: Mesh, seeds: int | None = None) -> Any:
    """The sharding of every array of a state, by `leaf_spec`. With ``seeds`` the first axis is that of the seeds, which
    is not split."""
    fsdp = mesh.shape["fsdp"]

    def sharding(x):
        if seeds is None:
            return NamedSharding(mesh, leaf_spec(x.shape, fsdp))
        return NamedSharding(mesh, PartitionSpec(None, *leaf_spec(x.shape[1:], fsdp)))

    return jax.tree.map(sharding, tree)


def _sharded(init, run, seeds, mesh: Mesh) -> Engine:
    """The engine for a mesh: the compiler splits the batch over all devices, and the state over the axis "fsdp".

    ``init`` and ``run``: see `Engine`, before compilation.
    """
    axis = _batch_axis(seeds)
    replicated = NamedSharding(mesh, PartitionSpec())
    batch_sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, mesh.axis_names))
    layout = lambda tree: state_layout(tree, mesh, seeds)

    def init_sharded(key, batch):
        # Laid out by the compiler from the start, so that no device ever holds the whole state.
        return jit_once(init, out_shardings=layout(jax.eval_shape(init, key, batch)))(key, batch)

    def constrained(state, device_data, scan_inputs):
        """``run`` with the new state laid out as the old one, so that the next call takes it as it is."""
        shardings = layout(state)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for core.collectives.shard_examples
            state, metrics = run(state, device_data, scan_inputs)
        constrain = jax.lax.with_sharding_constraint
        return constrain(state, shardings), constrain(metrics, replicated)

    run_jitted = jax.jit(constrained, donate_argnums=0)

    def put(scan_inputs):
        """Splits the batch of every array over all devices of the mesh."""

        def split(x):
            """One array: this process's part of the batch becomes a part of the global array."""
            if (x.shape[axis] * jax.process_count()) % mesh.size:
                raise ValueError(
                    f"the batch of {x.shape[axis] * jax.process_count()} does not divide by the {mesh.size} "
                    "devices of the mesh"
                )
            return jax.make_array_from_process_local_data(batch_sharding, np.asarray(x))

        return jax.tree.map(split, scan_inputs)

    def put_whole(x):
        """A copy of an array, which every process has whole, on each device."""
        return jax.make_array_from_callback(x.shape, replicated, lambda index: x[index])

    def abstract(key, batch):
        """Shapes and shardings of the state."""
        shapes = jax.eval_shape(init, key, batch)
        as_struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
        return jax.tree.map(as_struct, shapes, layout(shapes))

    return Engine(
        mode="sharded",
        devices=mesh.size,
        local_devices=len(mesh.local_devices),
        seeds=seeds,
        init=init_sharded,
        run=run_jitted,
        needed_memory=_needed_memory(run_jitted),
        put=put,
        put_resident=lambda tree: jax.tree.map(put_whole, tree),
        put_frozen=lambda tree: jax.device_put(tree, state_layout(tree, mesh)),
        fetch=lambda tree: tree,
        put_state=lambda tree: jax.device_put(tree, layout(tree)),
        abstract=abstract,
    )
