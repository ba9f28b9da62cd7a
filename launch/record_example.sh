#!/usr/bin/env bash
# Asks a teacher all that the example needs, and writes its answers to examples/answers.jsonl. Run it after a change to
# the conversations, the labels, the prompts or the config. The file must contain answers from a single teacher.
#   GGUF=FILE bash launch/record_example.sh ENDPOINT_URL
# examples/README.md says which model gave the recorded answers, and how it was served.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2
example_head
folders=runs/example_record
flags=(--config=examples/config.py --config.data.conversations=runs/example_conversations "--config.teacher.path=$1"
  "--config.teacher.cache=$folders/answers.sqlite" --config.teacher.concurrency=2)
for stage in follow_ups personas rewrites; do
  flags+=("--config.data.$stage=$folders/$stage")
  python -m "data_pipelines.$stage" "${flags[@]}" --overwrite
done
python - "$folders/answers.sqlite" examples/answers.jsonl <<'END'
import json, sqlite3, sys

rows = sqlite3.connect(sys.argv[1]).execute('SELECT request, text, finished FROM answers ORDER BY request')
with open(sys.argv[2], 'w', encoding='utf-8') as file:
    for request, text, finished in rows:
        file.write(json.dumps(dict(request=request, text=text, finished=bool(finished)), ensure_ascii=False) + '\n')
END
