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

# train FOLDER PAIRS OBJECTIVE [FLAG...]: trains a model on pairs, in a folder of the workdir. sft reads chosen replies alone.
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

# Policies: a warm start on the chosen replies, then DPO on the counterfactual pairs; then the controls, and DPO online.
# Gate users judge them.
warm=$workdir/counterfactual/sft
policy() { train "$1" "$pairs" dpo --config.optimizer.learning_rate=3e-5 --config.train.epochs=2 "${@:2}"; }
train counterfactual "$pairs" sft --config.optimizer.learning_rate=1e-4 --config.train.epochs=5
policy counterfactual "--config.model.path=$warm"
policy from_base
for control in pooled shuffled all_users few_users; do
  policy "$control" "--config.model.path=$warm" "--config=configs/evidence.py:$control"
done
python -m rlhi_jax.online "${flags[@]}" --config=configs/evidence.py:online "--config.model.path=$warm" \
  "--config.data.conversations=$workdir/conversations" "--config.data.follow_ups=$workdir/follow_ups" \
  "--config.data.personas=$workdir/personas" --config.optimizer.learning_rate=3e-5 "--workdir=$workdir/online/dpo"
policies=(base sft dpo from_base pooled shuffled all_users few_users online)
for policy in "${policies[@]}"; do
  case $policy in
    base) model=runs/smollm2 ;;
    sft | dpo) model=$workdir/counterfactual/$policy ;;
    *) model=$workdir/$policy/dpo ;;
  esac
  python -m data_pipelines.satisfaction "${flags[@]}" --config.satisfaction.split=validation \
    "--config.data.raw=$workdir/raw" "--config.data.personas=$workdir/personas" "--config.satisfaction.model=$model" \
    "--config.data.satisfaction=$workdir/satisfaction/$policy" --config.sampler.prompt_tokens=192 \
    --config.sampler.slots=48
done
python tests/benchmarks/policy_users.py "--workdir=$workdir/satisfaction" "--policies=$(IFS=,; echo "${policies[*]}")"

# The judge that costs nothing: the policy itself, before and after it has learned to write the rewrites.
benchmark evaluate --name=free_judge_before --model=runs/smollm2
benchmark evaluate --name=free_judge "--model=$workdir/counterfactual/sft"

for arm in original checkers; do
  train "arms/$arm" "$workdir/arms/$arm.jsonl" reward --config.model.new_head
  benchmark evaluate "--name=text_$arm" "--model=$workdir/arms/$arm/reward"
done
