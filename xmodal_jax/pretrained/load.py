"""Pretrained encoders from Hugging Face checkpoints: ``config.json`` and safetensors, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from xmodal_jax.core import trees
from xmodal_jax.pretrained.architectures import ARCHITECTURES, Architecture, architecture
from xmodal_jax.pretrained.encoder import DEFAULT_OPTIONS, EncoderOptions, PretrainedEncoder
from xmodal_jax.pretrained.files import Checkpoint, open_checkpoint
from xmodal_jax.pretrained.rules import Rule, matches
from xmodal_jax.pretrained.safetensors_files import FLOATING, Entry
from xmodal_jax.types import Params

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding | None]
"""From a parameter's path and shape to its sharding; None: on the default device."""

PROCESSOR = (
    "image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor",  # scaling of pixels, or of samples
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct",
    "image_processor_type", "feature_extractor_type",
    "sampling_rate", "n_fft", "hop_length",  # of audio
)  # fmt: skip
"""The settings of a processor of images, video or audio that are used."""

SIZES = frozenset(
    """
    hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size max_position_embeddings patch_size
    n_embd n_layer n_head n_positions d_model encoder_layers encoder_attention_heads encoder_ffn_dim
    """.split()
)
"""Fields of a ``config.json`` that are whole numbers from 1 up, whatever the architecture."""
WIDTHS_AND_HEADS = (
    ("hidden_size", "num_attention_heads"),
    ("n_embd", "n_head"),
    ("d_model", "encoder_attention_heads"),
)
"""Fields with a transformer's width and its number of attention heads."""
NAMES_IN_MESSAGE = 10
"""Most names in an error message."""


class LoadedEncoder(NamedTuple):
    """A pretrained encoder, loaded from a checkpoint."""

    module: nn.Module
    params: Params
    config: str
    """Its complete configuration, as JSON: the argument of `make_module`."""
    unused: tuple[str, ...]
    """Names of the checkpoint's arrays that belong to other tasks."""


def complete_config(
    config: Mapping[str, Any],
    processor: Mapping[str, Any] | None = None,
    *,
    sentence: Mapping[str, Any] | None = None,
    has_pooler: bool = True,
) -> str:
    """A ``config.json`` completed with the default fields of its ``model_type``, as JSON with sorted names.

    Fields are added with what other files of the checkpoint say: ``processor``, the settings of its processor that are
    used (`PROCESSOR`); ``sentence``, those of sentence-transformers (`files.read_sentence_settings`), if there are any;
    ``has_pooler``, if it is false, for a checkpoint without the layers of ``pool``.

    Raises:
      ValueError: ``transformers`` does not know the ``model_type``, or a field has a value that it cannot have.
    """
    from transformers import CONFIG_MAPPING, AutoConfig  # takes seconds to import

    if config["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"config.json says model_type {config['model_type']!r}, which transformers does not know"
        )
    try:
        completed = AutoConfig.for_model(**config)
    except Exception as error:  # its checks of types raise errors of their own
        raise ValueError(f"config.json cannot be used: {' '.join(str(error).split())[:300]}") from error
    _check_sizes(completed.to_dict())
    known = {key: value for key, value in (processor or {}).items() if key in PROCESSOR}
    added = {"processor": known, **({"sentence": dict(sentence)} if sentence else {})}
    added |= {} if has_pooler else {"has_pooler": False}
    return json.dumps({**completed.to_dict(), **added}, sort_keys=True, default=str)


def _check_sizes(config: Mapping[Any, Any], path: str = "") -> None:
    """Raises ValueError if a size in a configuration, or in one within it, is not a whole number from 1 up, or if its
    attention heads do not divide its width. ``path``: of the configuration within, such as ``text_config.``."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            _check_sizes(value, f"{path}{name}.")
        elif name in SIZES and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"config.json: {path + name!r} is {value!r}, expected a whole number from 1 up")
    for width, heads in WIDTHS_AND_HEADS:
        if width in config and heads in config and config[width] % config[heads]:
            raise ValueError(
                f"config.json: {path + heads!r} is {config[heads]}, which does not divide {path + width!r}, "
                f"{config[width]}"
            )


def read_complete_config(checkpoint: Checkpoint, modality: str) -> str:
    """The complete configuration (see `complete_config`) of a checkpoint's encoder of a modality."""
    table = ARCHITECTURES.get(modality, {}).get(checkpoint.config["model_type"])
    pooler = None if table is None else table.pooler
    return complete_config(
        checkpoint.config,
        checkpoint.processor,
        sentence=checkpoint.sentence if modality == "text" else None,
        has_pooler=pooler is None or any(name.endswith(pooler) for name in checkpoint.arrays),
    )


def parse_config(config: str) -> SimpleNamespace:
    """A configuration in JSON as a namespace with its fields as attributes."""
    return json.loads(config, object_hook=lambda fields: SimpleNamespace(**fields))


def make_module(
    modality: str, config: str, options: EncoderOptions = DEFAULT_OPTIONS, **sizes: Any
) -> nn.Module:
    """The module of a pretrained encoder, without parameters.

    Args:
      modality: "text", "image", "audio", "video", or "decoder" (of text).
      config: a configuration in JSON, from `complete_config`.
      options: head, dropout, types.
      **sizes: the data's sizes that the architecture depends on: ``image_size=(height, width)`` for images and video.
    Raises:
      ValueError: no encoder of this modality has the configuration's ``model_type``; or ``options.head`` asks for a
        projection that it does not have.
    """
    parsed = parse_config(config)
    module = architecture(modality, parsed.model_type).make(parsed, options, **sizes)
    if options.head == "project" and not getattr(module, "has_projection", False):
        raise ValueError(
            f"{parsed.model_type} was not trained in an embedding space that it shares with another encoder, and has "
            "no projection to it: leave --model.head own out"
        )
    return module


def load_encoder(
    name: str | os.PathLike,
    modality: str,
    options: EncoderOptions = DEFAULT_OPTIONS,
    *,
    dtype: Any = jnp.float32,
    sharding: Sharding | None = None,
    progress: bool = True,
    **sizes: Any,
) -> LoadedEncoder:
    """Loads a pretrained encoder from a folder or from the hub.

    Parameters are read one after the other, so that a second copy of them is never in memory.

    Args:
      name: a folder, or the name of a model of the hub (``owner/model``).
      modality: "text", "image", "audio", "video", or "decoder" (of text).
      options: head, dropout, types of activations.
      dtype: type of the parameters.
      sharding: from a parameter's path and shape to its sharding; None: on the default device.
      progress: whether to show a progress bar.
      **sizes: see `make_module`; tables of positions are resampled to them.
    Raises:
      FileNotFoundError: there is no such checkpoint, or a file of it is missing.
      ValueError: a file is damaged; or the checkpoint does not fit the architecture: the message lists the arrays that
        are missing, that no parameter uses, or whose shape or dtype is not what ``config.json`` implies.

    Example::

      from xmodal_jax.pretrained import load_encoder

      encoder = load_encoder("google-bert/bert-base-uncased", "text")
      tokens = encoder.module.apply({"params": encoder.params}, ids, mask)
    """
    checkpoint = open_checkpoint(name)
    config = read_complete_config(checkpoint, modality)
    module = make_module(modality, config, options, **sizes)
    params, unused = read_parameters(
        checkpoint,
        modality,
        module,
        parameter_shapes(module),
        dtype=dtype,
        sharding=sharding,
        progress=progress,
    )
    return LoadedEncoder(module, params, config, unused)


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
    """``(params, unused)``: the parameters of an encoder from an open checkpoint, and the names of its unused arrays.

    Args:
      shapes: a tree of arrays or of shapes (see `parameter_shapes`); only its parameters are read.
      checkpoint, modality, module, dtype, sharding, progress: see `load_encoder`.
    Raises:
      ValueError: see `load_encoder`.
    """
    table = architecture(modality, checkpoint.config["model_type"])
    sources, unused = _assign(shapes, checkpoint, table.rules(module), table)
    bar = tqdm.tqdm(
        total=sum(entry.size for fills in sources.values() for _, entries in fills for entry in entries),
        unit="B",
        unit_scale=True,
        desc=f"reading {checkpoint.folder.name}",
        delay=1.0,
        disable=not progress,
    )

    def read_parameter(path: str, leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.Array:
        """The parameter at a path, with the shape of ``leaf`` and the dtype and sharding of the outer call.

        Each of its rules fills it, or its slice ``rule.index``, with the values of some arrays of the checkpoint.
        """
        parameter = empty_aligned(leaf.shape, dtype)  # at an address from which JAX need not copy it
        for rule, entries in sources[path]:  # entries: the arrays that the rule reads
            target = parameter[rule.index] if rule.index else parameter  # a view
            target[...] = _read_part(rule, entries, target.shape)
            bar.update(sum(entry.size for entry in entries))
        parameter_sharding = None if sharding is None else sharding(path, leaf.shape)
        if parameter_sharding is None:
            return jnp.asarray(parameter)
        return jax.make_array_from_callback(
            parameter.shape, parameter_sharding, lambda index: parameter[index]
        )

    with bar:
        return trees.map_with_name(read_parameter, shapes), unused


def parameter_shapes(module: nn.Module) -> Params:
    """The shapes and dtypes of an encoder's parameters, without computing them."""
    # ``embed`` calls ``pool`` and ``project`` as well, so that their parameters are initialised too.
    method = "embed" if isinstance(module, PretrainedEncoder) else None
    example = module.example_inputs()
    variables = jax.eval_shape(lambda key: module.init(key, *example, method=method), jax.random.key(0))
    return variables["params"]


def empty_aligned(shape: tuple[int, ...], dtype: Any, boundary: int = 64) -> np.ndarray:
    """An uninitialised array whose address is a multiple of ``boundary`` bytes, so that JAX on a CPU need not copy
    it."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + boundary, np.uint8)
    start = -raw.ctypes.data % boundary  # bytes to the next multiple
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_part(rule: Rule, entries: list[Entry], shape: tuple[int, ...]) -> np.ndarray | float:
    """The values ``[*shape]`` that a rule puts into a parameter or a slice of it; 0 if the rule names no array.

    ``entries``: the arrays that the rule names, which have not been read yet.
    """
    if not entries:
        return 0.0
    arrays = [entry.read() for entry in entries]
    array = arrays[0] if rule.transform is None else rule.transform(*arrays)
    return rule.layout.read(array, shape)


Sources = dict[str, list[tuple[Rule, list[Entry]]]]
"""For each parameter the rules that fill it, with the arrays in the checkpoint that they read."""


def _assign(
    shapes: Params, checkpoint: Checkpoint, rules: list[Rule], table: Architecture
) -> tuple[Sources, tuple[str, ...]]:
    """``(sources, unused)``: the rules and arrays that fill each parameter, and the names of the arrays that no rule
    uses.

    Args:
      shapes: a tree of arrays or of shapes, those of the parameters.
      checkpoint: the open checkpoint; only the headers of its files have been read.
      rules: each maps arrays of the checkpoint to a parameter, or to a slice of one.
      table: the architecture, for the prefixes of names and the arrays to ignore.
    Raises:
      ValueError: the checkpoint lacks an array, has an unknown one or one of the wrong shape or dtype, or a parameter
        is not filled completely.
    """
    leaves, folder = trees.flat(shapes), checkpoint.folder
    prefix = _match_names(leaves, checkpoint, rules, table)
    sources: Sources = {path: [] for path in leaves}
    for rule in rules:
        if rule.path not in leaves:
            continue
        entries = [checkpoint.arrays[prefix + name] for name in rule.names]
        for name, entry in zip(rule.names, entries, strict=True):
            _check_entry(rule, prefix + name, entry, leaves[rule.path].shape)
        sources[rule.path].append((rule, entries))

    def filled(path: str, shape: tuple[int, ...]) -> int:
        """The number of elements of a parameter that its rules fill."""
        return sum(int(np.prod(_part_shape(rule, shape))) for rule, _ in sources[path])

    unfilled = [path for path, leaf in leaves.items() if filled(path, leaf.shape) != leaf.size]
    if unfilled:
        raise ValueError(f"{folder}: nothing fills{_list_names('', unfilled)}")
    used = {id(entry) for fills in sources.values() for _, entries in fills for entry in entries}
    return sources, tuple(name for name, entry in checkpoint.arrays.items() if id(entry) not in used)


def _match_names(
    leaves: Mapping[str, Any], checkpoint: Checkpoint, rules: list[Rule], table: Architecture
) -> str:
    """The prefix that the names of the checkpoint's arrays have before those of the rules, one of ``table.prefixes``.

    A checkpoint of an encoder alone has other prefixes than one of the model that the encoder is a part of. ``leaves``:
    the parameters by path.

    Raises:
      ValueError: the checkpoint lacks an array, or has one that no rule names and that is not in ``table.ignored``.
    """
    arrays, names = checkpoint.arrays, [name for rule in rules for name in rule.names]
    prefixes = (p for p in table.prefixes if any(p + name in arrays for name in names))
    prefix = next(prefixes, table.prefixes[0])
    known = {prefix + name for name in names}
    needed = [prefix + name for rule in rules if rule.path in leaves for name in rule.names]
    missing = [name for name in needed if name not in arrays]
    unknown = [name for name in arrays if name not in known and not matches(name, table.ignored)]
    if missing or unknown:
        raise ValueError(
            f"{checkpoint.folder} is not what its config.json describes.{_list_names('It lacks', missing)}"
            f"{_list_names('Nothing takes its', unknown)}"
        )
    return prefix


def _list_names(title: str, names: list[str]) -> str:
    """A sentence with the names for an error message, `NAMES_IN_MESSAGE` at most; empty without names."""
    if not names:
        return ""
    number_left_out = len(names) - NAMES_IN_MESSAGE
    ending = f" and {number_left_out} more" if number_left_out > 0 else ""
    return f" {title} {', '.join(names[:NAMES_IN_MESSAGE])}{ending}."


def _part_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the slice of a parameter that a rule fills; ``shape``: that of the whole parameter."""
    # A broadcast scalar has the shape without taking memory.
    return np.broadcast_to(np.int8(0), shape)[rule.index].shape if rule.index else shape


def _check_entry(rule: Rule, name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    """Raises ValueError if an array's type or shape does not fit the parameter that it fills.

    ``rule``: how the array ``entry`` of this ``name`` fills the parameter; ``shape``: that of the whole parameter.
    """
    if entry.dtype not in FLOATING:
        raise ValueError(f"{entry.path}: {name!r} is {entry.dtype}, expected one of {', '.join(FLOATING)}")
    expected = rule.layout.array_shape(_part_shape(rule, shape))
    if rule.transform is None and entry.shape != expected:
        raise ValueError(
            f"{entry.path}: {name!r} has shape {list(entry.shape)}, by config.json it is {list(expected)}"
        )
