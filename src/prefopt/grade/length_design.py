"""What length-controlled win rates are fitted to: prompts, rows of gamed baselines, terms of the regression.

`grade/length_controlled.py` says what the regression is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.grade.logistic import sigmoid
from prefopt.grade.winrate import Judged, shares_of

_Array = NDArray[np.float64]
_Rows = NDArray[np.int64]

GAMED_WEIGHT = 0.1
"""Of one row of a gamed baseline, next to 1 of a real one: 0.2 shared by two gamed baselines."""


class GamedRows(NamedTuple):
    """Preferences for gamed baselines (the baseline told to be verbose, or concise), which steady the fit."""

    shares: Sequence[float]
    """Part of a win over the baseline, 0 to 1; NaN where missing."""
    lengths: Sequence[float]
    """Length differences, baseline minus gamed, in standard deviations; tanh is not taken yet."""
    difficulty: Sequence[float]
    """Of the instruction of each row."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is known of each prompt; all of shape [prompts]."""

    shares: _Array
    """NaN where missing."""
    shorter: _Array
    """Characters that the baseline's answer has more than the model's."""
    difficulty: _Array | None
    cluster: _Rows
    """What is drawn and held back together, 0, 1, ..."""

    def take(self, rows: _Rows) -> Prompts:
        """Some of them, in that order."""
        difficulty = None if self.difficulty is None else self.difficulty[rows]
        return Prompts(self.shares[rows], self.shorter[rows], difficulty, self.cluster[rows])

    def of_clusters(self) -> list[_Rows]:
        """For each cluster, its prompts."""
        order = np.argsort(self.cluster, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.cluster))[:-1])

    def at_equal_length(self, weights: _Array) -> _Array:
        """[prompts]: the predicted share where the length term is 0."""
        hard = self.difficulty
        return sigmoid(
            np.full(len(self.shares), weights[-1])
            if hard is None
            else weights[1] * hard + weights[-1]
        )


class Design(NamedTuple):
    """Rows of the regression: those of gamed baselines, then the prompts with a preference."""

    features: _Array
    """[rows, 2 or 3]: length, difficulty if there is one, model."""
    shares: _Array
    """[rows]"""
    weights: _Array
    """[rows]"""
    group: _Rows
    """[rows], what is in one fold of a cross-validation: each gamed row by itself, then the prompts' clusters."""


def read_prompts(
    preferences: Sequence[Judged],
    lengths_model: Sequence[int],
    lengths_baseline: Sequence[int],
    difficulty: Sequence[float] | None,
    clusters: Sequence[Hashable] | None,
) -> Prompts:
    """The prompts as arrays.

    Raises:
        ValueError: unequal lengths, no preference at all, or a value that cannot be.
    """
    count = len(preferences)
    for name, given in (
        ("lengths of the model", lengths_model),
        ("lengths of the baseline", lengths_baseline),
        ("difficulties", difficulty),
    ):
        if given is not None:
            _require_count(name, given, count)
            _require_finite(name, given)
    if clusters is not None:
        _require_count("clusters", clusters, count)
    shares = np.array(
        [np.nan if share is None else share for share in shares_of(preferences)], dtype=np.float64
    )
    if not np.isfinite(shares).any():
        raise ValueError(f"none of {count} preferences is there; there is nothing to fit")
    shorter = np.asarray(lengths_baseline, np.float64) - np.asarray(lengths_model, np.float64)
    labels: dict[Hashable, int] = {}
    cluster = [labels.setdefault(label, len(labels)) for label in clusters or range(count)]
    hard = None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    return Prompts(shares, shorter, hard, np.array(cluster, dtype=np.int64))


def _require_count(name: str, values: Sequence[object], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{count} preferences and {len(values)} {name}; give one per prompt")


def _require_finite(name: str, values: Sequence[float]) -> None:
    wrong = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=np.float64)))
    if len(wrong):
        raise ValueError(f"{name}: number {wrong[0] + 1} is not finite; give a number")


def design(prompts: Prompts, gamed: GamedRows | None) -> Design:
    """The rows of the regression; what is missing is left out.

    Raises:
        ValueError: gamed rows with unequal numbers of values, or one that is not finite.
    """
    hard = prompts.difficulty
    length = _scaled(prompts.shorter)
    terms = [length] if hard is None else [length, hard]
    real = Design(
        np.column_stack([*terms, np.ones(len(length))]),
        prompts.shares,
        np.ones(len(length)),
        prompts.cluster,
    )
    rows = (
        real if gamed is None else _joined(_gamed_design(gamed, difficult=hard is not None), real)
    )
    there = np.isfinite(rows.shares)
    return Design(rows.features[there], rows.shares[there], rows.weights[there], rows.group[there])


def _gamed_design(gamed: GamedRows, *, difficult: bool) -> Design:
    if len({len(column) for column in gamed}) != 1:
        raise ValueError(
            f"gamed rows have {len(gamed.shares)} shares, {len(gamed.lengths)} lengths and {len(gamed.difficulty)} "
            "difficulties; give one of each per row"
        )
    _require_finite("lengths of gamed rows", gamed.lengths)
    if difficult:
        _require_finite("difficulties of gamed rows", gamed.difficulty)
    length = np.tanh(np.asarray(gamed.lengths, np.float64))
    terms = [length, np.asarray(gamed.difficulty, np.float64)] if difficult else [length]
    return Design(
        np.column_stack([*terms, np.zeros(len(length))]),
        np.asarray(gamed.shares, np.float64),
        np.full(len(length), GAMED_WEIGHT),
        np.arange(len(length)),
    )


def _joined(first: Design, then: Design) -> Design:
    return Design(
        np.concatenate([first.features, then.features]),
        np.concatenate([first.shares, then.shares]),
        np.concatenate([first.weights, then.weights]),
        np.concatenate([first.group, then.group + len(first.group)]),
    )


def _scaled(shorter: _Array) -> _Array:
    if np.ptp(shorter) == 0:
        return np.zeros_like(shorter)
    return np.tanh(shorter / shorter.std(ddof=1))
