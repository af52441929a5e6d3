"""The script as a user runs it: a folder with every kind of bad example, through to the report."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
BAD_LINES = [13, 14, 15, 16]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(json.dumps({"file_name": f"{k}.png", "text": f"picture number {k}"}))
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    rows.append(json.dumps({"file_name": "cut.png", "text": "half a picture"}))
    rows.append(json.dumps({"file_name": "none.png", "text": "no picture"}))
    rows.append(json.dumps({"file_name": "1.png", "text": ""}))
    rows.append("{not JSON")
    for split in ("train", "test"):
        place = tmp_path / "data" / split
        place.mkdir(parents=True)
        for file in tmp_path.glob("*.png"):
            (place / file.name).write_bytes(file.read_bytes())
        (place / "metadata.jsonl").write_text("\n".join(rows if split == "train" else rows[:12]) + "\n")
    return tmp_path / "data"


def run(*arguments):
    command = [sys.executable, str(ROOT / "experiments" / "contrastive.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_folder_with_bad_examples_runs_and_names_them(folder, tmp_path):
    # An encoder of images that compiles fast.
    words = ("--smoke", "--model.image", "mlp", "--on-bad-example", "skip", "--run-dir", tmp_path / "run")
    done = run("--data", f"folder:{folder}", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 bad examples were left out" in done.stdout
    assert "recipe small for 11 training examples: " in done.stdout  # and one for validation
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"] == "small"
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_examples.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == BAD_LINES
    assert all(row["file"].endswith("train/metadata.jsonl") for row in listed)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 <= result["metrics"]["image_to_text/recall@1"] <= 1 and result["timing"]["total"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Bad examples" in page and "metadata.jsonl" in page


def test_it_stops_at_the_first_bad_example_if_asked(folder, tmp_path):
    done = run("--data", f"folder:{folder}", "--smoke", "--run-dir", tmp_path / "run")
    assert done.returncode != 0
    assert re.search(r"metadata\.jsonl\D+1[3-6]\b", done.stderr), done.stderr[-500:]
    assert "--on-bad-example skip" in done.stderr


@pytest.mark.slow  # a minute, for its compilation
def test_data_sets_that_never_met_are_mixed(folder, tmp_path):
    """Images with captions and recordings with captions, of which no example has an image and a recording."""
    rng = np.random.default_rng(0)
    captions = np.array([f"picture number {k % 12} spoken" for k in range(40)])
    audio = (3000 * rng.normal(size=(40, 8000))).astype(np.int16)
    np.savez(tmp_path / "speech.npz", audio=audio, caption=captions, label=np.arange(40) % 2)
    words = (
        "--data", f"folder:{folder}", f"npz:{tmp_path}/speech.npz", "--data-weights", "1", "3", "--smoke",
        "--on-bad-example", "skip", "--run-dir", tmp_path / "run",
    )  # fmt: skip
    done = run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert {name.split("/")[0] for name in metrics if name.endswith("recall@1")} == {
        "image_to_text", "text_to_image", "text_to_audio", "audio_to_text", "data", "speech",
    }  # fmt: skip
    assert "data/image_to_text/recall@1" in metrics and "speech/text_to_audio/recall@1" in metrics
    assert not any("image_to_audio" in name for name in metrics)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record for record in records if "train/loss" in record]
    assert losses and all(record["train/image_audio"] == 0.0 for record in losses)
    for record in losses:
        pairs = record["train/text_image"] + record["train/text_audio"]
        assert record["train/loss"] == pytest.approx(pairs / 2, rel=1e-4)
    assert "This report is incomplete" not in (tmp_path / "run" / "report.html").read_text()
