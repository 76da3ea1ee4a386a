"""How easy pairs are: measures for a curriculum. Higher is easier; NaN where a pair has no value."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, SupportsFloat, cast

from prefopt.build.curriculum import Measure, pair_record
from prefopt.errors import ConfigError, RecordError
from prefopt.records import Pair, Preference
from prefopt.text.pairing import annotated


class PairLogps(NamedTuple):
    """Log-probabilities of both responses of a pair under one model, in nats, summed over tokens."""

    chosen: float
    rejected: float


Logps = Callable[[Sequence[Preference]], Sequence[PairLogps | None]]
"""Log-probabilities of the one pair of each record under one model; None where training would drop the record."""


def score_gap(records: Sequence[Preference]) -> list[tuple[float, ...]]:
    """Score of the chosen minus score of the rejected response."""
    return [tuple(_score_gap(record, pair) for pair in record.pairs) for record in records]


def _score_gap(record: Preference, pair: Pair) -> float:
    chosen, rejected = (record.responses[i].score for i in (pair.chosen, pair.rejected))
    return math.nan if chosen is None or rejected is None else chosen - rejected


def rank_gap(records: Sequence[Preference]) -> list[tuple[float, ...]]:
    """Rank of the rejected minus rank of the chosen response; scores without ranks are ranked first, ties alike.

    Scores count where some responses have no rank, if there are any.
    """
    return [_rank_gaps(record) for record in records]


def _rank_gaps(record: Preference) -> tuple[float, ...]:
    ranks = {i: r.rank for i, r in enumerate(record.responses) if r.rank is not None}
    if len(ranks) < len(record.responses) and any(r.score is not None for r in record.responses):
        value = annotated(record.responses)
        places = {v: k for k, v in enumerate(sorted(set(value.values()), reverse=True))}
        ranks = {i: places[v] for i, v in value.items()}
    missing = math.nan
    return tuple(
        ranks.get(p.rejected, missing) - ranks.get(p.chosen, missing) for p in record.pairs
    )


def logp_gap(logps: Logps) -> Measure:
    """Log-probability of the chosen minus that of the rejected response under a model, summed over tokens, in nats."""

    def measure(records: Sequence[Preference]) -> list[tuple[float | None, ...]]:
        return _by_record(records, [_gap(each) for each in logps(_pairs(records))])

    return measure


def reward_gap(policy: Logps, reference: Logps, *, beta: float) -> Measure:
    """Gap of the implicit rewards ``beta * (log policy(y | x) - log reference(y | x))`` of a pair."""

    def measure(records: Sequence[Preference]) -> list[tuple[float | None, ...]]:
        pairs = _pairs(records)
        gaps = [[_gap(each) for each in logps(pairs)] for logps in (policy, reference)]
        return _by_record(
            records,
            [
                None if p is None or r is None else beta * (p - r)
                for p, r in zip(*gaps, strict=True)
            ],
        )

    return measure


def _pairs(records: Sequence[Preference]) -> list[Preference]:
    """Every pair as the record that it is trained as, whose text may be cut otherwise than in the whole list."""
    return [pair_record(record, pair) for record in records for pair in record.pairs]


def _gap(logps: PairLogps | None) -> float | None:
    return None if logps is None else logps.chosen - logps.rejected


def _by_record(
    records: Sequence[Preference], values: Sequence[float | None]
) -> list[tuple[float | None, ...]]:
    rest: Iterator[float | None] = iter(values)
    return [tuple(next(rest) for _ in record.pairs) for record in records]


def imported(name: str) -> Measure:
    """The measure of a function `package.module:function` of (record, pair) that returns how easy the pair is.

    None and NaN say that a pair has no difficulty.

    Raises:
        ConfigError: there is no such function. Called, the measure raises `RecordError` where the function fails or
            returns no number.
    """
    module, function = _found(name)
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            f"difficulty {name!r} is no function: write package.module:function, of (record, pair)"
        )
    ease = cast("Callable[[Preference, Pair], SupportsFloat | None]", found)

    def measure(records: Sequence[Preference]) -> list[tuple[float, ...]]:
        return [tuple(_called(ease, name, r, pair) for pair in r.pairs) for r in records]

    return measure


def source_of(name: str) -> str:
    """The text of the module that is named, and of the file that defines the function where that is another one.

    Empty for what has no source. Functions that these call are not followed.

    Raises:
        ConfigError: the module cannot be imported.
    """
    module, function = _found(name)
    files = [_file_of(module), _file_of(_definition(getattr(module, function)))]
    texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in files if file]
    return "".join(dict.fromkeys(texts))


def _definition(found: object) -> object:
    """The function behind decorators and `functools.partial`; the class of an object that can be called."""
    while True:
        if isinstance(found, functools.partial):
            found = cast("functools.partial[object]", found).func
        elif hasattr(found, "__wrapped__"):
            found = inspect.unwrap(cast("Callable[..., object]", found))
        else:
            break
    return found if inspect.isroutine(found) or inspect.isclass(found) else type(found)


def _file_of(found: object) -> str | None:
    with suppress(TypeError):  # what is written in C has none
        return inspect.getsourcefile(cast("ModuleType", found))
    return None


def _found(name: str) -> tuple[ModuleType, str]:
    """The module, and the name of the function."""
    module, _, function = name.partition(":")
    if not module or module.startswith(".") or not function:
        raise ConfigError(f"difficulty {name!r} is no function: write package.module:function")
    try:
        found = importlib.import_module(module)
        getattr(found, function)
    except Exception as error:
        raise ConfigError(
            f"difficulty {name!r} cannot be imported: {_said(error)}; write package.module:function of an installed "
            "package, or set PYTHONPATH to the module's folder"
        ) from error
    return found, function


def _called(
    ease: Callable[[Preference, Pair], SupportsFloat | None],
    name: str,
    record: Preference,
    pair: Pair,
) -> float:
    try:
        value = ease(record, pair)
        return math.nan if value is None else float(value)
    except Exception as error:
        raise RecordError(
            f"{record.origin or record.id}: difficulty {name!r} fails on the pair of responses {pair.chosen + 1} and "
            f"{pair.rejected + 1} ({_said(error)}); repair the function"
        ) from error


def _said(error: Exception) -> str:
    """What an exception of other people's code says, in one line, with its class."""
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
