"""Checkpoints with Orbax: the state, the position in the data and what else a run needs to go on exactly."""

from __future__ import annotations

import pathlib
import shutil
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp


def _keys_to_data(tree):
    """Typed random keys as plain integers, which every Orbax version stores."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def _data_to_keys(tree, like):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x, t: jax.random.wrap_key_data(x) if is_key(t) else x, tree, like)


class Checkpoints:
    """The checkpoints of one run: the newest ``keep`` and the best by ``best_metric``, written in the background."""

    def __init__(self, directory: pathlib.Path | str, *, keep: int = 2, best_metric: str | None = None):
        self.directory = pathlib.Path(directory).absolute()
        self.best_metric = best_metric
        self._newest = self._manager("newest", keep)
        self._best = self._manager("best", 1) if best_metric else None
        self._best_value = None
        if self._best is not None and self._best.latest_step() is not None:
            step = self._best.latest_step()
            kept = self._best.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            self._best_value = kept["meta"]["best_value"]

    def _manager(self, name: str, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        return ocp.CheckpointManager(self.directory / name, options=options)

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Writes ``state`` (in the engine's fetched layout) and the JSON-able ``meta``, in the background."""
        if self._newest.latest_step() == step:
            return
        self._newest.save(step, args=_args(state, meta))

    def save_best(self, step: int, state: Any, meta: dict, value: float) -> bool:
        """Keeps ``state`` if ``value`` (higher is better) beats every one before; says whether it did."""
        if self._best is None or (self._best_value is not None and value <= self._best_value):
            return False
        self._best_value = value
        if self._best.latest_step() != step:
            self._best.save(step, args=_args(state, {**meta, "best_value": value}))
        return True

    def restore(self, abstract: Any, *, best: bool = False) -> tuple[Any, dict] | None:
        """The newest (or best) readable checkpoint as ``(state, meta)``, laid out as ``abstract``; None if none.

        One that cannot be read is reported, set aside under ``damaged/``, and the one before is used.
        """
        manager = self._best if best else self._newest
        if manager is None:
            return None
        for step in sorted(manager.all_steps(), reverse=True):
            target = jax.tree.map(_as_struct, _abstract_data(abstract))
            try:
                kept = manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
                    ),
                )
                return _data_to_keys(kept["state"], abstract), kept["meta"]
            except Exception as error:  # Orbax raises many kinds for a damaged file; each means: not usable.
                self._set_aside(manager, step, error)
        return None

    def _set_aside(self, manager, step: int, error: Exception) -> None:
        source = pathlib.Path(manager.directory) / str(step)
        target = self.directory / "damaged" / f"{source.parent.name}-{step}"
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        print(f"checkpoint {source} cannot be read ({reason}); set aside as {target}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        manager.reload()

    def wait(self) -> None:
        """Blocks until every checkpoint is on disk."""
        for manager in (self._newest, self._best):
            if manager is not None:
                manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        for manager in (self._newest, self._best):
            if manager is not None:
                manager.close()


def _args(state, meta):
    return ocp.args.Composite(state=ocp.args.StandardSave(_keys_to_data(state)), meta=ocp.args.JsonSave(meta))


def _abstract_data(abstract):
    """Shapes of the stored form of a state: keys as integers."""

    def one(x):
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=getattr(x, "sharding", None))

    return jax.tree.map(one, abstract)


def _as_struct(x):
    sharding = getattr(x, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def restore_params(directory: pathlib.Path | str) -> Any:
    """The parameters of a finished run's newest checkpoint as a plain tree on one device.

    For starting another run from this one: needs no knowledge of the method that wrote it.
    """
    root = pathlib.Path(directory).absolute() / "newest"
    with ocp.CheckpointManager(root) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(
                f"{root} holds no checkpoint; give the directory of a run that has finished"
            )
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    return state["ema"] if state.get("ema") is not None else state["params"]
