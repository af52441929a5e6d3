"""The folder of a Hugging Face checkpoint: ``config.json`` and safetensors, in one file or in shards (see
`safetensors_files`)."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from xmodal_jax.core.paths import leaves_folder
from xmodal_jax.pretrained.safetensors_files import Entry, read_header, read_shards

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
"""The files that are fetched from the hub: configurations, arrays and tokenizers, but no pickles."""
OLD_NAMES = (
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
"""Endings of names that older versions of PyTorch and ``transformers`` wrote, and their current ones."""
PROCESSOR_PARTS = ("image_processor", "video_processor", "feature_extractor", "audio_processor")
"""Parts of ``processor_config.json`` that say how images, video or audio are scaled; the first one counts."""
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
"""Files with these settings where ``processor_config.json`` lacks them; the first one counts."""
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""The poolings of sentence-transformers and the flags that choose them, in the order of concatenation."""
SENTENCE_FILES = ("1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""Files of sentence-transformers beside ``modules.json``, by which a folder without it is known."""
POOL_NAMES = {"mean_sqrt_len_tokens": "mean_sqrt", "weightedmean": "weighted_mean", "lasttoken": "last"}
"""The poolings that have another name in `nets.pooling.POOLS`."""


class Checkpoint(NamedTuple):
    """The configuration and the arrays in a folder; only headers are in memory."""

    folder: pathlib.Path
    config: dict[str, Any]
    """The content of ``config.json``."""
    arrays: Mapping[str, Entry]
    """By name, in its current spelling (see `current_name`)."""
    processor: dict[str, Any]
    """The settings of the processor of images, video or audio (see `read_processor`); empty if there are none."""
    sentence: dict[str, Any]
    """What sentence-transformers does with the tokens (see `read_sentence_settings`); empty for other models."""

    @property
    def size(self) -> int:
        """Size of all arrays, in bytes."""
        return sum(entry.size for entry in self.arrays.values())


def find_folder(name: str | os.PathLike, *, revision: str | None = None) -> pathlib.Path:
    """The folder of a pretrained model: a local one, or else a model of the hub, fetched to the hub's cache.

    Args:
      name: path of a local folder, or the name of a model of the hub (``owner/model``).
      revision: of the hub's model: a branch, a tag or a commit.
    Raises:
      FileNotFoundError: it is neither a folder nor a model that can be fetched.
    """
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    # A path, rather than a model of the hub, which has at most one slash (owner/model).
    if folder.is_absolute() or text.startswith(("./", "../", "~")) or text.count("/") > 1 or folder.exists():
        raise FileNotFoundError(f"{text} is not a folder: give one with config.json and *.safetensors")
    import huggingface_hub  # takes a while to import
    from huggingface_hub import errors

    try:
        snapshot = huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=list(HUB_FILES))
    except (
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        OSError,
    ) as error:
        raise FileNotFoundError(
            f"{text} is neither a local folder nor a model that could be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Without a network give the "
            "path of a folder with config.json and *.safetensors"
        ) from error
    return pathlib.Path(snapshot)


def open_checkpoint(name: str | os.PathLike) -> Checkpoint:
    """Opens the checkpoint in a folder, or of a model of the hub (see `find_folder`); reads only the headers.

    Raises:
      FileNotFoundError: there is no such folder, or it has no ``config.json`` or no safetensors.
      ValueError: a file is damaged; the message says which and how.
    """
    folder = find_folder(name)
    config = read_config(folder)  # first, as a folder without one is no pretrained model at all
    arrays = _with_current_names(folder, _find_arrays(folder))
    return Checkpoint(folder, config, arrays, read_processor(folder), read_sentence_settings(folder))


def _with_current_names(folder: pathlib.Path, stored: Mapping[str, Entry]) -> dict[str, Entry]:
    """Arrays by their current names (see `current_name`); ValueError if two have the same one, so that it is not clear
    which is meant."""
    arrays: dict[str, Entry] = {}
    for name, entry in stored.items():
        if current_name(name) in arrays:
            raise ValueError(
                f"{folder}: {name!r} ({entry.path.name}) and another array are both {current_name(name)!r} by today's "
                "names: remove one of them"
            )
        arrays[current_name(name)] = entry
    return arrays


def current_name(name: str) -> str:
    """An array's name in the spelling that PyTorch and ``transformers`` write today, by `OLD_NAMES`."""
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def read_processor(folder: pathlib.Path) -> dict[str, Any]:
    """The settings of a folder's processor of images, video or audio; empty if it has none.

    ``transformers`` 5 writes them as a part of ``processor_config.json``, which takes precedence; earlier versions to a
    file of their own.
    """
    path = folder / "processor_config.json"
    processor = _read_json(path) if path.is_file() else {}
    for part in PROCESSOR_PARTS:
        settings = processor.get(part)
        if settings is not None and not isinstance(settings, dict):
            raise ValueError(f"{path}: {part!r} is not a JSON object: fetch it again")
        if settings is not None:
            return settings
    path = next((path for name in PROCESSOR_FILES if (path := folder / name).is_file()), None)
    return {} if path is None else _read_json(path)


def read_sentence_settings(folder: pathlib.Path) -> dict[str, Any]:
    """What sentence-transformers does with the tokens of the text encoder in a folder, from ``modules.json`` and the
    files that it names; empty for a folder of another kind. Without ``modules.json`` but with another of its files
    (`SENTENCE_FILES`), the pooling is that of ``1_Pooling/config.json``, or else the mean, its default.

    - ``pooling``: names of `nets.pooling.POOLS`, whose vectors are concatenated;
    - ``normalize``: whether the vector has length 1;
    - ``max_tokens``: the most tokens of a text, or None;
    - ``lower``: whether texts are in lower case;
    - ``prompt``: what is put before each text unless the caller says otherwise, or None;
    - ``unread``: modules after the pooling that this library does not have, such as ``Dense``;
    - ``assumed``: what is assumed in place of a missing ``modules.json``, as a sentence; only where it is missing.

    Raises:
      ValueError: a file is damaged, or names a folder outside of this one.
    """
    index = folder / "modules.json"
    if index.is_file():
        modules, assumed = _read_modules(index), {}
    elif any((folder / name).is_file() for name in SENTENCE_FILES):
        modules, assumed = _assume_modules(folder)
    else:
        return {}
    limits = folder / "sentence_bert_config.json"
    text = _read_json(limits) if limits.is_file() else {}
    longest = text.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise ValueError(f"{limits}: max_seq_length must be a number of tokens, got {longest!r}")
    settings: dict[str, Any] = {
        "pooling": ["mean"] if assumed else [],
        "normalize": False,
        "max_tokens": longest,
        "lower": bool(text.get("do_lower_case", False)),
        "prompt": _read_default_prompt(folder / "config_sentence_transformers.json"),
        "unread": [],
        **assumed,
    }
    for kind, path in modules:
        if kind == "Pooling":
            if leaves_folder(path):
                raise ValueError(f"{index} names {path!r}, which is outside of {folder}: it is not read")
            settings["pooling"] = _read_pooling(folder / path / "config.json")
        elif kind == "Normalize":
            settings["normalize"] = True
        elif kind not in ("Transformer", "Dropout"):
            settings["unread"].append(kind)
    return settings


def _read_modules(index: pathlib.Path) -> list[tuple[str, str]]:
    """``(kind, path)`` of each module that ``modules.json`` of sentence-transformers lists, such as ``("Pooling",
    "1_Pooling")``.

    Raises:
      ValueError: it is no such list.
    """
    try:
        return [
            (str(entry["type"]).rpartition(".")[2], str(entry.get("path", "")))
            for entry in json.loads(index.read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no list of modules with their types ({error}): fetch it again"
        ) from error


def _assume_modules(folder: pathlib.Path) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The modules of a sentence encoder's folder that lacks ``modules.json``, and under ``assumed`` a sentence that
    says what is assumed."""
    has_pooling = (folder / "1_Pooling" / "config.json").is_file()
    source = (
        "1_Pooling/config.json says" if has_pooling else "sentence-transformers does where no file says how"
    )
    assumed = f"as {source}, and not scaled to length 1: modules.json, which would tell, is missing"
    return [("Pooling", "1_Pooling")] if has_pooling else [], {"assumed": assumed}


def _read_default_prompt(path: pathlib.Path) -> str | None:
    """The default prompt of ``config_sentence_transformers.json``; None if there is none, or no such file."""
    config = _read_json(path) if path.is_file() else {}
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return prompt if isinstance(prompt, str) else None


def _read_pooling(path: pathlib.Path) -> list[str]:
    """The pools that the configuration of a module ``Pooling`` of sentence-transformers chooses, by their names in
    `nets.pooling.POOLS`, in the order in which their vectors are concatenated.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it chooses no pool, or an unknown one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which modules.json names, is missing: fetch it again")
    config = _read_json(path)
    chosen = config.get("pooling_mode")  # one name, several with "+", or a list
    if chosen is None:
        defaults = {"pooling_mode_mean_tokens": True}
        chosen = [name for name, flag in POOLING_FLAGS.items() if config.get(flag, defaults.get(flag, False))]
    elif isinstance(chosen, str):
        chosen = chosen.lower().split("+")
    chosen = chosen if isinstance(chosen, list) else [chosen]
    unknown = [name for name in chosen if not isinstance(name, str) or name not in POOLING_FLAGS]
    if unknown or not chosen:
        raise ValueError(
            f"{path} chooses the pooling {', '.join(map(str, unknown)) or 'of nothing'}; known are "
            f"{', '.join(POOLING_FLAGS)}"
        )
    return [POOL_NAMES.get(name, name) for name in POOLING_FLAGS if name in chosen]


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's ``config.json``.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or has no ``model_type``.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not the folder of a pretrained model")
    config = _read_json(path)
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{path}: 'model_type' is {config['model_type']!r}, expected a name such as 'bert'")
    if "model_type" not in config:
        raise ValueError(f"{path} has no 'model_type': it does not say what it configures")
    return config


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; raises ValueError if the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again")
    return content


def _find_arrays(folder: pathlib.Path) -> dict[str, Entry]:
    """The arrays of a folder by name, from one safetensors file or from shards with an index.

    Raises:
      FileNotFoundError: there is no safetensors file, or a shard is missing.
      ValueError: a file is damaged, or there are several files without an index.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return read_shards(index)
    single = folder / "model.safetensors"
    paths = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if len(paths) == 1:
        return read_header(paths[0])
    if paths:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder} has {names} and no {index.name} that says what is where")
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    hint = (
        f"; {', '.join(pickled)} is no safetensors file and is not read, as it may run code: convert it with "
        "`model.save_pretrained(folder)` of transformers"
        if pickled
        else ""
    )
    raise FileNotFoundError(f"{folder} has no *.safetensors{hint}")
