#!/usr/bin/env bash
# The WildChat results: raw conversations through the whole loop with SmolLM2-135M, an hour and a half on two cores.
#   GGUF=FILE RAW=conversations.jsonl bash launch/wildchat.sh [FLAG...]
# Flags go to every program: --config.teacher.path=http://HOST/v1 --config.teacher.model=NAME asks a teacher elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
: "${RAW:?set it to the raw conversations}"

import_smollm2
flags=(--config=configs/wildchat.py "--config.data.raw=$RAW" "$@")
talks=--config.data.conversations=runs/wildchat/conversations
python -m data_pipelines.ingest "${flags[@]}" "$talks"
[ -d runs/wildchat_head ] || python -m data_pipelines.head_labels "${flags[@]}" "$talks" \
  --labels=tests/labels/follow_ups_train.jsonl --to=runs/wildchat_head
python -m rlhi_jax.loop "${flags[@]}" --workdir=runs/wildchat
python tests/benchmarks/loop_reports.py wildchat runs/wildchat
