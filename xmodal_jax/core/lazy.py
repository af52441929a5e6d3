"""Public names of a package that are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package whose modules are imported when one of their names is.

    So using one name does not cost the import of the whole package, which can take seconds.

    Args:
      package: the package's ``__name__``.
      modules: the public names of each module, separated by spaces, by the module's name.

    Example::

        __getattr__, __dir__, __all__ = lazy_exports(__name__, {"loop": "fit TrainingResult"})
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return get_attribute, lambda: sorted({*vars(sys.modules[package]), *module_of}), list(module_of)
