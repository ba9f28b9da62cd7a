"""Finds how many users will be held out, by running the queries with which `ingest` assigns conversations to splits."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
from ml_collections import ConfigDict

from data_pipelines.checks.findings import Findings
from data_pipelines.checks.sample import Sample
from data_pipelines.raw.scan import Chunk, Rules, chunks_of, part_path, write_part
from data_pipelines.raw.selection import choose

MIN_HELD_OUT = 2  # users; the evaluation also tries another user's persona for each

# A unit is a user, or a conversation of an unknown user. A cluster is a group of conversations with the same user or
# with similar openings; all of them go to the same split.
_UNITS = "CASE WHEN user_hash = 0 THEN 'conversation ' || number ELSE 'user ' || user_hash END"
_BY_CLUSTER = f"""
SELECT split, count(*) AS conversations, count(DISTINCT {_UNITS}) AS units, sum(user_hash <> 0)::INT AS of_users
FROM chosen GROUP BY split, cluster
"""


class Cluster(NamedTuple):
    """The size of a group of conversations that all go to the same split.

    `users` is the number of users in the group. Each conversation of an unknown user counts as one user. All
    conversations of a known user are in the same cluster.
    """

    split: str
    conversations: int
    users: int


class Assignment(NamedTuple):
    """How `ingest` assigns conversations to splits.

    Attributes:
      clusters: the clusters of conversations.
      known: whether any conversation has a user id.
      exact: whether `ingest` will make exactly this assignment. If only a sample was assigned, or if the salt for
        user keys does not exist yet, the assignment is an estimate.
    """

    clusters: list[Cluster]
    known: bool
    exact: bool

    @property
    def users(self) -> int:
        return sum(cluster.users for cluster in self.clusters)

    @property
    def held_out(self) -> list[Cluster]:
        return [cluster for cluster in self.clusters if cluster.split == 'validation']

    @property
    def largest(self) -> int:
        """The number of users in the cluster with the most users."""
        return max((cluster.users for cluster in self.clusters), default=0)

    def small_enough(self, share: float) -> int:
        """Return the number of users in clusters that have one conversation or at most `share` of all conversations."""
        most = max(share * sum(cluster.conversations for cluster in self.clusters), 1)
        return sum(cluster.users for cluster in self.clusters if cluster.conversations <= most)


def assign(config: ConfigDict, sample: Sample, files: Sequence[Path], rules: Rules) -> Assignment:
    """Return how `ingest` assigns the records to splits.

    If the sample contains all records, the assignment covers all of them; otherwise, it covers only the sample.

    Raises:
      UserError: only some of the files are named after splits.
    """
    chunks: list[Chunk] = chunks_of(files if sample.whole else sample.files, config.data.raw)
    if not sample.whole:  # the sample contains only the first records of each file
        chunks = list({chunk.path: chunk for chunk in reversed(chunks)}.values())
    salted = rules.without_missing_salt()
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as base:
        for number, chunk in enumerate(chunks):
            most = None if sample.whole else sample.counts['records_read'] // len(chunks)
            write_part(chunk, number, salted, part_path(Path(folder), number), most=most)
        choose(base, config, Path(folder), Counter())
        rows = base.execute(_BY_CLUSTER).fetchall()
    clusters = [Cluster(*row[:3]) for row in rows]
    return Assignment(clusters, known=any(row[3] for row in rows), exact=sample.whole and salted == rules)


def check_held_out(config: ConfigDict, sample: Sample, assignment: Assignment, findings: Findings) -> None:
    """Add to the findings how many users are held out.

    Also warn if these users are too few for an evaluation, or if one cluster contains most users.

    Args:
      config: the loop's config.
      sample: the sample of the raw records.
      assignment: the result of `assign`.
      findings: receives the facts and problems.
    """
    share, unit = config.ingest.heldout, 'users' if assignment.known else 'conversations'
    users, held_out = assignment.users, assignment.held_out
    largest = f'the largest cluster of near-duplicate openings has {assignment.largest:,} of {users:,} {unit}'
    if assignment.exact:
        number: float = sum(cluster.users for cluster in held_out)
        clusters = f'{len(held_out):,} of {len(assignment.clusters):,} clusters'
        findings.fact(f'Held out for the evaluation: {number:,} of {users:,} {unit}, in {clusters}; {largest}.')
    else:
        number = share * assignment.small_enough(share) * sample.total / max(sample.counts['records_read'], 1)
        source = 'before `ingest` makes the salt for user keys' if sample.whole else 'from a sample'
        findings.fact(
            f'Held out for the evaluation: about {number:,.0f} {unit} ({share:.0%} of those in small clusters), '
            f'estimated {source}; {largest}.'
        )
    if assignment.known and users == 1:
        findings.warn(
            'all conversations are from one user, so nobody can be held out and no persona can be compared with '
            "another user's: add conversations from at least ten users"
        )
        return
    if assignment.largest > users / 2:
        findings.warn(
            f'{largest}, and all of them go to the same split: '
            f'raise config.ingest.similarity ({config.ingest.similarity}), so that fewer openings count as '
            'near-duplicates'
        )
    if number < MIN_HELD_OUT <= users - assignment.largest:
        findings.warn(
            f'fewer than {MIN_HELD_OUT} {unit} are held out, so the evaluation would have no figures: '
            f'set config.ingest.heldout={min(0.5, 2 * MIN_HELD_OUT / users):.2g}'
        )
