"""Prompts from files of preference or supervised data: the same columns, but no responses are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefopt.errors import RecordError
from prefopt.records import JsonValue, Message, Preference
from prefopt.text.cells import Cells
from prefopt.text.columns import ALIASES
from prefopt.text.files import RowSource, read_rows
from prefopt.values import read_text, refuse

FOR_TEMPLATES = ("tools", "chat_template_kwargs")
"""What chat templates read from a record's `meta`."""
_ROLES = ("id", "prompt", "messages", "system", "input", "tools")


def load_prompts(
    source: str | Path, *, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Preference]:
    """The prompts of a file as records without responses, in their order.

    A prompt is a text (`prompt`, `instruction`, `question`, ...; with `input` and `system` where there are such
    columns) or a conversation, which ends with the last message that is not the assistant's. Other columns are not
    read, so preference data and supervised data can be given as they are.

    Args:
        source: .jsonl, .json, .csv, .tsv, .parquet, a folder saved by `datasets`, or a hub id.
        columns: role -> column, where names are not recognised.
        limit: read the first rows only.

    Raises:
        StorageError: the source does not exist or cannot be read.
        RecordError: no column holds prompts, or a row has none; the message names file and line.
    """
    rows = read_rows(source, limit=limit)
    roles = _recognise(rows, columns or {})
    ids = _ids(rows, roles)
    return [
        _read(Cells(row, roles, textual=rows.textual), name)
        for row, name in zip(rows.rows, ids, strict=True)
    ]


def _recognise(source: RowSource, given: Mapping[str, str]) -> dict[str, str]:
    """Role -> column."""
    names = list(dict.fromkeys(name for row in source.rows for name in row.values))
    for role, column in given.items():
        if role not in _ROLES:
            raise RecordError(
                f"{source.name}: unknown role '{role}'; known are {', '.join(_ROLES)}"
            )
        if column not in names:
            raise RecordError(f"{source.name}: no column '{column}'; there are {', '.join(names)}")
    roles = dict(given)
    for role in _ROLES:
        free = [n for n in ALIASES[role] if n in names and n not in roles.values()]
        if role not in roles and free:
            roles[role] = free[0]
    if "prompt" not in roles and "messages" not in roles:
        raise RecordError(
            f"{source.name}: no column holds prompts (known names: {', '.join(ALIASES['prompt'])}, messages); the file "
            f"has {', '.join(names)}: rename one"
        )
    return roles


def _ids(source: RowSource, roles: Mapping[str, str]) -> list[str]:
    """The id column where it names every row differently, else `<file>:<row number>`."""
    named = [row.values.get(roles.get("id", "")) for row in source.rows]
    texts = [str(v) for v in named if isinstance(v, int | str) and v != ""]
    if len(set(texts)) == len(source.rows):
        return texts
    return [f"{source.stem}:{number}" for number in range(1, len(source.rows) + 1)]


def _read(cells: Cells, name: str) -> Preference:
    role = "prompt" if cells.has("prompt") else "messages"
    content = cells.content(cells.decoded(cells.get(role)), cells.name(role))
    prompt = _asked(content, cells) if isinstance(content, tuple) else _text(content, cells, role)
    return Preference(name, prompt, (), meta=_meta(cells), origin=cells.origin)


def _asked(messages: tuple[Message, ...], cells: Cells) -> tuple[Message, ...]:
    """The conversation up to its last message that is not the assistant's."""
    last = max((i for i, m in enumerate(messages) if m.role in {"user", "tool"}), default=None)
    if last is None:
        raise RecordError(
            f"{cells.origin}: the conversation has no message of the user; remove the row"
        )
    return messages[: last + 1]


def _text(prompt: str, cells: Cells, role: str) -> str | tuple[Message, ...]:
    if not prompt.strip():
        refuse(prompt, cells.name(role), cells.origin, "give the prompt, or remove the row")
    extra, system = cells.optional("input"), cells.optional("system")
    if extra is not None:
        prompt += "\n" + read_text(extra, cells.name("input"), cells.origin)
    if system is None:
        return prompt
    text = read_text(system, cells.name("system"), cells.origin)
    return (Message("system", text), Message("user", prompt))


def _meta(cells: Cells) -> dict[str, JsonValue]:
    own = cells.values.get("meta")
    found = {k: own[k] for k in FOR_TEMPLATES if k in own} if isinstance(own, dict) else {}
    tools = cells.optional("tools")
    return {**found, "tools": cells.tools(tools)} if tools else found
