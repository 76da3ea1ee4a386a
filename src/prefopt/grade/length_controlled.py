"""AlpacaEval 2's length-controlled win rate: what the win rate would be if the answers were as long as the baseline's.

A logistic regression explains each preference by the difference in length, the difficulty of the instruction and the
model; the rate is its prediction with the length term at 0. Dubois et al. 2024, arXiv 2404.04475; the procedure is that
of `glm_winrate.py` (formula `length_controlled_v1`) in tatsu-lab/alpaca_eval 0.6.6, in our own words. Its two data
files are read by `grade/length_controlled_data.py`. Needs scikit-learn (extra `eval`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.grade.length_design import Design, GamedRows, Prompts, design, read_prompts
from prefopt.grade.logistic import (
    FOLDS,
    STRENGTHS,
    choose_strength,
    fit_weights,
    sigmoid,
    unfinished_fits,
)
from prefopt.grade.logistic_many import Fits, choose_and_fit, fit_many
from prefopt.grade.statistics import Interval, percentile_interval
from prefopt.grade.winrate import USUAL, Bootstrap, Judged, all_alike, bounded_mean

_Array = NDArray[np.float64]

FEW = 50
"""Below so many prompts the strength of the penalty is not chosen by cross-validation."""
_NEXT_TO_FREE = 100.0
"""A C with which the penalty hardly counts."""


class LengthWeights(NamedTuple):
    """The coefficients of a fit, in nats of log-odds."""

    length: float
    difficulty: float
    """0 where no difficulty was given."""
    model: float


BASELINE = LengthWeights(0.0, 0.0, 0.0)
"""Of the baseline itself, by construction: it wins half of the time against itself."""


class LengthControlled(NamedTuple):
    """A length-controlled win rate, in percent, with the fit behind it."""

    value: float
    interval: Interval | None
    """Over prompts, and wide enough to hold `value`; None where none was asked for."""
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
    resampled: tuple[LengthWeights, ...] = ()
    """Of the fits behind the interval. The same prompts in the same order, missing where they are, are drawn alike for
    every model (`grade/length_between.py`). Empty where there is no interval, and where all prompts have the same share
    of wins: resamples say nothing then."""


class _Fit(NamedTuple):
    weights: _Array
    """[terms]"""
    strength: float
    fixed: bool
    """Whether the strength was not chosen."""
    remarks: list[str]


class _Spread(NamedTuple):
    """Fits to resamples."""

    values: list[float]
    """The rates that they predict for the prompts that were drawn."""
    weights: tuple[LengthWeights, ...]
    unfinished: int
    """How many did not converge."""


class _Uncertain(NamedTuple):
    """What resamples say about a rate."""

    interval: Interval | None = None
    resampled: tuple[LengthWeights, ...] = ()
    remarks: tuple[str, ...] = ()


def length_controlled_winrate(
    preferences: Sequence[Judged],
    lengths_model: Sequence[int],
    lengths_baseline: Sequence[int],
    *,
    difficulty: Sequence[float] | None = None,
    gamed: GamedRows | None = None,
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap | None = USUAL,
) -> LengthControlled:
    """The length-controlled win rate of a model, ``100 * mean(sigmoid(w_d difficulty + w_m))`` over all prompts.

    Fitted is ``P(win) = sigmoid(w_l length + w_d difficulty + w_m model)`` with ``length = tanh(d / std(d))``,
    ``d = lengths_baseline - lengths_model`` over all prompts (ddof 1; 0 where all d are equal), ``model`` 1, and 0 for
    gamed rows. It minimises ``|w|_1 + C sum(weight * cross-entropy(share, P))``, gamed rows weighing 0.1. C is the best
    of 10 values from 1e-4 to 1e4 in 5-fold cross-validation, or 100 with less than 50 preferences. With AlpacaEval's
    data the result is AlpacaEval's; without, the terms that need it are left out.

    The interval draws prompts with replacement, chooses C anew and fits again (`grade/logistic_many.py`); gamed rows
    stay. Where the C that was chosen leaves the model no weight, the interval's fits have C = 100. The interval is
    widened where it does not hold the rate itself, which the penalty pulls to 50. A draw at every
    prompt, as of a model against itself, is fitted like anything else and gives 50 (the weights of such a model are
    `BASELINE` by construction). Where all preferences are wins (or losses) and nothing is gamed, scikit-learn's solver
    confuses the two; rows of next to no weight keep it right.

    Args:
        preferences: one per prompt, verdicts or numbers from 1 (baseline) to 2 (model); None is missing.
        lengths_model: of the model's answers, in characters.
        lengths_baseline: of the baseline's, in characters.
        difficulty: of each instruction, as AlpacaEval computed it in advance.
        gamed: the rows of gamed baselines; their difficulty counts only if `difficulty` is given.
        clusters: what several preferences have in common (the turns of a conversation): the interval draws whole
            clusters, and cross-validation holds them back whole. None: each preference by itself.
        bootstrap: of the interval; None for none.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: unequal lengths, no preference at all, or a value that cannot be.
    """
    prompts = read_prompts(preferences, lengths_model, lengths_baseline, difficulty, clusters)
    fit = _fit(prompts, gamed)
    predicted = 100 * prompts.at_equal_length(fit.weights)
    value, raw = float(predicted.mean()), float(100 * np.nanmean(prompts.shares))
    uncertain = _uncertain(prompts, gamed, fit, value, bootstrap)
    return LengthControlled(
        value=value,
        interval=uncertain.interval,
        raw=raw,
        weights=_named(fit.weights),
        strength=fit.strength,
        predicted=tuple(predicted.tolist()),
        standard_error=_standard_error(predicted),
        missing=int(np.isnan(prompts.shares).sum()),
        remarks=(*_doubts(value, raw, fit.weights), *fit.remarks, *uncertain.remarks),
        resampled=() if _says_nothing(prompts) else uncertain.resampled,
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


def _fit(prompts: Prompts, gamed: GamedRows | None) -> _Fit:
    rows, there = design(prompts, gamed), np.isfinite(prompts.shares)
    judged, groups = int(there.sum()), len(np.unique(prompts.cluster[there]))
    fixed = judged < FEW or groups < FOLDS
    with unfinished_fits() as unfinished:
        strength = _NEXT_TO_FREE if fixed else choose_strength(*rows[:3], groups=rows.group)
        weights = fit_weights(*rows[:3], strength)
    remarks = [
        *_departures(prompts, judged, groups),
        *_unfinished(len(unfinished), "of the rate"),
    ]
    return _Fit(weights, strength, fixed, remarks)


def _uncertain(
    prompts: Prompts, gamed: GamedRows | None, fit: _Fit, value: float, bootstrap: Bootstrap | None
) -> _Uncertain:
    if bootstrap is None:
        return _Uncertain()
    # A penalty that leaves nothing of the model does so in many resamples, too: they would all say 50.
    free = fit.fixed or _is_blank(fit.weights)
    spread = _resample(prompts, gamed, _NEXT_TO_FREE if free else None, bootstrap)
    return _Uncertain(
        _widened(spread.values, value, prompts, bootstrap),
        spread.weights,
        tuple(_unfinished(spread.unfinished, "of the interval")),
    )


def _resample(
    prompts: Prompts, gamed: GamedRows | None, strength: float | None, bootstrap: Bootstrap
) -> _Spread:
    """Fits to drawn clusters; a strength of None is chosen in each resample."""
    # Two sources, so that models on the same prompts are fitted to the same draws, whether a C is chosen or not.
    rng, shuffle = (np.random.default_rng(seed) for seed in (bootstrap.seed, [bootstrap.seed, 1]))
    clusters = prompts.of_clusters()
    whole = design(prompts, gamed)
    starts = _many(whole, STRENGTHS if strength is None else np.array([strength]), None).weights
    values: list[float] = []
    found: list[LengthWeights] = []
    unfinished = 0
    while len(values) < bootstrap.resamples:
        picked = rng.integers(0, len(clusters), size=len(clusters))
        drawn = prompts.take(np.concatenate([clusters[cluster] for cluster in picked]))
        if not np.isfinite(drawn.shares).any():
            continue
        rows = design(drawn, gamed)
        if strength is None:
            # Copies of a prompt are in one fold: held back from copies of itself, nothing would be held back.
            folds = shuffle.permutation(int(whole.group.max()) + 1)[rows.group] % FOLDS
            weights, converged = choose_and_fit(*rows[:3], folds, start=starts)
        else:
            fits = _many(rows, np.array([strength]), starts)
            weights, converged = fits.weights[:, 0], fits.converged
        unfinished += not converged
        values.append(float(100 * drawn.at_equal_length(weights).mean()))
        found.append(_named(weights))
    return _Spread(values, tuple(found), unfinished)


def _named(weights: _Array) -> LengthWeights:
    difficulty = float(weights[1]) if len(weights) == 3 else 0.0
    return LengthWeights(float(weights[0]), difficulty, float(weights[-1]))


def _standard_error(predicted: _Array) -> float:
    count = len(predicted)
    return float(predicted.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def _many(rows: Design, strengths: _Array, start: _Array | None) -> Fits:
    """The fits to all rows with each of the strengths."""
    shape = rows.features.shape[1], len(strengths)
    return fit_many(
        rows.features,
        rows.shares,
        np.repeat(rows.weights[:, None], len(strengths), axis=1),
        strengths,
        start=np.zeros(shape) if start is None else start,
    )


def _widened(
    values: Sequence[float], value: float, prompts: Prompts, bootstrap: Bootstrap
) -> Interval:
    """The interval of resampled rates with the rate itself in it, and what prompts that are all alike leave open."""
    low, high = percentile_interval(values, bootstrap.level)
    low, high = min(low, value), max(high, value)
    if not _says_nothing(prompts):
        return Interval(low, high)
    shares, clusters = _there(prompts)
    alike = bounded_mean(
        [100 * share for share in shares],
        bounds=(0, 100),
        clusters=clusters,
        bootstrap=bootstrap,
    )
    return Interval(min(low, alike.low), max(high, alike.high))


def _says_nothing(prompts: Prompts) -> bool:
    """Whether all resamples have the same share of wins."""
    return all_alike(*_there(prompts))


def _there(prompts: Prompts) -> tuple[list[float], list[int]]:
    """Shares and clusters of the preferences that are not missing."""
    there = np.isfinite(prompts.shares)
    return prompts.shares[there].tolist(), prompts.cluster[there].tolist()


def _is_blank(weights: _Array) -> bool:
    """Whether the rate is 50 whatever the prompts."""
    return not weights[1:].any()


def _doubts(value: float, raw: float, weights: _Array) -> list[str]:
    """A fit that found nothing, and AlpacaEval's bounds of what is believable."""
    remarks: list[str] = []
    if _is_blank(weights):
        remarks.append(
            f"the penalty left the model a weight of 0, so the rate is 50 by construction (the raw one is {raw:.1f}); "
            f"its interval is that of fits with C = {_NEXT_TO_FREE:g}, widened to hold 50"
        )
    high, low = max(raw + (100 - raw) / 4, raw + 10), min(raw - raw / 4, raw - 10)
    if value > high or value < low:
        remarks.append(
            f"the length-controlled win rate {value:.1f} is far from the raw one {raw:.1f} (believable: {low:.1f} to "
            f"{high:.1f}); the fit may have failed, look at lengths and preferences"
        )
    return remarks


def _departures(prompts: Prompts, judged: int, groups: int) -> list[str]:
    """What was not done in the usual way."""
    remarks: list[str] = []
    fixed = f"C is fixed at {_NEXT_TO_FREE:g} instead of chosen"
    if judged < FEW:
        remarks.append(f"only {judged} preferences: {fixed}")
    elif groups < FOLDS:
        remarks.append(f"only {groups} clusters of preferences: {fixed}")
    if np.ptp(prompts.shorter) == 0:
        remarks.append(
            f"all answers differ by {prompts.shorter[0]:g} characters from the baseline's: length is not controlled for"
        )
    return remarks


def _unfinished(count: int, what: str) -> list[str]:
    return [f"{count:,} fits {what} ended before they converged"] if count else []
