"""AlpacaEval's two data files for length-controlled win rates: gamed baselines, and how hard each instruction is.

They belong to the hub data set tatsu-lab/alpaca_eval; nothing is fetched here. Columns are found by name.
"""

from __future__ import annotations

import math
from pathlib import Path

from prefopt.errors import RecordError
from prefopt.grade.length_design import GamedRows
from prefopt.text.files import SourceRow, read_rows

_DIFFICULTY = "instruction_difficulty"


def read_gamed(path: str | Path) -> GamedRows:
    """The rows of `df_gamed.csv`: one per instruction and gamed baseline, in the order of the file.

    Read are `preference` (the part of a win, 0 to 1, not 1 to 2; empty is missing), `std_delta_len`,
    `instruction_difficulty` and `not_gamed_baseline`, which is False in every row.

    Raises:
        StorageError: the file does not exist or cannot be read.
        RecordError: a column is missing or a value is wrong; the message names file and line.
    """
    rows = read_rows(path).rows
    for row in rows:
        cell = _cell(row, "not_gamed_baseline")
        if cell.lower() not in {"false", "0", "0.0"}:
            raise RecordError(
                f"{row.origin}: not_gamed_baseline is {cell!r}; only gamed baselines (False) belong in this file"
            )
    return GamedRows(
        shares=tuple(_share(row) for row in rows),
        lengths=tuple(_number(row, "std_delta_len") for row in rows),
        difficulty=tuple(_number(row, _DIFFICULTY) for row in rows),
    )


def read_difficulty(path: str | Path) -> dict[int, float]:
    """The difficulty of each instruction by its number, from `instruction_difficulty.csv` or from `df_gamed.csv`.

    AlpacaEval fits with the values of `df_gamed.csv` (the first row of each instruction counts) and compares models
    with each other (`winrate_between`) with those of `instruction_difficulty.csv`. The number is the column `index`,
    or the first one; the difficulty is `instruction_difficulty`, or the second of two columns.

    Raises:
        StorageError: the file does not exist or cannot be read.
        RecordError: a column is missing or a value is wrong; the message names file and line.
    """
    found: dict[int, float] = {}
    for row in read_rows(path).rows:
        names = list(row.values)
        number = _number(row, "index" if "index" in row.values else names[0])
        if number != int(number):
            raise RecordError(
                f"{row.origin}: {number} is no number of an instruction; give 0, 1, ..."
            )
        value = names[1] if _DIFFICULTY not in row.values and len(names) == 2 else _DIFFICULTY
        found.setdefault(int(number), _number(row, value))
    return found


def _share(row: SourceRow) -> float:
    if _cell(row, "preference").lower() in {"", "nan"}:
        return float("nan")
    share = _number(row, "preference")
    if not 0 <= share <= 1:
        raise RecordError(
            f"{row.origin}: the preference is {share}; in this file it lies between 0 and 1 (AlpacaEval's minus 1)"
        )
    return share


def _number(row: SourceRow, name: str) -> float:
    cell = _cell(row, name)
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecordError(f"{row.origin}: {name} is {cell!r}; give a number")
    return value


def _cell(row: SourceRow, name: str) -> str:
    if name not in row.values:
        raise RecordError(
            f"{row.origin}: there is no column {name}, only {', '.join(row.values)}; give AlpacaEval's file"
        )
    value = row.values[name]
    return "" if value is None else str(value).strip()
