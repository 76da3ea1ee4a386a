"""Layouts with several records in a row, and lists of ranked or rated answers as they are published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecordError
from prefopt.ledger import Ledger
from prefopt.records import Message, Preference
from prefopt.text.sources import LoadedData, load_preferences, load_row


def read(folder: Path, *rows: Any, name: str = "data.jsonl", **options: Any) -> LoadedData:
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (folder / name).write_text(text)
    return load_preferences(folder / name, ledger=Ledger(name), **options)


def records(folder: Path, *rows: Any, **options: Any) -> list[Preference]:
    return read(folder, *rows, **options).preferences


def level(rejected: str, *before: tuple[str, str]) -> dict[str, Any]:
    turns: list[dict[str, str]] = [{"role": role, "content": text} for role, text in before]
    turns.append({"role": "user", "content": "Name a prime."})
    turns.append({"role": "assistant", "chosen_content": "7", "rejected_content": rejected})
    return {"conversation": turns}


CURRICULUM = {"easy": level("no"), "medium": level("9"), "hard": level("1")}


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_row_of_the_published_curriculum_is_three_pairs(tmp_path: Path, name: str) -> None:
    found = records(tmp_path, CURRICULUM, CURRICULUM | {"hard": None}, name=name, pairing=None)
    assert [r.meta["stage"] for r in found] == ["easy", "medium", "hard"], (
        "the second row repeats the pairs of the first, which are dropped"
    )
    assert [r.id for r in found] == ["data:1", "data:2", "data:3"]
    assert [r.prompt for r in found] == [(Message("user", "Name a prime."),)] * 3
    assert [[x.text for x in r.responses] for r in found] == [["7", "no"], ["7", "9"], ["7", "1"]]
    assert all((r.pairs[0].chosen, r.pairs[0].rejected) == (0, 1) for r in found)


def test_a_curriculum_of_several_turns(tmp_path: Path) -> None:
    row = {"easy": level("no", ("user", "Hello."), ("assistant", "Hi."))}
    (found,) = records(tmp_path, row)
    assert found.prompt == (
        Message("user", "Hello."),
        Message("assistant", "Hi."),
        Message("user", "Name a prime."),
    )
    chosen_only = level("no", ("user", "Hello."))
    chosen_only["conversation"].insert(1, {"role": "assistant", "chosen_content": "Hi."})
    assert records(tmp_path, {"easy": chosen_only})[0].prompt == found.prompt


def test_rows_count_after_unfolding(tmp_path: Path) -> None:
    assert len(records(tmp_path, CURRICULUM, limit=2)) == 2
    unranked = {"prompt": message("q", "prompter")}
    assert len(records(tmp_path, unranked, unranked, TREE, limit=1)) == 1, "of records, not of rows"
    assert len(records(tmp_path, dict.fromkeys(CURRICULUM), CURRICULUM, limit=1)) == 1
    pairs = [{"prompt": str(i), "chosen": "a", "rejected": "b", "message_id": i} for i in range(3)]
    assert [r.prompt for r in records(tmp_path, *pairs, limit=2)] == ["0", "1"]
    records(tmp_path, CURRICULUM)
    path = tmp_path / "data.jsonl"
    assert load_row(path, row=3, ledger=Ledger("x")).meta["stage"] == "hard"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"easy": {"conversation": []}}, "'easy.conversation' is an empty list"),
        ({"hard": {"conversation": [{"role": "user", "content": "q"}]}}, "end it with a turn that has"),
        ({"easy": level("x") | {"conversation": [{"role": 1, "content": "q"}, level("x")["conversation"][1]]}},
         "'easy.conversation[0].role' is the number 1"),
    ],
)  # fmt: skip
def test_a_broken_level_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError, match=r"data.jsonl:1: ") as caught:
        records(tmp_path, row)
    assert says in str(caught.value)


def ultra(overall: Any = None, fine: Any = None, ratings: tuple[Any, ...] = ()) -> dict[str, Any]:
    item: dict[str, Any] = {"response": f"answer {overall} {fine} {ratings}", "model": "m"}
    item["annotations"] = {
        f"aspect {i}": {"Rating": r, "Rationale": "so"} for i, r in enumerate(ratings)
    }
    return item | ({} if overall is None else {"overall_score": overall}) | (
        {} if fine is None else {"fine-grained_score": fine}
    )  # fmt: skip


def test_ultrafeedback(tmp_path: Path) -> None:
    """The overall scores of a list, else the fine-grained ones, else the means of ratings; never one beside another."""
    row = {
        "source": "evol",
        "instruction": "Name a prime.",
        "models": ["a", "b"],
        "completions": [ultra(7.5, 2.0), ultra(None, 4.25), ultra(ratings=("5", "2", "N/A"))],
    }
    (found,) = records(tmp_path, row, pairing=None)
    assert found.prompt == "Name a prime."
    assert [r.score for r in found.responses] == [7.5, None, None], "ratings have another scale"
    assert found.pairs == ()
    row["completions"] = [ultra(None, 4.25), ultra(ratings=("5", "5")), ultra(None, 1.0)]
    assert [r.score for r in records(tmp_path, row)[0].responses] == [4.25, None, 1.0]
    row["completions"] = [ultra(ratings=("5", "2", "N/A")), ultra(ratings=("1", "2"))]
    assert [r.score for r in records(tmp_path, row)[0].responses] == [3.5, 1.5]
    row["completions"] = [ultra(8.0), ultra(), ultra(ratings=("N/A",))]
    assert [r.score for r in records(tmp_path, row)[0].responses] == [8.0, None, None]


def test_ratings_are_numbers_of_any_kind(tmp_path: Path) -> None:
    kinds: tuple[Any, ...] = (4.5, "4.5", 4, "n/a", None)
    row: dict[str, Any] = {
        "instruction": "q",
        "completions": [ultra(ratings=kinds), ultra(ratings=("1",))],
    }
    assert [r.score for r in records(tmp_path, row)[0].responses] == [13 / 3, 1.0]
    row["completions"][0] = ultra(ratings=("five",))
    says = r"completions\[0\].annotations.aspect 0.Rating' is the text .five.; give a number"
    with pytest.raises(RecordError, match=says):
        records(tmp_path, row)


def message(
    text: str, role: str = "assistant", *replies: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "message_id": text,
        "text": text,
        "role": role,
        "lang": "en",
        "replies": list(replies),
        **more,
    }


TREE = {
    "message_tree_id": "t1",
    "prompt": message(
        "Name a prime.", "prompter",
        message("8", "assistant", rank=2),
        message(
            "7", "assistant",
            message("And another?", "prompter", message("9", rank=1), message("11", rank=0)),
            message("Why?", "prompter", message("It is.", rank=0)),
            rank=0,
        ),
        message("2", rank=1),
        message("unranked", rank=None),
        message("gone", deleted=True, rank=3),
    ),
}  # fmt: skip


def test_a_message_tree_gives_a_record_for_each_ranked_question(tmp_path: Path) -> None:
    loaded = read(tmp_path, TREE)
    first, second = loaded.preferences
    assert first.prompt == (Message("user", "Name a prime."),)
    assert [(r.text, r.rank) for r in first.responses] == [("8", 3), ("7", 1), ("2", 2)]
    assert [(p.chosen, p.rejected) for p in first.pairs] == [(1, 2), (1, 0)]
    assert second.prompt == (
        Message("user", "Name a prime."),
        Message("assistant", "7"),
        Message("user", "And another?"),
    )
    assert [(r.text, r.rank) for r in second.responses] == [("9", 2), ("11", 1)]
    assert second.meta == {"message_id": "And another?", "lang": "en", "message_tree_id": "t1"}
    assert first.origin == second.origin == f"{tmp_path / 'data.jsonl'}:1"


def test_trees_without_ranks_and_of_other_roles_are_refused(tmp_path: Path) -> None:
    unranked = {"prompt": message("q", "prompter", message("a"), message("b"))}
    with pytest.raises(RecordError, match="no message has two answers with a `rank`"):
        records(tmp_path, unranked)
    with pytest.raises(RecordError, match=r"role' is the text .system.; use prompter"):
        records(tmp_path, {"prompt": message("q", "prompter", message("a", "system"))})


@pytest.mark.parametrize("first", [True, False])
def test_rows_without_a_record_have_a_fate(tmp_path: Path, *, first: bool) -> None:
    """Also as the first row, which does not decide alone what the file is."""
    unranked = {"prompt": {"text": "q", "role": "prompter"}}
    no_level = dict.fromkeys(CURRICULUM)
    for sound, empty, reason in (
        (TREE, unranked, "a message tree without two ranked answers"),
        (CURRICULUM, no_level, "a curriculum row without easy, medium or hard"),
    ):
        rows = [empty, sound] if first else [sound, empty]
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        ledger = Ledger("data")
        found = load_preferences(path, ledger=ledger).preferences
        ledger.keep_undecided()
        assert ledger.reasons == {reason: 1}
        assert (ledger.kept_count, ledger.read) == (len(found), len(found) + 1)
        listed: Any = ledger.to_json()["rows"]
        (lost,) = (row for row in listed if row["fate"] == "dropped")
        assert lost["origin"] == f"{path}:{1 if first else 2}"


def test_a_row_of_another_kind_among_trees_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"data.jsonl:2: 'prompt' is"):
        records(tmp_path, TREE, {"text": "no tree"})


def test_a_level_has_its_own_prompt(tmp_path: Path) -> None:
    row = {"prompt": "another", "chosen": "x", "stage": 9, **CURRICULUM}
    found = records(tmp_path, row)
    assert [r.prompt for r in found] == [(Message("user", "Name a prime."),)] * 3
    assert [r.responses[0].text for r in found] == ["7"] * 3
    assert [r.meta["stage"] for r in found] == ["easy", "medium", "hard"]


def test_a_turn_whose_content_is_null(tmp_path: Path) -> None:
    row = level("no", ("user", "Hello."))
    row["conversation"].insert(1, {"role": "assistant", "content": None, "chosen_content": "Hi."})
    assert records(tmp_path, {"easy": row})[0].prompt[1] == Message("assistant", "Hi.")


def test_trees_are_read_compressed(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(TREE).encode()))
    found = load_preferences(path, ledger=Ledger("x")).preferences
    assert [(r.id, r.origin) for r in found] == [("trees:1", f"{path}:1"), ("trees:2", f"{path}:1")]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match="trees.jsonl.gz: is no whole gzip file"):
        load_preferences(path, ledger=Ledger("x"))
    (tmp_path / "data.bin.gz").write_bytes(b"")
    with pytest.raises(RecordError, match="data files of type '.gz' cannot be read"):
        load_preferences(tmp_path / "data.bin.gz", ledger=Ledger("x"))
