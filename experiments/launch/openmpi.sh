#!/bin/bash
# Training on hosts that Open MPI reaches (4 or 5), one process for each GPU. JAX's processes talk to each other by
# themselves; of Open MPI only the launcher is used.
#
# Edit:   the settings below. The repository, the Python environment and RUN_DIR must be at the same path on all hosts.
# Start:  bash experiments/launch/openmpi.sh      (from the repository, on the first host)
# Stop:   SIGTERM to this script, or to any one of the Python processes: all save a checkpoint and exit.
# Go on:  start it again.

set -eu

HOSTS=host0:4,host1:4           # NAME:SLOTS, as many slots as GPUs
PROCESSES=8
COORDINATOR=host0:29400         # the first of HOSTS, by a name that all of them resolve, and a free port there
RUN_DIR=runs/contrastive          # shared storage
export XMODAL_CACHE=$PWD/runs/cache # shared storage: what one start compiled, the next finds
COMMAND=(
  python experiments/contrastive.py
  --parallel sharded
  --batch-size 1024
  --checkpoint-every 500
  --run-dir "$RUN_DIR"
  --resume
)

# When mpirun is asked to end, it waits this many seconds, sends SIGTERM, waits as long again and kills; by default
# one second, too little for a checkpoint. The first name is Open MPI 4's, the second Open MPI 5's.
export OMPI_MCA_odls_base_sigkill_timeout=60
export PRTE_MCA_odls_base_sigkill_timeout=60

# --bind-to none: else each process, with all its threads, is kept on one core.
exec mpirun -np "$PROCESSES" --host "$HOSTS" --bind-to none \
  -x JAX_COORDINATOR_ADDRESS="$COORDINATOR" -x XMODAL_CACHE -x PATH \
  "${COMMAND[@]}"
