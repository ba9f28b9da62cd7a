"""What a check finds: facts to print, and problems with their remedies."""

import sys
from typing import NamedTuple

from rlhi_jax.io.errors import UserError


class Problem(NamedTuple):
    """A problem, described in one sentence with its remedy.

    Attributes:
      stops: whether the problem would stop the loop; if not, the loop runs, but with a poorer result.
      text: the description.
    """

    stops: bool
    text: str


class Findings:
    """The facts and problems that checks have found so far."""

    def __init__(self) -> None:
        self.facts: list[str] = []
        self.problems: list[Problem] = []

    def fact(self, text: str) -> None:
        self.facts.append(text)

    def stop(self, text: str) -> None:
        self.problems.append(Problem(True, text))

    def warn(self, text: str) -> None:
        self.problems.append(Problem(False, text))

    @property
    def stops(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.stops]

    def raise_if_any_stops(self) -> None:
        """Print every problem.

        Raises:
          UserError: at least one of the problems would stop the loop.
        """
        for problem in self.problems:
            print(f'{"error" if problem.stops else "warning"}: {problem.text}', file=sys.stderr, flush=True)
        if self.stops:
            raise UserError(
                'the loop would stop later for the reasons above: run `python -m rlhi_jax.check` to see the details'
            )
