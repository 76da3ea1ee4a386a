"""Rows of files as questions to a model, of one turn or several. What was answered to them is not known here.

A question is a text, a list of texts (the user's turns, as in MT-Bench), or a list of messages that ends with the
user's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.records import Message, read_message
from prefopt.text.files import Row, SourceRow, read_rows
from prefopt.values import JsonValue, read_list, read_text, refuse

QUESTION_COLUMNS = ("instruction", "question", "prompt", "problem", "turns")
"""The first of these that a row has holds its question."""
ID_COLUMNS = ("id", "question_id")
CATEGORY_COLUMNS = ("category", "dataset")


class Question(NamedTuple):
    """One row of a file."""

    id: str
    """The row's own, else a digest of the question; unique within the file."""
    named: bool
    """Whether the id is the row's own."""
    opening: tuple[Message, ...]
    """Messages before the first turn that is to be answered: a system text, earlier turns."""
    turns: tuple[str, ...]
    """What the user says, at least once; each turn is answered before the next is said."""
    values: Row
    """All columns."""
    origin: str
    """`file:line`."""

    @property
    def category(self) -> str:
        """What the row's category or data set is called; empty where it has none."""
        return next((str(self.values[c]) for c in CATEGORY_COLUMNS if self.values.get(c)), "")


def read_questions(source: str | Path, *, limit: int | None = None) -> list[Question]:
    """The questions of a file (JSON Lines, JSON, CSV, Parquet), in its order.

    Raises:
        StorageError: the file cannot be read.
        RecordError: a row has no question, one of another form, or the id of another; the message names file and line.
    """
    found: list[Question] = []
    origins: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for row in read_rows(source, limit=limit).rows:
        question = _question(row, seen)
        other = origins.setdefault(question.id, question.origin)
        if other is not question.origin:
            raise RecordError(
                f"{question.origin}: id {question.id!r} is that of {other} as well; make ids unique"
            )
        found.append(question)
    return found


def _question(row: SourceRow, seen: Counter[str]) -> Question:
    values, origin = row.values, row.origin
    column = next((name for name in QUESTION_COLUMNS if values.get(name) is not None), None)
    if column is None:
        raise RecordError(
            f"{origin}: there is no question; a row needs one of {', '.join(QUESTION_COLUMNS)}"
        )
    opening, turns = _turns(values[column], column, origin)
    given = next((values[name] for name in ID_COLUMNS if values.get(name) is not None), None)
    if given is not None and (isinstance(given, bool) or not isinstance(given, str | int)):
        refuse(given, "id", origin, "give a text or a whole number")
    name = _digest(opening, turns) if given is None else str(given)
    if given is None:
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
    return Question(name, given is not None, opening, turns, values, origin)


def _turns(
    value: JsonValue, column: str, origin: str
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    if isinstance(value, str):
        return (), (value,)
    items = read_list(value, column, origin)
    if all(isinstance(item, str) for item in items):
        return (), tuple(str(item) for item in items)
    messages = [read_message(item, f"{column}[{i}]", origin) for i, item in enumerate(items)]
    if messages[-1].role != "user":
        raise RecordError(
            f"{origin}: the last message of '{column}' is that of the {messages[-1].role}; a question ends with the "
            "user's"
        )
    return tuple(messages[:-1]), (messages[-1].content,)


def _digest(opening: Sequence[Message], turns: Sequence[str]) -> str:
    facts = [[[m.role, m.content] for m in opening], list(turns)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def read_texts(value: JsonValue, name: str, origin: str) -> tuple[str, ...]:
    """A text or a list of texts as a tuple, one per turn; empty where the value is null.

    Raises:
        RecordError: anything else.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    return tuple(
        read_text(item, f"{name}[{i}]", origin)
        for i, item in enumerate(read_list(value, name, origin))
    )
