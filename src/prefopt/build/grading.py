"""What data pipelines ask graders: which of many solutions are right. All at once, since graders work in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from prefopt.text.problems import Problem

P_contra = TypeVar("P_contra", bound=Problem, contravariant=True)
P = TypeVar("P", bound=Problem)


class Grade(Protocol[P_contra]):
    """Whether each (problem, solution text) reaches the right answer, in order."""

    def __call__(self, solutions: Sequence[tuple[P_contra, str]]) -> Sequence[bool]:
        """One verdict per solution."""
        ...


def one_by_one(is_right: Callable[[P, str], bool]) -> Grade[P]:
    """A grade from a function of one solution, such as the oracle of a world."""

    def grade(solutions: Sequence[tuple[P, str]]) -> list[bool]:
        return [is_right(problem, text) for problem, text in solutions]

    return grade
