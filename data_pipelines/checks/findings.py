"""What a check finds: facts to print, and problems with their remedies."""

from typing import NamedTuple


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
