"""What every record must satisfy, whatever the method. Reading and writing records is in `records.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefopt.errors import RecordError

if TYPE_CHECKING:
    from prefopt.records import Message, Pair, Preference, Response

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
"""Names of roles in the wild (ChatML, ShareGPT, agents) and the four that chat templates know."""


def check_preference(preference: Preference) -> None:
    """Nothing when the record is sound; raises `RecordError` for what no method could train on.

    Sound means: a prompt whose conversation does not end with the assistant, at least one response, each
    one text or turns that end with the assistant, finite scores, ranks from 1, masked ranges in order within the
    text, and pairs of two different responses that exist. Empty texts are sound here; whether to drop them is for
    `prepare`.
    """
    where = preference.origin or f"record '{preference.id}'"
    if not isinstance(preference.prompt, str):
        _check_prompt(preference.prompt, where)
    if not preference.responses:
        raise RecordError(f"{where}: no responses; give at least one, or remove the row")
    for i, response in enumerate(preference.responses):
        _check_response(response, f"responses[{i}]", where)
    for i, pair in enumerate(preference.pairs):
        _check_pair(pair, f"pairs[{i}]", len(preference.responses), where)


def _check_prompt(messages: tuple[Message, ...], where: str) -> None:
    if not messages:
        raise RecordError(f"{where}: the prompt has no messages; give at least one user message")
    if messages[-1].role == "assistant":
        raise RecordError(
            f"{where}: the prompt ends with an assistant message; make it part of the responses, "
            "or put unfinished assistant text into 'prefix'"
        )
    for message in messages:
        _check_role(message, where)


def _check_role(message: Message, where: str) -> None:
    if message.role not in ROLES.values():
        raise RecordError(
            f"{where}: unknown role '{message.role}'; known are system, user, assistant and tool"
        )


def _check_response(response: Response, name: str, where: str) -> None:
    if response.text and response.turns:
        raise RecordError(f"{where}: {name} has both text and turns; keep one of them")
    for message in response.turns:
        _check_role(message, where)
    if response.turns and response.turns[-1].role != "assistant":
        raise RecordError(
            f"{where}: {name} ends with a {response.turns[-1].role} message; "
            "responses end with an assistant message: cut what follows it"
        )
    if response.turns and response.turns[0].role != "assistant":
        raise RecordError(
            f"{where}: {name} starts with a {response.turns[0].role} message; "
            "what precedes the first assistant message belongs into the prompt"
        )
    if response.score is not None and not math.isfinite(response.score):
        raise RecordError(f"{where}: {name} has score {response.score}; give a finite number")
    if response.rank is not None and response.rank < 1:
        raise RecordError(f"{where}: {name} has rank {response.rank}; ranks start at 1 (best)")
    if response.masked:
        _check_masked(response, name, where)


def _check_masked(response: Response, name: str, where: str) -> None:
    if response.turns:
        raise RecordError(
            f"{where}: {name} has both turns and masked ranges; "
            "mark the turns that are not trained on with 'train': false instead"
        )
    before = 0
    for i, (start, end) in enumerate(response.masked):
        if not 0 <= start < end <= len(response.text):
            raise RecordError(
                f"{where}: {name}.masked[{i}] is [{start}, {end}], which is no range of its text of "
                f"{len(response.text)} characters; give 0 <= start < end <= {len(response.text)}"
            )
        if start < before:
            raise RecordError(
                f"{where}: {name}.masked[{i}] starts at {start}, before the end {before} of the range before it; "
                "give the ranges in order, without overlaps"
            )
        before = end


def _check_pair(pair: Pair, name: str, count: int, where: str) -> None:
    for side, index in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not 0 <= index < count:
            raise RecordError(
                f"{where}: {name}.{side} is {index}, but there are {count} responses; "
                f"use 0 to {count - 1}"
            )
    if pair.chosen == pair.rejected:
        raise RecordError(
            f"{where}: {name} prefers response {pair.chosen} to itself; remove the pair"
        )
    if not (math.isfinite(pair.weight) and pair.weight >= 0):
        raise RecordError(f"{where}: {name}.weight is {pair.weight}; give a number of at least 0")
    if pair.margin is not None and not math.isfinite(pair.margin):
        raise RecordError(f"{where}: {name}.margin is {pair.margin}; give a finite number")
