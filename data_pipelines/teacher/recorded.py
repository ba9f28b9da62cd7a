"""Replays a teacher's recorded answers, so that a run with the same requests does not need the teacher.

If `config.teacher.cache` ends in `.jsonl`, it is the path of a file of recorded answers. Each line is a JSON object
with the digest of a `request`, the `text` of the answer, and whether the answer is `finished`. The file is never
changed. `launch/record.sh` shows how to make such a file from an SQLite cache.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from rlhi_jax.io.errors import UserError

SUFFIX = '.jsonl'


class RecordedAnswers:
    """Recorded answers, keyed by the digest of the request, for use instead of a cache and an endpoint.

    Raises:
      UserError: the file is missing, or a line is not an answer.
    """

    def __init__(self, path: str):
        self._path, self._answers = path, {}
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise UserError(
                f'config.teacher.cache: cannot read the recorded answers in {path} ({error.strerror}): set the key to '
                'an existing file of recorded answers'
            ) from None
        for number, line in enumerate(lines, start=1):
            try:
                answer = json.loads(line)
                self._answers[answer['request']] = str(answer['text']), bool(answer['finished'])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(
                    f'config.teacher.cache: {path}, line {number} is not a recorded answer: restore the file'
                ) from None

    def get(self, name: str) -> tuple[str, bool] | None:
        """Return (answer, whether it is complete) for a request, or None if no answer to it was recorded."""
        return self._answers.get(name)

    def refuse_new(self) -> None:
        """Raise UserError: new answers cannot be added to the file, so the teacher must not be asked for any."""
        raise UserError(
            f'config.teacher.cache: the answers recorded in {self._path} do not cover this config and data: set the '
            'key to a path that does not end in .jsonl, so that the teacher is asked'
        )

    def put(self, name: str, text: str, finished: bool, authors: Iterable[str]) -> None:
        """Do nothing, because every answer is already in the file. (`AnswerCache.put` stores the answer.)"""

    def close(self) -> None:
        """Do nothing, because no file is open. (`AnswerCache.close` closes its file.)"""
