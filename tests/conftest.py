"""A strict harness: eight fake devices, checked shapes, no silent broadcasting; see also pyproject.toml."""

import os
import pathlib
import shutil
import signal
import tempfile

# A shell lets the jobs that it starts in the background ignore Ctrl-C, and they hand this on to their children; the
# tests send this signal to programs that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # The tests compile much and run little: without optimisation, without the emitters of fused loops that are
        # slow to compile (half of all time), and on one thread, since other tests have the other cores.
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A program is compiled once for all tests, also those of other workers and in processes that tests start.
# XMODAL_TEST_CACHE=DIR keeps the compiled programs for the next time that the tests run.
CACHE_OF_THIS_SESSION = None
if (
    "XMODAL_TEST_CACHE" not in os.environ
):  # the workers of pytest-xdist find the one that their parent has set
    CACHE_OF_THIS_SESSION = tempfile.mkdtemp(prefix="xmodal_jax_tests_")
    os.environ["XMODAL_TEST_CACHE"] = CACHE_OF_THIS_SESSION
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["XMODAL_TEST_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

hook = install_import_hook("xmodal_jax", "beartype.beartype")

import gc  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("default")


TESTS = pathlib.Path(__file__).parent
QUICK = (
    "core",
    "metrics",
    "probability",
    "losses/test_elbo.py",
    "losses/test_penalties.py",
    "losses/test_sequence.py",
    "losses/test_tiled.py",
    "nets/test_attention.py",
    "nets/test_norm.py",
    "nets/test_dropout.py",
    "train/test_optim.py",
    "test_layers.py",
)
"""Folders and files of the tests that carry the marker ``quick``."""


def is_quick(path: pathlib.Path) -> bool:
    return any(path.is_relative_to(TESTS / part) for part in QUICK)


def pytest_ignore_collect(collection_path, config):
    """With ``-m quick`` the other files are not even imported, which takes longer than the quick tests."""
    only_quick = config.option.markexpr == "quick"
    return True if only_quick and collection_path.is_file() and not is_quick(collection_path) else None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_quick(item.path) and "slow" not in item.keywords:
            item.add_marker("quick")


def pytest_collection_finish():
    """All modules are imported now and stay: the garbage collector need not visit their objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure():
    if CACHE_OF_THIS_SESSION is not None:
        shutil.rmtree(CACHE_OF_THIS_SESSION, ignore_errors=True)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """What a file has compiled is of no use to the next, and all of it together takes gigabytes."""
    yield
    jax.clear_caches()
