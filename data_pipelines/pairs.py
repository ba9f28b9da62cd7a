"""Rewrites and scored candidates → preference JSONL, probed for artefacts.

    python -m data_pipelines.pairs --config=configs/NAME.py

`config.pairs.sources` says which: 'rewrites' (chosen: the rewrite; rejected: the reply that the user complained about)
and 'candidates' (chosen: the best of N by score; rejected: the worst). Writes SPLIT.jsonl for every split: preferences
in messages, as TRL takes them, with keys beside that it passes over. A classifier that sees the replies alone, without
persona or request, must not tell chosen from rejected too well: what it finds, such as length, a policy would learn
instead of users' wishes.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.records import SPLITS
from data_pipelines.core.stage import (
    Record,
    Stage,
    Task,
    as_line,
    input_digest,
    input_folder,
    read_records,
)
from data_pipelines.core.turns import BEST_WORST, REWRITE, conversation_of, pair_id
from data_pipelines.preferences.artefacts import reply_only_auc
from data_pipelines.preferences.reading import some_of
from data_pipelines.text.openings import is_refusal
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_file, read_json

SOURCES = ('rewrites', 'candidates')
PROBED = 20000  # training pairs that the classifier of replies alone learns from and is tested on


def _preference(record: Record, chosen: str, rejected: str, kind: str) -> Record:
    return dict(
        id=pair_id(record['id'], kind),
        conversation=conversation_of(record['id']),
        split=record['split'],
        user_id=record['user_id'],
        persona=record['persona'],
        prompt=record['messages'],
        chosen=[dict(role='assistant', content=chosen)],
        rejected=[dict(role='assistant', content=rejected)],
    )


def from_rewrites(config: ConfigDict, counts: Counter) -> Iterator[Record]:
    """Rewrite over original."""
    for record in read_records(config, 'rewrites'):
        counts['rewrites_read'] += 1
        yield _preference(record, record['rewrite'], record['original'], REWRITE)


def from_candidates(config: ConfigDict, counts: Counter) -> Iterator[Record]:
    """Best over worst of N by score; among equals, a hash of the text decides.

    A reply that was cut off is never the best, and is the worst only where no finished one is worse than the best: else
    most pairs would say no more than that replies must end.
    """
    scored = _scores(config) if config.data.scores else None
    for record in read_records(config, 'candidates'):
        counts['candidates_read'] += 1
        told = record if scored is None else next(scored, {})
        if told.get('id') != record['id']:
            raise UserError(f'config.data.scores: no scores of {record["id"]!r} in its place: run that stage again')
        if 'scores' not in told:
            raise UserError('config.data.candidates holds no scores: set config.candidates.reward_model or data.scores')
        values = told['scores']
        ranked = sorted(
            (
                (value, digest(reply['text']), reply)
                for value, reply in zip(values, record['replies'], strict=True)
                if value is not None
            ),
            key=lambda entry: entry[:2],
        )
        finished = [entry for entry in ranked if entry[2]['finished']]
        if len(ranked) < 2:
            counts['dropped_fewer_than_two_scored'] += 1
            continue
        if not finished:
            counts['dropped_no_finished_reply'] += 1
            continue
        best = finished[-1]
        worse = [entry for entry in (*finished, *ranked) if best[0] - entry[0] > config.pairs.margin]
        if worse:
            yield _preference(record, best[2]['text'], worse[0][2]['text'], BEST_WORST)
        else:
            counts['dropped_within_margin'] += 1


def _scores(config: ConfigDict) -> Iterator[Record]:
    """The candidates' scores, one record each, in the same order.

    Raises:
      UserError: they are of other candidates.
    """
    folder, own = input_folder(config, 'scores'), input_digest(config, 'candidates')
    manifest = read_json(folder / 'manifest.json', 'run its stage again', fields=())
    if manifest.get('made_from', {}).get('candidates', own) != own:
        raise UserError(f'config.data.scores: {folder} was made from other candidates: run that stage again')
    return read_records(config, 'scores')


def mine(config: ConfigDict, counts: Counter) -> Iterator[Record]:
    """The preferences of all sources, less those that would teach something else than a user's wish."""
    readers = dict(rewrites=from_rewrites, candidates=from_candidates)
    for source in _sources(config):
        for record in readers[source](config, counts):
            chosen, rejected = (record[side][0]['content'] for side in ('chosen', 'rejected'))
            if chosen == rejected:
                counts['dropped_chosen_equals_rejected'] += 1
            elif is_refusal(chosen):
                counts['dropped_chosen_is_a_refusal'] += 1
            elif is_refusal(rejected):
                counts['dropped_rejected_is_a_refusal'] += 1
            else:
                counts[f'kept_{source}_{record["split"]}'] += 1
                counts['with_persona'] += bool(record['persona'])
                yield record


def _sources(config: ConfigDict) -> list[str]:
    sources = config.pairs.sources.split(',')
    for source in sources:
        if source not in SOURCES or sources.count(source) > 1:
            raise UserError(f'config.pairs.sources names {source!r}: choose from {", ".join(SOURCES)}, each once')
    return sources


def _identity(config: ConfigDict) -> dict[str, Any]:
    inputs = {source: input_digest(config, source) for source in _sources(config)}
    if config.data.scores and 'candidates' in inputs:
        inputs['scores'] = input_digest(config, 'scores')
    settings = config.pairs.to_dict()
    for name in ('accept_artefacts', 'min_pairs'):  # they stop the run, and change nothing else
        del settings[name]
    return dict(inputs=inputs, settings=settings, seed=config.seed)


def _work(task: Task) -> dict[str, int]:
    config, counts = task.config, Counter()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(new_file(task.folder / f'{split}.jsonl')) for split in SPLITS}
        for record in mine(config, counts):
            files[record['split']].write(as_line(record))
    probed = some_of(task.folder / 'train.jsonl', PROBED)
    auc = reply_only_auc(
        [(record['chosen'][0]['content'], record['rejected'][0]['content']) for record in probed],
        [record['user_id'] or record['conversation'] for record in probed],
        seed=config.seed,
    )
    print(f'reply-only classifier: AUC {json.dumps(auc)} on {len(probed)} training pairs', flush=True)
    accepted = auc is not None and auc > config.pairs.max_artefact_auc
    return task.write_manifest(counts, probe=dict(artefact_auc=auc, pairs=len(probed), accepted=accepted))


def _check(config: ConfigDict, manifest: dict[str, Any]) -> None:
    """Refuse pairs that are too few, or whose replies alone tell too much."""
    counts, auc, p = manifest['counts'], manifest['probe']['artefact_auc'], config.pairs
    number = sum(n for name, n in counts.items() if name.startswith('kept_') and name.endswith('_train'))
    if number < p.min_pairs:
        raise UserError(
            f'{number} pairs were found for training, fewer than config.pairs.min_pairs ({p.min_pairs}): bring more '
            f'conversations, or lower it; counts here are {json.dumps(counts)}, and the stages before have theirs in '
            'manifest.json'
        )
    if auc is not None and auc > p.max_artefact_auc and not p.accept_artefacts:
        raise UserError(
            f'replies alone tell chosen from rejected with an AUC of {auc:.2f}, above config.pairs.max_artefact_auc '
            f'({p.max_artefact_auc}): look for what differs (length, style, author), or pass '
            '--config.pairs.accept_artefacts=True'
        )


STAGE = Stage('pairs', 1, _work, 'data.pairs', _identity, _check)

if __name__ == '__main__':
    STAGE.main()
