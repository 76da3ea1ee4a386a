"""Logistic regression with targets between 0 and 1, weights per row and an L1 penalty; no intercept.

The solver is scikit-learn's liblinear (extra `eval`), with the settings of AlpacaEval's length-controlled win rate.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import MissingExtraError

_Array = NDArray[np.float64]

STRENGTHS: _Array = np.logspace(-4, 4, 10)
"""The C's among which cross-validation chooses."""
FOLDS = 5
_SEED = 123
_ROUNDING = 1e-15
_NEXT_TO_NOTHING = 1e-12
_UNFINISHED = "failed to converge"
"""In scikit-learn's warning about liblinear."""


class _Sklearn(NamedTuple):
    logistic_regression: Any  # scikit-learn has no annotations
    group_k_fold: Any


def fit_weights(
    features: _Array,
    shares: _Array,
    weights: _Array,
    strength: float,
    *,
    draws: np.random.RandomState | None = None,
) -> _Array:
    """The w that minimises ``|w|_1 + C sum(weight * cross-entropy(share, sigmoid(features w)))``.

    Each row goes in twice, as a win of weight ``share`` and as a loss of weight ``1 - share``. liblinear stops at a
    relative tolerance of 1e-4, so only the same rows in the same order give the same bits.

    Args:
        features: [rows, terms]
        shares: [rows], from 0 to 1.
        weights: [rows]
        strength: C, of the data against the penalty.
        draws: where the solver takes the order in which it goes through the coefficients from; None: seed 123.

    Returns:
        [terms]

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    model = _sklearn().logistic_regression(
        solver="liblinear",
        l1_ratio=1,
        C=strength,
        fit_intercept=False,
        random_state=_SEED if draws is None else draws,
    )
    twice = np.concatenate([shares * weights, (1 - shares) * weights])
    wins, losses = twice[: len(shares)].sum(), twice[len(shares) :].sum()
    if min(wins, losses) == 0:
        # liblinear in scikit-learn 1.9 drops rows of weight 0 and takes the only class that is left for a win.
        twice = np.maximum(twice, _NEXT_TO_NOTHING)
    labels = np.repeat([1, 0], len(shares))
    model.fit(np.tile(features, (2, 1)), labels, sample_weight=twice)
    return np.asarray(model.coef_[0], dtype=np.float64)


def choose_strength(
    features: _Array,
    shares: _Array,
    weights: _Array,
    *,
    groups: NDArray[np.int64] | None = None,
) -> float:
    """The C of ten, 1e-4 to 1e4, with the least cross-entropy in 5-fold cross-validation; the smallest one of equals.

    The loss of a fold is ``sum(weight * cross-entropy(share, p)) / rows``, and folds count equally. The same as
    scikit-learn's `LogisticRegressionCV` with rows doubled and `GroupKFold` over them, without its metadata routing,
    which would have to be switched on for the whole process.

    Args:
        features: [rows, terms], at least 5 rows.
        shares: [rows], from 0 to 1.
        weights: [rows]
        groups: [rows], at least 5 different ones; rows of one group are in one fold. None: each row by itself.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    rows = np.arange(len(shares)) if groups is None else groups
    gains = np.zeros(len(STRENGTHS))
    for seen, held in _sklearn().group_k_fold(FOLDS).split(rows, groups=rows):
        # As in scikit-learn, the fits of a fold share their draws. The solver's tolerance decides near ties.
        draws = np.random.RandomState(_SEED)
        for at, strength in enumerate(STRENGTHS):
            part = features[seen], shares[seen], weights[seen]
            found = fit_weights(*part, float(strength), draws=draws)
            gains[at] += mean_log_likelihood(features[held] @ found, shares[held], weights[held])
    # The first of equals: strong penalties all give w = 0.
    return float(STRENGTHS[np.argmax(gains)])


def sigmoid(x: _Array) -> _Array:
    """``1 / (1 + e^-x)`` without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def mean_log_likelihood(logits: _Array, shares: _Array, weights: _Array) -> _Array:
    """``sum_i(weight_i * -cross-entropy(share_i, sigmoid(logit_i))) / rows``; of shape [...].

    Args:
        logits: [..., rows]
        shares: [rows], from 0 to 1.
        weights: [rows]
    """
    p = np.clip(sigmoid(logits), _ROUNDING, 1 - _ROUNDING)
    return (weights * (shares * np.log(p) + (1 - shares) * np.log(1 - p))).mean(axis=-1)


@contextmanager
def unfinished_fits() -> Generator[list[str]]:
    """Gets, when it is left, what liblinear said of fits that did not converge; other warnings go their usual way."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=f".*{_UNFINISHED}")
        yield found
    for each in caught:
        if _UNFINISHED in str(each.message):
            found.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _sklearn() -> _Sklearn:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise MissingExtraError(
            "a length-controlled win rate needs scikit-learn, which is not installed; run: "
            "pip install 'prefopt[eval]'"
        ) from error
    return _Sklearn(LogisticRegression, GroupKFold)
