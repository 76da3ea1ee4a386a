"""Records and their JSON form: exact round trips, strict reading, atomic writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecordError, StorageError
from prefopt.records import (
    Message,
    Pair,
    Preference,
    Response,
    check_preference,
    preference_from_json,
    preference_to_json,
    read_message,
    read_preferences,
    write_preferences,
)

FULL = Preference(
    id="r1",
    prompt=(Message("system", "Be brief."), Message("user", "2 + 3?")),
    responses=(
        Response("5", score=1.5, rank=1, ends=False),
        Response(
            turns=(
                Message("assistant", "", train=False, extra={"tool_calls": [{"name": "add"}]}),
                Message("tool", "6"),
                Message("assistant", "6"),
            ),
            label=False,
        ),
    ),
    pairs=(Pair(0, 1, weight=2.0, margin=0.5),),
    prefix="Step 1:",
    meta={"topic": "sums", "level": 3},
    origin="x.jsonl:1",
)


def test_json_form_is_literal() -> None:
    assert preference_to_json(FULL) == {
        "id": "r1",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2 + 3?"},
        ],
        "prefix": "Step 1:",
        "responses": [
            {"text": "5", "score": 1.5, "rank": 1, "ends": False},
            {
                "turns": [
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"name": "add"}],
                        "train": False,
                    },
                    {"role": "tool", "content": "6"},
                    {"role": "assistant", "content": "6"},
                ],
                "label": False,
            },
        ],
        "pairs": [{"chosen": 0, "rejected": 1, "weight": 2.0, "margin": 0.5}],
        "meta": {"topic": "sums", "level": 3},
    }


def test_defaults_are_left_out() -> None:
    row = preference_to_json(Preference("a", "Hi", (Response("yes"),)))
    assert row == {"id": "a", "prompt": "Hi", "responses": [{"text": "yes"}]}


def test_round_trip_through_json_and_file(tmp_path: Path) -> None:
    row = json.loads(json.dumps(preference_to_json(FULL)))
    assert preference_from_json(row, origin="x.jsonl:1") == FULL
    second = Preference("ä", "line\nbreak \u2028", (Response("ok"),))
    path = tmp_path / "data.jsonl"
    write_preferences(path, [FULL, second])
    first_read, second_read = read_preferences(path)
    assert preference_to_json(first_read) == preference_to_json(FULL)
    assert preference_to_json(second_read) == preference_to_json(second)
    assert second_read.origin == f"{path}:2"


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_preferences(path, [FULL])
    before = path.read_bytes()

    def broken() -> Iterator[Preference]:
        yield FULL
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"cannot write .*data\.jsonl: No space left on device"):
        write_preferences(path, broken())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]
    with pytest.raises(StorageError, match="No such file"):
        write_preferences(tmp_path / "absent" / "data.jsonl", [FULL])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"role": "user", "content": "a"}, Message("user", "a")),
        ({"from": "human", "value": "a"}, Message("user", "a")),
        ({"from": "gpt", "value": "a"}, Message("assistant", "a")),
        ({"from": "observation", "value": "a"}, Message("tool", "a")),
        (
            {"role": "assistant", "content": "a", "loss": False},
            Message("assistant", "a", train=False),
        ),
        (
            {"role": "assistant", "content": "a", "weight": 0},
            Message("assistant", "a", train=False),
        ),
        ({"role": "assistant", "content": "a", "name": None}, Message("assistant", "a")),
        (
            {"role": "assistant", "content": None, "tool_calls": [1]},
            Message("assistant", "", extra={"tool_calls": [1]}),
        ),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            Message("user", "ab"),
        ),
    ],
)
def test_messages_of_the_wild(value: dict[str, Any], expected: Message) -> None:
    assert read_message(value, "m", "x:1") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "x:1: 'id' is null; give a text"),
        (
            {"pairs": [{"chosen": 0, "rejected": 2}]},
            "x:1: pairs[0].rejected is 2, but there are 2 responses; use 0 to 1",
        ),
        ({"pairs": [{"chosen": 1, "rejected": 1}]}, "x:1: pairs[0] prefers response 1 to itself"),
        (
            {"pairs": [{"chosen": True, "rejected": 1}]},
            "x:1: 'pairs[0].chosen' is true; give the position",
        ),
        (
            {"pairs": [{"chosen": 0, "rejected": 1, "weight": -1}]},
            "pairs[0].weight is -1.0; give a number of at least 0",
        ),
        (
            {"responses": []},
            "x:1: 'responses' is an empty list; give a list with at least one item",
        ),
        (
            {"responses": [{"text": "a", "rank": 0}, {"text": "b"}]},
            "'responses[0].rank' is the number 0; ranks are",
        ),
        (
            {"responses": [{"text": "a", "score": "high"}, {"text": "b"}]},
            "'responses[0].score' is the text \"high\"; give a finite",
        ),
        (
            {"responses": [{"text": "a", "score": float("inf")}, {"text": "b"}]},
            "'responses[0].score' is the number inf",
        ),
        (
            {"responses": [{"text": "a", "turns": [{"role": "assistant", "content": "b"}]}]},
            "responses[0] has both text and turns",
        ),
        (
            {"responses": [{"turns": [{"role": "user", "content": "b"}]}]},
            "responses[0] ends with a user message",
        ),
        (
            {"responses": [{"texts": "a"}]},
            "responses[0] has the unknown key 'texts'; known are text, turns",
        ),
        ({"promt": "x"}, "the record has the unknown key 'promt'; known are id, prompt"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "the prompt ends with an assistant message",
        ),
        (
            {"prompt": [{"role": "robot", "content": "a"}]},
            "'prompt[0].role' is the text \"robot\"; known roles are system",
        ),
        ({"prompt": []}, "x:1: the prompt has no messages"),
        ({"prompt": 3}, "'prompt' is the number 3; give a text or a list of messages"),
    ],
)
def test_unsound_records_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    row: dict[str, Any] = {
        "id": "a",
        "prompt": "Hi",
        "responses": [{"text": "yes"}, {"text": "no"}],
        **change,
    }
    with pytest.raises(RecordError) as error:
        preference_from_json(row, origin="x:1")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_records_made_in_code_are_checked_by_id() -> None:
    with pytest.raises(RecordError, match="record 'a': unknown role 'robot'"):
        check_preference(Preference("a", (Message("robot", "x"),), (Response("y"),)))


def test_reading_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": "a", "prompt": "", "responses": [{"text": "x"}]}\n\n{"id": "b"\n')
    with pytest.raises(RecordError, match=r"data\.jsonl:3: broken JSON at column 11"):
        read_preferences(path)
    with pytest.raises(StorageError, match=r"cannot read .*absent\.jsonl: No such file"):
        read_preferences(tmp_path / "absent.jsonl")
