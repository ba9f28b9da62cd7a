"""Rewrites and scored candidates → preference pairs as JSON lines, probed for artefacts.

    python -m data_pipelines.pairs --config=configs/NAME.py

`config.pairs.sources` names the stages that pairs come from (see `SOURCES`). Writes train.jsonl and validation.jsonl,
whose prompt, chosen and rejected TRL reads as they are. A classifier that sees only the replies, without persona or
request, must not tell chosen from rejected too well: a policy would learn features such as length instead of what users
wish.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_digest, input_folder, read_records
from data_pipelines.core.record_files import as_line
from data_pipelines.core.records import MINED_SPLITS, Candidate, CandidateScores, Message, PreferenceRecord, Rewrite
from data_pipelines.core.stage import KEPT, Stage, Step, Task
from data_pipelines.core.turns import BEST_WORST, REWRITE, conversation_of, pair_id
from data_pipelines.preferences.artefacts import reply_only_auc
from data_pipelines.preferences.reading import first_by_hash
from data_pipelines.reports.statistics import of_pairs
from data_pipelines.text.openings import is_refusal
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, new_file, read_json

PROBED = 20000  # most training pairs for the classifier that sees only replies


def from_rewrites(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """The rewrite is preferred to the reply that the user complained about."""
    for record in read_records(config, 'rewrites'):
        counts['rewrites_read'] += 1
        yield _preference(record, record['rewrite'], record['original'], REWRITE)


def from_candidates(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """The best of N replies by score is preferred to the worst."""
    scored = _scores(config) if config.data.scores else None
    for record in read_records(config, 'candidates'):
        counts['candidates_read'] += 1
        record = record if scored is None else record | dict(scores=_scores_of(record, scored))
        if 'scores' not in record:
            raise UserError(
                'config.data.candidates: its replies have no scores: set config.candidates.reward_model and run the '
                'stage again, or set config.data.scores'
            )
        if sides := best_and_worst(record, config.pairs.min_score_gap, counts):
            yield _preference(record, *sides, BEST_WORST)


# Sources of pairs by their name in `config.pairs.sources`, which is also that of the folder in `config.data`. A source
# counts the records that it reads as NAME_read.
SOURCES: dict[str, Callable[[ConfigDict, Counter], Iterator[PreferenceRecord]]] = dict(
    rewrites=from_rewrites, candidates=from_candidates
)


def best_and_worst(record: Candidate, min_score_gap: float, counts: Counter) -> tuple[str, str] | None:
    """The best and the worst reply by score; None if they make no pair, which is counted by its reason.

    Among equal scores a hash of the text decides. A reply that was cut off is never the best. It is the worst only if
    no finished reply is worse than the best by more than the gap: otherwise most pairs would teach only that replies
    must end.
    """
    scored = zip(record['scores'], record['replies'], strict=True)
    ranked = sorted(
        ((score, digest(reply['text']), reply) for score, reply in scored if score is not None),
        key=lambda entry: entry[:2],
    )
    finished = [entry for entry in ranked if entry[2]['finished']]
    if len(ranked) < 2:
        counts['dropped_fewer_than_two_scored'] += 1
        return None
    if not finished:
        counts['dropped_no_finished_reply'] += 1
        return None
    best_score, _, best = finished[-1]
    worse = [reply for score, _, reply in (*finished, *ranked) if best_score - score > min_score_gap]
    if not worse:
        counts['dropped_within_margin'] += 1
        return None
    return best['text'], worse[0]['text']


def _scores(config: ConfigDict) -> Iterator[CandidateScores]:
    """The records of `config.data.scores`.

    Raises:
      UserError: they are scores of other candidates.
    """
    folder, candidates = input_folder(config, 'scores'), input_digest(config, 'candidates')
    manifest = read_json(folder / 'manifest.json', 'run its stage again', fields=())
    if manifest.get('made_from', {}).get('candidates', candidates) != candidates:
        raise UserError(f'config.data.scores: {folder} was made from other candidates: run its stage again')
    return read_records(config, 'scores')


def _scores_of(record: Candidate, scored: Iterator[CandidateScores]) -> list[float | None]:
    """The next record's scores, which must be those of this candidate."""
    scores = next(scored, None)
    if scores is None or scores['id'] != record['id']:
        raise UserError(
            f'config.data.scores: no scores of {record["id"]!r} in the order of config.data.candidates: run its stage '
            'again'
        )
    return scores['scores']


def _preference(record: Rewrite | Candidate, chosen: str, rejected: str, kind: str) -> PreferenceRecord:
    return PreferenceRecord(
        id=pair_id(record['id'], kind),
        conversation=conversation_of(record['id']),
        split=record['split'],
        user_id=record['user_id'],
        persona=record['persona'],
        prompt=record['messages'],
        chosen=[Message(role='assistant', content=chosen)],
        rejected=[Message(role='assistant', content=rejected)],
    )


def mine(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """The pairs of all sources, without those that would teach something other than a user's wish."""
    for source in _sources(config):
        for record in SOURCES[source](config, counts):
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
    for name in ('accept_artefacts', 'min_pairs'):  # they may stop the run, but do not change the output
        del settings[name]
    return dict(inputs=inputs, settings=settings, seed=config.seed)


def _work(task: Task) -> dict[str, int]:
    config, counts = task.config, Counter()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(new_file(task.folder / f'{split}.jsonl')) for split in MINED_SPLITS}
        for record in mine(config, counts):
            files[record['split']].write(as_line(record))
    probed = first_by_hash(task.folder / 'train.jsonl', PROBED)
    auc = reply_only_auc(
        [(record['chosen'][0]['content'], record['rejected'][0]['content']) for record in probed],
        [record['user_id'] or record['conversation'] for record in probed],
        seed=config.seed,
    )
    print(f'reply-only classifier: AUC {json.dumps(auc)} on {len(probed)} training pairs', flush=True)
    accepted = auc is not None and auc > config.pairs.max_artefact_auc
    return task.write_manifest(counts, probe=dict(artefact_auc=auc, pairs=len(probed), accepted=accepted))


def _check(config: ConfigDict, manifest: dict[str, Any]) -> None:
    """Refuse pairs if they are too few, or if the replies alone tell chosen from rejected too well."""
    counts, auc, settings = manifest['counts'], manifest['probe']['artefact_auc'], config.pairs
    number = sum(n for name, n in counts.items() if name.startswith('kept_') and name.endswith('_train'))
    if number < settings.min_pairs:
        raise UserError(
            f'{number} pairs were found for training, fewer than config.pairs.min_pairs ({settings.min_pairs}): add '
            f'conversations, or lower it. Counts: {json.dumps(counts)}; the manifest.json of earlier stages has theirs'
        )
    if auc is not None and auc > settings.max_artefact_auc and not settings.accept_artefacts:
        raise UserError(
            f'a classifier that sees only the replies tells chosen from rejected with an AUC of {auc:.2f}, above '
            f'config.pairs.max_artefact_auc ({settings.max_artefact_auc}): look for a difference (length, style, '
            'author), or pass --config.pairs.accept_artefacts=True'
        )


STAGE = Stage(
    name='pairs',
    version=1,
    work=_work,
    output='data.pairs',
    identity=_identity,
    check=_check,
    files={f'{split}.jsonl': KEPT for split in MINED_SPLITS},
    steps=(Step('rewrites and prompts', read=tuple(f'{source}_read' for source in SOURCES)),),
    summary=of_pairs,
)

if __name__ == '__main__':
    STAGE.main()
