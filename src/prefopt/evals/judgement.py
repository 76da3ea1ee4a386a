"""The numbers of a judgement: mean grades, win rates, how much the judge looks at positions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from prefopt.errors import MissingExtraError
from prefopt.grade.winrate import (
    Bootstrap,
    Verdict,
    WinRate,
    adjusted_win_rate,
    bounded_mean,
    win_rate,
)
from prefopt.judge.outputs import Contest, Exchange
from prefopt.judge.pairwise import Compared
from prefopt.judge.single import Graded
from prefopt.values import JsonValue

_GRADES = (1.0, 10.0)
"""The least and the greatest grade (`prefopt.judge.readings`)."""
_MANY = Bootstrap(resamples=10_000)


class Grades(NamedTuple):
    """A mean grade with its 95% interval over questions (`bounded_mean`)."""

    value: float | None
    """None where no grade is there."""
    low: float | None
    high: float | None
    graded: int
    """Turns with a grade."""
    missing: int
    """Turns without one; not part of the mean."""


class GradeTable(NamedTuple):
    """Mean grades of a file."""

    all: Grades
    by_turn: dict[str, Grades]
    """More than one turn only."""
    by_category: dict[str, Grades]

    def to_json(self) -> dict[str, JsonValue]:
        """As `judgement.json` holds it."""
        return {
            "all": self.all._asdict(),
            "by_turn": {name: found._asdict() for name, found in self.by_turn.items()},
            "by_category": {name: found._asdict() for name, found in self.by_category.items()},
        }


class LengthControl(NamedTuple):
    """The length-controlled win rate of a contest, as far as it can be had."""

    value: float | None
    low: float | None
    high: float | None
    remarks: tuple[str, ...]


class CategoryRates(NamedTuple):
    """Win rates on the prompts of one category, in percent."""

    raw: WinRate | None
    """Over single verdicts; None where none is there."""
    adjusted: WinRate | None
    """Over both orders; None where one order was asked, or no turn has both verdicts."""
    turns: int
    """That were compared, with a verdict or without."""

    def to_json(self) -> dict[str, JsonValue]:
        """As `judgement.json` holds it."""
        return {
            "raw": None if self.raw is None else self.raw._asdict(),
            "adjusted": None if self.adjusted is None else self.adjusted._asdict(),
            "turns": self.turns,
        }


class RateTable(NamedTuple):
    """Win rates of a model against a baseline, in percent."""

    raw: WinRate | None
    """Over single verdicts, whatever the order of the answers; None where none is there."""
    adjusted: WinRate | None
    """Over both orders; None where one order was asked."""
    length_controlled: LengthControl
    first_preferred: float | None
    """Percentage of the verdicts for one side that are for the answer shown first; 50 is fair."""
    lengths: tuple[float, float]
    """Mean characters of the model's answers and of the baseline's."""
    by_category: dict[str, CategoryRates]
    """Those without any verdict, too."""

    def to_json(self) -> dict[str, JsonValue]:
        """As `judgement.json` holds it."""
        controlled = self.length_controlled
        return {
            "raw": None if self.raw is None else self.raw._asdict(),
            "adjusted": None if self.adjusted is None else self.adjusted._asdict(),
            "length_controlled": {**controlled._asdict(), "remarks": list(controlled.remarks)},
            "first_preferred": self.first_preferred,
            "lengths": list(self.lengths),
            "by_category": {name: rates.to_json() for name, rates in self.by_category.items()},
        }


def grade_table(grades: Sequence[Graded], exchanges: Sequence[Exchange]) -> GradeTable:
    """Means over all turns, by turn and by category, each over the grades that are there."""
    categories = {e.id: e.category for e in exchanges}
    turns = sorted({g.turn for g in grades})
    named = sorted({categories[g.id] for g in grades} - {""})
    return GradeTable(
        _mean(grades),
        {str(t): _mean([g for g in grades if g.turn == t]) for t in turns if len(turns) > 1},
        {name: _mean([g for g in grades if categories[g.id] == name]) for name in named},
    )


def _mean(grades: Sequence[Graded]) -> Grades:
    there = [(g.id, g.score) for g in grades if g.score is not None]
    missing = len(grades) - len(there)
    if not there:
        return Grades(None, None, None, 0, missing)
    found = bounded_mean(
        [score for _, score in there],
        bounds=_GRADES,
        clusters=[name for name, _ in there],
        bootstrap=_MANY,
    )
    return Grades(*found, graded=len(there), missing=missing)


def rate_table(
    compared: Sequence[Compared], contests: Sequence[Contest], *, both: bool
) -> RateTable:
    """Win rates over all turns of all contests; intervals draw whole contests."""
    by_id = {contest.id: contest for contest in contests}
    lengths = [_lengths(by_id[c.id], c.turn) for c in compared]
    groups: dict[str, list[Compared]] = {}
    for each in compared:
        groups.setdefault(by_id[each.id].model.category, []).append(each)
    raw, adjusted, _ = _rates(compared, both=both)
    return RateTable(
        raw=raw,
        adjusted=adjusted,
        length_controlled=_controlled(compared, lengths),
        first_preferred=_share_of_first(compared),
        lengths=_mean_lengths(lengths),
        by_category={
            name: _rates(group, both=both) for name, group in sorted(groups.items()) if name
        },
    )


def _rates(compared: Sequence[Compared], *, both: bool) -> CategoryRates:
    names = [c.id for c in compared]
    if not both:
        return CategoryRates(_raw([c.verdict for c in compared], names), None, len(compared))
    orders = _orders(compared, model_first=True), _orders(compared, model_first=False)
    judged = any(c.verdict != "missing" for c in compared)
    return CategoryRates(
        raw=_raw([*orders[0], *orders[1]], names * 2),
        adjusted=adjusted_win_rate(*orders, clusters=names) if judged else None,
        turns=len(compared),
    )


def _orders(compared: Sequence[Compared], *, model_first: bool) -> list[Verdict]:
    return [c.when(model_first=model_first) for c in compared]


def _raw(verdicts: Sequence[Verdict], names: Sequence[Hashable]) -> WinRate | None:
    if all(verdict == "missing" for verdict in verdicts):
        return None
    return win_rate(verdicts, clusters=names)


def _lengths(contest: Contest, turn: int) -> tuple[int, int]:
    return len(contest.model.answers[turn - 1]), len(contest.baseline.answers[turn - 1])


def _mean_lengths(lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
    count = max(1, len(lengths))
    return sum(a for a, _ in lengths) / count, sum(b for _, b in lengths) / count


def _share_of_first(compared: Sequence[Compared]) -> float | None:
    decided = [s for c in compared for s in c.seen if s.verdict in ("win", "loss")]
    if not decided:
        return None
    return 100 * sum((s.verdict == "win") == s.model_first for s in decided) / len(decided)


def _controlled(compared: Sequence[Compared], lengths: Sequence[tuple[int, int]]) -> LengthControl:
    """From the verdict of each turn; the turns of a contest are drawn together."""
    verdicts: list[Verdict] = [c.verdict for c in compared]
    if all(verdict == "missing" for verdict in verdicts):
        return LengthControl(None, None, None, ("there are no verdicts",))
    from prefopt.grade.length_controlled import length_controlled_winrate

    try:
        found = length_controlled_winrate(
            verdicts,
            [a for a, _ in lengths],
            [b for _, b in lengths],
            clusters=[c.id for c in compared],
        )
    except MissingExtraError as error:
        return LengthControl(None, None, None, (str(error),))
    low, high = (None, None) if found.interval is None else found.interval
    return LengthControl(found.value, low, high, found.remarks)
