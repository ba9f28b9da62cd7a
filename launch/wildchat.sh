#!/usr/bin/env bash
# The README's WildChat results: raw conversations through the whole loop with SmolLM2-135M, twenty minutes on two cores.
#   GGUF=FILE RAW=conversations.jsonl bash launch/wildchat.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
: "${RAW:?set it to the raw conversations}"

import_smollm2
python -m rlhi_jax.loop --config=configs/wildchat.py --workdir=runs/wildchat "--config.data.raw=$RAW"
python tests/benchmarks/loop_reports.py wildchat runs/wildchat
