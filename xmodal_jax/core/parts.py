"""Parts of a configuration that are chosen by name: an encoder, a decoder, an objective.

Each part is a frozen dataclass with the class variable ``name`` and only the options that it has. A union of such
classes is the table of what can be chosen::

    @dataclasses.dataclass(frozen=True)
    class ViTConfig:
        name: ClassVar[str] = "vit"
        patch: int = 8

    ImageEncoder = ConvNetConfig | ViTConfig

    choose(ImageEncoder, "vit")()  # ViTConfig(patch=8)
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any


def is_part(value: Any) -> bool:
    """Whether a value, or a class, is a part: a dataclass with the class variable ``name``."""
    kind = value if isinstance(value, type) else type(value)
    if not dataclasses.is_dataclass(kind) or not isinstance(getattr(kind, "name", None), str):
        return False
    return "name" not in options_of(kind)


def parts_of(union: Any) -> dict[str, type]:
    """The parts among the members of a union (or the one part that it is), by name; none for other annotations."""
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    members = typing.get_args(union) or (union,)
    return {member.name: member for member in members if isinstance(member, type) and is_part(member)}


def choose(union: Any, name: str) -> type:
    """The part of this name.

    Raises:
      ValueError: the union has no part of this name; the message lists the names that it has.
    """
    table = parts_of(union)
    if name not in table:
        raise ValueError(f"must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def options_of(part: Any) -> tuple[str, ...]:
    """The names of the options of a part (an instance or a class)."""
    return tuple(field.name for field in dataclasses.fields(part))
