"""Win rates against counts by hand, FastChat's table and exact bootstrap distributions."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest

from prefopt.grade.winrate import (
    Bootstrap,
    Verdict,
    adjusted_win_rate,
    combine_positions,
    compare_models,
    share_of,
    turned,
    verdict_of,
    win_rate,
)

WIN, TIE, LOSS, MISSING = get_args(Verdict)


@pytest.mark.parametrize(
    ("judged", "share", "verdict", "other_side"),
    [
        (WIN, 1.0, WIN, LOSS),
        (TIE, 0.5, TIE, TIE),
        (LOSS, 0.0, LOSS, WIN),
        (MISSING, None, MISSING, MISSING),
        (2, 1.0, WIN, LOSS),
        (1, 0.0, LOSS, WIN),
        (1.5, 0.5, TIE, TIE),
        (0.0, 0.5, TIE, TIE),
        (1.75, 0.75, WIN, LOSS),
        (1.25, 0.25, LOSS, WIN),
        (None, None, MISSING, MISSING),
        (math.nan, None, MISSING, MISSING),
    ],
)
def test_what_a_verdict_is_worth(judged, share, verdict, other_side):
    assert share_of(judged) == share
    assert verdict_of(judged) == verdict
    assert turned(judged) == other_side


@pytest.mark.parametrize("wrong", [-1, 0.5, 2.5, math.inf])
def test_preferences_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=f"verdict 2 of 2: the preference {wrong} is not between"):
        win_rate([WIN, wrong])


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="'won' is no verdict; known are win, tie, loss, missing"):
        share_of("won")  # pyright: ignore[reportArgumentType]


def test_raw_win_rate_counts_draws_half_and_leaves_missing_ones_out():
    # AlpacaEval: 100 * mean(preference - 1) of what is there, 0 being a draw: (1 + .5 + .75 + 0 + .5) / 5.
    found = win_rate([2, 1.5, 1.75, 1, 0.0, None, math.nan])
    assert found.value == 55.0
    assert (found.wins, found.ties, found.losses, found.missing) == (2, 2, 1, 2)
    assert found.inconsistent == 0


def test_interval_is_that_of_the_exact_bootstrap_distribution():
    # Resampling 12 verdicts of which 5 are wins: the number of wins is Binomial(12, 5/12).
    p, n = 5 / 12, 12
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    quantile = lambda q: next(k for k, c in enumerate(itertools.accumulate(mass)) if c >= q)  # noqa: E731
    found = win_rate([WIN] * 5 + [LOSS] * 7, bootstrap=Bootstrap(level=0.9, resamples=20_000))
    assert found.low == pytest.approx(100 * quantile(0.05) / n)
    assert found.high == pytest.approx(100 * quantile(0.95) / n)


def test_prompts_with_several_verdicts_are_drawn_whole():
    verdicts = [WIN] * 20 + [LOSS] * 20
    alone = win_rate(verdicts)
    # Two prompts of twenty equal verdicts each tell no more than two verdicts.
    together = win_rate(verdicts, clusters=[0] * 20 + [1] * 20)
    assert (together.low, together.high) == (0.0, 100.0)
    assert alone.low > 30 and alone.high < 70


def test_clusters_follow_their_verdicts_when_some_are_missing():
    verdicts, clusters = [None, WIN, LOSS, None], ["a", "b", "c", "d"]
    assert win_rate(verdicts, clusters=clusters).value == 50.0
    with pytest.raises(ValueError, match="4 verdicts and 1 clusters"):
        win_rate(verdicts, clusters=["a"])


def test_no_verdict_at_all_is_an_error():
    with pytest.raises(ValueError, match="none of 2 verdicts is there"):
        win_rate([None, MISSING])


# The nine pairs of g1_winner and g2_winner, and those with an error, through FastChat's rules.
@pytest.mark.parametrize(
    ("first", "second", "combined"),
    [
        (WIN, WIN, WIN),
        (WIN, TIE, TIE),
        (WIN, LOSS, TIE),
        (TIE, WIN, TIE),
        (TIE, TIE, TIE),
        (TIE, LOSS, TIE),
        (LOSS, WIN, TIE),
        (LOSS, TIE, TIE),
        (LOSS, LOSS, LOSS),
        (MISSING, WIN, MISSING),
        (LOSS, None, MISSING),
        (1.9, 1.6, WIN),
        (1.9, 1.4, TIE),
    ],
)
def test_two_positions_make_one_verdict(first, second, combined):
    assert combine_positions(first, second) == combined


def test_adjusted_win_rate_by_hand():
    first = [WIN, WIN, LOSS, TIE, WIN, MISSING, LOSS, WIN]
    second = [WIN, LOSS, LOSS, TIE, TIE, WIN, LOSS, WIN]
    found = adjusted_win_rate(first, second)
    # 2 wins, 3 ties (2 of them disagreements), 2 losses, 1 dropped.
    assert found.value == pytest.approx(100 * (2 + 1.5) / 7)
    assert (found.wins, found.ties, found.losses, found.missing) == (2, 3, 2, 1)
    assert found.inconsistent == 2
    assert found.low < found.value < found.high


def test_a_judge_that_only_looks_at_the_position_gives_half():
    # It prefers whatever comes first: the model in the first round, the baseline in the second.
    found = adjusted_win_rate([WIN] * 30, [turned(WIN) for _ in range(30)])
    assert (found.value, found.inconsistent) == (50.0, 30)


def test_both_positions_need_as_many_verdicts():
    with pytest.raises(ValueError, match="2 and 1 verdicts"):
        adjusted_win_rate([WIN, WIN], [WIN])


def test_two_models_against_one_baseline():
    first = [WIN, LOSS, LOSS, TIE, None, WIN]
    second = [WIN, WIN, TIE, LOSS, WIN, WIN]
    found = compare_models(first, second)
    # Differences 0, 1, .5, -.5, 0 over the five prompts that both have.
    assert found.value == pytest.approx(20.0)
    assert (found.better, found.worse, found.equal, found.missing) == (2, 1, 2, 1)
    # Of three prompts that differ, two and one or worse either way: certain.
    assert found.p == 1.0
    assert found.low < 0 < found.high


def test_pairing_removes_what_prompts_have_in_common():
    rng = np.random.default_rng(0)
    easy = rng.random(400) < 0.5
    first = [WIN if e else LOSS for e in easy]
    second = [WIN if e or rng.random() < 0.1 else LOSS for e in easy]
    found = compare_models(first, second)
    alone = win_rate(first)
    assert found.low > 0 and found.p < 1e-3
    # The rate alone is known much less well than the difference.
    assert alone.high - alone.low > 2 * (found.high - found.low)


def test_no_prompt_in_common_is_an_error():
    with pytest.raises(ValueError, match="no prompt of 2 has verdicts for both models"):
        compare_models([WIN, None], [None, WIN])


@pytest.mark.parametrize("wrong", [[True, False, True, True], [np.True_, None]])
def test_true_and_false_are_no_verdicts(wrong):
    with pytest.raises(ValueError, match="verdict 1 of [24]: True is no verdict and no preference"):
        win_rate(wrong)


@pytest.mark.parametrize("wrong", [[1, 0, 1, 1], [0.0, 1.0], [None, 1, math.nan, 0]])
def test_numbers_that_are_all_0_or_1_are_refused(wrong):
    with pytest.raises(ValueError, match="are all 0 or 1, but here 1 is a loss, 2 a win and 0 a"):
        win_rate(wrong)
    # Losses alone, draws alone, and both with anything else are what AlpacaEval stores.
    assert (win_rate([1, 1]).value, win_rate([0, 0]).value) == (0.0, 50.0)
    assert win_rate([1, 0, 1, 1.5]).value == 25.0


# Wilson 1927: of none among n at most z^2 / (n + z^2), z = 1.95996.
@pytest.mark.parametrize(
    ("verdicts", "interval"),
    [
        ([WIN] * 4, (51.011, 100.0)),
        ([LOSS] * 4, (0.0, 48.989)),
        ([TIE] * 4, (25.506, 74.494)),
        ([LOSS], (0.0, 79.345)),
        ([1.75] * 4, (38.258, 87.247)),
    ],
)
def test_verdicts_that_are_all_equal_leave_something_open(verdicts, interval):
    found = win_rate(verdicts)
    assert (found.low, found.high) == pytest.approx(interval, abs=1e-3)
    # Verdicts on one prompt count as one.
    one = win_rate(verdicts, clusters=["a"] * len(verdicts))
    assert one.high - one.low == pytest.approx(79.345, abs=1e-3)


def test_models_that_never_differ_may_differ_on_other_prompts():
    found = compare_models([WIN, LOSS, TIE, WIN], [WIN, LOSS, TIE, WIN])
    assert (found.value, found.p, found.equal) == (0.0, 1.0, 4)
    assert (found.low, found.high) == pytest.approx((-48.989, 48.989), abs=1e-3)


def test_turns_of_a_prompt_are_compared_together():
    first = [WIN, WIN, LOSS, LOSS, TIE, None]
    second = [LOSS, WIN, WIN, WIN, WIN, WIN]
    prompts = ["a", "a", "b", "b", "c", "d"]
    found = compare_models(first, second, clusters=prompts)
    # Differences -1, 0; 1, 1; 0.5; none. One prompt is worse and two are better: p = 2 (1 + 3) / 8.
    assert found.value == pytest.approx(30.0)
    assert (found.better, found.worse, found.equal, found.missing) == (2, 1, 0, 1)
    assert found.p == 1.0
    # The mean of whole prompts is -50 if only the first is drawn, and 100 if only the second is.
    assert (found.low, found.high) == (-50.0, 100.0)
    with pytest.raises(ValueError, match="6 verdicts and 1 clusters"):
        compare_models(first, second, clusters=["a"])


def test_a_verdict_that_one_turn_lacks_is_counted():
    # Every second turn of the second model has none: the first ones alone are compared.
    found = compare_models(
        [LOSS, WIN] * 3, [WIN, MISSING] * 3, clusters=["a", "a", "b", "b", "c", "c"]
    )
    assert (found.value, found.better, found.missing) == (100.0, 3, 3)


# Wilson 1927: of none among n at most z^2 / (n + z^2).
def test_a_judge_that_only_looks_at_the_position_leaves_something_open():
    # A win and a loss for each of 60 prompts: every resample is at 50, and 6.0172 percent may be otherwise.
    found = win_rate([WIN] * 60 + [LOSS] * 60, clusters=[*range(60)] * 2)
    assert (found.value, found.wins, found.losses) == (50.0, 60, 60)
    assert (found.low, found.high) == pytest.approx((46.991, 53.009), abs=1e-3)
    # The same up to rounding: sums of 0.1, 0.2 and 0.3 depend on their order.
    shares = [1.1, 1.2, 1.3, 1.3, 1.2, 1.1, 1.2, 1.3, 1.1] * 2
    found = win_rate(shares, clusters=[at // 3 for at in range(18)])
    assert (found.low, found.high) == pytest.approx((12.194, 51.227), abs=1e-3)


def test_one_prompt_with_several_verdicts_says_as_little_as_one_verdict():
    found = win_rate([WIN, WIN, LOSS, TIE], clusters=["a"] * 4)
    # 62.5 - 62.5 * 0.79345 and 62.5 + 37.5 * 0.79345.
    assert (found.low, found.high) == pytest.approx((12.909, 92.255), abs=1e-3)


def test_turns_that_cancel_out_in_every_prompt_leave_something_open():
    found = compare_models([WIN, LOSS] * 20, [LOSS, WIN] * 20, clusters=[k // 2 for k in range(40)])
    assert (found.value, found.equal) == (0.0, 20)
    assert (found.low, found.high) == pytest.approx((-16.1125, 16.1125), abs=1e-3)


def test_equal_seeds_give_equal_intervals():
    verdicts = [WIN, LOSS, TIE, WIN, LOSS] * 7
    assert win_rate(verdicts) == win_rate(verdicts)
    assert win_rate(verdicts, bootstrap=Bootstrap(seed=3)).value == win_rate(verdicts).value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, "0 resamples make no interval; give 1 or more"),
        ({"level": 95}, "the level is 95; give a number between 0 and 1"),
    ],
)
def test_an_interval_of_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bootstrap(**options)
