"""Win rates of a model against a baseline from the verdicts of a judge: raw, over both positions, and compared.

All rates are in percent. A verdict that is missing (the judge failed, its answer could not be read) never counts as a
win, tie or loss; it is left out and counted. Win rates that take the lengths of the answers into account are in
`grade/length_controlled.py`, strengths of more than two models in `grade/bradley_terry.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from prefopt.grade.statistics import Estimate, bootstrap_mean, mcnemar, wilson

Verdict = Literal["win", "tie", "loss", "missing"]
"""What a judge says of the model's answer to one prompt, next to the baseline's; `missing`: nothing."""

Judged: TypeAlias = Verdict | float | None
"""A verdict, or a preference in [1, 2]: 1 the baseline's answer, 2 the model's, 1.5 and 0 a draw. None and NaN are
missing."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How an interval is made: the statistic on prompts drawn with replacement, and quantiles of it."""

    level: float = 0.95
    resamples: int = 1000
    seed: int = 0
    """Equal seeds give equal intervals."""

    def __post_init__(self) -> None:
        """Refuse what no interval can be made of.

        Raises:
            ValueError: no resample, or a level outside of 0 to 1.
        """
        if self.resamples < 1:
            raise ValueError(
                f"{self.resamples} resamples make no interval; give 1 or more, such as 1000"
            )
        if not 0 < self.level < 1:
            raise ValueError(
                f"the level is {self.level}; give a number between 0 and 1, such as 0.95"
            )


USUAL = Bootstrap()
"""A 95% interval from 1000 resamples."""


class WinRate(NamedTuple):
    """A win rate with its interval, in percent, and what it was counted from."""

    value: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    missing: int
    """Prompts without a verdict; not part of the rate."""
    inconsistent: int = 0
    """Of the ties, those whose two verdicts disagree; 0 where each prompt is judged once."""


class Comparison(NamedTuple):
    """How much higher the win rate of the second of two models is, over the prompts on which both have a verdict."""

    value: float
    """Points of percent; positive: the second wins more."""
    low: float
    high: float
    p: float
    """Two-sided, of the exact sign test on the prompts where the two differ."""
    better: int
    """Prompts on which the second did better."""
    worse: int
    equal: int
    missing: int
    """Prompts (or turns of them) on which one of the two has no verdict, or both; left out."""


_ROUNDING = 1e-12
_SHARES: Mapping[str, float | None] = {"win": 1.0, "tie": 0.5, "loss": 0.0, "missing": None}
_OPPOSITE: Mapping[Verdict, Verdict] = {
    "win": "loss",
    "tie": "tie",
    "loss": "win",
    "missing": "missing",
}


def share_of(judged: Judged) -> float | None:
    """The part of a win that a verdict is worth: 1, 0.5 or 0; ``preference - 1``; None where it is missing.

    A preference of 0 is a draw, as AlpacaEval stores some.

    Raises:
        ValueError: no verdict and no preference, such as True or False.
    """
    if isinstance(judged, (bool, np.bool_)):
        raise ValueError(  # noqa: TRY004 (wrong verdicts of all kinds are one error)
            f"{judged} is no verdict and no preference; write 'win' or 'loss', or 2 or 1"
        )
    if isinstance(judged, str):
        if judged not in _SHARES:
            raise ValueError(f"{judged!r} is no verdict; known are {', '.join(_SHARES)}")
        return _SHARES[judged]
    if judged is None or math.isnan(judged):
        return None
    if judged == 0:
        return 0.5
    if not 1 <= judged <= 2:
        raise ValueError(
            f"the preference {judged} is not between 1 (baseline) and 2 (model); 0 and 1.5 are draws, None is missing"
        )
    return judged - 1


def shares_of(verdicts: Sequence[Judged]) -> list[float | None]:
    """The part of a win that each verdict is worth (`share_of`).

    Raises:
        ValueError: one that is none; its number is named. Or numbers that are on another scale (`require_preferences`).
    """
    shares: list[float | None] = []
    for number, verdict in enumerate(verdicts, start=1):
        try:
            shares.append(share_of(verdict))
        except ValueError as error:
            raise ValueError(f"verdict {number} of {len(verdicts)}: {error}") from error
    require_preferences(verdicts)
    return shares


def require_preferences(verdicts: Iterable[Judged]) -> None:
    """Nothing, unless all numbers are 0 or 1 and both are there.

    Raises:
        ValueError: they are; most likely losses and wins on another scale, on which every rate would be wrong.
    """
    numbers = {
        v for v in verdicts if v is not None and not isinstance(v, str) and not math.isnan(v)
    }
    if numbers == {0, 1}:
        raise ValueError(
            "the preferences are all 0 or 1, but here 1 is a loss, 2 a win and 0 a draw; add 1 to each if they are "
            "losses and wins, or write 1.5 for a draw"
        )


def verdict_of(judged: Judged) -> Verdict:
    """The verdict nearest to a preference: a win above 1.5, a loss below; verdicts stay what they are.

    Raises:
        ValueError: no verdict and no preference.
    """
    share = share_of(judged)
    if share is None:
        return "missing"
    if share == 0.5:
        return "tie"
    return "win" if share > 0.5 else "loss"


def turned(judged: Judged) -> Verdict:
    """The same verdict as the other side sees it, for judges that name a position instead of a model.

    Raises:
        ValueError: no verdict and no preference.
    """
    return _OPPOSITE[verdict_of(judged)]


def combine_positions(first: Judged, second: Judged) -> Verdict:
    """The one verdict from two that saw the answers in opposite order: theirs if they agree, else a tie.

    Missing if either is. Both are about the model, whatever its position; `turned` makes such a verdict from one about
    positions. Zheng et al. 2023, arXiv 2306.05685, section 3.4; `show_result.py` of lm-sys/FastChat.

    Raises:
        ValueError: no verdict and no preference.
    """
    verdicts = verdict_of(first), verdict_of(second)
    if "missing" in verdicts:
        return "missing"
    return verdicts[0] if verdicts[0] == verdicts[1] else "tie"


def win_rate(
    verdicts: Sequence[Judged],
    *,
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> WinRate:
    """The raw win rate, ``100 * mean(share)`` over the verdicts that are there, with its bootstrap interval.

    A tie is half a win, a preference of 1.7 is 0.7 wins; counts go by the side of 1.5 that a preference lies on. Where
    every prompt has the same share of wins, so has every resample, and the interval is Wilson's (`bounded_mean`).

    Args:
        verdicts: one per prompt.
        clusters: the prompt of each verdict, where prompts have several; whole prompts are drawn then.
        bootstrap: of the interval.

    Raises:
        ValueError: no verdict at all, one that is none, or as many clusters as verdicts are not given.
    """
    if clusters is not None and len(clusters) != len(verdicts):
        raise ValueError(
            f"{len(verdicts)} verdicts and {len(clusters)} clusters; give one for each"
        )
    shares = shares_of(verdicts)
    there = [at for at, share in enumerate(shares) if share is not None]
    if not there:
        raise ValueError(
            f"none of {len(shares)} verdicts is there; a win rate needs at least one that is not missing"
        )
    estimate = bounded_mean(
        [100 * share for share in shares if share is not None],
        bounds=(0, 100),
        clusters=None if clusters is None else [clusters[at] for at in there],
        bootstrap=bootstrap,
    )
    found = [verdict_of(verdict) for verdict in verdicts]
    return WinRate(
        *estimate,
        wins=found.count("win"),
        ties=found.count("tie"),
        losses=found.count("loss"),
        missing=found.count("missing"),
    )


def adjusted_win_rate(
    first: Sequence[Judged],
    second: Sequence[Judged],
    *,
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> WinRate:
    """The win rate of prompts that were judged in both positions: ``100 (wins + ties / 2) / (wins + ties + losses)``.

    Verdicts that disagree make a tie, and a prompt with a missing one is left out and counted, as in FastChat's
    `show_result.py` (its `win_rate_adjusted`, which is a fraction). Preferences count by the side of 1.5 they lie on.

    Args:
        first: about the model, one per prompt, when its answer came first.
        second: about the model, of the same prompts in the same order, when its answer came second.
        clusters: what several verdicts of one prompt have in common; see `win_rate`.
        bootstrap: of the interval, over prompts.

    Raises:
        ValueError: unequal lengths, no prompt with both verdicts, or something that is no verdict.
    """
    _check_sides(first, second)
    combined: list[Verdict] = [combine_positions(a, b) for a, b in zip(first, second, strict=True)]
    rate = win_rate(combined, clusters=clusters, bootstrap=bootstrap)
    agreed = sum(
        verdict_of(a) == "tie" == verdict_of(b) for a, b in zip(first, second, strict=True)
    )
    return rate._replace(inconsistent=rate.ties - agreed)


def compare_models(
    first: Sequence[Judged],
    second: Sequence[Judged],
    *,
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Comparison:
    """The second model's win rate minus the first's, both against one baseline on the same prompts.

    ``100 * mean(share2 - share1)`` over the prompts on which both have a verdict: prompts that are easy for both drop
    out of the difference, so its interval is narrower than those of the two rates suggest.

    Args:
        first: verdicts of the first model against the baseline, one per prompt.
        second: those of the second, of the same prompts in the same order.
        clusters: the prompt of each verdict, where prompts have several (turns): whole prompts are drawn then, and the
            test counts on which of them the sum of the differences has which sign.
        bootstrap: of the interval, over prompts.

    Raises:
        ValueError: unequal lengths, no prompt with both verdicts, or something that is no verdict.
    """
    _check_sides(first, second)
    if clusters is not None and len(clusters) != len(first):
        raise ValueError(f"{len(first)} verdicts and {len(clusters)} clusters; give one for each")
    prompts = range(len(first)) if clusters is None else clusters
    both = [
        (prompt, b - a)
        for prompt, a, b in zip(prompts, shares_of(first), shares_of(second), strict=True)
        if a is not None and b is not None
    ]
    if not both:
        raise ValueError(
            f"no prompt of {len(first)} has verdicts for both models; compare them on prompts that both were judged on"
        )
    sums: dict[Hashable, float] = {}
    for prompt, difference in both:
        sums[prompt] = sums.get(prompt, 0.0) + difference
    better, worse = sum(d > 0 for d in sums.values()), sum(d < 0 for d in sums.values())
    return Comparison(
        *bounded_mean(
            [100 * difference for _, difference in both],
            bounds=(-100, 100),
            clusters=[prompt for prompt, _ in both],
            bootstrap=bootstrap,
        ),
        p=mcnemar(better, worse),
        better=better,
        worse=worse,
        equal=len(sums) - better - worse,
        missing=len(first) - len(both),
    )


def bounded_mean(
    values: Sequence[float],
    *,
    bounds: tuple[float, float],
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Estimate:
    """The mean of values that lie between two bounds, with its bootstrap interval.

    Clusters of equal means make equal resamples (`all_alike`), although a few of them say little: the interval is then
    ``m - (m - low) u`` to ``m + (high - m) u``, where u is the most that Wilson's interval allows for the part of other
    clusters, given none among n. For nothing but wins (or losses) this is Wilson's interval of their number.

    Args:
        values: at least one.
        bounds: the least and the greatest that a value can be.
        clusters: what each value belongs to; whole clusters are drawn, and n is their number.
        bootstrap: of the interval.

    Raises:
        ValueError: no values, or not one cluster for each.
    """
    estimate = bootstrap_mean(
        values,
        clusters=clusters,
        level=bootstrap.level,
        resamples=bootstrap.resamples,
        seed=bootstrap.seed,
    )
    if not all_alike(values, clusters):
        return estimate
    count = len(values) if clusters is None else len(set(clusters))
    unseen, m = wilson(0, count, level=bootstrap.level).high, estimate.value
    return Estimate(m, m - (m - bounds[0]) * unseen, m + (bounds[1] - m) * unseen)


def all_alike(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> bool:
    """Whether the means of all clusters are equal (up to rounding), so that a bootstrap over clusters says nothing.

    So it is with one cluster, and with a win and a loss in each, as of a judge that looks at nothing but the position.
    """
    groups: dict[Hashable, list[float]] = {}
    for label, value in zip(
        range(len(values)) if clusters is None else clusters, values, strict=True
    ):
        groups.setdefault(label, []).append(value)
    means = [math.fsum(group) / len(group) for group in groups.values()]
    size = max(map(abs, values), default=0.0)
    return max(means, default=0.0) - min(means, default=0.0) <= _ROUNDING * size


def _check_sides(first: Sequence[Judged], second: Sequence[Judged]) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"the sides have {len(first)} and {len(second)} verdicts; give one of each for every prompt"
        )
