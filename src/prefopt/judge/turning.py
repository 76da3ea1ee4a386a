"""Roll-outs as a judge: the step at which a policy stops getting there.

How often continuations end right depends on the problem, so no threshold tells a wrong step on a hard problem from a
right one. What tells it is the fall: before the first wrong step continuations end right at some rate, after it hardly
ever.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import ConfigError
from prefopt.generate.journal import Journal, Progress
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.rollout import Draw, RolloutScorer, Tally
from prefopt.text.steps import split_steps

_FALL = 0.05
"""Rate after the first wrong step as a share of the rate before it: luck and corrections leave some."""
_SURE = 0.95
"""Probability of a step from which no more continuations are drawn."""
_LIKELIER_THAN_NOT = 0.5
_RATES = (np.arange(200) + 0.5) / 200
"""Rates before the first wrong step, all equally likely beforehand."""


def wrong_step_odds(
    right: Sequence[int], drawn: Sequence[int], *, ends_right: bool = False
) -> list[float]:
    """Probability that step 1, 2, ... is the first wrong one, given what continuations from each place came to.

    ``right[k]`` of ``drawn[k]`` continuations from after step k (0: from before the first) end right. Model: they
    do so at one unknown rate p (uniform in [0, 1]) from all places before the first wrong step and at 0.05 p from
    all places after it; every step is as likely as the others beforehand. Hence

        P(step e) ~ integral over p of p^R (1 - p)^(N - R) (0.05 p)^r (1 - 0.05 p)^(n - r)

    with R right of N drawn from after steps 0..e-1 and r of n from after steps e and later.

    Args:
        right: one number per place, as many as the solution has steps.
        drawn: the same.
        ends_right: the solution itself ends right. It counts as a right continuation from after its last step, and
            one more probability follows the others: that no step is wrong.
    """
    if ends_right:
        right, drawn = [*right, 1], [*drawn, 1]
    hits = np.cumsum([0, *right])
    misses = np.cumsum([0, *drawn]) - hits
    logs: NDArray[np.float64] = np.stack([
        hits[e] * np.log(_RATES) + misses[e] * np.log1p(-_RATES)
        + (hits[-1] - hits[e]) * np.log(_FALL * _RATES)
        + (misses[-1] - misses[e]) * np.log1p(-_FALL * _RATES)
        for e in range(1, len(right) + 1)
    ])  # fmt: skip
    weights = np.exp(logs - logs.max()).sum(axis=1)
    return [float(weight) for weight in weights / weights.sum()]


class _Case:
    """One solution and what its continuations came to so far."""

    def __init__(self, place: int, steps: int, *, right: bool) -> None:
        self.place = place
        self.right = [0] * steps
        self.drawn = [0] * steps
        self.refused = False
        self.ends_right = right

    def add(self, draw: Draw, tally: Tally) -> None:
        self.right[draw.step] += tally.right
        self.drawn[draw.step] += tally.answered
        self.refused |= tally.answered < draw.samples

    def odds(self) -> list[float]:
        return wrong_step_odds(self.right, self.drawn, ends_right=self.ends_right)

    def next_place(self, most: int) -> int | None:
        """Where more continuations help; None where the step is sure, or nothing may be drawn any more.

        Two steps differ in the places between them, so those between the likeliest ones are wanted. Before anything
        ended right, that is the very beginning: it says whether this policy gets there at all.
        """
        open_ = [k for k, drawn in enumerate(self.drawn) if drawn < most]
        if not any(self.right):
            return 0 if 0 in open_ else None
        odds = self.odds()
        likeliest = sorted(range(len(odds)), key=lambda k: -odds[k])
        if odds[likeliest[0]] >= _SURE:
            return None
        for several in (2, 3):
            low, high = min(likeliest[:several]), max(likeliest[:several])
            between = [k for k in range(low + 1, high + 1) if k in open_]
            if between:
                return min(between, key=lambda k: self.drawn[k])
        return None

    def location(self, *, refused_for_good: bool) -> Location:
        shares = " ".join(f"{r}/{n}" for r, n in zip(self.right, self.drawn, strict=True))
        shown = f"right continuations from before step 1, 2, ...: {shares}"
        if self.refused and not refused_for_good:
            return Location(None, "failed", f"some continuations were refused; {shown}")
        if not any(self.right):
            return Location(None, "undecided", f"no continuation ends right; {shown}")
        odds = self.odds()
        number = odds.index(max(odds)) + 1
        if odds[number - 1] < _LIKELIER_THAN_NOT:
            return Location(None, "undecided", f"no step is likelier than not; {shown}")
        if number > len(self.right):
            return Location(None, "none", f"no wrong step: probability {max(odds):.2f}; {shown}")
        return Location(number, "found", f"probability {max(odds):.2f}; {shown}")


class RolloutLocator:
    """`Locator` that takes the step at which continuations stop ending right (`wrong_step_odds`).

    At first every place gets the scorer's number of samples. Where that leaves doubt, the places that would settle it
    get more, each time twice what they have, until one step has probability 0.95 or the limit is reached. A step is
    named if it is likelier than not.
    """

    def __init__(self, scorer: RolloutScorer, *, effort: int = 8) -> None:
        """Wrap a scorer.

        Args:
            scorer: draws continuations; its `samples` are those of the first round.
            effort: places in doubt get up to so many times `samples`; 1 is no second round.

        Raises:
            ConfigError: `effort` is below 1, or the scorer is greedy, so that all samples are the same.
        """
        if effort < 1:
            raise ConfigError(f"roll-outs: effort is {effort}; use 1 or more")
        if scorer.sampling.temperature == 0:
            raise ConfigError(
                "roll-outs: continuations at temperature 0 are all the same; raise the temperature"
            )
        self._scorer = scorer
        self._most = effort * scorer.samples

    @property
    def name(self) -> str:
        """That of the scorer."""
        return self._scorer.name

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[Location]:
        """One location per solution, in their order; the remark holds the counts of all places.

        `undecided` are solutions without numbered steps, without a right continuation from anywhere, or without a
        step that is likelier than not. `failed`: a server refused continuations. Progress counts continuations; their
        number grows while places are in doubt.

        Raises:
            RecordError: two solutions have the same id.
        """
        lengths = [len(split_steps(solution.text).steps) for solution in solutions]
        cases = {k: _Case(k, n, right=right) for k, n in enumerate(lengths) if n}
        samples = self._scorer.samples
        draws = [Draw(k, step, 0, samples) for k in cases for step in range(lengths[k])]
        counter = _Counter(progress)
        while draws:
            tallies = self._scorer.draw(solutions, draws, journal=journal, progress=counter.shown())
            for draw, tally in zip(draws, tallies, strict=True):
                cases[draw.place].add(draw, tally)
            counter.add(draws)
            # A server that refuses once is not asked for more: the next run starts where this one stops.
            going = [case for case in cases.values() if not case.refused]
            draws = [draw for case in going if (draw := self._more(case)) is not None]
        final = self._scorer.refuses_for_good()
        return [
            cases[k].location(refused_for_good=final) if k in cases else _no_steps()
            for k in range(len(solutions))
        ]

    def _more(self, case: _Case) -> Draw | None:
        step = case.next_place(self._most)
        if step is None:
            return None
        there = case.drawn[step]
        return Draw(case.place, step, there, min(there, self._most - there))


class _Counter:
    """Progress over several rounds of draws."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._before = 0

    def shown(self) -> Progress | None:
        progress, before = self._progress, self._before
        return None if progress is None else lambda done, of: progress(before + done, before + of)

    def add(self, draws: Sequence[Draw]) -> None:
        self._before += sum(draw.samples for draw in draws)


def _no_steps() -> Location:
    return Location(None, "undecided", "not continued: the solution has no numbered steps")
