"""One model over another, both judged against one baseline: on the prompts on which both were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from prefopt.errors import MissingExtraError
from prefopt.evals.given import Given, Key
from prefopt.evals.standings import (
    LengthData,
    Standing,
    fit_length_controlled,
    instruction_numbers,
)
from prefopt.grade.length_between import Between, length_controlled_between
from prefopt.grade.length_controlled import LengthControlled
from prefopt.grade.winrate import Comparison, compare_models
from prefopt.values import JsonValue


class Pairing(NamedTuple):
    """The second of two models over the first, both judged against the baseline."""

    first: str
    second: str
    shared: int
    """Prompts on which both were judged."""
    apart: int
    """Prompts on which one of them was."""
    difference: Comparison | None
    """Of their win rates on the shared prompts; None where none of them has verdicts for both."""
    controlled: Between | None
    """The length-controlled win rate of the second over the first, both fitted to the verdicts that the difference is
    made of."""
    remarks: tuple[str, ...]
    """On the length-controlled rate: on its interval, and of each fit, after the model's name."""

    def to_json(self) -> dict[str, JsonValue]:
        """As the written file holds it."""
        found = self.controlled
        interval = None if found is None else found.interval
        return {
            "first": self.first,
            "second": self.second,
            "shared": self.shared,
            "apart": self.apart,
            "difference": None if self.difference is None else self.difference._asdict(),
            "length_controlled": {
                "value": None if found is None else found.value,
                "low": None if interval is None else interval.low,
                "high": None if interval is None else interval.high,
                "remarks": list(self.remarks),
            },
        }


class _Shared(NamedTuple):
    """What two models were both judged on."""

    keys: tuple[Key, ...]
    """In the first one's order."""
    there: frozenset[Key]
    """Those on which both have a verdict."""


class Pairings:
    """Compares models two by two; what is fitted for one pair serves the others."""

    def __init__(self, data: LengthData) -> None:
        self._data = data
        self._fits: dict[tuple[str, _Shared], LengthControlled] = {}

    def pair(self, first: Standing, second: Standing) -> Pairing:
        """The second over the first."""
        mine, others = _by_key(first), _by_key(second)
        keys = tuple(key for key in mine if key in others)
        there = frozenset(k for k in keys if not (mine[k].is_missing or others[k].is_missing))
        shared = _Shared(keys, there)
        prompts = {prompt for prompt, _ in keys}
        difference = None
        if there:
            difference = compare_models(
                [mine[key].judged for key in keys],
                [others[key].judged for key in keys],
                clusters=[prompt for prompt, _ in keys],
            )
        controlled, remarks = self._controlled(first, second, shared)
        return Pairing(
            first.entrant.name,
            second.entrant.name,
            shared=len(prompts),
            apart=len({prompt for prompt, _ in [*mine, *others]} - prompts),
            difference=difference,
            controlled=controlled,
            remarks=remarks,
        )

    def _controlled(
        self, first: Standing, second: Standing, shared: _Shared
    ) -> tuple[Between | None, tuple[str, ...]]:
        if not shared.there:
            return None, ()
        try:
            fits = [self._fit(second, shared), self._fit(first, shared)]
        except MissingExtraError:
            return None, ()  # the remarks of both models say so
        found = length_controlled_between(*fits, difficulty=self._difficulty(first, shared))
        remarks = [
            f"{standing.entrant.name}: {remark}"
            for standing, fit in zip((second, first), fits, strict=True)
            if fit is not None
            for remark in fit.remarks
        ]
        return found, (*found.remarks, *remarks)

    def _fit(self, standing: Standing, shared: _Shared) -> LengthControlled | None:
        """The fit to the verdicts on what is shared; None for the baseline itself."""
        entrant, own = standing.entrant, standing.controlled
        if entrant.itself:
            return None
        given = _by_key(standing)
        there = frozenset(key for key, g in given.items() if not g.is_missing)
        whole = len(given) == len(shared.keys) and there == shared.there
        if own is not None and whole and tuple(given) == shared.keys:
            return own
        if (entrant.name, shared) not in self._fits:
            some = [
                g if key in shared.there else g._replace(judged="missing")
                for key, g in ((key, given[key]) for key in shared.keys)
            ]
            fit = fit_length_controlled(entrant, some, self._data)
            # Cross-validation depends on the order of rows; the rate is that of the model's own.
            self._fits[entrant.name, shared] = (
                fit if own is None or not whole else fit._replace(weights=own.weights)
            )
        return self._fits[entrant.name, shared]

    def _difficulty(self, first: Standing, shared: _Shared) -> list[float] | None:
        """Of the shared instructions, in the order of AlpacaEval's file."""
        hard = self._data.compared
        if hard is None:
            return None
        given = _by_key(first)
        some = [given[key] for key in shared.keys]
        numbers = set(instruction_numbers(first.entrant, some, hard))
        return [value for number, value in hard.items() if number in numbers]


def _by_key(standing: Standing) -> Mapping[Key, Given]:
    return {given.key: given for given in standing.entrant.given}
