"""AlpacaEval 2's length-controlled win rate: what the win rate would be if the answers were as long as the baseline's.

A logistic regression explains each preference by the difference in length, the difficulty of the instruction and the
model; the rate is its prediction with the length term at 0. Dubois et al. 2024, arXiv 2404.04475; the procedure is that
of `glm_winrate.py` (formula `length_controlled_v1`) in tatsu-lab/alpaca_eval 0.6.6, in our own words. Its two data
files are read by `grade/length_controlled_data.py`. Needs scikit-learn (extra `eval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.grade.logistic import choose_strength, fit_weights, sigmoid
from prefopt.grade.statistics import Interval, percentile_interval
from prefopt.grade.winrate import USUAL, Bootstrap, Judged, share_of

_Array = NDArray[np.float64]

GAMED_WEIGHT = 0.1
"""Of one row of a gamed baseline, next to 1 of a real one: 0.2 shared by two gamed baselines."""
FEW = 50
"""Below so many prompts the strength of the penalty is not chosen by cross-validation."""
_STRENGTH_OF_FEW = 100.0


class LengthWeights(NamedTuple):
    """The coefficients of a fit, in nats of log-odds."""

    length: float
    difficulty: float
    """0 where no difficulty was given."""
    model: float


BASELINE = LengthWeights(0.0, 0.0, 0.0)
"""Of the baseline itself, by construction: it wins half of the time against itself."""


class GamedRows(NamedTuple):
    """Preferences for gamed baselines (the baseline told to be verbose, or concise), which steady the fit."""

    shares: Sequence[float]
    """Part of a win over the baseline, 0 to 1; NaN where missing."""
    lengths: Sequence[float]
    """Length differences, baseline minus gamed, in standard deviations; tanh is not taken yet."""
    difficulty: Sequence[float]
    """Of the instruction of each row."""


class LengthControlled(NamedTuple):
    """A length-controlled win rate, in percent, with the fit behind it."""

    value: float
    interval: Interval | None
    """Over prompts; None where none was asked for."""
    raw: float
    """The raw win rate on the same preferences."""
    weights: LengthWeights
    strength: float
    """Of the likelihood against the L1 penalty (`C`)."""
    predicted: tuple[float, ...]
    """For each prompt, the percentage that the fit predicts at equal length, also where the preference is missing."""
    standard_error: float
    """Standard deviation of `predicted` / sqrt(prompts), as AlpacaEval gives it: it does not contain the uncertainty of
    the fit. NaN for one prompt."""
    missing: int
    """Preferences that are missing; left out of the fit."""
    remarks: tuple[str, ...]
    """What a reader should know before trusting the number."""


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What is known of each prompt; all of shape [prompts]."""

    shares: _Array
    """NaN where missing."""
    shorter: _Array
    """Characters that the baseline's answer has more than the model's."""
    difficulty: _Array | None

    def take(self, rows: NDArray[np.int64]) -> _Prompts:
        difficulty = None if self.difficulty is None else self.difficulty[rows]
        return _Prompts(self.shares[rows], self.shorter[rows], difficulty)


class _Design(NamedTuple):
    """Rows of the regression: those of gamed baselines, then the prompts with a preference."""

    features: _Array
    """[rows, 2 or 3]: length, difficulty if there is one, model."""
    shares: _Array
    """[rows]"""
    weights: _Array
    """[rows]"""


def length_controlled_winrate(
    preferences: Sequence[Judged],
    lengths_model: Sequence[int],
    lengths_baseline: Sequence[int],
    *,
    difficulty: Sequence[float] | None = None,
    gamed: GamedRows | None = None,
    bootstrap: Bootstrap | None = USUAL,
) -> LengthControlled:
    """The length-controlled win rate of a model, ``100 * mean(sigmoid(w_d difficulty + w_m))`` over all prompts.

    Fitted is ``P(win) = sigmoid(w_l length + w_d difficulty + w_m model)`` with ``length = tanh(d / std(d))``,
    ``d = lengths_baseline - lengths_model`` over all prompts (ddof 1; 0 where all d are equal), ``model`` 1, and 0 for
    gamed rows. It minimises ``|w|_1 + C sum(weight * cross-entropy(share, P))``, gamed rows weighing 0.1. C is the best
    of 10 values from 1e-4 to 1e4 in 5-fold cross-validation, or 100 with less than 50 preferences. With AlpacaEval's
    data the result is AlpacaEval's; without, the terms that need it are left out.

    The interval draws prompts with replacement and fits again with the C found on all (choosing it again would cost
    fifty fits each time, so the interval leaves that choice out); gamed rows stay. A draw at every prompt,
    as of a model against itself, is fitted like anything else and gives 50 (such a model's weights are `BASELINE` by
    construction). Where all preferences are wins (or losses) and nothing is gamed, scikit-learn's solver confuses the
    two; rows of next to no weight keep it right.

    Args:
        preferences: one per prompt, verdicts or numbers from 1 (baseline) to 2 (model); None is missing.
        lengths_model: of the model's answers, in characters.
        lengths_baseline: of the baseline's, in characters.
        difficulty: of each instruction, as AlpacaEval computed it in advance.
        gamed: the rows of gamed baselines; their difficulty counts only if `difficulty` is given.
        bootstrap: of the interval; None for none.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: unequal lengths, no preference at all, or a value that cannot be.
    """
    prompts = _read(preferences, lengths_model, lengths_baseline, difficulty)
    rows = _design(prompts, gamed)
    judged = int(np.isfinite(prompts.shares).sum())
    strength = _STRENGTH_OF_FEW if judged < FEW else choose_strength(*rows)
    weights = fit_weights(*rows, strength)
    predicted = 100 * _at_equal_length(weights, prompts)
    value, raw = float(predicted.mean()), float(100 * np.nanmean(prompts.shares))
    return LengthControlled(
        value=value,
        interval=None if bootstrap is None else _interval(prompts, gamed, strength, bootstrap),
        raw=raw,
        weights=_named(weights),
        strength=strength,
        predicted=tuple(predicted.tolist()),
        standard_error=_standard_error(predicted),
        missing=len(prompts.shares) - judged,
        remarks=_remarks(value, raw, judged, prompts.shorter),
    )


def winrate_between(
    model: LengthWeights,
    baseline: LengthWeights,
    *,
    difficulty: Sequence[float] | None = None,
) -> float:
    """The length-controlled win rate of one model over another, both fitted against a third, in percent.

    ``100 * mean(sigmoid((w_d - w_d') difficulty + w_m - w_m'))``; 50 for a model against itself.

    Raises:
        ValueError: the weights have a term for difficulty, and none is given.
    """
    change = np.subtract(model, baseline)
    if difficulty is None and change[1] != 0:
        raise ValueError(
            f"the weights for difficulty differ by {change[1]:.3g}, and no difficulty is given; give one per prompt"
        )
    hard = np.asarray([0.0] if difficulty is None else difficulty, dtype=np.float64)
    return float(100 * sigmoid(change[1] * hard + change[2]).mean())


def _read(
    preferences: Sequence[Judged],
    lengths_model: Sequence[int],
    lengths_baseline: Sequence[int],
    difficulty: Sequence[float] | None,
) -> _Prompts:
    count = len(preferences)
    for name, given in (
        ("lengths of the model", lengths_model),
        ("lengths of the baseline", lengths_baseline),
        ("difficulties", difficulty),
    ):
        if given is None:
            continue
        if len(given) != count:
            raise ValueError(f"{count} preferences and {len(given)} {name}; give one per prompt")
        _require_finite(name, given)
    shares = np.array([_share(preference) for preference in preferences], dtype=np.float64)
    if not np.isfinite(shares).any():
        raise ValueError(f"none of {count} preferences is there; there is nothing to fit")
    shorter = np.asarray(lengths_baseline, np.float64) - np.asarray(lengths_model, np.float64)
    return _Prompts(
        shares, shorter, None if difficulty is None else np.asarray(difficulty, dtype=np.float64)
    )


def _require_finite(name: str, values: Sequence[float]) -> None:
    wrong = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=np.float64)))
    if len(wrong):
        raise ValueError(f"{name}: number {wrong[0] + 1} is not finite; give a number")


def _share(preference: Judged) -> float:
    share = share_of(preference)
    return float("nan") if share is None else share


def _design(prompts: _Prompts, gamed: GamedRows | None) -> _Design:
    hard = prompts.difficulty
    length = _scaled(prompts.shorter)
    if gamed is not None and len({len(column) for column in gamed}) != 1:
        raise ValueError(
            f"gamed rows have {len(gamed.shares)} shares, {len(gamed.lengths)} lengths and {len(gamed.difficulty)} "
            "difficulties; give one of each per row"
        )
    if gamed is not None:
        _require_finite("lengths of gamed rows", gamed.lengths)
        if hard is not None:
            _require_finite("difficulties of gamed rows", gamed.difficulty)
    terms = [length] if hard is None else [length, hard]
    real = np.column_stack([*terms, np.ones(len(length))])
    if gamed is None:
        rows = _Design(real, prompts.shares, np.ones(len(length)))
    else:
        length = np.tanh(np.asarray(gamed.lengths, np.float64))
        terms = [length] if hard is None else [length, np.asarray(gamed.difficulty, np.float64)]
        other = np.column_stack([*terms, np.zeros(len(length))])
        rows = _Design(
            np.concatenate([other, real]),
            np.concatenate([np.asarray(gamed.shares, np.float64), prompts.shares]),
            np.concatenate([np.full(len(other), GAMED_WEIGHT), np.ones(len(real))]),
        )
    there = np.isfinite(rows.shares)
    return _Design(rows.features[there], rows.shares[there], rows.weights[there])


def _scaled(shorter: _Array) -> _Array:
    if np.ptp(shorter) == 0:
        return np.zeros_like(shorter)
    return np.tanh(shorter / shorter.std(ddof=1))


def _at_equal_length(weights: _Array, prompts: _Prompts) -> _Array:
    hard = prompts.difficulty
    return sigmoid(
        np.full(len(prompts.shares), weights[-1])
        if hard is None
        else weights[1] * hard + weights[-1]
    )


def _interval(
    prompts: _Prompts, gamed: GamedRows | None, strength: float, bootstrap: Bootstrap
) -> Interval:
    rng = np.random.default_rng(bootstrap.seed)
    count = len(prompts.shares)
    values: list[float] = []
    while len(values) < bootstrap.resamples:
        drawn = prompts.take(rng.integers(0, count, size=count))
        if not np.isfinite(drawn.shares).any():
            continue
        weights = fit_weights(*_design(drawn, gamed), strength)
        values.append(float(100 * _at_equal_length(weights, drawn).mean()))
    return percentile_interval(values, bootstrap.level)


def _named(weights: _Array) -> LengthWeights:
    difficulty = float(weights[1]) if len(weights) == 3 else 0.0
    return LengthWeights(float(weights[0]), difficulty, float(weights[-1]))


def _standard_error(predicted: _Array) -> float:
    count = len(predicted)
    return float(predicted.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def _remarks(value: float, raw: float, judged: int, shorter: _Array) -> tuple[str, ...]:
    """AlpacaEval's bounds of what is believable, and what was not done in the usual way."""
    remarks: list[str] = []
    high, low = max(raw + (100 - raw) / 4, raw + 10), min(raw - raw / 4, raw - 10)
    if value > high or value < low:
        remarks.append(
            f"the length-controlled win rate {value:.1f} is far from the raw one {raw:.1f} (believable: {low:.1f} to "
            f"{high:.1f}); the fit may have failed, look at lengths and preferences"
        )
    if judged < FEW:
        remarks.append(
            f"only {judged} preferences: C is fixed at {_STRENGTH_OF_FEW:g} instead of chosen"
        )
    if np.ptp(shorter) == 0:
        remarks.append(
            f"all answers differ by {shorter[0]:g} characters from the baseline's: length is not controlled for"
        )
    return tuple(remarks)
