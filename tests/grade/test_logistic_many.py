"""Many logistic regressions at once: against proximal gradient steps, liblinear, and its own limits."""

import numpy as np
import pytest

from prefopt.grade.logistic import STRENGTHS, choose_strength, fit_weights
from prefopt.grade.logistic_many import choose_and_fit, fit_many
from tests.grade.test_length_controlled import Case, gamed_rows, least_loss, sigmoid


def rows_of(count: int, seed: int = 0):
    """Features, shares and weights of prompts and gamed rows."""
    case, gamed = Case(count, 0.3, -0.8, e=0.4, seed=seed), gamed_rows(count)
    real = np.column_stack([case.length, case.difficulty, np.ones(count)])
    other = np.column_stack([np.tanh(gamed.lengths), gamed.difficulty, np.zeros(2 * count)])
    return (
        np.concatenate([other, real]),
        np.concatenate([gamed.shares, case.shares]),
        np.concatenate([np.full(2 * count, 0.1), np.ones(count)]),
    )


@pytest.mark.parametrize("start", [0.0, 3.0])
def test_each_column_is_the_optimum_that_another_solver_finds(start):
    features, shares, weights = rows_of(80)
    strengths = np.array([0.02, 1.0, 100.0])
    seen = np.stack([weights, weights * (np.arange(240) % 5 != 0), weights], axis=1)
    found = fit_many(features, shares, seen, strengths, start=np.full((3, 3), start))
    assert found.converged
    for column in range(3):
        expected = least_loss(features, shares, seen[:, column], strengths[column])
        assert found.weights[:, column] == pytest.approx(expected, abs=1e-6)


def test_a_strong_penalty_leaves_exactly_nothing():
    found = fit_many(*rows_of(40)[:2], np.ones((120, 1)), np.array([1e-4]), start=np.ones((3, 1)))
    assert found.weights.tolist() == [[0.0], [0.0], [0.0]]


def test_separable_rows_and_terms_that_are_0_have_an_optimum_too():
    x = np.linspace(-1, 1, 50)
    features = np.column_stack([np.zeros(50), x, np.ones(50)])
    shares, weights = (x > 0.2).astype(float), np.ones(50)
    found = fit_many(features, shares, weights[:, None], np.array([1e4]), start=np.zeros((3, 1)))
    w = found.weights[:, 0]
    assert found.converged and w[0] == 0.0
    slope = 1e4 * features.T @ (sigmoid(features @ w) - shares)
    # The optimality conditions of the L1 penalty.
    assert slope[1:] == pytest.approx(-np.sign(w[1:]), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_fit_is_that_of_liblinear_with_the_same_folds(seed):
    features, shares, weights = rows_of(60, seed)
    folds = np.random.default_rng(seed).permutation(180) % 5
    start = np.zeros((3, len(STRENGTHS)))
    found = choose_and_fit(features, shares, weights, folds, start=start)
    strength = choose_strength(features, shares, weights, groups=folds)
    expected = fit_weights(features, shares, weights, strength)
    assert found.converged
    # liblinear stops at a relative tolerance of 1e-4.
    assert found.weights == pytest.approx(expected, abs=2e-3)


def test_folds_that_hold_nothing_back_do_not_count():
    features, shares, weights = rows_of(60)
    folds = np.arange(180) % 4
    found = choose_and_fit(features, shares, weights, folds, start=np.zeros((3, len(STRENGTHS))))
    assert np.isfinite(found.weights).all() and found.weights.any()
