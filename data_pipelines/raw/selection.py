"""Which conversations are kept, in which split: steps in DuckDB over the hashes, numbers and times in parts of a scan.

Of what one user and the model said under one system message the first record is kept. What goes on in another record
is left out, so that of a conversation's calls the longest remains. Of what is left under one id, too, the longest is
kept (the system message of a log may change from call to call), of equals the first: WildChat's conversation_hash is of
the content alone, so that what two users said word for word has one.
"""

import glob
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest

# By the beginnings of files' names, from the least held out to the most.
FILE_SPLITS = {'train': 'train', 'gate': 'heldout', 'validation': 'heldout', 'test': 'test'}
_EDGES = 2**18  # in memory at once

# What is kept: of what was said the first record, of what goes on the longest, and of each id the longest that is left.
# When a conversation began an earlier record says, if it is of the first exchange alone.
_KEPT = """
CREATE VIEW parts AS SELECT * FROM read_parquet('{parts}/*.parquet', hive_partitioning = false);
CREATE TABLE once AS SELECT min(place) AS place FROM parts GROUP BY said;
CREATE TABLE going_on AS
  SELECT short.place, short.ended, short.turns, long.place AS in_place
  FROM (SELECT place, said, ended, turns FROM parts SEMI JOIN once USING (place)) AS short
  JOIN (SELECT place, unnest(earlier) AS said FROM parts SEMI JOIN once USING (place)) AS long USING (said);
CREATE TABLE began AS
  SELECT in_place AS place, min(ended) AS began FROM going_on WHERE ended <> '' AND turns = 2 GROUP BY in_place;
CREATE TABLE named AS
  SELECT arg_min(place, (-turns, place)) AS place
  FROM parts SEMI JOIN once USING (place) ANTI JOIN going_on USING (place) GROUP BY named;
CREATE TABLE kept AS
  SELECT row_number() OVER (ORDER BY place) - 1 AS number, place, named, person, opted_out, ended, turns,
    CASE WHEN parts.began <> '' THEN parts.began
      WHEN began.began IS NOT NULL THEN began.began
      WHEN turns = 2 THEN ended ELSE '' END AS began,
    with_system, list_position({splits}, split) AS rank
  FROM parts SEMI JOIN named USING (place) LEFT JOIN began USING (place);
"""

# Who is alike: all that share a band with the first that has it, all of a user with the user's first.
_ALIKE = """
CREATE TABLE banded AS SELECT number, rank, unnest(bands) AS band FROM parts JOIN kept USING (place);
CREATE TABLE shared AS
  SELECT band, min(number) AS first, max(rank) AS rank, count(*) AS size FROM banded GROUP BY band HAVING size > 1;
CREATE TABLE users AS
  SELECT person, min(number) AS first, max(rank) AS rank FROM kept WHERE person <> 0 GROUP BY person;
CREATE TABLE alike AS SELECT DISTINCT * FROM (
  SELECT number, banded.rank < shared.rank AS leaks, first FROM banded JOIN shared USING (band)
  UNION ALL SELECT number, kept.rank < users.rank, first FROM kept JOIN users USING (person));
"""

# A cluster is named by a digest: the id that it is of may be of a user who has opted out. One that is larger than all
# that is to be held out, as common openings make it of many users, is trained on.
_SPLIT = """
CREATE TABLE clusters AS
  SELECT component, cluster, size,
    CASE WHEN share(cluster) < {heldout} AND size <= {most} THEN 'heldout' ELSE 'train' END AS drawn
  FROM (SELECT component, printf('%016x', min(named)) AS cluster, count(*) AS size
    FROM kept JOIN components USING (number) GROUP BY component);
CREATE TABLE chosen AS
  SELECT kept.*, cluster, CASE WHEN rank > 1 THEN list_extract({splits}, rank) ELSE drawn END AS split
  FROM kept JOIN components USING (number) JOIN clusters USING (component)
  WHERE number NOT IN (SELECT number FROM alike WHERE leaks);
"""

# Which are too many. Those that share a band open nearly the same, whoever they are of, and lie in one split by now.
# Kept are the first by hash, not those of the file; what shares no band with so many others is never too much.
_CROWDED = """
CREATE TABLE crowded AS
  SELECT DISTINCT number FROM banded JOIN shared USING (band) JOIN chosen USING (number) WHERE size > {most}
  QUALIFY row_number() OVER (PARTITION BY band ORDER BY chosen.named) > {most};
"""

_DONE = """
DROP TABLE once; DROP TABLE going_on; DROP TABLE began; DROP TABLE named; DROP TABLE kept; DROP TABLE banded;
DROP TABLE shared; DROP TABLE users; DROP TABLE alike; DROP TABLE clusters; DROP TABLE IF EXISTS crowded;
"""


def choose(base: duckdb.DuckDBPyConnection, config: ConfigDict, parts: Path, counts: Counter) -> None:
    """Make the table `chosen`, conversations that are kept with their split and cluster; count what is not.

    Also makes the view `parts` of all records in a folder of parts, by place as `chosen` is.

    Raises:
      UserError: none can be used.
    """

    def number(query: str) -> int:
        return int(base.execute(query).fetchall()[0][0] or 0)

    def drop(reason: str, how_many: int) -> None:
        if how_many:
            counts[f'dropped_{reason}'] = how_many

    def cut(reason: str, rest: str) -> None:
        drop(reason, number(f'DELETE FROM chosen WHERE number IN ({rest})'))

    splits, share = ['', *FILE_SPLITS.values()], config.ingest.heldout  # in SQL too, a list of text
    base.create_function('share', lambda name: int(digest(config.seed, name)[:8], 16) / 16**8, ['VARCHAR'], 'DOUBLE')
    base.execute(_KEPT.format(parts=glob.escape(str(parts)).replace("'", "''"), splits=splits))
    kept, once = number('SELECT count(*) FROM kept'), number('SELECT count(*) FROM once')
    if not kept:
        raise UserError(
            f'config.data.raw: no usable conversation in {config.data.raw} (counts: {dict(counts)}): see '
            'config.ingest.fields for where a record holds what'
        )
    longest = once - number('SELECT count(DISTINCT place) FROM going_on')
    drop('seen_before', number('SELECT count(*) FROM parts') - once)
    drop('goes_on_in_another', once - longest)
    drop('id_seen_before', longest - kept)
    base.execute(_ALIKE)
    edges = base.sql('SELECT number, first FROM alike WHERE number <> first').to_arrow_reader(_EDGES)
    base.register('components', components(kept, edges))
    base.execute(_SPLIT.format(heldout=share, most=max(share * kept, 1), splits=splits))
    counts['clusters'] = number('SELECT count(*) FROM clusters')
    counts['in_clusters_of_several'] = number('SELECT sum(size) FROM clusters WHERE size > 1')
    drop('like_one_held_out', kept - number('SELECT count(*) FROM chosen'))
    if most := config.ingest.max_nearly_same:
        base.execute(_CROWDED.format(most=most))
        cut('nearly_the_same', 'FROM crowded')
    if most := config.ingest.max_per_user:
        newest = 'row_number() OVER (PARTITION BY person ORDER BY ended DESC, number DESC)'
        cut('over_max_per_user', f'SELECT number FROM chosen WHERE person <> 0 QUALIFY {newest} > {most}')
    if most := config.ingest.max_conversations:
        cut('over_max_conversations', f'SELECT number FROM chosen ORDER BY named, number OFFSET {most}')
    cut('opted_out', 'SELECT number FROM chosen WHERE opted_out')  # last: nobody else's fate hangs on it
    for split, size in base.execute('SELECT split, count(*) FROM chosen GROUP BY split').fetchall():
        counts[f'kept_{split}'] = size
    counts['without_time'] = number("SELECT count(*) FROM chosen WHERE began = ''")
    counts['with_system_message'] = number('SELECT count(*) FROM chosen WHERE with_system')
    counts['users'] = number('SELECT count(DISTINCT person) FROM chosen WHERE person <> 0')
    counts['user_turns'] = number('SELECT sum((turns + 1) // 2) FROM chosen')
    base.execute(_DONE)


def components(count: int, edges: Iterable[pa.RecordBatch]) -> pa.Table:
    """The component of each of `count` conversations: those that are alike, directly or through others.

    Of the edges only a batch is in memory at once: it joins components that those before have left.
    """
    component = np.arange(count, dtype=np.int32)
    for batch in edges:
        ends = np.stack([component[batch[place].to_numpy()] for place in range(2)])
        nodes, (left, right) = np.unique(ends, return_inverse=True)
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), (len(nodes), len(nodes)))
        joined = connected_components(graph, directed=False)[1]
        first = np.unique(joined, return_index=True)[1]
        new = np.arange(count, dtype=np.int32)
        new[nodes] = nodes[first[joined]]
        component = new[component]
    return pa.table(dict(number=np.arange(count, dtype=np.int32), component=component))
