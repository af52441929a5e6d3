"""The examples of docs/inference.md run, in Python and on the command line."""

import importlib.util
import json
import pathlib
import re
import shlex
import sys

import numpy as np
import pytest

from tests.inference.all_kinds import save_all_kinds
from tests.inference.runs import COLOURS, plain_picture
from tests.inference.test_fusion import ANSWERS
from xmodal_jax.train.command_line import run_script

ROOT = pathlib.Path(__file__).parents[2]
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", (ROOT / "docs" / "inference.md").read_text(), re.S)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each script that the guide uses, of which only the first was trained."""
    folder = tmp_path_factory.mktemp("runs")
    save_all_kinds(folder)
    return folder


@pytest.fixture
def workplace(runs, tmp_path, monkeypatch):
    """The working directory of the guide, with the runs, six pictures, words and an array of vectors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XMODAL_CONFIGURE", "0")
    (tmp_path / "runs").mkdir()
    for run in runs.iterdir():
        (tmp_path / "runs" / run.name).symlink_to(run)
    (tmp_path / "words.txt").write_text("\n".join(COLOURS))
    (tmp_path / "photos").mkdir()
    lines = []
    for name, colour, caption in zip(
        "abcdef", ("#e00000", "#00d000", "#0000f0") * 2, COLOURS * 2, strict=True
    ):
        plain_picture(colour, (12, 9)).save(f"photos/{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": caption}))
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    vectors = np.random.default_rng(0).standard_normal((31, 7)).astype(np.float32)
    np.save("vectors.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return tmp_path


@pytest.fixture
def call(monkeypatch):
    """``call(words)``: runs a script of experiments/ in this process."""

    def run_words(words):
        path = ROOT / words[1]
        spec = importlib.util.spec_from_file_location(f"guide_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        monkeypatch.setattr(sys, "argv", words[1:])
        spec.loader.exec_module(module)
        run_script(module.main, module.Config, module.__doc__, words[2:])

    return run_words


def test_the_examples_in_python(workplace, capsys):
    code = "\n".join(block for language, block in BLOCKS if language == "python")
    assert code.count("assert") >= 5
    exec(compile(code, "docs/inference.md", "exec"), {})
    assert "classify(classes" in capsys.readouterr().out


def test_the_examples_on_the_command_line(workplace, call, capsys):
    commands = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        call(shlex.split(command))
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("photos/a.png: red ") for line in printed)
    folders = {path.name.partition("-")[0]: path for path in (workplace / "runs").iterdir()}
    classes = json.loads((folders["classify"] / "results.json").read_text())
    assert [record["class"]["class"] for record in classes] == [*COLOURS, *COLOURS]
    by_words, by_picture = json.loads((folders["search"] / "results.json").read_text())
    assert {by_words["results"][k]["name"] for k in (0, 1)} == {"a.png", "d.png"}
    assert {by_picture["results"][k]["name"] for k in (0, 1)} == {"b.png", "e.png"}
    assert by_picture["modality"] == "image" and len(by_words["results"]) == 5
    page = (folders["search"] / "report.html").read_text()
    assert page.count("<img") == 11 and "green<br>b.png" in page  # ten results and a query

    outputs = [sorted(folder.iterdir()) for folder in workplace.glob("runs/translate-*/out")]
    (answer,), (found,), copies, colours = sorted(
        outputs, key=lambda files: (len(files), files[0].suffix != ".txt")
    )
    assert found.read_bytes() in [pathlib.Path(f"photos/{name}.png").read_bytes() for name in "ad"]
    assert answer.read_text().strip() in ANSWERS["answer"]
    assert [path.name for path in copies] == ["words-1.png", "words-2.png", "words-3.png"]
    assert [path.read_text().strip() for path in colours] == [*COLOURS, *COLOURS]

    # Without the data set names are left, and one line says so.
    (workplace / "photos").rename("elsewhere")
    call(
        shlex.split(
            "python experiments/search.py embeddings --query blue --run-dir runs/gone --run runs/contrastive"
        )
    )
    page = pathlib.Path("runs/gone/report.html").read_text()
    assert page.count("<img") == 0 and "c.png" in page
    assert "shows names alone, because the data set folder:photos cannot be opened" in page


def test_a_run_with_classes_of_its_own_classifies(workplace, call, capsys):
    pathlib.Path("photos/bad.png").write_bytes(b"no picture")
    words = "python experiments/classify.py runs/fusion photos --top 2 --run-dir runs/classes"
    call(shlex.split(f"{words} --on-bad-example skip"))
    records = json.loads(pathlib.Path("runs/classes/results.json").read_text())
    assert len(records) == 6 and set(records[0]["answer"]["scores"]) == set(ANSWERS["answer"])
    assert json.loads(pathlib.Path("runs/classes/bad_examples.jsonl").read_text())["file"] == "photos/bad.png"
    assert "photos/a.png: " in capsys.readouterr().out


def test_nothing_is_scored_where_a_data_set_is_missing(workplace, call, capsys, monkeypatch):
    """Nor where a run is: both are looked for before the first of several is scored."""
    monkeypatch.setattr(
        "xmodal_jax.evaluation.protocol.evaluate_space", lambda *_: pytest.fail("a space was scored")
    )
    for words, missing in (
        ("runs/contrastive --data folder:photos folder:none", "none"),
        ("runs/contrastive runs/none --data folder:photos", "runs/none"),
        ("runs/contrastive runs/vae --data folder:photos", "runs/vae is a run of vae"),
    ):
        with pytest.raises(SystemExit) as end:
            call(["python", "experiments/evaluate.py", *words.split()])
        assert end.value.code == 2 and missing in capsys.readouterr().err


@pytest.mark.parametrize(
    "words,message",
    [
        ("classify.py runs/contrastive photos", "--classes: name the classes"),
        ("classify.py runs/contrastive photos/none.png --classes a", "photos/none.png does not exist"),
        ("search.py photos --query red", "photos is no index: there is no index.json"),
        ("embed.py runs/none folder:photos", "does not exist"),
        ("embed.py runs/contrastive folder:photos --image-size 9", "--image-size 9: inputs are brought into"),
        ("embed.py runs/contrastive folder:none", "none"),
    ],
)
def test_mistakes_are_one_line(words, message, workplace, call, capsys):
    with pytest.raises(SystemExit) as end:
        call(["python", *shlex.split(f"experiments/{words}")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and "Traceback" not in error
