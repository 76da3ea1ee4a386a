"""The stages of a curriculum: which of its pairs are trained on together, and in which order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from prefopt.errors import ConfigError, RecordError
from prefopt.records import Pair, Preference
from prefopt.text.nested import LEVELS, STAGE
from prefopt.values import JsonValue

OWN_STAGE = "curriculum_stage"
"""Key of `Preference.meta` that holds the stage in the files of a curriculum; `stage` is the data's own."""

_NUMBER = re.compile(r"0*[1-9][0-9]{0,8}(\.0*)?")
"""A stage as tables write it, also where a missing one has made their column one of fractions."""


_SHOWN = 10
"""Numbers of stages that a message names."""


@dataclass(frozen=True, slots=True)
class CurriculumRules:
    """Which pairs there are, and how they become stages."""

    pairing: str = "best_vs_rest"
    """Pairs of a list, see `text.pairing`; records that have pairs keep them."""
    stages: Literal["ranks", "quantiles", "pooled", "given"] = "ranks"
    """ranks: stage k is the k-th easiest pair of every prompt (see `StagedPair.group`); quantiles: all pairs together,
    in equal parts; pooled: one stage; given: what the data say (`stage`)."""
    quantiles: int = 3
    """Number of parts: N // n pairs each, the remainder in the last one."""
    align: Literal["hard", "easy"] = "hard"
    """Where prompts with fewer pairs than others have theirs: in the last stages, or in the first."""
    order: Literal["easy_to_hard", "hard_to_easy", "random"] = "easy_to_hard"
    """random: pairs are dealt out to the same stages by chance, within their prompt for `ranks`."""
    only: Literal["easiest", "hardest"] | int | None = None
    """Train on this one stage, counted from the easiest, from 1; for `ranks`, that pair of every prompt; for `given`, a
    number is the stage that the data say."""
    drop_hardest: float = 0.0
    """Share of all pairs, the hardest, that is left out, rounded down."""
    on_ties: Literal["drop", "keep"] = "drop"
    """Pairs of equal scores; kept ones are the hardest of all."""
    on_missing: Literal["error", "drop"] = "error"
    """Responses without a score or rank, and pairs whose ease is NaN."""
    seed: int = 42
    stage_column: str | None = None
    """Column that says the stage, for `given`; None: `stage`."""


class StagedPair(NamedTuple):
    """One pair and where it belongs."""

    record: int
    """Index of its record."""
    pair: Pair
    ease: float
    tied: bool
    """Both responses have the same score: harder than any other pair, whatever the ease."""
    group: int
    """Index of the first record of its prompt. A list is a group of its own; rows of one pair that share their prompt
    are one group, since somebody has taken a list apart."""


def staying(pairs: int, rules: CurriculumRules) -> int:
    """How many of the pairs `drop_hardest` leaves."""
    return pairs - int(rules.drop_hardest * pairs)


def _hardness(each: StagedPair) -> tuple[bool, float]:
    """Sort key, the easiest first."""
    return each.tied, -each.ease


def in_stages(
    found: list[StagedPair], records: Sequence[Preference], rules: CurriculumRules
) -> list[list[StagedPair]]:
    """Stages in the order of training, none of them empty."""
    if rules.stages == "given":
        numbered = _numbered(found, records, rules)
    else:
        ordered = sorted(found, key=_hardness)
        kept = ordered[: staying(len(ordered), rules)]
        layout = {"ranks": _by_rank, "quantiles": _by_quantile, "pooled": _pooled}[rules.stages]
        numbered = layout(found, kept, rules)
    stages: list[list[StagedPair]] = [[] for _ in range(1 + max(n for n, _ in numbered))]
    for number, each in numbered:
        stages[number].append(each)
    stages = [stage for stage in stages if stage]
    if rules.only is not None and rules.stages != "ranks":
        known = (
            _given(found, records, rules) if rules.stages == "given" else range(1, len(stages) + 1)
        )
        place = _place_of_only(rules.only, sorted(set(known)))
        stages = stages[place : place + 1]
    return stages[::-1] if rules.order == "hard_to_easy" else stages


_Numbered = list[tuple[int, StagedPair]]
"""Pairs with the number of their stage, the easiest stage being 0."""


def _pooled(found: list[StagedPair], kept: list[StagedPair], rules: CurriculumRules) -> _Numbered:
    del found, rules
    return [(0, each) for each in kept]


def _by_rank(found: list[StagedPair], kept: list[StagedPair], rules: CurriculumRules) -> _Numbered:
    """Places are given before the hardest pairs go, so that what is left of a prompt stays in its stage."""
    groups: dict[int, list[StagedPair]] = {}
    for each in sorted(found, key=_hardness):
        groups.setdefault(each.group, []).append(each)
    most = max(map(len, groups.values()))
    numbered: _Numbered = []
    for first_record, group in groups.items():
        if rules.only is not None:
            wanted = {"easiest": 0, "hardest": len(group) - 1}.get(str(rules.only))
            place = int(rules.only) - 1 if wanted is None else wanted
            numbered += [(0, each) for each in group[place : place + 1]]
            continue
        first = most - len(group) if rules.align == "hard" else 0
        places = range(len(group))
        if rules.order == "random":
            places = _generator(rules, 1 + first_record).permutation(len(group))
        numbered += [(first + int(p), each) for p, each in zip(places, group, strict=True)]
    staying = set(kept)
    numbered = [(number, each) for number, each in numbered if each in staying]
    if not numbered and rules.only is not None:
        _place_of_only(rules.only, range(1, most + 1))
        raise ConfigError(
            f"drop_hardest {rules.drop_hardest} leaves no pair of only: {rules.only}; lower it"
        )
    return numbered


def _by_quantile(
    found: list[StagedPair], kept: list[StagedPair], rules: CurriculumRules
) -> _Numbered:
    del found
    size = len(kept) // rules.quantiles
    if not size:
        raise ConfigError(
            f"quantiles is {rules.quantiles} and there are {len(kept)} pairs: lower it, or bring more data"
        )
    order = range(len(kept))
    if rules.order == "random":
        order = _generator(rules, 0).permutation(len(kept))
    return [
        (min(place // size, rules.quantiles - 1), kept[int(i)]) for place, i in enumerate(order)
    ]


def _numbered(
    found: list[StagedPair], records: Sequence[Preference], rules: CurriculumRules
) -> _Numbered:
    """By the stages that the data give; for order random these numbers are dealt out anew."""
    given = _given(found, records, rules)
    known = sorted(set(given))
    places = [known.index(stage) for stage in given]
    if rules.order == "random":
        places = [int(p) for p in _generator(rules, 0).permutation(places)]
    return list(zip(places, found, strict=True))


def _given(
    found: list[StagedPair], records: Sequence[Preference], rules: CurriculumRules
) -> list[int]:
    """The stage that the data give each pair."""
    return [stage_of(records[each.record], rules.stage_column) for each in found]


def stage_of(record: Preference, column: str | None = None) -> int:
    """The stage that `meta` says the record belongs to: easy, medium and hard are 1, 2 and 3.

    Args:
        record: the record.
        column: key of `meta` that says it; None: what a curriculum has written there, else `stage`.

    Raises:
        RecordError: it says none, or something else.
    """
    stage = _stated(record, column)
    found = _number_of(stage)
    if found is None:
        said, name = "missing" if stage is None else repr(stage), column or STAGE
        raise RecordError(
            f"{record.origin or record.id}: {name} is {said}; stages: given needs a column `{name}` with "
            f"{', '.join(LEVELS)} or a number from 1 (columns.stage names another one)"
        )
    return found


def says_stage(record: Preference, column: str | None = None) -> bool:
    """Whether `stage_of` finds one."""
    return _number_of(_stated(record, column)) is not None


def _stated(record: Preference, column: str | None) -> JsonValue:
    """What stands in `meta` where the stage should be; None where nothing does."""
    names = (OWN_STAGE, STAGE) if column is None else (column,)
    return next((record.meta[name] for name in names if name in record.meta), None)


def _number_of(stage: JsonValue) -> int | None:
    if isinstance(stage, str):
        if stage.lower() in LEVELS:
            return LEVELS.index(stage.lower()) + 1
        return int(stage.partition(".")[0]) if _NUMBER.fullmatch(stage) else None
    if isinstance(stage, bool) or not isinstance(stage, int | float) or stage < 1:
        return None
    return int(stage) if isinstance(stage, int) or stage.is_integer() else None


def _place_of_only(only: str | int, stages: Sequence[int]) -> int:
    """The index of the wanted stage among these numbers of stages, the easiest first."""
    place = {"easiest": 0, "hardest": len(stages) - 1}.get(str(only))
    if place is not None:
        return place
    if only not in stages:
        there = f"there are {len(stages)} stages"
        if list(stages) != list(range(1, len(stages) + 1)):
            there = f"the data have {_list(stages)}"
        raise ConfigError(f"only is {only} and {there}: name one of them")
    return list(stages).index(int(only))


def _list(stages: Sequence[int]) -> str:
    """The numbers, few of them in full."""
    shown = ", ".join(map(str, stages[:_SHOWN]))
    more = f" and {len(stages) - _SHOWN} more" if len(stages) > _SHOWN else ""
    return f"the stage{'' if len(stages) == 1 else 's'} {shown}{more}"


def _generator(rules: CurriculumRules, number: int) -> np.random.Generator:
    return np.random.default_rng([rules.seed, number])
