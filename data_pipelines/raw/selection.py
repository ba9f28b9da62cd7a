"""Chooses conversations and their splits with DuckDB queries on the parquet files that `raw.scan` writes.

The queries use only hashes, numbers and times. They drop duplicates by these rules:

- Of exact duplicates (same user, system message and texts), the first record is kept.
- A record that is a prefix of another record is dropped. (Each API call logs the conversation so far, so only the
  last and longest log entry is kept.)
- Of the remaining records with the same id, the longest is kept, or the first if several are equally long. (The system
  message in a log may change from call to call.)

WildChat's conversation_hash covers only the texts, so two users who wrote the same text share an id.
"""

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines.core.records import SPLITS
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest

_EDGES = 2**18  # edges in memory at once

# Removes duplicates, prefixes and shared ids. If a conversation has no start time, but its first exchange was logged as
# a separate record, the time at which that exchange ended is used as the start time.
_KEPT = """
CREATE VIEW parts AS SELECT * FROM read_parquet('{parts}/*.parquet', hive_partitioning = false);
CREATE TABLE distinct_records AS SELECT min(position) AS position FROM parts GROUP BY content_hash;
CREATE TABLE prefixes AS
  SELECT short.position, short.ended, short.turns, long.position AS continued_at
  FROM (SELECT position, content_hash, ended, turns FROM parts SEMI JOIN distinct_records USING (position)) AS short
  JOIN (SELECT position, unnest(prefix_hashes) AS content_hash
    FROM parts SEMI JOIN distinct_records USING (position)) AS long USING (content_hash);
CREATE TABLE first_exchanges AS
  SELECT continued_at AS position, min(ended) AS began
  FROM prefixes WHERE ended <> '' AND turns = 2 GROUP BY continued_at;
CREATE TABLE longest AS
  SELECT arg_min(position, (-turns, position)) AS position
  FROM parts SEMI JOIN distinct_records USING (position) ANTI JOIN prefixes USING (position) GROUP BY id_hash;
CREATE TABLE kept AS
  SELECT row_number() OVER (ORDER BY position) - 1 AS number, position, id_hash, user_hash, opted_out, ended, turns,
    CASE WHEN parts.began <> '' THEN parts.began
      WHEN first_exchanges.began IS NOT NULL THEN first_exchanges.began
      WHEN turns = 2 THEN ended ELSE '' END AS began,
    has_system, list_position({splits}, split) AS split_rank
  FROM parts SEMI JOIN longest USING (position) LEFT JOIN first_exchanges USING (position);
"""

# Links that must not cross splits: from each conversation in an LSH band (`raw.near_duplicates`) to the first
# conversation in that band, and from each conversation of a user to that user's first conversation. A conversation
# leaks if another conversation with the same band or user is in a later split, in the order of SPLITS.
_LINKS = """
CREATE TABLE banded AS SELECT number, split_rank, unnest(bands) AS band FROM parts JOIN kept USING (position);
CREATE TABLE shared_bands AS
  SELECT band, min(number) AS first, max(split_rank) AS split_rank, count(*) AS size
  FROM banded GROUP BY band HAVING size > 1;
CREATE TABLE users AS
  SELECT user_hash, min(number) AS first, max(split_rank) AS split_rank
  FROM kept WHERE user_hash <> 0 GROUP BY user_hash;
CREATE TABLE links AS SELECT DISTINCT * FROM (
  SELECT number, banded.split_rank < shared_bands.split_rank AS leaks, first FROM banded JOIN shared_bands USING (band)
  UNION ALL SELECT number, kept.split_rank < users.split_rank, first FROM kept JOIN users USING (user_hash));
"""

# A cluster is a connected component of the links. Its name is a digest, because the id of its first conversation may
# belong to a user who has opted out. Common openings can join many users in one cluster. A cluster larger than the
# share to hold out goes to the training split.
_SPLIT = """
CREATE TABLE clusters AS
  SELECT component, cluster, size,
    CASE WHEN share(cluster) < {share} AND size <= {most} THEN 'validation' ELSE 'train' END AS drawn
  FROM (SELECT component, printf('%016x', min(id_hash)) AS cluster, count(*) AS size
    FROM kept JOIN components USING (number) GROUP BY component);
CREATE TABLE chosen AS
  SELECT kept.*, cluster, CASE WHEN split_rank > 1 THEN list_extract({splits}, split_rank) ELSE drawn END AS split
  FROM kept JOIN components USING (number) JOIN clusters USING (component)
  WHERE number NOT IN (SELECT number FROM links WHERE leaks);
"""

# Selects the conversations beyond the first {most} in each band. Ranking by id hash makes the choice independent of the
# order of records. Conversations in a band open in nearly the same way, may be from different users, and are already in
# the same split.
_CROWDED = """
CREATE TABLE crowded AS
  SELECT DISTINCT number FROM banded JOIN shared_bands USING (band) JOIN chosen USING (number) WHERE size > {most}
  QUALIFY row_number() OVER (PARTITION BY band ORDER BY chosen.id_hash) > {most};
"""

_DROP_TABLES = """
DROP TABLE distinct_records; DROP TABLE prefixes; DROP TABLE first_exchanges; DROP TABLE longest; DROP TABLE kept;
DROP TABLE banded; DROP TABLE shared_bands; DROP TABLE users; DROP TABLE links; DROP TABLE clusters;
DROP TABLE IF EXISTS crowded;
"""


def _remedy(counts: Counter) -> str:
    """Return what to do if no conversation is usable."""
    if counts['dropped_single_message_of_a_tree']:
        return (
            'use a file of whole conversations instead of single messages, such as '
            'hf://OpenAssistant/oasst2/2023-11-05_oasst2_ready.trees.jsonl.gz'
        )
    if any(name.startswith('dropped_unknown_role') for name in counts):
        return 'add the roles to config.ingest.fields.user_role, assistant_role or system_role'
    return 'check the paths in config.ingest.fields'


def choose(base: duckdb.DuckDBPyConnection, config: ConfigDict, parts: Path, counts: Counter) -> None:
    """Create the table `chosen` of kept conversations with their splits and clusters. Count dropped records by reason.

    Also create the view `parts`, which contains all records from the scan. The key of `chosen` and of `parts` is the
    column `position`.

    Raises:
      UserError: there is no usable conversation.
    """

    def drop(reason: str, size: int) -> None:
        if size:
            counts[f'dropped_{reason}'] = size

    splits = ['', *SPLITS]  # Python's text for this list is also valid SQL
    base.execute(_KEPT.format(parts=glob.escape(str(parts)).replace("'", "''"), splits=splits))
    kept, distinct = _number(base, 'SELECT count(*) FROM kept'), _number(base, 'SELECT count(*) FROM distinct_records')
    if not kept:
        raise UserError(
            f'config.data.raw: {config.data.raw} contains no usable conversations (records by outcome: '
            f'{dict(counts)}): {_remedy(counts)}'
        )
    longest = distinct - _number(base, 'SELECT count(DISTINCT position) FROM prefixes')
    drop('seen_before', _number(base, 'SELECT count(*) FROM parts') - distinct)
    drop('goes_on_in_another', distinct - longest)
    drop('id_seen_before', longest - kept)

    base.execute(_LINKS)
    edges = base.sql('SELECT number, first FROM links WHERE number <> first').to_arrow_reader(_EDGES)
    base.register('components', components(kept, edges))
    share = config.ingest.heldout
    base.create_function('share', lambda name: int(digest(config.seed, name)[:8], 16) / 16**8, ['VARCHAR'], 'DOUBLE')
    base.execute(_SPLIT.format(share=share, most=max(share * kept, 1), splits=splits))
    counts['clusters'] = _number(base, 'SELECT count(*) FROM clusters')
    counts['in_clusters_of_several'] = _number(base, 'SELECT sum(size) FROM clusters WHERE size > 1')
    drop('like_one_held_out', kept - _number(base, 'SELECT count(*) FROM chosen'))

    for reason, query in _cuts(base, config):
        drop(reason, _number(base, f'DELETE FROM chosen WHERE number IN ({query})'))
    for split, size in base.execute('SELECT split, count(*) FROM chosen GROUP BY split').fetchall():
        counts[f'kept_{split}'] = size
    counts['without_time'] = _number(base, "SELECT count(*) FROM chosen WHERE began = ''")
    counts['with_system_message'] = _number(base, 'SELECT count(*) FROM chosen WHERE has_system')
    counts['users'] = _number(base, 'SELECT count(DISTINCT user_hash) FROM chosen WHERE user_hash <> 0')
    counts['user_turns'] = _number(base, 'SELECT sum((turns + 1) // 2) FROM chosen')
    base.execute(_DROP_TABLES)


def _number(base: duckdb.DuckDBPyConnection, query: str) -> int:
    """Run a query and return the number in its result; for a DELETE, this is the number of deleted rows."""
    return int(base.execute(query).fetchall()[0][0] or 0)


def _cuts(base: duckdb.DuckDBPyConnection, config: ConfigDict) -> Iterator[tuple[str, str]]:
    """Yield (reason, query) for each step that removes rows from `chosen`. The query selects the rows' `number`s."""
    if most := config.ingest.max_nearly_same:
        base.execute(_CROWDED.format(most=most))
        yield 'nearly_the_same', 'FROM crowded'
    if most := config.ingest.max_per_user:
        age = 'row_number() OVER (PARTITION BY user_hash ORDER BY ended DESC, number DESC)'
        yield 'over_max_per_user', f'SELECT number FROM chosen WHERE user_hash <> 0 QUALIFY {age} > {most}'
    if most := config.ingest.max_conversations:
        yield 'over_max_conversations', f'SELECT number FROM chosen ORDER BY id_hash, number OFFSET {most}'
    yield 'opted_out', 'SELECT number FROM chosen WHERE opted_out'  # last, so that it changes nothing for other users


def components(count: int, edges: Iterable[pa.RecordBatch]) -> pa.Table:
    """Return the connected component of each conversation, as a table with the columns `number` and `component`.

    Args:
      count: the number of conversations.
      edges: batches of edges. An edge is a pair of conversation numbers. Only one batch is in memory at a time.
    """
    component = np.arange(count, dtype=np.int32)
    for batch in edges:
        ends = np.stack([component[batch[column].to_numpy()] for column in range(2)])
        nodes, (left, right) = np.unique(ends, return_inverse=True)
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), (len(nodes), len(nodes)))
        joined = connected_components(graph, directed=False)[1]
        first = np.unique(joined, return_index=True)[1]
        new = np.arange(count, dtype=np.int32)
        new[nodes] = nodes[first[joined]]
        component = new[component]
    return pa.table(dict(number=np.arange(count, dtype=np.int32), component=component))
