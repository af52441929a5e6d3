"""Several processes as one program: detecting a cluster, joining the other processes, agreeing on a value."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

WAIT_NOTE = 20.0
"""Seconds of waiting for the other processes after which a line on screen says so."""


class Cluster(NamedTuple):
    """The cluster that this process is part of, and its number in it."""

    kind: Literal["variables", "kubernetes", "openmpi", "slurm", "tpu"]
    """What started the processes."""
    coordinator: str | None
    """``host:port`` of process 0's service; None: JAX derives it from the launcher's variables."""
    processes: int | None
    """Number of processes; None: JAX asks the TPU's metadata server."""
    process: int | None
    """This process's number, from 0; None: as for ``processes``."""
    method: str = "deactivate"
    """JAX's ``cluster_detection_method``; "deactivate" where the fields above hold all that JAX would look for."""
    local_devices: tuple[int, ...] | None = None
    """Numbers of the visible GPUs that this process uses; None: JAX's rule for ``method``."""


def detect(env: Mapping[str, str], *, tpu_vm: bool = False) -> Cluster | None:
    """The cluster that the environment variables describe; None where this is the only process.

    The first of these that applies decides:

    1. ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` (in a Kubernetes Indexed Job or JobSet
       ``JOB_COMPLETION_INDEX`` replaces the last);
    2. the variables of Open MPI's ``mpirun``;
    3. those of Slurm's ``srun``;
    4. those that GKE gives to the workers of a TPU slice;
    5. ``tpu_vm``: this is a Cloud TPU machine, where JAX asks the metadata server.

    An address alone replaces the one of a launcher, and ``JAX_NUM_PROCESSES=1`` makes each process of any launcher run
    by itself.

    Raises:
      ValueError: the variables contradict each other or are incomplete.
    """
    address = env.get("JAX_COORDINATOR_ADDRESS") or None
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS must be HOST:PORT with a port from 1 to 65535, got {address!r}"
            )
    if env.get("JAX_NUM_PROCESSES") or env.get("JAX_PROCESS_ID"):
        return _by_variables(env, address)
    # Before Slurm, whose variables also reach what mpirun starts inside a job.
    if "OMPI_COMM_WORLD_SIZE" in env:
        return _by_launcher(env, "openmpi", address)
    # Only srun sets this variable; sbatch and the shell of salloc do not.
    if "SLURM_STEP_NODELIST" in env:
        return _by_launcher(env, "slurm", address)
    platforms = env.get("JAX_PLATFORMS")
    if not platforms or "tpu" in platforms:
        hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")
        if hosts:
            return _by_tpu_variables(env, hosts.count(",") + 1, address)
        if tpu_vm:
            return Cluster("tpu", address, processes=None, process=None, method="gcetpu")
    if address is not None:
        raise ValueError(
            "JAX_COORDINATOR_ADDRESS is set, but nothing says how many processes there are: set JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID as well, start with srun or mpirun, or unset it to run as one process"
        )
    return None


def _by_variables(env: Mapping[str, str], address: str | None) -> Cluster | None:
    """The cluster that JAX_NUM_PROCESSES and JAX_PROCESS_ID describe; None for a single process.

    ``address``: host and port of process 0, from JAX_COORDINATOR_ADDRESS.
    """
    if not env.get("JAX_NUM_PROCESSES"):
        raise ValueError(
            "JAX_PROCESS_ID is set without JAX_NUM_PROCESSES: set the number of processes as well"
        )
    count = _integer(env, "JAX_NUM_PROCESSES", low=1)
    # In a Kubernetes Indexed Job, Kubernetes numbers the processes.
    indexed = not env.get("JAX_PROCESS_ID") and "JOB_COMPLETION_INDEX" in env
    process = 0
    if count > 1 or env.get("JAX_PROCESS_ID"):
        process = _integer(env, "JOB_COMPLETION_INDEX" if indexed else "JAX_PROCESS_ID", low=0, below=count)
    if count == 1:
        return None
    if address is None:
        raise ValueError(
            f"JAX_NUM_PROCESSES is {count}, but JAX_COORDINATOR_ADDRESS is not set: give HOST:PORT of process 0, "
            "the same for all processes, with a free port"
        )
    return Cluster("kubernetes" if indexed else "variables", address, count, process)


def _by_launcher(
    env: Mapping[str, str], kind: Literal["openmpi", "slurm"], address: str | None
) -> Cluster | None:
    """The cluster that the variables of Open MPI's or Slurm's launcher describe; None for a single process.

    ``address``: host and port of process 0 from JAX_COORDINATOR_ADDRESS; None: JAX derives it from the variables.

    ``env``: the environment variables. ``kind``: which of the two launchers has started the process.
    """
    # Variables that hold the number of processes, this process's number, and its number on its host.
    if kind == "openmpi":
        count_name, process_name = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
        local_name = "OMPI_COMM_WORLD_LOCAL_RANK"
        single_process_per_host = env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    else:
        # SLURM_NTASKS may be the number of the whole allocation and not of this step.
        count_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        process_name, local_name = "SLURM_PROCID", "SLURM_LOCALID"
        single_process_per_host = env.get("SLURM_STEP_NUM_NODES") == env.get(count_name)
    count = _integer(env, count_name, low=1)
    if count == 1:
        return None
    process = _integer(env, process_name, low=0, below=count)
    local = _integer(env, local_name, low=0, below=count)
    if address is None and kind == "openmpi" and "OMPI_MCA_orte_hnp_uri" not in env:
        raise ValueError(
            "Open MPI 5 does not tell where process 0 is: name its host and a free port by "
            "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"
        )
    if address is None and kind == "slurm":
        _integer(env, "SLURM_JOB_ID", low=0)  # only to check it: JAX derives the port from it
    method = "deactivate" if address else {"openmpi": "ompi", "slurm": "slurm"}[kind]
    devices = _local_devices(env, local, single_process_per_host=single_process_per_host)
    return Cluster(kind, address, count, process, method, devices)


def _by_tpu_variables(env: Mapping[str, str], hosts: int, address: str | None) -> Cluster | None:
    """The cluster that GKE's variables describe, for TPU slices of ``hosts`` machines; None for a single process.

    Each machine runs one process; processes are numbered slice by slice.

    ``env``: the environment variables. ``address``: host and port of process 0, from JAX_COORDINATOR_ADDRESS; None: JAX
    derives it.
    """
    slices = _integer(env, "MEGASCALE_NUM_SLICES", low=1) if env.get("MEGASCALE_NUM_SLICES") else 1
    if hosts * slices == 1:
        return None
    process = _integer(env, "TPU_WORKER_ID", low=0, below=hosts)
    if slices > 1:
        process += hosts * _integer(env, "MEGASCALE_SLICE_ID", low=0, below=slices)
    return Cluster("tpu", address, processes=hosts * slices, process=process, method="gketpu")


def _local_devices(
    env: Mapping[str, str], local: int, *, single_process_per_host: bool
) -> tuple[int, ...] | None:
    """Numbers of the GPUs that this process uses, out of those that it sees; None: JAX decides.

    ``local`` is the process's number on its host; ``single_process_per_host``: it is the only one there. JAX by itself
    would take the GPU of number ``local``. That is wrong for a process that sees a single GPU (its number is 0) and for
    the only process of a host (it is to use all GPUs).
    """
    if env.get("JAX_LOCAL_DEVICE_IDS"):
        return None  # JAX reads this variable
    names = env.get("CUDA_VISIBLE_DEVICES") or env.get("ROCR_VISIBLE_DEVICES") or ""
    # "-1" and "NoDevFiles" (Slurm's) stand for no GPU.
    visible = 0 if names in ("", "-1", "NoDevFiles") else len(names.split(","))
    if visible == 1:  # the launcher has bound the process to one GPU
        return (0,)
    if single_process_per_host:
        return tuple(range(visible)) or None
    return (local,)


def _integer(env: Mapping[str, str], name: str, low: int, below: int | None = None) -> int:
    """The value of an environment variable, an integer from ``low`` to ``below - 1`` (``below`` None: no upper limit).

    Raises:
      ValueError: the variable is not set, no integer or out of range.
    """
    wanted = f"an integer of at least {low}" if below is None else f"an integer from {low} to {below - 1}"
    if not env.get(name):
        raise ValueError(f"{name} is not set, but other variables call for it: set it to {wanted}")
    try:
        value = int(env[name])
    except ValueError:
        value = low - 1
    if value < low or (below is not None and value >= below):
        raise ValueError(
            f"{name} must be {wanted}, got {env[name]!r}: correct it, or unset what was left over"
        )
    return value


def _is_tpu_vm(env: Mapping[str, str]) -> bool:
    """Whether this is a Cloud TPU machine: it has the chips' device files, and libtpu is installed.

    TPU_SKIP_MDS_QUERY, which JAX sets where it finds no chip, turns this off.
    """
    devices = any(pathlib.Path("/dev").glob("accel*")) or any(pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return devices and "TPU_SKIP_MDS_QUERY" not in env and importlib.util.find_spec("libtpu") is not None


def start(env: Mapping[str, str] = os.environ, *, timeout: float = 300.0) -> Cluster | None:
    """Joins this process to the others of the cluster that `detect` finds; returns the cluster.

    It does nothing where this is the only process (the result is None) or has joined already. Call it before JAX looks
    for devices. ``timeout``: seconds to wait for all processes. Values that JAX derives itself, see ``Cluster.method``,
    come from ``os.environ`` and not from ``env``.

    Raises:
      ValueError: as `detect`.
      RuntimeError: the processes do not find each other; the message lists what to check.
    """
    cluster = detect(env, tpu_vm=_is_tpu_vm(env))
    if cluster is None or jax.distributed.is_initialized():
        return cluster
    if cluster.process == 0 and cluster.coordinator and "JAX_COORDINATOR_BIND_ADDRESS" not in env:
        try:  # to open the port, because JAX can crash without a message where it is taken
            _listen(int(cluster.coordinator.rpartition(":")[2])).close()
        except OSError as error:
            raise RuntimeError(
                _failure_message(cluster, env, f"its port cannot be opened ({error})")
            ) from error
    errors: list[BaseException] = []

    def join() -> None:
        """Joins the other processes; an error goes to ``errors``, for the thread that waits."""
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.processes,
                cluster.process,
                local_device_ids=cluster.local_devices,
                cluster_detection_method=cluster.method,
                initialization_timeout=int(timeout) + 60,
            )
        except BaseException as error:
            errors.append(error)

    # Join in a thread and wait for it here: at its own timeout JAX would abort the process, without an error message.
    joining = threading.Thread(target=join, name="jax.distributed.initialize", daemon=True)
    joining.start()
    joining.join(min(WAIT_NOTE, timeout))
    if joining.is_alive() and timeout > WAIT_NOTE:
        print(f"waiting for all processes: {_process_summary(cluster)}", file=sys.stderr, flush=True)
        joining.join(timeout - WAIT_NOTE)
    if joining.is_alive() or errors:
        reason = f"JAX says: {errors[0]}" if errors else f"not all were there after {timeout:g} seconds"
        raise RuntimeError(_failure_message(cluster, env, reason)) from (errors[0] if errors else None)
    return cluster


def _listen(port: int) -> socket.socket:
    """A server socket on this port, at all addresses of the host."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _process_summary(cluster: Cluster) -> str:
    """This process's number, the number of processes and the coordinator, as text for messages."""
    process, count = ("?" if n is None else n for n in (cluster.process, cluster.processes))
    where = cluster.coordinator or "found by JAX"
    return f"this is process {process} of {count} ({cluster.kind}), coordinator {where}"


def _failure_message(cluster: Cluster, env: Mapping[str, str], reason: str) -> str:
    """The error message for processes that did not find each other: the ``reason``, and a list of what to check.

    ``cluster``: what was to be joined. ``env``: the environment variables, in which a proxy may be set.
    """
    proxies = sorted(name for name in env if name.lower().endswith("_proxy") and name.lower() != "no_proxy")
    return "\n  ".join(
        [
            f"the processes did not find each other: {_process_summary(cluster)}; {reason}. Check that",
            "- as many processes run as were announced, each with its own number, and none ended with an error",
            "- the coordinator's host is the one of process 0, and its name resolves on every host",
            "- its port is free there and no firewall closes it between the hosts; another port may be given in "
            "JAX_COORDINATOR_ADDRESS=HOST:PORT",
            "- nothing used a JAX device before",
            *([f"- no proxy is in the way: unset {', '.join(proxies)}"] if proxies else []),
            *(["- jax[tpu] is installed; TPU_SKIP_MDS_QUERY=1 runs alone"] if cluster.kind == "tpu" else []),
        ]
    )


def is_writer() -> bool:
    """Whether this process writes the run's files: process 0 does, and so does a single process."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def agree(text: str, *, limit: int = 1024) -> str:
    """Returns process 0's ``text`` on every process. All processes must call it, with the same ``limit``.

    Raises:
      ValueError: on all processes, where process 0's text is longer than ``limit`` bytes of UTF-8.
    """
    if not jax.distributed.is_initialized():
        return text
    content = text.encode()
    # A block of the same size on every process: the length in four bytes, then the text and zeros.
    block = np.zeros(4 + limit, np.uint8)
    block[:4] = np.frombuffer(len(content).to_bytes(4, "little"), np.uint8)
    block[4 : 4 + len(content)] = np.frombuffer(content[:limit], np.uint8)
    block = np.asarray(multihost_utils.broadcast_one_to_all(block), np.uint8)
    length = int.from_bytes(block[:4].tobytes(), "little")
    if length > limit:
        raise ValueError(f"process 0's text has {length} bytes, more than limit={limit}")
    return block[4 : 4 + length].tobytes().decode()
