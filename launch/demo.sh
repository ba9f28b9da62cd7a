#!/usr/bin/env bash
# The README's demo: one request under two personas, then the loop: recorded conversations of simulated users →
# personas, rewrites, pairs → policy → evaluation → Hugging Face folder; then the request again. Finished steps are not
# repeated, so the same command resumes an interrupted demo. `make demo` first installs all that the demo needs.
#   GGUF=FILE bash launch/demo.sh [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

# two_personas MODEL: prints the model's most likely reply to one request under each of two personas.
two_personas() {
  python -m rlhi_jax.generate --config=configs/demo.py "--config.model.path=$1" --config.sampler.temperature=0 \
    --config.sampler.slots=2 --prompts=examples/simulated/two_personas.jsonl
}

import_smollm2
echo 'Before training: one request under two personas'
two_personas runs/smollm2
python -m rlhi_jax.loop --config=configs/demo.py --workdir=runs/demo "$@"
echo 'After training: the same request'
two_personas runs/demo/dpo/run
