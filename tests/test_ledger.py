"""The ledger: every row has exactly one fate, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.errors import RecordError, StorageError
from prefopt.ledger import Ledger


def filled() -> Ledger:
    ledger = Ledger("data/x.jsonl")
    for number in range(1, 6):
        ledger.enter(f"x:{number}", origin=f"data/x.jsonl:{number}")
    ledger.keep("x:1")
    ledger.cut("x:2", tokens=7, reason="long")
    ledger.cut("x:3", tokens=5, reason="long")
    ledger.drop("x:4", reason="empty")
    ledger.note("x:5", reason="odd")
    ledger.note("x:5", reason="odd")
    ledger.keep("x:5")
    return ledger


def test_json_is_literal() -> None:
    assert filled().to_json() == {
        "source": "data/x.jsonl",
        "read": 5,
        "kept": 2,
        "cut": 2,
        "dropped": 1,
        "reasons": {"long": 2, "empty": 1},
        "notes": {"odd": 1},
        "rows": [
            {
                "id": "x:2",
                "origin": "data/x.jsonl:2",
                "fate": "cut",
                "reason": "long",
                "tokens": 7,
                "notes": [],
            },
            {
                "id": "x:3",
                "origin": "data/x.jsonl:3",
                "fate": "cut",
                "reason": "long",
                "tokens": 5,
                "notes": [],
            },
            {
                "id": "x:4",
                "origin": "data/x.jsonl:4",
                "fate": "dropped",
                "reason": "empty",
                "tokens": 0,
                "notes": [],
            },
            {
                "id": "x:5",
                "origin": "data/x.jsonl:5",
                "fate": "kept",
                "reason": "",
                "tokens": 0,
                "notes": ["odd"],
            },
        ],
    }


def test_summary_is_literal() -> None:
    assert filled().summary() == [
        "data/x.jsonl: 5 rows read = 2 kept + 2 cut + 1 dropped",
        "  cut 2, 12 tokens: long (x.jsonl:2, x.jsonl:3)",
        "  dropped 1: empty (x.jsonl:4)",
        "  note 1: odd (x.jsonl:5)",
    ]


def test_a_row_without_a_fate_is_a_bug() -> None:
    ledger = Ledger("x")
    ledger.enter("a")
    with pytest.raises(RuntimeError, match="1 rows of x have no fate, first 'a'"):
        ledger.summary()
    ledger.keep_undecided()
    assert (ledger.read, ledger.kept_count) == (1, 1)


def test_a_second_fate_is_a_bug() -> None:
    ledger = filled()
    with pytest.raises(
        ValueError, match="row 'x:4' of data/x.jsonl is dropped already, it cannot be kept"
    ):
        ledger.keep("x:4")


def test_repeated_ids_are_told_apart() -> None:
    ledger = Ledger("x")
    assert [ledger.enter("a"), ledger.enter("a"), ledger.enter("a#2"), ledger.enter("a")] == [
        "a",
        "a#2",
        "a#2#2",
        "a#3",
    ]


def test_strict_names_the_first_rows() -> None:
    ledger = filled()
    ledger.enforce(strict=False)
    with pytest.raises(RecordError) as error:
        ledger.enforce(strict=True)
    assert str(error.value) == (
        "data/x.jsonl: strict forbids cut and dropped rows, but there are 3: data/x.jsonl:2 cut (long); "
        "data/x.jsonl:3 cut (long); data/x.jsonl:4 dropped (empty); repair these rows or turn strict off"
    )


def test_written_file_is_the_json(tmp_path: Path) -> None:
    filled().write(tmp_path / "ledger.json")
    assert json.loads((tmp_path / "ledger.json").read_text()) == filled().to_json()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StorageError, match="cannot write"):
        filled().write(tmp_path / "absent" / "ledger.json")
