#!/usr/bin/env bash
# Run a program on every worker of a TPU pod: create the pod if need be, copy this checkout, install, run; and begin
# again after a preemption, until the program ends by itself. Runs resume from their last checkpoint, so the workdir
# must outlive the pod: a folder that all workers mount (Filestore, or a bucket through gcsfuse).
#
#   TPU=my-pod ZONE=us-east5-a TYPE=v5p-32 VERSION=v2-alpha-tpuv5 SPOT=1 \
#     bash launch/tpu_pod.sh python -m rlhi_jax.train --config=configs/X.py --workdir=/mnt/shared/run
set -uo pipefail
: "${TPU:?name of the pod}" "${ZONE:?its zone}" "${TYPE:?accelerator type, such as v5p-32}" "${VERSION:?runtime version}"
[ $# -gt 0 ] || { echo 'error: name the command to run on every worker' >&2; exit 2; }
cd "$(dirname "$0")/.."

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
state() { tpu describe "$TPU" --format='value(state)' 2>/dev/null; }
workers() { tpu ssh "$TPU" --worker=all --command="$1"; }

create() {
  tpu create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}
}

set_up() {
  # What is committed, and nothing else, is what runs.
  git archive --format=tar.gz -o /tmp/rlhi_jax.tar.gz HEAD &&
    tpu scp /tmp/rlhi_jax.tar.gz "$TPU:~/rlhi_jax.tar.gz" --worker=all &&
    workers 'mkdir -p ~/rlhi_jax && tar xzf ~/rlhi_jax.tar.gz -C ~/rlhi_jax && cd ~/rlhi_jax &&
      python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
}

printf -v command '%q ' "$@"
while true; do
  case "$(state)" in
    READY) ;;
    '') create || { sleep 60; continue; } ;;
    CREATING | STARTING | RESTARTING) sleep 20; continue ;;
    *) tpu delete "$TPU" --quiet; continue ;; # PREEMPTED, TERMINATED, STOPPED
  esac
  set_up || { sleep 20; continue; }
  workers "cd ~/rlhi_jax && . .venv/bin/activate && RLHI_COORDINATOR=auto $command" && exit 0
  status=$?
  # A program that failed on a healthy pod would fail again; a pod that is gone was preempted.
  [ "$(state)" = READY ] && exit "$status"
  echo "the pod is $(state): starting again" >&2
done
