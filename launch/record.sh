#!/usr/bin/env bash
# Asks a teacher all that the loop with a config needs, and writes its answers to the record at config.teacher.cache. Run
# it after a change to the conversations, the prompts or the settings of the teacher and the sampler. A record must
# contain answers from a single teacher. If this script is interrupted, the same command resumes it.
#   GGUF=FILE bash launch/record.sh ENDPOINT_URL CONFIG RECORD
# examples/README.md says which model gave the recorded answers, and how it was served.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/steps.sh

import_smollm2
workdir="runs/record/$(basename "$2" .py)"
flags=("--config=$2" "--workdir=$workdir" "--config.teacher.path=$1" "--config.teacher.cache=$workdir/answers.sqlite")
for stage in ingest follow_ups personas rewrites; do
  python -m "data_pipelines.$stage" "${flags[@]}" --config.teacher.concurrency=2
done
python - "$workdir/answers.sqlite" "$3" <<'END'
import json, sqlite3, sys

rows = sqlite3.connect(sys.argv[1]).execute('SELECT request, text, finished FROM answers ORDER BY request')
with open(sys.argv[2], 'w', encoding='utf-8') as file:
    for request, text, finished in rows:
        file.write(json.dumps(dict(request=request, text=text, finished=bool(finished)), ensure_ascii=False) + '\n')
END
