"""Pairs from ranked or scored responses. Which pairs a method trains on is its own choice; these are the usual ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Literal, get_args

from prefopt.errors import ConfigError
from prefopt.records import Pair, Response

Pairing = Literal["best_vs_rest", "best_worst", "all", "adjacent"]


def pair_responses(
    responses: Sequence[Response], pairing: str = "best_vs_rest"
) -> tuple[Pair, ...]:
    """Pairs of the annotated responses, the better first; equal annotations make no pair.

    `score` (higher is better) decides where every response has one, else `rank` (1 is best); responses are
    taken from best to worst, in their own order where annotations are equal.

    - `best_vs_rest`: the first best one against every worse one;
    - `best_worst`: the first best one against the last worst one;
    - `all`: every two that differ;
    - `adjacent`: every one against the next in order, where they differ.

    Responses without annotations give no pairs.

    Raises:
        ConfigError: `pairing` is none of these.
    """
    if pairing not in get_args(Pairing):
        raise ConfigError(f"pairing: unknown '{pairing}'; known are {', '.join(get_args(Pairing))}")
    value = _annotations(responses)
    if value is None:
        return ()
    order = sorted(range(len(responses)), key=lambda i: -value[i])
    match pairing:
        case "best_vs_rest":
            candidates = [(order[0], i) for i in order[1:]]
        case "best_worst":
            candidates = [(order[0], order[-1])]
        case "all":
            candidates = list(combinations(order, 2))
        case _:
            candidates = list(pairwise(order))
    return tuple(Pair(a, b) for a, b in candidates if value[a] > value[b])


def _annotations(responses: Sequence[Response]) -> list[float] | None:
    """One number a response, higher is better; None unless all responses are annotated alike."""
    if len(responses) < 2:
        return None
    scores = [r.score for r in responses if r.score is not None]
    if len(scores) == len(responses):
        return scores
    ranks = [-float(r.rank) for r in responses if r.rank is not None]
    return ranks if len(ranks) == len(responses) else None
