"""What a checkpoint holds, and what happens to one that is not as it was written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import assert_trees_identical
from tests.train.test_loop import OPTIMIZER, train
from xmodal_jax.data.text import tokenizer_from_files, train_tokenizer
from xmodal_jax.train import checkpoint
from xmodal_jax.train.checkpoint import (
    CheckpointMismatch,
    Checkpoints,
    DamagedCheckpoint,
    describe,
    newest_checkpoint,
    read_metadata,
    read_state,
    restore_run,
)
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.parallel import make_engine

STATE = {"a": jnp.arange(7.0), "b": {"c": jnp.ones((3, 5), jnp.bfloat16)}, "key": jax.random.key(3)}


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_what_is_stored_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, STATE, {"step": 4, "words": ["a"]})
    checkpoints.close()
    state, meta = Checkpoints(tmp_path).restore(STATE)
    assert_trees_identical(state, STATE)
    assert meta["step"] == 4 and meta["words"] == ["a"]
    assert meta["arrays"]["b/c"].startswith("bfloat16[3,5] ")


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path, capsys):
    whole, _ = train(tmp_path / "whole", steps=6)
    train(tmp_path / "run", steps=6)
    newest = tmp_path / "run" / "checkpoints" / "newest" / "6" / "state"
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again, _ = train(tmp_path / "run", steps=6, resume=True)
    said = capsys.readouterr()
    assert "cannot be read" in said.err and "set aside" in said.err
    assert "resuming after step 4" in said.out
    assert (tmp_path / "run" / "checkpoints" / "damaged" / "newest-6").is_dir()
    assert_trees_identical(whole.state, again.state)


def test_where_all_newest_checkpoints_are_damaged_the_best_one_is_used(tmp_path, capsys):
    options = dict(steps=6, eval_every=2, monitor="test/score")
    first_scores, later_scores = iter([0.9, 0.5, 0.4]), iter([0.5, 0.4])
    evaluate = lambda params: {"test/score": next(first_scores)}
    whole, run = train(tmp_path / "run", evaluate=evaluate, **options)
    metrics = run.read_metrics()
    for file in (tmp_path / "run" / "checkpoints" / "newest").rglob("metadata"):
        file.write_text("{")
    with pytest.raises(
        DamagedCheckpoint, match="newest/4 cannot be read .*; take the best checkpoint, or train"
    ):
        restore_run(tmp_path / "run")
    evaluate = lambda params: {"test/score": next(later_scores)}
    again, run = train(tmp_path / "run", evaluate=evaluate, resume=True, **options)
    output = capsys.readouterr()
    assert output.err.count("set aside") == 2
    assert "newest holds no checkpoint that can be used; taking the best one, of step 2" in output.err
    assert "resuming after step 2" in output.out
    assert_trees_identical(whole.state, again.state)
    assert run.read_metrics() == metrics
    assert newest_checkpoint(tmp_path / "run").name == "6"


def test_a_single_changed_bit_is_noticed(tmp_path, capsys):
    """Whether the storage layer notices or only the digest does."""
    checkpoints = Checkpoints(tmp_path)
    noise = {
        "w": jax.random.normal(jax.random.key(0), (64, 64))
    }  # does not compress: its bytes lie in the file
    for step in (1, 2):
        checkpoints.save(step, noise, {"step": step})
    checkpoints.close()
    file = largest_file(tmp_path / "newest" / "2" / "state")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _, meta = Checkpoints(tmp_path).restore(noise)
    assert meta["step"] == 1
    assert "set aside" in capsys.readouterr().err


def test_other_bits_than_were_written_are_noticed_by_the_digest(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, STATE, {"step": step})
    checkpoints.close()
    file = tmp_path / "newest" / "2" / "meta" / "metadata"
    meta = checkpoint.unseal(json.loads(file.read_text()))
    kind, digest = meta["arrays"]["a"].split(" ")
    meta["arrays"]["a"] = f"{kind} {int(digest, 16) ^ 1:08x}"
    file.write_text(json.dumps(checkpoint.seal(meta)))
    _, meta = Checkpoints(tmp_path).restore(STATE)
    assert meta["step"] == 1
    assert "a holds other bits than were written" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32"])
def test_the_digest_sees_every_element_and_its_place(dtype, monkeypatch):
    x = np.asarray(jax.random.bernoulli(jax.random.key(0), 0.5, (5, 7))).astype(jnp.dtype(dtype))
    changed, swapped = x.copy(), x.copy()
    changed[2, 3] = 1 - changed[2, 3]
    (i, j), (k, l) = np.argwhere(x == 0)[0], np.argwhere(x == 1)[0]
    swapped[i, j], swapped[k, l] = 1, 0
    seen = {describe({"x": jnp.asarray(v)})["x"] for v in (x, changed, swapped, x.reshape(7, 5).T)}
    assert len(seen) == 4
    assert describe({"x": jnp.asarray(x)}) == describe({"x": jnp.asarray(x.copy())})
    by_host = describe({"x": jnp.asarray(x), "one": jnp.asarray(x[0, 0])})
    monkeypatch.setattr(checkpoint, "MAX_HOST_DIGEST_BYTES", -1)
    assert by_host == describe({"x": jnp.asarray(x), "one": jnp.asarray(x[0, 0])})


def test_the_digest_does_not_depend_on_the_devices(monkeypatch):
    monkeypatch.setattr(checkpoint, "MAX_HOST_DIGEST_BYTES", -1)
    init = lambda key, batch: {"w": jax.random.normal(key, (64, 96))}
    found = []
    for mode, devices, fsdp in [("jit", 1, 1), ("pmap", 4, 1), ("sharded", 8, 4)]:
        engine = make_engine(mode, init, lambda axis: None, fsdp=fsdp, devices=jax.devices()[:devices])
        found.append(describe(engine.fetch(engine.init(jax.random.key(0), None))))
    assert found[0] == found[1] == found[2]


def test_steps_that_follow_do_not_touch_what_is_being_written(tmp_path):
    def make_step(axis):
        return lambda state, batch: (
            {"w": state["w"] + 1.0, "u": 2.0 * state["u"]},
            {"loss": jnp.float32(0.0)},
        )

    init = lambda key, batch: {"w": jnp.zeros((512, 512)), "u": jnp.ones((256, 256))}
    engine = make_engine("jit", init, make_step)
    state, checkpoints = engine.init(jax.random.key(0), None), Checkpoints(tmp_path, keep=5)
    xs = {"index": np.zeros((1, 4), np.int32)}
    for step in range(4):
        checkpoints.save(step, engine.fetch(state), {})
        for _ in range(3):
            state, _ = engine.run(state, None, xs)  # donates the arrays that are being written
    checkpoints.close()
    for step in range(4):
        kept, _ = Checkpoints(tmp_path).restore(state)
        assert np.unique(kept["w"]).tolist() == [3.0 * (3 - step)]
        (tmp_path / "newest" / str(3 - step)).rename(tmp_path / f"seen-{step}")


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path):
    train(tmp_path, steps=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointMismatch, match="(?s)Resume with the flags of its config.json.*ema/layer"):
        train(tmp_path, steps=4, resume=True, optimizer=Optimizer(learning_rate=1e-2))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(
        CheckpointMismatch, match=r"holds float32\[64\], this run has float32\[2,64\]|float32\[2"
    ):
        train(tmp_path, steps=4, resume=True, seeds=2)
    assert (tmp_path / "checkpoints" / "newest" / "2").is_dir()


@pytest.mark.parametrize("mode,fsdp", [("jit", 1), ("pmap", 1), ("sharded", 4)])
def test_the_parameters_of_a_run_can_be_used_elsewhere(tmp_path, mode, fsdp):
    result, _ = train(tmp_path, parallel=mode, fsdp=fsdp)
    restored = restore_run(tmp_path)
    strict = json.loads(
        (newest_checkpoint(tmp_path) / "meta" / "metadata").read_text(), parse_constant=pytest.fail
    )
    assert strict["content"]["best"] is None  # and no -Infinity: plain JSON
    assert (
        restored.step == 6
        and restored.metadata["config"]["parallel"] == mode
        and restored.metadata["seeds"] == [0]
    )
    assert OPTIMIZER.ema is not None  # so that these are the averages
    for a, b in zip(jax.tree.leaves(result.params[0]), jax.tree.leaves(restored.params), strict=True):
        assert isinstance(b.sharding, jax.sharding.SingleDeviceSharding)
        np.testing.assert_array_equal(a, b)


NOISE = {"step": jnp.int32(0), "params": {"w": jax.random.normal(jax.random.key(0), (64, 64))}}
"""Noise does not compress: its bytes lie in the file."""


def save_two(folder):
    """Checkpoints 1 and 2 of `NOISE`, and the bytes of 2's largest file."""
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in (1, 2):
        checkpoints.save(
            step, NOISE, {"step": step, "seeds": [0], "tokenizer": {"vocab.txt": "a red square"}}
        )
    checkpoints.close()
    return largest_file(folder / "checkpoints" / "newest" / "2" / "state")


def test_who_uses_a_run_gets_the_checkpoint_before_a_damaged_one_or_is_refused(tmp_path, capfd):
    file = save_two(tmp_path)
    whole, draw = file.read_bytes(), np.random.default_rng(0)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(20):
        changed = bytearray(whole)
        for place in draw.integers(0, len(whole), 5):
            changed[place] ^= draw.integers(1, 256)
        file.write_bytes(changed)
        restored = restore_run(tmp_path)
        assert restored.step == restored.metadata["step"] == 1
        np.testing.assert_array_equal(restored.params["w"], NOISE["params"]["w"])
        message = capfd.readouterr().err
        assert "newest/2 cannot be read" in message and "the one before" in message
        with pytest.raises(Exception, match="."):
            read_state(newest_checkpoint(tmp_path), "params")
    file.write_bytes(whole)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    other = largest_file(tmp_path / "checkpoints" / "newest" / "1" / "state")
    for path in (file, other):
        path.write_bytes(path.read_bytes()[: len(whole) // 2])
    with pytest.raises(DamagedCheckpoint, match="newest/2 cannot be read .*newest/1 cannot be read"):
        restore_run(tmp_path)


def test_every_changed_byte_of_the_metadata_is_noticed(tmp_path):
    save_two(tmp_path)
    folder = newest_checkpoint(tmp_path)
    file = folder / "meta" / "metadata"
    whole, metadata, draw = file.read_bytes(), read_metadata(folder), np.random.default_rng(0)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= draw.integers(1, 256)
        file.write_bytes(changed)
        try:
            found = read_metadata(folder)
        except ValueError:  # DamagedCheckpoint, or no JSON, or no UTF-8
            continue
        assert found == metadata  # such as a tab in place of a space between two entries
    file.write_text(json.dumps(metadata))  # as an earlier version wrote it
    assert read_metadata(folder) == metadata


def test_a_directory_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        restore_run(tmp_path)


def test_a_tokenizer_travels_in_a_checkpoint(tmp_path):
    tokenizer = train_tokenizer(["a red square", "two blue circles"], "word")
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(
        1, {"step": jnp.int32(1), "params": {"w": jnp.ones(3)}}, {"tokenizer": tokenizer.files()}
    )
    checkpoints.close()
    again = tokenizer_from_files(restore_run(tmp_path).metadata["tokenizer"])
    a, b = (t.encode_batch(["a blue square"], 8) for t in (tokenizer, again))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_best_is_kept_and_a_damaged_best_is_set_aside(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, best_metric="x")
    assert checkpoints.save_best(1, STATE, {"step": 1}, 0.5)
    assert not checkpoints.save_best(2, STATE, {"step": 2}, 0.5)
    checkpoints.close()
    assert not Checkpoints(tmp_path, best_metric="x").save_best(3, STATE, {"step": 3}, 0.4)
    (tmp_path / "best" / "1" / "meta" / "metadata").write_text("{")
    again = Checkpoints(tmp_path, best_metric="x")
    assert "set aside" in capsys.readouterr().err
    assert again.save_best(3, STATE, {"step": 3}, 0.4)
    again.close()
    state, meta = Checkpoints(tmp_path, best_metric="x").restore(STATE, best=True)
    assert meta["step"] == 3
    assert_trees_identical(state, STATE)
