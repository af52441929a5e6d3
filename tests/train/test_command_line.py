"""Flags to a configuration: parts by name, help of two screens, mistakes in one line."""

import dataclasses
import errno
import importlib.util
import json
import logging
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time
import types
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
import tyro

from tests.report.test_next_steps import EXAMPLES
from xmodal_jax.core.parts import Advanced, Basic, FilledIn
from xmodal_jax.train import command_line
from xmodal_jax.train.command_help import field_docs, options_of, short_help, wrap_description
from xmodal_jax.train.command_line import _message_of, default_of, parse, run_script
from xmodal_jax.train.config import RunConfig, shrink
from xmodal_jax.train.loop import NonFiniteError, describe_interruption
from xmodal_jax.train.run import Run, from_json, to_json

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Convolutions:
    """Convolutions."""

    name: ClassVar[str] = "convolutions"
    width: int = 16
    """Channels."""
    norm: Literal["group", "none"] = "group"
    """Normalisation."""

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width must be positive, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Patches:
    """A transformer over patches."""

    name: ClassVar[str] = "patches"
    patch: int = 8
    """Side of a patch."""
    depth: int = 2
    """Blocks."""


@dataclasses.dataclass(frozen=True)
class Frames:
    """An image encoder for each frame."""

    name: ClassVar[str] = "frames"
    image: "Convolutions | Patches" = Convolutions()
    """Encoder of a frame."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An encoder from a file."""

    name: ClassVar[str] = "loaded"
    chosen_by: ClassVar[str] = "--load FILE"
    file: FilledIn[str | None] = None
    """What was read."""
    width: int = 1
    """Channels."""

    @classmethod
    def in_place_of(cls, other):
        return cls(width=getattr(other, "width", 5))


Encoder = Convolutions | Patches | Frames | Loaded
Frames.__annotations__["image"] = Convolutions | Patches


@dataclasses.dataclass(frozen=True)
class Model:
    """A model."""

    encoder: Encoder = Convolutions(norm="none")
    """Encoder."""
    second: Convolutions | Patches | None = None
    """Another encoder."""
    embed_dim: Basic[int] = 4
    """Dimensions of the embedding. They are few."""
    scale: float = 1.0
    """Factor."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How data are read."""

    size: int | None = None
    """Pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The options of all."""

    help_group: ClassVar[str] = "base"
    steps: int = 3
    """Steps."""
    dispatch: Advanced[int] = 1
    """Steps per call."""
    progress: bool = True
    """Whether to show progress."""
    input: Annotated[Reading, tyro.conf.arg(name="")] = Reading()
    """How data are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Base):
    """The options of one."""

    steps: int = 5
    """Steps of this one."""
    names: tuple[str, ...] = ()
    """Names."""
    load: Advanced[str | None] = None
    """File of an encoder."""
    model: Model = Model()
    """The model."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")

    @classmethod
    def implied_parts(cls, flags):
        return {"model.encoder": "loaded"} if "--load" in flags else {}


def read(words):
    return parse(Config, "A test.", words.split())


def mistake(words, capsys):
    """The line on stderr."""
    with pytest.raises(SystemExit) as exit:
        read(words)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and err.count("\n") == 1, err
    return err.strip()


def test_plain_flags():
    assert read("") == Config()
    assert read("--steps 7 --size 3 --no-progress --names a b --model.embed_dim=9") == Config(
        steps=7, input=Reading(3), progress=False, names=("a", "b"), model=Model(embed_dim=9)
    )


@pytest.mark.parametrize("words", ["--model.encoder patches", "--model.encoder=patches"])
def test_a_part_by_name_has_its_own_defaults(words):
    assert read(f"--model.encoder.patch 4 {words}").model.encoder == Patches(4)


def test_the_part_of_the_default_keeps_its_values():
    assert read("--model.encoder convolutions --model.encoder.width 3").model.encoder == Convolutions(
        3, "none"
    )
    assert read("--model.encoder patches --model.encoder convolutions").model.encoder == Convolutions(
        norm="none"
    )


def test_a_part_within_a_part():
    words = "--model.encoder.image patches --model.encoder frames --model.encoder.image.patch 2"
    assert read(words).model.encoder == Frames(Patches(2))


def test_an_optional_part():
    assert read("--model.second patches").model.second == Patches()
    assert read("--model.second patches --model.second none").model.second is None


def test_another_flag_may_imply_a_part():
    assert read("--load a").model.encoder == Loaded(width=16)
    assert read("--load=a --model.encoder patches --model.encoder.width 7").model.encoder == Loaded(width=7)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--model.encoder loaded", "--model.encoder: 'loaded' is chosen by --load FILE"),
        (
            "--load a --model.encoder.file b",
            "--model.encoder.file: --model.encoder is 'loaded', which has no option 'file'; it has width",
        ),
        ("--model.encoder ring", "--model.encoder: must be one of convolutions, patches, frames, got 'ring'"),
        (
            "--model.second ring",
            "--model.second: must be one of convolutions, patches, none, got 'ring'",
        ),
        ("--model.encoder --steps 3", "--model.encoder: a name must follow"),
        (
            "--model.encoder.patch 4",
            "--model.encoder.patch: --model.encoder is 'convolutions', which has no option 'patch' (patches has it); "
            "it has width, norm",
        ),
        (
            "--model.encoder frames --model.encoder.image.depth=4",
            "--model.encoder.image.depth: --model.encoder.image is 'convolutions', which has no option 'depth' "
            "(patches has it); it has width, norm",
        ),
        (
            "--model.second.width 4",
            "--model.second.width: --model.second is 'none' and has no options (convolutions has it)",
        ),
        (
            "--model.encoder.name patches",
            "--model.encoder.name: choose by --model.encoder itself, one of convolutions, patches, frames",
        ),
        ("--model.embed_dmi 3", "--model.embed-dmi: no such option; close to it: --model.embed-dim"),
        ("--scale 3", "--scale: no such option; close to it: --model.scale"),
        ("--zzz", "--zzz: no such option; --help and --help-all list the options"),
        ("--names a --zzz", "--zzz: no such option; --help and --help-all list the options"),
        ("seven", "'seven' belongs to no option; --help lists them"),
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--model.encoder.width 0", "--model.encoder: width must be positive, got 0"),
        ("--steps many", "--steps: a whole number is expected, got 'many'"),
        ("--steps 1e3", "--steps: a whole number is expected, got '1e3'; write 1000"),
        ("--steps 1e400", "--steps: a whole number is expected, got '1e400'"),
        ("--steps nan", "--steps: a whole number is expected, got 'nan'"),
        ("--steps 2.5", "--steps: a whole number is expected, got '2.5'"),
        ("--size many", "--size: a whole number or None is expected, got 'many'"),
        ("--model.scale wide", "--model.scale: a number is expected, got 'wide'"),
        (
            "--model.encoder.norm batch",
            "invalid choice 'batch' for argument '--model.encoder.norm'. Expected one of ('group', 'none').",
        ),
        ("--steps", "Missing value for argument '--steps'. Expected 1 values."),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert mistake(words, capsys) == message


FRAMED = """\
\x1b[31m╭─ Value error ──────────────────────────╮
│ Error parsing --steps: invalid literal  │
│ for int() with base 10: 'x'             │
│ ─────────────────────────────────────── │
│ Argument helptext:                      │
╰─────────────────────────────────────────╯\x1b[0m
"""


def test_the_frame_of_a_terminal_is_left_out():
    assert _message_of(FRAMED, Config) == "--steps: a whole number is expected, got 'x'"


def test_a_choice_is_checked_with_the_flags_that_follow_it():
    """`__post_init__` runs on the whole only."""
    assert read("--model.encoder frames --steps 1").model.encoder == Frames()


HELP = """\
usage: test.py [--FLAG VALUE ...]

A test.

experiment:
  --names TEXT ...              Names.

model:
  --model.encoder {convolutions,patches,frames}
                                Encoder. (default: convolutions)
  --model.second {convolutions,patches,none}
                                Another encoder.
  --model.embed-dim INT         Dimensions of the embedding. (default: 4)

base:
  --steps INT                   Steps of this one. (default: 5)
  --[no-]progress               Whether to show progress. (default: yes)
  --size INT                    Pixels.

--help-all lists 5 more options. Options below a choice are those of what is chosen: put the choice
before --help-all to see them.
"""


def test_help_lists_what_people_set_first(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setattr("xmodal_jax.train.command_help.LAST_GROUPS", ("base",))
    with pytest.raises(SystemExit) as exit:
        read("--help")
    assert exit.value.code == 0
    assert capsys.readouterr().out == HELP


def test_help_all_lists_all_options_of_the_chosen_parts(capsys):
    with pytest.raises(SystemExit) as exit:
        read("--model.encoder patches --help-all")
    text = capsys.readouterr().out
    assert exit.value.code == 0
    for flag in ("--dispatch", "--model.encoder.patch", "--model.scale", "--steps"):
        assert flag in text
    assert "--model.encoder.width" not in text


def test_a_command_is_broken_at_spaces_only():
    command = "    python test.py " + "--long-flag-name value " * 8
    _, _, first, *others = wrap_description(f"A test.\n\n{command}").splitlines()
    assert others and first.endswith(" \\")
    words = " ".join(line.removesuffix("\\") for line in [first, *others]).split()
    assert words == command.split()


def test_required_options():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        """What needs a name."""

        name: str
        count: int = 1

    assert default_of(Needs).name is tyro.MISSING
    assert parse(Needs, None, ["--name", "a"]) == Needs("a")
    with pytest.raises(SystemExit):
        parse(Needs, None, [])


def test_docs_of_a_subclass_replace_those_of_its_base():
    assert field_docs(Config)["steps"] == "Steps of this one."
    assert field_docs(Config)["progress"] == "Whether to show progress."


@pytest.fixture(scope="module")
def scripts():
    modules = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))  # where a script finds another that it builds on
        for name in SCRIPTS:
            spec = importlib.util.spec_from_file_location(
                f"script_{name}", ROOT / "experiments" / f"{name}.py"
            )
            modules[name] = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, modules[name])
            spec.loader.exec_module(modules[name])
        yield modules


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "rate"])
def test_help_of_every_script_fits_two_screens(name, scripts):
    config = default_of(scripts[name].Config)
    lines = short_help(config, scripts[name].__doc__, f"experiments/{name}.py").splitlines()
    assert 10 < len(lines) <= 110
    assert max(map(len, lines)) <= 100
    undocumented = [option.flag for option in options_of(config) if not option.description]
    assert not undocumented


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("rate", "export")])
def test_a_configuration_comes_back_from_its_file(name, scripts):
    classes = [scripts[name].Config, *([scripts[name].CommandConfig] if name == "fusion" else [])]
    for config_class in classes:
        config = config_class(**EXAMPLES[name]) if name in EXAMPLES else default_of(config_class)
        assert from_json(config_class, json.loads(json.dumps(to_json(config)))) == config


@dataclasses.dataclass(frozen=True)
class Resumable(Config):
    """An experiment whose runs can be resumed."""

    run_dir: pathlib.Path | None = None
    """Directory."""
    resume: bool = False
    """Go on."""


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("", "shapes"), ("--data a", "a"), ("--data a b", ("a", "b")), ("--data a --steps 5 --data b", ("a", "b")),
        ("--data=a --data=b c --steps 5", ("a", "b", "c")), ("--steps 5 --data a b --data=c", ("a", "b", "c")),
    ],
)  # fmt: skip
def test_several_data_sets_follow_one_flag_or_repeat_it(words, data, tmp_path):
    config = parse(RunConfig, None, words.split())
    assert config.data == data and config.steps == (5 if "5" in words else RunConfig().steps)
    assert from_json(RunConfig, to_json(config)) == config
    run_dir = ["--run-dir", str(tmp_path)]
    with Run.create(tmp_path, config, tensorboard=False) as run:
        run.log(1, {"train/loss": 1.0})
    assert parse(RunConfig, None, [*run_dir, "--resume"]).data == data
    assert shrink(dataclasses.replace(config, data=("a?train_size=90&seed=1", "b?x=100"))).data == (
        "a?train_size=64&seed=1", "b?x=100",
    )  # fmt: skip


def test_weights_of_data_sets_are_numbers(capsys):
    assert parse(RunConfig, None, "--data-weights 2 0.5".split()).input.data_weights == (2.0, 0.5)
    with pytest.raises(SystemExit):
        parse(RunConfig, None, "--data-weights 2 x".split())
    assert capsys.readouterr().err == "--data-weights: numbers or None is expected, got '2', 'x'\n"


def test_a_resumed_run_needs_no_other_flag_and_given_flags_override(tmp_path):
    folder = tmp_path / "run"
    words = ["--run-dir", str(folder)]
    first = parse(
        Resumable, None, [*words, *"--steps 7 --model.encoder patches --model.encoder.patch 4".split()]
    )
    with Run.create(folder, first, tensorboard=False) as run:
        run.log(1, {"train/loss": 1.0})
    again = parse(Resumable, None, [*words, "--resume"])
    assert again == dataclasses.replace(first, resume=True)
    with Run.create(folder, again, resume=True, tensorboard=False) as run:
        run.log(2, {"train/loss": 1.0})
    other = parse(Resumable, None, [*words, "--resume", "--steps=9", "--model.encoder.depth", "3"])
    assert other.steps == 9 and other.model.encoder == Patches(patch=4, depth=3)
    assert parse(Resumable, None, words).steps == Resumable().steps  # without --resume: the defaults
    new = parse(Resumable, None, ["--resume", "--run-dir", str(tmp_path / "new"), "--steps", "5"])
    assert new.resume and new.steps == 5


def test_resume_of_nothing_with_no_other_flag_is_refused(tmp_path, capsys):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "lock.json").write_text("")
    for words in (
        ["--resume", "--run-dir", str(tmp_path / "nothere")],
        ["--run_dir=" + str(tmp_path / "killed"), "--resume"],
    ):
        with pytest.raises(SystemExit) as exit:
            parse(Resumable, None, words)
        error = capsys.readouterr().err
        assert exit.value.code == 2 and "holds no run to go on with, and no other flag says" in error
        assert error.count("\n") == 1
        assert parse(Resumable, None, [*words, "--model.encoder", "patches"]).resume
    (tmp_path / "killed" / "metrics.jsonl").write_text("")  # a run whose config.json was deleted
    assert parse(Resumable, None, ["--run-dir", str(tmp_path / "killed"), "--resume"]).resume


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "config.json holds no configuration (the file is empty)"),
        ('{"nonsense": 1}', "config.json is of another experiment or version: it has 'nonsense'"),
        ('{"model": {"nonsense": 1}}', "cannot be resumed: model: Model has no field 'nonsense'"),
        ('{"model": 3}', "cannot be resumed"),
    ],
)
def test_a_file_that_cannot_be_resumed_is_named_in_one_line(tmp_path, capsys, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit) as exit:
        parse(Resumable, None, ["--run-dir", str(tmp_path), "--resume"])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_a_remote_address_for_a_path_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(Resumable, None, ["--run-dir", "gs://bucket/run"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("--run-dir is gs://bucket/run, a remote address")


def test_a_hugging_face_folder_stands_in_place_of_a_run():
    @dataclasses.dataclass(frozen=True)
    class Use:
        run: Annotated[pathlib.Path, tyro.conf.Positional]
        """A run."""

    assert str(parse(Use, None, ["hf:/folder/of/clip"]).run) == "hf:/folder/of/clip"


def raised(error):
    """``main`` of a script that raises the error after it has opened its run."""

    def main(config):
        run = Run.create(config.run_dir, config, tensorboard=False)
        if config.steps > 3:
            run.log(1, {"train/loss": 1.0})
        raise error

    return main


def disk_full():
    return OSError(errno.ENOSPC, "No space left on device", "/runs/a")


def caused_by(cause):
    error = RuntimeError("a checkpoint could not be written")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "begun", "line"),
    [
        (ValueError("--width is\n  wrong"), False, "--width is wrong"),
        (FileNotFoundError("there is no x"), False, "there is no x"),
        (
            NonFiniteError("step 3: the loss is no longer finite"),
            True,
            "step 3: the loss is no longer finite",
        ),
        (
            disk_full(),
            False,
            "the disk is full \\(/runs/a could not be written\\): free some space and start again",
        ),
        (caused_by(disk_full()), True, "the disk is full .*: free some space and go on with --resume"),
        (
            RuntimeError("write: No space left on device"),
            True,
            "the disk is full: free some space and go on .*",
        ),
        (
            KeyboardInterrupt(),
            True,
            "interrupted after step 1 of .*/run; it has no checkpoint yet; go on with:\n"
            "  python .* --run-dir .*/run --resume",
        ),
        (KeyboardInterrupt(), False, "interrupted"),
        (KeyError("fault of the program"), True, None),
        (RuntimeError("fault of the program"), False, None),
    ],
)
def test_an_error_that_the_user_can_act_on_is_one_line(tmp_path, capsys, monkeypatch, error, begun, line):
    monkeypatch.setattr(sys, "argv", [__file__])
    folder = tmp_path / "run"
    words = ["--run-dir", str(folder), "--steps", "5" if begun else "3"]
    with pytest.raises(SystemExit if line else type(error)) as exit:
        run_script(raised(error), Resumable, None, words)
    if line:
        assert exit.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1 if begun else 2)
        assert re.fullmatch(line + "\n", capsys.readouterr().err)
    assert folder.exists() == begun
    assert not (folder / "lock.json").exists()


def test_the_refusal_of_a_run_to_resume_is_a_mistake_in_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [__file__])
    words = ["--run-dir", str(tmp_path / "run"), "--steps", "5"]
    with pytest.raises(SystemExit):
        run_script(raised(ValueError("it fails")), Resumable, None, words)

    def main(config):
        Run.create(config.run_dir, config, resume=True, tensorboard=False)
        raise ValueError("cannot resume: batch_size was 3")

    with pytest.raises(SystemExit) as exit:
        run_script(main, Resumable, None, [*words, "--resume"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.endswith("cannot resume: batch_size was 3\n")


def test_the_command_to_go_on_names_the_run_that_a_training_is_a_part_of(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/vae.py", "--steps", "5"])
    with Run.create(tmp_path / "a b", Resumable(), tensorboard=False) as run:
        with Run.create(run.path / "judges", Resumable(), tensorboard=False) as part:
            part.log(7, {"train/loss": 1.0})
    assert describe_interruption(part) == (
        f"interrupted after step 7 of {part.path}; it has no checkpoint yet; go on with:\n"
        f"  python experiments/vae.py --steps 5 --run-dir '{run.path}' --resume"
    )


def test_what_another_library_refuses_comes_with_its_place_and_the_traceback_can_be_had(
    tmp_path, capsys, monkeypatch
):
    main = lambda config: np.zeros(3).reshape(2, 2)
    monkeypatch.setattr(sys, "argv", ["/scripts/a.py"])
    with monkeypatch.context() as patch:
        patch.setattr(command_line.Path, "parents", property(lambda self: [self, pathlib.Path("/elsewhere")]))
        with pytest.raises(SystemExit):
            run_script(main, Resumable, None, [])
    error = capsys.readouterr().err
    assert re.match("cannot reshape .* \\(ValueError in .*test_command_line.py, line", error)
    monkeypatch.setenv("XMODAL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="cannot reshape"):
        run_script(main, Resumable, None, [])


def test_the_threads_that_write_a_checkpoint_do_not_report_a_full_disk_as_well(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)

    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])

    def write():
        try:
            raise caused_by(disk_full())
        except RuntimeError:
            logging.getLogger("absl").exception("a checkpoint could not be written")
            raise

    def main(config):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        raise disk_full()

    with pytest.raises(SystemExit):
        run_script(main, Resumable, None, [])
    # What their callbacks raise afterwards.
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    assert capsys.readouterr().err == (
        "the disk is full (/runs/a could not be written): free some space and start again\n"
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_whose_exception_is_lost_ends_a_script_all_the_same(number, status, capsys):
    class Callback:
        """Python calls ``__del__`` as C code calls back: nothing catches its exceptions."""

        def __del__(self):
            signal.raise_signal(number)

    def main(config):
        Callback()
        time.sleep(10)
        raise AssertionError("it went on")

    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as exit:
        run_script(main, Resumable, None, [])
    assert exit.value.code == status
    assert "Traceback" not in capsys.readouterr().err
    assert sys.unraisablehook is hook


def test_sigterm_ends_a_script_with_its_temporary_files_removed(tmp_path):
    def main(config):
        with tempfile.TemporaryDirectory(dir=tmp_path):
            Run.create(tmp_path / "run", config, tensorboard=False)
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        run_script(main, Resumable, None, [])
    assert exit.value.code == 128 + signal.SIGTERM
    assert not any(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader(Base):
    """A command that uses some of its data set's options."""

    unused_options: ClassVar[tuple[str, ...]] = ("size",)


def test_help_leaves_out_options_that_the_command_does_not_use(capsys):
    """They are flags all the same, so that the command can say what is wrong with them."""
    assert command_line.parse(Reader, "", ["--size", "3"]).input.size == 3
    for word, lists_all in (("--help", False), ("--help-all", True)):
        for config, lists_size in ((Reader, False), (Base, True)):
            with pytest.raises(SystemExit):
                command_line.parse(config, "", [word])
            text = capsys.readouterr().out
            assert ("--size" in text) == lists_size and "--steps" in text and "progress" in text
            assert (" --dispatch" in text) == lists_all


@dataclasses.dataclass(frozen=True)
class Placed:
    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory of a run."""
    files: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Files."""
    k: int = 3
    """Results."""


def test_help_names_values_that_their_place_gives(capsys, monkeypatch):
    """They have no flag; and where the short help lists every option, it promises no more."""
    monkeypatch.setattr(sys, "argv", ["test.py", "--help"])
    with pytest.raises(SystemExit):
        run_script(lambda config: None, Placed, "A test.")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: test.py RUN FILES ... [--FLAG VALUE ...]\n")
    assert "\n  RUN      " in shown and "\n  FILES ...   " in shown and "--run" not in shown
    assert shown.endswith("(default: 3)\n") and "more options" not in shown
