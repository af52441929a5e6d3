"""Configurations of pretrained encoders and of runs, with one field that is wrong."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks.fault_kinds import REFUSED, Case, Kind, choose, cut
from xmodal_jax.core import trees
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.pretrained.architectures import architecture
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.load import complete_config, load_encoder, make_module, parameter_shapes
from xmodal_jax.pretrained.rules import to_checkpoint
from xmodal_jax.pretrained.safetensors_files import write_safetensors
from xmodal_jax.train.run import from_json, to_json

LAYERS = dict(hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=17)
MODELS = {
    "text": dict(model_type="bert", vocab_size=11, max_position_embeddings=9, hidden_act="gelu", **LAYERS),
    "image": dict(model_type="vit", image_size=16, patch_size=8, hidden_act="gelu", **LAYERS),
}
"""Small configurations by modality."""
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
OPTIONS = EncoderOptions(head="pool")


@functools.cache
def _arrays(modality: str) -> bytes:
    """The content of the safetensors file of a right encoder."""
    module = make_module(modality, complete_config(MODELS[modality]), OPTIONS)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), parameter_shapes(module))
    rules = architecture(modality, MODELS[modality]["model_type"]).rules(module)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.safetensors"
        write_safetensors(path, to_checkpoint(rules, trees.flat(params)))
        return path.read_bytes()


FAULTS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "size of another type": (SIZES, ("12", [12], {"a": 1}, None)),
    "size not positive": (SIZES, (0, -1, -12)),
    "size of another value": (("hidden_size", "num_hidden_layers", "intermediate_size"), (24, 2, 3)),
    "size not whole": (SIZES, (12.5, 1.5)),
    "heads that do not divide": (("num_attention_heads",), (5, 7, 13)),
    "activation unknown": (("hidden_act",), ("gelu_of_tomorrow", "", 3, None)),
    "model type unknown": (("model_type",), ("berta", "", "os", "../bert")),
    "model type of another type": (("model_type",), (3, None, [], {})),
    "model type of another modality": (("model_type",), ("wav2vec2", "gpt2")),
}
"""Names of fields, and values that they cannot have."""
FILES = ("not JSON", "not an object", "empty", "not UTF-8", "nested", "pipe", "missing")
HARMLESS = {
    "good": {},
    "further field": {"further": [1, {"a": None}]},
    "architectures": {"architectures": ["X"]},
}


def _load(folder: pathlib.Path, modality: str) -> bool:
    """True if the code under test loads the right parameters."""
    loaded = load_encoder(folder, modality, OPTIONS, progress=False)
    return all(bool((np.asarray(leaf) == 1).all()) for leaf in jax.tree.leaves(loaded.params))


def _draw_pretrained(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """The folder of a pretrained encoder whose ``config.json`` has a fault."""
    modality = choose(rng, sorted(MODELS))
    config: dict[str, Any] = dict(MODELS[modality])
    path = folder / "config.json"
    (folder / "model.safetensors").write_bytes(_arrays(modality))
    fault = choose(rng, [*FAULTS, *FAULTS, *FILES, *HARMLESS])
    if fault in FAULTS:
        fields, values = FAULTS[fault]
        config[choose(rng, fields)] = choose(rng, values)
        if config == MODELS[modality]:
            fault = "good"
    config |= HARMLESS.get(fault, {})
    text = json.dumps(config).encode()
    contents = {
        "not JSON": cut(rng, text),
        "not an object": b"[]",
        "empty": b"",
        "not UTF-8": text[:-1] + b', "\xff": 1}',
        "nested": b'{"a":' * 10**5,
    }
    path.write_bytes(contents.get(fault, text))
    if fault in ("pipe", "missing"):
        path.unlink()
        if fault == "pipe":
            os.mkfifo(path)
    expected = True if fault in HARMLESS else REFUSED
    return Case(f"pretrained: {fault}", lambda: _load(folder, modality), expected, ("config.json",))


RUN_FAULTS: dict[str, tuple[tuple[str, ...], tuple[Any, ...]]] = {
    "further field": (("further",), (1, None)),
    "part unknown": (("name",), ("resnext", None, 3)),
    "number of another type": (("width", "depth"), ("16", None, [16], {"a": 1}, True)),
    "number not whole": (("width", "depth"), (16.5,)),
}


def _draw_run(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """The model of a run's ``config.json``, of which one part has a fault."""
    del folder
    config = to_json(ContrastiveConfig())
    fault = choose(rng, [*RUN_FAULTS, "good", "part of another type"])
    part = choose(rng, ["text", "image"])
    if fault in RUN_FAULTS:
        fields, values = RUN_FAULTS[fault]
        config[part][choose(rng, [name for name in fields if name in config[part] or len(fields) == 1])] = (
            choose(rng, values)
        )
    elif fault == "part of another type":
        config[part] = choose(rng, [3, [], "vit"])
    attempt = lambda: from_json(ContrastiveConfig, json.loads(json.dumps(config))) == ContrastiveConfig()
    return Case(f"run: {fault}", attempt, True if fault == "good" else REFUSED)


def _draw(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    return (_draw_run if rng.random() < 0.3 else _draw_pretrained)(rng, folder)


KIND = Kind("configs", _draw, 800, seconds=30.0)
