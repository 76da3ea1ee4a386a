"""Pairs from ranked or scored responses. Which pairs a method trains on is its own choice; these are the usual ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal, get_args

from prefopt.errors import ConfigError
from prefopt.records import Pair, Response

Pairing = Literal["best_vs_rest", "best_worst", "all", "adjacent"]


def pair_responses(
    responses: Sequence[Response], pairing: str = "best_vs_rest"
) -> tuple[Pair, ...]:
    """Pairs of the annotated responses, the better first; equal annotations make no pair.

    What decides is said in `comparable`; responses are taken from best to worst, in their own order where
    annotations are equal.

    - `best_vs_rest`: the first best one against every worse one;
    - `best_worst`: the first best one against the last worst one;
    - `all`: every two that differ;
    - `adjacent`: every one against the next in order, where they differ.

    Responses without annotations are in no pair.

    Raises:
        ConfigError: `pairing` is none of these.
    """
    if pairing not in get_args(Pairing):
        raise ConfigError(f"pairing: unknown '{pairing}'; known are {', '.join(get_args(Pairing))}")
    value = comparable(responses)
    return tuple(Pair(a, b) for a, b in candidates(value, pairing) if value[a] > value[b])


def count_ties(responses: Sequence[Response], pairing: str = "best_vs_rest") -> int:
    """How many pairs `pair_responses` leaves out because both responses are annotated alike."""
    value = comparable(responses)
    return sum(value[a] == value[b] for a, b in candidates(value, pairing))


def comparable(responses: Sequence[Response]) -> dict[int, float]:
    """Position -> value, higher is better, of the responses that pairs are made of.

    The scores where every response has one, else the ranks (negated) where every one has one, else the scores of
    those that have one. Empty where no response has a score and some have no rank.
    """
    scores = {i: r.score for i, r in enumerate(responses) if r.score is not None}
    ranks = {i: -float(r.rank) for i, r in enumerate(responses) if r.rank is not None}
    return ranks if len(scores) < len(responses) == len(ranks) else scores


def annotated(responses: Sequence[Response]) -> dict[int, float]:
    """As `comparable`, but the ranks (negated) of those that have one where that says nothing: lists ranked in part."""
    ranks = {i: -float(r.rank) for i, r in enumerate(responses) if r.rank is not None}
    return comparable(responses) or ranks


def candidates(value: Mapping[int, float], pairing: str) -> list[tuple[int, int]]:
    """Pairs of positions that `pairing` makes of these values, the first at least as good as the second; with ties."""
    order = sorted(value, key=lambda i: -value[i])
    if len(order) < 2:
        return []
    match pairing:
        case "best_vs_rest":
            return [(order[0], i) for i in order[1:]]
        case "best_worst":
            return [(order[0], order[-1])]
        case "all":
            return list(combinations(order, 2))
        case _:
            return list(pairwise(order))
