"""Turns rewrites, scored candidates and users' reactions into preference data, and checks the data for artefacts.

    python -m data_pipelines.pairs --config=configs/NAME.py

`config.pairs.sources` lists the sources of the preferences (see `SOURCES`). Pairs are written to train.jsonl and
validation.jsonl, with prompt, chosen and rejected in the format that TRL reads. The source `feedback` instead writes
single replies in the format of TRL's KTO trainer. Each has a label that says whether the user liked the reply, judging
by the user's next turn.

The stage fails if a classifier that sees only the replies, without persona or request, can tell too reliably which
reply is chosen. A policy trained on such pairs would learn features such as length instead of what users want.
`config.pairs.accept_artefacts` turns this check off.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_digest, input_folder, read_records
from data_pipelines.core.record_files import as_line
from data_pipelines.core.records import (
    MINED_SPLITS,
    Candidate,
    CandidateScores,
    PreferenceRecord,
    RatedReply,
)
from data_pipelines.core.turns import (
    BEST_WORST,
    OWN,
    REWRITE,
    STRANGER,
    is_strangers,
    turn_of,
)
from data_pipelines.preferences.candidates import best_and_worst, preference_record, reason_to_drop
from data_pipelines.preferences.feedback import from_feedback
from data_pipelines.preferences.reading import first_pairs_by_hash
from data_pipelines.reports.statistics import of_pairs
from rlhi_jax.config import listed, require, settings_identity
from rlhi_jax.config.loop_paths import REWRITTEN
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_file, read_json

PROBED = 20000  # maximum number of training pairs for the classifier that sees only replies


def from_rewrites(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """Yield pairs in which the rewrite is preferred to the reply that the user complained about."""
    for record in read_records(config, 'rewrites'):
        counts['rewrites_read'] += 1
        yield preference_record(record, record['rewrite'], record['original'], REWRITE)


def from_strangers(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """Yield two pairs of each record: each answer is preferred under the persona of the author of its wish."""
    for record in read_records(config, 'strangers'):
        own, stranger = record['wishes']
        of_user, of_stranger = record['replies']
        for kind, wish, chosen, rejected in (
            (OWN, own, of_user, of_stranger),
            (STRANGER, stranger, of_stranger, of_user),
        ):
            counts['strangers_read'] += 1
            ids = record['user_id'], record['stranger_id']
            user_id, other_id = ids if kind == OWN else ids[::-1]
            given = record | dict(id=turn_of(record['id']), persona=wish['persona'], user_id=user_id)
            yield preference_record(given, chosen, rejected, kind) | dict(stranger_id=other_id)


def from_candidates(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord]:
    """Yield pairs in which the highest-scoring of N replies is preferred to the lowest-scoring reply."""
    scored = _scores(config) if config.data.scores else None
    for record in read_records(config, 'candidates'):
        counts['candidates_read'] += 1
        record = record if scored is None else record | dict(scores=_scores_of(record, scored))
        if 'scores' not in record:
            raise UserError(
                'the replies in config.data.candidates have no scores: set config.candidates.reward_model and rerun '
                "the 'candidates' stage"
            )
        if sides := best_and_worst(record, config.pairs, counts):
            yield preference_record(record, *sides, BEST_WORST)


class Source(NamedTuple):
    """A source of preferences.

    Attributes:
      read: a function that yields the preferences. It counts the records that it reads as NAME_read, where NAME is the
        source's name.
      inputs: the keys in `config.data` of the folders that the function reads.
    """

    read: Callable[[ConfigDict, Counter], Iterator[PreferenceRecord | RatedReply]]
    inputs: tuple[str, ...]


# Sources of preferences, keyed by name. In `config.pairs.sources`, 'rewrites' stands for those in REWRITTEN.
SOURCES = dict(
    rewrites=Source(from_rewrites, ('rewrites',)),
    strangers=Source(from_strangers, ('strangers',)),
    candidates=Source(from_candidates, ('candidates',)),
    feedback=Source(from_feedback, ('conversations', 'follow_ups', 'personas')),
)


def _scores(config: ConfigDict) -> Iterator[CandidateScores]:
    """Return the records of `config.data.scores`.

    Raises:
      UserError: the scores were not made from the current candidates.
    """
    folder, candidates = input_folder(config, 'scores'), input_digest(config, 'candidates')
    manifest = read_json(folder / 'manifest.json', "rerun the 'oracle_scores' stage", fields=())
    if manifest.get('made_from', {}).get('candidates', candidates) != candidates:
        raise UserError(
            f"config.data.scores: {folder} was made from different candidates: rerun the 'oracle_scores' stage"
        )
    return read_records(config, 'scores')


def _scores_of(record: Candidate, scored: Iterator[CandidateScores]) -> list[float | None]:
    """Return the scores in the next record of `scored`, which must have the id of the candidate `record`."""
    scores = next(scored, None)
    if scores is None or scores['id'] != record['id']:
        raise UserError(
            'config.data.scores is not in the same order as config.data.candidates (expected scores for '
            f"{record['id']!r} next): rerun the 'oracle_scores' stage"
        )
    return scores['scores']


def mine(config: ConfigDict, counts: Counter) -> Iterator[PreferenceRecord | RatedReply]:
    """Yield the preferences from all sources.

    Drop and count pairs of identical replies, pairs in which a reply is a refusal, and single replies that the user
    liked although they are refusals.
    """
    for name in _sources(config):
        for record in SOURCES[name].read(config, counts):
            if reason := reason_to_drop(record):
                counts[f'dropped_{reason}'] += 1
            else:
                counts[f'kept_{name}_{record["split"]}'] += 1
                counts['with_persona'] += bool(record['persona'])
                yield record


def _sources(config: ConfigDict) -> list[str]:
    """Return the sources in `config.pairs.sources` whose folders are set in `config.data`.

    Raises:
      UserError: a source is unknown or repeated, or no source has all its folders set.
    """
    sources = _named_sources(config)
    given = [source for source in sources if all(config.data[key] for key in SOURCES[source].inputs)]
    if not given:
        require(config, *(f'data.{key}' for key in SOURCES[sources[0]].inputs))
    return given


def _named_sources(config: ConfigDict) -> list[str]:
    """Return the sources in `config.pairs.sources`, with 'rewrites' replaced as `config.pairs.against` says."""
    names, known = listed(config, 'pairs.sources'), [name for name in SOURCES if name != 'strangers']
    for name in names:
        if name not in known or names.count(name) > 1:
            raise UserError(f'config.pairs.sources: {name!r} is unknown or repeated: choose from {", ".join(known)}')
    rewritten = REWRITTEN[config.pairs.against]
    return [source for name in names for source in (rewritten if name == 'rewrites' else (name,))]


def _identity(config: ConfigDict) -> dict[str, Any]:
    inputs = {key: input_digest(config, key) for source in _sources(config) for key in SOURCES[source].inputs}
    if config.data.scores and 'candidates' in inputs:
        inputs['scores'] = input_digest(config, 'scores')
    settings = settings_identity(config, 'pairs')
    for name in ('accept_artefacts', 'min_pairs'):  # these settings may stop the run, but do not change the output
        del settings[name]
    if 'follow_ups' in inputs:  # `from_feedback` reads this setting
        settings['min_confidence'] = config.follow_ups.min_confidence
    return dict(inputs=inputs, settings=settings, seed=config.seed)


def _work(task: Task) -> dict[str, int]:
    from data_pipelines.preferences.artefacts import reply_only_auc  # imports scikit-learn, which takes a second

    config, counts = task.config, Counter()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(new_file(task.folder / f'{split}.jsonl')) for split in MINED_SPLITS}
        for record in mine(config, counts):
            files[record['split']].write(as_line(record))
    if left := [name for name in _named_sources(config) if name not in _sources(config)]:
        empty = next(key for key in SOURCES[left[0]].inputs if not config.data[key])
        print(f'config.data.{empty} is empty, so no pairs come from {left[0]}', flush=True)
    probed = first_pairs_by_hash(task.folder / 'train.jsonl', PROBED)
    auc = reply_only_auc(
        [(record['chosen'][0]['content'], record['rejected'][0]['content']) for record in probed],
        [_talker(record) or record['conversation'] for record in probed],
        seed=config.seed,
    )
    print(_probe_in_words(auc, len(probed)), flush=True)
    accepted = auc is not None and auc > config.pairs.max_artefact_auc
    return task.write_manifest(counts, probe=dict(artefact_auc=auc, pairs=len(probed), accepted=accepted))


def _talker(record: PreferenceRecord) -> str:
    """Return the user in whose conversation a pair was made, who keeps a pair and its mirror image in one fold."""
    return record['stranger_id'] if is_strangers(record['id']) else record['user_id']


def _probe_in_words(auc: float | None, pairs: int) -> str:
    if auc is None:
        return f'{pairs} training pairs are too few to test whether the replies alone tell chosen from rejected.'
    return f'In {pairs} training pairs, the replies alone tell chosen from rejected with an AUC of {auc:.2f}.'


def _check(config: ConfigDict, manifest: dict[str, Any]) -> None:
    """Raise UserError if there are too few training pairs, or if the replies alone show too clearly which is chosen."""
    counts, auc, settings = manifest['counts'], manifest['probe']['artefact_auc'], config.pairs
    number = sum(n for name, n in counts.items() if name.startswith('kept_') and name.endswith('_train'))
    if number < settings.min_pairs:
        raise UserError(
            f'only {number} training pairs were found, but config.pairs.min_pairs is {settings.min_pairs} (counts: '
            f'{json.dumps(counts)}): add conversations'
        )
    if auc is not None and auc > settings.max_artefact_auc and not settings.accept_artefacts:
        raise UserError(
            f'the replies alone reveal which reply of a pair was chosen (AUC {auc:.2f}, '
            f'config.pairs.max_artefact_auc={settings.max_artefact_auc}): pass --config.pairs.accept_artefacts=True to '
            'train on these pairs anyway'
        )


STAGE = Stage(
    name='pairs',
    version=2,
    work=_work,
    output='data.pairs',
    identity=_identity,
    check=_check,
    files={f'{split}.jsonl': KEPT for split in MINED_SPLITS},
    steps=(Step('rewrites and prompts', read=tuple(f'{source}_read' for source in SOURCES)),),
    shown=('with_persona',),
    summary=of_pairs,
)

if __name__ == '__main__':
    STAGE.main()
