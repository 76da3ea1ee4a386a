"""Bradley-Terry strengths against closed forms, published estimates and an independent iteration."""

import math
from typing import Any, cast, get_args

import numpy as np
import pytest

from prefopt.grade.bradley_terry import Match, fit_strengths, rank_models
from prefopt.grade.winrate import Bootstrap, Verdict

WIN, TIE, LOSS, MISSING = get_args(Verdict)
FEW = Bootstrap(resamples=20)

# American League 1987, wins of the row over the column (home and away together): Agresti, Categorical Data Analysis,
# 2nd edition, table 10.10.
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
BASEBALL = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]


def matches_of(wins):
    return [
        Match(TEAMS[i], TEAMS[j], WIN)
        for i, row in enumerate(wins)
        for j, count in enumerate(row)
        for _ in range(count)
    ]


def minorise(wins, rounds=20_000):
    """Zermelo's iteration, which shares nothing with Newton's method: w_i <- wins_i / sum_j games_ij / (w_i + w_j)."""
    games = wins + wins.T
    w = np.ones(len(wins))
    for _ in range(rounds):
        w = wins.sum(axis=1) / (games / (w[:, None] + w[None, :])).sum(axis=1)
        w /= np.exp(np.log(w).mean())
    return np.log(w)


def test_published_estimates_of_a_baseball_season():
    # Agresti 2002, section 10.6.1: log-odds relative to Baltimore.
    published = [1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0.0]
    found = rank_models(matches_of(BASEBALL), anchor="Baltimore", bootstrap=FEW)
    assert list(found.models) == TEAMS
    assert [s.value for s in found.models.values()] == pytest.approx(published, abs=1e-3)
    assert [s.matches for s in found.models.values()] == [78] * 7
    # The probability that Boston beats New York, in the same place: .46.
    assert found.probability("Boston", "New York") == pytest.approx(0.46, abs=0.01)


def test_two_models_have_the_log_odds_between_them():
    found = rank_models(
        [Match("a", "b", WIN)] * 6 + [Match("b", "a", WIN)] * 2 + [Match("a", "b", TIE)] * 2,
        bootstrap=FEW,
    )
    # 7 wins of 10: Elo 400 log10(7 / 3) apart, around 1000.
    assert found.models["a"].elo - found.models["b"].elo == pytest.approx(147.19071421143)
    assert found.models["a"].elo + found.models["b"].elo == pytest.approx(2000)
    assert found.probability("a", "b") == pytest.approx(0.7)
    assert found.probability("b", "a") == pytest.approx(0.3)


def test_newton_finds_what_the_slow_iteration_finds():
    rng = np.random.default_rng(1)
    wins = rng.integers(0, 9, size=(8, 8)) + rng.integers(0, 2, size=(8, 8)) / 2
    np.fill_diagonal(wins, 0)
    assert fit_strengths(wins) == pytest.approx(minorise(wins), abs=1e-8)


@pytest.mark.parametrize("odds", [1e-6, 1e6])
def test_lopsided_tables_converge(odds):
    wins = np.array([[0.0, odds], [1.0, 0.0]])
    s = fit_strengths(wins)
    assert s[0] - s[1] == pytest.approx(math.log(odds))


def test_expected_wins_equal_observed_wins_at_the_maximum():
    # The likelihood equations, also with models that never met: a chain.
    wins = np.array([[0, 3.0, 0, 0], [2, 0, 4.5, 0], [0, 0.5, 0, 1], [0, 0, 6, 0]])
    s = fit_strengths(wins)
    p = 1 / (1 + np.exp(s[None, :] - s[:, None]))
    assert ((wins + wins.T) * p).sum(axis=1) == pytest.approx(wins.sum(axis=1), abs=1e-9)
    assert s.sum() == pytest.approx(0, abs=1e-12)


def test_planted_strengths_are_recovered():
    truth = {"a": 1.0, "b": 0.3, "c": -0.3, "d": -1.0}
    rng = np.random.default_rng(0)
    names = list(truth)
    matches = []
    for _ in range(4000):
        i, j = rng.choice(4, size=2, replace=False)
        first, second = names[i], names[j]
        wins = rng.random() < 1 / (1 + math.exp(truth[second] - truth[first]))
        matches.append(Match(first, second, WIN if wins else LOSS))
    found = rank_models(matches, bootstrap=Bootstrap(resamples=200))
    assert list(found.models) == names
    for name, strength in found.models.items():
        elo = 1000 + 400 / math.log(10) * truth[name]
        assert strength.low < elo < strength.high
        # 2000 matches each: about 0.05 nats, or 8 points, of standard error.
        assert 15 < strength.high - strength.low < 60


def test_order_of_matches_and_of_sides_does_not_matter():
    matches = [*matches_of(BASEBALL), Match("Boston", "Detroit", 1.75)]
    turned = [Match("Detroit", "Boston", 1.25), *matches_of(BASEBALL)[::-1]]
    one, other = (rank_models(given, bootstrap=FEW) for given in (matches, turned))
    for team in TEAMS:
        assert one.models[team].value == pytest.approx(other.models[team].value, abs=1e-12)


def test_models_that_nothing_connects_are_named():
    matches = [Match("a", "b", TIE), Match("b", "c", TIE), Match("d", "e", TIE)]
    with pytest.raises(ValueError, match="no chain of matches connects d, e with the other models"):
        rank_models(matches)


def test_a_model_that_won_everything_is_named():
    matches = [Match("b", "c", TIE), Match("a", "b", WIN), Match("c", "a", LOSS)]
    with pytest.raises(ValueError, match="a never lost or drew against b, c"):
        rank_models(matches)
    # A model that lost everything is the same thing seen from below.
    with pytest.raises(ValueError, match="a, b never lost or drew against c"):
        rank_models([Match("a", "b", TIE), Match("a", "c", WIN), Match("b", "c", WIN)])


def test_a_prior_bounds_what_was_won_without_exception():
    # 9 wins and one virtual tie: 9.5 to 0.5.
    found = rank_models([Match("a", "b", WIN)] * 9, prior=1, bootstrap=FEW)
    assert found.probability("a", "b") == pytest.approx(0.95)
    assert found.unbounded == 0
    assert found.models["a"].matches == 9


def test_resamples_without_a_maximum_are_counted():
    # One loss in ten: (9/10)^10 of the resamples have none, 0.1^10 only losses.
    matches = [Match("a", "b", WIN)] * 9 + [Match("a", "b", LOSS)]
    found = rank_models(matches, bootstrap=Bootstrap(resamples=1000))
    assert found.unbounded / 1000 == pytest.approx(0.9**10, abs=0.05)
    assert found.models["a"].low < found.models["a"].elo <= found.models["a"].high


def test_missing_verdicts_are_left_out_and_counted():
    matches = [Match("a", "b", TIE), Match("a", "b", None), Match("a", "c", MISSING)]
    found = rank_models(matches, bootstrap=FEW)
    assert list(found.models) == ["a", "b"] and found.missing == 2
    with pytest.raises(ValueError, match="none of 1 matches has a verdict"):
        rank_models([Match("a", "b", None)])


def test_the_anchor_stands_still():
    found = rank_models(matches_of(BASEBALL), anchor="Boston", bootstrap=FEW)
    assert found.models["Boston"][:4] == (0.0, 1000.0, 1000.0, 1000.0)
    with pytest.raises(ValueError, match="the anchor 'Chicago' has no match; known are Baltimore"):
        rank_models(matches_of(BASEBALL), anchor="Chicago")


def test_matches_of_one_prompt_are_drawn_together():
    matches = [Match("a", "b", WIN), Match("b", "a", WIN)] * 10
    usual = rank_models(matches, bootstrap=Bootstrap(resamples=200))
    paired = rank_models(
        matches, clusters=[n // 2 for n in range(20)], bootstrap=Bootstrap(resamples=200)
    )
    assert usual.models["a"].high - usual.models["a"].low > 50
    # Each prompt has one win of each: no resample differs.
    assert paired.models["a"].high == pytest.approx(paired.models["a"].low)


@pytest.mark.parametrize(
    ("matches", "options", "message"),
    [
        ([Match("a", "a", WIN)], {}, "match 1 of 1: 'a' is matched with itself"),
        ([Match("a", "b", WIN)], {"prior": -1}, "the prior is -1"),
        ([Match("a", "b", WIN)], {"clusters": []}, "1 matches and 0 clusters"),
        (
            [Match("a", "b", WIN), Match("c", "d", 3)],
            {},
            r"match 2 of 2 \(c and d\): the preference 3 is not between",
        ),
        (
            [Match("a", "b", cast("Any", "won"))],
            {},
            r"match 1 of 1 \(a and b\): 'won' is no verdict",
        ),
    ],
)
def test_what_cannot_be_is_refused(matches, options, message):
    with pytest.raises(ValueError, match=message):
        rank_models(matches, **options)


def test_verdicts_that_are_all_equal_have_an_interval_of_no_width():
    """As the documentation warns: resamples do not differ, and the prior decides alone."""
    found = rank_models([Match("a", "b", WIN)] * 10, prior=1, bootstrap=FEW).models["a"]
    assert found.low == pytest.approx(found.elo) == found.high
    # 10.5 wins against 0.5: odds of 21.
    assert 2 * found.value == pytest.approx(math.log(21))


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [((1, 0, 1), "are all 0 or 1"), ((True, 2), "match 1 of 2 .a and b.: True is no verdict")],
)
def test_wins_on_another_scale_are_refused(verdicts, message):
    with pytest.raises(ValueError, match=message):
        rank_models([Match("a", "b", verdict) for verdict in verdicts])
