"""Pretrained encoders from Hugging Face checkpoints: ``config.json`` and safetensors, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from xmodal_jax.core import trees
from xmodal_jax.pretrained.architectures import Architecture, architecture
from xmodal_jax.pretrained.encoder import PLAIN, Options, PretrainedEncoder
from xmodal_jax.pretrained.files import FLOATING, Checkpoint, Entry, open_checkpoint
from xmodal_jax.pretrained.rules import Rule, matches
from xmodal_jax.types import Params

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
"""Where a parameter of a path and shape is to lie; None: on the default device."""

PROCESSOR = ("image_mean", "image_std", "do_normalize")
"""What is kept of a ``preprocessor_config.json``."""

SHOWN = 10
"""Names in an error message, at most."""


class Pretrained(NamedTuple):
    """A pretrained encoder."""

    module: nn.Module
    params: Params
    config: str
    """All of its configuration, as JSON: what `make_module` is told."""
    left_out: tuple[str, ...]
    """Arrays of the checkpoint that belong to other tasks."""


def full_config(config: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> str:
    """A ``config.json`` with the defaults that it leaves out, and under ``processor`` what a
    ``preprocessor_config.json`` says of how inputs are scaled, as JSON with sorted names."""
    from transformers import AutoConfig  # takes seconds to import

    try:
        filled = AutoConfig.for_model(**config)
    except ValueError as error:
        raise ValueError(
            f"config.json says model_type {config['model_type']!r}, which transformers does not know"
        ) from error
    known = {key: value for key, value in (processor or {}).items() if key in PROCESSOR}
    return json.dumps({**filled.to_dict(), "processor": known}, sort_keys=True, default=str)


def settings(config: str) -> SimpleNamespace:
    """A configuration's fields as attributes."""
    return json.loads(config, object_hook=lambda fields: SimpleNamespace(**fields))


def make_module(modality: str, config: str, options: Options = PLAIN, **sizes: Any) -> nn.Module:
    """The encoder of a modality that `full_config` describes, without its parameters.

    ``sizes`` is what its architecture reads of the data: ``image_size=(height, width)`` of images and video.
    """
    chosen = settings(config)
    return architecture(modality, chosen.model_type).make(chosen, options, **sizes)


def load_encoder(
    name: str | os.PathLike,
    modality: str,
    options: Options = PLAIN,
    *,
    dtype: Any = jnp.float32,
    sharding: Sharding | None = None,
    progress: bool = True,
    **sizes: Any,
) -> Pretrained:
    """The encoder of a modality from a folder or a hub's name (``owner/model``).

    Parameters are read one after the other, to ``dtype`` and to where ``sharding`` says. ``sizes``: see `make_module`;
    tables of positions are resampled to them.

    Raises:
      FileNotFoundError: there is no such checkpoint, or a file of it is missing.
      ValueError: a file is damaged; or the checkpoint is not one of this architecture: the message lists what is
        missing, what nothing takes, or what has another shape or dtype than ``config.json`` implies.
    """
    checkpoint = open_checkpoint(name)
    config = full_config(checkpoint.config, checkpoint.processor)
    module = make_module(modality, config, options, **sizes)
    params, left_out = read_parameters(
        checkpoint,
        modality,
        module,
        parameter_shapes(module),
        dtype=dtype,
        sharding=sharding,
        progress=progress,
    )
    return Pretrained(module, params, config, left_out)


def read_parameters(
    checkpoint: Checkpoint,
    modality: str,
    module: nn.Module,
    shapes: Params,
    *,
    dtype: Any = jnp.float32,
    sharding: Sharding | None = None,
    progress: bool = True,
) -> tuple[Params, tuple[str, ...]]:
    """The parameters of a checkpoint's encoder, of the given ``shapes`` (arrays or shapes), and the names of the arrays
    that belong to other tasks; see `load_encoder`."""
    found = architecture(modality, checkpoint.config["model_type"])
    return fill(
        shapes, checkpoint, found.rules(module), found, dtype=dtype, sharding=sharding, progress=progress
    )


def parameter_shapes(module: nn.Module) -> Params:
    """Shapes and dtypes of an encoder's parameters, without computing them."""
    method = "embed" if isinstance(module, PretrainedEncoder) else None
    example = module.example()
    found = jax.eval_shape(lambda key: module.init(key, *example, method=method), jax.random.key(0))
    return found["params"]


def fill(
    shapes: Params,
    checkpoint: Checkpoint,
    rules: Iterable[Rule],
    found: Architecture,
    *,
    dtype: Any,
    sharding: Sharding | None,
    progress: bool,
) -> tuple[Params, tuple[str, ...]]:
    """Parameters of the given shapes from a checkpoint, and the names of its arrays that belong to other tasks."""
    entries, left_out = _assign(shapes, checkpoint, list(rules), found)
    total = sum(entry.size for of in entries.values() for _, found in of for entry in found)
    bar = tqdm.tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=f"reading {checkpoint.folder.name}",
        delay=1.0,
        disable=not progress,
    )

    def one(name: str, leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.Array:
        whole = aligned(leaf.shape, dtype)
        for rule, sources in entries[name]:
            slot = whole[rule.at] if rule.at else whole
            slot[...] = _read(rule, sources, slot.shape)
            bar.update(sum(entry.size for entry in sources))
        place = None if sharding is None else sharding(name, leaf.shape)
        if place is None:
            return jnp.asarray(whole)
        return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

    with bar:
        return trees.map_with_name(one, shapes), left_out


def aligned(shape: tuple[int, ...], dtype: Any, boundary: int = 64) -> np.ndarray:
    """An uninitialised array at a multiple of ``boundary`` bytes, which JAX takes on a CPU without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start : start + size].view(dtype).reshape(shape)


def _read(rule: Rule, sources: list[Entry], shape: tuple[int, ...]) -> np.ndarray | float:
    if not sources:
        return 0.0
    arrays = [entry.read() for entry in sources]
    if rule.change is not None:
        return rule.layout.read(rule.change(*arrays), shape)
    return rule.layout.read(arrays[0], shape)


def _assign(shapes: Params, checkpoint: Checkpoint, rules: list[Rule], found: Architecture):
    """``{path: [(rule, entries)]}`` of every parameter, once it is sure that all fits."""
    leaves = trees.flat(shapes)
    arrays, folder = checkpoint.arrays, checkpoint.folder
    names = [name for rule in rules for name in rule.names]
    prefix = next((p for p in found.prefixes if any(p + name in arrays for name in names)), found.prefixes[0])
    taken = {prefix + name for name in names}
    needed = [prefix + n for rule in rules if rule.ours in leaves for n in rule.names]
    missing = [name for name in needed if name not in arrays]
    unused = [name for name in arrays if name not in taken and not matches(name, found.ignored)]
    if missing or unused:
        raise ValueError(
            f"{folder} is not what its config.json describes.{_listed('It lacks', missing)}"
            f"{_listed('Nothing takes its', unused)}"
        )
    assigned: dict[str, list] = {name: [] for name in leaves}
    for rule in rules:
        if rule.ours not in leaves:
            continue
        entries = [arrays[prefix + name] for name in rule.names]
        for name, entry in zip(rule.names, entries, strict=True):
            _check(rule, prefix + name, entry, leaves[rule.ours].shape)
        assigned[rule.ours].append((rule, entries))
    unfilled = [name for name, leaf in leaves.items() if _covered(assigned[name], leaf.shape) != leaf.size]
    if unfilled:
        raise ValueError(f"{folder}: nothing fills{_listed('', unfilled)}")
    takes = {id(e) for of in assigned.values() for _, entries in of for e in entries}
    return assigned, tuple(name for name, entry in arrays.items() if id(entry) not in takes)


def _listed(title: str, names: list[str]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" {title} {', '.join(names[:SHOWN])}{rest}."


def _slot(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    return np.broadcast_to(np.int8(0), shape)[rule.at].shape if rule.at else shape


def _covered(assigned: list, shape: tuple[int, ...]) -> int:
    return sum(int(np.prod(_slot(rule, shape))) for rule, _ in assigned)


def _check(rule: Rule, name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    if entry.dtype not in FLOATING:
        raise ValueError(f"{entry.path}: {name!r} is {entry.dtype}, expected one of {', '.join(FLOATING)}")
    expected = rule.layout.shape(_slot(rule, shape))
    if rule.change is None and entry.shape != expected:
        raise ValueError(
            f"{entry.path}: {name!r} has shape {list(entry.shape)}, by config.json it is {list(expected)}"
        )
