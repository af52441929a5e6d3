"""The job files, run with stand-ins for the cluster's own commands: what they start, the script must accept."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from xmodal_jax.core.cluster import Cluster, detect
from xmodal_jax.train import command_line

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
SCRIPT = "experiments/contrastive.py"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
STAND_IN = r"""#!/bin/bash
printf '%s\n' "$(basename "$0")" "$@" >> "$CALLS"
[ "$(basename "$0")" = squeue ] && echo "${STATE:-RUNNING}"
[ "$(basename "$0")" = srun ] && exit "${STATUS:-0}"
exit 0
"""


@pytest.fixture
def call(tmp_path):
    """Runs a job file; returns the finished process and the commands it called, one word a line."""
    for name in ("srun", "mpirun", "gcloud", "squeue", "scontrol"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)

    def run(name, *arguments, **env):
        calls = tmp_path / "calls"
        calls.write_text("")
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SECONDS"))}
        plain |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), **env}
        done = subprocess.run(
            ["bash", str(LAUNCH / name), *arguments],
            env=plain,
            capture_output=True,
            text=True,
            timeout=20,
            cwd=tmp_path,
        )
        return done, calls.read_text().splitlines()

    return run


@pytest.fixture(scope="module")
def parse():
    """Command words up to and with the script's flags, to its configuration."""
    spec = importlib.util.spec_from_file_location("contrastive_script", ROOT / SCRIPT)
    module = importlib.util.module_from_spec(spec)

    def parsed(words):
        start = words.index(SCRIPT)
        assert words[start - 1] == "python"
        return command_line.parse(module.Config, None, words[start + 1 :])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses and tyro look its names up
        spec.loader.exec_module(module)
        yield parsed


def check(config):
    assert config.parallel == "sharded" and config.resume and config.checkpoint_every > 0
    assert config.run_dir.name == "contrastive"


def manifest():
    return yaml.safe_load((LAUNCH / "kubernetes_jobset.yaml").read_text())


def train_container():
    [group] = manifest()["spec"]["replicatedJobs"]
    [container] = group["template"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_syntax(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_each_file_opens_with_what_to_do(path):
    opening = re.split(r"\n(?!#)", path.read_text())[0]
    for word in ("Edit:", "Stop:", "Go on:"):
        assert word in opening
    assert "Submit:" in opening or "Start:" in opening


def test_slurm_starts_one_task_for_each_gpu(call, parse):
    done, words = call("slurm_gpu.sbatch", SLURM_CPUS_PER_TASK="7")
    assert done.returncode == 0, done.stderr
    assert words[:2] == ["srun", "--kill-on-bad-exit=1"] and "scontrol" not in words
    check(parse(words))
    options = dict(
        re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", (LAUNCH / "slurm_gpu.sbatch").read_text(), re.M)
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@300" and "requeue" in options and options["open-mode"] == "append"


@pytest.mark.parametrize(
    "env, requeued, says",
    [
        ({"SECONDS": "3000"}, True, "restart 1 of 50"),
        ({"SECONDS": "3000", "SLURM_RESTART_COUNT": "7"}, True, "restart 8 of 50"),
        ({"SECONDS": "3000", "SLURM_RESTART_COUNT": "50"}, False, "restarted 50 times already"),
        ({"SECONDS": "3"}, False, "after only"),
        ({"SECONDS": "3000", "STATE": "COMPLETING"}, False, "cancelled"),
    ],
)
def test_slurm_requeues_what_was_stopped(call, env, requeued, says):
    done, words = call("slurm_gpu.sbatch", STATUS="1", SLURM_JOB_ID="77", **env)
    assert done.returncode == 1 and says in done.stderr
    assert (words[-3:] == ["scontrol", "requeue", "77"]) == requeued == ("scontrol" in words)


def test_open_mpi_tells_the_coordinator(call, parse):
    done, words = call("openmpi.sh")
    assert done.returncode == 0, done.stderr
    check(parse(words))
    count, hosts = words[words.index("-np") + 1], words[words.index("--host") + 1].split(",")
    assert sum(int(host.split(":")[1]) for host in hosts) == int(count)
    name, address = words[words.index("-x") + 1].split("=")
    assert address.split(":")[0] == hosts[0].split(":")[0]
    ranks = {
        f"OMPI_COMM_WORLD_{what}": n for what, n in (("SIZE", count), ("RANK", "5"), ("LOCAL_RANK", "1"))
    }
    assert detect({name: address} | ranks) == Cluster("openmpi", address, 8, 5, "deactivate", (1,))


@pytest.mark.parametrize("verb", ["create", "install", "train", "stop", "delete"])
def test_tpu_commands(call, parse, verb):
    done, words = call("tpu_pod.sh", verb)
    assert done.returncode == 0, done.stderr
    assert words[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
    if verb in ("create", "delete"):
        assert words[4] == verb and not any(word.startswith("--worker") for word in words)
        return
    assert words[4] == "ssh" and "--worker=all" in words
    command = "\n".join(words).split("--command=")[1]
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    if verb == "train":
        arguments = shlex.split(command)
        check(parse(arguments[: arguments.index(">")]))
        assert re.search(r"XMODAL_CACHE=/\S+", command)


def test_tpu_usage(call):
    done, words = call("tpu_pod.sh")
    assert done.returncode == 2 and "usage" in done.stderr and not words


def test_jobset_names_its_first_pod(parse):
    jobset = manifest()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [group] = jobset["spec"]["replicatedJobs"]
    job, pod = group["template"]["spec"], group["template"]["spec"]["template"]["spec"]
    assert group["replicas"] == 1 and job["completions"] == job["parallelism"]
    # One process cannot come back alone: a failed pod must fail the job, and JobSet restarts all.
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0 and pod["terminationGracePeriodSeconds"] >= 60

    container = train_container()
    env = {item["name"]: item["value"] for item in container["env"]} | {"JOB_COMPLETION_INDEX": "1"}
    port = container["ports"][0]["containerPort"]
    host = f"{jobset['metadata']['name']}-{group['name']}-0-0.{jobset['spec']['network']['subdomain']}"
    assert detect(env) == Cluster("kubernetes", f"{host}:{port}", job["completions"], 1)
    check(parse(container["command"]))  # python itself, so that SIGTERM reaches it
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_every_command_of_the_document_is_accepted(parse):
    text = (ROOT / "docs" / "cluster.md").read_text()
    commands = re.findall(r"python experiments/contrastive\.py[^\n&]*", text)
    assert commands
    for command in commands:
        assert parse(shlex.split(command)).parallel == "sharded"
    named = set(re.findall(r"experiments/launch/(\w+\.\w+)|`(\w+\.(?:sh|sbatch|yaml))`", text))
    assert {a or b for a, b in named} == {path.name for path in LAUNCH.iterdir()}
