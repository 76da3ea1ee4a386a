"""The judge of worlds: the first wrong step is known exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prefopt.generate.journal import Journal, Progress
from prefopt.judge.base import Location, WrongSolution


class OracleLocator:
    """`Locator` over a function that knows the first wrong step, from 1, or None where no step is wrong."""

    name = "oracle"

    def __init__(self, first_wrong: Callable[[WrongSolution], int | None]) -> None:
        self._first_wrong = first_wrong

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,  # noqa: ARG002 - of the protocol; nothing is generated
        progress: Progress | None = None,
        right: bool = False,  # noqa: ARG002 - of the protocol; what is known does not depend on it
    ) -> list[Location]:
        """One location per solution, in their order; the journal stays as it is."""
        numbers = [self._first_wrong(solution) for solution in solutions]
        if progress is not None:
            progress(len(numbers), len(numbers))
        return [
            Location(None, "none") if number is None else Location(number, "found")
            for number in numbers
        ]
