#!/usr/bin/env bash
# The README's feasibility results: can SmolLM2-135M learn to use a persona? The three arms together take an hour and a
# quarter on two cores. The last two arms share conversations, labels, personas and the base model's replies.
#   GGUF=FILE bash launch/feasibility.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh
RUNS=runs/feasibility

import_smollm2
for arm in oracle inferred complaints; do
  if [ "$arm" = complaints ]; then
    mkdir -p "$RUNS/$arm/satisfaction"
    for part in raw conversations follow_ups personas satisfaction/before; do
      [ -d "$RUNS/$arm/$part" ] && continue
      rm -rf "$RUNS/$arm/.copy"
      cp -r "$RUNS/inferred/$part" "$RUNS/$arm/.copy"
      mv "$RUNS/$arm/.copy" "$RUNS/$arm/$part"
    done
  fi
  python -m rlhi_jax.loop "--config=configs/feasibility.py:$arm" "--workdir=$RUNS/$arm"
done
python tests/benchmarks/loop_reports.py feasibility "$RUNS"/{oracle,inferred,complaints}
python tests/benchmarks/admission.py "$RUNS/oracle"
