#!/usr/bin/env bash
# The README's demo: made-up preferences of opposite users → reward model and policy → evaluation → Hugging Face folders.
# Every step resumes or is skipped if it is done. GGUF names SmolLM2-135M-Instruct's file.
set -euo pipefail
cd "$(dirname "$0")/.."
CONFIG=configs/demo.py
. launch/steps.sh

import_smollm2 "$GGUF"
[ -d runs/demo/pairs ] || python -m data_pipelines.sources.opposites --to=runs/demo/pairs
shards_and_rows runs/demo/pairs runs/demo/heldout
train_evaluate_export reward runs/demo/reward
train_evaluate_export dpo runs/demo/dpo
echo "Smoke, not evidence: made-up preferences, a few steps. Models: runs/demo/{reward,dpo}/huggingface"
