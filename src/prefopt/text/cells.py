"""One row under recognised columns: typed access by role, with errors that name file, line and column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from prefopt.errors import RecordError
from prefopt.records import read_message
from prefopt.text.files import SourceRow
from prefopt.text.prompts import Content
from prefopt.values import (
    JsonValue,
    read_flag,
    read_list,
    read_number,
    read_rank,
    read_score,
    read_text,
    refuse,
    refuse_lone_surrogates,
)

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Cells:
    """The cells of `row`. In `textual` sources (CSV) numbers, flags and lists are parsed from texts."""

    def __init__(self, row: SourceRow, columns: Mapping[str, str], *, textual: bool) -> None:
        self.values = row.values
        self.origin = row.origin
        self.columns = columns
        self.textual = textual

    def has(self, role: str) -> bool:
        """Whether the file has a column for the role."""
        return role in self.columns

    def name(self, role: str) -> str:
        """The column of the role."""
        return self.columns[role]

    def get(self, role: str) -> JsonValue:
        """The value of a required column."""
        name = self.name(role)
        if name not in self.values:
            raise RecordError(
                f"{self.origin}: column '{name}' ({role}) is missing here but not in the first rows; "
                "add it, or remove the row"
            )
        return self.values[name]

    def optional(self, role: str) -> JsonValue:
        """The value of a column that may be absent; null where it is, or empty."""
        value = self.values.get(self.name(role)) if self.has(role) else None
        return None if value == "" else value

    def decoded(self, value: JsonValue) -> JsonValue:
        """The value, parsed where it is the JSON text of a list or an object in a table's cell."""
        if not (self.textual and isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
            return value
        try:
            found: JsonValue = json.loads(value)
        except json.JSONDecodeError:
            return value
        name = next((name for name, cell in self.values.items() if cell is value), "")
        refuse_lone_surrogates(found, self.origin, source=value, name=name)
        return found

    def number(self, value: JsonValue, name: str) -> float:
        """The value as a finite float."""
        return read_number(self._parsed(value), name, self.origin)

    def score(self, value: JsonValue, name: str) -> float | None:
        """The value as a finite float; None where it is null or NaN."""
        return read_score(self._parsed(value), name, self.origin)

    def _parsed(self, value: JsonValue) -> JsonValue:
        """The number in a table's cell; a text that holds none stays as it is, for the reader to refuse."""
        if self.textual and isinstance(value, str):
            with suppress(ValueError):
                return float(value)
        return value

    def flag(self, value: JsonValue, name: str) -> bool:
        """The value as a boolean."""
        if self.textual and isinstance(value, str):
            value = _FLAGS.get(value.strip().lower(), value)
        return read_flag(value, name, self.origin)

    def content(self, value: JsonValue, name: str) -> Content:
        """The value as text or messages: a text, one message, or a list of messages."""
        value = self.decoded(value)
        if isinstance(value, dict):
            return (read_message(value, name, self.origin),)
        if isinstance(value, list):
            items = read_list(value, name, self.origin)
            return tuple(read_message(m, f"{name}[{i}]", self.origin) for i, m in enumerate(items))
        if value is None:
            refuse(value, name, self.origin, "give a text or a list of messages, or remove the row")
        return read_text(value, name, self.origin)

    def tools(self, value: JsonValue) -> list[JsonValue]:
        """The value as a list of tool descriptions."""
        if isinstance(value, str):  # LLaMA-Factory writes them as a JSON text
            source = value
            try:
                value = json.loads(source)
            except json.JSONDecodeError as error:
                raise RecordError(
                    f"{self.origin}: 'tools' is no JSON ({error.msg} at column {error.colno}); give a list"
                ) from error
            refuse_lone_surrogates(value, self.origin, source=source, name="tools")
        return read_list(value, "tools", self.origin)

    def rank(self, value: JsonValue, name: str) -> int:
        """The value as a rank from 1."""
        return read_rank(self._parsed(value), name, self.origin)

    def items(self, role: str) -> list[JsonValue]:
        """The value of a required column as a list with items."""
        return read_list(self.decoded(self.get(role)), self.name(role), self.origin)
