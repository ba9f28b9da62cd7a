#!/usr/bin/env bash
# Evidence with simulated users: their complaints → counterfactual pairs → a reward model that reads personas, and rewards
# of users over a frozen model. Needs a teacher: bash launch/teacher.sh FILE 8133. Takes hours on two cores.
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
benchmark arms
benchmark pairs

# train ARM PAIRS OBJECTIVE [FLAG...]: trains a model on pairs, in the folder of an arm. sft reads chosen replies alone.
train() {
  local folder=$workdir/$1 pairs=$2 objective=$3 feedback=paired stage
  shift 3
  [ "$objective" = sft ] && feedback=chosen
  local data=("--config.data.pairs=$pairs" "--config.data.feedback=$feedback" "--config.data.shards=$folder/$feedback/shards"
    "--config.data.rows=$folder/$feedback/rows")
  for stage in shards rows; do python -m "data_pipelines.$stage" "${flags[@]}" "${data[@]}"; done
  python -m rlhi_jax.train "${flags[@]}" "${data[@]}" --config.model.dtype=bfloat16 --config.model.remat=save_attention \
    "--config.objective=$objective" "$@" "--workdir=$folder/$objective"
}

pairs=$workdir/counterfactual/pairs
python -m data_pipelines.pairs "${flags[@]}" "--config.data.strangers=$workdir/strangers" "--config.data.pairs=$pairs"
train counterfactual "$pairs" reward --config.model.new_head
benchmark evaluate --name=text --model=$workdir/counterfactual/reward
for kind in low_rank persona_head; do
  rewards=$workdir/counterfactual/$kind
  python -m rlhi_jax.user_rewards fit "${flags[@]}" --kind=$kind --model=runs/smollm2 "--pairs=$pairs" "--to=$rewards" --overwrite
  benchmark evaluate --name=$kind --model=runs/smollm2 "--rewards=$rewards"
done

# Policies: a warm start on the rewrites, then DPO on the counterfactual pairs. Gate users judge them.
train counterfactual "$pairs" sft --config.optimizer.learning_rate=1e-4 --config.train.epochs=5
train counterfactual "$pairs" dpo "--config.model.path=$workdir/counterfactual/sft" \
  --config.optimizer.learning_rate=3e-5 --config.train.epochs=2
for policy in base sft dpo; do
  model=$workdir/counterfactual/$policy
  [ $policy = base ] && model=runs/smollm2
  python -m data_pipelines.satisfaction "${flags[@]}" --config.satisfaction.split=validation \
    "--config.data.raw=$workdir/raw" "--config.data.personas=$workdir/personas" "--config.satisfaction.model=$model" \
    "--config.data.satisfaction=$workdir/satisfaction/$policy" --config.sampler.prompt_tokens=192 \
    --config.sampler.slots=48
done
python tests/benchmarks/policy_users.py "--workdir=$workdir/satisfaction"

# The judge that costs nothing: the policy itself, before and after it has learned to write the rewrites.
benchmark evaluate --name=free_judge_before --model=runs/smollm2
benchmark evaluate --name=free_judge "--model=$workdir/counterfactual/sft"

for arm in original checkers; do
  train "arms/$arm" "$workdir/arms/$arm.jsonl" reward --config.model.new_head
  benchmark evaluate "--name=text_$arm" "--model=$workdir/arms/$arm/reward"
done
