"""The parts of a round: which are made again, what is said about them, and how long they took."""

from pathlib import Path

import pytest

from rlhi_jax.io.errors import UserError
from rlhi_jax.rounds.parts import Part, State, announcement, chosen, to_redo
from rlhi_jax.rounds.times import time_spent, timed
from rlhi_jax.rounds.words import summary


def part(name: str, *reads: str, state: State = State.UP_TO_DATE, trains: bool = False) -> Part:
    return Part(name, Path(name), reads, lambda: state, lambda replace: None, trains)


def chain(**states: State) -> list[Part]:
    """A round in which b and c read a, d reads b, and e reads nothing."""
    links = dict(a=(), b=('a',), c=('a',), d=('b',), e=())
    return [part(name, *reads, state=states.get(name, State.UP_TO_DATE)) for name, reads in links.items()]


@pytest.mark.parametrize(
    'states, forced, expected',
    [
        ({}, '', ''),
        (dict(b=State.OUT_OF_DATE), '', 'bd'),
        (dict(a=State.OUT_OF_DATE), '', 'abcd'),
        (dict(b=State.MISSING), '', 'd'),  # a folder that someone removed is made in any case
        (dict(a=State.MISSING, b=State.MISSING, d=State.MISSING), '', 'c'),
        ({}, 'b', 'bd'),
        (dict(e=State.OUT_OF_DATE), 'c', 'ce'),
    ],
)
def test_what_is_made_again(states, forced, expected):
    assert ''.join(each.name for each in to_redo(chain(**states), frozenset(forced))) == expected


def test_training_runs_are_named_apart():
    lines = announcement([part('dpo: pairs'), part('dpo: training', trains=True)]).splitlines()
    assert lines[1] == '  dpo: pairs (dpo: pairs)' and lines[2].startswith('Training runs')
    assert lines[3] == '  dpo: training (dpo: training)'


def test_a_stage_is_chosen_in_each_training_run():
    parts = [part('personas'), part('reward: pairs'), part('dpo: pairs')]
    assert chosen(parts, 'pairs') == {'reward: pairs', 'dpo: pairs'} and chosen(parts, 'personas') == {'personas'}
    with pytest.raises(UserError, match='--redo=persona is not a part of this loop: choose one of pairs, personas'):
        chosen(parts, 'persona')


def test_the_summary_says_what_there_is():
    report = dict(method='rewrites', funnel={})
    assert summary(report) == 'Nothing has been made yet'
    report['funnel'] = dict(follow_ups=dict(mined=41), personas=dict(claims=1), rewrites=dict(kept_train=11))
    assert summary(report) == '41 complaints → 1 claim → 11 rewrites'
    accuracy = dict(accuracy=dict(mean=0.75, low=0.5, high=1.0))
    report['funnel']['dpo: pairs'] = dict(kept_rewrites_train=9, kept_rewrites_validation=4, rewrites_read=13)
    report['dpo'] = dict(evaluation=dict(conditions=dict(empty=accuracy, own=accuracy), pairs=4, users=5))
    assert summary(report).endswith(
        ' → 13 pairs; the policy prefers the chosen reply in 75% [50%, 100%] of 4 held-out pairs from 5 users '
        '(own persona)'
    )
    report['dpo']['evaluation']['users'] = 2
    assert 'in 75% of 4 held-out pairs from 2 users (own persona; too few users for an interval)' in summary(report)
    gaps = {when: dict(gap=dict(mean=mean, low=0.0, high=0.5)) for when, mean in (('before', 0.125), ('after', 0.25))}
    report['satisfaction'] = dict(users=12, models=gaps)
    assert ' 12 simulated users ' in summary(report)
    assert summary(report).endswith('by 0.12 [0.00, 0.50] before training and by 0.25 [0.00, 0.50] after it')


def test_times_add_up_over_restarts(tmp_path):
    for _ in range(2):
        with timed(tmp_path, 'rows'):
            pass
    with pytest.raises(ValueError), timed(tmp_path, 'pairs'):
        raise ValueError
    assert list(time_spent(tmp_path)) == ['rows', 'pairs']
    with open(tmp_path / 'times.jsonl', 'a') as file:
        file.write('{"part": "rows", "seconds": 60.0}\n{"part": "ro')  # the process was killed while writing
    with timed(tmp_path, 'rows'):  # is written to the same line as what the killed process left
        pass
    assert 60 <= time_spent(tmp_path)['rows'] < 61
