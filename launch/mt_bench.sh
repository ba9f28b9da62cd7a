#!/usr/bin/env bash
# The README's MT-Bench results: votes.jsonl → reward model and policy from SmolLM2-135M. Takes an hour on two cores.
#   GGUF=FILE VOTES=votes.jsonl bash launch/mt_bench.sh
set -euo pipefail
cd "$(dirname "$0")/.."
CONFIG=configs/mt_bench.py
. launch/steps.sh

import_smollm2
[ -d runs/mt_bench/pairs ] || python -m data_pipelines.sources.mt_bench "--votes=${VOTES:?set it to votes.jsonl}" --to=runs/mt_bench/pairs
shards_and_rows runs/mt_bench/pairs runs/mt_bench/validation
train_evaluate_export reward runs/mt_bench/reward
train_evaluate_export dpo runs/mt_bench/dpo
python tests/benchmarks/mt_bench.py
