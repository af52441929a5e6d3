"""What experiments/data.py says about a small data set."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_jax.train.command_line import run_script

SCRIPT = pathlib.Path(__file__).parents[2] / "experiments" / "data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("script_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def write_split(folder, names):
    """One example per name: a picture drawn from it, a sound every other time, its letters as caption."""
    folder.mkdir(parents=True)
    rows = []
    for k, name in enumerate(names):
        pixels = np.random.default_rng([ord(c) for c in name]).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        soundfile.write(folder / f"{k}.wav", np.full(800 * (k + 1), 0.1), 16000)
        sound = f"{k}.wav" if k % 2 else None
        rows.append({"image": f"{k}.png", "audio_file_name": sound, "text": " ".join(name), "label": name[0]})
    rows.append({"image": "none.png", "audio_file_name": None, "text": "bad", "label": "b"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_counts_lengths_equal_contents_and_the_page(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XMODAL_CONFIGURE", "0")
    write_split(tmp_path / "set" / "train", ["ab", "ba", "abba", "$^$", "baab", "aa"])
    write_split(tmp_path / "set" / "test", ["abba", "bbb"])
    flags = f"folder:{tmp_path / 'set'} --run-dir {tmp_path / 'run'} --no-progress --validation 1"
    run_script(script.main, script.Config, script.__doc__, flags.split())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "5", "5"] in [line[:3] for line in lines]
    assert ["test", "2", "2", "2", "2", "2", "1"] in lines  # examples, pictures, classes, text, image, audio
    assert ["image,", "width", "in", "pixels"] in [line[:4] for line in lines]
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert (metrics["test/examples"], metrics["data/bad_examples"]) == (2, 2)
    page = (tmp_path / "run" / "report.html").read_text()
    missing = "the file &#x27;none.png&#x27; does not exist"
    for expected in (missing, "Equal contents", "<audio", "train/metadata.jsonl: 4"):
        assert expected in page
    # "abba" is drawn in both splits.
    assert any(line[:1] == ["image"] and "test" in line and line[-1] == "1" for line in lines)
