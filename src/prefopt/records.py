"""The data nouns (messages, responses, pairs, preferences) and their JSON form. No torch, no tokenizer.

One record type serves every method: supervised rows have one response and no pairs, unpaired rows carry
`label`, ranked and scored lists carry `rank` and `score`, step pairs carry `prefix`. Files of other people's
columns are read by `prefopt.text.sources`; the JSONL written here is read back exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefopt.checks import ROLES, check_preference
from prefopt.errors import RecordError, StorageError
from prefopt.values import (
    JsonValue,
    describe,
    encoded,
    read_flag,
    read_list,
    read_number,
    read_object,
    read_rank,
    read_score,
    read_text,
    refuse,
    refuse_lone_surrogates,
)

__all__ = [
    "JsonValue",
    "Message",
    "Pair",
    "Preference",
    "Response",
    "Role",
    "check_preference",
    "preference_from_json",
    "preference_to_json",
    "read_message",
    "read_preferences",
    "write_preferences",
]

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. Only assistant messages with `train` are ever scored."""

    role: str
    content: str
    train: bool = True
    extra: Mapping[str, JsonValue] = field(default_factory=dict)
    """Further keys a chat template may read (`tool_calls`, `name`, ...), passed through unchanged."""


@dataclass(frozen=True, slots=True)
class Response:
    """One continuation of the prompt: a text, or several turns (`turns`) of an agent or a dialogue."""

    text: str = ""
    turns: tuple[Message, ...] = ()
    score: float | None = None
    rank: int | None = None
    """1 is best."""
    label: bool | None = None
    ends: bool = True
    """Whether the end-of-turn token follows. False for single reasoning steps and for cut samples."""
    masked: tuple[tuple[int, int], ...] = ()
    """Character ranges `(start, end)` of `text` that are context and never scored, ascending and apart: what a
    tool or an interpreter wrote in the middle of the model's text. Not with `turns`, which have `Message.train`."""
    mismatched: bool = False
    """An answer to another prompt, added in memory to estimate a KL divergence (KTO); never stored in files."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Positions in `Preference.responses`, the better first."""

    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, the responses to it, and which of them are preferred to which.

    `prompt` is a conversation (rendered with the chat template) or a plain string (used as it is).
    `prefix` is unfinished assistant text that every response continues (Step-DPO, SCDPO); it is never scored.
    """

    id: str
    prompt: str | tuple[Message, ...]
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...] = ()
    prefix: str = ""
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    origin: str = ""
    """Where the row came from, `file:line`, for error messages."""


def preference_to_json(preference: Preference) -> dict[str, JsonValue]:
    """The record as a JSON object; fields that hold their default are left out, and so is `origin`."""
    prompt = preference.prompt
    row: dict[str, JsonValue] = {
        "id": preference.id,
        "prompt": prompt if isinstance(prompt, str) else [_message_to_json(m) for m in prompt],
    }
    if preference.prefix:
        row["prefix"] = preference.prefix
    row["responses"] = [_response_to_json(response) for response in preference.responses]
    if preference.pairs:
        row["pairs"] = [_pair_to_json(pair) for pair in preference.pairs]
    if preference.meta:
        row["meta"] = dict(preference.meta)
    return row


def _message_to_json(message: Message) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {"role": message.role, "content": message.content, **message.extra}
    return row if message.train else {**row, "train": False}


def _response_to_json(response: Response) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = (
        {"turns": [_message_to_json(m) for m in response.turns]}
        if response.turns
        else {"text": response.text}
    )
    annotations = {"score": response.score, "rank": response.rank, "label": response.label}
    row.update({name: value for name, value in annotations.items() if value is not None})
    if response.masked:
        row["masked"] = [[start, end] for start, end in response.masked]
    return row if response.ends else {**row, "ends": False}


def _pair_to_json(pair: Pair) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {"chosen": pair.chosen, "rejected": pair.rejected}
    if pair.weight != 1.0:
        row["weight"] = pair.weight
    return row if pair.margin is None else {**row, "margin": pair.margin}


def preference_from_json(row: Mapping[str, JsonValue], *, origin: str) -> Preference:
    """The record that `preference_to_json` wrote, checked.

    Args:
        row: an object with `id`, `prompt`, `responses` and optionally `prefix`, `pairs`, `meta`.
        origin: where it came from (`file:line`), for error messages and `Preference.origin`.

    Raises:
        RecordError: a key is missing, unknown or of the wrong type, or `check_preference` refuses.
    """
    _only(row, ("id", "prompt", "prefix", "responses", "pairs", "meta"), "the record", origin)
    identity = row.get("id")
    preference = Preference(
        id=str(identity) if isinstance(identity, int) else read_text(identity, "id", origin),
        prompt=_read_prompt(row.get("prompt"), origin),
        responses=tuple(
            _read_response(item, f"responses[{i}]", origin)
            for i, item in enumerate(read_list(row.get("responses"), "responses", origin))
        ),
        pairs=tuple(
            _read_pair(item, f"pairs[{i}]", origin)
            for i, item in enumerate(_optional_list(row.get("pairs"), "pairs", origin))
        ),
        prefix=read_text(row.get("prefix") or "", "prefix", origin),
        meta=_without_nulls(read_object(row.get("meta") or {}, "meta", origin)),
        origin=origin,
    )
    check_preference(preference)
    return preference


def _only(row: Mapping[str, JsonValue], known: tuple[str, ...], what: str, origin: str) -> None:
    unknown = [key for key, value in row.items() if key not in known and value is not None]
    if unknown:
        raise RecordError(
            f"{origin}: {what} has the unknown key '{unknown[0]}'; "
            f"known are {', '.join(known)} (further facts go into 'meta')"
        )


def _without_nulls(row: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {key: value for key, value in row.items() if value is not None}


def _optional_list(value: JsonValue, name: str, origin: str) -> list[JsonValue]:
    return [] if value is None or value == [] else read_list(value, name, origin)


def _read_prompt(value: JsonValue, origin: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        refuse(value, "prompt", origin, "give a text or a list of messages")
    return tuple(read_message(item, f"prompt[{i}]", origin) for i, item in enumerate(value))


def read_message(value: JsonValue, name: str, origin: str) -> Message:
    """One message from `{"role", "content"}` or ShareGPT's `{"from", "value"}`.

    Further keys become `extra`; `train`, `loss` (ms-swift) and `weight` 0 or 1 (OpenAI) set `Message.train`;
    a content of text parts is joined; null content is empty text where the message calls tools.

    Raises:
        RecordError: no such object, an unknown role, content that is no text, or an image.
    """
    row = read_object(value, name, origin)
    role_key, content_key = ("from", "value") if "from" in row else ("role", "content")
    role = row.get(role_key)
    if not isinstance(role, str) or role.lower() not in ROLES:
        refuse(
            role, f"{name}.{role_key}", origin, "known roles are system, user, assistant and tool"
        )
    extra = _without_nulls(row)
    content = extra.pop(content_key, None)
    extra.pop(role_key)
    return Message(
        role=ROLES[role.lower()],
        content=_read_content(
            content, f"{name}.{content_key}", origin, silent="tool_calls" in extra
        ),
        train=_read_train(extra, name, origin),
        extra=extra,
    )


def _read_content(value: JsonValue, name: str, origin: str, *, silent: bool) -> str:
    if value is None and silent:
        return ""
    if not isinstance(value, list):
        return read_text(value, name, origin)
    parts: list[str] = []
    for part in value:
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            refuse(
                part, name, origin, "only text parts can be used: remove images, sound and video"
            )
        parts.append(read_text(part.get("text"), f"{name}.text", origin))
    return "".join(parts)


def _read_train(extra: dict[str, JsonValue], name: str, origin: str) -> bool:
    for key in ("train", "loss", "weight"):
        if key in extra:
            return read_flag(extra.pop(key), f"{name}.{key}", origin)
    return True


def _read_response(value: JsonValue, name: str, origin: str) -> Response:
    row = read_object(value, name, origin)
    _only(row, ("text", "turns", "score", "rank", "label", "ends", "masked"), name, origin)
    turns = tuple(
        read_message(item, f"{name}.turns[{i}]", origin)
        for i, item in enumerate(_optional_list(row.get("turns"), f"{name}.turns", origin))
    )
    score, rank, label, ends = (row.get(key) for key in ("score", "rank", "label", "ends"))
    text = row.get("text")
    return Response(
        text="" if text is None and turns else read_text(text, f"{name}.text", origin),
        turns=turns,
        score=read_score(score, f"{name}.score", origin),
        rank=None if rank is None else read_rank(rank, f"{name}.rank", origin),
        label=None if label is None else read_flag(label, f"{name}.label", origin),
        ends=True if ends is None else read_flag(ends, f"{name}.ends", origin),
        masked=tuple(
            _read_range(item, f"{name}.masked[{i}]", origin)
            for i, item in enumerate(_optional_list(row.get("masked"), f"{name}.masked", origin))
        ),
    )


def _read_range(value: JsonValue, name: str, origin: str) -> tuple[int, int]:
    start, end = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if type(start) is not int or type(end) is not int:
        refuse(value, name, origin, "give a character range of the text as [start, end]")
    return start, end


def _read_pair(value: JsonValue, name: str, origin: str) -> Pair:
    row = read_object(value, name, origin)
    _only(row, ("chosen", "rejected", "weight", "margin"), name, origin)
    weight, margin = row.get("weight"), row.get("margin")
    return Pair(
        chosen=_read_index(row.get("chosen"), f"{name}.chosen", origin),
        rejected=_read_index(row.get("rejected"), f"{name}.rejected", origin),
        weight=1.0 if weight is None else read_number(weight, f"{name}.weight", origin),
        margin=None if margin is None else read_number(margin, f"{name}.margin", origin),
    )


def _read_index(value: JsonValue, name: str, origin: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(value, name, origin, "give the position of a response, from 0")
    return value


def read_preferences(path: str | Path) -> list[Preference]:
    """The records of a JSONL file written by `write_preferences`; blank lines are skipped.

    Raises:
        StorageError: the file cannot be read.
        RecordError: a line is no JSON object or no sound record; the message names file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{path} is no UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    found: list[Preference] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found.append(
                preference_from_json(
                    parse_line(line, f"{path}:{number}"), origin=f"{path}:{number}"
                )
            )
    return found


def parse_line(line: str, origin: str) -> dict[str, JsonValue]:
    """The JSON object of one line.

    Raises:
        RecordError: anything else, with the column of the fault, or a text that holds half of a surrogate pair.
    """
    try:
        row: JsonValue = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{origin}: broken JSON at column {error.colno} ({error.msg}); repair or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise RecordError(
            f"{origin}: the line is {describe(row)}; every line has to be one JSON object"
        )
    refuse_lone_surrogates(row, origin, source=line)
    return row


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Nothing; the file then holds exactly these records, one JSON object a line, or is as it was before.

    Written to a temporary file in the same folder, synced to disk and renamed.

    Raises:
        StorageError: the folder does not exist, is full or may not be written.
        RecordError: a text holds half of a surrogate pair.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for preference in preferences:
                line = json.dumps(preference_to_json(preference), ensure_ascii=False) + "\n"
                file.write(encoded(line, f"{target}: record {preference.id!r}"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise StorageError(
            f"cannot write {target}: {error.strerror}; the file is as it was before"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
