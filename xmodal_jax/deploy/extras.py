"""Packages that only some formats need."""

from __future__ import annotations

import importlib.util


def require(packages: str, purpose: str) -> None:
    """Raises ValueError if one of the ``packages``, separated by spaces, is not installed; ``purpose``: what needs
    them."""
    missing = [name for name in packages.split() if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{purpose} needs the package {' and '.join(missing)}: pip install -r requirements-export.txt"
        )
