"""Settings of JAX, XLA and the C library for an experiment; free memory; timers that know about compilation."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import jaxlib

from xmodal_jax.core import cluster


def cache_root() -> pathlib.Path:
    """The folder of everything that can be computed again: ``$XMODAL_CACHE``, else ``~/.cache/xmodal_jax``."""
    return pathlib.Path(os.environ.get("XMODAL_CACHE", pathlib.Path.home() / ".cache" / "xmodal_jax"))


XLA_FLAGS = {
    # The library of the CPU's matrix products and sums, but XLA's own convolutions: faster here
    # (docs/performance.md).
    "0.10.2": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    },
}
"""XLA flags by the version of jaxlib that they were measured with. (XLA aborts the process at an unknown flag.)"""


def configure(
    *,
    compilation_cache: bool = True,
    keep_memory: bool = True,
    run_inline: bool = True,
    xla_flags: bool = True,
    gpu_memory_fraction: float | None = None,
) -> tuple[str, ...]:
    """Applies the settings of an experiment; call it before anything else uses JAX.

    If this is one of several processes (of Slurm, Kubernetes, a TPU pod, Open MPI or plain variables, see
    `core.cluster.detect`), it first joins the others. With ``XMODAL_CONFIGURE=0`` in the environment it does nothing
    else.

    Args:
      compilation_cache: keep compiled programs on disk, so that a second start compiles nothing.
        ``JAX_COMPILATION_CACHE_DIR`` overrides the folder; empty, it turns the cache off.
      keep_memory: let the C library keep freed memory instead of returning it to the system after every step. The page
        faults would cost a training step on the CPU a sixth of its time. (With glibc; elsewhere it does nothing.)
      run_inline: on the CPU, run programs in the thread that calls them. Large blocks that another thread allocates
        come from the system each time and not from the memory that ``keep_memory`` keeps (glibc limits the arena of a
        thread to 64 MiB); the page faults cost the steps of large models another fifth of their time. Several devices
        still run at once.
      xla_flags: add the flags that were measured with the installed jaxlib (`XLA_FLAGS`) to the variable
        ``XLA_FLAGS``. Flags that it has already stay; other versions of jaxlib, and machines with a JAX plugin for an
        accelerator, get none.
      gpu_memory_fraction: the fraction of a GPU's memory that JAX allocates at its start; None: JAX's default. The
        variable ``XLA_PYTHON_CLIENT_MEM_FRACTION`` overrides it.

    Returns:
      A line of text about each setting that was applied.

    Raises:
      ValueError: ``gpu_memory_fraction`` is not in (0, 1], or the variables of a cluster contradict each other.
      RuntimeError: the processes do not find each other.
    """
    if gpu_memory_fraction is not None and not 0 < gpu_memory_fraction <= 1:
        raise ValueError(f"gpu_memory_fraction must be in (0, 1], got {gpu_memory_fraction}")
    cluster.start()
    if os.environ.get("XMODAL_CONFIGURE") == "0":
        return ()
    applied = []
    if keep_memory and _keep_freed_memory():
        applied.append("malloc keeps freed memory")
    if run_inline:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        applied.append("programs on the CPU run in the thread that calls them")
    if compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = str(cache_root() / "compiled")
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        applied.append(f"compiled programs in {directory}")
    if xla_flags:
        applied += _add_xla_flags()
    if gpu_memory_fraction is not None and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{gpu_memory_fraction:g}"
        applied.append(f"XLA_PYTHON_CLIENT_MEM_FRACTION={gpu_memory_fraction:g}")
    return tuple(applied)


def _add_xla_flags() -> list[str]:
    """Adds the flags of `XLA_FLAGS` for this jaxlib to the environment variable of that name; returns those added.

    Flags that the variable already has keep their value.
    """
    # A plugin (libtpu, jax_plugins for GPUs) reads XLA_FLAGS too and may know other flags than jaxlib.
    plugins = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    if plugins and os.environ.get("JAX_PLATFORMS") != "cpu":
        return []
    present = os.environ.get("XLA_FLAGS", "")
    flags = [
        f"--{name}={value}"
        for name, value in XLA_FLAGS.get(jaxlib.__version__, {}).items()
        if f"--{name}" not in present
    ]
    if flags:
        os.environ["XLA_FLAGS"] = " ".join(filter(None, [present, *flags]))
    return flags


def _keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed memory; returns whether that was possible (False without glibc).

    It then uses no mmap for large blocks, never trims the heap, and grows it by 64 MiB at a time. Threads keep their
    own arenas: in a single one the blocks that the compiler leaves behind would slow down every later allocation (a
    GAN's step ran at half its speed after a compilation).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # numbers of the options in malloc.h
    for option, value in (
        (m_mmap_max, 0),
        (m_trim_threshold, 2**31 - 1),
        (m_top_pad, 2**26),
    ):
        mallopt(option, value)
    return True


def free_memory() -> int | None:
    """Bytes that this process can still allocate on each of its devices; None where that is not known.

    On the CPU, whose devices share one memory, it is the free memory of the system (or of the container, if that is
    less) divided by the number of devices.
    """
    device = jax.local_devices()[0]  # the others are alike
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    # Lines such as "MemAvailable:   8123456 kB".
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    free = [kib["MemAvailable"] * 1024]
    # Where there is no container with a limit, the file is absent (OSError) or holds "max" (ValueError).
    with contextlib.suppress(OSError, ValueError):
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
        free.append(limit - int(pathlib.Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(free) // jax.local_device_count()


def jit_once(function: Callable, **options) -> Callable:
    """``jax.jit`` for a program that runs once or seldom and computes little, such as the initialisation of parameters.

    On the CPU it is compiled with LLVM's optimisation level 1, which halves the time of compilation; floats may differ
    in their last bit from those of ``jax.jit``. A level in the variable ``XLA_FLAGS`` takes precedence. ``options`` are
    those of ``jax.jit``.
    """

    @functools.cache
    def jitted():
        """The jitted function. It is made at the first call: the backend is not known when a module is imported."""
        level = "xla_backend_optimization_level"
        set_level = jax.default_backend() == "cpu" and level not in os.environ.get("XLA_FLAGS", "")
        return jax.jit(function, compiler_options={level: 1} if set_level else None, **options)

    return lambda *args: jitted()(*args)


def announce_evaluation() -> None:
    """Prints, in one of all processes, that the evaluation of what was trained begins: it can take as long as the
    training, and most of it shows no progress."""
    if jax.process_index() == 0:
        print("evaluating on the test examples ...", flush=True)


class CompileClock:
    """Measures the time that the whole process spends compiling, from JAX's own events."""

    EVENTS = (
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    def __init__(self):
        """Starts to listen to JAX's events, among which are the ends of compilations."""
        self.seconds = 0.0
        """Seconds spent compiling since this clock was made."""
        self.count = 0
        """Number of programs compiled since."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration: float, **_) -> None:
        """JAX calls this with each event's name and duration in seconds."""
        if event in self.EVENTS:
            self.seconds += duration
            self.count += event == self.EVENTS[1]

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)


class Timer:
    """Wall-clock time of named parts of a run, without the compilation in them, which is counted under ``compile``.

    ::

        timer = Timer()
        with timer("data"):
            ...
        timer.report()  # {"data": 1.2, "compile": 0.0, "total": 1.3}
    """

    def __init__(self):
        """Starts the timer; the clock counts compilations, which are left out of all times."""
        self.clock = CompileClock()
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """Seconds by name, without compilation."""
        self._inside = 0.0
        """Seconds, without compilation, of the blocks inside the current one that have ended."""

    @contextlib.contextmanager
    def __call__(self, name: str):
        """Adds the time of the ``with`` block to ``name``. A block inside it counts under its own name only."""
        # Blocks that ended before this one inside the surrounding block; the sum starts anew for this block.
        inside_surrounding, self._inside = self._inside, 0.0
        start, compiled_before = time.perf_counter(), self.clock.seconds
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start - (self.clock.seconds - compiled_before)
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inside
            self._inside = inside_surrounding + elapsed

    def report(self) -> dict[str, float]:
        """Seconds by name, with ``compile`` and ``total`` (since the timer was made)."""
        return {**self.seconds, "compile": self.clock.seconds, "total": time.perf_counter() - self.start}
