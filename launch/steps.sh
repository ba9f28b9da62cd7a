# Functions for the other scripts in this folder, which source this file from the root of the checkout. Stages use the
# config $CONFIG.

stage() { python -m "data_pipelines.$1" "--config=$CONFIG:dpo" "${@:2}"; }

# shards_and_rows PAIRS VALIDATION_SHARDS: builds shards of the training and validation splits, and the row plan.
shards_and_rows() {
  stage shards "--config.data.pairs=$1/train.jsonl"
  stage shards "--config.data.pairs=$1/validation.jsonl" "--config.data.shards=$2" --config.data.split=validation
  stage rows
}

# train_evaluate_export OBJECTIVE RUN [FLAG...]: trains, evaluates and exports; the flags go to the first two.
train_evaluate_export() {
  local config="$CONFIG:$1" run="$2"
  python -m rlhi_jax.train "--config=$config" "--workdir=$run" "${@:3}"
  python -m rlhi_jax.evaluate "--config=$config" "--workdir=$run" "${@:3}"
  python -m rlhi_jax.convert export "--checkpoint=$run" "--to=$run/huggingface" --overwrite
}

# import_smollm2: imports the file $GGUF, unless it has already been imported.
import_smollm2() {
  [ -d runs/smollm2 ] || python -m rlhi_jax.convert import --to=runs/smollm2 \
    "--source=gguf:${GGUF:?set it to the GGUF file of SmolLM2-135M-Instruct (make demo downloads it)}"
}
