"""Message trees of OpenAssistant with a row per message."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Message
from prefopt.text.sources import LoadedData, load_preferences
from tests.text.test_ranked_sources import TREE

Row = dict[str, Any]


def flat(message: Any, parent: str | None = None) -> list[Row]:
    """A row for each message of a nested tree, the first one before its replies."""
    row = {key: value for key, value in message.items() if key != "replies"}
    row |= {"parent_id": parent, "message_tree_id": "t1", "rank": message.get("rank")}
    return [row, *(r for reply in message["replies"] for r in flat(reply, message["message_id"]))]


def row(name: str, parent: Any = None, rank: Any = None, **more: Any) -> Row:
    role = "prompter" if name.startswith("q") else "assistant"
    found = {"message_id": name, "parent_id": parent, "text": name, "role": role, "rank": rank}
    return found | more


SOUND = [row("q"), row("good", "q", 0), row("bad", "q", 1)]


def load(path: Path, rows: list[Row], ledger: Ledger | None = None, **options: Any) -> LoadedData:
    path.write_text("\n".join(map(json.dumps, rows)))
    return load_preferences(path, ledger=ledger or Ledger("x"), **options)


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_are_read_like_the_tree_that_they_make(tmp_path: Path, *, backwards: bool) -> None:
    nested = load(tmp_path / "nested.jsonl", [TREE]).preferences
    rows = flat(TREE["prompt"])
    found = load(tmp_path / "flat.jsonl", rows[::-1] if backwards else rows).preferences
    assert [r.prompt for r in found] == [r.prompt for r in nested]
    assert [sorted((x.text, x.rank) for x in r.responses) for r in found] == [
        [("2", 2), ("7", 1), ("8", 3)],
        [("11", 1), ("9", 2)],
    ]
    assert [r.meta for r in found] == [r.meta for r in nested]
    assert found[0].origin == f"{tmp_path / 'flat.jsonl'}:{len(rows) if backwards else 1}"
    if not backwards:
        assert [(r.responses, r.pairs) for r in found] == [(r.responses, r.pairs) for r in nested]


def test_tables_write_ranks_as_fractions_and_flags_as_texts(tmp_path: Path) -> None:
    rows = [
        row("q", deleted="False"),
        row("good", "q", "0.0", deleted="false"),
        row("bad", "q", "1.0", deleted="False"),
        row("gone", "q", "2.0", deleted="True"),
        row("unranked", "q", "", deleted="False"),
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (found,) = load_preferences(path, ledger=Ledger("x")).preferences
    assert found.prompt == (Message("user", "q"),)
    assert [(r.text, r.rank) for r in found.responses] == [("good", 1), ("bad", 2)]
    fractions = [row("q"), row("good", "q", 0.0), row("bad", "q", 1.0), row("x", "q", float("nan"))]
    (found,) = load(tmp_path / "rows.jsonl", fractions).preferences
    assert [(r.text, r.rank) for r in found.responses] == [("good", 1), ("bad", 2)]


def test_messages_whose_parent_is_missing_have_a_fate(tmp_path: Path) -> None:
    rows = [*SOUND, row("q2"), row("q3", "elsewhere"), row("a", "q3", 0), row("b", "q3", 1)]
    ledger = Ledger("x")
    (found,) = load(tmp_path / "rows.jsonl", rows, ledger).preferences
    ledger.keep_undecided()
    assert [r.text for r in found.responses] == ["good", "bad"]
    reason = "a message tree without two ranked answers, or without its first message"
    assert ledger.reasons == {reason: 2}
    assert (ledger.read, ledger.kept_count) == (3, 1)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_counts_records_and_cuts_no_tree(tmp_path: Path, limit: int) -> None:
    """The best answer of each tree is its last row; a row without a rank may come first."""
    rows = [{k: v for k, v in row("q").items() if v is not None}]
    rows += [row("dull", "q", 2), row("bad", "q", 1), row("q0"), row("q2")]
    rows += [row("worse", "q2", 1), row("better", "q2", 0), row("good", "q", 0), row("q9", "none")]
    ledger = Ledger("x")
    found = load(tmp_path / "rows.jsonl", rows, ledger, limit=limit).preferences
    ledger.keep_undecided()
    expected = [[("dull", 3), ("bad", 2), ("good", 1)], [("worse", 2), ("better", 1)]]
    assert [[(r.text, r.rank) for r in x.responses] for x in found] == expected[:limit]
    best = [x.responses[x.pairs[0].chosen].text for x in found]
    assert best == ["good", "better"][:limit]
    # Trees without an answer count up to the last record that is taken, and messages of no tree come last.
    assert (ledger.read, ledger.dropped_count) == {1: (1, 0), 2: (3, 1), 3: (4, 2)}[limit]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([*SOUND, row("bad", "q", 2)], "rows.jsonl:4: message_id 'bad' is that of .*rows.jsonl:3 too"),
        ([*SOUND, row("a", "qa"), row("qa", "a")], "rows.jsonl:4: parent_id leads from message to message back"),
        ([*SOUND, row("a", "a")], "rows.jsonl:4: parent_id leads from message to message back"),
        ([*SOUND, row("a", "q", "first")], "rows.jsonl:4: 'rank' is the text \"first\"; ranks are whole"),
        ([*SOUND, row("a", "q", 1.5)], "rows.jsonl:4: 'rank' is the number 1.5; ranks are whole"),
        ([*SOUND, row("a", "q", -1)], "rows.jsonl:4: 'rank' is the number -1; ranks are whole"),
        ([*SOUND, row("a", 7)], "rows.jsonl:4: 'parent_id' is the number 7; give a text"),
        ([*SOUND, row("a", "q", deleted="maybe")], "rows.jsonl:4: 'deleted' is the text \"maybe\""),
        ([row("q"), row("a", "q")], "no message has two answers with a `rank`"),
    ],
)  # fmt: skip
def test_rows_that_make_no_tree(tmp_path: Path, rows: list[Row], says: str) -> None:
    with pytest.raises(RecordError, match=says):
        load(tmp_path / "rows.jsonl", rows)
