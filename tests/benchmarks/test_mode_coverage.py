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
    config = mode_coverage.Config(out=tmp_path / "modes", objectives=("non_saturating",) * 2, **SMALL)
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
    for name in mode_coverage.OBJECTIVES:
        model, config = bench.model(name), OBJECTIVE_PRESETS[name]
        for field, penalty in model.penalties.items():
            factor = 2.0 if penalty.name in ("r1", "r2") else 1.0
            assert penalty.weight == factor * config[field].weight
            if penalty.final_weight is not None:
                assert penalty.final_weight == factor * config[field].final_weight


def test_mistakes():
    for name in ("gan", "stackgan"):  # the second needs a first stage
        with pytest.raises(ValueError, match=f"--objectives: '{name}' is none of minimax"):
            mode_coverage.Config(objectives=(name,))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        mode_coverage.Config(steps=0)
    with pytest.raises(ValueError, match="samples must be at least 2000, got 60"):
        mode_coverage.Config(samples=60)
    with pytest.raises(ValueError, match="--seeds are 0 or more"):
        mode_coverage.Config(seeds=(0, -1))
    for options, message in (
        (dict(neighbours=5), "neighbours must be at least 6"),
        (dict(learning_rate=-1.0), "learning_rate must be positive"),
        (dict(b1=1.5), "b1 must lie in"),
        (dict(ema=1.0), "ema must lie in"),
    ):  # before the judge is trained
        with pytest.raises(ValueError, match=message):
            mode_coverage.Config(**options)
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


def test_modes_are_those_of_the_training_images_where_test_images_lack_a_class(tmp_path):
    """Classes without names: 3 in training, 2 of them in the test split."""
    for split, classes in (("train", 3), ("test", 2)):
        images = np.zeros((30, 8, 8), np.uint8)
        np.savez(tmp_path / f"{split}.npz", image=images, label=np.arange(30) % classes)
    config = mode_coverage.Config(data=f"stacked:npz:{tmp_path}", objectives=(), **SMALL)
    bench = mode_coverage.Bench(config)
    assert (bench.train.classes, bench.test.classes) == (3, 2)
    bench._classify = lambda gray: (np.full(len(gray), 2), np.zeros((len(gray), 1)))
    assert bench.judge(np.zeros((4, 8, 8, 3), np.uint8))[0].tolist() == [26] * 4


def test_networks_that_do_not_fit_are_found_before_the_judge_is_trained(monkeypatch):
    monkeypatch.setattr(mode_coverage.Bench, "_train_judge", lambda *_: pytest.fail("the judge is trained"))
    config = mode_coverage.Config(objectives=("non_saturating",), **{**SMALL, "image_size": 9})
    with pytest.raises(ValueError, match="9"):
        mode_coverage.Bench(config)
