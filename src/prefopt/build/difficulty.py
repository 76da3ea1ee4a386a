"""How easy pairs are: measures for a curriculum. Higher is easier; NaN where a pair has no value."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import cast

from prefopt.build.curriculum import Measure
from prefopt.errors import ConfigError
from prefopt.models.likelihood import ResponseLogp
from prefopt.records import Pair, Preference
from prefopt.text.pairing import comparable

Logps = Callable[[Sequence[Preference]], list[tuple[ResponseLogp, ...]]]
"""Log-probabilities of each response of each record under one model."""


def score_gap(records: Sequence[Preference]) -> list[tuple[float, ...]]:
    """Score of the chosen minus score of the rejected response."""
    return [tuple(_score_gap(record, pair) for pair in record.pairs) for record in records]


def _score_gap(record: Preference, pair: Pair) -> float:
    chosen, rejected = (record.responses[i].score for i in (pair.chosen, pair.rejected))
    return math.nan if chosen is None or rejected is None else chosen - rejected


def rank_gap(records: Sequence[Preference]) -> list[tuple[float, ...]]:
    """Rank of the rejected minus rank of the chosen response; scores without ranks are ranked first, ties alike."""
    return [_rank_gaps(record) for record in records]


def _rank_gaps(record: Preference) -> tuple[float, ...]:
    ranks = {i: r.rank for i, r in enumerate(record.responses) if r.rank is not None}
    if len(ranks) < len(record.responses):
        value = comparable(record.responses)
        places = {v: k for k, v in enumerate(sorted(set(value.values()), reverse=True))}
        ranks = {i: places[v] for i, v in value.items()}
    missing = math.nan
    return tuple(
        ranks.get(p.rejected, missing) - ranks.get(p.chosen, missing) for p in record.pairs
    )


def logp_gap(logps: Logps) -> Measure:
    """Log-probability of the chosen minus that of the rejected response under a model, summed over tokens, in nats."""

    def measure(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        return _gaps(records, [[each.total for each in row] for row in logps(records)])

    return measure


def reward_gap(policy: Logps, reference: Logps, *, beta: float) -> Measure:
    """Gap of the implicit rewards ``beta * (log policy(y | x) - log reference(y | x))`` of a pair."""

    def measure(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        rows = zip(policy(records), reference(records), strict=True)
        rewards = [[beta * (p.total - r.total) for p, r in zip(*row, strict=True)] for row in rows]
        return _gaps(records, rewards)

    return measure


def _gaps(
    records: Sequence[Preference], values: Sequence[Sequence[float]]
) -> list[tuple[float, ...]]:
    return [
        tuple(row[pair.chosen] - row[pair.rejected] for pair in record.pairs)
        for record, row in zip(records, values, strict=True)
    ]


def imported(name: str) -> Measure:
    """The measure of a function `package.module:function` of (record, pair) that returns how easy the pair is.

    Raises:
        ConfigError: there is no such function.
    """
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon and function else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"difficulty {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(
            f"difficulty {name!r} is no function: write package.module:function, of (record, pair)"
        )
    ease = cast("Callable[[Preference, Pair], float]", found)

    def measure(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        return [tuple(float(ease(record, pair)) for pair in record.pairs) for record in records]

    return measure
