"""The command line of an experiment: flags become a configuration, a mistake one line.

::

    config = parse(Config, __doc__)

reads ``--steps 100 --model.image vit --model.image.patch 4``. The flag of a field that holds a part (`core.parts`)
chooses the part by name; the options of that part are flags below it. ``--help`` lists what people set first,
``--help-all`` every option (see `train.command_help`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import tyro

from xmodal_jax.core import parts
from xmodal_jax.train.command_help import (
    ALL_FLAG,
    Field,
    field_docs,
    fields_of,
    flag_of,
    options_of,
    short_help,
    wrap_description,
)

HELP_FLAGS = ("-h", "--help")


def parse(config_class: Any, description: str | None, args: Sequence[str] | None = None) -> Any:
    """The configuration that the words of a command line describe.

    Args:
      config_class: a dataclass, or a union of dataclasses (subcommands).
      description: what the script does, shown above the options (the script's ``__doc__``).
      args: the words; None: those of the process.

    Raises:
      SystemExit: with status 0 after ``--help`` or ``--help-all``; with status 2 after a mistake, which is told in one
        line on stderr.
    """
    words = list(sys.argv[1:] if args is None else args)
    wants_all = ALL_FLAG in words
    wants_help = wants_all or any(flag in words for flag in HELP_FLAGS)
    if wants_help:
        words = [word for word in words if word not in (ALL_FLAG, *HELP_FLAGS)]
    default = default_of(config_class)
    if default is not None:
        imply = getattr(config_class, "implied_parts", lambda flags: {})
        default, words = choose_parts(default, words, implied=imply({_flag_in(word) for word in words}))
    if wants_help and default is not None and not wants_all:
        print(short_help(default, description or "", sys.argv[0]))
        raise SystemExit(0)
    return _parse_with_tyro(config_class, description, ["--help"] if wants_help else words, default)


def choose_class(flag: str, classes: Mapping[str, Any], args: Sequence[str] | None = None) -> Any:
    """The configuration class that a flag chooses by name, for a script whose other defaults depend on that flag.

    Args:
      flag: with its hyphens. It stays in the words and is a field of every class.
      classes: by name; the first is taken where the flag is missing or has another value (which `parse` refuses).
      args: the words of the command line; None: those of the process.
    """
    name, _ = _take(list(sys.argv[1:] if args is None else args), flag)
    return classes.get(name, next(iter(classes.values())))


def default_of(config_class: Any) -> Any:
    """The configuration without any flag, in which required fields hold ``tyro.MISSING``; None for a union."""
    if not dataclasses.is_dataclass(config_class):
        return None
    required = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if not required:
        return config_class()
    config = object.__new__(config_class)
    for field in dataclasses.fields(config_class):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(config, field.name, tyro.MISSING if field.name in required else default)
    return config


def choose_parts(
    config: Any, words: list[str], path: str = "", implied: Mapping[str, str] = MappingProxyType({})
) -> tuple[Any, list[str]]:
    """``config`` with the parts that the words choose, and the other words.

    The part that a field holds by default keeps its values when it is chosen by name; any other begins with its own
    defaults. A part may hold parts itself, so that the outer ones are chosen first. ``implied``: parts by path that
    other flags choose (see ``implied_parts`` of `train.config.PretrainedConfig`).
    """
    changes: dict[str, Any] = {}
    for field in fields_of(config, path):
        value, table = getattr(config, field.name), parts.parts_of(field.annotation)
        if table:
            name, words = _take(words, flag_of(field.path))
            if name is not None:
                value = _part_named(name, value, field)
            if implied.get(field.path) in table:
                value = table[implied[field.path]].in_place_of(value)
        if dataclasses.is_dataclass(value):
            value, words = choose_parts(value, words, field.path, implied)
        if value is not getattr(config, field.name):
            changes[field.name] = value
    return (_replace_unchecked(config, changes) if changes else config), words


def _part_named(name: str, value: Any, field: Field) -> Any:
    """The part that a flag names, or None for ``none``; ends the program with a message if there is no such part."""
    if value is not None and name == value.name:
        return value
    if name == "none" and parts.is_optional(field.annotation):
        return None
    names, part = parts.names_of(field.annotation), parts.parts_of(field.annotation).get(name)
    if name in names:
        return part()
    if part is not None:
        _fail(f"{flag_of(field.path)}: {name!r} is chosen by {part.chosen_by}")
    _fail(f"{flag_of(field.path)}: must be one of {', '.join(names)}, got {name!r}")


def _take(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The last value of a flag, and the words without it."""
    value, others, remaining = None, [], iter(words)
    for word in remaining:
        _, equals, after = word.partition("=")
        if _flag_in(word) != flag:
            others.append(word)
            continue
        value = after if equals else next(remaining, None)
        if value is None or value.startswith("--"):
            _fail(f"{flag}: a name must follow")
    return value, others


def _flag_in(word: str) -> str | None:
    """The flag that a word consists of or begins with (``--a_b=3``: ``--a-b``); None where it is a value."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else None


def _replace_unchecked(config: Any, changes: dict[str, Any]) -> Any:
    """A copy with other fields, without ``__post_init__``: it may be valid only with the flags that follow."""
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(config, field.name)))
    return copy


def _parse_with_tyro(config_class: Any, description: str | None, words: list[str], default: Any) -> Any:
    """The configuration from the words by ``tyro.cli``; ends the program with one line if they are wrong."""
    error_output = io.StringIO()
    options = {} if default is None else {"default": default}
    errors = contextlib.nullcontext() if words == ["--help"] else _unwrapped_errors(error_output)
    try:
        with errors:
            config, unknown = tyro.cli(
                config_class,
                description=wrap_description(description or ""),
                args=words,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
                registry=_registry(),
                **options,
            )
    except SystemExit as exit:
        if not exit.code or words == ["--help"]:
            raise
        _fail(_message_of(error_output.getvalue(), config_class))
    print(error_output.getvalue(), end="", file=sys.stderr)
    if unknown:
        _fail(explain_unknown(unknown, default))
    return config


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Has tyro leave out the fields that the program fills in."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def without_filled_in(info: tyro.constructors.StructTypeInfo):
        """The options of a part without the fields that the program fills in; None: tyro's own rule applies."""
        if not parts.is_part(info.default) or isinstance(info.default, type):
            return None
        names = parts.options_of(info.default)
        if len(names) == len(dataclasses.fields(info.default)):
            return None
        docs, types = field_docs(type(info.default)), typing.get_type_hints(type(info.default))
        spec = tyro.constructors.StructFieldSpec
        return tyro.constructors.StructConstructorSpec(
            instantiate=functools.partial(dataclasses.replace, info.default),
            fields=tuple(spec(n, types[n], getattr(info.default, n), docs[n]) for n in names),
        )

    return registry


@contextlib.contextmanager
def _unwrapped_errors(stream: io.StringIO):
    """Writes stderr to ``stream``, in lines that are not wrapped."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stderr(stream):
            yield
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _message_of(box: str, config_class: Any) -> str:
    """The message within the box that tyro draws: below its title, above a ruler and further help."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()
    if lines and lines[0].startswith("╭"):
        lines = lines[1:]  # the title is part of the frame
    text = "\n".join(line.strip(" │╭╮╰╯") for line in lines)
    title, *below = re.split("^[─-]{3,}$", text, flags=re.MULTILINE)
    message = (
        below[0] if below and "╭" not in box else title
    )  # a frame of plain characters has the title apart
    message = re.sub(r"\s+", " ", message).strip()
    message = message.removeprefix(f"Error parsing {getattr(config_class, '__name__', '')}: ")
    return re.sub("^Error parsing (?:--)?", "--", message)


def explain_unknown(words: Sequence[str], config: Any) -> str:
    """What is wrong with words that no option takes."""
    flags = [flag for word in words if (flag := _flag_in(word))]
    if not flags:
        return f"{words[0]!r} belongs to no option; --help lists them"
    flag, options = flags[0], [] if config is None else list(options_of(config))
    above = [option for option in options if option.table and flag.startswith(f"{option.flag}.")]
    if above:
        return _explain_part(flag, max(above, key=lambda option: len(option.flag)))
    known = [option.flag for option in options]
    name = flag.lstrip("-").rpartition(".")[2]
    same_name = [other for other in known if other.endswith(f".{name}") or other == f"--{name}"]
    close = list(dict.fromkeys([*same_name, *difflib.get_close_matches(flag, known, n=3, cutoff=0.75)]))[:4]
    advice = f"close to it: {', '.join(close)}" if close else f"--help and {ALL_FLAG} list the options"
    return f"{flag}: no such option; {advice}"


def _explain_part(flag: str, choice: Any) -> str:
    """Why ``flag`` is no option of the part that ``choice`` holds."""
    option, part = flag.removeprefix(f"{choice.flag}."), choice.default
    if option == "name":
        return (
            f"{flag}: choose by {choice.flag} itself, one of {', '.join(parts.names_of(choice.annotation))}"
        )
    have = [
        name for name, other in choice.table.items() if option.replace("-", "_") in parts.options_of(other)
    ]
    elsewhere = f" ({', '.join(have)} {'has' if len(have) == 1 else 'have'} it)" if have else ""
    if part is None:
        return f"{flag}: {choice.flag} is 'none' and has no options{elsewhere}"
    names = ", ".join(name.replace("_", "-") for name in parts.options_of(part))
    return (
        f"{flag}: {choice.flag} is {part.name!r}, which has no option {option!r}{elsewhere}; "
        f"it has {names or 'none'}"
    )


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)
