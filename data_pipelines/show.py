"""Shows examples of labelled turns, of preference pairs, and of remarks that yielded no persona claim.

    python -m data_pipelines.show follow_ups --config=configs/NAME.py [--workdir=DIR] [--samples=N] [--label=LABEL]
    python -m data_pipelines.show pairs      --config=configs/NAME.py [--workdir=DIR] [--samples=N]
    python -m data_pipelines.show dropped    --config=configs/NAME.py [--workdir=DIR] [--samples=N]

- `follow_ups` prints the number of turns with each label, and examples. Each example shows the request, the reply and
  the turn that follows. It also shows the label's confidence, the words that support the label, and whether the turn is
  mined: whether rewrites and personas are made from it.
- `pairs` prints the number of preference pairs of each kind, and examples: the persona, the request, and the chosen and
  the rejected reply. With --workdir, these are the pairs of the training run that `config.objective` names.
- `dropped` prints the number of remarks (turns with feedback) that yielded no claim for a persona, grouped by reason,
  and examples. If the remark itself broke a rule, the teacher was not asked for claims. Otherwise, every sentence that
  the teacher wrote broke a rule. These sentences are shown only if `config.teacher.cache` still contains them, because
  nothing else stores them. Deleted users and claims are left out.

The examples are drawn by a hash of their ids, so they are the same each time. Long texts are cut. Users' texts are
printed, but not written to any file.
"""

from absl import flags

from data_pipelines.reports.statistics import texts_of_sides
from rlhi_jax.cli.program import define_config_flag, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string(
        'workdir', None, 'Workdir of a loop; needed only if the config does not set the folders of the stages.'
    )
    flags.DEFINE_integer('samples', 5, 'Number of examples of each label, kind or reason.', lower_bound=0)
    flags.DEFINE_string('label', '', 'follow_ups: show only this label.')
    COMMAND = start(commands=('follow_ups', 'pairs', 'dropped'))

import itertools
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_folder, read_records
from data_pipelines.core.record_files import stream_records
from data_pipelines.core.records import MINED_SPLITS, FollowUp, PreferenceRecord, RatedReply, Record
from data_pipelines.core.registry import stage_named
from data_pipelines.core.turns import BEST_WORST, OWN, REACTION, REWRITE, STRANGER
from data_pipelines.labelling.labels import LABELS
from data_pipelines.persona.dropped import REASONS, DroppedRemark, dropped_remarks
from data_pipelines.reports.excerpts import drawn, excerpt, readable
from rlhi_jax.config.loop_paths import stage_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.rounds.parts import State

KINDS = {
    REWRITE: 'a reply that the user complained about, and the same reply rewritten according to the feedback',
    BEST_WORST: 'the best and the worst of several sampled replies',
    REACTION: 'a reply that the user liked or disliked',
    OWN: "two answers to a user's request under two wishes, with the persona of that user",
    STRANGER: "the same two answers, with the persona of the other wish's author",
}
REPLY_LINES = 6  # maximum number of lines of a reply in a pair


def follow_ups(config: ConfigDict, samples: int, label: str = '') -> str:
    """Return a report on the labelled turns: for each label, or for one label, the number of turns and examples.

    Raises:
      UserError: the label is unknown.
    """
    if label and label not in LABELS:
        raise UserError(f'--label={label} is not a label: choose one of {", ".join(LABELS)}')

    def example(turn: FollowUp) -> list[str]:
        mined = 'mined' if turn['mined'] else 'not mined'
        return [
            f'  {readable(turn["id"])} (confidence {turn["confidence"]:.2f}, {mined})',
            excerpt('request', turn['request']),
            excerpt('reply', turn['reply']),
            excerpt('follow-up', turn['follow_up']),
            excerpt('quote', turn['quote']),
        ]

    return _groups(
        read_records(config, 'follow_ups'),
        lambda turn: turn['label'],
        {name: meaning for name, meaning in LABELS.items() if label in ('', name)},
        example,
        samples,
        'turn',
    )


def pairs(config: ConfigDict, samples: int) -> str:
    """Return a report on the preference pairs: for each kind of pair, the number of pairs and examples."""
    folder = input_folder(config, 'pairs')
    records = itertools.chain.from_iterable(stream_records(folder / f'{split}.jsonl') for split in MINED_SPLITS)

    def example(pair: PreferenceRecord | RatedReply) -> list[str]:
        return [
            f'  {readable(pair["id"])} ({pair["split"]})',
            excerpt('persona', pair['persona']),
            excerpt('request', pair['prompt'][-1]['content']),
            *(excerpt(side, text, max_lines=REPLY_LINES) for side, text in texts_of_sides(pair).items()),
        ]

    return _groups(records, lambda pair: pair['id'].rpartition(' ')[2], KINDS, example, samples, 'pair')


def dropped(config: ConfigDict, samples: int) -> str:
    """Return a report on the remarks that yielded no claim: for each reason, the number of remarks and examples.

    Raises:
      UserError: the persona store is out of date, so it does not show which remarks were dropped.
    """
    folder = input_folder(config, 'personas')
    if stage_named('personas').state(config) is not State.UP_TO_DATE:
        raise UserError(
            f'config.data.personas: {folder} was made with different input or settings, or by a different version of '
            "the stage: rerun the 'personas' stage"
        )

    def example(remark: DroppedRemark) -> list[str]:
        return [
            f'  {readable(remark["id"])} ({remark["said_at"] or "no time"})',
            excerpt('remark', remark['quote']),
            *(excerpt('sentence', f'{text} ({why or "allowed"})') for text, why in remark['sentences'].items()),
        ]

    return _groups(dropped_remarks(config), lambda remark: remark['reason'], REASONS, example, samples, 'remark')


def _groups(
    records: Iterable[Record],
    group: Callable[[Record], str],
    meanings: dict[str, str],
    example: Callable[[Record], list[str]],
    samples: int,
    unit: str,
) -> str:
    """Return a report with the number of records in each group, followed by examples from each group.

    Args:
      group: returns a record's group.
      meanings: the groups to show, in this order, with their meanings.
      example: returns the lines that show a record.
      samples: maximum number of examples of each group.
      unit: the name for one record, such as 'turn'.
    """
    counts, examples = drawn(records, group, samples)
    width, total = max(map(len, meanings)), f'{counts.total():,}'
    lines = [f'{name:{width}}  {counts[name]:>{len(total)},}  {meanings[name]}'.rstrip() for name in meanings]
    lines.append(f'{f"all {unit}s":{width}}  {total}')
    for name in filter(examples.get, meanings):
        lines += ['', f'{name}: {len(examples[name])} of {counts[name]:,} {unit}s']
        lines += itertools.chain.from_iterable(map(example, examples[name]))
    return '\n'.join(lines)


def main(command: str) -> None:
    config, samples, label = load_config(flags.FLAGS.config), flags.FLAGS.samples, flags.FLAGS.label
    if label and command != 'follow_ups':
        raise UserError(f'--label={label} applies only to `follow_ups`: remove the flag')
    if flags.FLAGS.workdir:
        stage = 'personas' if command == 'dropped' else command
        config = stage_config(config, workdir_path(flags.FLAGS.workdir), stage)
    if command == 'follow_ups':
        print(follow_ups(config, samples, label))
    else:
        print(dict(pairs=pairs, dropped=dropped)[command](config, samples))


if __name__ == '__main__':
    run(lambda: main(COMMAND))
