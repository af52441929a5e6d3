#!/bin/bash
# Training on a Cloud TPU slice of any number of hosts, over gcloud: one process on each host, four or eight chips each.
#
# Edit:   the settings below. RUN_DIR must be storage that all hosts see: a Filestore share or a bucket mounted by
#         Cloud Storage FUSE, at the same path on each.
# Start:  bash experiments/launch/tpu_pod.sh create     once: the slice
#         bash experiments/launch/tpu_pod.sh install    once for each new slice: the code and its requirements
#         bash experiments/launch/tpu_pod.sh train
# Stop:   bash experiments/launch/tpu_pod.sh stop       SIGTERM: all hosts save a checkpoint and exit
# Go on:  train again; after a preemption of the slice: delete, create, install, train.
# Tidy:   bash experiments/launch/tpu_pod.sh delete     a slice costs money until it is deleted

set -eu

TPU=xmodal
PROJECT=my-project
ZONE=us-central2-b
ACCELERATOR=v4-32                        # 16 chips, 4 hosts
RUNTIME=tpu-ubuntu2204-base
REPOSITORY=https://github.com/OWNER/xmodal_jax.git
RUN_DIR=/mnt/shared/runs/contrastive     # shared storage
CACHE=/mnt/shared/cache                  # shared storage: what one start compiled, the next finds
COMMAND="python experiments/contrastive.py --parallel sharded --batch-size 1024 --checkpoint-every 500 \
  --run-dir $RUN_DIR --resume"

where=(--project="$PROJECT" --zone="$ZONE")

on_all_hosts() { # one shell command, on every host of the slice at once: a program on a part of them waits for ever
  gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=all --command="$1"
}

case ${1:-} in
  create)
    gcloud compute tpus tpu-vm create "$TPU" "${where[@]}" --accelerator-type="$ACCELERATOR" --version="$RUNTIME"
    ;;
  install)
    on_all_hosts "git clone $REPOSITORY xmodal_jax && python3 -m venv venv && . venv/bin/activate &&
      cd xmodal_jax && pip install -r requirements.txt && pip install 'jax[tpu]>=0.10,<0.11'"
    ;;
  train)
    # In a session of its own, so that it outlives a lost connection; "tail --pid" shows the log until it ends.
    on_all_hosts ". venv/bin/activate && cd xmodal_jax && export XMODAL_CACHE=$CACHE &&
      { setsid nohup $COMMAND > ../train.log 2>&1 < /dev/null & echo \$! > ../train.pid; } &&
      tail --pid=\$(cat ../train.pid) -n +1 -f ../train.log"
    ;;
  stop)
    on_all_hosts "kill -TERM \$(cat train.pid)"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU" "${where[@]}"
    ;;
  *)
    echo "usage: $0 create|install|train|stop|delete" >&2
    exit 2
    ;;
esac
