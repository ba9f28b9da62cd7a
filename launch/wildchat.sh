#!/usr/bin/env bash
# The WildChat results: the whole loop on raw conversations with SmolLM2-135M. Takes 1.5 hours on two cores.
#   GGUF=FILE RAW=conversations.jsonl bash launch/wildchat.sh [FLAG...]
# Flags are passed to every program. For a teacher behind an endpoint, pass
#   --config.teacher.path=http://HOST/v1 --config.teacher.model=NAME
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
: "${RAW:?set it to the raw conversations}"

import_smollm2
flags=(--config=configs/wildchat.py "--config.data.raw=$RAW" "$@")
conversations=--config.data.conversations=runs/wildchat/conversations
python -m data_pipelines.ingest "${flags[@]}" "$conversations"
[ -d runs/wildchat_head ] || python -m data_pipelines.head_labels "${flags[@]}" "$conversations" \
  --labels=tests/labels/follow_ups_train.jsonl --to=runs/wildchat_head
python -m rlhi_jax.loop "${flags[@]}" --workdir=runs/wildchat
python tests/benchmarks/loop_reports.py wildchat runs/wildchat
