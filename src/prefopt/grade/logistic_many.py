"""Many penalised logistic regressions on the same rows at once, for what is fitted again on thousands of resamples.

The same problem as `grade/logistic.py`, which leaves it to scikit-learn's liblinear to have AlpacaEval's bits. Here all
strengths and folds of a resample are solved together by Newton's method, to about 1e-8; numpy alone is enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.grade.logistic import FOLDS, STRENGTHS, mean_log_likelihood

_Array = NDArray[np.float64]

_STEPS = 200
_SWEEPS = 100
_SMALL_STEP = 1e-4
"""Nats of log-odds. The last step's error is of the order of its square."""
_SMALL_CHANGE = 1e-9
_FLAT = 1e-12


class Fits(NamedTuple):
    """The coefficients of many regressions."""

    weights: _Array
    """[terms, regressions]"""
    converged: bool
    """Whether all of them did."""


class Chosen(NamedTuple):
    """A regression with the strength that cross-validation chose."""

    weights: _Array
    """[terms]"""
    converged: bool


def fit_many(
    features: _Array, shares: _Array, weights: _Array, strengths: _Array, *, start: _Array
) -> Fits:
    """For each column r, the w with the least ``|w|_1 + C_r sum_i(weight_ir * cross-entropy(share_i, p_i))``.

    ``p_i = sigmoid(features_i w)``. Newton's method; the quadratic problem with the penalty is solved by coordinate
    descent. A step of at most d nats in any row's logit is shortened to ``log(1 + d)``, which makes the loss fall
    without a line search (Sun and Tran-Dinh 2019, Math. Programming 178, for the logistic loss).

    Args:
        features: [rows, terms]
        shares: [rows], from 0 to 1.
        weights: [rows, regressions]; 0 leaves a row out.
        strengths: [regressions], C, of the data against the penalty.
        start: [terms, regressions], where to begin; only the time depends on it.
    """
    terms = features.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    reach = np.abs(features).max(axis=0, initial=0.0)
    found = np.array(start, dtype=np.float64)
    for _ in range(_STEPS):
        p = 0.5 + 0.5 * np.tanh(0.5 * (features @ found))
        slope = features.T @ (weights * (p - shares[:, None]))
        curve = (products.T @ (weights * (p * (1 - p)))).reshape(terms, terms, -1)
        best = _least_quadratic(found, slope, curve, 1 / strengths)
        size = reach @ np.abs(best - found)
        part = np.log1p(size) / np.maximum(size, _FLAT)
        # A small step is made whole, so that weights that the penalty leaves nothing of are 0 exactly.
        found = np.where(size < _SMALL_STEP, best, found + part * (best - found))
        if size.max(initial=0.0) < _SMALL_STEP:
            return Fits(found, converged=True)
    return Fits(found, converged=False)


def choose_and_fit(
    features: _Array, shares: _Array, weights: _Array, folds: NDArray[np.int64], *, start: _Array
) -> Chosen:
    """The fit to all rows with the C that `logistic.choose_strength` would choose with these folds.

    Args:
        features: [rows, terms]
        shares: [rows], from 0 to 1.
        weights: [rows]
        folds: [rows], from 0 to 4: the fold that holds the row back.
        start: [terms, strengths], the fits to similar data with each of the `STRENGTHS`.
    """
    held = folds[:, None] == np.arange(FOLDS)
    seen = np.repeat(weights[:, None] * ~held, len(STRENGTHS), axis=1)
    tried = fit_many(
        features, shares, seen, np.tile(STRENGTHS, FOLDS), start=np.tile(start, (1, FOLDS))
    )
    fitted = tried.weights.reshape(-1, FOLDS, len(STRENGTHS))
    gains = np.zeros(len(STRENGTHS))
    for fold in range(FOLDS):
        rows = held[:, fold]
        if rows.any():
            logits = fitted[:, fold].T @ features[rows].T
            gains += mean_log_likelihood(logits, shares[rows], weights[rows])
    at = int(np.argmax(gains))
    last = fit_many(
        features, shares, weights[:, None], STRENGTHS[at : at + 1], start=start[:, at : at + 1]
    )
    return Chosen(last.weights[:, 0], tried.converged and last.converged)


def _least_quadratic(at: _Array, slope: _Array, curve: _Array, penalty: _Array) -> _Array:
    """For each column, the u that minimises ``slope (u - at) + (u - at) curve (u - at) / 2 + penalty |u|_1``."""
    u, rising = at.copy(), slope.copy()
    # A term that is 0 in all rows has no slope and no curve: it becomes 0.
    bend = [np.maximum(curve[term, term], _FLAT) for term in range(len(at))]
    for _ in range(_SWEEPS):
        largest = 0.0
        for term, own in enumerate(bend):
            pull = own * u[term] - rising[term]
            change = np.sign(pull) * np.maximum(np.abs(pull) - penalty, 0) / own - u[term]
            u[term] += change
            rising += curve[term] * change
            largest = max(largest, float(np.abs(change).max(initial=0.0)))
        if largest < _SMALL_CHANGE:
            break
    return u
