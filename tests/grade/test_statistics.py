"""Intervals and tests against published or independently computed values."""

import math
from fractions import Fraction

import numpy as np
import pytest

from prefopt.grade.statistics import (
    bootstrap_mean,
    mcnemar,
    paired_bootstrap,
    paired_t,
    wilson,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(correct, total, low, high):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_the_ends():
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(10, 10)[0] == pytest.approx(1 - wilson(0, 10)[1])
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_limits_are_where_the_score_test_turns():
    low, high = wilson(37, 90, level=0.9)
    for p in (low, high):
        assert abs(37 / 90 - p) / math.sqrt(p * (1 - p) / 90) == pytest.approx(1.6448536269514722)


@pytest.mark.parametrize(("correct", "total"), [(-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct, total):
    with pytest.raises(ValueError, match=f"{correct} correct out of {total} is impossible"):
        wilson(correct, total)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_the_level_is_a_probability(level):
    with pytest.raises(ValueError, match="the level is"):
        wilson(1, 2, level=level)


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (10, 2, 0.03857421875)],
)
def test_mcnemar_literals(b, c, p):
    assert mcnemar(b, c) == p
    assert mcnemar(c, b) == p


def test_mcnemar_is_the_sum_of_the_binomial_tails():
    def by_definition(b, c):
        n, extreme = b + c, abs(b - c)
        hits = sum(math.comb(n, k) for k in range(n + 1) if abs(2 * k - n) >= extreme)
        return float(Fraction(hits, 2**n))

    for b in range(12):
        for c in range(12):
            assert mcnemar(b, c) == by_definition(b, c)


def test_mcnemar_of_many_items_neither_overflows_nor_vanishes():
    # Normal approximation with continuity correction: z = (|b - c| - 1) / sqrt(b + c).
    z = 199 / math.sqrt(5000)
    assert mcnemar(2600, 2400) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=2e-3)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="negative: -1, 3"):
        mcnemar(-1, 3)


def test_bootstrap_is_near_the_normal_interval_and_repeatable():
    rng = np.random.default_rng(1)
    first = rng.random(2000)
    second = first + rng.normal(0.1, 0.5, 2000)
    found = paired_bootstrap(list(first), list(second))
    half = 1.96 * np.std(second - first) / math.sqrt(2000)
    assert found.value == pytest.approx(np.mean(second - first))
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=1e-3
    )
    assert paired_bootstrap(list(first), list(second)) == found


def test_bootstrap_of_equal_sides_is_a_point():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("first", "second"), [([1], [1, 0]), ([], [])])
def test_bootstrap_needs_pairs(first, second):
    with pytest.raises(ValueError, match="the sides have"):
        paired_bootstrap(first, second)


def test_bootstrap_of_a_mean():
    values = [float(x) for x in np.random.default_rng(0).normal(3.0, 2.0, size=400)]
    found = bootstrap_mean(values)
    assert found.value == pytest.approx(sum(values) / 400)
    # The normal interval is right for so many values.
    half = 1.96 * np.std(values) / 20
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.02
    )
    assert bootstrap_mean(values) == found != bootstrap_mean(values, seed=1)


def test_bootstrap_of_clusters_draws_them_whole():
    distinct = [float(x) for x in np.random.default_rng(0).normal(size=50)]
    repeated = [x for x in distinct for _ in range(8)]
    clusters = [k for k in range(50) for _ in range(8)]
    # Copies tell nothing new: with clusters the interval is that of the 50, without it is far too narrow.
    assert bootstrap_mean(repeated, clusters=clusters) == pytest.approx(bootstrap_mean(distinct))
    alone = bootstrap_mean(repeated)
    assert alone.high - alone.low < 0.5 * (
        bootstrap_mean(distinct).high - bootstrap_mean(distinct).low
    )
    # Unequal clusters: the mean is over values, {a, a, b} drawn as {a a | b}.
    uneven = bootstrap_mean([1.0, 1.0, 4.0], clusters=["a", "a", "b"])
    assert uneven == pytest.approx((2.0, 1.0, 4.0))


def test_bootstrap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values to take the mean of"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="3 values and 2 clusters; give one for each"):
        bootstrap_mean([1.0, 2.0, 3.0], clusters=[0, 1])
    with pytest.raises(ValueError, match=r"the level is 95"):
        bootstrap_mean([1.0], level=95)


def test_paired_t_of_a_textbook_example() -> None:
    """Student's sleep data (1908): mean 1.58, t = 4.0621 with 9 degrees of freedom, p = 0.002833."""
    found = paired_t([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert found.value == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


def test_paired_t_without_spread() -> None:
    assert paired_t([0.0, 0.0])[:4] == (0, 0, 0, 1)
    assert paired_t([2.0, 2.0])[:4] == (2, 2, 2, 0)
    with pytest.raises(ValueError, match="1 differences"):
        paired_t([1.0])
