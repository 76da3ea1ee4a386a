"""Intervals and tests for counted outcomes: how sure a measured accuracy, or a difference of two, is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import MissingExtraError

_BLOCK = 1 << 22
"""Random indices drawn at a time, to bound memory."""


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference and its confidence interval."""

    value: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    value: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """The mean of paired differences, its interval, and how likely one so far from 0 is by chance."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided."""
    pairs: int
    """How many differences there were."""


def paired_t(differences: Sequence[float], *, level: float = 0.95) -> PairedTest:
    """Mean, interval and p-value of Student's t-test on paired differences, for a few seeds.

    ``mean ± t(count - 1) s / sqrt(count)``; with so few values a normal or bootstrap interval would be too narrow.
    Differences that are all equal have an interval of width 0, and p is 0 (1 if they are all 0).

    Raises:
        MissingExtraError: scipy is not installed.
        ValueError: fewer than two differences.
    """
    count = len(differences)
    if count < 2:
        raise ValueError(f"paired_t: {count} differences; give at least 2")
    values = np.asarray(differences, dtype=np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return PairedTest(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    student = _student()
    half = float(student.ppf(0.5 + level / 2, count - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, count - 1))
    return PairedTest(mean, mean - half, mean + half, p, count)


def _student() -> Any:  # scipy has no annotations
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingExtraError(
            "a t-test needs scipy, which is not installed; run: pip install 'prefopt[eval]'"
        ) from error
    return t


def wilson(correct: int, total: int, *, level: float = 0.95) -> Interval:
    """The Wilson score interval of a proportion; (0, 1) when nothing was counted.

    ``(p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)``. Wilson 1927, J. Am. Stat. Assoc. 22.
    Unlike the normal interval it stays within [0, 1] and has width at 0 and at n correct.

    Raises:
        ValueError: `correct` is not between 0 and `total`, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct out of {total} is impossible")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, n = correct / total, total
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the two terms are equal but for rounding.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == total else (centre + spread) / scale
    return Interval(low, high)


def mcnemar(b: int, c: int) -> float:
    """The two-sided exact p-value of McNemar's test: how likely so uneven a split of b + c items is by chance.

    Twice the smaller tail of Binomial(b + c, 1/2), at most 1. Items on which both sides agree do not count.

    Args:
        b: items that only the first is right on.
        c: items that only the second is right on.

    Raises:
        ValueError: a count is negative.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts cannot be negative: {b}, {c}")
    n = b + c
    term = tail = 1
    for k in range(min(b, c)):
        term = term * (n - k) // (k + 1)
        tail += term
    # Division of whole numbers is exactly rounded, however large they are.
    return min(1.0, 2 * tail / (1 << n))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The mean of ``second - first`` over paired items and its percentile bootstrap interval.

    Args:
        first: one value per item.
        second: values of the same items in the same order.
        level: of the interval.
        resamples: item sets drawn with replacement.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: unequal lengths, no items, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if len(first) != len(second) or not first:
        raise ValueError(
            f"the sides have {len(first)} and {len(second)} items; give the same number, at least 1"
        )
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    means = _resampled_means(differences, resamples, np.random.default_rng(seed))
    return Difference(float(differences.mean()), *percentile_interval(means, level))


def bootstrap_mean(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The mean of values and its percentile bootstrap interval.

    Args:
        values: at least one.
        clusters: what each value belongs to (the prompt of a sample); whole clusters are drawn then, since values
            of one cluster tell less than as many independent ones. None: each value by itself.
        level: of the interval.
        resamples: sets drawn with replacement.
        seed: equal seeds give equal intervals.

    Raises:
        ValueError: no values, as many clusters as values are not given, or `level` is not between 0 and 1.
    """
    _check_level(level)
    if not values:
        raise ValueError("no values to take the mean of; give at least 1")
    labels = range(len(values)) if clusters is None else clusters
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values and {len(labels)} clusters; give one for each")
    rows: dict[Hashable, int] = {}
    index = np.array([rows.setdefault(label, len(rows)) for label in labels])
    given = np.asarray(values, dtype=np.float64)
    sums = np.bincount(index, weights=given).astype(np.float64)
    counts = np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    # The same draws for both: a mean of resampled clusters is the ratio of two resampled sums.
    state = rng.bit_generator.state
    totals = _resampled_means(sums, resamples, rng)
    rng.bit_generator.state = state
    means = totals / _resampled_means(counts, resamples, rng)
    return Estimate(float(given.mean()), *percentile_interval(means, level))


def percentile_interval(
    resampled: Sequence[float] | NDArray[np.float64], level: float = 0.95
) -> Interval:
    """The percentile bootstrap interval of a statistic, given its values on resampled data.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    _check_level(level)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


def _resampled_means(
    values: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    n = len(values)
    rows = max(1, _BLOCK // n)
    blocks = [
        values[rng.integers(0, n, size=(min(rows, resamples - done), n))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(blocks)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}; give a number between 0 and 1, such as 0.95")
