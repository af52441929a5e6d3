"""Checkpoints with Orbax: the state, the position in the data and what else a run needs to resume exactly.

The entry ``meta`` of every checkpoint is JSON: the run's metadata, and the name, shape, type and digest of each array
in the state. They distinguish a checkpoint of another model from a damaged one, and reveal an array whose bits have
changed on the disk. The metadata have a digest of their own (`seal`). Every reader verifies both.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested
from xmodal_jax.core.runtime import jit_once
from xmodal_jax.models import lora
from xmodal_jax.pretrained.safetensors_files import read_header, write_safetensors

FROZEN_FILE = "frozen.safetensors"
"""Beside the checkpoints: the parameters of frozen networks, which all of a run's checkpoints share."""


class CheckpointMismatch(ValueError):
    """A checkpoint is readable but belongs to another model, optimizer or number of seeds."""


class DamagedCheckpoint(ValueError):
    """A checkpoint cannot be read, or holds other content than was written."""


class RestoredCheckpoint(NamedTuple):
    """The trained parameters of a run, and the metadata to use them."""

    params: Any
    """The parameters to evaluate: their exponential moving average where the run has one. Of a GAN a dict of both
    players' parameters and the other arrays that `types.GAN.predict` takes."""
    metadata: dict
    """The metadata stored beside them: ``config``, ``tokenizer`` (file name to content), ``step``, …"""
    step: int
    """Number of training steps taken."""


class Checkpoints:
    """The checkpoints of one run: the ``keep`` newest and the best by ``best_metric``, written in the background.

    With several processes all of them call every method, and all of them see the directory.
    """

    def __init__(self, directory: pathlib.Path | str, *, keep: int = 2, best_metric: str | None = None):
        """``keep``: number of newest checkpoints to keep. ``best_metric``: name of the metric of `save_best`; None: no
        best checkpoint is kept."""
        self.directory = pathlib.Path(directory).absolute()
        self.best_metric = best_metric
        self._newest = self._manager("newest", keep)
        self._best = self._manager("best", keep=1) if best_metric else None
        self._best_value = None
        """Score of the best checkpoint so far; None: there is none."""
        # A resumed run goes on from the score of its best checkpoint. One that cannot be read is moved away.
        while self._best is not None and (step := self._best.latest_step()) is not None:
            try:
                self._best_value = _read_metadata(self._best, step)["best_value"]
                break
            except Exception as error:  # Orbax raises many types for a damaged file
                self._set_aside(self._best, step, error)

    def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
        """Orbax's manager of the checkpoints in the folder ``name``; it keeps the ``keep`` newest."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
        )
        return ocp.CheckpointManager(self.directory / name, options=options)

    def save(self, step: int, state: Any, metadata: dict) -> None:
        """Writes ``state`` (as `Engine.fetch` returns it) and ``metadata`` (JSON-able), in the background."""
        if self._newest.latest_step() == step:
            return  # already saved: Orbax refuses to save a step twice
        self.wait()  # one at a time: otherwise processes could meet at the barriers of different checkpoints
        self._newest.save(step, args=_args(state, metadata))

    def save_best(self, step: int, state: Any, metadata: dict, value: float) -> bool:
        """Writes ``state`` if its score ``value`` (higher is better) exceeds the best score so far; returns whether it
        does."""
        if self._best is None or (self._best_value is not None and value <= self._best_value):
            return False
        self._best_value = value
        if self._best.latest_step() != step:  # Orbax refuses to save a step twice
            self.wait()
            self._best.save(step, args=_args(state, {**metadata, "best_value": value}))
        return True

    def save_frozen(self, frozen: Any) -> None:
        """Writes the parameters of frozen networks to one file that all checkpoints share.

        The caller stores ``describe(frozen)`` as ``metadata["frozen"]`` in every checkpoint, to verify the file.
        """
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            arrays = ((name, np.asarray(leaf)) for name, leaf in trees.flat(frozen).items())
            write_safetensors(self.directory / FROZEN_FILE, arrays)

    def restore(self, abstract: Any, *, best: bool = False) -> tuple[Any, dict] | None:
        """The newest (or best) readable checkpoint as ``(state, metadata)``; None where there is none.

        A checkpoint that cannot be read, or whose arrays differ from those that were written, is reported and moved to
        ``damaged/``, and the one before is used; after the last of the newest ones, the best one, from which a run
        goes on as well.

        Args:
          abstract: shapes, types and shardings of the state, as `Engine.abstract` returns them.
          best: whether to take the best checkpoint, not the newest.

        Raises:
          CheckpointMismatch: a checkpoint is sound, but its arrays are not those of ``abstract``. It is not moved.
        """
        managers = [
            manager for manager in ([] if best else [self._newest]) + [self._best] if manager is not None
        ]
        candidates = [(m, step) for m in managers for step in sorted(m.all_steps(), reverse=True)]
        for manager, step in candidates:
            restored, error = None, None
            try:
                restored = self._read(manager, step, abstract)
            except CheckpointMismatch:
                raise
            except Exception as e:  # Orbax raises many types for a damaged file
                error = e
            # All processes must restore the same step: where one cannot read it, none uses it.
            if _all_processes(error is None):
                if manager is self._best and not best and jax.process_index() == 0:
                    newest = self.directory / "newest"
                    print(
                        f"note: {newest} holds no checkpoint that can be used; taking the best one, of step {step}",
                        file=sys.stderr,
                    )
                return restored
            self._set_aside(manager, step, error)
        return None

    def _read(self, manager, step: int, abstract: Any) -> tuple[Any, dict]:
        """``(state, metadata)`` of one checkpoint, with its arrays checked against their digests.

        Raises:
          CheckpointMismatch: the arrays have other names, shapes or types than ``abstract``.
          DamagedCheckpoint: the metadata or an array hold other bits than were written.
        """
        metadata = _read_metadata(manager, step)
        stored_as = _abstract_data(abstract)  # with random keys as integers
        _check_arrays(metadata["arrays"], stored_as, pathlib.Path(manager.directory) / str(step))
        target = jax.tree.map(_as_struct, stored_as)
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        state = restored["state"]
        _verify_arrays(state, metadata["arrays"])
        return _data_to_keys(state, abstract), metadata

    def _set_aside(self, manager, step: int, error: Exception | None) -> None:
        """Reports a checkpoint that cannot be read, and moves it to ``damaged/``."""
        source = pathlib.Path(manager.directory) / str(step)
        target = self.directory / "damaged" / f"{source.parent.name}-{step}"
        reason = "another process could not read it" if error is None else _reason(error)
        if jax.process_index() == 0:
            print(f"checkpoint {source} cannot be read ({reason}); set aside as {target}", file=sys.stderr)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            source.rename(target)
        _all_processes(True)  # a barrier: no process goes on before process 0 has moved the checkpoint
        manager.reload()

    def wait(self) -> None:
        """Blocks until every checkpoint is on disk."""
        for manager in (self._newest, self._best):
            if manager is not None:
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every checkpoint is on disk, and releases Orbax's managers."""
        self.wait()
        for manager in (self._newest, self._best):
            if manager is not None:
                manager.close()


def restore_run(
    directory: pathlib.Path | str, *, best: bool = False, seed: int | None = None
) -> RestoredCheckpoint:
    """The trained parameters of a run's newest (or best) checkpoint, on one device, also if the run used several.

    It works for every method, and reads the parameters without the state of the optimizer. If the newest checkpoint is
    damaged, the one before it is used, and a line on stderr says so. Nothing in the run's directory is changed.

    Args:
      directory: the run's directory, or the folder ``checkpoints`` in it.
      best: whether to take the best checkpoint by validation, not the newest.
      seed: the seed whose parameters to take; needed where the run has several (``--seeds``).

    Raises:
      FileNotFoundError: there is no checkpoint.
      DamagedCheckpoint: there is none that holds what was written.
      ValueError: the run has not trained this seed, or has several and ``seed`` is None.

    Example::

        run = restore_run("runs/contrastive-20250131-101500")
        model = from_json(ContrastiveConfig, run.metadata["config"]["model"])
        method = make_contrastive(model, run.metadata["modalities"], vocab_size=...)
        embeddings = method.predict(run.params, batch)
    """
    folder, metadata, params = _read_first_sound(checkpoint_folders(directory, best=best), best=best)
    frozen = _read_frozen(folder.parent.parent, metadata)
    seeds = metadata.get("seeds", [])
    if len(seeds) > 1:
        if seed not in seeds:
            raise ValueError(
                f"{folder} holds the seeds {seeds}: name one of them as seed, got {seed}; a flag that names no seed "
                "takes a run of one (--seeds 1)"
            )
        # The first axis of every array is that of the seeds.
        params = jax.tree.map(lambda x: x[seeds.index(seed)], params)
        if frozen is not None:
            frozen = frozen_of_seed(frozen, metadata.get("frozen_by_seed", ()), seeds.index(seed))
    elif seed is not None and seed not in seeds:
        raise ValueError(f"{folder} holds the seed {seeds}, not {seed}")
    if lora.ADAPTERS in params:  # low-rank adapters: add them to the weights, so that the network needs none
        params = lora.merge_adapters(*lora.split_adapters(params), lora.LoRA(**metadata["config"]["lora"]))
    if frozen is not None:
        params = {**params, "frozen": frozen}
    return RestoredCheckpoint(params, metadata, int(folder.name))


def _read_first_sound(
    folders: Sequence[pathlib.Path], *, best: bool
) -> tuple[pathlib.Path, dict[str, Any], dict[str, Any]]:
    """``(folder, metadata, parameters to evaluate)`` of the first of ``folders``, newest first, that is not damaged.

    ``best``: whether they hold the best checkpoint, for the message.

    Raises:
      DamagedCheckpoint: all are damaged.
    """
    reasons = []
    for number, folder in enumerate(folders):
        try:
            metadata = read_metadata(folder)
            params = _read_eval_params(folder, metadata["arrays"])
        except Exception as error:  # Orbax raises many types for a damaged file
            reasons.append(f"{folder} cannot be read ({_reason(error)})")
            continue
        if number:
            print(f"note: {'; '.join(reasons)}; using {folder}, the one before", file=sys.stderr)
        return folder, metadata, params
    other = "newest" if best else "best"
    has_other = any(folder.name.isdigit() for folder in (folders[0].parent.parent / other).glob("*"))
    advice = f"take the {other} checkpoint" if has_other else "restore the files from a copy"
    raise DamagedCheckpoint(f"{'; '.join(reasons)}; {advice}, or train again")


def _reason(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_eval_params(folder: pathlib.Path, arrays: Collection[str]) -> dict[str, Any]:
    """The parameters to evaluate from one checkpoint, on one device: their moving average where the state has one.

    ``arrays``: paths of the state's arrays, such as ``params/image/kernel``. Of a GAN's state the result has
    ``discriminator``, ``generator`` and ``variables``, as `types.GAN.predict` takes them.
    """
    fields = {path.split("/")[0] for path in arrays}
    name = "ema" if "ema" in fields else "params"
    params = read_state(folder, name)[name]
    if not any(path.startswith("params/discriminator/") for path in arrays):
        return params
    # A GAN's moving average has the generator's parameters only.
    both_networks = read_state(folder, "params")["params"]
    variables = read_state(folder, "variables")["variables"] if "variables" in fields else {}
    return {**both_networks, "variables": variables} | ({"generator": params} if name == "ema" else {})


def _read_frozen(directory: pathlib.Path, metadata: dict) -> dict[str, Any] | None:
    """The parameters of the frozen networks that a checkpoint with this metadata was trained with, verified by their
    digests; None where it has none. ``directory``: the one of the run's checkpoints."""
    if not metadata.get("frozen"):
        return None
    path = directory / FROZEN_FILE
    arrays = {name: jnp.asarray(entry.read()) for name, entry in read_header(path).items()}
    frozen = nested(arrays)
    if describe(frozen) != metadata["frozen"]:
        raise DamagedCheckpoint(
            f"{path} holds other bits than were written: it is damaged, or belongs to another run"
        )
    return frozen


def frozen_of_seed(frozen: Mapping[str, Any], own_names: Collection[str], number: int) -> dict[str, Any]:
    """The parameters of frozen networks that the seed of a number (from 0) uses: of the networks in ``own_names`` each
    seed has its own, whose arrays have a first axis of seeds."""
    return {
        name: jax.tree.map(lambda x: x[number], params) if name in own_names else params
        for name, params in frozen.items()
    }


def newest_checkpoint(directory: pathlib.Path | str, *, best: bool = False) -> pathlib.Path:
    """The folder of a run's newest (or best) checkpoint.

    Raises:
      FileNotFoundError: there is none.
    """
    return checkpoint_folders(directory, best=best)[0]


def checkpoint_folders(directory: pathlib.Path | str, *, best: bool = False) -> list[pathlib.Path]:
    """The folders of a run's newest checkpoints, the newest first; with ``best``, of the best one.

    ``directory``: the run's, or the folder ``checkpoints`` in it.

    Raises:
      FileNotFoundError: there is none.
    """
    run = pathlib.Path(directory).absolute()
    if not run.exists():
        raise FileNotFoundError(
            f"{run} does not exist; name the directory of a run that has saved a checkpoint"
        )
    root = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    root = root / ("best" if best else "newest")
    steps = sorted((int(p.name) for p in root.glob("*") if p.name.isdigit()), reverse=True)
    if not steps:
        kind = "best checkpoint" if best else "checkpoint"
        raise FileNotFoundError(f"{run} holds no {kind}; name the directory of a run that has saved one")
    return [root / str(step) for step in steps]


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """The metadata of the checkpoint in ``folder``, verified by their digest.

    Raises:
      DamagedCheckpoint: they are not what was written.
      FileNotFoundError: the checkpoint has none.
    """
    return unseal(json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8")))


def seal(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata (JSON-able) with a digest of them, as a checkpoint stores them; `unseal` verifies it."""
    return {"content": metadata, "sha256": _metadata_digest(metadata)}


def unseal(stored: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a checkpoint from what it stores. Checkpoints of earlier versions store them without a digest.

    Raises:
      DamagedCheckpoint: they are not what was written.
    """
    if isinstance(stored, dict) and isinstance(stored.get("arrays"), dict):
        return stored  # of an earlier version
    if not isinstance(stored, dict) or stored.keys() != {"content", "sha256"}:
        raise DamagedCheckpoint("its metadata hold other content than was written")
    if _metadata_digest(stored["content"]) != stored["sha256"]:
        raise DamagedCheckpoint("its metadata hold other content than was written")
    return stored["content"]


def _metadata_digest(metadata: Any) -> str:
    """The SHA-256 of the metadata as JSON with sorted keys, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def read_state(folder: pathlib.Path, *fields: str) -> dict[str, Any]:
    """Fields of the state in a checkpoint's ``folder``, such as "params" and "ema", as stored, on one device.

    Without ``fields``, all of them. Random keys are stored as integers.

    Raises:
      DamagedCheckpoint: an array or the metadata hold other bits than were written.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    reader = ocp.PyTreeCheckpointHandler()
    shapes = reader.metadata(folder / "state").tree
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        {name: shapes[name] for name in fields or shapes},
    )
    expected = {
        name: entry
        for name, entry in read_metadata(folder)["arrays"].items()
        if not fields or name.split("/")[0] in fields
    }
    # Before they are read: a damaged shape could ask for more memory than there is.
    stored_as = dict(
        zip(trees.leaf_names(target), map(_dtype_and_shape, jax.tree.leaves(target)), strict=True)
    )
    if stored_as != {name: entry.split(" ")[0] for name, entry in expected.items()}:
        raise DamagedCheckpoint("its arrays have other names, types or shapes than were written")
    read = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    state = reader.restore(folder / "state", args=read)
    _verify_arrays(state, expected)
    return state


def _verify_arrays(state: Any, expected: Mapping[str, str]) -> None:
    """Raises DamagedCheckpoint if an array of ``state`` holds other bits than were written.

    ``expected``: descriptions of the arrays, as `describe` returned them when the state was written.
    """
    descriptions = describe(state)
    changed = [name for name, entry in expected.items() if descriptions[name] != entry]
    if changed:
        raise DamagedCheckpoint(
            f"{changed[0]} holds other bits than were written ({len(changed)} arrays in all)"
        )


def describe(state: Any) -> dict[str, str]:
    """Type, shape and digest of each array by its path, such as ``"float32[3,4] 01234567"``."""
    state = _keys_to_data(state)
    leaves = jax.tree.leaves(state)
    # Small states that this process holds whole: the host needs no compilation.
    on_host = sum(x.nbytes for x in leaves) <= MAX_HOST_DIGEST_BYTES and all(
        getattr(x, "is_fully_addressable", True) for x in leaves
    )
    digests = [host_digest(np.asarray(x)) for x in leaves] if on_host else jax.device_get(_digests(leaves))
    return {
        name: f"{_dtype_and_shape(leaf)} {int(digest):08x}"
        for name, leaf, digest in zip(trees.leaf_names(state), leaves, digests, strict=True)
    }


def params_digest(params: Any) -> str:
    """32 hexadecimal digits that identify parameters: no others have the same."""
    return hashlib.sha256(json.dumps(describe(params), sort_keys=True).encode()).hexdigest()[:32]


def _digest(x):
    """The sum modulo 2^32 of a hash of each word and its index: the same however the array is laid out on devices.

    A word is an element of one or two bytes, or four bytes of a longer one; its index is that in row-major order. A
    permutation of the words changes the sum, because each is hashed with its index.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    width = jnp.dtype(x.dtype).itemsize
    # An 8-byte type gets another axis of length 2: each element is two words.
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32))
    words = words.astype(jnp.uint32)
    # The row-major index of each word: the sum over axes of (index along the axis) x (its stride), modulo 2^32.
    positions, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        positions = positions + jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )
        stride *= words.shape[axis]
    return jnp.sum(_mix(words, positions), dtype=jnp.uint32)


def _mix(words, positions):
    """A hash of each word and its position, both uint32 arrays of JAX or NumPy, by MurmurHash3's finaliser: two rounds
    of xor-shift and multiplication, with the constants of that hash."""
    mixed = words ^ (positions * np.uint32(0x9E3779B1) + np.uint32(0x85EBCA6B))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> 16)


_digests = jit_once(lambda leaves: [_digest(x) for x in leaves])

MAX_HOST_DIGEST_BYTES = 2**27
"""The host computes the digests of states up to this size, because it need not compile for that; devices compute those
of larger states."""


def host_digest(x: np.ndarray) -> int:
    """The same digest as `_digest`, computed with NumPy."""
    x = np.ascontiguousarray(x)
    words = x.reshape(-1).view({1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)).astype(np.uint32)
    return int(np.sum(_mix(words, np.arange(words.size, dtype=np.uint32)), dtype=np.uint32))


def _dtype_and_shape(leaf) -> str:
    return f"{jnp.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _check_arrays(descriptions: dict[str, str], abstract: Any, folder: pathlib.Path) -> None:
    """Raises CheckpointMismatch where a checkpoint's arrays have other names, types or shapes than ``abstract``.

    ``descriptions``: of the arrays in the checkpoint of ``folder``, as `describe` returns them.
    """
    expected = dict(
        zip(trees.leaf_names(abstract), map(_dtype_and_shape, jax.tree.leaves(abstract)), strict=True)
    )
    stored = {name: text.split(" ")[0] for name, text in descriptions.items()}  # without the digests
    lines = [
        f"  {name}: the checkpoint holds {stored.get(name, 'nothing')}, this run has "
        f"{expected.get(name, 'nothing')}"
        for name in dict.fromkeys([*expected, *stored])
        if expected.get(name) != stored.get(name)
    ]
    if lines:
        more = [f"  and {len(lines) - 5} more"] if len(lines) > 5 else []
        raise CheckpointMismatch(
            f"{folder} is of another model, optimizer or number of seeds. Resume with the flags of its config.json, "
            "or start anew with another --run-dir.\n" + "\n".join(lines[:5] + more)
        )


def _read_metadata(manager, step: int) -> dict:
    """The metadata of one of a manager's checkpoints, verified by their digest."""
    return unseal(manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])


def _all_processes(value: bool) -> bool:
    """Whether ``value`` is True in every process; all processes must call it, and wait for each other."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def _keys_to_data(tree):
    """Typed random keys as plain integers, which every version of Orbax can store."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def _data_to_keys(tree, like):
    """The inverse of `_keys_to_data`; ``like``: a tree with keys where the result has keys."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x, t: jax.random.wrap_key_data(x) if is_key(t) else x, tree, like)


def _args(state, metadata):
    """What Orbax writes: the state, and the metadata with a description of every array."""
    metadata = {**metadata, "arrays": describe(state)}
    return ocp.args.Composite(
        state=ocp.args.StandardSave(_keys_to_data(state)), meta=ocp.args.JsonSave(seal(metadata))
    )


def _abstract_data(abstract):
    """Shapes and types of a state as it is stored: with keys as integers."""

    def as_stored(x):
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(as_stored, abstract)


def _as_struct(x):
    """The shape and type of ``x`` with a sharding: its own, or the first device where it has none."""
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
