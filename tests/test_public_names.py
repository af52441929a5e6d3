"""Public names: what a package exports exists, is documented, runs as its examples say, and is listed in docs/api.md.

    python -m tests.test_public_names

writes docs/api.md anew.
"""

import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
HEAD = """# Public names

What each package exports: `from xmodal_jax.losses import info_nce`. Everything else is private and may change. The
docstrings have arguments, shapes, errors and examples.

This page is written by `python -m tests.test_public_names`, and a test compares it with the packages.
"""


def package_names():
    """The packages that export names, in alphabetical order."""
    folders = sorted(path.parent for path in (ROOT / "xmodal_jax").rglob("__init__.py"))
    names = [".".join(folder.relative_to(ROOT).parts) for folder in folders]
    return [name for name in names if getattr(importlib.import_module(name), "__all__", ())]


PACKAGES = package_names()


def exports(package):
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def first_sentence(text):
    """The first line of a docstring, up to the end of the line."""
    return inspect.cleandoc(text).split("\n\n")[0].replace("\n", " ")


def api_page():
    """The text of docs/api.md."""
    parts = [HEAD]
    for package in PACKAGES:
        module = importlib.import_module(package)
        lines = [f"## `{package}`", "", first_sentence(module.__doc__), "", "| name | |", "|---|---|"]
        for name, value in sorted(exports(package).items(), key=lambda item: item[0].lower()):
            documented = inspect.isclass(value) or inspect.isroutine(value)
            text = first_sentence(value.__doc__) if documented and value.__doc__ else "constant"
            lines.append(f"| `{name}` | {text.replace('|', chr(92) + '|')} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_documented(package):
    module = importlib.import_module(package)
    assert module.__doc__, f"{package} has no docstring"
    assert len(set(module.__all__)) == len(module.__all__)
    for name, value in exports(package).items():
        assert not name.startswith("_") and name in dir(module)
        # A function of the name of its module would be hidden by the module once that is imported.
        assert not isinstance(value, types.ModuleType), f"{package}.{name} is a module"
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__ and value.__doc__.strip(), f"{package}.{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_the_documentation_lists_exactly_the_public_names():
    assert PAGE.read_text() == api_page(), "run python -m tests.test_public_names"


def examples():
    """The names whose docstring has an example to run (``>>>``), with their packages."""
    return [
        (package, name)
        for package in PACKAGES
        for name, value in exports(package).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and ">>>" in (value.__doc__ or "")
    ]


@pytest.mark.parametrize(("package", "name"), examples())
def test_examples_run(package, name):
    (test,) = doctest.DocTestFinder(recurse=False).find(exports(package)[name], name, extraglobs={"jnp": jnp})
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", ["core", "data", "data.sources", "data.shapes", "train"])
def test_importing_a_package_does_not_load_jax(name):
    code = f"import sys, xmodal_jax.{name}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


if __name__ == "__main__":
    PAGE.write_text(api_page())
