"""Checkpoints whose newest one is damaged on the disk, restored by a resumed run and used by another program.

Damage is what disks, copies and full file systems do; a run's directory is trusted (`SECURITY.md`), so that nothing in
it is put there to deceive.
"""

from __future__ import annotations

import atexit
import functools
import json
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks.fault_kinds import Case, Kind, choose, cut, flip_bits, same
from xmodal_jax.train.checkpoint import Checkpoints, describe, restore_run


def _state(step: int) -> dict[str, Any]:
    """The state after a step: parameters, their average, and the optimizer's state."""
    rng = np.random.default_rng(step)
    params = {
        "image": {"kernel": rng.normal(size=(7, 5)), "bias": rng.normal(size=5)},
        "text": {"embedding": rng.normal(size=(40, 30))},
    }
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    return {"step": np.int32(step), "params": params, "ema": jax.tree.map(lambda x: x / 2, params),
            "opt": {"mu": jax.tree.map(lambda x: 2 * x, params), "count": np.int32(step)}}  # fmt: skip


def _metadata(step: int) -> dict[str, Any]:
    return {"step": step, "config": {"model": {"width": 16}}, "tokenizer": {"tokenizer.json": '{"a": 1}' * 20},
            "loader": {"epoch": step, "position": 3 * step}, "modalities": ["text", "image"]}  # fmt: skip


@functools.cache
def _sound() -> pathlib.Path:
    """A run with two checkpoints and frozen networks, written once."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    checkpoints = Checkpoints(root / "checkpoints")
    frozen = {"judge": {"kernel": np.arange(12, dtype=np.float32)}}
    checkpoints.save_frozen(frozen)
    for step in (1, 2):
        checkpoints.save(step, _state(step), {**_metadata(step), "frozen": describe(frozen)})
    checkpoints.close()
    return root


def _check(step: int, metadata: dict[str, Any], values: Any, expected: Any) -> Any:
    """True if the values and metadata are those that were written in a step; otherwise what differs."""
    known = {name: metadata.get(name) for name in _metadata(step)}
    if json.loads(json.dumps(known)) != _metadata(step):
        return f"other metadata: {known}"
    values = jax.tree.map(np.asarray, values)
    return True if same(values, expected) else "other values"


def _restore(folder: pathlib.Path) -> Any:
    """Restores as a resumed run does."""
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        restored = checkpoints.restore(jax.tree.map(np.asarray, _state(0)))
    finally:
        checkpoints.close()
    if restored is None:
        return "nothing restored, though the checkpoint before is sound"
    state, metadata = restored
    step = int(state["step"])
    return _check(step, metadata, state, _state(step))


def _use(folder: pathlib.Path) -> Any:
    """Reads the parameters as other programs do (``--init-from``, ``--judge``, export, translation)."""
    found = restore_run(folder)
    expected = {**_state(found.step)["ema"], "frozen": {"judge": {"kernel": np.arange(12, dtype=np.float32)}}}
    return _check(found.step, found.metadata, found.params, expected)


DAMAGES = {
    "a bit flipped": lambda rng, content, other: flip_bits(rng, content, 1),
    "bits flipped": lambda rng, content, other: flip_bits(rng, content, int(rng.integers(2, 9))),
    "cut": lambda rng, content, other: cut(rng, content),
    "empty": lambda rng, content, other: b"",
    "zeros": lambda rng, content, other: bytes(len(content)),
    "bytes appended": lambda rng, content, other: content + bytes(7),
    "file of the checkpoint before": lambda rng, content, other: other or content[::-1],
}
"""Damages of a file: ``damage(rng, content, content of the same file of the checkpoint before)``."""


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    shutil.copytree(_sound(), folder / "run")
    root = folder / "run" / "checkpoints"
    newest = root / "newest" / "2"
    use = bool(rng.integers(2))
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    if use and rng.random() < 0.05:
        files = [root / "frozen.safetensors"]
    path = choose(rng, files)
    other = root / "newest" / "1" / path.relative_to(newest) if newest in path.parents else path
    damage = choose(rng, [*DAMAGES, "removed", "folder removed"])
    if damage in DAMAGES:
        path.write_bytes(
            DAMAGES[damage](rng, path.read_bytes(), other.read_bytes() if other.is_file() else b"")
        )
    elif damage == "folder removed":
        shutil.rmtree(choose(rng, [p for p in newest.rglob("*") if p.is_dir()]))
    else:
        path.unlink()
    attempt = (lambda: _use(folder / "run")) if use else (lambda: _restore(folder / "run"))
    # The damage is noticed and the checkpoint before is used, or it harmed nothing. Frozen networks have no other file.
    return Case(f"{'use' if use else 'restore'}: {damage}", attempt, True, ("run",), may_refuse=use)


KIND = Kind("checkpoints", _draw, 500, seconds=20.0)
