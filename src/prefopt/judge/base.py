"""What a judge of reasoning is asked and what it answers: the first wrong step of a solution. No models, no servers.

Language models, process reward models, roll-outs, exact oracles and people implement `Locator`; pipelines take one
and count what became of each solution. The solutions' steps are those of `prefopt.text.steps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from prefopt.generate.journal import Journal, Progress

Verdict = Literal["found", "none", "missing", "failed"]


class WrongSolution(NamedTuple):
    """A solution whose final answer is known to be wrong."""

    id: str
    """Of this solution, unique within one call: two solutions of one problem have two ids."""
    question: str
    gold: str
    """A worked solution that is right; may be empty."""
    answer: str
    """The right final answer."""
    text: str
    """The whole solution as the model wrote it, opening included."""


class Location(NamedTuple):
    """Where a solution goes wrong, as one judge sees it."""

    number: int | None
    """The first wrong step, from 1; None unless the verdict is `found`."""
    verdict: Verdict
    """`found`; `none`: the judge finds no wrong step; `missing`: no verdict could be read, or a person has not
    judged yet; `failed`: the server refused. Only the first two are judgements."""
    remark: str = ""
    """The judge's own words, or why there is no judgement."""


class Locator(Protocol):
    """Something that finds first wrong steps."""

    @property
    def name(self) -> str:
        """Short name for reports and records (`llm`, `oracle`, `human`, ...)."""
        ...

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
    ) -> list[Location]:
        """One location per solution, in their order.

        Args:
            solutions: what to judge; their ids are unique.
            journal: where everything generated on the way is kept, so that a second run repeats nothing.
            progress: called with (done, in all).
        """
        ...
