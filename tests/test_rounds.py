"""The parts of a round: which are made again, what is said about them, and how long they took."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import card
from rlhi_jax.config import base_config
from rlhi_jax.data.shards import write_shards
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json
from rlhi_jax.loop import Round
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
    with pytest.raises(
        UserError, match='--redo=persona does not name a stage of this loop: choose one of pairs, personas'
    ):
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


class Loop:
    """A round whose parts only note what a reader would find if the process were killed in the middle of each part."""

    def __init__(self, workdir: Path):
        self.config, self.workdir = base_config(), workdir
        self.found: list[tuple[str, str]] = []

    def run(self, work: str, *, fails: str = '', killed: str = '') -> dict[str, Any]:
        """Run parts a to d and the card. Those in `work` have work to do; one may fail, and one may be killed."""
        this_round = Round(self.config, self.workdir)

        def make(name: str) -> Callable[[bool], None]:
            def made(replace: bool) -> None:
                if name in work:
                    this_round.begin()
                self.found.append((name, self.place()))
                if name == fails:
                    raise UserError('too few: bring more')
                if name == killed:
                    raise KeyboardInterrupt

            return made

        parts = [Part(name, self.workdir / name, (), lambda: State.UP_TO_DATE, make(name)) for name in 'abcd']
        parts.append(this_round._stage(card.STAGE))
        this_round.run(parts, redo=False, forced=frozenset())
        return this_round.write_report(None)

    def place(self) -> str:
        """Where the card says that the loop is: '' if it has finished. The report must say the same."""
        text = (self.workdir / 'card' / 'card.md').read_text().replace('\\', '')
        found = re.search(r'reached part (\d) of 5, (\w+)( .*)?[.] Next: run the same command again', text)
        unfinished = read_json(self.workdir / 'report.json', '').get('unfinished')
        assert (unfinished and str(unfinished['number'])) == (found and found[1])
        return found[2] + (found[3] or '') if found else ''


@pytest.fixture
def loop(tmp_path):
    (tmp_path / 'dpo' / 'shards').mkdir(parents=True)
    messages = (Message(-1, 'user', 'x'), Message(0, 'assistant', 'a'), Message(0, 'assistant', 'b'))
    manifest = dict(stage='shards', made_from={}, counts=dict(lines_read=1, pairs_kept=1, trees=1))
    trees = [Interaction('t', messages, (Pair('p', 0, 1, 2),))]
    write_shards(trees, tmp_path / 'dpo' / 'shards', trees_per_shard=1, manifest=manifest)
    return Loop(tmp_path)


def test_at_any_moment_report_and_card_say_where_the_loop_is(loop):
    loop.run('abcd')
    assert loop.found == [(name, name) for name in 'abcd'] and loop.place() == ''


def test_a_loop_that_only_checks_leaves_the_card_of_the_finished_one(loop):
    loop.run('abcd')
    written = (loop.workdir / 'card' / 'card.md').stat().st_mtime_ns
    loop.found.clear()
    loop.run('')
    assert loop.found == [(name, '') for name in 'abcd']
    assert (loop.workdir / 'card' / 'card.md').stat().st_mtime_ns == written


def test_the_card_of_an_earlier_run_goes_when_work_begins(loop):
    loop.run('abcd')
    loop.found.clear()
    loop.run('c')
    assert loop.found == [('a', ''), ('b', ''), ('c', 'c'), ('d', 'd')] and loop.place() == ''
    assert '| pairs kept | 1 |' in (loop.workdir / 'card' / 'card.md').read_text()


def test_a_killed_loop_says_where_it_was_until_it_is_further(loop):
    with pytest.raises(KeyboardInterrupt):
        loop.run('abcd', killed='c')
    assert loop.place() == 'c'
    loop.found.clear()
    loop.run('cd')
    assert loop.found == [('a', 'c'), ('b', 'c'), ('c', 'c'), ('d', 'd')]


def test_a_loop_that_failed_says_why_until_it_is_further(loop):
    with pytest.raises(UserError):
        loop.run('abcd', fails='b')
    assert loop.place() == 'b (too few: bring more)'
    assert '| pairs kept | 1 |' in (loop.workdir / 'card' / 'card.md').read_text()  # the whole card
    loop.found.clear()
    loop.run('')  # the cause is gone, and nothing is left to do
    assert loop.found[0][1].startswith('b ') and loop.place() == ''


def test_without_any_folder_the_card_says_why_the_loop_stopped(loop):
    shutil.rmtree(loop.workdir / 'dpo')
    with pytest.raises(UserError):
        loop.run('abcd', fails='a')
    assert loop.place() == 'a (too few: bring more)'
    assert 'No stage has finished.' in (loop.workdir / 'card' / 'card.md').read_text()
    assert (loop.workdir / 'card').stat().st_mode & 0o77 == 0
