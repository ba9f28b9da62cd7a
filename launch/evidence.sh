#!/usr/bin/env bash
# Evidence with simulated users: their complaints → counterfactual pairs → a reward model that reads personas, and rewards
# of users that do not. Needs a teacher: bash launch/teacher.sh FILE 8133. Takes about two hours on two cores.
#   GGUF=FILE bash launch/evidence.sh [FLAG...]
# Finished steps are not repeated, so the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2
workdir=runs/evidence
flags=(--config=configs/evidence.py "$@")
for stage in sources.simulated ingest follow_ups personas strangers; do
  python -m "data_pipelines.$stage" "${flags[@]}" "--workdir=$workdir"
done
benchmark() { python tests/benchmarks/reward_users.py "$@" --config=configs/evidence.py "--workdir=$workdir"; }
benchmark strangers
benchmark pairs

reward=$workdir/reward
data=("--config.data.strangers=$workdir/strangers" "--config.data.pairs=$reward/pairs")
data+=("--config.data.shards=$reward/shards" "--config.data.rows=$reward/rows")
for stage in pairs shards rows; do python -m "data_pipelines.$stage" "${flags[@]}" "${data[@]}"; done
python -m rlhi_jax.train "${flags[@]}" "${data[@]}" --config.objective=reward --config.model.new_head --workdir=$reward/run
benchmark evaluate --name=text --model=$reward/run

[ -d $reward/users ] || python -m rlhi_jax.user_rewards fit "${flags[@]}" --model=runs/smollm2 --pairs=$reward/pairs --to=$reward/users
benchmark evaluate --name=low_rank --model=runs/smollm2 --rewards=$reward/users
