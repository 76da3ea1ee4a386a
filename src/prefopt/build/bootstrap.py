"""Pairs from scored responses with a penalty on length, and the penalty that leaves no bias of length (DICE, sec. 3).

``s(y) = r(y) - alpha * length(y)``; the pair of a prompt is its best and its worst response by s, and alpha is where
chosen and rejected are equally long on average. Everything is a pure function of arrays; no models, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Pairing = Literal["best_worst", "topk", "random"]

OFFICIAL_STEP, OFFICIAL_STEPS = 0.001, 1000
"""The published grid of alpha: 0, 0.001, ... below 1, in nats per character before beta."""

_BEST = 3
"""Places around which a full scan looks on."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The scored responses to G prompts, up to K to each; what a prompt lacks is NaN."""

    rewards: Floats
    """[G, K]"""
    lengths: Floats
    """[G, K], in whatever unit alpha is per."""
    texts: Ints
    """[G, K]; equal numbers of one prompt are equal texts."""
    noise: Floats | None = None
    """[G, K] how far each reward may be off by rounding; None: not at all."""

    @classmethod
    def of(
        cls,
        rewards: Sequence[Sequence[float]],
        lengths: Sequence[Sequence[float]],
        texts: Sequence[Sequence[str]],
        noise: Sequence[Sequence[float]] | None = None,
    ) -> Self:
        """From one list per prompt."""
        width = max([1, *map(len, rewards)])
        shape = (len(rewards), width)
        numbered = np.full(shape, -1)
        for g, t in enumerate(texts):
            numbers = {text: k for k, text in enumerate(dict.fromkeys(t))}
            numbered[g, : len(t)] = [numbers[text] for text in t]
        rounded = None if noise is None else _filled(noise, shape)
        return cls(_filled(rewards, shape), _filled(lengths, shape), numbered, rounded)


def _filled(rows: Sequence[Sequence[float]], shape: tuple[int, int]) -> Floats:
    found = np.full(shape, np.nan)
    for g, row in enumerate(rows):
        found[g, : len(row)] = row
    return found


class PairRule(NamedTuple):
    """Which responses to a prompt become pairs."""

    pairing: Pairing = "best_worst"
    """`best_worst`: the best against the worst; `topk`: the i-th best against the i-th worst, for i up to `top`;
    `random`: two drawn at random, the better of them chosen. Of equal rewards the earlier one counts as better."""
    top: int = 2
    min_margin: float = 0.0
    """Pairs whose two scores differ by this much or less are left out."""
    seed: int = 0
    """Of `random`."""


BEST_WORST = PairRule()
"""As published."""


class Chosen(NamedTuple):
    """The pairs of all prompts at one alpha."""

    group: Ints
    """[P] which prompt."""
    chosen: Ints
    """[P] which of its responses."""
    rejected: Ints
    """[P]"""
    margin: Floats
    """[P] difference of the regularised rewards, above `min_margin` and rounding."""
    equal: int
    """Pairs left out because the two texts are equal."""
    close: int
    """Pairs left out because their margin is no larger than `min_margin`, or than rounding can make it."""


class AlphaPoint(NamedTuple):
    """What one alpha leads to."""

    alpha: float
    gap: float | None
    """Mean length of the chosen minus that of the rejected responses; None where there are no pairs."""
    pairs: int


class AlphaFit(NamedTuple):
    """The alpha of the smallest gap, and what was tried."""

    alpha: float
    curve: tuple[AlphaPoint, ...]
    """By alpha."""


def length_regularised(rewards: Floats, lengths: Floats, alpha: float) -> Floats:
    """``r - alpha * length``; alpha in units of the reward per unit of length."""
    return rewards - alpha * lengths


def choose(candidates: Candidates, alpha: float, rule: PairRule = BEST_WORST) -> Chosen:
    """The pairs at one alpha, prompt by prompt.

    A prompt with fewer than two responses has none. With ``alpha = 0`` it is the reward alone that decides.
    """
    scores = length_regularised(candidates.rewards, candidates.lengths, alpha)
    best, worst = _PAIRINGS[rule.pairing](scores, rule)
    group = np.repeat(np.arange(len(scores)), best.shape[1])
    best, worst = best.reshape(-1), worst.reshape(-1)
    there = best >= 0
    group, best, worst = group[there], best[there], worst[there]
    margin = scores[group, best] - scores[group, worst]
    equal = candidates.texts[group, best] == candidates.texts[group, worst]
    # A tie is no preference, whatever the rule, and what rounding alone can make of one is a tie too; comparisons with
    # NaN are false.
    least = np.full(len(margin), max(rule.min_margin, 0.0))
    if candidates.noise is not None:
        least = np.maximum(least, candidates.noise[group, best] + candidates.noise[group, worst])
    close = ~equal & ~(margin > least)
    kept = ~equal & ~close
    return Chosen(
        group[kept], best[kept], worst[kept], margin[kept], int(equal.sum()), int(close.sum())
    )


def length_gap(candidates: Candidates, pairs: Chosen) -> float | None:
    """Mean of the signed differences in length, chosen minus rejected; None without pairs."""
    if not len(pairs.group):
        return None
    chosen = candidates.lengths[pairs.group, pairs.chosen]
    return float((chosen - candidates.lengths[pairs.group, pairs.rejected]).mean())


def scan_fully(
    candidates: Candidates,
    rule: PairRule = BEST_WORST,
    *,
    allow_negative: bool = False,
    points: int = 128,
) -> AlphaFit:
    """The alpha of the smallest |gap|, over the whole range in which pairs change.

    The order of two responses changes at ``(r_i - r_j) / (length_i - length_j)`` and nowhere else, so the gap is
    constant between two neighbouring ones of these numbers: one value from each interval is all there is to try.
    `points` of them, evenly spread over the intervals, are tried first, then those around the best three and at both
    ends of the best three stretches of one gap, and so on until nothing lies between. Equal gaps are decided by the
    smaller |alpha|. As alpha rises the best response only gets shorter and the worst one longer, and two drawn at
    random change places once, so the signed gap of `best_worst` and `random` falls all the way and the smallest is
    found; with `topk`, and with pairs that come and go with `min_margin`, bumps between what is tried may be missed.

    Args:
        candidates: responses to choose from.
        rule: which of them become pairs; chosen anew at every alpha.
        allow_negative: whether alpha may be below 0, where rewards favour short responses.
        points: alphas tried per round and place.
    """
    alphas = _intervals(candidates, allow_negative=allow_negative)
    tried: dict[int, AlphaPoint] = {}
    new = {int(np.searchsorted(alphas, 0.0)), *_spread(0, len(alphas) - 1, points)}
    while new:
        for i in new:
            tried[i] = _point(candidates, float(alphas[i]), rule)
        order = sorted(tried)
        new = set[int]()
        for before, after in _promising(order, [_badness(tried[i]) for i in order]):
            new |= _spread(order[before], order[after], points)
        new -= tried.keys()
    curve = tuple(tried[i] for i in sorted(tried))
    return AlphaFit(min(curve, key=_badness).alpha, curve)


def scan_officially(
    candidates: Candidates, rule: PairRule = BEST_WORST, *, beta: float
) -> AlphaFit:
    """The alpha that the published code finds: a grid from 0 up, left at the first |gap| above the best so far.

    The grid is 0, 0.001, ... below 1 for log-ratios; for rewards, which are beta times them, it is beta times that. On
    a curve with bumps the scan ends at the first one.
    """
    curve: list[AlphaPoint] = []
    best: AlphaPoint | None = None
    for step in range(OFFICIAL_STEPS):
        point = _point(candidates, beta * OFFICIAL_STEP * step, rule)
        curve.append(point)
        if point.gap is None:
            continue
        if best is not None and abs(point.gap) > abs(best.gap or 0.0):
            break
        if best is None or abs(point.gap) < abs(best.gap or 0.0):
            best = point
    return AlphaFit(0.0 if best is None else best.alpha, tuple(curve))


def _point(candidates: Candidates, alpha: float, rule: PairRule) -> AlphaPoint:
    pairs = choose(candidates, alpha, rule)
    return AlphaPoint(alpha, length_gap(candidates, pairs), len(pairs.group))


def _badness(point: AlphaPoint) -> tuple[float, float]:
    return (math.inf if point.gap is None else abs(point.gap), abs(point.alpha))


def _promising(
    order: Sequence[int], badness: Sequence[tuple[float, float]]
) -> Iterator[tuple[int, int]]:
    """Where to look on, as neighbouring places in `order`: around the best three, and beyond stretches of one gap."""
    last = len(order) - 1
    best = sorted(range(len(order)), key=badness.__getitem__)
    for k in best[:_BEST]:
        yield max(k - 1, 0), min(k + 1, last)
    seen: set[int] = set()
    for _ in range(_BEST):
        k = next((k for k in best if k not in seen), best[0])
        first = end = k
        while first > 0 and badness[first - 1][0] == badness[k][0]:
            first -= 1
        while end < last and badness[end + 1][0] == badness[k][0]:
            end += 1
        seen.update(range(first, end + 1))
        yield max(first - 1, 0), first
        yield end, min(end + 1, last)


def _spread(first: int, last: int, points: int) -> set[int]:
    return set(np.linspace(first, last, points).astype(np.int64).tolist())


def _intervals(candidates: Candidates, *, allow_negative: bool) -> Floats:
    """0 and one alpha from each interval in which the order of no two responses changes, ascending."""
    slopes = _slopes(candidates)
    used = slopes if allow_negative else slopes[slopes > 0]
    edges = np.unique(used)
    if not len(edges):
        return np.zeros(1)
    ends = [edges[0] - abs(edges[0]), edges[-1] + abs(edges[-1])]
    found = np.unique(np.concatenate([[0.0], (edges[1:] + edges[:-1]) / 2, ends]))
    return found if allow_negative else found[found >= 0]


def _slopes(candidates: Candidates) -> Floats:
    """Where the order of two responses to one prompt changes: their difference in reward over that in length."""
    rewards, lengths = candidates.rewards, candidates.lengths
    i, j = np.triu_indices(rewards.shape[1], k=1)
    rise, run = rewards[:, i] - rewards[:, j], lengths[:, i] - lengths[:, j]
    usable = np.isfinite(rise) & np.isfinite(run) & (run != 0)
    return rise[usable] / run[usable]


def _best_worst(scores: Floats, rule: PairRule) -> tuple[Ints, Ints]:
    del rule
    best = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    backwards = np.where(np.isnan(scores), np.inf, scores)[:, ::-1]
    worst = scores.shape[1] - 1 - backwards.argmin(axis=1)
    none = np.isnan(scores).all(axis=1)
    return np.where(none, -1, best)[:, None], np.where(none, -1, worst)[:, None]


def _topk(scores: Floats, rule: PairRule) -> tuple[Ints, Ints]:
    order = np.argsort(-scores, axis=1, kind="stable")  # NaN comes last
    count = (~np.isnan(scores)).sum(axis=1)[:, None]
    i = np.arange(min(rule.top, scores.shape[1]))[None, :]
    worst = np.take_along_axis(order, np.maximum(count - 1 - i, 0), axis=1)
    there = i < count // 2
    return np.where(there, order[:, : i.shape[1]], -1), np.where(there, worst, -1)


def _random(scores: Floats, rule: PairRule) -> tuple[Ints, Ints]:
    """The same two responses at every alpha; only their order may change."""
    keys = np.random.default_rng(rule.seed).random(scores.shape)
    drawn = np.argsort(np.where(np.isnan(scores), np.inf, keys), axis=1, kind="stable")[:, :2]
    if drawn.shape[1] < 2:
        return np.full((len(scores), 1), -1), np.full((len(scores), 1), -1)
    rows = np.arange(len(scores))
    first, second = drawn[:, 0], drawn[:, 1]
    turned = scores[rows, second] > scores[rows, first]
    there = ~np.isnan(scores[rows, second])
    best = np.where(there, np.where(turned, second, first), -1)
    worst = np.where(there, np.where(turned, first, second), -1)
    return best[:, None], worst[:, None]


_PAIRINGS: Mapping[str, Callable[[Floats, PairRule], tuple[Ints, Ints]]] = {
    "best_worst": _best_worst,
    "topk": _topk,
    "random": _random,
}
