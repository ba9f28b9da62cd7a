"""Memory and speed of the stages after ingest, on generated dumps of two sizes: does memory grow with the dump?

python tests/benchmarks/stages.py

Ingests the dump of `ingest.py`, then runs follow_ups with a head, personas quoted from users' words, rewrites with a
tiny model of random weights, and the data card, each as a user runs it. The head's labels and the model are random: the
benchmark measures how a stage handles conversations. Writes `results/stages.json`.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

from absl import app, flags
from ingest import RUNS, counts_of, raw_files, start_ingest
from watched import measured, program

from data_pipelines.core.record_files import stream_records
from data_pipelines.labelling.by_head import Head
from data_pipelines.labelling.labels import LABELS, turns_after_replies
from rlhi_jax.io.files import write_json

sys.path.append(str(Path(__file__).parents[1]))
import tiny  # noqa: E402

RESULTS = Path(__file__).parent / 'results' / 'stages.json'
STAGES = ('follow_ups', 'personas', 'rewrites', 'card')
LABELLED = 500


def write_head(records: Path, folder: Path) -> None:
    """A head trained on the first turns, labelled in turn."""
    conversations = itertools.islice(stream_records(records), LABELLED)
    turns = [turn for record in conversations for _, turn in turns_after_replies(record)]
    labels = [list(LABELS)[number % len(LABELS)] for number in range(len(turns))]
    folder.mkdir(parents=True, exist_ok=True)
    Head.fit(turns, labels).save(folder)


def measure(count: int) -> dict:
    files, work = raw_files(count), RUNS / f'stages_{count}'
    shutil.rmtree(work, ignore_errors=True)
    measured(start_ingest(files, work / 'conversations'))
    counts = counts_of(work / 'conversations')
    result = dict(conversations=counts['kept_train'] + counts['kept_validation'], user_turns=counts['user_turns'])
    write_head(work / 'conversations' / 'records.jsonl', work / 'head')
    model = tiny.write_model(work / 'model')
    arguments = ['--config=configs/wildchat.py', '--overwrite', f'--config.model.path={model}']
    arguments += [f'--config.data.{name}={work / name}' for name in ('conversations', *STAGES)]
    arguments += ['--config.follow_ups.labeller=head', f'--config.follow_ups.head={work / "head"}']
    arguments += ['--config.follow_ups.min_confidence=0', '--config.personas.writer=quotes']
    arguments += ['--config.personas.scope=earlier_conversations', '--config.rewrites.max_turns=64']
    # No request fits the model, so it is asked for nothing at either size, and memory is that of reading records.
    arguments += ['--config.sampler.prompt_tokens=16', '--config.sampler.new_tokens=16']
    arguments += ['--config.rewrites.regenerate=False', '--config.rewrites.samples=1']
    for name in STAGES:
        seconds, peak = measured(program(f'data_pipelines.{name}', *arguments))
        result[name] = dict(
            seconds=seconds,
            conversations_a_second=result['conversations'] / seconds,
            peak_gib=peak,
            counts=counts_of(work / name),
        )
    return result


def main(_):
    sizes = [int(size) for size in flags.FLAGS.stage_sizes.split(',')]
    results = {str(size): measure(size) for size in sizes}
    first, last = (results[str(size)] for size in (sizes[0], sizes[-1]))
    growth = {name: last[name]['peak_gib'] / first[name]['peak_gib'] - 1 for name in STAGES}
    write_json(RESULTS, results | dict(growth=growth))
    print(json.dumps(growth, indent=1))


if __name__ == '__main__':
    flags.DEFINE_string('stage_sizes', '50000,500000', 'Conversations, smallest first.')
    app.run(main)
