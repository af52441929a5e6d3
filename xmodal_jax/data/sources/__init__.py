"""Data sets that are read from files: each a `Source`."""

import importlib

_MODULES = {
    "ArraySource": "arrays",
    "load_npz": "arrays",
    "materialise": "arrays",
    "FolderSource": "folder",
    "MediaOptions": "folder",
    "TfdsSource": "tfds",
    "Adapter": "tfds",
    "ADAPTERS": "tfds",
    "find_prepared": "tfds",
    "SpokenLines": "spoken",
    "PolySource": "poly",
    "overlay": "poly",
}
"""The module of each public name. It is imported on first use, because some load JAX."""

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
