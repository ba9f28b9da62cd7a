#!/usr/bin/env bash
# Run a program on every worker of a TPU pod. The script creates the pod if it does not exist, copies and installs this
# checkout, and starts the program. After a preemption, it does all of this again, until the program ends on its own.
# Runs resume from their last checkpoint, so the workdir must outlive the pod: use a folder that all workers mount
# (Filestore, or a bucket through gcsfuse).
#
#   TPU=my-pod ZONE=us-east5-a TYPE=v5p-32 VERSION=v2-alpha-tpuv5 SPOT=1 \
#     bash launch/tpu_pod.sh python -m rlhi_jax.train --config=configs/X.py --workdir=/mnt/shared/run
set -uo pipefail
: "${TPU:?set it to the name of the pod}" "${ZONE:?set it to the zone of the pod}"
: "${TYPE:?set it to the accelerator type, such as v5p-32}" "${VERSION:?set it to the runtime version}"
[ $# -gt 0 ] || { echo 'error: pass the command to run on every worker' >&2; exit 2; }
cd "$(dirname "$0")/.."

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
state() { tpu describe "$TPU" --format='value(state)' 2>/dev/null; }
workers() { tpu ssh "$TPU" --worker=all --command="$1"; }

create() {
  tpu create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot}
}

set_up() {
  # Workers run the last commit, without uncommitted changes. With the old Python of TPU images, pip could only install
  # JAX 0.10, so uv downloads Python 3.12, which later versions of JAX need.
  git archive --format=tar.gz -o /tmp/rlhi_jax.tar.gz HEAD &&
    tpu scp /tmp/rlhi_jax.tar.gz "$TPU:~/rlhi_jax.tar.gz" --worker=all &&
    workers 'mkdir -p ~/rlhi_jax && tar xzf ~/rlhi_jax.tar.gz -C ~/rlhi_jax && cd ~/rlhi_jax &&
      python3 -m pip install -q --user uv && python3 -m uv venv -q --allow-existing --python 3.12 .venv &&
      python3 -m uv pip install -q --python .venv/bin/python -e ".[tpu]"'
}

give_up() {
  echo "error: $1" >&2
  exit 1
}

printf -v command '%q ' "$@"
failures=0
while true; do
  [ "$failures" -lt 5 ] || give_up 'the pod could not be made ready in 5 tries: see the messages above'
  case "$(state)" in
    READY) ;;
    '') create || { failures=$((failures + 1)); sleep 60; continue; } ;;
    CREATING | STARTING | RESTARTING) sleep 20; continue ;;
    *) tpu delete "$TPU" --quiet; continue ;; # PREEMPTED, TERMINATED, STOPPED
  esac
  set_up || { failures=$((failures + 1)); sleep 60; continue; }
  failures=0
  workers "cd ~/rlhi_jax && . .venv/bin/activate && RLHI_COORDINATOR=auto $command" && exit 0
  status=$?
  sleep 60 # after a preemption, the state is out of date for a while
  # 75: the run saved because the pod was about to be preempted. Any other failure on a healthy pod would recur.
  [ "$(state)" = READY ] && [ "$status" -ne 75 ] && exit "$status"
  echo "the run ended with status $status on a pod that is $(state): starting again" >&2
done
