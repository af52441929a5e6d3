"""The comparison of mode coverage, at the smallest size."""

import json

import numpy as np
import pytest

from benchmarks import mode_coverage
from xmodal_jax.models.gan import OBJECTIVE_PRESETS

SMALL = dict(
    image_size=8, train_size=200, steps=2, batch_size=4, width=4, judge_steps=2, samples=60, neighbours=30
)


def test_rows_are_kept_and_the_table_is_written(tmp_path, capsys):
    config = mode_coverage.Config(out=tmp_path / "modes", objectives=("non_saturating",), **SMALL)
    mode_coverage.main(config)
    rows = [json.loads(line) for line in (tmp_path / "modes.jsonl").read_text().splitlines()]
    assert [row["objective"] for row in rows] == ["data", "non_saturating"]
    for row in rows:
        assert (
            1 <= row["scores"]["modes"] <= 60 and row["scores"]["kl"] >= 0 and 0 <= row["judge_accuracy"] <= 1
        )
    table = (tmp_path / "modes.md").read_text()
    assert "| objective | seeds | modes | kl |" in table and "| non_saturating | 1 |" in table
    capsys.readouterr()
    mode_coverage.main(config)  # reads what is done
    assert "non_saturating" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="another configuration"):
        mode_coverage.main(mode_coverage.Config(out=tmp_path / "modes", **{**SMALL, "steps": 3}))


def test_the_generator_is_told_no_mode_and_has_the_width_of_the_others():
    bench = mode_coverage.Bench.__new__(mode_coverage.Bench)
    bench.config = mode_coverage.Config(image_size=16, width=32)
    for objective in ("r3gan", "non_saturating"):
        model = bench.model(objective)
        assert model.condition.name == "none" and model.generator.noise == 64
        assert model.discriminator.width == 32
    assert bench.model("r3gan").generator.width == 32
    assert bench.model("non_saturating").generator.width == 16  # of the last of two layers: 32 at 4x4 pixels
    assert bench.model("r3gan").condition.head == "linear"


def test_the_weights_of_r1_and_r2_are_scaled_and_those_of_other_penalties_are_not():
    bench = mode_coverage.Bench.__new__(mode_coverage.Bench)
    bench.config = mode_coverage.Config(penalty_scale=2.0)
    for name, config in OBJECTIVE_PRESETS.items():
        model = bench.model(name)
        for field, penalty in model.penalties.items():
            factor = 2.0 if penalty.name in ("r1", "r2") else 1.0
            assert penalty.weight == factor * config[field].weight
            if penalty.final_weight is not None:
                assert penalty.final_weight == factor * config[field].final_weight


def test_mistakes():
    with pytest.raises(ValueError, match="'gan' is none of minimax"):
        mode_coverage.Config(objectives=("gan",))
    with pytest.raises(ValueError, match="stacked:SPEC"):
        mode_coverage.Config(data="digits")


def test_the_table_has_means_over_seeds_and_leaves_out_what_diverged():
    scores = [{"modes": 10, "kl": 1.0}, {"modes": 20, "kl": 2.0}]
    rows = [dict(objective="a", seed=k, scores=s, judge_accuracy=0.9) for k, s in enumerate(scores)]
    rows.append(dict(objective="b", seed=0, scores={"ms": 5.0, "train_s": 9.0}, judge_accuracy=0.9))
    lines = mode_coverage.table(rows).splitlines()
    assert lines[2].startswith("| a | 2 | 15 ± 7 | 1.500 ± 0.707 |")
    assert lines[3].startswith("| b | 1 |  |  |") and lines[3].endswith("| 5.0 | 9 |")
    assert np.isclose(np.std([10, 20], ddof=1), 7.07, atol=0.01)
