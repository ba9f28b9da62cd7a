#!/usr/bin/env bash
# The README's demo: simulated users → conversations → reward model and policy → evaluation → Hugging Face folders.
# Finished steps are not repeated, so the same command resumes an interrupted demo. `make demo` first installs all that
# the demo needs.
#   GGUF=FILE bash launch/demo.sh [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2
python -m rlhi_jax.loop --config=configs/demo.py --workdir=runs/demo "$@"
