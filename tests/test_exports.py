"""What packages export."""

import importlib
import inspect
import subprocess
import sys

import pytest

PACKAGES = [
    "core",
    "data",
    "data.sources",
    "data.shapes",
    "evaluation",
    "inference",
    "preprocess",
    "rating",
    "report",
    "train",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_exists_and_is_documented(name):
    package = importlib.import_module(f"xmodal_jax.{name}")
    assert package.__doc__ and len(set(package.__all__)) == len(package.__all__)
    for public in package.__all__:
        value = getattr(package, public)
        assert public in dir(package)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{public} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ["core", "data", "data.sources", "data.shapes", "train"])
def test_importing_a_package_does_not_load_jax(name):
    code = f"import sys, xmodal_jax.{name}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
