"""Message trees whose messages are rows of their own, as OpenAssistant publishes them: put together by `parent_id`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.text.files import SourceRow
from prefopt.values import JsonValue, read_flag, read_text, refuse

_KEPT = ("message_id", "text", "role", "lang")
_FLAGS: Mapping[str, bool] = {"true": True, "false": False}


class Trees(NamedTuple):
    """The trees of a file."""

    whole: list[SourceRow]
    """A row `{prompt: {text, role, replies: [...]}, message_tree_id}` for each tree, at its first message."""
    torn: list[SourceRow]
    """Messages whose parent is not in the file: what was said before them is not known."""


def message_trees(rows: Sequence[SourceRow]) -> Trees:
    """The trees that these messages make, replies in the order of the rows. Cells of tables may be texts.

    Raises:
        RecordError: a message has no id or that of another one, or is a reply to itself; a value is of the wrong type.
    """
    place: dict[str, int] = {}
    for i, row in enumerate(rows):
        name = read_text(row.values.get("message_id"), "message_id", row.origin)
        if name in place:
            raise RecordError(
                f"{row.origin}: message_id '{name}' is that of {rows[place[name]].origin} too; remove one of them"
            )
        place[name] = i
    below: list[list[int]] = [[] for _ in rows]
    first: list[int] = []
    torn: list[int] = []
    for i, row in enumerate(rows):
        parent = _cell(row.values.get("parent_id"))
        if parent is None:
            first.append(i)
        elif read_text(parent, "parent_id", row.origin) in place:
            below[place[str(parent)]].append(i)
        else:
            torn.append(i)
    messages = _messages(rows, below, [*first, *torn])
    return Trees([_tree(rows[i], messages[i]) for i in first], [rows[i] for i in torn])


def _messages(
    rows: Sequence[SourceRow], below: Sequence[Sequence[int]], tops: Sequence[int]
) -> list[dict[str, JsonValue]]:
    """Each message with its replies inside.

    Raises:
        RecordError: one of them hangs from none of `tops`.
    """
    messages = [_message(row) for row in rows]
    reached: list[int] = list(tops)
    for i in reached:  # grows
        reached += below[i]
        messages[i]["replies"] = [messages[k] for k in below[i]]
    lost = sorted(set(range(len(rows))) - set(reached))
    if lost:
        raise RecordError(
            f"{rows[lost[0]].origin}: parent_id leads from message to message back to this one; correct it"
        )
    return messages


def _message(row: SourceRow) -> dict[str, JsonValue]:
    message = {key: row.values[key] for key in _KEPT if row.values.get(key) is not None}
    deleted = _cell(row.values.get("deleted"))
    if isinstance(deleted, str):
        deleted = _FLAGS.get(deleted.strip().lower(), deleted)
    message["deleted"] = deleted is not None and read_flag(deleted, "deleted", row.origin)
    message["rank"] = _rank(row)
    return message


def _rank(row: SourceRow) -> int | None:
    """A whole number, which a table with empty cells holds as a fraction; None where there is none."""
    value = _cell(row.values.get("rank"))
    number = value
    if isinstance(number, str):
        with suppress(ValueError):
            number = float(number)
    if number is None:
        return None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        refuse(value, "rank", row.origin, "ranks are whole numbers from 0 (best) on: renumber them")
    return number


def _cell(value: JsonValue) -> JsonValue:
    """The value; None for an empty cell of a table and for NaN."""
    empty = value == "" or (isinstance(value, float) and math.isnan(value))
    return None if empty else value


def _tree(row: SourceRow, message: dict[str, JsonValue]) -> SourceRow:
    tree = row.values.get("message_tree_id")
    return SourceRow(row.origin, {"prompt": message, "message_tree_id": tree})
