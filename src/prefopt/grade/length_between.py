"""The length-controlled win rate of one model over another, from the fits of both against one baseline.

`grade/length_controlled.py` fits them; its `winrate_between` is the rate without an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.grade.length_controlled import (
    BASELINE,
    LengthControlled,
    LengthWeights,
    winrate_between,
)
from prefopt.grade.statistics import Interval, percentile_interval


class Between(NamedTuple):
    """A length-controlled win rate of one model over another, in percent."""

    value: float
    interval: Interval | None
    """Over prompts, and wide enough to hold `value`; None where there is none (`remarks` say why)."""
    remarks: tuple[str, ...]
    """On the interval; what is to be said of the fits is with them."""


def length_controlled_between(
    model: LengthControlled | None,
    other: LengthControlled | None,
    *,
    difficulty: Sequence[float] | None = None,
    level: float = 0.95,
) -> Between:
    """The length-controlled win rate of a model over another (`winrate_between`) with its interval.

    Both have to be fitted to the same prompts in the same order, with verdicts on the same of them, and with the same
    `Bootstrap`: each resample then drew the same prompts for both, and the interval is that of the rates between the
    weights of each. The prompts of `difficulty`, for which they are computed, stay.

    Args:
        model: its fit; None for the baseline of both.
        other: the same of the other model.
        difficulty: of each instruction, if the fits had any.
        level: of the interval.

    Raises:
        ValueError: the fits are not of the same prompts and resamples, or `difficulty` is needed and not given.
    """
    fits = [fit for fit in (model, other) if fit is not None]
    _require_same_prompts(fits)
    weights = [BASELINE if fit is None else fit.weights for fit in (model, other)]
    value = winrate_between(*weights, difficulty=difficulty)
    if not fits:
        return Between(value, Interval(value, value), ())
    if any(fit.interval is None for fit in fits):
        return Between(value, None, ("no interval: the fits have none",))
    if not all(fit.resampled for fit in fits):
        why = (
            "no interval: where the share of wins is the same at all prompts, resamples say nothing"
        )
        return Between(value, None, (why,))
    _require_same_resamples(fits)
    count = len(fits[0].resampled)
    rates = [
        winrate_between(one, two, difficulty=difficulty)
        for one, two in zip(_drawn(model, count), _drawn(other, count), strict=True)
    ]
    low, high = percentile_interval(rates, level)
    return Between(value, Interval(min(low, value), max(high, value)), ())


def _drawn(fit: LengthControlled | None, count: int) -> Sequence[LengthWeights]:
    return [BASELINE] * count if fit is None else fit.resampled


def _require_same_prompts(fits: Sequence[LengthControlled]) -> None:
    facts = {(len(fit.predicted), fit.missing) for fit in fits}
    if len(facts) > 1:
        (count, missing), (others, theirs) = ((len(f.predicted), f.missing) for f in fits)
        raise ValueError(
            f"the fits are of {count} and {others} prompts, {missing} and {theirs} of them without a verdict; fit both "
            "to the prompts on which both have one"
        )


def _require_same_resamples(fits: Sequence[LengthControlled]) -> None:
    counts = [len(fit.resampled) for fit in fits]
    if len(set(counts)) > 1:
        raise ValueError(
            f"the fits have {counts[0]} and {counts[1]} resamples; give both the same Bootstrap"
        )
