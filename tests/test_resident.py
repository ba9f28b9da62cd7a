"""One model in memory: made once under its key, released before another is made."""

import weakref

import pytest

from rlhi_jax.models.resident import Resident


class Model:
    """Counts the models alive; a cycle keeps each one until the garbage collector runs."""

    alive = 0

    def __init__(self):
        type(self).alive += 1
        self.cycle = self
        weakref.finalize(self, Model.died)

    @classmethod
    def died(cls) -> None:
        cls.alive -= 1


@pytest.fixture
def resident():
    Model.alive = 0
    resident = Resident()
    yield resident
    resident.release()


def test_same_key_makes_once(resident):
    made = []
    for _ in range(3):
        resident.get(('model', 1), lambda: made.append('made') or Model())
    assert made == ['made']


def test_releases_before_making(resident):
    alive_before_making = []

    def make():
        alive_before_making.append(Model.alive)
        return Model()

    for key in ('sampler', 'scorer', 'sampler'):
        resident.get(key, make)
    assert alive_before_making == [0, 0, 0]
    assert Model.alive == 1


def test_release_gives_memory_back(resident):
    resident.get('model', Model)
    resident.release()
    assert Model.alive == 0
    resident.get('model', Model)
    assert Model.alive == 1


def test_failure_to_make_keeps_nothing(resident):
    resident.get('model', Model)

    def fail():
        raise ValueError

    with pytest.raises(ValueError):
        resident.get('other', fail)
    assert Model.alive == 0
    assert isinstance(resident.get('other', Model), Model)
