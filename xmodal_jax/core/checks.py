"""Checks of the options of a configuration."""

from __future__ import annotations

from typing import Any


def check_at_least(options: Any, least: int, *names: str) -> None:
    """Raises ValueError where one of the named options, such as ``("width", "depth")``, is below ``least``."""
    for name in names:
        if getattr(options, name) < least:
            raise ValueError(
                f"{type(options).__name__}.{name} must be at least {least}, got {getattr(options, name)}"
            )
