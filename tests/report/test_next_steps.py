"""The last lines on screen: each is a command that the script it names takes."""

import dataclasses
import importlib.util
import json
import pathlib
import shlex
import sys

import pytest

from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.experiment import write_report
from xmodal_jax.report.comparison import read_result
from xmodal_jax.report.next_steps import MAX_LINES, NEXT_STEPS, next_steps, without_flags
from xmodal_jax.train.checkpoint import seal
from xmodal_jax.train.command_line import default_of, parse
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.run import Run

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = {"translate": dict(source="FILE", to="text", runs=()), "data": dict(data="folder:my photos")}
EXAMPLES |= {"compare": dict(runs=(pathlib.Path("A"), pathlib.Path("B")))}
EXAMPLES |= {"classify": dict(run=pathlib.Path("A"), files=(pathlib.Path("B"),))}
EXAMPLES |= {"demo": dict(runs=(pathlib.Path("A"),))}
EXAMPLES |= {"search": dict(index=pathlib.Path("A"), query=("B",))}
EXAMPLES |= {"evaluate": dict(runs=("A",), data=("shapes",))}
EXAMPLES |= {"embed": dict(run=pathlib.Path("A"), data="folder:B")}
"""Required fields of configurations."""


@pytest.fixture(scope="module")
def script():
    """``script(name)``: the module of an experiment."""
    modules = {}

    def load(name):
        if name not in modules:
            path = ROOT / "experiments" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(f"next_step_{name}", path)
            modules[name] = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, modules[name])
            spec.loader.exec_module(modules[name])
        return modules[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments"))
        yield load


def save_checkpoint(folder, **metadata):
    """The metadata of a checkpoint, as training leaves them in a run's directory."""
    file = folder / "checkpoints" / "newest" / "1" / "meta" / "metadata"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(seal({"arrays": {}, **metadata})))


def ended(script, name, folder, monkeypatch, *, argv=(), **changes):
    """The lines of a run of an experiment in ``folder``, and its configuration."""
    monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *argv])
    config = dataclasses.replace(script(name).Config(**EXAMPLES.get(name, {})), run_dir=folder, **changes)
    with Run.create(folder, config, tensorboard=False) as run:
        save_checkpoint(folder, tokenizer={"tokenizer.json": "{}"})
        return next_steps(run, [0]), config


@pytest.mark.parametrize("name", NEXT_STEPS)
def test_each_command_is_one_that_its_script_takes(name, script, tmp_path, monkeypatch):
    folder = tmp_path / "a run"  # with a space: it has to be quoted
    monkeypatch.chdir(ROOT)
    lines, config = ended(script, name, folder, monkeypatch)
    assert 1 <= len(lines) == len(NEXT_STEPS[name]) <= MAX_LINES
    for line in lines:
        command = line[line.index("  ") :].strip()
        python, first, *args = shlex.split(command)
        assert python == "python"
        if first == "-m":
            assert args == ["webbrowser", (folder / "report.html").as_uri()]
            continue
        assert (ROOT / first).is_file()
        target = script(pathlib.Path(first).stem).Config
        parsed = parse(target, None, args)
        if "--resume" in args:
            assert parsed == dataclasses.replace(config, resume=True, steps=2 * config.steps)
    assert len({line.index("python") for line in lines}) == 1


def test_a_short_run_is_followed_by_the_run_in_full(script, tmp_path, monkeypatch):
    """A smoke run that is resumed has no more steps."""
    argv = ["--smoke", "--run-dir", str(tmp_path / "x"), "--model.embed-dim=32"]
    lines, _ = ended(script, "contrastive", tmp_path / "x", monkeypatch, argv=argv, smoke=True)
    assert lines[1].endswith("experiments/contrastive.py --model.embed-dim=32")


def test_what_a_run_cannot_do_is_not_proposed(script, tmp_path, monkeypatch):
    lines, _ = ended(script, "captioning", tmp_path / "a", monkeypatch)
    assert any("translate.py" in line for line in lines)
    config = dataclasses.replace(script("captioning").Config(), seeds=2)
    with Run.create(tmp_path / "b", config, tensorboard=False) as run:
        save_checkpoint(run.path, tokenizer={"tokenizer.json": "{}"})
        lines = next_steps(run, [3, 4])
        assert not any("translate.py" in line for line in lines) and lines[-2].endswith("--seed 3")
        with Run.create(run.path / "part", config, tensorboard=False) as part:
            assert next_steps(part, [0]) == []
    gan = script("text_to_image_gan").Config()
    with Run.create(tmp_path / "c", gan, tensorboard=False) as run:  # of class labels
        save_checkpoint(run.path, tokenizer=None)
        assert not any("translate.py" in line for line in next_steps(run, [0]))


def test_a_page_of_data_leads_to_training_on_it(script, tmp_path, monkeypatch):
    argv = ["folder:my photos", "--image-size", "32", "--shown", "3"]
    lines, _ = ended(script, "data", tmp_path / "x", monkeypatch, argv=argv)
    assert lines[1].endswith("contrastive.py --data 'folder:my photos' --image-size 32")


def test_every_training_script_says_what_comes_next(script):
    names = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    configs = {name: getattr(script(name), "Config", None) for name in names}
    trains = {
        name for name, config in configs.items() if config and isinstance(default_of(config), RunConfig)
    }
    assert trains and trains <= set(NEXT_STEPS) <= names


def test_flags_are_left_out_with_their_values():
    words = ["--smoke", "--run_dir", "x", "a", "--run-dir=y", "--steps", "3"]
    assert without_flags(words, {"--smoke": 0, "--run-dir": 1}) == ["a", "--steps", "3"]


def test_they_are_the_last_lines_on_screen_and_the_result_names_the_experiment(
    script, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(script("vae").Config(), run_dir=tmp_path / "run")
    run, timer = Run.create(config.run_dir, config, tensorboard=False), Timer()
    with write_report(run, "A title", "", {"test/loss": 2.0}, timer, BadExamples("skip"), seeds=[0]):
        pass
    timer.clock.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-6] == "test/loss 2.000"
    purposes = [line.split("  ")[0] for line in lines[-5:]]
    assert purposes == ["look at it", "go on", "try it", "export it", "compare"]
    assert read_result(run.path)["experiment"] == "vae"
