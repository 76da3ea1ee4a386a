"""Length-controlled win rates of one model over another: the same draws for both, by another solver, and limits."""

import numpy as np
import pytest

from prefopt.grade.length_between import length_controlled_between
from prefopt.grade.length_controlled import BASELINE, winrate_between
from prefopt.grade.logistic import fit_weights
from prefopt.grade.winrate import Bootstrap
from tests.grade.test_length_controlled import Case, sigmoid

pytest.importorskip("sklearn")

FEW = Bootstrap(resamples=12)


def drawn_weights(case, resamples):
    """The weights of fits with C = 100 by liblinear, on prompts that are drawn here."""
    rng, count, found = np.random.default_rng(0), len(case.shares), []
    gap = np.subtract(case.baseline, case.model)
    for _ in range(resamples):
        picked = rng.integers(0, count, size=count)
        length = np.tanh(gap[picked] / gap[picked].std(ddof=1))
        features = np.column_stack([length, np.ones(count)])
        found.append(fit_weights(features, case.shares[picked], np.ones(count), 100.0))
    return found


def test_a_model_is_at_50_over_itself_whatever_is_drawn():
    fit = Case(60, 0.5, -2.0, longer=(0.5, 1.8)).rate(bootstrap=FEW)
    found = length_controlled_between(fit, fit)
    assert (found.value, found.interval, found.remarks) == (50.0, (50.0, 50.0), ())
    assert length_controlled_between(None, None).interval == (50.0, 50.0)


def test_over_the_baseline_it_is_the_own_rate():
    fit = Case(60, 0.5, -2.0, longer=(0.5, 1.8)).rate(bootstrap=FEW)
    found = length_controlled_between(fit, None)
    assert found.value == pytest.approx(fit.value) and found.interval == pytest.approx(fit.interval)
    back = length_controlled_between(None, fit)
    assert found.interval and back.interval
    assert back.value == pytest.approx(100 - found.value)
    assert back.interval == pytest.approx((100 - found.interval.high, 100 - found.interval.low))


def test_both_fits_are_to_the_same_drawn_prompts():
    strong = Case(40, 1.2, -1.0, longer=(0.5, 1.8))
    weak = Case(40, -0.4, -1.0, seed=1, longer=(0.5, 1.8))
    one, two = strong.rate(bootstrap=FEW), weak.rate(bootstrap=FEW)
    found = length_controlled_between(one, two)
    rates = [
        100 * sigmoid(a[1] - b[1])
        for a, b in zip(drawn_weights(strong, 12), drawn_weights(weak, 12), strict=True)
    ]
    assert found.value == winrate_between(one.weights, two.weights)
    # liblinear stops at a relative tolerance of 1e-4.
    assert found.interval == pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.3)


def test_a_fit_that_finds_nothing_draws_what_the_others_draw():
    # C is chosen in each resample of the one, and is 100 in those of the other.
    blank = Case(100, 0.28, 0, seed=5, longer=(0.7, 1.8))
    fit = blank.rate(bootstrap=FEW)
    assert fit.weights == BASELINE and fit.remarks
    expected = np.array(drawn_weights(blank, 12))
    assert np.array(fit.resampled)[:, [0, 2]] == pytest.approx(expected, abs=0.02)


def test_choosing_the_penalty_does_not_change_what_is_drawn():
    case = Case(300, 1.0, -2.0, seed=3, longer=(0.5, 1.8))
    fit = case.rate(bootstrap=FEW)
    chosen, fixed = np.array(fit.resampled)[:, 2], np.array(drawn_weights(case, 12))[:, 1]
    # Each resample has its own C, but what was drawn decides.
    assert fit.strength < 100 and np.corrcoef(chosen, fixed)[0, 1] > 0.9


def test_difficulty_is_that_of_the_prompts_and_cannot_be_left_out():
    case, other = Case(60, 0.5, -2.0, e=1.0), Case(60, 0.0, -2.0, e=-1.0, seed=2)
    hard = case.difficulty.tolist()
    one, two = (c.rate(difficulty=hard, bootstrap=FEW) for c in (case, other))
    found = length_controlled_between(one, two, difficulty=hard)
    assert found.value == winrate_between(one.weights, two.weights, difficulty=hard)
    with pytest.raises(ValueError, match="weights for difficulty differ"):
        length_controlled_between(one, two)


def test_models_that_resamples_say_nothing_of_have_no_interval():
    case, other = Case(20, 0.5, -1.0), Case(20, 0.5, -1.0)
    case.preferences = ["win"] * 20
    found = length_controlled_between(case.rate(bootstrap=FEW), other.rate(bootstrap=FEW))
    assert found.value > 50 and found.interval is None
    assert found.remarks == (
        "no interval: where the share of wins is the same at all prompts, resamples say nothing",
    )
    found = length_controlled_between(other.rate(), other.rate())
    assert (found.interval, found.remarks) == (None, ("no interval: the fits have none",))


def test_fits_of_other_prompts_or_resamples_are_refused():
    case = Case(20, 0.5, -1.0, soft=True)
    fit = case.rate(bootstrap=FEW)
    with pytest.raises(ValueError, match="the fits are of 20 and 30 prompts, 0 and 0 of them"):
        length_controlled_between(fit, Case(30, 0.5, -1.0, soft=True).rate(bootstrap=FEW))
    with pytest.raises(ValueError, match="the fits have 12 and 11 resamples; give both the same"):
        length_controlled_between(fit, case.rate(bootstrap=Bootstrap(resamples=11)))
    case.preferences[3] = None
    with pytest.raises(ValueError, match="20 and 20 prompts, 0 and 1 of them without a verdict"):
        length_controlled_between(fit, case.rate(bootstrap=FEW))
