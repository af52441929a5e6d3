"""Parts of a configuration that are chosen by name: an encoder, a decoder, an objective.

Each part is a frozen dataclass with the class variable ``name`` and only the options that it has. A union of such
classes is the table of what can be chosen::

    @dataclasses.dataclass(frozen=True)
    class ViTConfig:
        name: ClassVar[str] = "vit"
        patch: int = 8

    ImageEncoder = ConvNetConfig | ViTConfig

    choose(ImageEncoder, "vit")()  # ViTConfig(patch=8)

A part that cannot be chosen by its name alone has the class variable ``chosen_by``: the flag that chooses it.

A configuration also marks which of its options the short ``--help`` lists (`train.command_line`). It lists the options
of the command itself and the choices of parts down to ``--model.image``, and leaves the other options of nested groups
to ``--help-all``. ``Advanced[int]`` moves an option of the command to ``--help-all``; ``Basic[int]`` lists an option of
a nested group in the short help.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


class HelpLevel(enum.Enum):
    """Which help lists an option, where it is not the one that its depth decides."""

    BASIC = "--help"
    ADVANCED = "--help-all"
    NEITHER = "filled in"


Basic = Annotated[T, HelpLevel.BASIC]
"""``Basic[int]``: the type of an option of a nested group that the short help lists."""
Advanced = Annotated[T, HelpLevel.ADVANCED]
"""``Advanced[int]``: the type of an option of the command that only ``--help-all`` lists."""
FilledIn = Annotated[T, HelpLevel.NEITHER]
"""``FilledIn[int]``: the type of a field that the program fills in (such as a size that it reads from a checkpoint). It
has no flag."""


def is_part(value: Any) -> bool:
    """Whether a value, or a class, is a part of a configuration: a dataclass with the class variable ``name``."""
    cls = value if isinstance(value, type) else type(value)
    if not dataclasses.is_dataclass(cls) or not isinstance(getattr(cls, "name", None), str):
        return False
    # A field called "name" is not a class variable.
    return all(field.name != "name" for field in dataclasses.fields(cls))


def parts_of(union: Any) -> dict[str, type]:
    """The parts that an annotation allows, by name: the members of a union, or a single part; else an empty dict."""
    if typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]  # the annotation without its level of help
    members = typing.get_args(union) or (union,)
    return {member.name: member for member in members if isinstance(member, type) and is_part(member)}


def names_of(union: Any) -> list[str]:
    """The names by which the command line chooses a part of a union, with ``none`` where it may be left out.

    Parts that another flag chooses (``chosen_by``) are not among them.
    """
    names = [name for name, part in parts_of(union).items() if not hasattr(part, "chosen_by")]
    return [*names, "none"] if is_optional(union) else names


def check_choices(part: Any) -> None:
    """Checks the fields of a part whose type is a ``Literal``.

    Raises:
      ValueError: a value is not one of the field's literals; the message lists them.
    """
    for name, annotation in typing.get_type_hints(type(part), include_extras=True).items():
        value = getattr(part, name, None)
        choices = _literals(annotation)
        if choices and value not in choices:
            raise ValueError(f"{type(part).__name__}.{name} must be one of {choices}, got {value!r}")


def _literals(annotation: Any) -> tuple[Any, ...]:
    """The values that an annotation ``Literal[...]`` allows; for any other annotation an empty tuple.

    ``Literal[...] | None`` allows None too; both may be within ``Annotated``.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return args
    if origin is typing.Annotated:
        return _literals(args[0])
    if type(None) in args and len(args) == 2:
        literals = _literals(next(a for a in args if a is not type(None)))
        return (*literals, None) if literals else ()
    return ()


def is_optional(union: Any) -> bool:
    """Whether a union of parts has None among its members: no part."""
    return type(None) in typing.get_args(union)


def choose(union: Any, name: str) -> type:
    """The class of the part of this name, among those of a union.

    Raises:
      ValueError: the union has no part of this name; the message lists the names that it has.
    """
    table = parts_of(union)
    if name not in table:
        raise ValueError(f"must be one of {', '.join(table)}, got {name!r}")
    return table[name]


def options_of(part: Any) -> tuple[str, ...]:
    """The names of a part's options: its fields, except those that the program fills in (`FilledIn`).

    ``part`` is an instance or a class.
    """
    hints = typing.get_type_hints(part if isinstance(part, type) else type(part), include_extras=True)
    # `FilledIn[T]` is `Annotated[T, HelpLevel.NEITHER]`.
    filled_in = {name for name, hint in hints.items() if HelpLevel.NEITHER in typing.get_args(hint)[1:]}
    return tuple(field.name for field in dataclasses.fields(part) if field.name not in filled_in)
