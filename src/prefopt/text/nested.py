"""Rows that hold several records inside, or a part of one: published curricula and message trees, as ordinary rows.

What is read here is the layout alone; `columns.py` and `rows.py` read the rows that come out like those of any file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.text.files import Row, RowSource, SourceRow
from prefopt.text.message_rows import message_trees
from prefopt.values import JsonValue, read_list, read_object, read_text, refuse

LEVELS = ("easy", "medium", "hard")
"""Columns of the published curriculum data (ServiceNow-AI/Curriculum_DPO_preferences), in the order of training."""

STAGE = "stage"
"""Column, and key of `Preference.meta`, that says which stage of a curriculum a record belongs to."""

NO_LEVEL = "a curriculum row without easy, medium or hard"
NO_RANKED = "a message tree without two ranked answers"
NO_RANKED_ROWS = "a message tree without two ranked answers, or without its first message"

_FIRST_ROWS = 100
"""Rows that decide the layout, as for columns."""

_MESSAGE = {"message_id", "parent_id", "text", "role", "rank"}
"""Columns of message trees with a row per message."""

_ROLES = {"prompter": "user", "assistant": "assistant"}
"""Roles of OpenAssistant -> ours."""


class Unnested(NamedTuple):
    """A source with a row per record."""

    source: RowSource
    empty: list[SourceRow]
    """Rows that hold no record."""
    reason: str
    """Why not."""


def may_hold_several(source: RowSource) -> bool:
    """Whether one of these rows may belong to a layout that `unnested` takes apart, however few of them are there."""
    return any(
        "message_id" in row.values
        or not row.values.keys().isdisjoint(LEVELS)
        or isinstance(row.values.get("prompt"), dict)
        for row in source.rows[:_FIRST_ROWS]
    )


def unnested(source: RowSource, *, limit: int | None = None) -> Unnested:
    """The source with a row per record; the source itself where its rows hold one record each already.

    The first 100 rows decide, so that a row without any level, or a message without replies, may come first.

    A curriculum row `{easy|medium|hard: {conversation: [...]}}`, whose last turn has `chosen_content` and
    `rejected_content`, becomes a row of prompt, chosen, rejected and stage per level. A message tree of OpenAssistant,
    `{prompt: {text, role, replies: [...]}}`, becomes a row per message of the prompter's that has two or more ranked
    answers: the conversation up to it, and these answers with their ranks. Deleted messages and what follows them, and
    answers without a rank, are left out. Trees whose messages are rows of their own (`message_id`, `parent_id`, `rank`)
    are put together first.

    Args:
        source: all of its rows, since those of a tree may lie anywhere in it.
        limit: how many records to take, in their order; None: all. Empty rows count up to the last of them.

    Raises:
        RecordError: a part is missing or of the wrong type, or no message of any tree has two ranked answers.
    """
    parts, reason = _parts(source)
    if parts is None:
        return Unnested(source._replace(rows=source.rows[:limit]), [], "")
    rows: list[SourceRow] = []
    empty: list[SourceRow] = []
    for row, inner in parts:
        rows += inner
        if not inner:
            empty.append(row)
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise RecordError(
            f"{source.rows[0].origin}: message trees, but no message has two answers with a `rank`; use trees that "
            "people have ranked"
        )
    return Unnested(source._replace(rows=rows[:limit]), empty, reason)


def _parts(source: RowSource) -> tuple[Iterator[tuple[SourceRow, list[SourceRow]]] | None, str]:
    """Rows with the records that each holds, read as they are asked for, and what it means to hold none; else None."""
    first = [row.values for row in source.rows[:_FIRST_ROWS]]
    if any(map(_is_curriculum, first)):
        return ((row, list(_levels(row))) for row in source.rows), NO_LEVEL
    if any(map(_is_tree, first)):
        return ((row, list(_ranked(row))) for row in source.rows), NO_RANKED
    if {name for row in first for name in row} >= _MESSAGE:
        trees = message_trees(source.rows)
        whole = ((row, list(_ranked(row))) for row in trees.whole)
        return chain(whole, ((row, []) for row in trees.torn)), NO_RANKED_ROWS
    return None, ""


def _is_curriculum(row: Row) -> bool:
    levels = [row[name] for name in LEVELS if row.get(name) is not None]
    return bool(levels) and all(isinstance(x, dict) and "conversation" in x for x in levels)


def _is_tree(row: Row) -> bool:
    root = row.get("prompt")
    return isinstance(root, dict) and isinstance(root.get("replies"), list) and "text" in root


def _levels(row: SourceRow) -> Iterator[SourceRow]:
    # Both sides of a level are inside it: a column of that name beside the levels is about something else.
    others = {name: value for name, value in row.values.items() if name not in LEVELS}
    for level in LEVELS:
        value = row.values.get(level)
        if value is not None:
            yield SourceRow(
                row.origin, {**others, **_level(value, level, row.origin), STAGE: level}
            )


def _level(value: JsonValue, level: str, origin: str) -> dict[str, JsonValue]:
    """Prompt, chosen and rejected of one level: both responses lie inside the last turn."""
    where = f"{level}.conversation"
    listed = read_list(read_object(value, level, origin).get("conversation"), where, origin)
    turns = [read_object(turn, f"{where}[{i}]", origin) for i, turn in enumerate(listed)]
    if len(turns) < 2 or not {"chosen_content", "rejected_content"} <= turns[-1].keys():
        refuse(
            value, where, origin, "end it with a turn that has chosen_content and rejected_content"
        )
    prompt: list[JsonValue] = [
        {
            "role": read_text(turn.get("role"), f"{where}[{i}].role", origin),
            "content": read_text(
                # Arrow stores an absent key as null.
                turn.get("chosen_content") if turn.get("content") is None else turn["content"],
                f"{where}[{i}].content",
                origin,
            ),
        }
        for i, turn in enumerate(turns[:-1])
    ]
    return {
        "prompt": prompt,
        "chosen": turns[-1]["chosen_content"],
        "rejected": turns[-1]["rejected_content"],
    }


def _ranked(row: SourceRow) -> Iterator[SourceRow]:
    others = {
        key: row.values[key] for key in ("message_tree_id",) if row.values.get(key) is not None
    }
    for conversation, message in _questions(row.values.get("prompt"), [], "prompt", row.origin):
        answers: list[JsonValue] = [
            {"response": reply["text"], "rank": reply["rank"]}
            for reply in _replies(message, "replies", row.origin)
            if reply.get("role") == "assistant" and reply.get("rank") is not None
        ]
        if len(answers) >= 2:
            about = {k: message[k] for k in ("message_id", "lang") if message.get(k) is not None}
            # Not `id`: a tree may lie in a file twice, and the reader numbers records then.
            values = {"prompt": conversation, "completions": answers, **about, **others}
            yield SourceRow(row.origin, values)


def _questions(
    value: JsonValue, before: list[JsonValue], name: str, origin: str
) -> Iterator[tuple[list[JsonValue], Mapping[str, JsonValue]]]:
    """Every message of the prompter's below `value`, with the conversation that ends in it."""
    message = read_object(value, name, origin)
    if message.get("deleted"):
        return
    role = read_text(message.get("role", "prompter"), f"{name}.role", origin)
    if role not in _ROLES:
        refuse(role, f"{name}.role", origin, f"use {' or '.join(_ROLES)}")
    text = read_text(message.get("text"), f"{name}.text", origin)
    conversation: list[JsonValue] = [*before, {"role": _ROLES[role], "content": text}]
    if _ROLES[role] == "user":
        yield conversation, message
    for i, reply in enumerate(_replies(message, name, origin)):
        yield from _questions(reply, conversation, f"{name}.replies[{i}]", origin)


def _replies(
    message: Mapping[str, JsonValue], name: str, origin: str
) -> list[dict[str, JsonValue]]:
    replies = message.get("replies")
    if not replies:
        return []
    found = [read_object(r, f"{name}.replies", origin) for r in read_list(replies, name, origin)]
    return [reply for reply in found if not reply.get("deleted")]
