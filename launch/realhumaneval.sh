#!/usr/bin/env bash
# The RealHumanEval results: programmer personas and an audit of them. Takes a few minutes on two cores.
# Run launch/wildchat.sh first: it trains the head that labels follow-ups.
#   GGUF=FILE RAW=chat.jsonl bash launch/realhumaneval.sh [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
: "${RAW:?set it to chat.jsonl}"

import_smollm2
flags=(--config=configs/realhumaneval.py "--config.data.raw=$RAW" "$@")
for stage in ingest follow_ups personas card; do
  python -m "data_pipelines.$stage" "${flags[@]}"
done
python tests/benchmarks/programmers.py "${flags[@]}"
