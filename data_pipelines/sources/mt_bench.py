"""Convert human votes on MT-Bench into preference JSONL, split by question, with a persona for every judge.

    python -m data_pipelines.sources.mt_bench --votes=votes.jsonl --to=DIR

Writes DIR/train.jsonl, DIR/validation.jsonl and DIR/manifest.json. Ties are dropped and counted. A judge's persona says
how often that judge preferred the longer reply, the reply with more list items, and so on. The persona is based on the
judge's training votes on other questions, so no vote contributes to the persona in its own record.
"""

from data_pipelines.sources.rated import define_flags, held_out, named_file, write_preferences
from rlhi_jax.cli.program import require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags('votes')
    start()

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from absl import flags

from data_pipelines.core.records import Record

MIN_VOTES = 5  # fewer votes do not show a taste

TASTES: dict[str, Callable[[str], float]] = {
    'longer replies': len,
    'replies with more list items': lambda text: len(re.findall(r'^[^\S\n]*(?:[-*•]|\d+[.)])\s', text, re.MULTILINE)),
    'replies with more paragraphs': lambda text: text.count('\n\n'),
    'replies with more figures': lambda text: len(re.findall(r'\d+', text)),
    'replies that speak to them directly': lambda text: len(re.findall(r'\byou', text, re.IGNORECASE)),
}


def read_votes(path: Path, counts: Counter) -> list[Record]:
    """Return the usable votes. Ties and unusable lines are skipped and counted by reason.

    In each vote, `chosen` and `rejected` contain the messages after `prompt`. The last message of each is the judged
    reply.
    """
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


def leanings(vote: Record) -> dict[str, int]:
    """Return, for each taste, 1 if the chosen reply satisfies it better, -1 if the rejected one does, otherwise 0."""
    chosen, rejected = vote['chosen'][-1]['content'], vote['rejected'][-1]['content']
    return {name: (measure(chosen) > measure(rejected)) - (measure(chosen) < measure(rejected))
            for name, measure in TASTES.items()}  # fmt: skip


def persona(votes: list[Record]) -> str:
    """Return a judge's persona, based on the given votes.

    The persona mentions a taste only if, in at least `MIN_VOTES` of the votes, one reply satisfies it better than the
    other.
    """
    phrases = []
    for name in TASTES:
        signs = [vote['leanings'][name] for vote in votes if vote['leanings'][name]]
        if len(signs) >= MIN_VOTES:
            percent = round(100 * signs.count(1) / len(signs))
            phrases.append(f'{name} in {percent}% of cases')
    return f'I preferred {", ".join(phrases)}.' if phrases else ''


def preferences(votes: list[Record], *, folds: int, fold: int) -> tuple[list[Record], list[Record]]:
    """Return the training and held-out preferences, each with its judge's persona."""
    by_judge = defaultdict(list)
    for vote in votes:
        vote['leanings'] = leanings(vote)
        if not held_out(vote['question'], folds=folds, fold=fold):
            by_judge[vote['judge']].append(vote)
    train, validation = [], []
    for vote in votes:
        others = [other for other in by_judge[vote['judge']] if other['question'] != vote['question']]
        record = {key: vote[key] for key in ('id', 'prompt', 'chosen', 'rejected')}
        record |= dict(user_id=vote['judge'], persona=persona(others))
        (validation if held_out(vote['question'], folds=folds, fold=fold) else train).append(record)
    return train, validation


def main() -> None:
    require_flags('votes', 'to')
    path, counts = named_file('votes'), Counter()
    train, validation = preferences(read_votes(path, counts), folds=flags.FLAGS.folds, fold=flags.FLAGS.fold)
    write_preferences('sources.mt_bench', [path], counts, train, validation)


if __name__ == '__main__':
    run(main)
