"""The command line of an experiment: flags become a configuration, a mistake one line.

::

    config = parse(Config, __doc__)

reads ``--steps 100 --model.image vit --model.image.patch 4``. The flag of a field that holds a part (`core.parts`)
chooses the part by name; the options of that part are flags below it. ``--help`` lists what people set first,
``--help-all`` every option (see `train.command_help`). With ``--resume`` the flags that are not given have the values
of the run that is resumed. A script ends with ``run_script(main, Config, __doc__)``, which also reports the mistakes
that ``main`` finds in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import functools
import io
import logging
import os
import re
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import tyro

from xmodal_jax.core import parts
from xmodal_jax.core.interrupts import INTERRUPTED, raise_when_interrupted, repeat_lost_signals
from xmodal_jax.train.command_help import (
    ALL_FLAG,
    Field,
    Option,
    field_docs,
    fields_of,
    flag_of,
    options_of,
    short_help,
    unused_options,
    wrap_description,
)
from xmodal_jax.train.preemption import exit_on_termination
from xmodal_jax.train.recipes import fix_flags
from xmodal_jax.train.run import (
    AbandonedRuns,
    abandon_runs,
    check_same_experiment,
    from_json,
    names_in_run,
    read_config_file,
    refuse_remote,
)

HELP_FLAGS = ("-h", "--help")


TRACEBACK = "XMODAL_TRACEBACK"
"""With 1 in this environment variable, errors that would be one line show where they come from."""


def run_script(
    main: Callable[[Any], None], config_class: Any, description: str | None, args: Sequence[str] | None = None
) -> None:
    """Runs an experiment: ``main(config)`` with the configuration that the command line describes (see `parse`).

    A mistake that ``main`` finds is one line on stderr and exit status 2; an error after training has begun that the
    user can act on (the loss is no longer finite, the disk is full) is one line and status 1. Other errors show their
    traceback. Of a new run that ends before there is work in its directory, the directory is removed. SIGTERM ends the
    program with status 143, after temporary files have been removed; while training, it saves a checkpoint first.

    Args:
      main: the experiment.
      config_class, description, args: see `parse`.

    Example::

        if __name__ == "__main__":
            run_script(main, Config, __doc__)
    """
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # names of files and captions may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    config = parse(config_class, description, args)
    with exit_on_termination(), repeat_lost_signals(), _one_report_of_a_full_disk():
        try:
            raise_when_interrupted()
            main(config)
        except BaseException as error:
            abandoned = abandon_runs()
            message = None if os.environ.get(TRACEBACK) == "1" else explain_error(error, abandoned)
            is_interrupted = isinstance(error, KeyboardInterrupt)
            status = INTERRUPTED if is_interrupted else 1 if abandoned.has_begun or message is None else 2
            if _is_one_of_several() and not isinstance(error, SystemExit):
                print(message or traceback.format_exc(), file=sys.stderr)
                _exit_alone(status)
            if message is None:
                raise
            print(message, file=sys.stderr)
            raise SystemExit(status) from None
        if _is_one_of_several():
            _end_together()


def _is_one_of_several() -> bool:
    """Whether this is one of several processes that have found each other."""
    if "jax" not in sys.modules:  # takes a while to import, which a mistake in the flags need not wait for
        return False
    import jax

    return jax.distributed.is_initialized()


def _end_together() -> None:
    """Ends this process with status 0 when all others have come here too, which may wait for the report that one of
    them writes. JAX's own end would wait for minutes where SIGTERM has come after the last step of the training, for an
    agreement on a step to stop at, or leave the processes that wait without a handler of the signal."""
    from jax._src import distributed

    state = distributed.global_state
    try:
        state.client.wait_at_barrier("end of the program", timeout_in_ms=600_000)
    except RuntimeError:  # another process has failed, or takes too long: JAX ends this one
        return
    if state.process_id == 0:  # serves the others, who would fail if it ended first
        time.sleep(1.0)
    _exit_alone(0)


def _exit_alone(status: int) -> NoReturn:
    """Ends this process at once, without waiting for the others as JAX does at the end: they may be in a computation
    that waits for this one. When its connections close, they end with an error of their own. The system drops its
    locks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def explain_error(error: BaseException, abandoned: AbandonedRuns) -> str | None:
    """The message in one line of an error that the user can act on (with a command to go on with in a second line);
    None: it is a fault of the program, or no error.

    ``abandoned``: the runs that were open. Before training has begun, also what other libraries refuse is taken for a
    mistake in the flags.
    """
    from xmodal_jax.train.loop import (  # here, because they take long to import
        NonFiniteError,
        describe_interruption,
    )

    message = " ".join(str(error).split()) or type(error).__name__
    if any(map(_is_disk_full, _causes(error))):
        advice = "start again" if abandoned.last is None else "go on with --resume"
        files = [
            match[1] for cause in _causes(error) if (match := re.search("[\"'](/[^\"']+)[\"']", str(cause)))
        ]
        where = f" ({files[0]} could not be written)" if files else ""
        return f"the disk is full{where}: free some space and {advice}"
    if isinstance(error, KeyboardInterrupt):
        can_resume = abandoned.last is not None and hasattr(abandoned.last.config, "resume")
        return describe_interruption(abandoned.last) if can_resume else "interrupted"
    if not isinstance(error, ValueError | OSError | ImportError | MemoryError | NonFiniteError | TypeError):
        return None
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own_folders = (Path(__file__).parents[1], Path(sys.argv[0]).resolve().parent)
    if any(Path(frame.filename).is_relative_to(folder) for folder in own_folders):
        return None if isinstance(error, TypeError) else message
    if isinstance(error, OSError) and error.filename is not None:
        return message
    if abandoned.has_begun:
        return None
    where = "/".join(Path(frame.filename).parts[-3:])
    return f"{message} ({type(error).__name__} in {where}, line {frame.lineno}; {TRACEBACK}=1 shows the way there)"


@contextlib.contextmanager
def _one_report_of_a_full_disk() -> Iterator[None]:
    """A context in which a full disk is reported by the main thread only, not also by each of the threads that write a
    checkpoint, with hundreds of lines. After such an error it lasts until the program ends, for they may go on."""
    print_error, print_error_of_thread, is_full = sys.unraisablehook, threading.excepthook, False

    def hook(args):  # called with what the callbacks of these threads raise after the end of their event loop
        if str(args.exc_value) != "Event loop is closed":
            print_error(args)

    def is_reported_elsewhere(error: BaseException | None) -> bool:
        """Whether an error of such a thread is that of a full disk."""
        nonlocal is_full
        is_reported = error is not None and any(map(_is_disk_full, _causes(error)))
        is_full = is_full or is_reported
        return is_reported

    def hook_of_thread(args):
        if not is_reported_elsewhere(args.exc_value):
            print_error_of_thread(args)

    def is_shown(record: logging.LogRecord) -> bool:
        """Whether a record of Orbax's log is shown."""
        return not is_reported_elsewhere(record.exc_info[1] if record.exc_info else None)

    log = logging.getLogger("absl")
    log.addFilter(is_shown)
    sys.unraisablehook, threading.excepthook = hook, hook_of_thread
    try:
        yield
    finally:
        if not is_full:
            log.removeFilter(is_shown)
            sys.unraisablehook, threading.excepthook = print_error, print_error_of_thread


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from, or raised while handling."""
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def parse(config_class: Any, description: str | None, args: Sequence[str] | None = None) -> Any:
    """The configuration that a command line describes.

    Args:
      config_class: a dataclass, or a union of dataclasses (subcommands).
      description: what the script does, shown above the options (the script's ``__doc__``).
      args: the words of the command line; None: those of the process.

    Raises:
      SystemExit: with status 0 after ``--help`` or ``--help-all``; with status 2 after a mistake, which is reported in
        one line on stderr.
    """
    words = _join_repeated(list(sys.argv[1:] if args is None else args), "--data")
    flags = _values_by_flag(words)
    wants_all = ALL_FLAG in words
    wants_help = wants_all or any(flag in words for flag in HELP_FLAGS)
    if wants_help:
        words = [word for word in words if word not in (ALL_FLAG, *HELP_FLAGS)]
    resumed = _config_to_resume(config_class, words)
    default = resumed or default_of(config_class)
    if default is not None:
        # Choose the parts first: which other flags exist, and their defaults, depends on them.
        has_implied = hasattr(config_class, "implied_parts")
        implied = config_class.implied_parts(flags) if has_implied else {}
        default, words = choose_parts(default, words, implied=implied)
    if wants_help and default is not None and not wants_all:
        print(short_help(default, description or "", sys.argv[0]))
        raise SystemExit(0)
    config = _parse_with_tyro(config_class, description, ["--help"] if wants_help else words, default)
    _check_values(config)
    if hasattr(config, "fixed_flags"):
        config = fix_flags(config, flags, resumed=resumed is not None)
    if flags.keys() == {"--resume", "--run-dir"} and config.run_dir is not None:
        _refuse_to_resume_nothing(config.run_dir)
    return config


def _refuse_to_resume_nothing(folder: Path) -> None:
    """Ends the program with a message if a command line of ``--resume`` and ``--run-dir`` alone names a directory
    without a run: most likely it is misspelt. With other flags a new run begins there."""
    if not folder.is_file() and not names_in_run(folder):
        _fail(
            f"--resume: --run-dir {folder} holds no run to go on with, and no other flag says what to train: correct "
            "the directory, or leave --resume out to start a run with the default of every option"
        )


def _stored_config(words: Sequence[str]) -> tuple[dict[str, Any], Path] | None:
    """``config.json`` of the run that the words of a command line resume, and its directory; None: they resume none."""
    if "--resume" not in map(_flag_in, words):
        return None
    name, _ = _take(list(words), "--run-dir")
    folder = Path(name or "")
    if name is None or not (folder / "config.json").is_file():
        return None
    try:
        return read_config_file(folder), folder
    except ValueError as error:
        _fail(str(error))


def _config_to_resume(config_class: Any, words: Sequence[str]) -> Any:
    """The configuration of the run that the words resume, whose values the flags override; None: they resume none."""
    if not dataclasses.is_dataclass(config_class):
        return None
    if not {"resume", "run_dir"} <= {field.name for field in dataclasses.fields(config_class)}:
        return None
    stored = _stored_config(words)
    if stored is None:
        return None
    values, folder = stored
    try:
        check_same_experiment(values, config_class, folder)
    except ValueError as error:
        _fail(str(error))
    try:
        config = from_json(config_class, values)
    except (ValueError, TypeError, AttributeError) as error:
        _fail(f"{folder / 'config.json'} cannot be resumed: {error}")
    return _replace_unchecked(config, {"resume": False})  # the word --resume sets it


SIZES = frozenset(
    "accumulate beams components d_steps downsample draws embed_dim every examples gallery heads hidden hop kernel "
    "latent latents mels objects patch samples tubelet vocab_size width window".split()
)
"""Options, by the last part of their names, that are at least 1 wherever they occur. No integer option is negative."""


def _check_values(config: Any) -> None:
    """Ends the program with a message if the value of an option can be right in no configuration: a path that is a
    remote address, a negative integer, a size of 0, a number that is NaN. What depends on other options is checked by
    the classes of the options themselves."""
    for option in options_of(config):
        name = option.flag.rpartition(".")[2].removeprefix("--").replace("-", "_")
        for value in option.default if isinstance(option.default, tuple) else (option.default,):
            if isinstance(value, Path) and not str(value).startswith(
                "hf:"
            ):  # in place of a run, see `inference.load`
                try:
                    refuse_remote(value, option.flag)
                except ValueError as error:
                    _fail(str(error))
            if type(value) is int and value < (name in SIZES):
                _fail(f"{option.flag} must be at least {int(name in SIZES)}, got {value}")
            if value != value:
                _fail(f"{option.flag}: nan is not a number")


def choose_class(flag: str, classes: Mapping[str, Any], args: Sequence[str] | None = None) -> Any:
    """The configuration class that a flag chooses by name, for a script whose other defaults depend on that flag.

    Args:
      flag: such as ``--task``. Every class has a field of this name, so `parse` reads the flag again.
      classes: by the flag's value; the first is taken where the flag is missing or has another value (which `parse`
        refuses). With ``--resume`` a missing flag has the value of the run that is resumed.
      args: the words of the command line; None: those of the process.
    """
    words = list(sys.argv[1:] if args is None else args)
    name, _ = _take(words, flag)
    if name is None and (stored := _stored_config(words)) is not None:
        name = stored[0].get(flag.removeprefix("--").replace("-", "_"))
    return classes.get(name, next(iter(classes.values())))


def default_of(config_class: Any) -> Any:
    """The configuration when no flag is given, in which required fields hold ``tyro.MISSING``; None for a union."""
    if not dataclasses.is_dataclass(config_class):
        return None
    required = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if not required:
        return config_class()
    config = object.__new__(config_class)  # without __init__, which would ask for the required fields
    for field in dataclasses.fields(config_class):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        object.__setattr__(config, field.name, tyro.MISSING if field.name in required else default)
    return config


def choose_parts(
    config: Any, words: list[str], path: str = "", implied: Mapping[str, str] = MappingProxyType({})
) -> tuple[Any, list[str]]:
    """``config`` with the parts that the words of a command line choose, and the words without these choices.

    A part that is chosen by name has its own defaults, unless it is the one that the field holds already, which keeps
    its values. A part may hold other parts, which are chosen after it.

    Args:
      config: the configuration whose flags begin with ``path``.
      words: of the command line, such as ``["--model.image", "vit", "--steps", "10"]``.
      path: such as ``model.image``; "": the outermost configuration.
      implied: names of the parts that other flags choose, by path (see ``implied_parts`` of
        `train.config.PretrainedConfig`).
    """
    changes: dict[str, Any] = {}
    for field in fields_of(config, path):
        value, parts_by_name = getattr(config, field.name), parts.parts_of(field.annotation)
        if parts_by_name:
            name, words = _take(words, flag_of(field.path))
            if name is not None:
                value = _part_named(name, value, field)
            if implied.get(field.path) in parts_by_name:
                # The implied part keeps the options that it shares with the part chosen so far.
                value = parts_by_name[implied[field.path]].in_place_of(value)
        if dataclasses.is_dataclass(value):
            value, words = choose_parts(value, words, field.path, implied)
        if value is not getattr(config, field.name):
            changes[field.name] = value
    return (_replace_unchecked(config, changes) if changes else config), words


def _part_named(name: str, value: Any, field: Field) -> Any:
    """The part that the flag of ``field`` chooses by ``name``, or None for "none"; ends the program with a message if
    there is no such part. ``value``: the part that the field holds so far."""
    if value is not None and name == value.name:
        return value
    if name == "none" and parts.is_optional(field.annotation):
        return None
    names, part = parts.names_of(field.annotation), parts.parts_of(field.annotation).get(name)
    if name in names:
        return part()
    if part is not None:  # a part that only another flag can choose, such as --image-encoder
        _fail(f"{flag_of(field.path)}: {name!r} is chosen by {part.chosen_by}")
    _fail(f"{flag_of(field.path)}: must be one of {', '.join(names)}, got {name!r}")


def _take(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of a flag (the last one if it is repeated; None if it is missing), and the words without it.

    ``--flag value`` and ``--flag=value`` are the same.
    """
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


def _join_repeated(words: list[str], flag: str) -> list[str]:
    """The words with the values of a repeated flag in its first place: ``--data A --data B`` is ``--data A B``."""
    if [_flag_in(word) for word in words].count(flag) < 2:
        return words
    others, values, is_value = [], [], False
    for word in words:
        if (name := _flag_in(word)) is not None:
            is_value = name == flag
            values += [word.partition("=")[2]] if is_value and "=" in word else []
        elif is_value:
            values.append(word)
        if name == flag and flag not in others:
            others.append(flag)
        elif name != flag and not is_value:
            others.append(word)
    place = others.index(flag) + 1
    return [*others[:place], *values, *others[place:]]


def _flag_in(word: str) -> str | None:
    """The flag in a word of the command line: ``--a-b`` for ``--a_b`` and for ``--a_b=3``; None for a value."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else None


def _values_by_flag(words: Sequence[str]) -> dict[str, str]:
    """The first value of each flag among the words of a command line (of a repeated flag, of the last one); "" for a
    flag without a value."""
    values = {}
    for word, next_word in zip(words, [*words, "--"][1:], strict=True):
        if (flag := _flag_in(word)) is not None:
            _, equals, after = word.partition("=")
            values[flag] = after if equals else "" if next_word.startswith("--") else next_word
    return values


def _replace_unchecked(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of ``config`` with some fields changed, and without the checks of ``__post_init__``: the configuration may
    become valid only with flags that are read later."""
    copy = object.__new__(type(config))
    for field in dataclasses.fields(config):
        object.__setattr__(copy, field.name, changes.get(field.name, getattr(config, field.name)))
    return copy


def _parse_with_tyro(config_class: Any, description: str | None, words: list[str], default: Any) -> Any:
    """The configuration that ``tyro.cli`` reads from the words; ends the program with one line if they are wrong."""
    error_output = io.StringIO()
    options = {} if default is None else {"default": default}
    # Tyro's errors are a box of several lines on stderr: it is caught, and `_message_of` takes the message out. With
    # "--help" alone tyro prints its help and exits: nothing is caught, so that the help has the terminal's width.
    errors = contextlib.nullcontext() if words == ["--help"] else _unwrapped_errors(error_output)
    try:
        with errors:
            config, unknown = tyro.cli(
                config_class,
                description=wrap_description(description or ""),
                args=words,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
                registry=_registry(unused_options(config_class) if words == ["--help"] else ()),
                **options,
            )
    except SystemExit as exit:
        if not exit.code or words == ["--help"]:
            raise
        _fail(_message_of(error_output.getvalue(), config_class))
    except ValueError as error:  # of a group of options whose flags have no prefix, which tyro lets pass
        _fail(" ".join(str(error).split()))
    print(error_output.getvalue(), end="", file=sys.stderr)  # tyro's warnings, caught with its errors
    if unknown:
        _fail(explain_unknown(unknown, default))
    return config


def _registry(unused: Collection[str] = ()) -> tyro.constructors.ConstructorRegistry:
    """Rules with which tyro makes no options of the fields that the program fills in itself (see `core.parts`), nor of
    those that a command leaves ``unused``."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.struct_rule
    def without_filled_in(info: tyro.constructors.StructTypeInfo):
        """The options of a group that has fields which are none; None: tyro's own rule applies."""
        if not dataclasses.is_dataclass(info.default) or isinstance(info.default, type):
            return None
        names = fields = [field.name for field in dataclasses.fields(info.default)]
        if parts.is_part(info.default):
            names = parts.options_of(info.default)
        names = [name for name in names if name not in unused]
        if len(names) == len(fields):  # all are options
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
    """A context in which stderr goes to ``stream``, in lines that tyro does not wrap."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"  # tyro wraps at the width of the terminal
    try:
        with contextlib.redirect_stderr(stream):
            yield
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _message_of(box: str, config_class: Any) -> str:
    """The error message in one line, taken out of the box that tyro draws.

    Within a frame of box characters the title is part of the frame's first line; the message follows, and then a ruler
    and further help. Without such characters the title has its own line, and a ruler separates it from the message.
    """
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()  # without codes of colours
    if lines and lines[0].startswith("╭"):
        lines = lines[1:]
    text = "\n".join(line.strip(" │╭╮╰╯") for line in lines)
    before_ruler, *after_rulers = re.split("^[─-]{3,}$", text, flags=re.MULTILINE)
    message = after_rulers[0] if after_rulers and "╭" not in box else before_ruler
    message = re.sub(r"\s+", " ", message).strip()
    message = message.removeprefix(f"Error parsing {getattr(config_class, '__name__', '')}: ")
    message = re.sub("^Error parsing (?:--)?", "--", message)
    return re.sub(WRONG_VALUE, lambda match: _explain_value(*match.groups()), message)


WRONG_VALUE = (
    r"invalid literal for (int)\(\) with base 10: (.*)$"
    r"|could not convert string to (float): (.*)$"
    r"|no type matching (.+?) could be instantiated from \[(.*?)\]\. Got errors: .*$"
)
"""What tyro writes of a value that is not of the type of its option: the message of Python's conversion, or, where the
option has several types, one message for each."""

TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "{None}": "None",
    "{[int [int ...]]}": "whole numbers",
    "{[float [float ...]]}": "numbers",
}
"""How messages name the types of options; others as tyro writes them in its help."""


def _explain_value(*groups: str | None) -> str:
    """What is expected in place of a value. ``groups``: those of `WRONG_VALUE`, of which one pair is not None: the
    types, such as ``{None}|INT``, and the value in quotes."""
    types, value = (group for group in groups if group is not None)
    names = [TYPE_WORDS.get(name, TYPE_WORDS.get(name.lower(), name)) for name in types.split("|")]
    names.sort(key="None".__eq__)  # None comes last
    advice = ""
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value.strip("'"))
        if number.is_integer() and "a whole number" in names:
            advice = f"; write {int(number)}"
    return f"{' or '.join(names)} is expected, got {value}{advice}"


def explain_unknown(words: Sequence[str], config: Any) -> str:
    """The error message for words of a command line that no option of ``config`` takes; the first flag among them
    counts."""
    flags = [flag for word in words if (flag := _flag_in(word))]
    if not flags:
        return f"{words[0]!r} belongs to no option; --help lists them"
    flag, options = flags[0], [] if config is None else list(options_of(config))
    # Is it meant for a part? For --model.image.patch the choice --model.image is above it; the longest is the nearest.
    choices_above = [option for option in options if option.table and flag.startswith(f"{option.flag}.")]
    if choices_above:
        return _explain_part(flag, max(choices_above, key=lambda option: len(option.flag)))
    # If not, suggest flags that end alike (--width: --model.width) or are spelt alike.
    known = [option.flag for option in options]
    name = flag.lstrip("-").rpartition(".")[2]
    same_name = [other for other in known if other.endswith(f".{name}") or other == f"--{name}"]
    close = list(dict.fromkeys([*same_name, *difflib.get_close_matches(flag, known, n=3, cutoff=0.75)]))[:4]
    advice = f"close to it: {', '.join(close)}" if close else f"--help and {ALL_FLAG} list the options"
    return f"{flag}: no such option; {advice}"


def _explain_part(flag: str, choice: Option) -> str:
    """The error message for a flag such as ``--model.image.patch``, which the part chosen by ``choice``
    (``--model.image``) does not have; it names the parts that do."""
    option, part = flag.removeprefix(f"{choice.flag}."), choice.default
    if option == "name":
        return (
            f"{flag}: choose by {choice.flag} itself, one of {', '.join(parts.names_of(choice.annotation))}"
        )
    owners = [
        name for name, other in choice.table.items() if option.replace("-", "_") in parts.options_of(other)
    ]
    elsewhere = f" ({', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it)" if owners else ""
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
