"""Imports point one way: each layer uses only those above it."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "xmodal_jax"
LAYERS = [
    "types",
    "core",
    "probability",
    "preprocess",
    "losses",
    "metrics",
    "nets",
    "pretrained",
    "models",
    "data",
    "train",
]
APART = [("nets", "losses"), ("nets", "metrics"), ("data", "models"), ("data", "nets"), ("metrics", "losses")]
OUTSIDE = {"flax": {"nets", "models", "pretrained"}, "orbax": {"train"}, "grain": {"data"}, "torch": set()}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from xmodal_jax.train import figures" imports the module of that name.
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    parts = path.relative_to(PACKAGE).parts
    layer = parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "xmodal_jax" and rest and rest[0] != "__version__":
            assert LAYERS.index(rest[0]) <= LAYERS.index(layer), f"{path} imports {name}"
            assert (layer, rest[0]) not in APART and (rest[0], layer) not in APART or rest[0] == layer, name
        if top in OUTSIDE:
            assert layer in OUTSIDE[top], f"{path} imports {name}"
        if top == "orbax":
            assert path.name == "checkpoint.py", "only train/checkpoint.py knows Orbax"


def test_the_walk_sees_the_package():
    assert len(FILES) > 40
    assert any(name.startswith("flax") for name in imported(PACKAGE / "nets" / "text.py"))
