"""How an agent's turn is written: the form of its replies, and of what it is told in between. No models, no processes.

A format is stateless. Experts' turns are written and agents' replies are read by the same object, so that what is
trained on is what is understood. `find_format` finds a format by name; one of your own is an object in an installed
module that has what `Format` asks for.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from prefopt.agents.environment import Move, Suite
from prefopt.config import unknown_name
from prefopt.errors import ConfigError
from prefopt.records import Message

_ACTION = re.compile(r"Action: ?(.*)", re.DOTALL)
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@runtime_checkable
class Format(Protocol):
    """How a turn is written."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    @property
    def instruction(self) -> str:
        """What tells the model which form its replies have; stands after the instruction of the suite."""
        ...

    @property
    def complaint(self) -> str:
        """What the agent is told instead of an observation after a reply without an action."""
        ...

    def write(self, move: Move) -> Message:
        """An expert's turn as the assistant's message; `read` finds its action again."""
        ...

    def read(self, text: str) -> str | None:
        """The action in a reply; None where there is none (a format error)."""
        ...

    def observe(self, observation: str) -> Message:
        """What the environment answers to a turn, as the message after it."""
        ...


class ReAct:
    """A line with a thought, then one with the action (Yao et al. 2023, arXiv 2210.03629), as ETO and DMPO write it.

    The action is everything after the first `Action:`, over all following lines, without white space around it. The
    published code asks for a space after the colon except in ALFWorld; here it is optional everywhere.
    """

    name = "react"
    instruction = (
        'Every reply of yours has two lines: "Thought: " with what you consider, '
        'then "Action: " with one action.'
    )
    complaint = 'There is no action in your reply. Write a line that starts with "Action: ".'

    def write(self, move: Move) -> Message:
        """The two lines; the first is left out where there is no thought."""
        thought = f"Thought: {move.thought}\n" if move.thought else ""
        return Message("assistant", f"{thought}Action: {move.action}")

    def read(self, text: str) -> str | None:
        """What follows the first `Action:`; None where nothing does."""
        found = _ACTION.search(text)
        return None if found is None else found[1].strip() or None

    def observe(self, observation: str) -> Message:
        """A message of the user that starts with `Observation: `."""
        return Message("user", f"Observation: {observation}")


class ToolCall:
    """A thought, then a call of the tool `act` as Hermes and Qwen write it; observations are messages of the tool.

    The call stands in the message's text and not in `tool_calls`, so that every chat template shows it alike.
    """

    name = "tool_call"
    instruction = (
        "Act by calling the tool `act`, once in every reply:\n"
        '<tool_call>\n{"name": "act", "arguments": {"action": "..."}}\n</tool_call>\n'
        "You may write what you consider before the call."
    )
    complaint = (
        "There is no call of the tool `act` in your reply. Write <tool_call>, then "
        '{"name": "act", "arguments": {"action": "..."}}, then </tool_call>.'
    )

    def write(self, move: Move) -> Message:
        """The thought, if there is one, and the call."""
        call = {"name": "act", "arguments": {"action": move.action}}
        written = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
        return Message("assistant", f"{move.thought}\n{written}" if move.thought else written)

    def read(self, text: str) -> str | None:
        """The action of the first call; None where there is no call, broken JSON, or a call of something else."""
        found = _TOOL_CALL.search(text)
        try:
            call = json.loads(found[1]) if found else {}
        except (ValueError, RecursionError):
            return None
        arguments = call.get("arguments") if call.get("name") == "act" else None
        action = arguments.get("action") if isinstance(arguments, dict) else None
        return action.strip() or None if isinstance(action, str) else None

    def observe(self, observation: str) -> Message:
        """A message of the tool."""
        return Message("tool", observation)


class BareAction:
    """The whole reply is the action, and thoughts are left out: for tiny models."""

    name = "action"
    instruction = "Reply with one action."
    complaint = "Reply with one action."

    def write(self, move: Move) -> Message:
        """The action."""
        return Message("assistant", move.action)

    def read(self, text: str) -> str | None:
        """The reply without white space around it; None where nothing is left."""
        return text.strip() or None

    def observe(self, observation: str) -> Message:
        """A message of the user."""
        return Message("user", observation)


REACT = ReAct()
TOOL_CALL = ToolCall()
ACTION = BareAction()


def format_names() -> list[str]:
    """Names of the formats that come with the library."""
    return sorted(value.name for key, value in globals().items() if _is_format(key, value))


def find_format(name: str) -> Format:
    """The format of that name.

    Args:
        name: one of `format_names`, or `package.module:OBJECT` for one of your own.

    Raises:
        ConfigError: there is none; the message names the known ones.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        known = {value.name: value for key, value in globals().items() if _is_format(key, value)}
        if name not in known:
            raise unknown_name("format", name, sorted(known))
        return known[name]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever that module raises
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"format {name}: {said or type(error).__name__}; write package.module:OBJECT of an installed package"
        ) from error
    if isinstance(found, type) or not isinstance(found, Format):
        raise ConfigError(
            f"format {name}: {attribute} is no format; it needs name, instruction, complaint, write, read, observe"
        )
    return found


def _is_format(key: str, value: object) -> bool:
    return key.isupper() and isinstance(value, Format)


def opening(
    suite: Suite,
    format: Format,
    observation: str,
    *,
    example: Sequence[Message] = (),
    acknowledgement: str | None = "OK",
) -> tuple[Message, ...]:
    """What an agent is shown before its first turn; no message of the assistant in it is trained on.

    Args:
        suite: whose instruction comes first, followed by that of the format.
        format: how turns are written.
        observation: the first one of the task.
        example: a worked task, from its first observation to the agent's last turn.
        acknowledgement: the assistant's answer to the instruction, "OK" as published. None: instruction and the
            first observation are one message of the user.

    Raises:
        ConfigError: the example does not start with a message of the user and end with one of the assistant.
    """
    if example and (example[0].role, example[-1].role) != ("user", "assistant"):
        raise ConfigError(
            f"example: it goes from {example[0].role} to {example[-1].role}; it has to start with the user's "
            "message, the first observation, and to end with a turn of the assistant"
        )
    instruction = f"{suite.instruction}\n\n{format.instruction}"
    shown = [replace(m, train=False) if m.role == "assistant" else m for m in example]
    shown.append(Message("user", observation))
    if acknowledgement is None:
        first = replace(shown[0], content=f"{instruction}\n\n{shown[0].content}")
        return (first, *shown[1:])
    answer = Message("assistant", acknowledgement, train=False)
    return (Message("user", instruction), answer, *shown)
