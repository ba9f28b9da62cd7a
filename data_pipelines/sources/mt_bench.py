"""MT-Bench human votes → preference JSONL with a persona for every judge, split by question.

    python -m data_pipelines.sources.mt_bench --votes=votes.jsonl --to=DIR

Writes DIR/train.jsonl, DIR/heldout.jsonl and DIR/manifest.json. Ties carry no preference and are counted out. A judge's
persona says how often they preferred the longer reply, more lists and so on in their *other* training votes: for a
training vote those on other questions, for a held-out vote all of them, so no vote describes itself.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from rlhi_jax.errors import UserError, run
from rlhi_jax.files import digest, file_digest, new_folder, write_bytes, write_json

MIN_VOTES = 5  # a persona from fewer votes says nothing

TASTES: dict[str, Callable[[str], float]] = {
    'longer replies': len,
    'replies with more list items': lambda text: len(re.findall(r'^\s*(?:[-*•]|\d+[.)])\s', text, re.MULTILINE)),
    'replies with more paragraphs': lambda text: text.count('\n\n'),
    'replies with more figures': lambda text: len(re.findall(r'\d+', text)),
    'replies that speak to them directly': lambda text: len(re.findall(r'\byou', text, re.IGNORECASE)),
}


def held_out(question_id: int, *, folds: int, fold: int) -> bool:
    """Whether a question belongs to the held-out fold, by a hash of its id."""
    return int(digest(question_id)[:8], 16) % folds == fold


def read_votes(path: Path, counts: Counter) -> list[dict[str, Any]]:
    """Decided votes, with `chosen`, `rejected` (the judged turn's replies and what precedes them) and `prompt`."""
    votes = []
    for number, line in enumerate(path.read_bytes().split(b'\n'), start=1):
        if not line.strip():
            continue
        counts['votes_read'] += 1
        try:
            vote = json.loads(line)
            sides = {name: vote[f'conversation_{name[-1]}'] for name in ('model_a', 'model_b')}
            winner, judge, question = vote['winner'], vote['judge'], vote['question_id']
        except (ValueError, KeyError, TypeError):
            counts['dropped_not_a_vote'] += 1
            continue
        if winner not in sides:
            counts['dropped_tie'] += 1
            continue
        chosen = sides.pop(winner)
        (rejected,) = sides.values()
        if chosen[:1] != rejected[:1]:
            counts['dropped_different_questions'] += 1
            continue
        votes.append(dict(id=f'{path.stem}:{number}', judge=judge, question=question, prompt=chosen[:1],
                          chosen=chosen[1:], rejected=rejected[1:]))  # fmt: skip
    return votes


def leanings(vote: dict[str, Any]) -> dict[str, int]:
    """For each taste, +1 if the chosen reply has more of it, -1 if less, 0 if both are even."""
    chosen, rejected = vote['chosen'][-1]['content'], vote['rejected'][-1]['content']
    return {name: (measure(chosen) > measure(rejected)) - (measure(chosen) < measure(rejected))
            for name, measure in TASTES.items()}  # fmt: skip


def persona(votes: list[dict[str, Any]]) -> str:
    """A judge's leanings in words, from the given votes; '' from fewer than `MIN_VOTES`."""
    phrases = []
    for name in TASTES:
        signs = [vote['leanings'][name] for vote in votes if vote['leanings'][name]]
        if len(signs) >= MIN_VOTES:
            percent = round(100 * signs.count(1) / len(signs))
            phrases.append(f'{name} in {percent}% of cases')
    return f'I preferred {", ".join(phrases)}.' if phrases else ''


def preferences(votes: list[dict[str, Any]], *, folds: int, fold: int) -> tuple[list[dict], list[dict]]:
    """Training and held-out preferences, each with its judge's persona."""
    by_judge = defaultdict(list)
    for vote in votes:
        vote['leanings'] = leanings(vote)
        if not held_out(vote['question'], folds=folds, fold=fold):
            by_judge[vote['judge']].append(vote)
    train, heldout = [], []
    for vote in votes:
        others = [other for other in by_judge[vote['judge']] if other['question'] != vote['question']]
        record = {key: vote[key] for key in ('id', 'prompt', 'chosen', 'rejected')}
        record |= dict(user_id=vote['judge'], persona=persona(others))
        (heldout if held_out(vote['question'], folds=folds, fold=fold) else train).append(record)
    return train, heldout


def _define_flags() -> None:
    flags.DEFINE_string('votes', None, 'votes.jsonl: one human vote a line.')
    flags.DEFINE_string('to', None, 'Folder to write.')
    flags.DEFINE_integer('folds', 5, 'Questions are split into this many folds by a hash of their id.')
    flags.DEFINE_integer('fold', 0, 'The fold that is held out.')
    flags.DEFINE_bool('overwrite', False, 'Replace the folder to write if it exists.')


def main() -> None:
    for name in ('votes', 'to'):
        if not flags.FLAGS[name].value:
            raise UserError(f'--{name} is missing')
    path = Path(flags.FLAGS.votes)
    if not path.is_file():
        raise UserError(f'--votes={path} does not exist')
    counts: Counter = Counter()
    train, heldout = preferences(read_votes(path, counts), folds=flags.FLAGS.folds, fold=flags.FLAGS.fold)
    counts.update(train=len(train), heldout=len(heldout), with_persona=sum(bool(r['persona']) for r in train + heldout))
    with new_folder(Path(flags.FLAGS.to), overwrite=flags.FLAGS.overwrite) as folder:
        for name, records in (('train', train), ('heldout', heldout)):
            lines = (json.dumps(record, ensure_ascii=False) + '\n' for record in records)
            write_bytes(folder / f'{name}.jsonl', ''.join(lines).encode())
        made_from = dict(votes=file_digest(path), folds=flags.FLAGS.folds, fold=flags.FLAGS.fold)
        write_json(folder / 'manifest.json', dict(stage='sources.mt_bench', made_from=made_from, counts=counts))
    print(f'{flags.FLAGS.to}: {json.dumps(counts)}')


if __name__ == '__main__':
    _define_flags()
    run(main)
