"""Preference data from files, folders and the hub: read, recognise columns, check, pair. No tokenizer."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Preference
from prefopt.text.columns import Recognised, Shape, recognise
from prefopt.text.files import RowSource, SourceRow, read_rows
from prefopt.text.nested import Unnested, may_hold_several, unnested
from prefopt.text.quality import QualityGate
from prefopt.text.rows import ReadRow, read_row

_NAMED = 3


class LoadedData(NamedTuple):
    """Records and how their columns were understood."""

    preferences: list[Preference]
    mapping: Mapping[str, str]
    """column -> role; `meta` is kept but not trained on, `not used` is left out."""


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    ledger: Ledger,
    pairing: str | None = "best_vs_rest",
    limit: int | None = None,
    optional: Collection[str] = (),
) -> LoadedData:
    """The records of a file (.jsonl .json .csv .tsv .parquet), a folder saved by `datasets`, or a hub data set.

    Columns are recognised once, from the first rows. Malformed rows (null, wrong type, impossible
    conversation) stop with an error that names the first of them; poor rows (empty, identical, repeated) are
    dropped and written into the ledger. The other rows enter it without a fate: `prepare` or
    `Ledger.keep_undecided` decides.

    Args:
        source: path, or `owner/name` of a hub data set (only then the network is used).
        split: split of a saved or hub data set.
        columns: `{role: column}`, wins over recognised names.
        ledger: receives every row.
        pairing: how ranked and scored lists become pairs, see `pair_responses`; None: they get none.
        limit: take only the first rows, or the first records of rows that hold several or a part of one.
        optional: roles in `columns` whose column this source may lack.

    Raises:
        StorageError: the source does not exist or cannot be read.
        RecordError: nothing recognised, or malformed rows.
        ConfigError: an unknown role or pairing.
    """
    found = read_rows(source, split=split, limit=limit)
    if limit is not None and may_hold_several(found):
        found = read_rows(source, split=split)
    taken_apart = unnested(found, limit=limit)
    rows = taken_apart.source
    recognised = recognise(rows, columns, optional=optional)
    read = _read_all(rows, recognised)
    gate = QualityGate(ledger, pairing)
    preferences: list[Preference] = []
    for preference, notes in read:
        record_id = ledger.enter(preference.id, origin=preference.origin)
        for note in notes:
            ledger.note(record_id, reason=note)
        passed = gate.pass_on(replace(preference, id=record_id))
        if passed is not None:
            preferences.append(passed)
    _drop_empty(taken_apart, ledger)
    return LoadedData(preferences, _explain(rows, recognised))


def load_row(
    source: str | Path,
    *,
    row: int | None = None,
    record_id: str | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    ledger: Ledger,
    pairing: str = "best_vs_rest",
) -> Preference:
    """One record of a source, by row number (from 1) or by id; the first one when neither is given.

    Poor records are shown too: the ledger then holds the reason why they would be dropped.

    Raises:
        RecordError: there is no such row; otherwise as `load_preferences`.
    """
    rows = unnested(read_rows(source, split=split)).source
    recognised = recognise(rows, columns)
    ids = _ids(rows, recognised)
    if recognised.shape is Shape.NATIVE:
        ids = [str(r.values.get("id")) for r in rows.rows]
    if record_id is not None and record_id not in ids:
        near = difflib.get_close_matches(record_id, ids, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"ids look like '{ids[0]}'"
        raise RecordError(f"{source}: no record '{record_id}'; {hint}")
    at = ids.index(record_id) if record_id is not None else (row or 1) - 1
    if not 0 <= at < len(ids):
        raise RecordError(f"{source}: no row {row}; there are rows 1 to {len(ids)}")
    read = read_row(rows.rows[at], recognised, record_id=ids[at], textual=rows.textual)
    ledger.enter(read.preference.id, origin=read.preference.origin)
    for note in read.notes:
        ledger.note(read.preference.id, reason=note)
    return QualityGate(ledger, pairing).pass_on(read.preference) or read.preference


def _drop_empty(taken_apart: Unnested, ledger: Ledger) -> None:
    """Rows that hold no record have a fate too."""
    for row in taken_apart.empty:
        ledger.drop(ledger.enter(row.origin, origin=row.origin), reason=taken_apart.reason)


def _read_all(source: RowSource, recognised: Recognised) -> list[ReadRow]:
    ids = _ids(source, recognised)
    found: list[ReadRow] = []
    faults: list[str] = []
    for row, record_id in zip(source.rows, ids, strict=True):
        try:
            found.append(read_row(row, recognised, record_id=record_id, textual=source.textual))
        except RecordError as error:
            faults.append(str(error))
    if len(faults) == 1:
        raise RecordError(faults[0])
    if faults:
        more = f" | and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise RecordError(
            f"{source.name}: {len(faults)} of {len(source.rows)} rows are malformed: "
            f"{' | '.join(faults[:_NAMED])}{more}"
        )
    return found


def _ids(source: RowSource, recognised: Recognised) -> list[str]:
    """The id column where it names every row differently, else `<file>:<row number>`."""
    column = recognised.columns.get("id")
    named = [] if column is None else [_id(row, column) for row in source.rows]
    if named and "" not in named and len(set(named)) == len(named):
        return named
    return [f"{source.stem}:{number}" for number in range(1, len(source.rows) + 1)]


def _id(row: SourceRow, column: str) -> str:
    value = row.values.get(column)
    return str(value) if isinstance(value, int | str) else ""


def _explain(source: RowSource, recognised: Recognised) -> dict[str, str]:
    mapping = dict(recognised.mapping)
    column = recognised.columns.get("id")
    if column is not None and recognised.shape is not Shape.NATIVE:
        named = [_id(row, column) for row in source.rows]
        if "" in named or len(set(named)) < len(named):
            mapping[column] = "not used as id: values repeat or are missing"
    return mapping
