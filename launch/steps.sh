# Sourced by the scripts beside it, from the top of the checkout: what they have in common. Stages read $CONFIG.

stage() { python -m "data_pipelines.$1" "--config=$CONFIG:dpo" "${@:2}"; }

# shards_and_rows PAIRS HELDOUT_SHARDS: training and held-out preferences to shards, and the row plan.
shards_and_rows() {
  stage shards "--config.data.pairs=$1/train.jsonl"
  stage shards "--config.data.pairs=$1/heldout.jsonl" "--config.data.shards=$2"
  stage rows
}

# train_evaluate_export OBJECTIVE RUN [FLAG...]
train_evaluate_export() {
  local config="$CONFIG:$1" run="$2"
  python -m rlhi_jax.train "--config=$config" "--workdir=$run" "${@:3}"
  python -m rlhi_jax.evaluate "--config=$config" "--workdir=$run" "${@:3}"
  python -m rlhi_jax.convert export "--checkpoint=$run" "--to=$run/huggingface" --overwrite
}

# import_smollm2: the file that $GGUF names, once.
import_smollm2() {
  [ -d runs/smollm2 ] || python -m rlhi_jax.convert import --to=runs/smollm2 \
    "--source=gguf:${GGUF:?set it to the GGUF file of SmolLM2-135M-Instruct; make demo downloads one}"
}
