#!/usr/bin/env bash
# The RealHumanEval results: personas of programmers, and what an audit finds in them, minutes on two cores.
#   GGUF=FILE RAW=chat.jsonl bash launch/realhumaneval.sh [FLAG...]      after launch/wildchat.sh, which trains the head
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
