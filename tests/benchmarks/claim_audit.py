"""How strict should the audit of claims be? Precision and recall of every level of `config.personas.audit`.

    python tests/benchmarks/claim_audit.py --material=example --config=examples/config.py FLAGS
    python tests/benchmarks/claim_audit.py --material=wildchat --config=configs/wildchat.py FLAGS
    python tests/benchmarks/claim_audit.py --material=quotes --config=configs/wildchat.py FLAGS
    python tests/benchmarks/claim_audit.py --material=lasting --config=configs/wildchat.py FLAGS

FLAGS contain `--config.data.conversations`, a folder that `data_pipelines.ingest` made with the same config. For
`wildchat`, they also contain `--config.personas.samples=1`, the teacher's path and model, and `--config.teacher.cache`,
an SQLite file; the teacher is asked for sentences that the cache lacks. For `quotes`, they also contain
`--config.personas.writer=quotes`. The texts of WildChat and the claims made from them are not in the repository, only
labels by id and digest. The labels of `wildchat` therefore fit only one teacher, Qwen2.5-Coder-1.5B-Instruct on
llama.cpp, and in practice only its cache.

- `example`: the turns of the example that are feedback, each with up to two sentences by a teacher (recorded).
- `wildchat`: the 200 turns of `tests/labels/follow_ups_blind.jsonl` and `follow_ups_threshold.jsonl` that a head mined,
  each with one sentence by a teacher.
- `quotes`: turns that are feedback by `tests/labels/follow_ups_train.jsonl`, one per conversation, none from a
  conversation in `wildchat`. The remark itself is the claim. Turns that were read with the verdicts of the `strict`
  rules, before the levels were chosen, are left out.
- `lasting`: 200 other feedback turns of WildChat, for testing. Two blind readers judged for each remark whether it
  states or clearly implies a wish about how this person wants to be answered that would also hold for their next,
  unrelated request. They saw no claims. The level `lasting` was developed on the materials above and then measured
  here. Because of the result, its word lists were extended once, from feedback in other conversations, and it was
  measured again: the figures are of this second measurement. A claim counts as right if both readers say so of its
  remark (`both`), or at least one (`either`). Whether a teacher's claim follows from its remark is not judged. With
  `--config.personas.writer=quotes`, the remark is the claim, and the results are stored as `lasting_quotes`;
  otherwise, as `lasting_teacher`.

For the first three materials, one reader judged every pair of a remark and a claim before seeing what any level does
with it. A claim is right if it follows from the remark, with nothing added, and says something lasting about how this
person likes to be answered. A wish about the reply's own length, form, tone, language or depth counts as lasting. An
edit of a pasted text, a change to the present task or an error report does not.

Precision is the share of kept claims that are right. Recall is the share of right claims that are kept. Intervals are
95 % by Wilson's formula, which treats pairs as independent. To label other claims, pass `--to_read=FILE` and
`--turns=IDS.jsonl`: the script writes the pairs of these turns to FILE, shuffled, and stops.

Adds the material's results to `results/claim_audit.json`.
"""

import hashlib
import math
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import ConfigDict

from data_pipelines.core.inputs import read_records
from data_pipelines.core.record_files import stream_records, write_records
from data_pipelines.core.stage import Task
from data_pipelines.core.turns import conversation_of, turn_id, user_turn_indices
from data_pipelines.persona.audit import LEVELS, fault
from data_pipelines.persona.claims import quote_of
from data_pipelines.persona.remarks import sentences_about
from rlhi_jax.cli.program import define_config_flag, load_config, run
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json, write_json

LABELS = Path(__file__).parents[1] / 'labels'
RESULTS = Path(__file__).parent / 'results' / 'claim_audit.json'
Z = 1.96  # standard deviations on each side of a 95 % interval


class Pair(NamedTuple):
    """A remark, the text of its conversation before it, and a claim made from it."""

    id: str  # turn id of the remark
    quote: str
    before: str
    claim: str

    @property
    def key(self) -> tuple[str, str]:
        """The turn id and a digest of the claim, which identify the pair in a file of labels."""
        return self.id, hashlib.sha256(self.claim.encode()).hexdigest()[:16]


def pairs_of(config: ConfigDict, turns: Path, *, empty: bool = False) -> list[Pair]:
    """The remark of every turn that is listed in a file, with each different sentence about it.

    Args:
      empty: whether a remark without a sentence gets a pair with an empty claim.
    """
    wanted = {record['id'] for record in stream_records(turns)}
    remarks = {
        turn: (quote_of(messages[index]['content']), '\n'.join(message['content'] for message in messages[:index]))
        for conversation in read_records(config, 'conversations')
        for messages in [conversation['messages']]
        for index in user_turn_indices(messages, first=2)
        if (turn := turn_id(conversation['id'], index)) in wanted
    }
    if missing := len(wanted - remarks.keys()):
        raise UserError(f'--config.data.conversations: {missing} labelled turns are missing: ingest all raw records')
    with tempfile.TemporaryDirectory() as folder:
        task = Task(config, Path(folder) / 'claims', {}, 'claim_audit')
        sentences = sentences_about(task, [quote for quote, _ in remarks.values()])
        task.close()
    return [
        Pair(turn, quote, before, claim)
        for turn, (quote, before) in remarks.items()
        for claim in (sorted(set(sentences[quote]) - {''}) or [''] * empty)
    ]


def wilson(hits: int, total: int) -> dict[str, Any]:
    """A share with its 95 % interval.

    >>> {name: round(value, 2) for name, value in wilson(2, 50).items()}
    {'value': 0.04, 'low': 0.01, 'high': 0.13}
    """
    if not total:
        return dict(value=None, low=0.0, high=1.0)
    share, spread = hits / total, Z**2 / total
    middle, half = share + spread / 2, Z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return dict(value=share, low=max(0.0, low), high=min(1.0, high))


def measured(pairs: Sequence[Pair], right: Sequence[bool]) -> dict[str, Any]:
    """How many claims every level keeps, its precision and recall, and why it drops right and wrong claims."""
    levels = {}
    for level in LEVELS:
        faults = [fault(pair.claim, pair.quote, pair.before, level) for pair in pairs]
        kept = [is_right for is_right, reason in zip(right, faults, strict=True) if not reason]
        dropped = {
            name: Counter(reason for reason, is_right in zip(faults, right, strict=True) if reason and is_right == side)
            for name, side in (('right', True), ('wrong', False))
        }
        levels[level] = dict(
            kept=len(kept),
            kept_and_right=sum(kept),
            precision=wilson(sum(kept), len(kept)),
            recall=wilson(sum(kept), sum(right)),
            dropped=dropped,
        )
    remarks = {pair.id for pair in pairs}
    return dict(
        conversations=len(set(map(conversation_of, remarks))),
        remarks=len(remarks),
        pairs=len(pairs),
        right=sum(right),
        levels=levels,
    )


def kappa(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Cohen's kappa: the agreement of two readers beyond chance.

    >>> kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    agreement = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    yes_a, yes_b = sum(a) / len(a), sum(b) / len(b)
    chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return (agreement - chance) / (1 - chance)


def lasting(config: ConfigDict) -> dict[str, Any]:
    """The agreement of the two readers, and the results of every level by the labels of both or either of them."""
    a, b = (
        {record['id']: record['lasting'] for record in stream_records(LABELS / f'lasting_{reader}.jsonl')}
        for reader in 'ab'
    )
    pairs = pairs_of(config, LABELS / 'lasting_a.jsonl', empty=True)
    return dict(
        kappa=kappa(list(a.values()), [b[turn] for turn in a]),
        lasting=dict(a=sum(a.values()), b=sum(b.values())),
        both=measured(pairs, [a[pair.id] and b[pair.id] for pair in pairs]),
        either=measured(pairs, [a[pair.id] or b[pair.id] for pair in pairs]),
    )


def table(results: dict[str, Any]) -> str:
    """The results of a material as a table in Markdown."""
    lines = ['| level | kept | precision | recall |', '|---|---|---|---|']
    for level, result in results['levels'].items():
        shares = ('{value:.2f} [{low:.2f}, {high:.2f}]'.format(**result[name]) for name in ('precision', 'recall'))
        lines.append(f'| `{level}` | {result["kept"]} | {" | ".join(shares)} |')
    return '\n'.join(lines)


def main(_):
    config, material, to_read = load_config(flags.FLAGS.config), flags.FLAGS.material, flags.FLAGS.to_read
    if material == 'lasting':
        results = lasting(config)
        _add(f'lasting_{config.personas.writer}', results)
        print(f'kappa {results["kappa"]:.2f}', *(table(results[name]) for name in ('both', 'either')), sep='\n\n')
        return
    labels = LABELS / f'claims_{material}.jsonl'
    pairs = pairs_of(config, Path(flags.FLAGS.turns or labels))
    if to_read:
        random.Random(0).shuffle(pairs)
        lines = (dict(id=pair.id, claim=pair.key[1], remark=pair.quote, text=pair.claim) for pair in pairs)
        write_records(Path(to_read), lines)
        return
    right = {(record['id'], record['claim']): record['right'] for record in stream_records(labels)}
    if differing := right.keys() ^ {pair.key for pair in pairs}:
        raise UserError(
            f"{labels}: its claims differ from the teacher's in {len(differing)} cases: use the teacher and the cache "
            'that the labels were made with, or label its claims with --to_read'
        )
    results = measured(pairs, [right[pair.key] for pair in pairs])
    _add(material, results)
    print(table(results))


def _add(name: str, results: dict[str, Any]) -> None:
    others = read_json(RESULTS, '') if RESULTS.exists() else {}
    write_json(RESULTS, others | {name: results})


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_enum(
        'material', None, ['example', 'wildchat', 'quotes', 'lasting'], 'Source of the pairs.', required=True
    )
    flags.DEFINE_string('turns', '', 'File of JSON lines with the ids of turns, if there are no labels yet.')
    flags.DEFINE_string('to_read', '', 'File to write the pairs to, for a reader; nothing is measured then.')
    run(lambda: app.run(main))
