"""What must be set before JAX starts, and what JAX tells about compilation."""

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
    """Where everything that can be made again is kept: ``$XMODAL_CACHE``, else ``~/.cache/xmodal_jax``."""
    return pathlib.Path(os.environ.get("XMODAL_CACHE", pathlib.Path.home() / ".cache" / "xmodal_jax"))


XLA_FLAGS = {
    # The library of the CPU's matrix products and sums, but XLA's own convolutions: faster here
    # (docs/performance.md).
    "0.10.2": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    },
}
"""Flags by the version of jaxlib that they were measured with; XLA ends a process that has a flag it does not know."""


def configure(
    *,
    compilation_cache: bool = True,
    keep_memory: bool = True,
    run_inline: bool = True,
    xla_flags: bool = True,
    gpu_memory_fraction: float | None = None,
) -> tuple[str, ...]:
    """Settings for an experiment; call it before anything else uses JAX. Returns what was set, a line each.

    Started as one of several processes (Slurm, Kubernetes, TPU pod, Open MPI or plain variables, see
    `core.cluster.detect`), it first joins the others. With ``XMODAL_CONFIGURE=0`` in the environment it does
    nothing else.

    ``compilation_cache``: keep compiled programs on disk, so that a second start compiles nothing
    (``JAX_COMPILATION_CACHE_DIR`` overrides where; empty turns it off).
    ``keep_memory``: let the C library keep freed memory instead of handing it back to the system after every step,
    whose page faults cost a training step on the CPU a sixth of its time (glibc only; elsewhere it does nothing).
    ``run_inline``: on the CPU run programs in the thread that calls them. A large block that another thread asks for
    comes from the system each time and not from what ``keep_memory`` keeps (glibc's arenas of threads end at 64 MiB):
    its page faults cost the steps of large models another fifth of their time. Several devices still run at once.
    ``xla_flags``: add the flags that were measured with the installed jaxlib to ``XLA_FLAGS`` (`XLA_FLAGS`). What
    stands there already stays; other versions, and machines with a plugin of JAX for an accelerator, get none.
    ``gpu_memory_fraction``: the share of a GPU's memory that JAX takes at its start, instead of its own default
    (``XLA_PYTHON_CLIENT_MEM_FRACTION`` overrides it).

    Raises:
      ValueError: ``gpu_memory_fraction`` is not in (0, 1].
    """
    if gpu_memory_fraction is not None and not 0 < gpu_memory_fraction <= 1:
        raise ValueError(f"gpu_memory_fraction must be in (0, 1], got {gpu_memory_fraction}")
    cluster.start()
    if os.environ.get("XMODAL_CONFIGURE") == "0":
        return ()
    done = []
    if keep_memory and _keep_freed_memory():
        done.append("malloc keeps freed memory")
    if run_inline:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        done.append("programs on the CPU run in the thread that calls them")
    if compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = str(cache_root() / "compiled")
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        done.append(f"compiled programs in {directory}")
    if xla_flags:
        done += _add_xla_flags()
    if gpu_memory_fraction is not None and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{gpu_memory_fraction:g}"
        done.append(f"XLA_PYTHON_CLIENT_MEM_FRACTION={gpu_memory_fraction:g}")
    return tuple(done)


def _add_xla_flags() -> list[str]:
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
    """glibc's mallopt: no mmap for large blocks, no trimming, growth by 64 MiB. Whether it is there.

    Not one arena for all threads as well: what the compiler leaves behind would then slow down every later allocation,
    and a GAN's step with it to half its speed until the program comes from the cache.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    for option, value in (
        (m_mmap_max, 0),
        (m_trim_threshold, 2**31 - 1),
        (m_top_pad, 2**26),
    ):
        mallopt(option, value)
    return True


def free_memory() -> int | None:
    """Bytes that this process can still get on each of its devices; None where neither device nor system says.

    On the CPU, where the devices share it: the system's (or the container's) free memory, divided among them.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return None
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    free = [kib["MemAvailable"] * 1024]
    with contextlib.suppress(OSError, ValueError):  # a container's limit, if it has one ("max" is none)
        limit = int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text())
        free.append(limit - int(pathlib.Path("/sys/fs/cgroup/memory.current").read_text()))
    return min(free) // jax.local_device_count()


def jit_once(function: Callable, **how) -> Callable:
    """``jax.jit`` of a program that runs once or seldom and computes little, such as the drawing of parameters: on the
    CPU, LLVM's first level of optimisation halves its compilation; floats may differ in their last bit. A level in
    ``XLA_FLAGS`` stays."""

    @functools.cache
    def compiled():  # at the first call: what runs where is not known when a module is imported
        level = "xla_backend_optimization_level"
        own = jax.default_backend() == "cpu" and level not in os.environ.get("XLA_FLAGS", "")
        return jax.jit(function, compiler_options={level: 1} if own else None, **how)

    return lambda *args: compiled()(*args)


class CompileClock:
    """Seconds spent compiling since it was made (or reset), over the whole process, by JAX's own events."""

    EVENTS = (
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    def __init__(self):
        self.seconds = 0.0
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration: float, **_) -> None:
        if event in self.EVENTS:
            self.seconds += duration
            self.count += event == self.EVENTS[1]

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)


class Timer:
    """Wall seconds by name; the compilation inside each is taken out and kept under ``compile``."""

    def __init__(self):
        self.clock = CompileClock()
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._inside = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str):
        """Adds the time of the ``with`` block to ``name``; a block inside a block counts once, under its own name."""
        outside, self._inside = self._inside, 0.0
        start, compiled = time.perf_counter(), self.clock.seconds
        try:
            yield
        finally:
            whole = time.perf_counter() - start - (self.clock.seconds - compiled)
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inside
            self._inside = outside + whole

    def report(self) -> dict[str, float]:
        """Seconds by name, with ``compile`` and ``total`` (since it was made)."""
        return {**self.seconds, "compile": self.clock.seconds, "total": time.perf_counter() - self.start}
