"""What a judge of reasoning is asked and what it answers: the first wrong step of a solution. No models, no servers.

Language models, process reward models, roll-outs, exact oracles and people implement `Locator`; pipelines take one
and count what became of each solution. The solutions' steps are those of `prefopt.text.steps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from prefopt.generate.journal import Journal, Progress

Verdict = Literal["found", "none", "undecided", "missing", "failed"]


class WrongSolution(NamedTuple):
    """A solution that is to be judged; its final answer is known to be wrong, unless `locate` is told otherwise."""

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
    """`found`; `none`: the judge finds no wrong step. Only these two are judgements.

    `undecided`: there will be none (no numbered steps, too long for the judge, unreadable after all attempts, a
    person's unclear or skip). `missing`: a person has not judged yet. `failed`: the server refused; asked again."""
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
        right: bool = False,
    ) -> list[Location]:
        """One location per solution, in their order.

        Args:
            solutions: what to judge; their ids are unique.
            journal: where everything generated on the way is kept, so that a second run repeats nothing.
            progress: called with (done, in all).
            right: the solutions reach the right answer; the question is whether a step is wrong all the same.
        """
        ...
