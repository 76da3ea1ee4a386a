"""Prompts are read from any file of prompts, pairs or conversations; answers in it do not matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.errors import RecordError
from prefopt.records import Message, Pair, Preference, Response, write_preferences
from prefopt.text.prompt_files import load_prompts

USER, SYSTEM = Message("user", "Hi"), Message("system", "Be brief")


def write(folder: Path, *rows: object) -> Path:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Hi"}, "Hi"),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "Add\n1 2"),
        ({"system": "Be brief", "prompt": "Hi", "chosen": "a", "rejected": "b"}, (SYSTEM, USER)),
        ({"prompt": [{"role": "user", "content": "Hi"}]}, (USER,)),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Ho"},
                ]
            },
            (USER,),
        ),
    ],
)
def test_shapes(row: dict[str, object], prompt: object, tmp_path: Path) -> None:
    (record,) = load_prompts(write(tmp_path, row))
    assert (record.id, record.prompt, record.responses) == ("p:1", prompt, ())


def test_ids_and_records_of_our_own(tmp_path: Path) -> None:
    sides = (Response("a"), Response("b"))
    write_preferences(tmp_path / "own.jsonl", [Preference("x", (USER,), sides, (Pair(0, 1),))])
    (record,) = load_prompts(tmp_path / "own.jsonl")
    assert (record.id, record.prompt) == ("x", (USER,))
    two = write(tmp_path, {"id": "one", "prompt": "Hi"}, {"id": "one", "prompt": "Ho"})
    assert [r.id for r in load_prompts(two)] == ["p:1", "p:2"], "not an id where it repeats"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "Hi"}, "no column holds prompts .* the file has text"),
        ({"prompt": "  "}, "p.jsonl:1.*'prompt'.*give the prompt"),
        ({"prompt": None}, "p.jsonl:1.*'prompt'"),
        ({"prompt": [{"role": "assistant", "content": "Ho"}]}, "no message of the user"),
    ],
)
def test_mistakes(row: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=says):
        load_prompts(write(tmp_path, row))
