"""The check says which users will be held out; an ingest run of the same files holds out exactly these."""

import random

import pytest
import tiny
from raw_conversations import config, raw_conversation, records, write_lines

from data_pipelines import ingest
from data_pipelines.checks import sample as samples
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.held_out import Assignment, Cluster, assign, check_held_out
from data_pipelines.checks.sample import read_sample


def opening(name: str) -> str:
    return ' '.join(random.Random(name).choices(tiny.WORDS, k=12))


def raw(count: int, users: int, templates: int, name: str = '') -> list[dict]:
    """Conversations of several users; the openings of a third of them follow one of a few templates."""
    rng = random.Random(count)
    found = []
    for n in range(count):
        first = opening(f'template {rng.randrange(templates)}') if templates and n % 3 == 0 else opening(f'{name}{n}')
        user = f'{name}u{rng.randrange(users)}' if users else None
        texts = (first, 'Yes.', 'Shorter, please.', f'No {n}.')
        found.append(raw_conversation(f'{name}c{n}', *texts, hashed_ip=user))
    return found


CASES = {
    'no templates': (raw(60, 20, 0), {}),
    'templates': (raw(90, 40, 9), {}),
    'one template': (raw(90, 60, 1), {}),
    'many held out': (raw(90, 40, 5), {'heldout': 0.4}),
    'unknown users': (raw(90, 0, 20), {'heldout': 0.3}),
    'caps': (raw(90, 30, 4), {'heldout': 0.4, 'max_per_user': 2, 'max_nearly_same': 3}),
    'scrubbed': (raw(90, 40, 9), {'scrub': True}),
}


def checked(c) -> tuple[Assignment, Findings]:
    files, rules, findings = ingest.raw_files(c), ingest.rules_of(c), Findings()
    found = read_sample(files, rules)
    assignment = assign(c, found, files, rules)
    check_held_out(c, found, assignment, findings)
    return assignment, findings


def of_ingest(c) -> tuple[int, int, int, int]:
    """The users held out, all users, and the clusters of both, counted in the records that ingest writes."""
    ingest.STAGE.run(c)
    kept = records(c)
    held = [record for record in kept if record['split'] == 'validation']
    users = [{record['user_id'] or record['id'] for record in each} for each in (held, kept)]
    clusters = [{record['cluster'] for record in each} for each in (held, kept)]
    return len(users[0]), len(users[1]), len(clusters[0]), len(clusters[1])


@pytest.mark.parametrize('case', CASES)
def test_ingest_holds_out_what_the_check_says(case, tmp_path):
    lines, settings = CASES[case]
    c = config(tmp_path)
    c.ingest.update(settings)
    write_lines(tmp_path / 'raw.jsonl', lines)
    assignment, findings = checked(c)
    held, users, clusters, of = of_ingest(c)
    unit = 'conversations' if case == 'unknown users' else 'users'
    assert f'evaluation: {held} of {users} {unit}, in {clusters} of {of} clusters;' in findings.facts[0]
    assert assignment.exact and (held > 0 or case in ('one template', 'templates', 'no templates'))


def test_file_names_decide(tmp_path):
    (tmp_path / 'raw').mkdir()
    for split, users in (('train', 20), ('validation', 5), ('test', 4)):
        write_lines(tmp_path / 'raw' / f'{split}.jsonl', raw(30, users, 0, name=split))
    c = config(tmp_path, raw=str(tmp_path / 'raw'))
    _, findings = checked(c)
    held, users, clusters, of = of_ingest(c)
    assert f'evaluation: {held} of {users} users, in {clusters} of {of} clusters;' in findings.facts[0] and held == 5


def test_a_missing_salt_makes_it_an_estimate(tmp_path):
    c = config(tmp_path, conversations=str(tmp_path / 'data' / 'conversations'))
    c.ingest.salt = str(tmp_path / 'apart' / 'salt')
    write_lines(tmp_path / 'raw.jsonl', raw(60, 20, 0))
    assert not checked(c)[0].exact and not (tmp_path / 'apart').exists()
    ingest.STAGE.run(c)
    assert checked(c)[0].exact


def test_a_sample_gives_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, 'MAX_RECORDS', 60)
    write_lines(tmp_path / 'raw.jsonl', raw(600, 300, 0))
    assignment, findings = checked(config(tmp_path))
    assert not assignment.exact and sum(cluster.conversations for cluster in assignment.clusters) == 60
    assert 'estimated from a sample; the largest cluster' in findings.facts[0] and 'about' in findings.facts[0]


@pytest.mark.parametrize(
    'sizes, words',
    [
        ((6, 5), ['6 of 11 users, and all of them go to the same split']),
        ((5, 5, 1), []),
        ((11,), ['11 of 11 users, and all of them go to the same split']),
        ((1,), ['all conversations are from one user']),
    ],
)
def test_a_cluster_of_most_users_is_named(sizes, words, tmp_path):
    clusters = [Cluster('validation', 2 * users, users) for users in sizes]
    findings = Findings()
    check_held_out(config(tmp_path), None, Assignment(clusters, known=True, exact=True), findings)
    assert len(findings.problems) == len(words)
    assert all(word in problem.text for word, problem in zip(words, findings.problems, strict=True))
