"""The win rates of one model against a baseline: raw, over both orders, and length-controlled, as AlpacaEval has it.

`evals/entrants.py` reads what was judged, `evals/winrates.py` compares several models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import MissingExtraError, RecordError
from prefopt.evals.given import Entrant, Given
from prefopt.grade.length_controlled import (
    BASELINE,
    LengthControlled,
    LengthWeights,
    length_controlled_winrate,
)
from prefopt.grade.length_controlled_data import read_difficulty, read_gamed
from prefopt.grade.length_design import GamedRows
from prefopt.grade.winrate import Judged, WinRate, adjusted_win_rate, share_of, win_rate
from prefopt.values import JsonValue, refuse

_WHOLE = re.compile(r"\s*(\d+)(\.0*)?\s*")


class LengthData(NamedTuple):
    """AlpacaEval's data files."""

    gamed: GamedRows | None = None
    difficulty: Mapping[int, float] | None = None
    """Of each instruction, by its number, for fits."""
    compared: Mapping[int, float] | None = None
    """The same for win rates of one model over another."""


class Standing(NamedTuple):
    """A model's win rates against the baseline, in percent."""

    entrant: Entrant
    raw: WinRate | None
    """Over single verdicts; None where none is there."""
    adjusted: WinRate | None
    """Over both orders; None where one was asked, or no prompt has both verdicts."""
    controlled: LengthControlled | None
    """From one verdict a prompt (and turn)."""
    remarks: tuple[str, ...]
    """On the length-controlled rate, or why there is none."""
    lengths: tuple[float, float]
    """Mean characters of the model's answers and of the baseline's."""

    @property
    def weights(self) -> LengthWeights | None:
        """Of the fit; the baseline's own are 0 by construction."""
        if self.entrant.itself:
            return BASELINE
        return None if self.controlled is None else self.controlled.weights

    def to_json(self) -> dict[str, JsonValue]:
        """As the written file holds it."""
        entrant, found = self.entrant, self.controlled
        interval = None if found is None else found.interval
        return {
            "name": entrant.name,
            "source": str(entrant.source),
            "verdicts": len(entrant.given),
            "left_out": entrant.left_out,
            "raw": None if self.raw is None else self.raw._asdict(),
            "adjusted": None if self.adjusted is None else self.adjusted._asdict(),
            "length_controlled": {
                "value": None if found is None else found.value,
                "low": None if interval is None else interval.low,
                "high": None if interval is None else interval.high,
                "weights": None if self.weights is None else self.weights._asdict(),
                "strength": None if found is None else found.strength,
                "remarks": list(self.remarks),
            },
            "lengths": list(self.lengths),
        }


def read_length_data(gamed: Path | None, difficulty: Path | None) -> LengthData:
    """AlpacaEval's files, used as AlpacaEval does.

    Fits take the difficulty from `df_gamed.csv`, win rates of one model over another from `instruction_difficulty.csv`;
    where one of the files is not given, the other serves for both.

    Raises:
        StorageError: a file cannot be read.
        RecordError: it is not the right one; the message names file and line.
    """
    of_gamed = None if gamed is None else read_difficulty(gamed)
    own = None if difficulty is None else read_difficulty(difficulty)
    rows = None if gamed is None else read_gamed(gamed)
    return LengthData(rows, own if of_gamed is None else of_gamed, of_gamed if own is None else own)


def standing(entrant: Entrant, data: LengthData) -> Standing:
    """The model's win rates.

    Raises:
        RecordError: AlpacaEval's files do not fit.
    """
    given = entrant.given
    prompts = [g.prompt for g in given]
    both = [g.orders for g in given if g.orders is not None]
    singles: list[Judged] = (
        [order[side] for side in (0, 1) for order in both] if both else [g.judged for g in given]
    )
    judged = not all(g.is_missing for g in given)
    controlled, remarks = _controlled(entrant, data)
    adjusted = None
    if both and judged:
        first: list[Judged] = [a for a, _ in both]
        second: list[Judged] = [b for _, b in both]
        adjusted = adjusted_win_rate(first, second, clusters=prompts)
    return Standing(
        entrant,
        raw=_raw(singles, prompts * (2 if both else 1)),
        adjusted=adjusted,
        controlled=controlled,
        remarks=remarks,
        lengths=_mean_lengths(given),
    )


def _raw(verdicts: Sequence[Judged], prompts: Sequence[Hashable]) -> WinRate | None:
    if all(share_of(verdict) is None for verdict in verdicts):
        return None
    return win_rate(verdicts, clusters=prompts)


def _controlled(
    entrant: Entrant, data: LengthData
) -> tuple[LengthControlled | None, tuple[str, ...]]:
    if all(g.is_missing for g in entrant.given):
        return None, ("there are no verdicts",)
    if entrant.itself:
        return None, ("this is the baseline itself, which is at 50 by construction",)
    try:
        found = fit_length_controlled(entrant, entrant.given, data)
    except MissingExtraError as error:
        return None, (str(error),)
    return found, found.remarks


def fit_length_controlled(
    entrant: Entrant, given: Sequence[Given], data: LengthData
) -> LengthControlled:
    """The length-controlled win rate on some of what was said of a model; whole prompts are drawn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        RecordError: AlpacaEval's files do not fit.
    """
    hard = data.difficulty
    numbers = [] if hard is None else instruction_numbers(entrant, given, hard)
    return length_controlled_winrate(
        [g.judged for g in given],
        [len(g.answers[0]) for g in given],
        [len(g.answers[1]) for g in given],
        difficulty=None if hard is None else [hard[number] for number in numbers],
        gamed=data.gamed,
        clusters=[g.prompt for g in given],
    )


def instruction_numbers(
    entrant: Entrant, given: Sequence[Given], hard: Mapping[int, float]
) -> list[int]:
    """The number of each instruction: the `index` of its row, or its place in a file that has all of them.

    Args:
        entrant: the model, of which all rows have an `index`, or none.
        given: some of what was said of it.
        hard: difficulties by number; each has to have one.

    Raises:
        RecordError: the numbers cannot be told, or AlpacaEval's data do not belong to such rows.
    """
    if any(g.turn > 1 for g in entrant.given):
        raise RecordError(
            f"{entrant.source}: AlpacaEval's data belong to instructions of one turn; leave --gamed and "
            "--difficulty out"
        )
    unnumbered = [g for g in entrant.given if _index(g) is None]
    if 0 < len(unnumbered) < len(entrant.given):
        raise RecordError(
            f"{unnumbered[0].origin}: there is no 'index', nor in {len(unnumbered) - 1:,} other rows, while "
            f"{len(entrant.given) - len(unnumbered):,} rows of {entrant.source} have one; give one to every row"
        )
    if unnumbered and entrant.places != len(hard):
        raise RecordError(
            f"{entrant.source}: the rows have no 'index' and are {entrant.places:,}, so that the number of an "
            f"instruction cannot be told; give all {len(hard):,} instructions in AlpacaEval's order, or rows with "
            "'index'"
        )
    found: list[int] = []
    for each in given:
        index = _index(each)
        number = each.place if index is None else index
        if number not in hard:
            raise RecordError(
                f"{each.origin}: instruction {number} has no difficulty in AlpacaEval's file; check 'index'"
            )
        found.append(number)
    return found


def _index(given: Given) -> int | None:
    """The field `index`, also of tables, where it is a text, and of Parquet files, where it can be a float."""
    value = given.number
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    whole = None if isinstance(value, bool) else _WHOLE.fullmatch(str(value))
    if whole is None:
        refuse(value, "index", given.origin, "give the number of the instruction, 0, 1, ...")
    return int(whole[1])


def _mean_lengths(given: Sequence[Given]) -> tuple[float, float]:
    count = max(1, len(given))
    totals = [sum(len(g.answers[side]) for g in given) for side in (0, 1)]
    return totals[0] / count, totals[1] / count
