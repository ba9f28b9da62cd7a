#!/usr/bin/env bash
# The example: conversations → personas, rewrites, pairs → reward model and policy → evaluation → Hugging Face folders.
# Finished steps are not repeated. `make example` first installs all that the example needs.
#   GGUF=FILE bash launch/example.sh [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2
python -m rlhi_jax.loop --config=examples/config.py --workdir=runs/example "$@"
