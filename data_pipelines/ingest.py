"""Raw conversations → one checked record a conversation, split without leaks.

    python -m data_pipelines.ingest --config=configs/NAME.py

Reads `config.data.raw`: files or folders, joined by commas; JSON lines (.jsonl, .jsonl.gz) or parquet, in the schema of
WildChat-1M or as `{"conversation_id", "messages"}`. Records that cannot be used are skipped and counted by reason. A
split holds whole users and whole clusters of near-duplicate openings: no user and no request lies on both sides. Files
named train, gate and test (at least two of them) are the splits; else clusters are drawn for them.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasketch import MinHash, MinHashLSH
from ml_collections import ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines.stage import Record, Stage
from rlhi_jax.config import require
from rlhi_jax.data.tree import BadRecord
from rlhi_jax.errors import UserError
from rlhi_jax.files import digest, file_digest

PERMUTATIONS = 64
SHINGLE = 3  # words
OPENING = 60  # words of the first message that count as its opening


def raw_files(config: ConfigDict) -> list[Path]:
    """The files that `config.data.raw` names; of a folder, those named by split, or else all that can be read.

    Raises:
      UserError: a path does not exist or holds no conversations.
    """
    require(config, 'data.raw')
    files: list[Path] = []
    for name in config.data.raw.split(','):
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = [each for each in sorted(path.iterdir()) if each.name.endswith(('.jsonl', '.jsonl.gz', '.parquet'))]
            found = [each for each in found if file_split(each)] or found
        if not found or not all(each.is_file() for each in found):
            raise UserError(f'config.data.raw: {path} does not exist, or holds no .jsonl, .jsonl.gz or .parquet file')
        files += found
    return files


FILE_SPLITS = {'train': 'train', 'gate': 'heldout', 'test': 'test'}  # the least to the most held out


def file_split(path: Path) -> str:
    """The split that a file is named by, as `test.jsonl.gz` is; '' for any other name."""
    return FILE_SPLITS.get(path.name.split('.')[0], '')


def read_raw(path: Path, counts: Counter) -> Iterator[Any]:
    """The records of one file; lines that are no JSON are counted."""
    if path.suffix == '.parquet':
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with gzip.open(path, 'rb') if path.suffix == '.gz' else open(path, 'rb') as file:
        for line in file:
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                counts['records_read'] += 1
                counts['dropped_not_json'] += 1


def parse_conversation(record: Any, *, keep_toxic: bool) -> Record:
    """One conversation as id, user_id, when it began and ended, language and messages.

    WildChat's time stamp of a conversation is that of its last turn; when it began only its turns say.

    Raises:
      BadRecord: with the reason to count it by.
    """
    turns = record.get('conversation', record.get('messages')) if isinstance(record, dict) else None
    if not isinstance(turns, list | tuple) or not turns:
        raise BadRecord('no_messages')
    if record.get('toxic') and not keep_toxic:
        raise BadRecord('toxic')
    messages = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get('content'), str):
            raise BadRecord('message_without_text')
        if turn.get('role') != ('user', 'assistant')[place % 2]:
            raise BadRecord('roles_do_not_alternate')
        text = turn['content'].encode('utf-8', 'replace').decode().strip()
        if not text:
            raise BadRecord('empty_message')
        messages.append(dict(role=turn['role'], content=text))
    if len(messages) < 2:
        raise BadRecord('no_reply')
    metadata = record.get('metadata') or {}
    said_at = list(filter(None, (moment(turn.get('timestamp')) for turn in turns)))
    last = record.get('timestamp') or metadata.get('timestamp')
    name = record.get('conversation_hash') or record.get('conversation_id') or digest(messages)[:32]
    return dict(
        id=str(name),
        user_id=str(record.get('hashed_ip') or record.get('user_id') or ''),
        began=min(said_at, default=''),
        ended=max([*said_at, *filter(None, [moment(last)])], default=''),
        language=str(record.get('language') or metadata.get('language') or ''),
        messages=messages,
    )


def moment(value: Any) -> str:
    """A time stamp in ISO form, UTC, so that text order is time order; '' for none, or none that can be read.

    >>> moment('2024-05-01 10:00:00+02:00'), moment('yesterday')
    ('2024-05-01T08:00:00+00:00', '')
    """
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return ''
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def near_duplicates(openings: Sequence[str], *, similarity: float) -> list[tuple[int, int]]:
    """Every two openings, by number, whose Jaccard similarity of word shingles is about `similarity` or more.

    By MinHash with locality-sensitive hashing.
    """
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
    found: list[tuple[int, int]] = []
    for number, opening in enumerate(openings):
        words = re.findall(r'\w+', opening.lower())[:OPENING]
        shingles = {' '.join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
        sketch = MinHash(PERMUTATIONS, seed=0)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
        found += [(number, int(other)) for other in index.query(sketch)]
        index.insert(str(number), sketch)
    return found


def clusters(count: int, alike: Sequence[tuple[int, int]]) -> list[int]:
    """A number for each of `count` conversations, the same for those that are alike, directly or through others."""
    rows, columns = zip(*alike, strict=True) if alike else ((), ())
    graph = coo_array(([1] * len(rows), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()


def _assign_splits(records: list[Record], config: ConfigDict, counts: Counter) -> list[Record]:
    """Set each record's cluster, and its split unless its file is named by one; returns those that are kept.

    Of files named by split, a conversation that shares its user, or nearly its opening, with a more held-out one goes.
    """
    openings = [record['messages'][0]['content'] for record in records]
    first: dict[str, int] = {}
    alike = near_duplicates(openings, similarity=config.ingest.similarity)
    alike += [(n, first.setdefault(r['user_id'], n)) for n, r in enumerate(records) if r['user_id']]
    numbers = clusters(len(records), alike)
    names: dict[int, str] = {}
    for number, record in zip(numbers, records, strict=True):
        names[number] = min(names.get(number, record['id']), record['id'])
    shared = Counter(numbers)
    counts.update(clusters=len(shared), in_clusters_of_several=sum(n for n in shared.values() if n > 1))
    for number, record in zip(numbers, records, strict=True):
        record['cluster'] = names[number]
        if not record['split']:
            share = int(digest(config.seed, names[number])[:8], 16) / 16**8
            record['split'] = 'heldout' if share < config.ingest.heldout else 'train'
    held_out = [list(FILE_SPLITS.values()).index(record['split']) for record in records]
    of_user: dict[str, int] = {}
    for rank, record in zip(held_out, records, strict=True):
        of_user[record['user_id']] = max(of_user.get(record['user_id'], 0), rank) if record['user_id'] else 0
    leaking = {min(pair, key=held_out.__getitem__) for pair in alike if held_out[pair[0]] != held_out[pair[1]]}
    leaking |= {n for n, record in enumerate(records) if held_out[n] < of_user[record['user_id']]}
    if leaking:
        counts['dropped_like_one_held_out'] = len(leaking)
    return [record for n, record in enumerate(records) if n not in leaking]


def _identity(config: ConfigDict) -> dict[str, Any]:
    files = [[path.name, file_digest(path)] for path in raw_files(config)]
    return dict(inputs=files, settings=config.ingest.to_dict(), seed=config.seed, fields='began, ended')


def _work(config: ConfigDict, folder: Path) -> dict[str, int]:
    counts: Counter = Counter()
    records: list[Record] = []
    seen: set[str] = set()
    languages = set(filter(None, config.ingest.languages.split(',')))
    files = raw_files(config)
    by_file = '' not in map(file_split, files) and len(set(map(file_split, files))) > 1
    for path in files:
        for raw in read_raw(path, counts):
            counts['records_read'] += 1
            try:
                record = parse_conversation(raw, keep_toxic=config.ingest.keep_toxic)
                if languages and record['language'] and record['language'] not in languages:
                    raise BadRecord('another_language')
                said = digest(record['user_id'], record['messages'])
                if said in seen or record['id'] in seen:
                    raise BadRecord('seen_before')
            except BadRecord as bad:
                counts[f'dropped_{bad.reason}'] += 1
                continue
            seen |= {said, record['id']}
            records.append(record | {'split': file_split(path) if by_file else ''})
    if not records:
        raise UserError(f'config.data.raw: no usable conversation in {config.data.raw} (counts: {dict(counts)})')
    records = _assign_splits(records, config, counts)
    if config.ingest.max_conversations:
        chosen = {r['id'] for r in sorted(records, key=lambda r: digest(r['id']))[: config.ingest.max_conversations]}
        counts['dropped_over_max_conversations'] = len(records) - len(chosen)
        records = [record for record in records if record['id'] in chosen]
    for record in records:
        counts[f'kept_{record["split"]}'] += 1
    counts['without_time'] = sum(not record['began'] for record in records)
    counts['users'] = len({record['user_id'] for record in records} - {''})
    counts['user_turns'] = sum(message['role'] == 'user' for record in records for message in record['messages'])
    return STAGE.write(config, folder, records, counts)


STAGE = Stage('ingest', _work, 'data.conversations', _identity)

if __name__ == '__main__':
    STAGE.main()
