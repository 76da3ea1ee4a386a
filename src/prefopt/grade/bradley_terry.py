"""Strengths of two or more models from pairwise verdicts: the Bradley-Terry model, on the scale of Elo ratings.

``P(i beats j) = sigmoid(s_i - s_j)``, a tie half a win for each. Fitted by maximum likelihood, so the order of the
matches does not matter, unlike with running Elo updates. Bradley and Terry 1952, Biometrika 39; Ford 1957, Am. Math.
Monthly 64, for when a maximum exists; Chiang et al. 2024, arXiv 2403.04132, for models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.grade.logistic import sigmoid
from prefopt.grade.statistics import percentile_interval
from prefopt.grade.winrate import USUAL, Bootstrap, Judged, require_preferences, share_of

_Array = NDArray[np.float64]

ELO_MEAN = 1000.0
"""The Elo rating of the mean of the models, or of the anchor."""
ELO_PER_NAT = 400 / math.log(10)
"""Elo points per nat of log-odds: 400 points are odds of 10 to 1."""
_STEPS = 200
_TOLERANCE = 1e-10
"""Nats that no strength moves by any more."""


class Match(NamedTuple):
    """Two models' answers to one prompt, and the verdict on the first."""

    first: str
    second: str
    verdict: Judged


class Strength(NamedTuple):
    """How strong one model is."""

    value: float
    """``s``, in nats of log-odds; the mean over models (or the anchor) is 0."""
    elo: float
    """``1000 + 400 / ln(10) * s``."""
    low: float
    """Of the interval of `elo`."""
    high: float
    matches: int
    """With a verdict."""


class Ranking(NamedTuple):
    """Models by strength."""

    models: Mapping[str, Strength]
    """The strongest first; equal ones by name."""
    missing: int
    """Matches without a verdict; left out."""
    unbounded: int
    """Resamples in which a model won or lost everything, so that no maximum exists. They are left out of the intervals,
    which are too narrow if there are many; a `prior` avoids them."""

    def probability(self, first: str, second: str) -> float:
        """How likely the first beats the second, ties counted half.

        Raises:
            KeyError: a model that has no strength.
        """
        difference = self.models[first].value - self.models[second].value
        return float(sigmoid(np.asarray(difference)))


def rank_models(
    matches: Sequence[Match],
    *,
    prior: float = 0.0,
    anchor: str | None = None,
    clusters: Sequence[Hashable] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> Ranking:
    """The strength of each model that maximises ``sum(share * (log P(first beats second)) + (1 - share) * ...)``.

    A finite and unique maximum exists if and only if the models cannot be split into two groups of which one never took
    anything from the other. Where all verdicts between two models are equal, resamples are too: with a `prior` the
    interval then has width 0, although little is known; the prior alone says how far apart they are.

    Args:
        matches: any number per pair of models, in any order.
        prior: ties added to each pair of models that met; above 0 a model that won everything has a strength.
        anchor: the model whose strength is 0 and whose Elo is 1000, with an interval of width 0; None: the mean.
        clusters: what several matches have in common (the prompt); whole clusters are drawn then. None: matches.
        bootstrap: of the intervals.

    Raises:
        ValueError: no verdict or one that is none, models that no chain of matches connects, a model that won or lost
            everything (with prior 0), a model against itself, an unknown anchor, or not one cluster per match.
    """
    if clusters is not None and len(clusters) != len(matches):
        raise ValueError(f"{len(matches)} matches and {len(clusters)} clusters; give one for each")
    if not (prior >= 0 and math.isfinite(prior)):
        raise ValueError(f"the prior is {prior}; give a number of ties per pair, 0 or more")
    shares = [
        _checked_share(match, f"match {number} of {len(matches)}")
        for number, match in enumerate(matches, start=1)
    ]
    require_preferences(match.verdict for match in matches)
    there = [at for at, share in enumerate(shares) if share is not None]
    played = [matches[at] for at in there]
    names = sorted({name for match in played for name in (match.first, match.second)})
    if not names:
        raise ValueError(f"none of {len(matches)} matches has a verdict; there is nothing to rank")
    if anchor is not None and anchor not in names:
        raise ValueError(f"the anchor {anchor!r} has no match; known are {', '.join(names)}")
    table = _Table(names, played, [share for share in shares if share is not None], prior)
    wins = table.wins(np.ones(len(played)))
    _check_identified(wins, names)
    values = _anchored(fit_strengths(wins), names, anchor)
    groups = range(len(matches)) if clusters is None else clusters
    resampled, unbounded = _resample(table, [groups[at] for at in there], bootstrap)
    spread = [_anchored(found, names, anchor) for found in resampled]
    return Ranking(
        models=_described(names, values, spread, played, bootstrap.level),
        missing=len(matches) - len(played),
        unbounded=unbounded,
    )


def fit_strengths(wins: _Array) -> _Array:
    """The maximum-likelihood strengths of a table of wins, in nats, with mean 0.

    Newton's method on ``sum_ij wins_ij log sigmoid(s_i - s_j)``, which is concave, with halved steps while one does not
    improve it. The table has a maximum (`rank_models` checks that).

    Args:
        wins: [models, models], how often the row beat the column; ties are 0.5 in both places.

    Returns:
        [models]
    """
    games = wins + wins.T
    s = np.zeros(len(wins))
    likelihood = _log_likelihood(wins, s)
    for _ in range(_STEPS):
        p = sigmoid(s[:, None] - s[None, :])
        slope = (wins - games * p).sum(axis=1)
        curve = games * p * (1 - p)
        # The Laplacian is singular along (1, ..., 1); the added constant only fixes that direction.
        step = np.linalg.solve(np.diag(curve.sum(axis=1)) - curve + curve.mean(), slope)
        step -= step.mean()
        # A maximum to machine precision cannot be improved; then the halving makes the step vanish.
        while np.abs(step).max() > _TOLERANCE and _log_likelihood(wins, s + step) < likelihood:
            step /= 2
        s = s + step
        likelihood = _log_likelihood(wins, s)
        if np.abs(step).max() <= _TOLERANCE:
            break
    return s - s.mean()


class _Table:
    """Matches as arrays, so that resamples are counted quickly."""

    def __init__(
        self, names: Sequence[str], matches: Sequence[Match], shares: Sequence[float], prior: float
    ) -> None:
        at = {name: number for number, name in enumerate(names)}
        self._count = len(names)
        first = np.array([at[match.first] for match in matches])
        second = np.array([at[match.second] for match in matches])
        self._won, self._lost = first * self._count + second, second * self._count + first
        self._shares = np.asarray(shares, dtype=np.float64)
        met = np.zeros((self._count, self._count), dtype=bool)
        met[first, second] = met[second, first] = True
        self._prior = prior / 2 * met

    def wins(self, weights: _Array) -> _Array:
        """[models, models], each match counted `weights` times; the prior's ties are in it."""
        size = self._count**2
        won = np.bincount(self._won, weights * self._shares, size)
        lost = np.bincount(self._lost, weights * (1 - self._shares), size)
        return (won + lost).reshape(self._count, self._count) + self._prior


def _checked_share(match: Match, where: str) -> float | None:
    if match.first == match.second:
        raise ValueError(
            f"{where}: {match.first!r} is matched with itself; matches are between two models"
        )
    try:
        return share_of(match.verdict)
    except ValueError as error:
        raise ValueError(f"{where} ({match.first} and {match.second}): {error}") from error


def _resample(
    table: _Table, clusters: Sequence[Hashable], bootstrap: Bootstrap
) -> tuple[list[_Array], int]:
    """Strengths on resampled clusters, and how many resamples had no maximum."""
    rows: dict[Hashable, int] = {}
    index = np.array([rows.setdefault(cluster, len(rows)) for cluster in clusters])
    rng = np.random.default_rng(bootstrap.seed)
    found: list[_Array] = []
    for _ in range(bootstrap.resamples):
        drawn = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        wins = table.wins(drawn[index].astype(np.float64))
        if _reaches(wins > 0).all():
            found.append(fit_strengths(wins))
    return found, bootstrap.resamples - len(found)


def _check_identified(wins: _Array, names: Sequence[str]) -> None:
    connected = _reaches(wins + wins.T > 0)
    if not connected.all():
        largest = connected[int(connected.sum(axis=1).argmax())]
        apart = [name for name, inside in zip(names, largest, strict=True) if not inside]
        raise ValueError(
            f"no chain of matches connects {', '.join(apart)} with the other models; judge them against each other or "
            "rank them apart"
        )
    above = _reaches(wins > 0)
    if not above.all():
        # Whom the fewest reach is at the top: nobody else ever took anything from that group.
        top = above[:, int(above.sum(axis=0).argmin())]
        winners = [name for name, inside in zip(names, top, strict=True) if inside]
        others = [name for name in names if name not in winners]
        raise ValueError(
            f"{', '.join(winners)} never lost or drew against {', '.join(others)}, so no distance between them is "
            "large enough; judge more prompts or give a prior, such as prior=1"
        )


def _reaches(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[models, models]: whether a path leads from the row to the column, the empty one included."""
    paths = edges | np.eye(len(edges), dtype=bool)
    for _ in range(max(1, len(edges)).bit_length()):
        paths = (paths.astype(np.float32) @ paths.astype(np.float32)) > 0
    return paths


def _described(
    names: Sequence[str],
    values: _Array,
    spread: Sequence[_Array],
    matches: Sequence[Match],
    level: float,
) -> dict[str, Strength]:
    elo = ELO_MEAN + ELO_PER_NAT * values
    resampled = ELO_MEAN + ELO_PER_NAT * np.array(spread).reshape(-1, len(names))
    described: dict[str, Strength] = {}
    for at in sorted(range(len(names)), key=lambda at: (-values[at], names[at])):
        # No resample had a maximum: nothing is known about how far the rating may move.
        low, high = (
            percentile_interval(resampled[:, at], level)
            if len(resampled)
            else (-math.inf, math.inf)
        )
        played = sum(names[at] in {match.first, match.second} for match in matches)
        described[names[at]] = Strength(float(values[at]), float(elo[at]), low, high, played)
    return described


def _anchored(values: _Array, names: Sequence[str], anchor: str | None) -> _Array:
    return values if anchor is None else values - values[names.index(anchor)]


def _log_likelihood(wins: _Array, s: _Array) -> float:
    return float(-(wins * np.logaddexp(0, s[None, :] - s[:, None])).sum())
