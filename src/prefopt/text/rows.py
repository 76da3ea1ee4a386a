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
from prefopt.text.prompts import (
    Content,
    as_messages,
    first_turn,
    join_prompt,
    last_turn,
    role_names,
    split_prompt,
)
from prefopt.values import JsonValue, describe, read_list, read_object, read_text, refuse

IMPLICIT = "no prompt column: the prompt is what chosen and rejected share"
IMPLICIT_EMPTY = "no prompt column, and chosen and rejected share no beginning: the prompt is empty"

_ITEM_TEXT = ("completion", "response", "text", "content", "answer", "output")
_ITEM_SCORE = ("score", "overall_score", "rating", "reward")


class ReadRow(NamedTuple):
    """A record and the remarks its reading gave rise to."""

    preference: Preference
    notes: tuple[str, ...] = ()


class _Parts(NamedTuple):
    prompt: Content
    responses: tuple[Response, ...]
    notes: tuple[str, ...] = ()


class _Item(NamedTuple):
    name: str
    content: Content
    score: float | None
    rank: int | None


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
    rejected = cells.content(cells.get("rejected"), cells.name("rejected"))
    notes: tuple[str, ...] = ()
    if not cells.has("chosen"):  # ms-swift: the conversation ends with the chosen answer
        chosen = _messages(cells)
        if isinstance(rejected, str) or rejected[0].role == "assistant":
            rejected = chosen[: last_turn(chosen)] + as_messages(rejected)
        division = split_prompt(chosen, rejected, cells.origin)
    else:
        chosen = cells.content(cells.get("chosen"), cells.name("chosen"))
        if cells.has("prompt") or cells.has("messages"):
            sides = {cells.name("chosen"): chosen, cells.name("rejected"): rejected}
            division = join_prompt(_prompt(cells), sides, cells.origin)
        else:
            division = split_prompt(chosen, rejected, cells.origin)
            notes = (IMPLICIT if division.prompt else IMPLICIT_EMPTY,)
    responses = tuple(
        _response(content, cells, score=_side_score(cells, role))
        for content, role in zip(division.contents, ("score_chosen", "score_rejected"), strict=True)
    )
    return _Parts(division.prompt, responses, notes)


def _side_score(cells: Cells, role: str) -> float | None:
    value = cells.optional(role)
    return None if value is None else cells.number(value, cells.name(role))


def _read_pair(cells: Cells) -> Pair:
    weight = _side_score(cells, "weight")
    return Pair(0, 1, weight=1.0 if weight is None else weight, margin=_side_score(cells, "margin"))


def _list(cells: Cells, shape: Shape) -> _Parts:
    items = _objects(cells) if shape is Shape.ITEMS else _columns(cells)
    contents = {item.name: item.content for item in items}
    division = join_prompt(_prompt(cells), contents, cells.origin)
    return _Parts(
        division.prompt,
        tuple(
            _response(content, cells, score=item.score, rank=item.rank)
            for content, item in zip(division.contents, items, strict=True)
        ),
    )


def _columns(cells: Cells) -> list[_Item]:
    """Responses with parallel lists of scores and ranks."""
    name = cells.name("responses")
    values = cells.items("responses")
    scores = _parallel(cells, "scores", len(values))
    ranks = _parallel(cells, "ranks", len(values))
    return [
        _Item(
            f"{name}[{i}]",
            cells.content(value, f"{name}[{i}]"),
            None if scores is None else cells.number(scores[i], f"{cells.name('scores')}[{i}]"),
            None if ranks is None else cells.rank(ranks[i], f"{cells.name('ranks')}[{i}]"),
        )
        for i, value in enumerate(values)
    ]


def _parallel(cells: Cells, role: str, count: int) -> list[JsonValue] | None:
    if not cells.has(role):
        return None
    values = cells.items(role)
    if len(values) != count:
        raise RecordError(
            f"{cells.origin}: {count} {cells.name('responses')} but {len(values)} {cells.name(role)}; "
            "give one for each, in the same order"
        )
    return values


def _objects(cells: Cells) -> list[_Item]:
    """Responses as objects with their score or rank inside; ranks may count from 0 (NeMo)."""
    objects = [
        read_object(value, f"{cells.name('items')}[{i}]", cells.origin)
        for i, value in enumerate(cells.items("items"))
    ]
    first = 0 if any(item.get("rank") == 0 for item in objects) else 1
    return [
        _object(cells, item, f"{cells.name('items')}[{i}]", first_rank=first)
        for i, item in enumerate(objects)
    ]


def _object(cells: Cells, item: dict[str, JsonValue], name: str, *, first_rank: int) -> _Item:
    key = next((key for key in _ITEM_TEXT if key in item), None)
    if key is None:
        raise RecordError(
            f"{cells.origin}: '{name}' is {describe(item)}; give it one of {', '.join(_ITEM_TEXT)}"
        )
    score = next((item[key] for key in _ITEM_SCORE if item.get(key) is not None), None)
    rank = item.get("rank")
    if isinstance(rank, int) and not isinstance(rank, bool):
        rank += 1 - first_rank
    return _Item(
        name,
        cells.content(item[key], f"{name}.{key}"),
        None if score is None else cells.number(score, f"{name}.score"),
        None if rank is None else cells.rank(rank, f"{name}.rank"),
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
