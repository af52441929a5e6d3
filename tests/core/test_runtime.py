import time

import jax
import jax.numpy as jnp
import pytest

from xmodal_jax.core.runtime import CompileClock, Stopwatch, cache_root


def test_stopwatch_adds_up_and_counts_nested_time_once():
    watch = Stopwatch()
    for _ in range(2):
        with watch("train"):
            time.sleep(0.02)
            with watch("evaluation"):
                time.sleep(0.05)
    seconds = watch.report()
    assert 0.04 <= seconds["train"] < 0.09
    assert 0.1 <= seconds["evaluation"] < 0.15
    assert seconds["total"] >= seconds["train"] + seconds["evaluation"]


def test_stopwatch_keeps_time_through_an_exception():
    watch = Stopwatch()
    with pytest.raises(RuntimeError), watch("train"):
        time.sleep(0.01)
        raise RuntimeError
    assert watch.seconds["train"] >= 0.01


def test_compilation_is_counted_and_taken_out():
    watch = Stopwatch()
    with watch("train"):
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((7, 11))).block_until_ready()
    assert watch.report()["compile"] > 0
    assert watch.clock.count >= 1
    before = watch.clock.count
    watch.clock.close()
    jax.jit(lambda x: jnp.tan(x))(jnp.ones(13)).block_until_ready()
    assert watch.clock.count == before


def test_two_clocks_do_not_disturb_each_other():
    a, b = CompileClock(), CompileClock()
    a.close()
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(17)).block_until_ready()
    assert a.count == 0 and b.count >= 1
    b.close()


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
