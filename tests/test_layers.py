"""Imports point one way: each layer uses only those above it, and no two modules need each other."""

import ast
import functools
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
    "transfer",
    "evaluation",
    "report",
    "experiment",
    "inference",
    "deploy",
    "rating",
    "demo",
]
INSIDE = {
    "models": [
        "towers",
        "lora",
        "contrastive",
        "fusion",
        "seq2seq",
        "speech",
        "vocoder",
        "conditions",
        "gan",
        "vae",
        "flow",
    ],
    "data": ["shapes", "sources", "tasks"],
    "models/gan": [
        "inputs",
        "objective",
        "penalties",
        "augmentation",
        "conditions",
        "config",
        "networks",
        "method",
    ],
    "models/vae": [
        "modalities",
        "networks",
        "inference",
        "generation",
        "model_config",
        "single_models",
        "multimodal_models",
        "single",
        "multimodal",
        "adapter",
    ],
    "train": ["optim", "step", "gan_step", "checkpoint", "run", "feed", "loop"],
    "report": ["figures", "page"],
}
"""The order of parts within a package, where it has one; what is not listed only has to be free of cycles."""
APART = [("nets", "losses"), ("nets", "metrics"), ("data", "models"), ("data", "nets"), ("metrics", "losses")]
OUTSIDE = {"flax": {"nets", "models", "pretrained"}, "orbax": {"train"}, "grain": {"data"}, "torch": set()}
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imported(path):
    """The dotted names that a file imports, those under ``TYPE_CHECKING`` and within functions included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.extend(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # "from xmodal_jax.report import figures" imports the module of that name.
            names.extend(f"{node.module}.{name.name}" for name in node.names)
    return names


def module_of(name):
    """The file of the module that a dotted name is, or that it belongs to; None for other packages."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    for end in range(len(parts), 0, -1):
        base = PACKAGE.joinpath(*parts[1:end])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    raise AssertionError(f"no module of the name {name}")


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


@pytest.mark.parametrize("package", INSIDE)
def test_order_inside_a_package(package):
    order, folder = INSIDE[package], PACKAGE / package
    place = {}
    for position, part in enumerate(order):
        files = list((folder / part).rglob("*.py")) or [folder / f"{part}.py"]
        place |= dict.fromkeys(files, position)
    assert all(path.is_file() for path in place), sorted(p for p in place if not p.is_file())
    for path, position in place.items():
        for name in imported(path):
            assert place.get(module_of(name), 0) <= position, f"{path} imports {name}"


def cycle_among(edges):
    """Nodes that form a cycle, in order; empty where there is none."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        path.append(node)
        for after in sorted(edges.get(node, ())):
            if found := visit(after):
                return found
        done.add(path.pop())
        return []

    for node in sorted(edges):
        if found := visit(node):
            return found
    return []


def test_no_cycles():
    edges = {path: {module_of(name) for name in imported(path)} - {None, path} for path in FILES}
    # A package's __init__ gathers the names of its modules: those import one another, not the package.
    assert [str(p.relative_to(PACKAGE)) for p in cycle_among(edges)] == []


def test_a_cycle_is_found():
    assert cycle_among({1: {2}, 2: {3}, 3: {2}}) == [2, 3]
    assert cycle_among({1: {2, 3}, 2: {3}}) == []


def test_the_walk_sees_the_package():
    assert len(FILES) > 40
    assert any(name.startswith("flax") for name in imported(PACKAGE / "nets" / "text.py"))
    assert module_of("xmodal_jax.models.gan.config.GANConfig") == PACKAGE / "models" / "gan" / "config.py"


def test_functions_and_scripts_are_short():
    """A function is read at one look, a script from top to bottom."""
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > 80} == {}
    scripts = (PACKAGE.parent / "experiments").glob("*.py")
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in scripts}
    assert {name: lines for name, lines in lengths.items() if lines >= 120} == {}
