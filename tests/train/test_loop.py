import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from tests.support import assert_trees_identical
from tests.train.toy import make_toy, toy_arrays
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.train.config import RunConfig, shrink
from xmodal_jax.train.loop import NonFiniteError, Preempted, fit, refuse_unused_text_options
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run
from xmodal_jax.types import Method

OPTIMIZER = Optimizer(learning_rate=1e-2, ema=0.9)
TOY = make_toy()


def train(path, *, method=None, evaluate=None, monitor=None, optimizer=OPTIMIZER, arrays=None, **changes):
    settings = dict(steps=6, batch_size=16, run_dir=path, checkpoint_every=2)
    config = RunConfig(**{**settings, **changes})
    run = Run.create(config.run_dir, config, resume=config.resume, tensorboard=False)
    loader = Loader(ArraySource(arrays or toy_arrays()), batch_size=config.batch_size, seed=config.seed)
    timer = Timer()
    try:
        result = fit(method or TOY, loader, config, optimizer, run, timer, evaluate=evaluate, monitor=monitor)
    finally:
        run.close()
        loader.close()
        timer.clock.close()
    return result, run


def stop_at(step):
    """An evaluation that asks the process to stop, as a cluster does, the first time it is called at that count."""
    calls = []

    def evaluate(params):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"test/score": 0.0}

    return evaluate


@pytest.mark.parametrize(
    "mode,fsdp,resident,dispatch",
    [("jit", 1, True, 2), ("jit", 1, False, 1), ("pmap", 1, True, 1), ("sharded", 2, False, 2)],
)
def test_a_stopped_run_ends_bit_identical(tmp_path, mode, fsdp, resident, dispatch):
    options = dict(
        parallel=mode, fsdp=fsdp, resident=resident, dispatch=dispatch, eval_every=2, monitor="test/score"
    )
    whole, run = train(tmp_path / "a", evaluate=lambda p: {"test/score": 0.0}, **options)
    with pytest.raises(Preempted, match="go on with:\n.*--resume") as stopped:
        train(tmp_path / "b", evaluate=stop_at(2), **options)
    assert stopped.value.code == 143
    rest, rest_run = train(tmp_path / "b", evaluate=lambda p: {"test/score": 0.0}, resume=True, **options)
    assert rest.steps == whole.steps == 6
    assert_trees_identical(whole.state, rest.state)
    assert run.read_metrics() == rest_run.read_metrics()


@pytest.mark.parametrize(
    "first,then",
    [
        (dict(parallel="jit"), dict(parallel="sharded", fsdp=4)),
        (dict(parallel="sharded", fsdp=4), dict(parallel="pmap")),
        (dict(parallel="pmap"), dict(parallel="jit")),
    ],
    ids=["jit to sharded", "sharded to pmap", "pmap to jit"],
)
def test_a_checkpoint_moves_between_modes(tmp_path, first, then):
    with pytest.raises(Preempted):
        train(tmp_path, evaluate=stop_at(1), eval_every=2, **first)
    score = lambda p: {"test/score": 0.0}
    result, _ = train(tmp_path, evaluate=score, eval_every=2, resume=True, **then)
    whole, _ = train(tmp_path / "whole", evaluate=score, eval_every=2)
    for a, b in zip(jax.tree.leaves(whole.params[0]), jax.tree.leaves(result.params[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_fewer_steps_than_a_run_has_taken_are_refused_and_change_nothing(tmp_path):
    _, run = train(tmp_path, steps=4)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(
        ValueError, match="^--steps is 3, but .* has taken 4 steps already: .* at least --steps 4"
    ):
        train(tmp_path, steps=3, resume=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_signal_during_the_last_step_stops_the_run_before_its_evaluation(tmp_path, capsys):
    with pytest.raises(Preempted, match="stopped at step 6 as asked"):
        train(tmp_path / "run" / "part", evaluate=stop_at(3), eval_every=2)
    message = capsys.readouterr().err
    assert "stopped at step 6 as asked; go on with:\n" in message
    result, _ = train(tmp_path / "run" / "part", evaluate=lambda p: {"test/score": 0.0}, resume=True)
    assert result.steps == result.resumed == 6


def test_the_first_step_says_that_it_is_compiled(tmp_path, capsys):
    """Which may take a minute without anything to see; later steps are not compiled."""
    for options in (dict(steps=4), dict(steps=8, resume=True)):
        train(tmp_path, **options)
        shown = capsys.readouterr().err
        assert shown.count("compiling the program of a step") == 1
        assert "compiling" not in shown.rpartition("\r")[2] and "loss" in shown.rpartition("\r")[2]


def test_data_on_the_device_or_from_the_host_trains_the_same(tmp_path):
    a, _ = train(tmp_path / "a", resident=True)
    b, _ = train(tmp_path / "b", resident=False)
    assert_trees_identical(a.state, b.state)


def test_it_learns(tmp_path):
    _, run = train(tmp_path, steps=600, dispatch=20, checkpoint_every=0)
    losses = [row["train/loss"] for row in run.read_metrics()]
    # y = sin(x_0) of a standard normal has variance 0.43: predicting the mean gives that, a broken model no less.
    assert losses[0] > 0.25 and losses[-1] < 0.15


def test_the_first_non_finite_step_and_parameter_are_named(tmp_path):
    toy = make_toy(noise=0.0)

    def loss(params, batch, key, *, axis_name=None):
        value, aux = toy.loss(params, batch, key, axis_name=axis_name)
        late = batch["index"].max() >= 3 * 16  # the fourth batch
        bad = jax.numpy.where(late, jax.numpy.nan, 1.0)
        return value + 0.0 * (bad * params["out"]["kernel"]).sum(), aux

    with pytest.raises(
        NonFiniteError, match="step 4: the loss and the gradients of out/kernel are no longer"
    ):
        train(tmp_path, method=Method(toy.init, loss, toy.predict), checkpoint_every=0)
    kept = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert kept["step"] == 3


def test_early_stopping_keeps_the_best(tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    result, run = train(
        tmp_path, steps=10, eval_every=2, patience=2, checkpoint_every=0, monitor="test/score",
        evaluate=lambda p: {"test/score": next(scores)},
    )  # fmt: skip
    assert result.steps == 8
    assert (tmp_path / "checkpoints" / "best" / "4").is_dir()


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        (dict(tokenizer="bpe"), "--tokenizer"),
        (dict(vocab_size=300), "--vocab-size"),
        (dict(text_length=9), "--text-length"),
        (dict(text_cleanup="lower"), "--text-cleanup"),
    ],
)
def test_options_of_texts_are_refused_where_there_are_none(option, flag):
    config = RunConfig(**option)
    with pytest.raises(ValueError, match=f"^{flag} has no effect, because no text is read"):
        refuse_unused_text_options(config, ["image", "index", "context"])
    for fields in (["text", "text_mask"], ["image", "text_1_mask"]):
        refuse_unused_text_options(config, fields)
    refuse_unused_text_options(RunConfig(), ["image"])


def test_flags_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="--resume needs --run-dir"):
        RunConfig(resume=True)
    with pytest.raises(ValueError, match="--patience counts evaluations"):
        RunConfig(patience=2)
    with pytest.raises(ValueError, match="--batch-size must be at least 1"):
        RunConfig(batch_size=0)
    with pytest.raises(ValueError, match="--seeds must be at least 1"):
        RunConfig(seeds=0)


def test_smoke_keeps_what_is_not_about_size():
    config = shrink(RunConfig(seed=3, steps=1000, parallel="pmap"))
    assert config.seed == 3 and config.parallel == "pmap" and config.steps == 4
    assert dataclasses.replace(config, steps=1000).batch_size == 16
