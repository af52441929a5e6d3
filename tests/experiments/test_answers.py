"""The fusion experiments as a user runs them, long enough to learn what neither modality says alone."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script,alone,together,apart",
    [
        # Learnt so far: does it exist, of what colour, how many; from the words alone half of the yes and no and
        # little else.
        ("fusion", "text", 0.62, 0.4),
        # The words give the action and one to three of the target's four looks.
        ("fusion --task commands", "audio", 0.4, 0.2),
    ],
)
def test_learns_what_no_modality_says_alone(script, alone, together, apart, tmp_path):
    name, *flags = script.split()
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *flags, "--steps", "600", "--unimodal-steps", "300", "--eval-every", "0"],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > together
    assert metrics[f"trained_on_{alone}/accuracy"] < apart
    assert metrics[f"given_{alone}/accuracy"] < apart
