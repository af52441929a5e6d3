"""Public names of a package that are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``(__getattr__, __dir__, __all__)`` of a package that imports a module only when one of its names is used.

    Importing the package, or one name from it, then does not import all of its modules, which can take seconds.

    Args:
      package: the package's ``__name__``.
      modules: for each module its public names, separated by spaces.

    Example::

        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"loop": "fit TrainingResult"})
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get_attribute(name: str) -> Any:
        """The public name of this spelling, from the module that defines it."""
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    def list_attributes() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get_attribute, list_attributes, list(module_of)
