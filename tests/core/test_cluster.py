"""Who takes part: by variables alone, and with two real processes on this machine."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from xmodal_jax.core.cluster import Cluster, agree, detect, is_writer, start

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHERS = ("JAX_", "SLURM_", "OMPI_", "PMIX_", "TPU_", "MEGASCALE_", "JOB_COMPLETION", "CUDA_", "ROCR_")
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "5", "JAX_PROCESS_ID": "3"}
JOBSET = {"JAX_COORDINATOR_ADDRESS": "xmodal-train-0-0.xmodal:1234", "JAX_NUM_PROCESSES": "3"} | {
    "JOB_COMPLETION_INDEX": "2",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}
SLURM = {
    "SLURM_JOB_ID": "65537",
    "SLURM_STEP_NODELIST": "node[07-11]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "2",
}
OPENMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_RANK": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
}
TPU = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t,t-2.t", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "5", "MEGASCALE_SLICE_ID": "3"}


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize(
    "env, expected",
    [
        (VARIABLES, Cluster("variables", "host0:1234", 5, 3)),
        (VARIABLES | SLURM | OPENMPI | TPU, Cluster("variables", "host0:1234", 5, 3)),
        (VARIABLES | {"JAX_COORDINATOR_ADDRESS": "[::1]:99"}, Cluster("variables", "[::1]:99", 5, 3)),
        (JOBSET, Cluster("kubernetes", "xmodal-train-0-0.xmodal:1234", 3, 2)),
        (SLURM, Cluster("slurm", None, 6, 5, "slurm", (2,))),
        (SLURM | {"SLURM_NTASKS": "8"}, Cluster("slurm", None, 6, 5, "slurm", (2,))),  # a step of 6 in 8
        (without(SLURM, "SLURM_STEP_NUM_TASKS"), Cluster("slurm", None, 6, 5, "slurm", (2,))),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, Cluster("slurm", "a:1", 6, 5, "deactivate", (2,))),
        (OPENMPI, Cluster("openmpi", None, 6, 4, "ompi", (1,))),
        (
            without(OPENMPI, "OMPI_MCA_orte_hnp_uri") | {"JAX_COORDINATOR_ADDRESS": "a:1"},  # Open MPI 5
            Cluster("openmpi", "a:1", 6, 4, "deactivate", (1,)),
        ),
        # mpirun starts its daemons by srun, whose variables are of the daemons.
        (SLURM | OPENMPI | {"SLURM_STEP_NUM_TASKS": "2"}, Cluster("openmpi", None, 6, 4, "ompi", (1,))),
        (TPU, Cluster("tpu", None, 3, 1, "gketpu")),
        (TPU | {"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, Cluster("tpu", None, 2, 1, "gketpu")),
        (TPU | SLICES, Cluster("tpu", None, 15, 10, "gketpu")),
        (TPU | {"JOB_COMPLETION_INDEX": "1"}, Cluster("tpu", None, 3, 1, "gketpu")),
    ],
)
def test_each_system_is_recognised(env, expected):
    assert detect(env) == expected


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"JOB_COMPLETION_INDEX": "3"},  # an Indexed Job of independent runs
        {"JAX_NUM_PROCESSES": "1"},
        SLURM | {"JAX_NUM_PROCESSES": "1"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell as a step of its own
        without(SLURM, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"),  # the batch script, beside srun
        {"SLURM_JOB_ID": "65537", "SLURM_NTASKS": "6"},  # salloc's shell
        OPENMPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        TPU | {"TPU_WORKER_HOSTNAMES": "localhost"},
        TPU | {"JAX_PLATFORMS": "cpu"},
    ],
)
def test_one_process(env):
    assert detect(env) is None


def test_a_tpu_machine_asks_jax_unless_its_variables_say_that_it_is_alone():
    assert detect({}, tpu_vm=True) == Cluster("tpu", None, None, None, "gcetpu")
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}, tpu_vm=True) is None
    assert detect({"JAX_PLATFORMS": "cpu"}, tpu_vm=True) is None


@pytest.mark.parametrize(
    "gpus, expected",
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, (2,)),
        ({"CUDA_VISIBLE_DEVICES": "2"}, (0,)),  # --gpus-per-task=1: each task sees only its own
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, (2,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6", "SLURM_STEP_NUM_NODES": "6"}, (0, 1, 2)),  # one task on each node
        ({"ROCR_VISIBLE_DEVICES": "0,1", "SLURM_STEP_NUM_NODES": "6"}, (0, 1)),
        ({"SLURM_STEP_NUM_NODES": "6"}, None),
    ],
)
def test_gpus_of_a_task(gpus, expected):
    assert detect(SLURM | gpus).local_devices == expected


def test_gpus_of_the_only_process_on_a_host():
    env = OPENMPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    assert detect(env | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_devices == (0, 1, 2, 3)


@pytest.mark.parametrize(
    "env, says",
    [
        (
            without(VARIABLES, "JAX_COORDINATOR_ADDRESS"),
            "JAX_NUM_PROCESSES is 5, but JAX_COORDINATOR_ADDRESS is not",
        ),
        (without(VARIABLES, "JAX_PROCESS_ID"), "JAX_PROCESS_ID is not set.*from 0 to 4"),
        (without(VARIABLES, "JAX_NUM_PROCESSES"), "without JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "set JAX_NUM_PROCESSES"),
        (VARIABLES | {"JAX_PROCESS_ID": "5"}, "JAX_PROCESS_ID must be an integer from 0 to 4, got '5'"),
        (VARIABLES | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID must be .* got '-1'"),
        (VARIABLES | {"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID must be .* got 'one'"),
        ({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID must be .* 0 to 0, got '1'"),
        (
            VARIABLES | {"JAX_NUM_PROCESSES": "0"},
            "JAX_NUM_PROCESSES must be an integer of at least 1, got '0'",
        ),
        (VARIABLES | {"JAX_NUM_PROCESSES": "2.0"}, "JAX_NUM_PROCESSES must be"),
        (
            VARIABLES | {"JAX_COORDINATOR_ADDRESS": "host0"},
            "JAX_COORDINATOR_ADDRESS must be HOST:PORT.*'host0'",
        ),
        (VARIABLES | {"JAX_COORDINATOR_ADDRESS": "host0:70000"}, "1 to 65535"),
        (JOBSET | {"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_INDEX must be an integer from 0 to 2"),
        (without(JOBSET, "JAX_NUM_PROCESSES"), "JAX_NUM_PROCESSES"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID is not set"),
        (without(SLURM, "SLURM_JOB_ID"), "SLURM_JOB_ID is not set"),
        (SLURM | {"SLURM_PROCID": "6"}, "SLURM_PROCID must be an integer from 0 to 5"),
        (without(OPENMPI, "OMPI_MCA_orte_hnp_uri"), "mpirun -x JAX_COORDINATOR_ADDRESS"),
        (without(OPENMPI, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK is not set"),
        (TPU | {"TPU_WORKER_ID": "3"}, "TPU_WORKER_ID must be an integer from 0 to 2"),
        (TPU | without(SLICES, "MEGASCALE_SLICE_ID"), "MEGASCALE_SLICE_ID is not set"),
    ],
)
def test_errors_name_the_variable(env, says):
    with pytest.raises(ValueError, match=says):
        detect(env)


def test_alone_nothing_starts():
    assert start({}) is None
    assert is_writer()
    assert agree("runs/näher", limit=3) == "runs/näher"


WORK = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from xmodal_jax.core import cluster

found = cluster.start(timeout=30)
assert cluster.start() == found
me = jax.process_index()
assert jax.process_count() == 2 and found.process == me and found.kind == sys.argv[1], found
assert jax.local_device_count() == 3 and cluster.is_writer() == (me == 0)

mesh = Mesh(np.array(jax.devices()), ("data",))
rows = np.arange(3.0, dtype=np.float32) + 3 * me
whole = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), rows, (6,))
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(whole)
assert float(total) == 15.0
shares = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())(whole)
assert float(shares.addressable_data(0)[0]) == 15.0

assert cluster.agree(f"runs/für-{me}") == "runs/für-0"
assert cluster.agree("", limit=3) == ""
try:
    cluster.agree("four" if me == 0 else "", limit=3)
except ValueError as error:
    assert "4 bytes" in str(error)
else:
    raise AssertionError
print("fine", me)
"""


UNREADABLE_CACHE = "ignore:Error reading persistent compilation cache entry:UserWarning"
"""A process may find a compiled program that another one is just writing (see filterwarnings in pyproject.toml)."""


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def launch(code, *arguments, envs, seconds):
    """(exit status, stdout, stderr) of one process per environment; all are killed after ``seconds``."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) and k != "XLA_FLAGS"}
    plain |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "3", "PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-W", UNREADABLE_CACHE, "-c", code, *arguments],
            env=plain | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for env in envs
    ]
    try:
        return [(*child.communicate(timeout=seconds), child.returncode) for child in children]
    finally:
        for child in children:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()


def variables(rank, port):
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(rank),
    }


def slurm(rank, port):
    ours = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2"}
    ours |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    # JAX's own rule for the port, in the ephemeral range: 61440 + job % 4096; its override avoids a clash.
    return SLURM | ours | {"SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": str(port)}


def openmpi(rank, port):
    ours = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    ours |= {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
    return OPENMPI | ours | {"JAX_COORDINATOR_PORT": str(port)}


@pytest.mark.parametrize("system", [variables, slurm, openmpi], ids=lambda system: system.__name__)
def test_two_processes_find_each_other(system):
    port = free_port()
    done = launch(WORK, system.__name__, envs=[system(rank, port) for rank in (0, 1)], seconds=60)
    for rank, (out, err, status) in enumerate(done):
        assert status == 0 and out.splitlines()[-1] == f"fine {rank}", err[-3000:]  # Gloo prints before


def test_a_process_that_waits_in_vain_says_what_to_check():
    code = "from xmodal_jax.core import cluster; cluster.WAIT_NOTE = 0.5; cluster.start(timeout=1.5)"
    port = free_port()
    proxy = {"HTTPS_PROXY": "http://proxy:3128"}
    [(_, err, status)] = launch(code, envs=[variables(1, port) | proxy], seconds=60)
    assert status == 1
    assert (
        f"waiting for all processes: this is process 1 of 2 (variables), coordinator 127.0.0.1:{port}" in err
    )
    assert "RuntimeError: the processes did not find each other" in err
    assert "after 1.5 seconds" in err and "unset HTTPS_PROXY" in err and "firewall" in err


def test_a_taken_port_is_named():
    with socket.socket(socket.AF_INET6) as held:
        held.bind(("::", 0))
        held.listen()
        port = held.getsockname()[1]
        code = "from xmodal_jax.core import cluster; cluster.start(timeout=20)"
        [(_, err, status)] = launch(code, envs=[variables(0, port)], seconds=60)
    assert status == 1 and f"127.0.0.1:{port}" in err and "Address already in use" in err
