"""Reads preferences from files in any layout, and counts the preferences that cannot be used."""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from data_pipelines.core.scratch import scratch_database
from data_pipelines.preferences.hindsight import hindsight_preference
from data_pipelines.preferences.layouts import Rated, one_sided_preference, parse_preferences, rated_preference
from data_pipelines.preferences.ratings import Ratings
from data_pipelines.raw.files import Files, files_of, form_of, json_records, parquet_records
from rlhi_jax.config import comma_separated
from rlhi_jax.data.tree import BadRecord, Preference
from rlhi_jax.io.errors import UserError, one_line

# `train_prefs` and `test_prefs` of published data sets count as `train` and `test`.
_SPLIT = re.compile(r'(train|validation|test)(?![A-Za-z])')


class Origin(NamedTuple):
    """The options that name preference files and their split, for errors.

    Attributes:
      files: the option that names the files.
      split: the option that names the split.
    """

    files: str
    split: str


CONFIG = Origin('config.data.pairs', 'config.data.split')


def read_preferences(
    paths: Sequence[Path],
    counts: Counter,
    scratch: Path | None = None,
    *,
    feedback: str = 'paired',
    keep_ties: bool = False,
    origin: Origin = CONFIG,
) -> Iterator[Preference]:
    """Yield the usable preferences in files. Count every preference as kept or under the reason for dropping it.

    A preference without an id gets the id FILE:LINE, or N/FILE:LINE if several files have the same name. N is the
    position of the file in `paths`, counted from 1. Preferences are in the order of the files, but those made from
    several rated replies come last, because the replies to a prompt may be anywhere in the files.

    Args:
      paths: the files, in any form and layout (`data_pipelines/raw/files.py`, `data_pipelines/preferences/layouts.py`).
      counts: receives the counts.
      scratch: a temporary file for rated replies; None keeps the rated replies in memory.
      feedback: `config.data.feedback`.
      keep_ties: whether to yield preferences in which neither reply is better, instead of dropping them.
      origin: the option that names the files, for errors.

    Raises:
      UserError: a file is damaged or has an unsupported form.
    """
    seen = set()
    with scratch_database(scratch) as database:
        ratings = Ratings(database)
        as_read = _as_read(_records(paths, origin), counts, ratings, feedback)
        for made in itertools.chain(as_read, _of_ratings(ratings, counts)):
            counts['lines_read'] += 1
            if isinstance(made, BadRecord):
                counts[f'dropped_{made.reason}'] += 1
            elif made.tied and not keep_ties:
                counts['dropped_tie'] += 1
            elif made.id in seen:
                counts['dropped_id_seen_before'] += 1
            else:
                seen.add(made.id)
                counts['pairs_kept'] += 1
                yield made


# Functions that make a preference from one rated reply, keyed by `config.data.feedback`; 'paired' needs two replies.
_OF_ONE_REPLY = dict(one_sided=one_sided_preference, hindsight=hindsight_preference)


def _as_read(
    records: Iterable[tuple[str, Any | BadRecord]], counts: Counter, ratings: Ratings, feedback: str
) -> Iterator[Preference | BadRecord]:
    """Yield the preferences in the records, and an error for each record that cannot be used.

    If `feedback` is 'paired', rated replies are not made into preferences here, but added to `ratings`.
    """
    for default_id, record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            parsed = parse_preferences(record, default_id, counts)
        except BadRecord as bad:
            yield bad
            continue
        for each in parsed:
            if isinstance(each, Rated):
                counts['rated_replies_read'] += 1
                if feedback == 'paired':
                    ratings.add(each, default_id)
                else:
                    yield _made(_OF_ONE_REPLY[feedback], each, default_id, counts)
            else:
                yield BadRecord('preference_without_a_follow_up') if feedback == 'hindsight' else each


def _of_ratings(ratings: Ratings, counts: Counter) -> Iterator[Preference | BadRecord]:
    """Yield a preference for each prompt with rated replies, or an error if they cannot form a preference."""
    for default_id, best, worst in ratings:
        yield _made(rated_preference, best, worst, default_id, counts)


def named_preferences(
    names: str, split: str, counts: Counter, origin: Origin, *, keep_ties: bool = False
) -> tuple[list[Preference], list[Path]]:
    """Return the usable preferences in files, folders and hub data sets, and the files that they come from.

    Args:
      names: the files, folders and data sets, separated by commas.
      split: the split to read from folders and data sets.
      counts: receives the counts of `read_preferences`.
      origin: the options that gave `names` and `split`.
      keep_ties: as for `read_preferences`.

    Raises:
      UserError: something is missing or damaged, or contains no usable preferences.
    """
    files = [preference_files(name, split, origin) for name in comma_separated(names, origin.files)]
    for each in files:
        each.say_what_is_not_read(origin.files)
    paths = [path for each in files for path in each.files]
    preferences = list(read_preferences(paths, counts, keep_ties=keep_ties, origin=origin))
    if not preferences:
        raise UserError(f'{origin.files}={names} contains no usable preferences (records by outcome: {dict(counts)})')
    return preferences, paths


def _made(make: Callable[..., Preference], *arguments: Any) -> Preference | BadRecord:
    try:
        return make(*arguments)
    except BadRecord as bad:
        return bad


def _records(paths: Sequence[Path], origin: Origin) -> Iterator[tuple[str, Any | BadRecord]]:
    """Yield the records of all files, each with a default id to use if the record states none."""
    names = Counter(path.name for path in paths)
    for index, path in enumerate(paths, start=1):
        name = path.name if names[path.name] == 1 else f'{index}/{path.name}'
        form = form_of(path, origin.files)
        try:
            if form.layout == 'parquet':
                groups = range(pyarrow.parquet.read_metadata(path).num_row_groups)
                numbered = enumerate((record for group in groups for record in parquet_records(path, group)), start=1)
            else:
                numbered = json_records(path, form)
            for number, record in numbered:
                yield f'{name}:{number}', record
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            raise UserError(f'{origin.files}: {path} cannot be read ({one_line(error)}): fetch it again') from None


def preference_files(name: str, split: str, origin: Origin = CONFIG) -> Files:
    """Return the files to read for a file, folder or hub data set, and the files beside them that are of other kinds.

    If a folder contains `SPLIT.jsonl` for the given split, only that file is read. Otherwise, files named after other
    splits are left out.

    Raises:
      UserError: the name refers to no files, or only to files of other splits. The message names the options in
        `origin`.
    """
    of_stage = Path(name) / f'{split}.jsonl'
    if of_stage.is_file():
        return Files([of_stage], ())
    found = files_of(name, origin.files)
    if found.files == [Path(name)]:
        return found
    splits = {path: match[1] for path in found.files if (match := _SPLIT.match(path.name))}
    chosen = [path for path in found.files if splits.get(path, split) == split] if splits else found.files
    if not chosen:
        splits_found = ', '.join(sorted(set(splits.values())))
        raise UserError(
            f'{origin.files}: {name} has no files for {origin.split}={split}, only for {splits_found}: set '
            f'{origin.split} to one of these'
        )
    return Files(chosen, found.others)
