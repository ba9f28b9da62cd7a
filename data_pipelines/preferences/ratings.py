"""Keeps the best-rated and the worst-rated reply to each prompt in a database."""

import pickle
import sqlite3
from collections.abc import Iterator

from data_pipelines.preferences.layouts import Rated
from rlhi_jax.io.files import digest


class Ratings:
    """Stores the best-rated and the worst-rated reply to each prompt in a new database.

    If several replies have the same rating, the first one is stored. If all replies have the same rating, the second
    one counts as the worst. Iterating yields a tuple for each prompt: (id for the prompt's preference, best-rated
    reply, worst-rated reply). The prompts are in the order of their first replies.
    """

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        database.execute('CREATE TABLE ratings (prompt TEXT PRIMARY KEY, name TEXT, best BLOB, worst BLOB)')

    def add(self, rated: Rated, name: str) -> None:
        """Add a reply. If no reply to its prompt has been added before, `name` becomes the id for the preference."""
        prompt = digest(repr(rated.prompt))
        row = self._database.execute('SELECT best, worst FROM ratings WHERE prompt = ?', (prompt,)).fetchone()
        if row is None:
            pickled = pickle.dumps(rated)
            self._database.execute('INSERT INTO ratings VALUES (?, ?, ?, ?)', (prompt, name, pickled, pickled))
            return
        best, worst = map(pickle.loads, row)
        if rated.rating > best.rating:
            self._database.execute('UPDATE ratings SET best = ? WHERE prompt = ?', (pickle.dumps(rated), prompt))
        all_the_same = rated.rating == worst.rating == best.rating and worst.reply == best.reply
        if rated.rating < worst.rating or all_the_same:
            self._database.execute('UPDATE ratings SET worst = ? WHERE prompt = ?', (pickle.dumps(rated), prompt))

    def __iter__(self) -> Iterator[tuple[str, Rated, Rated]]:
        for name, best, worst in self._database.execute('SELECT name, best, worst FROM ratings ORDER BY rowid'):
            yield name, pickle.loads(best), pickle.loads(worst)
