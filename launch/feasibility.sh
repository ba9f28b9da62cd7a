#!/usr/bin/env bash
# The README's feasibility results: can SmolLM2-135M learn to use a persona? Three arms, half an hour each on two cores.
#   GGUF=FILE bash launch/feasibility.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2 "$GGUF"
for arm in oracle inferred complaints; do
  python -m rlhi_jax.loop "--config=configs/feasibility.py:$arm" "--workdir=runs/feasibility/$arm"
done
python tests/benchmarks/loop_reports.py feasibility runs/feasibility/{oracle,inferred,complaints}
