"""One row of recognised columns as a record. Wrong types and nulls are errors; poor data is for `quality.py`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from prefopt.errors import RecordError
from prefopt.records import (
    Message,
    Pair,
    Preference,
    Response,
    check_preference,
    preference_from_json,
    read_message,
)
from prefopt.text.columns import Recognised, Shape
from prefopt.text.files import SourceRow
from prefopt.values import (
    JsonValue,
    describe,
    quote,
    read_flag,
    read_list,
    read_number,
    read_object,
    read_rank,
    read_text,
    refuse,
)

IMPLICIT = "no prompt column: the prompt is what chosen and rejected share"
IMPLICIT_EMPTY = "no prompt column, and chosen and rejected share no beginning: the prompt is empty"

_ITEM_TEXT = ("completion", "response", "text", "content", "answer", "output")
_ITEM_SCORE = ("score", "overall_score", "rating", "reward")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Prompt = str | tuple[Message, ...]
Content = str | tuple[Message, ...]
"""A response as it stands in the data: text, or messages (with or without those of the prompt)."""


class ReadRow(NamedTuple):
    """A record and the remarks its reading gave rise to."""

    preference: Preference
    notes: tuple[str, ...] = ()


class RowReader:
    """Reads rows whose columns were recognised."""

    def __init__(self, recognised: Recognised, *, textual: bool) -> None:
        self.shape = recognised.shape
        self.columns = recognised.columns
        self.meta = [name for name, role in recognised.mapping.items() if role == "meta"]
        self.textual = textual

    def read(self, row: SourceRow, *, id: str) -> ReadRow:
        """The row as a checked record; pairs of ranked and scored lists are left to the caller.

        Raises:
            RecordError: a null, a wrong type or an impossible conversation; the message names file and line.
        """
        if self.shape is Shape.NATIVE:
            return ReadRow(preference_from_json(row.values, origin=row.origin))
        built = _Row(self, row)
        prompt, responses, notes = built.parts()
        preference = Preference(
            id=id,
            prompt=prompt,
            responses=responses,
            pairs=built.pairs(),
            prefix=built.prefix(),
            meta=built.meta(),
            origin=row.origin,
        )
        check_preference(preference)
        return ReadRow(preference, notes)


class _Row:
    """One row under its reader's columns."""

    def __init__(self, reader: RowReader, row: SourceRow) -> None:
        self.reader = reader
        self.values = row.values
        self.origin = row.origin

    def _has(self, role: str) -> bool:
        return role in self.reader.columns

    def _name(self, role: str) -> str:
        return self.reader.columns[role]

    def _get(self, role: str) -> JsonValue:
        """The value of a required column."""
        name = self._name(role)
        if name not in self.values:
            raise RecordError(
                f"{self.origin}: column '{name}' ({role}) is missing here but not in the first rows; "
                "add it, or remove the row"
            )
        return self.values[name]

    def _optional(self, role: str) -> JsonValue:
        value = self.values.get(self._name(role)) if self._has(role) else None
        return None if value == "" else value

    def _decoded(self, value: JsonValue) -> JsonValue:
        """Lists and objects in the cells of a table are JSON texts."""
        if not (
            self.reader.textual and isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
        ):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value

    def _number(self, value: JsonValue, name: str) -> float:
        if self.reader.textual and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass  # read_number refuses it with the text it has
        return read_number(value, name, self.origin)

    def _flag(self, value: JsonValue, name: str) -> bool:
        if self.reader.textual and isinstance(value, str):
            value = _FLAGS.get(value.strip().lower(), value)
        return read_flag(value, name, self.origin)

    def parts(self) -> tuple[Prompt, tuple[Response, ...], tuple[str, ...]]:
        """Prompt, responses with their annotations, and remarks."""
        match self.reader.shape:
            case Shape.PAIR:
                return self._pair()
            case Shape.LIST | Shape.ITEMS:
                return self._list()
            case _:
                return self._single()

    def prefix(self) -> str:
        """Unfinished assistant text before every response."""
        value = self._optional("prefix")
        return "" if value is None else read_text(value, self._name("prefix"), self.origin)

    def pairs(self) -> tuple[Pair, ...]:
        """The pair of a chosen and a rejected response; empty for other shapes."""
        if self.reader.shape is not Shape.PAIR:
            return ()
        margin, weight = self._optional("margin"), self._optional("weight")
        return (
            Pair(
                chosen=0,
                rejected=1,
                margin=None if margin is None else self._number(margin, self._name("margin")),
                weight=1.0 if weight is None else self._number(weight, self._name("weight")),
            ),
        )

    def meta(self) -> dict[str, JsonValue]:
        """Columns without a role, and the tools of the conversation."""
        found = {name: _plain(self.values.get(name)) for name in self.reader.meta}
        tools = self._optional("tools")
        if tools is None and self._has("prompt"):
            together = self.values.get(self._name("prompt"))
            tools = together.get("tools") if isinstance(together, dict) else None
        if tools:
            found["tools"] = self._tools(tools)
        return {name: value for name, value in found.items() if value is not None}

    def _tools(self, value: JsonValue) -> list[JsonValue]:
        if isinstance(value, str):  # LLaMA-Factory writes them as a JSON text
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise RecordError(
                    f"{self.origin}: 'tools' is no JSON ({error.msg} at column {error.colno}); give a list"
                ) from error
        return read_list(value, "tools", self.origin)

    def _ends(self) -> bool:
        """Whether responses end their turn: steps after a prefix do not, unless a column says so."""
        value = self._optional("ends")
        return not self._has("prefix") if value is None else self._flag(value, self._name("ends"))

    def _content(self, value: JsonValue, name: str) -> Content:
        """Text, one message, or a list of messages."""
        value = self._decoded(value)
        if isinstance(value, dict):
            return (read_message(value, name, self.origin),)
        if isinstance(value, list):
            items = read_list(value, name, self.origin)
            return tuple(read_message(m, f"{name}[{i}]", self.origin) for i, m in enumerate(items))
        if value is None:
            refuse(value, name, self.origin, "give a text or a list of messages, or remove the row")
        return read_text(value, name, self.origin)

    def _messages(self) -> tuple[Message, ...]:
        name = self._name("messages")
        content = self._content(self._get("messages"), name)
        if isinstance(content, str):
            refuse(content, name, self.origin, "give a list of messages")
        return self._with_system(content)

    def _prompt(self) -> Prompt:
        """The prompt column with what goes before and after it."""
        if not self._has("prompt"):
            return self._messages()
        name = self._name("prompt")
        value = self._decoded(self._get("prompt"))
        if isinstance(value, dict) and "messages" in value:
            value = value["messages"]
        content = self._content(value, name)
        if not isinstance(content, str):
            return self._with_system(content)
        extra = self._optional("input")
        if extra is not None:
            content += "\n" + read_text(extra, self._name("input"), self.origin)
        if not self._has("system") and not self._has("history"):
            return content
        return self._with_system((*self._history(), Message("user", content)))

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        system = self._optional("system")
        if system is None or messages[0].role == "system":
            return messages
        return (Message("system", read_text(system, self._name("system"), self.origin)), *messages)

    def _history(self) -> list[Message]:
        """Earlier turns of Alpaca rows: a list of [question, answer]."""
        value = self._decoded(self._optional("history"))
        found: list[Message] = []
        for turn in [] if not value else read_list(value, "history", self.origin):
            if not isinstance(turn, list) or len(turn) != 2:
                refuse(
                    turn, "history", self.origin, "each earlier turn is a list [question, answer]"
                )
            found.append(Message("user", read_text(turn[0], "history", self.origin)))
            found.append(Message("assistant", read_text(turn[1], "history", self.origin)))
        return found

    def _pair(self) -> tuple[Prompt, tuple[Response, ...], tuple[str, ...]]:
        rejected = self._content(self._get("rejected"), self._name("rejected"))
        notes: tuple[str, ...] = ()
        if self._has("chosen"):
            chosen = self._content(self._get("chosen"), self._name("chosen"))
        else:
            chosen = self._messages()
            if isinstance(rejected, str) or rejected[0].role == "assistant":
                rejected = chosen[: _last_turn(chosen)] + _as_messages(rejected)
        if self._has("prompt") or (self._has("chosen") and self._has("messages")):
            prompt, contents = self._join(self._prompt(), {"chosen": chosen, "rejected": rejected})
        else:
            prompt, contents = _split(chosen, rejected, self.origin)
            if self._has("chosen"):
                notes = (IMPLICIT if prompt else IMPLICIT_EMPTY,)
        responses = tuple(
            self._response(content, score=self._side_score(side))
            for content, side in zip(contents, ("score_chosen", "score_rejected"), strict=True)
        )
        return prompt, responses, notes

    def _side_score(self, role: str) -> float | None:
        value = self._optional(role)
        return None if value is None else self._number(value, self._name(role))

    def _list(self) -> tuple[Prompt, tuple[Response, ...], tuple[str, ...]]:
        items = self._reader_items()
        contents = {f"{name}": content for name, content, _, _ in items}
        prompt, joined = self._join(self._prompt(), contents)
        responses = tuple(
            self._response(content, score=score, rank=rank)
            for content, (_, _, score, rank) in zip(joined, items, strict=True)
        )
        return prompt, responses, ()

    def _reader_items(self) -> list[tuple[str, Content, float | None, int | None]]:
        """(name, content, score, rank) of each listed response."""
        role = "items" if self.reader.shape is Shape.ITEMS else "responses"
        name = self._name(role)
        values = read_list(self._decoded(self._get(role)), name, self.origin)
        if role == "items":
            return [self._item(value, f"{name}[{i}]") for i, value in enumerate(values)]
        scores = self._parallel("scores", len(values), name)
        ranks = self._parallel("ranks", len(values), name)
        return [
            (
                f"{name}[{i}]",
                self._content(value, f"{name}[{i}]"),
                None if scores is None else self._number(scores[i], f"{self._name('scores')}[{i}]"),
                None if ranks is None else self._rank(ranks[i], f"{self._name('ranks')}[{i}]"),
            )
            for i, value in enumerate(values)
        ]

    def _rank(self, value: JsonValue, name: str) -> int:
        return read_rank(value, name, self.origin)

    def _parallel(self, role: str, count: int, name: str) -> list[JsonValue] | None:
        if not self._has(role):
            return None
        values = read_list(self._decoded(self._get(role)), self._name(role), self.origin)
        if len(values) != count:
            raise RecordError(
                f"{self.origin}: {count} {name} but {len(values)} {self._name(role)}; "
                "give one for each, in the same order"
            )
        return values

    def _item(self, value: JsonValue, name: str) -> tuple[str, Content, float | None, int | None]:
        item = read_object(value, name, self.origin)
        key = next((key for key in _ITEM_TEXT if key in item), None)
        if key is None:
            raise RecordError(
                f"{self.origin}: '{name}' is {describe(item)}; give it one of {', '.join(_ITEM_TEXT)}"
            )
        content = self._content(item[key], f"{name}.{key}")
        score = next((item[key] for key in _ITEM_SCORE if item.get(key) is not None), None)
        rank = item.get("rank")
        return (
            name,
            content,
            None if score is None else self._number(score, f"{name}.score"),
            None if rank is None else self._rank(rank, f"{name}.rank"),
        )

    def _single(self) -> tuple[Prompt, tuple[Response, ...], tuple[str, ...]]:
        label = None
        if self.reader.shape is Shape.LABEL:
            label = self._flag(self._get("label"), self._name("label"))
        if self._has("text"):
            content = read_text(self._get("text"), self._name("text"), self.origin)
            return "", (self._response(content),), ()
        if self._has("response"):
            name = self._name("response")
            contents = {name: self._content(self._get("response"), name)}
            prompt, (content,) = self._join(self._prompt(), contents)
            return prompt, (self._response(content, label=label),), ()
        messages = self._messages()
        start = _last_turn(messages) if label is not None else _first_turn(messages)
        if not 0 < start < len(messages):
            raise RecordError(
                f"{self.origin}: '{self._name('messages')}' has no assistant message after a prompt "
                f"({_roles(messages)}); add the answer, or remove the row"
            )
        return messages[:start], (self._response(messages[start:], label=label),), ()

    def _response(
        self,
        content: Content,
        *,
        score: float | None = None,
        rank: int | None = None,
        label: bool | None = None,
    ) -> Response:
        text = content
        turns: tuple[Message, ...] = ()
        if not isinstance(content, str):
            plain = len(content) == 1 and content[0].train and not content[0].extra
            turns = () if plain and content[0].role == "assistant" else content
            text = "" if turns else content[0].content
        return Response(
            text=str(text), turns=turns, score=score, rank=rank, label=label, ends=self._ends()
        )

    def _join(self, prompt: Prompt, contents: dict[str, Content]) -> tuple[Prompt, list[Content]]:
        """The prompt and what each content adds to it."""
        kinds = {name: isinstance(content, str) for name, content in contents.items()}
        if isinstance(prompt, str) and len(set(kinds.values())) > 1:
            text = next(name for name, is_text in kinds.items() if is_text)
            messages = next(name for name, is_text in kinds.items() if not is_text)
            raise RecordError(
                f"{self.origin}: '{messages}' is a list of messages but '{text}' is text; make them alike"
            )
        if isinstance(prompt, str) and not all(kinds.values()):
            prompt = _as_conversation(prompt, next(iter(contents.values())))
        return prompt, [
            c if isinstance(c, str) or isinstance(prompt, str) else self._after(prompt, c, name)
            for name, c in contents.items()
        ]

    def _after(
        self, prompt: tuple[Message, ...], content: tuple[Message, ...], name: str
    ) -> Content:
        if content[0].role == "assistant":
            return content
        n = len(prompt)
        if len(content) > n and _same(content[:n], prompt):
            return content[n:]
        at = next(
            (
                i
                for i, (a, b) in enumerate(zip(content, prompt, strict=False))
                if not _same((a,), (b,))
            ),
            n,
        )
        theirs = quote(content[at].content) if at < len(content) else "the end"
        ours = quote(prompt[at].content) if at < n else "the end"
        raise RecordError(
            f"{self.origin}: '{name}' does not start with the prompt: message {at} is {theirs}, "
            f"the prompt has {ours}; give only the answer, or the same messages"
        )


def _as_messages(content: Content) -> tuple[Message, ...]:
    return (Message("assistant", content),) if isinstance(content, str) else content


def _as_conversation(prompt: str, content: Content) -> tuple[Message, ...]:
    """The text prompt as messages: those that `content` opens with when they say the same."""
    messages = _as_messages(content)
    opening = messages[: _first_turn(messages)]
    if opening and opening[-1].role == "user" and opening[-1].content.strip() == prompt.strip():
        return opening
    return (Message("user", prompt),)


def _first_turn(messages: Sequence[Message]) -> int:
    """Position of the first assistant message; the length when there is none."""
    return next((i for i, m in enumerate(messages) if m.role == "assistant"), len(messages))


def _last_turn(messages: Sequence[Message]) -> int:
    """Position of the last message, which has to be the assistant's; -1 when it is not."""
    return len(messages) - 1 if messages[-1].role == "assistant" else -1


def _same(a: Sequence[Message], b: Sequence[Message]) -> bool:
    return [(m.role, m.content, m.extra) for m in a] == [(m.role, m.content, m.extra) for m in b]


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(m.role for m in messages)


def _split(chosen: Content, rejected: Content, origin: str) -> tuple[Prompt, list[Content]]:
    """Prompt and responses where both are whole texts or whole conversations."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = common_text(chosen, rejected)
        return prompt, [chosen[len(prompt) :], rejected[len(prompt) :]]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RecordError(
            f"{origin}: one of chosen and rejected is text, the other a list of messages; make them alike"
        )
    n = common_messages(chosen, rejected)
    if n == 0:
        raise RecordError(
            f"{origin}: chosen ({_roles(chosen)}) and rejected ({_roles(rejected)}) differ before the first "
            "assistant message, so there is no common prompt; add a prompt column"
        )
    return chosen[:n], [chosen[n:], rejected[n:]]


def common_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages two conversations share as their prompt.

    The longest common beginning, shortened until an assistant message follows in both; 0 when there is none.
    """
    n = 0
    while n < min(len(chosen), len(rejected)) - 1 and _same((chosen[n],), (rejected[n],)):
        n += 1
    while n > 0 and not (chosen[n].role == rejected[n].role == "assistant"):
        n -= 1
    return n


def common_text(chosen: str, rejected: str) -> str:
    """The prompt that two whole texts share: their common beginning, ended before a word.

    It ends after the last `\\n\\nAssistant:` where there is one (Anthropic's HH sets), otherwise before
    white space, so that no word is split and no side is empty: "The sky", "The sky is blue" share "The".
    """
    shared = os.path.commonprefix([chosen, rejected])
    marker = "\n\nAssistant:"
    at = shared.rfind(marker)
    if at >= 0 and len(shared) < max(len(chosen), len(rejected)):
        return shared[: at + len(marker)]
    for i in range(min(len(shared), len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[i].isspace() and rejected[i].isspace() and not shared[i - 1].isspace():
            return shared[:i]
    return ""


def _plain(value: object) -> JsonValue:
    """The value as JSON: dates, bytes and other column types of Arrow become texts."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
    return str(value)
