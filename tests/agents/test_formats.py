"""How turns are written and read, and what an agent is shown first."""

from __future__ import annotations

import re

import pytest

from prefopt.agents.environment import Move
from prefopt.agents.formats import (
    ACTION,
    REACT,
    TOOL_CALL,
    Format,
    find_format,
    format_names,
    opening,
)
from prefopt.errors import ConfigError
from prefopt.records import Message
from tests.agents.counting import Counting

FORMATS = [REACT, TOOL_CALL, ACTION]


@pytest.mark.parametrize(
    ("form", "move", "text"),
    [
        (REACT, Move("go east", "The door is there."), "Thought: The door is there.\nAction: go east"),
        (REACT, Move("go east"), "Action: go east"),
        (
            TOOL_CALL,
            Move('say "naïve"', "Why not?"),
            'Why not?\n<tool_call>\n{"name": "act", "arguments": {"action": "say \\"naïve\\""}}\n</tool_call>',
        ),
        (
            TOOL_CALL,
            Move("go"),
            '<tool_call>\n{"name": "act", "arguments": {"action": "go"}}\n</tool_call>',
        ),
        (ACTION, Move("go east", "not shown"), "go east"),
    ],
)  # fmt: skip
def test_an_experts_turn_is_written_and_its_action_read_again(form: Format, move: Move, text: str):
    assert form.write(move) == Message("assistant", text)
    assert form.read(text) == move.action


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("Thought: a\nAction: look around \n", "look around"),
        ("Action: first\nAction: second", "first\nAction: second"),
        ("Action: go\nObservation: You went.", "go\nObservation: You went."),
        ("Thought: Action: is a word\nAction: go", "is a word\nAction: go"),
        ("Action:look", "look"),
        ("action: look", None),
        ("Action: ", None),
        ("Action:\n \n", None),
        ("I look around.", None),
        ("", None),
    ],
)
def test_react_takes_everything_after_the_first_action(reply: str, action: str | None):
    assert REACT.read(reply) == action


def call(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        (call('{"name": "act", "arguments": {"action": " go "}}'), "go"),
        (call('\n{"arguments": {"action": "go"}, "name": "act"}\n') + call("{}"), "go"),
        (call('{"name": "act", "arguments": {"action": "a}</b>"}}'), "a}</b>"),
        (call('{"name": "other", "arguments": {"action": "go"}}'), None),
        (call('{"name": "act", "arguments": {"action": ""}}'), None),
        (call('{"name": "act", "arguments": {"action": 3}}'), None),
        (call('{"name": "act", "arguments": "go"}'), None),
        (call('{"name": "act", "arguments": {"action": "go"}'), None),
        (call('{"name": "act"}'), None),
        (call('{"a":' * 100_000 + "1" + "}" * 100_000), None),
        ('<tool_call>{"name": "act", "arguments": {"action": "go"}}', None),
        ("go", None),
    ],
)
def test_a_tool_call_is_read_only_if_it_is_one(reply: str, action: str | None):
    assert TOOL_CALL.read(reply) == action


def test_a_bare_action_is_the_whole_reply():
    assert ACTION.read(" go east\n") == "go east"
    assert ACTION.read(" \n") is None


def test_observations_have_the_role_and_the_mark_of_their_format():
    assert REACT.observe("A hall.") == Message("user", "Observation: A hall.")
    assert TOOL_CALL.observe("A hall.") == Message("tool", "A hall.")
    assert ACTION.observe("A hall.") == Message("user", "A hall.")


def test_formats_are_found_by_name():
    assert format_names() == ["action", "react", "tool_call"]
    assert [find_format(form.name) for form in FORMATS] == FORMATS
    assert find_format("tests.agents.test_formats:REACT") is REACT


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raect", "unknown format 'raect': did you mean 'react'? Known: action, react, tool_call"),
        ("json:nothing", "format json:nothing: module 'json' has no attribute 'nothing'; write package"),
        ("no.such.module:X", "format no.such.module:X: No module named 'no'; write package.module:OBJECT"),
        ("json:loads", "format json:loads: loads is no format; it needs name, instruction, complaint"),
        ("prefopt.agents.formats:ReAct", "format prefopt.agents.formats:ReAct: ReAct is no format"),
    ],
)  # fmt: skip
def test_an_unknown_format_is_an_error_that_says_what_there_is(name: str, message: str):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        find_format(name)


@pytest.mark.parametrize("form", FORMATS)
def test_an_opening_is_instruction_acknowledgement_and_observation(form: Format):
    assert opening(Counting(), form, "At 0.") == (
        Message("user", f"Count up to the goal.\n\n{form.instruction}"),
        Message("assistant", "OK", train=False),
        Message("user", "At 0."),
    )


EXAMPLE = (
    Message("user", "At 9."),
    Message("assistant", "Action: up"),
    Message("user", "Observation: At 10."),
    Message("assistant", "Action: stop", train=False),
)


def test_an_example_stands_before_the_task_and_is_not_trained_on():
    shown = opening(Counting(), REACT, "At 0.", example=EXAMPLE)
    assert [m.content for m in shown[1:]] == [
        "OK", "At 9.", "Action: up", "Observation: At 10.", "Action: stop", "At 0.",
    ]  # fmt: skip
    assert not any(message.train for message in shown if message.role == "assistant")


@pytest.mark.parametrize("example", [(), EXAMPLE])
def test_without_acknowledgement_roles_alternate_all_the_same(example: tuple[Message, ...]):
    shown = opening(Counting(), REACT, "At 0.", example=example, acknowledgement=None)
    first = EXAMPLE[0].content if example else "At 0."
    assert shown[0] == Message("user", f"Count up to the goal.\n\n{REACT.instruction}\n\n{first}")
    assert [m.role for m in shown] == ["user", "assistant"] * (len(example) // 2) + ["user"]


@pytest.mark.parametrize("part", [EXAMPLE[1:], EXAMPLE[:3]])
def test_an_example_that_breaks_the_alternation_is_refused(part: tuple[Message, ...]):
    with pytest.raises(
        ConfigError, match="^example: it goes from .* it has to start with the user"
    ):
        opening(Counting(), REACT, "At 0.", example=part)
