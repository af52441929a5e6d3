import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from xmodal_jax.core import runtime
from xmodal_jax.core.runtime import CompileClock, Timer, cache_root


def test_stopwatch_adds_up_and_counts_nested_time_once():
    timer = Timer()
    for _ in range(2):
        with timer("train"):
            time.sleep(0.02)
            with timer("evaluation"):
                time.sleep(0.05)
    seconds = timer.report()
    assert 0.04 <= seconds["train"] < 0.09
    assert 0.1 <= seconds["evaluation"] < 0.15
    assert seconds["total"] >= seconds["train"] + seconds["evaluation"]


def test_stopwatch_keeps_time_through_an_exception():
    timer = Timer()
    with pytest.raises(RuntimeError), timer("train"):
        time.sleep(0.01)
        raise RuntimeError
    assert timer.seconds["train"] >= 0.01


def test_compilation_is_counted_and_taken_out():
    timer = Timer()
    with timer("train"):
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((7, 11))).block_until_ready()
    assert timer.report()["compile"] > 0
    assert timer.clock.count >= 1
    before = timer.clock.count
    timer.clock.close()
    jax.jit(lambda x: jnp.tan(x))(jnp.ones(13)).block_until_ready()
    assert timer.clock.count == before


def test_two_clocks_do_not_disturb_each_other():
    a, b = CompileClock(), CompileClock()
    a.close()
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(17)).block_until_ready()
    assert a.count == 0 and b.count >= 1
    b.close()


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    assert cache_root() == tmp_path


FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """Settings of this process stay as they are; the plugins of this machine do not matter."""
    for name in ("XLA_FLAGS", "XMODAL_CONFIGURE", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")  # restored afterwards, also where configure sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(jax.config, "update", lambda *args: None)
    monkeypatch.setenv("XMODAL_CACHE", str(tmp_path))
    return monkeypatch


def test_flags_are_added_for_the_tested_version_only(clean):
    clean.setattr(jaxlib, "__version__", "0.10.2")
    assert any(line.startswith(FLAG) for line in runtime.configure())
    assert os.environ["XLA_FLAGS"].startswith(FLAG)
    clean.delenv("XLA_FLAGS")
    clean.setattr(jaxlib, "__version__", "0.99.0")
    assert not any(FLAG in line for line in runtime.configure())
    assert "XLA_FLAGS" not in os.environ


def test_flags_of_the_user_stay(clean):
    clean.setattr(jaxlib, "__version__", "0.10.2")
    clean.setenv("XLA_FLAGS", f"--xla_dump_to=x {FLAG}=mine")
    runtime.configure()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=x {FLAG}=mine"
    clean.setenv("XLA_FLAGS", "--xla_dump_to=x")
    runtime.configure()
    assert os.environ["XLA_FLAGS"].split()[0] == "--xla_dump_to=x" and FLAG in os.environ["XLA_FLAGS"]


def test_no_flags_beside_a_plugin_unless_the_cpu_is_asked_for(clean):
    clean.setattr(jaxlib, "__version__", "0.10.2")
    clean.setattr(runtime.importlib.util, "find_spec", lambda name: "there" if name == "libtpu" else None)
    clean.delenv("JAX_PLATFORMS", raising=False)
    runtime.configure()
    assert "XLA_FLAGS" not in os.environ
    clean.setenv("JAX_PLATFORMS", "cpu")
    runtime.configure()
    assert FLAG in os.environ["XLA_FLAGS"]


def test_all_settings_can_be_turned_off(clean):
    off = dict(compilation_cache=False, keep_memory=False, run_inline=False, xla_flags=False)
    assert runtime.configure(**off) == ()
    clean.setenv("XMODAL_CONFIGURE", "0")
    assert runtime.configure(gpu_memory_fraction=0.5) == ()
    assert not {"XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(os.environ)


def test_the_share_of_the_gpus_memory(clean):
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5" in runtime.configure(gpu_memory_fraction=0.5)
    runtime.configure(gpu_memory_fraction=0.9)  # what the environment says stays
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    with pytest.raises(ValueError, match="gpu_memory_fraction must be in"):
        runtime.configure(gpu_memory_fraction=1.5)


def test_the_installed_xla_knows_the_flags(tmp_path):
    """XLA ends the process at a flag it does not know; a second start finds its program on disk."""
    program = """
from xmodal_jax.core import runtime
print(runtime.configure())
import jax
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
print(jax.jit(lambda x: x @ x)(jax.numpy.ones((5, 5))).sum())
print("cached:", "/jax/compilation_cache/cache_hits" in found)
"""
    hidden = {"XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "XMODAL_CONFIGURE"}
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    env |= {"JAX_PLATFORMS": "cpu", "XMODAL_CACHE": str(tmp_path)}
    for cached in (False, True):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (FLAG in done.stdout) == (jaxlib.__version__ in runtime.XLA_FLAGS)
        assert "125.0" in done.stdout and f"cached: {cached}" in done.stdout


def test_a_program_that_runs_once_gives_the_same_numbers_up_to_rounding(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # read at the first call: the tests' own level would stay
    draw = lambda key, scale: {
        "a": jax.random.truncated_normal(key, -2, 2, (7, 11)) * scale,
        "b": jnp.zeros(3),
    }
    key, scale = jax.random.key(0), np.float32(0.3)
    once, usual = runtime.jit_once(draw)(key, scale), jax.jit(draw)(key, scale)
    assert np.std(once["a"]) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), once, usual)


def test_a_compiled_program_that_cannot_be_read_is_compiled_again():
    """The processes of the tests share compiled programs; a file that another one is just writing is incomplete."""

    @jax.jit
    def a_program_of_this_test(x):
        return 2 * x + 1

    expected = a_program_of_this_test(jnp.arange(3))
    (file,) = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("jit_a_program_of_this_test-*-cache")
    file.write_bytes(file.read_bytes()[:100])
    jax.clear_caches()
    np.testing.assert_array_equal(a_program_of_this_test(jnp.arange(3)), expected)
    file.unlink()
