"""One row of recognised columns as a record. Wrong types and nulls are errors; poor data is for `quality.py`."""

from __future__ import annotations

from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.records import (
    Message,
    Pair,
    Preference,
    Response,
    check_preference,
    preference_from_json,
)
from prefopt.text.cells import Cells
from prefopt.text.columns import Recognised, Shape
from prefopt.text.files import SourceRow
from prefopt.text.lists import listed_columns, listed_objects
from prefopt.text.prompts import (
    Content,
    Division,
    as_messages,
    first_turn,
    join_prompt,
    last_turn,
    role_names,
    split_prompt,
    split_triple,
)
from prefopt.values import JsonValue, read_list, read_text, refuse

IMPLICIT = "no prompt column: the prompt is what chosen and rejected share"
IMPLICIT_EMPTY = "no prompt column, and chosen and rejected share no beginning: the prompt is empty"


class ReadRow(NamedTuple):
    """A record and the remarks its reading gave rise to."""

    preference: Preference
    notes: tuple[str, ...] = ()


class _Parts(NamedTuple):
    prompt: Content
    responses: tuple[Response, ...]
    notes: tuple[str, ...] = ()


def read_row(row: SourceRow, recognised: Recognised, *, record_id: str, textual: bool) -> ReadRow:
    """The row as a checked record; pairs of ranked and scored lists are left to the caller.

    Supervised conversations train every assistant message, labelled ones the last. Steps after a prefix
    (`initial_reason_steps`) do not end their turn unless a column `ends` says so.

    Args:
        row: the row.
        recognised: what its columns mean.
        record_id: the record's id; records of our own carry theirs.
        textual: whether numbers and lists have to be parsed from text (CSV).

    Raises:
        RecordError: a null, a wrong type or an impossible conversation; the message names file and line.
    """
    if recognised.shape is Shape.NATIVE:
        return ReadRow(preference_from_json(row.values, origin=row.origin))
    cells = Cells(row, recognised.columns, textual=textual)
    match recognised.shape:
        case Shape.PAIR:
            parts, pairs = _pair(cells), (_read_pair(cells),)
        case Shape.LIST | Shape.ITEMS:
            parts, pairs = _list(cells, recognised.shape), ()
        case _:
            parts, pairs = _single(cells), ()
    prefix = cells.optional("prefix")
    preference = Preference(
        id=record_id,
        prompt=parts.prompt,
        responses=parts.responses,
        pairs=pairs,
        prefix="" if prefix is None else read_text(prefix, cells.name("prefix"), cells.origin),
        meta=_meta(cells, recognised),
        origin=row.origin,
    )
    check_preference(preference)
    return ReadRow(preference, parts.notes)


def _meta(cells: Cells, recognised: Recognised) -> dict[str, JsonValue]:
    """Columns without a role, and the tools of the conversation."""
    found = {
        name: _plain(cells.values.get(name))
        for name, role in recognised.mapping.items()
        if role == "meta"
    }
    tools = cells.optional("tools")
    if tools is None and cells.has("prompt"):
        request = cells.values.get(cells.name("prompt"))  # OpenAI's and Together's `input`
        tools = request.get("tools") if isinstance(request, dict) else None
    if tools:
        found["tools"] = cells.tools(tools)
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: object) -> JsonValue:
    """The value as JSON: dates, bytes and other column types of Arrow become texts."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:
            return str(value)


def _prompt(cells: Cells) -> Content:
    """The prompt column with what goes before and after it."""
    if not cells.has("prompt"):
        return _messages(cells)
    value = cells.decoded(cells.get("prompt"))
    if isinstance(value, dict) and "messages" in value:
        value = value["messages"]
    content = cells.content(value, cells.name("prompt"))
    if not isinstance(content, str):
        return _with_system(content, cells)
    extra = cells.optional("input")
    if extra is not None:
        content += "\n" + read_text(extra, cells.name("input"), cells.origin)
    if not cells.has("system") and not cells.has("history"):
        return content
    return _with_system((*_history(cells), Message("user", content)), cells)


def _messages(cells: Cells) -> tuple[Message, ...]:
    name = cells.name("messages")
    value = cells.get("messages")
    content = cells.content(value, name)
    if isinstance(content, str):
        refuse(value, name, cells.origin, "give a list of messages")
    return _with_system(content, cells)


def _with_system(messages: tuple[Message, ...], cells: Cells) -> tuple[Message, ...]:
    system = cells.optional("system")
    if system is None or messages[0].role == "system":
        return messages
    return (Message("system", read_text(system, cells.name("system"), cells.origin)), *messages)


def _history(cells: Cells) -> list[Message]:
    """Earlier turns of Alpaca rows: a list of [question, answer]."""
    value = cells.decoded(cells.optional("history"))
    found: list[Message] = []
    for turn in [] if not value else read_list(value, "history", cells.origin):
        if not isinstance(turn, list) or len(turn) != 2:
            refuse(turn, "history", cells.origin, "each earlier turn is a list [question, answer]")
        found.append(Message("user", read_text(turn[0], "history", cells.origin)))
        found.append(Message("assistant", read_text(turn[1], "history", cells.origin)))
    return found


def _pair(cells: Cells) -> _Parts:
    """The chosen and the rejected response, and after them the gold one, ranked best, where there is one."""
    rejected = cells.content(cells.get("rejected"), cells.name("rejected"))
    gold = _gold(cells)
    notes: tuple[str, ...] = ()
    if not cells.has("chosen"):  # ms-swift: the conversation ends with the chosen answer
        chosen = _messages(cells)
        gold = None if gold is None else _answering(chosen, gold)
        division = _divided(cells, chosen, _answering(chosen, rejected), gold)
    else:
        chosen = cells.content(cells.get("chosen"), cells.name("chosen"))
        if cells.has("prompt") or cells.has("messages"):
            sides = {cells.name("chosen"): chosen, cells.name("rejected"): rejected}
            if gold is not None:
                sides[cells.name("gold")] = gold
            division = join_prompt(_prompt(cells), sides, cells.origin)
        else:
            division = _divided(cells, chosen, rejected, gold)
            notes = (IMPLICIT if division.prompt else IMPLICIT_EMPTY,)
    scores = (_side_score(cells, "score_chosen"), _side_score(cells, "score_rejected"), None)
    ranks = (None, None) if gold is None else (2, 3, 1)
    responses = tuple(
        _response(content, cells, score=score, rank=rank)
        for content, score, rank in zip(division.contents, scores, ranks, strict=False)
    )
    return _Parts(division.prompt, responses, notes)


def _gold(cells: Cells) -> Content | None:
    """The gold response of the row; None where the row has none."""
    value = cells.optional("gold")
    if value is None:
        return None
    if not isinstance(value, str | list | dict):
        remedy = f"give a text or messages, or leave the column unread with columns.meta={cells.name('gold')}"
        refuse(value, cells.name("gold"), cells.origin, remedy)
    return cells.content(value, cells.name("gold"))


def _divided(cells: Cells, chosen: Content, rejected: Content, gold: Content | None) -> Division:
    if gold is None:
        return split_prompt(chosen, rejected, cells.origin)
    return split_triple(chosen, rejected, gold, cells.name("gold"), cells.origin)


def _answering(conversation: tuple[Message, ...], content: Content) -> Content:
    """The content as another end of the conversation, unless it is a conversation of its own."""
    if isinstance(content, str) or content[0].role == "assistant":
        return conversation[: last_turn(conversation)] + as_messages(content)
    return content


def _side_score(cells: Cells, role: str) -> float | None:
    value = cells.optional(role)
    return None if value is None else cells.score(value, cells.name(role))


def _read_pair(cells: Cells) -> Pair:
    weight, margin = (
        None if value is None else cells.number(value, cells.name(role))
        for role, value in ((role, cells.optional(role)) for role in ("weight", "margin"))
    )
    return Pair(0, 1, weight=1.0 if weight is None else weight, margin=margin)


def _list(cells: Cells, shape: Shape) -> _Parts:
    items = listed_objects(cells) if shape is Shape.ITEMS else listed_columns(cells)
    contents = {item.name: item.content for item in items}
    division = join_prompt(_prompt(cells), contents, cells.origin)
    return _Parts(
        division.prompt,
        tuple(
            _response(content, cells, score=item.score, rank=item.rank)
            for content, item in zip(division.contents, items, strict=True)
        ),
    )


def _single(cells: Cells) -> _Parts:
    label = cells.flag(cells.get("label"), cells.name("label")) if cells.has("label") else None
    if cells.has("text"):
        text = read_text(cells.get("text"), cells.name("text"), cells.origin)
        return _Parts("", (_response(text, cells),))
    if cells.has("response"):
        name = cells.name("response")
        content = cells.content(cells.get("response"), name)
        division = join_prompt(_prompt(cells), {name: content}, cells.origin)
        return _Parts(division.prompt, (_response(division.contents[0], cells, label=label),))
    messages = _messages(cells)
    start = first_turn(messages) if label is None else last_turn(messages)
    if not 0 < start < len(messages):
        raise RecordError(
            f"{cells.origin}: '{cells.name('messages')}' has no assistant message after a prompt "
            f"(roles: {role_names(messages)}); add the answer, or remove the row"
        )
    return _Parts(messages[:start], (_response(messages[start:], cells, label=label),))


def _response(
    content: Content,
    cells: Cells,
    *,
    score: float | None = None,
    rank: int | None = None,
    label: bool | None = None,
) -> Response:
    """One plain assistant message is text, anything richer stays turns."""
    ends = cells.optional("ends")
    stops = not cells.has("prefix") if ends is None else cells.flag(ends, cells.name("ends"))
    if isinstance(content, str):
        return Response(content, score=score, rank=rank, label=label, ends=stops)
    only = content[0]
    if len(content) == 1 and only.role == "assistant" and only.train and not only.extra:
        return Response(only.content, score=score, rank=rank, label=label, ends=stops)
    return Response(turns=content, score=score, rank=rank, label=label, ends=stops)
