"""The options of a configuration, and the short help that lists those which people set first."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import pathlib
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import tyro

from xmodal_jax.core import parts

WIDTH = 100
"""Columns of the short help."""
FLAG_WIDTH = 32
"""Columns before the descriptions begin; a longer flag stands on a separate line."""
ALL_FLAG = "--help-all"
LAST_GROUPS = ("pretrained encoders", "run")
"""Headings that come after all others."""


class Option(NamedTuple):
    """One option of a command line."""

    flag: str
    """Such as ``--model.image.patch``."""
    annotation: Any
    """Its type, without ``Annotated``."""
    default: Any
    """Its default value."""
    group: str
    """Heading of the short help that it stands under."""
    is_basic: bool
    """Whether the short help lists it."""
    description: str
    """The docstring of its field."""
    is_positional: bool = False
    """Whether its value is given by its place alone, without the flag."""

    @property
    def table(self) -> dict[str, type]:
        """The parts that it chooses among, by name; empty for an option with a plain value."""
        return parts.parts_of(self.annotation)


class Field(NamedTuple):
    """A field of a configuration and the path of its flags."""

    name: str
    annotation: Any
    """Its type, without ``Annotated``."""
    marks: tuple[Any, ...]
    """What ``Annotated`` adds to the type."""
    path: str
    """Such as ``model.image``; for a field whose flags have no prefix (`train.config.DataFlags`) that of its parent."""


def fields_of(config: Any, path: str = "") -> list[Field]:
    """The fields of a configuration whose flags begin with ``path``, such as ``model.image`` ("": the outermost)."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    fields = []
    for name in (field.name for field in dataclasses.fields(config)):
        annotation, marks = hints[name], ()
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *marks = typing.get_args(annotation)
        renamed = [mark.name for mark in marks if _is_renaming(mark)]
        flag_name = renamed[0] if renamed else name  # "" for a field whose options have no prefix
        field_path = ".".join(part for part in (path, flag_name) if part)
        fields.append(Field(name, annotation, tuple(marks), field_path))
    return fields


def _is_renaming(mark: Any) -> bool:
    """Whether a mark is ``tyro.conf.arg(name=...)``."""
    return type(mark) is type(tyro.conf.arg(name="")) and mark.name is not None


def flag_of(path: str) -> str:
    """The flag of a path: ``model.embed_dim`` is ``--model.embed-dim``."""
    return "--" + path.replace("_", "-")


def options_of(config: Any, path: str = "", group: str | None = None) -> Iterator[Option]:
    """All options of a configuration and of those nested in it, in the order of the fields.

    ``path``: prefix of the flags, such as ``model.image``. ``group``: the heading of all options in the short help;
    None: each field's own.
    """
    descriptions, headings = field_docs(type(config)), _headings(type(config))
    for field in fields_of(config, path):
        if parts.HelpLevel.NEITHER in field.marks:
            continue  # the program fills this field in
        value, is_choice = getattr(config, field.name), bool(parts.parts_of(field.annotation))
        is_nested = dataclasses.is_dataclass(value)
        heading = group or headings[field.name] or (field.name if is_nested else "experiment")
        is_advanced = parts.HelpLevel.ADVANCED in field.marks
        # A field with a plain value is an option, and so is one that holds a part: its flag chooses the part by name.
        if is_choice or not is_nested:
            # Unless it is marked, an option is basic at the top level, and a choice of a part also one level below.
            is_near_top = not path or (is_choice and field.path.count(".") < 2)
            is_basic = parts.HelpLevel.BASIC in field.marks or (is_near_top and not is_advanced)
            description = descriptions.get(field.name, "")
            is_positional = tyro.conf.Positional in field.marks
            flag = flag_of(field.path)
            yield Option(flag, field.annotation, value, heading, is_basic, description, is_positional)
        if is_nested:
            for option in options_of(value, field.path, heading):
                yield option._replace(is_basic=option.is_basic and not is_advanced)


def unused_options(config_class: type) -> tuple[str, ...]:
    """Options that a command does not use but a group of its options has, such as a data set's: its class variable
    ``unused_options``. The help leaves them out; the command takes them, and says what is wrong with them."""
    return getattr(config_class, "unused_options", ())


@functools.cache  # to parse the source takes a while, and a command line asks for each class many times
def field_docs(config_class: type) -> Mapping[str, str]:
    """The docstring below each field of a dataclass, read from its source; a subclass may repeat a field and replace
    its docstring."""
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):  # from the base class to the class itself
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        except (OSError, TypeError):  # defined where there is no source file
            continue
        for statement, next_statement in zip(body, body[1:], strict=False):
            # ``name: type = default`` and then a string
            if isinstance(statement, ast.AnnAssign) and isinstance(next_statement, ast.Expr):
                docs[statement.target.id] = inspect.cleandoc(ast.literal_eval(next_statement.value))
    return types.MappingProxyType(docs)


def _headings(config_class: type) -> dict[str, str | None]:
    """The heading of each field in the short help: the ``help_group`` of the class that declares it first, which is the
    most basic one; None where that class has no ``help_group``."""
    headings: dict[str, str | None] = {}
    for base in reversed(config_class.__mro__):  # from the base class to the class itself
        if dataclasses.is_dataclass(base):
            for name in inspect.get_annotations(base):
                headings.setdefault(name, base.__dict__.get("help_group"))
    return headings


def short_help(config: Any, description: str, program: str) -> str:
    """The text of ``--help``: usage, description, and the basic options under headings."""
    unused = {flag_of(name) for name in unused_options(type(config))}
    options = [option for option in options_of(config) if option.flag not in unused]
    basic = [option for option in options if option.is_basic]
    # In the order of the fields, but `LAST_GROUPS` at the end: False sorts before True.
    groups = sorted(dict.fromkeys(option.group for option in basic), key=LAST_GROUPS.__contains__)
    places = [_invocation(option) for option in options if option.is_positional]
    lines = [" ".join(["usage:", program, *places, "[--FLAG VALUE ...]"]), "", wrap_description(description)]
    for group in groups:
        lines += ["", f"{group}:"]
        for option in basic:
            if option.group == group:
                lines += _option_lines(option)
    if len(options) == len(basic):  # all of them are shown already
        return "\n".join(lines)
    note = (
        f"{ALL_FLAG} lists {len(options) - len(basic)} more options. Options below a choice are those of what is "
        f"chosen: put the choice before {ALL_FLAG} to see them."
    )
    return "\n".join([*lines, "", *_wrap(note, WIDTH)])


def wrap_description(description: str) -> str:
    """The docstring of a script in lines of `WIDTH`; indented lines are commands, which continue after a backslash."""
    lines: list[str] = []
    for block in _without_backticks(description).strip().split("\n\n"):
        if lines:
            lines.append("")
        if not block.startswith("    "):
            lines += _wrap(block, WIDTH)
            continue
        for command in block.splitlines():
            *continued, last = _wrap(command, WIDTH - 2, subsequent_indent=" " * 8)
            lines += [*(f"{line} \\" for line in continued), last]
    return "\n".join(lines)


def _wrap(text: str, width: int, **options: str) -> list[str]:
    """The text in lines of at most ``width`` columns. They break at spaces only, so that flags stay whole."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False, **options)


def _option_lines(option: Option) -> list[str]:
    """The lines of one option in the short help: the flag, and its description to the right of it, or below it if the
    flag is long."""
    text = f"{_without_backticks(_first_sentence(option.description))} {_default_note(option)}".strip()
    indent = " " * FLAG_WIDTH
    description = _wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) or [""]
    flag = f"  {_invocation(option)}"
    if len(flag) <= FLAG_WIDTH - 2:  # the flag takes the place of the first line's indent
        return [flag + description[0][len(flag) :], *description[1:]]
    if len(flag) > WIDTH:  # with spaces between the choices, so that the line can break there
        flag = f"  {option.flag} {metavar(option).replace(',', ', ')}"
    return [*_wrap(flag.strip(), WIDTH, initial_indent="  ", subsequent_indent=" " * 8), *description]


def _without_backticks(text: str) -> str:
    return text.replace("``", "")


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z0-9)\]`\"'}]\.)\s+(?=[A-Z\"'`-])", text.replace("\n", " "), maxsplit=1)[0]


def _invocation(option: Option) -> str:
    """How to write an option: ``--steps INT``, ``--[no-]resident`` for a switch that is on by default, or the name of a
    value that its place gives, ``RUN`` or ``FILES ...``."""
    if option.is_positional:
        several = " ..." if metavar(option).endswith(" ...") else ""
        return option.flag.removeprefix("--").replace("-", "_").upper() + several
    if option.default is True:
        path, _, name = option.flag.removeprefix("--").rpartition(".")
        return f"--{path}{'.' if path else ''}[no-]{name}"
    return f"{option.flag} {metavar(option)}".strip()


def metavar(option: Option) -> str:
    """The placeholder of a flag's value: ``INT``, or the choices as ``{jit,pmap}``; "" for a switch."""
    if option.table:
        return _braces(parts.names_of(option.annotation))
    return _type_name(option.annotation)


def _braces(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


def _type_name(annotation: Any) -> str:
    """The placeholder for a value of a type: ``INT``, ``FLOAT ...`` for a tuple of any length; "" for bool."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin in (typing.Union, types.UnionType):
        return "|".join(name for a in args if a is not type(None) and (name := _type_name(a)))
    if origin is Literal:
        return _braces(str(a) for a in args)
    if origin in (tuple, list):
        return f"{_type_name(args[0])} ..." if args[-1] is ... else " ".join(map(_type_name, args))
    names = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", pathlib.Path: "PATH"}
    return names.get(annotation, "VALUE")


def _default_note(option: Option) -> str:
    """The end of a description: ``(default: 3)`` or ``(required)``; "" for a default of None, False or empty."""
    default = option.default
    if default is None or default is False or default is tyro.MISSING or default in ("", ()):
        return "(required)" if default is tyro.MISSING else ""
    if default is True:
        return "(default: yes)"
    if option.table:
        default = default.name
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f"(default: {default})"
