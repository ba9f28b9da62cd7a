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
given=("$@")
flags=(--config=configs/evidence.py "${given[@]}")
for stage in sources.simulated ingest follow_ups personas strangers; do
  python -m "data_pipelines.$stage" "${flags[@]}" "--workdir=$workdir"
done
benchmark() { python tests/benchmarks/reward_users.py "$@" --config=configs/evidence.py "--workdir=$workdir"; }
benchmark strangers
benchmark arms
benchmark pairs

# train FOLDER PAIRS OBJECTIVE [FLAG...]: trains a model on pairs, in a folder of the workdir, with the config's variant
# $variant. sft reads chosen replies alone.
variant=counterfactual
model=(--config.model.dtype=bfloat16 --config.model.remat=save_attention)
train() {
  local folder=$workdir/$1 pairs=$2 objective=$3 feedback=paired stage
  local flags=("--config=configs/evidence.py:$variant" "${given[@]}")
  shift 3
  [ "$objective" = sft ] && feedback=chosen
  local data=("--config.data.pairs=$pairs" "--config.data.feedback=$feedback" "--config.data.shards=$folder/$feedback/shards"
    "--config.data.rows=$folder/$feedback/rows")
  for stage in shards rows; do python -m "data_pipelines.$stage" "${flags[@]}" "${data[@]}"; done
  python -m rlhi_jax.train "${flags[@]}" "${data[@]}" "${model[@]}" "--config.objective=$objective" "$@" \
    "--workdir=$folder/$objective"
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

# Policies: a warm start on the chosen replies, then DPO on the counterfactual pairs; the same for each control; DPO
# without the warm start; and DPO online after it. Gate users judge them.
dpo=(--config.optimizer.learning_rate=3e-5 --config.train.epochs=2)
for variant in counterfactual pooled shuffled all_users few_users; do
  train "$variant" "$pairs" sft --config.optimizer.learning_rate=1e-4 --config.train.epochs=5
  train "$variant" "$pairs" dpo "--config.model.path=$workdir/$variant/sft" "${dpo[@]}"
done
variant=from_base
train "$variant" "$pairs" dpo "${dpo[@]}"
variant=counterfactual
python -m rlhi_jax.online --config=configs/evidence.py:online "${given[@]}" "${model[@]}" "${dpo[@]}" \
  "--config.model.path=$workdir/counterfactual/sft" "--config.data.conversations=$workdir/conversations" \
  "--config.data.follow_ups=$workdir/follow_ups" "--config.data.personas=$workdir/personas" \
  "--workdir=$workdir/online/dpo"
policies=(base sft dpo from_base pooled shuffled all_users few_users online)
for policy in "${policies[@]}"; do
  case $policy in
    base) judged=runs/smollm2 ;;
    sft | dpo) judged=$workdir/counterfactual/$policy ;;
    *) judged=$workdir/$policy/dpo ;;
  esac
  python -m data_pipelines.satisfaction "${flags[@]}" --config.satisfaction.split=validation \
    "--config.data.raw=$workdir/raw" "--config.data.personas=$workdir/personas" "--config.satisfaction.model=$judged" \
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
