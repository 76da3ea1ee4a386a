"""AlpacaEval's annotations, read for win rates: one row per instruction and model, with a preference.

Tables (CSV), in which all values are texts, are read like JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prefopt.errors import RecordError
from prefopt.evals.given import Entrant, Given, prompts_asked
from prefopt.grade.winrate import shares_of
from prefopt.text.files import SourceRow, read_rows
from prefopt.values import read_text, refuse

_NOTHING = frozenset({"", "nan", "null", "none"})
"""Cells of a table that hold no preference."""


def read_annotations(path: Path) -> list[Entrant]:
    """The models of a file of annotations (`generator_2`), all against one baseline (`generator_1`).

    Raises:
        StorageError: the file is not there or cannot be read.
        RecordError: a row is not what is needed, or there are several baselines or annotators; the message names it.
    """
    source = read_rows(path)
    baselines = {_text(row, "generator_1") for row in source.rows}
    if len(baselines) > 1:
        raise RecordError(
            f"{path}: several baselines ({', '.join(sorted(baselines))}) as generator_1; keep the rows of one"
        )
    models: dict[str, list[SourceRow]] = {}
    for row in source.rows:
        models.setdefault(_text(row, "generator_2"), []).append(row)
    (baseline,) = baselines
    return [
        _annotated(path, name, baseline, some, textual=source.textual)
        for name, some in models.items()
    ]


def _annotated(
    path: Path, name: str, baseline: str, rows: Sequence[SourceRow], *, textual: bool
) -> Entrant:
    annotators = {str(row.values["annotator"]) for row in rows if row.values.get("annotator")}
    if len(annotators) > 1:
        raise RecordError(
            f"{path}: {name} was judged by {', '.join(sorted(annotators))}; keep the rows of one annotator"
        )
    preferences = [_preference(row, textual=textual) for row in rows]
    try:
        shares_of(preferences)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from error
    keys = prompts_asked([((), (_text(row, "instruction"),)) for row in rows])
    given = [
        Given(
            prompt=key,
            turn=1,
            judged=preference,
            orders=None,
            answers=(_text(row, "output_2"), _text(row, "output_1")),
            place=place,
            number=row.values.get("index"),
            origin=row.origin,
        )
        for place, (row, key, preference) in enumerate(zip(rows, keys, preferences, strict=True))
    ]
    return Entrant(
        name,
        baseline,
        path,
        given,
        left_out=0,
        places=len(rows),
        itself=name == baseline,
        judge={"annotator": annotators.pop()} if annotators else {},
    )


def _preference(row: SourceRow, *, textual: bool) -> float | None:
    if "preference" not in row.values:
        _refuse_columns(row, "preference")
    value = row.values["preference"]
    if textual and isinstance(value, str):
        value = None if value.strip().lower() in _NOTHING else _number(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(value, "preference", row.origin, "give a number from 1 to 2, or null")
    return value


def _number(cell: str) -> float | str:
    """The cell as a number, as it is where it is none."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return value if math.isfinite(value) else cell


def _text(row: SourceRow, name: str) -> str:
    if name not in row.values:
        _refuse_columns(row, name)
    return read_text(row.values[name], name, row.origin)


def _refuse_columns(row: SourceRow, name: str) -> NoReturn:
    raise RecordError(
        f"{row.origin}: there is no {name!r}; give AlpacaEval's annotations, or a folder that `prefopt judge "
        "--against` wrote"
    )
