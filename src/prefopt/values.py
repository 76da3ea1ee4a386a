"""Typed readers of single JSON values. Each error names the place, the column and the actual value."""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn, TypeAlias

from prefopt.errors import RecordError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

_SHOWN = 40
_LONE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def describe(value: JsonValue) -> str:
    """The value in words, short enough for an error line: `null`, `the number 3`, `a list of 2 items`."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {quote(value)}" if value.strip() else "empty text"
        case list():
            return "an empty list" if not value else f"a list of {len(value)} items"
        case dict():
            return f"an object with keys {', '.join(value) or '(none)'}"[:120]
    return f"a {type(value).__name__}, which is no JSON value"


def quote(text: str) -> str:
    """The text as a JSON string, cut in the middle of long texts."""
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 15]}...{text[-12:]}"
    return json.dumps(shown, ensure_ascii=False)


def refuse(value: JsonValue, name: str, origin: str, remedy: str) -> NoReturn:
    """Never returns: raises the one-line error `<origin>: '<name>' is <value>; <remedy>`."""
    raise RecordError(f"{origin}: '{name}' is {describe(value)}; {remedy}")


def repaired(text: str) -> str:
    """The text with U+FFFD for every lone surrogate: half of a character, which no file and no tokenizer can hold.

    For what models and servers write; in files of users it is an error, see `refuse_lone_surrogates`.
    """
    return _LONE.sub("\N{REPLACEMENT CHARACTER}", text)


def refuse_lone_surrogates(value: JsonValue, origin: str, *, source: str, name: str = "") -> None:
    """Nothing, if all texts of a value parsed from JSON are whole.

    Args:
        value: what was parsed.
        origin: where it came from (`file:line`), for the error message.
        source: the JSON text. It can only hold lone surrogates as escapes, so most texts need no further look.
        name: of the column that holds the value; empty for a row.

    Raises:
        RecordError: a text holds half of a surrogate pair; the message names key and escape.
    """
    found = _find_lone(value, name) if _ESCAPED.search(source) else None
    if found is not None:
        place, lone = found
        raise RecordError(
            f"{origin}: {place} holds {_escape(lone)}, half of a surrogate pair, which is no character; write the "
            "whole character, or remove the row"
        )


def _find_lone(value: JsonValue, name: str) -> tuple[str, str] | None:
    """The first lone surrogate, after the words for where it is."""
    match value:
        case str():
            lone = _LONE.search(value)
            return None if lone is None else (f"'{name}'", lone.group())
        case list():
            inside = ((item, f"{name}[{i}]") for i, item in enumerate(value))
        case dict():
            lone = _LONE.search("".join(value))
            if lone is not None:
                return "the name of a key", lone.group()
            inside = ((v, f"{name}.{k}" if name else k) for k, v in value.items())
        case _:
            return None
    return next((found for v, n in inside if (found := _find_lone(v, n)) is not None), None)


def _escape(lone: str) -> str:
    return f"\\u{ord(lone):04x}"


def encoded(text: str, where: str) -> bytes:
    """The text in UTF-8.

    Raises:
        RecordError: it holds half of a surrogate pair; the message begins with `where`.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        lone = _escape(text[error.start])
        before = repaired(text[max(0, error.start - _SHOWN) : error.start])
        raise RecordError(
            f"{where} cannot be written: after {json.dumps(before, ensure_ascii=False)} it holds {lone}, half of a "
            "surrogate pair, which is no character; remove it"
        ) from error


def read_text(value: JsonValue, name: str, origin: str) -> str:
    """The value if it is a text, which may be empty; anything else raises `RecordError`."""
    if isinstance(value, str):
        return value
    refuse(value, name, origin, "give a text, or remove the row")


def read_number(value: JsonValue, name: str, origin: str) -> float:
    """The value as a finite float; texts, booleans and NaN raise `RecordError`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    refuse(value, name, origin, "give a finite number, or remove the row")


def read_score(value: JsonValue, name: str, origin: str) -> float | None:
    """The value as a finite float, None where it is missing (null or NaN); anything else raises `RecordError`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    refuse(value, name, origin, "give a finite number, or null where there is no score")


def read_rank(value: JsonValue, name: str, origin: str) -> int:
    """The value as a rank counted from 1 (best); anything else raises `RecordError`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    refuse(value, name, origin, "ranks are whole numbers from 1 (best) on: renumber them")


def read_flag(value: JsonValue, name: str, origin: str) -> bool:
    """The value as a boolean; 0 and 1 count, anything else raises `RecordError`."""
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    refuse(value, name, origin, f"give true or false, or name another column with columns.{name}")


def read_list(value: JsonValue, name: str, origin: str) -> list[JsonValue]:
    """The value if it is a list with items; anything else raises `RecordError`."""
    if isinstance(value, list) and value:
        return value
    refuse(value, name, origin, "give a list with at least one item, or remove the row")


def read_object(value: JsonValue, name: str, origin: str) -> dict[str, JsonValue]:
    """The value if it is an object; anything else raises `RecordError`."""
    if isinstance(value, dict):
        return value
    refuse(value, name, origin, "give an object, or remove the row")
