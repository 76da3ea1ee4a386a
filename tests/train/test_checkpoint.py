"""What is said when a checkpoint belongs to another run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.errors import ResumeError
from prefopt.train.checkpoint import check_identity

BUILD = {"seed": 0, "samples": 16, "writer": {"model": "a", "timeout": 9.0}, "offline": ["x", "y"]}


def difference(before: dict[str, str], now: dict[str, str]) -> str:
    with pytest.raises(ResumeError) as error:
        check_identity(before, now, Path("run/checkpoint-3"))
    text = str(error.value)
    assert text.startswith("run/checkpoint-3: not the same run: ")
    assert text.endswith(
        ". Restore these settings, or start anew with --overwrite or another output_dir"
    )
    return text.removeprefix("run/checkpoint-3: not the same run: ").partition(". Restore")[0]


def test_of_a_section_only_the_changed_keys_are_shown() -> None:
    changed = {**BUILD, "seed": 5, "writer": {"model": "b", "timeout": 9.0}, "top": 2}
    before, now = ({"build": json.dumps(section)} for section in (BUILD, changed))
    assert difference(before, now) == (
        "build.seed: 0 in the checkpoint, 5 now; "
        'build.writer.model: "a" in the checkpoint, "b" now; '
        "build.top: (absent) in the checkpoint, 2 now"
    )
    check_identity(before, before, Path("run/checkpoint-3"))


def test_other_facts_are_shown_as_they_are() -> None:
    assert difference({"beta": "0.1", "data": "0a"}, {"beta": "0.5", "data": "0b", "new": "1"}) == (
        "beta: 0.1 in the checkpoint, 0.5 now; data: 0a in the checkpoint, 0b now; "
        "new: (absent) in the checkpoint, 1 now"
    )
    assert difference({"build": "null"}, {"build": "{}"}) == "build: null in the checkpoint, {} now"
