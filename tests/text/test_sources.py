"""Every column convention of the peers becomes the record one would write by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.ledger import Ledger
from prefopt.records import Message, Pair, Preference, Response, write_preferences
from prefopt.text.sources import LoadedData, load_preferences, load_row

U, A = "user", "assistant"
QUESTION = {"role": U, "content": "2 + 3?"}
GOOD = {"role": A, "content": "5"}
BAD = {"role": A, "content": "6"}
ASKED = (Message(U, "2 + 3?"),)
PAIR = (Response("5"), Response("6"))


def load(path: Path, rows: list[dict[str, Any]], **options: Any) -> LoadedData:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_preferences(file, ledger=Ledger("data"), **options)


def one(path: Path, row: dict[str, Any], **options: Any) -> Preference:
    (preference,) = load(path, [row], **options).preferences
    return preference


PAIRS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "trl text": ({"prompt": "2 + 3?", "chosen": "5", "rejected": "6"}, "2 + 3?", PAIR),
    "trl messages": ({"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]}, ASKED, PAIR),
    "trl implicit": ({"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]}, ASKED, PAIR),
    "prompt repeated in chosen": (
        {"prompt": [QUESTION], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        ASKED,
        PAIR,
    ),
    "ultrafeedback binarized": (
        {
            "prompt": "2 + 3?",
            "prompt_id": "x",
            "chosen": [QUESTION, GOOD],
            "rejected": [QUESTION, BAD],
            "messages": [QUESTION, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 3,
        },
        ASKED,
        (Response("5", score=8.5), Response("6", score=3.0)),
    ),
    "llama-factory sharegpt": (
        {
            "conversations": [{"from": "human", "value": "2 + 3?"}],
            "chosen": {"from": "gpt", "value": "5"},
            "rejected": {"from": "gpt", "value": "6"},
        },
        ASKED,
        PAIR,
    ),
    "llama-factory alpaca": (
        {
            "instruction": "Add.",
            "input": "2 + 3?",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
            "chosen": "5",
            "rejected": "6",
        },
        (
            Message("system", "Be brief."),
            Message(U, "Hi"),
            Message(A, "Hello"),
            Message(U, "Add.\n2 + 3?"),
        ),
        PAIR,
    ),
    "alpaca without system": (
        {"instruction": "Add.", "input": "", "chosen": "5", "rejected": "6"},
        "Add.",
        PAIR,
    ),
    "ms-swift rejected_response": (
        {"messages": [QUESTION, GOOD], "rejected_response": "6"},
        ASKED,
        PAIR,
    ),
    "ms-swift rejected_messages": (
        {"messages": [QUESTION, GOOD], "rejected_messages": [QUESTION, BAD]},
        ASKED,
        PAIR,
    ),
    "argilla": (
        {"instruction": "2 + 3?", "chosen_response": "5", "rejected_response": "6"},
        "2 + 3?",
        PAIR,
    ),
    "intel": (
        {"system": "Be brief.", "question": "2 + 3?", "chosen": "5", "rejected": "6"},
        (Message("system", "Be brief."), *ASKED),
        PAIR,
    ),
    "together": (
        {"input": {"messages": [QUESTION]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        ASKED,
        PAIR,
    ),
    "anthropic hh": (
        {"chosen": "\n\nHuman: 2 + 3?\n\nAssistant: It is 5", "rejected": "\n\nHuman: 2 + 3?\n\nAssistant: It is 6"},
        "\n\nHuman: 2 + 3?\n\nAssistant:",
        (Response(" It is 5"), Response(" It is 6")),
    ),
    "whole texts": (
        {"chosen": "The sky is blue", "rejected": "The sky"},
        "The",
        (Response(" sky is blue"), Response(" sky")),
    ),
    "whole texts without a common word": (
        {"chosen": "Paris ", "rejected": "London"},
        "",
        (Response("Paris "), Response("London")),
    ),
    "dialogue that parts at a user turn": (
        {
            "chosen": [QUESTION, GOOD, {"role": U, "content": "Sure?"}, GOOD],
            "rejected": [QUESTION, GOOD, {"role": U, "content": "Really?"}, BAD],
        },
        ASKED,
        (
            Response(turns=(Message(A, "5"), Message(U, "Sure?"), Message(A, "5"))),
            Response(turns=(Message(A, "5"), Message(U, "Really?"), Message(A, "6"))),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name: str, tmp_path: Path) -> None:
    row, prompt, responses = PAIRS[name]
    preference = one(tmp_path, row)
    assert (preference.prompt, preference.responses) == (prompt, responses)
    assert preference.pairs == (Pair(0, 1),)


LISTS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "scores": (
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 3, 3]},
        (Response("a", score=1.0), Response("b", score=3.0), Response("c", score=3.0)),
        (Pair(1, 0),),
    ),
    "ranks": (
        {"prompt": "q", "responses": ["a", "b"], "ranks": [2, 1]},
        (Response("a", rank=2), Response("b", rank=1)),
        (Pair(1, 0),),
    ),
    "ultrafeedback": (
        {
            "instruction": "q",
            "completions": [
                {"response": "a", "overall_score": 2.5, "model": "m"},
                {"response": "b", "overall_score": 7},
            ],
        },
        (Response("a", score=2.5), Response("b", score=7.0)),
        (Pair(1, 0),),
    ),
    "nectar": (
        {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
        (Response("a", rank=1), Response("b", rank=2)),
        (Pair(0, 1),),
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, tmp_path: Path) -> None:
    row, responses, pairs = LISTS[name]
    preference = one(tmp_path, row)
    assert (preference.prompt, preference.responses, preference.pairs) == ("q", responses, pairs)


def test_nemo_counts_ranks_from_zero(tmp_path: Path) -> None:
    row = {
        "context": [QUESTION],
        "completions": [{"rank": 0, "completion": [GOOD]}, {"rank": 1, "completion": [BAD]}],
    }
    preference = one(tmp_path, row)
    assert preference.prompt == ASKED
    assert preference.responses == (Response("5", rank=1), Response("6", rank=2))
    assert preference.pairs == (Pair(0, 1),)


SINGLES: dict[str, tuple[dict[str, Any], Any, Response]] = {
    "kto": ({"prompt": "q", "completion": "a", "label": True}, "q", Response("a", label=True)),
    "kto messages": ({"messages": [QUESTION, GOOD], "label": False}, ASKED, Response("5", label=False)),
    "kto_tag": (
        {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}], "kto_tag": True},
        ASKED,
        Response("5", label=True),
    ),
    "sft": ({"prompt": "q", "completion": "a"}, "q", Response("a")),
    "sft messages": ({"messages": [QUESTION, GOOD]}, ASKED, Response("5")),
    "sft dialogue": (
        {"messages": [QUESTION, GOOD, QUESTION, GOOD]},
        ASKED,
        Response(turns=(Message(A, "5"), *ASKED, Message(A, "5"))),
    ),
    "alpaca": ({"instruction": "Add.", "input": "2 3", "output": "5", "text": "x"}, "Add.\n2 3", Response("5")),
    "text": ({"text": "once upon a time", "label": 3}, "", Response("once upon a time")),
    "gsm8k": ({"question": "q", "answer": "a"}, "q", Response("a")),
    "math": ({"problem": "q", "level": "1", "solution": "a", "answer": "5"}, "q", Response("a")),
}  # fmt: skip


@pytest.mark.parametrize("name", SINGLES)
def test_single_responses(name: str, tmp_path: Path) -> None:
    row, prompt, response = SINGLES[name]
    preference = one(tmp_path, row)
    assert (preference.prompt, preference.responses, preference.pairs) == (prompt, (response,), ())


def test_labelled_dialogues_judge_the_last_answer(tmp_path: Path) -> None:
    preference = one(tmp_path, {"messages": [QUESTION, GOOD, QUESTION, BAD], "label": 0})
    assert preference.prompt == (*ASKED, Message(A, "5"), *ASKED)
    assert preference.responses == (Response("6", label=False),)


def test_step_dpo(tmp_path: Path) -> None:
    row = {
        "dataset": "aqua",
        "prompt": "2 + 3?",
        "initial_reason_steps": "Let's think step by step.\nStep 1:",
        "chosen": " 2 + 3 = 5",
        "rejected": " 2 + 3 = 6",
        "full_chosen": "Step 1: 2 + 3 = 5",
        "full_rejected": "Step 1: 2 + 3 = 6",
        "answer": "5",
    }
    loaded = load(tmp_path, [row])
    (preference,) = loaded.preferences
    assert preference.prefix == "Let's think step by step.\nStep 1:"
    assert preference.responses == (
        Response(" 2 + 3 = 5", ends=False),
        Response(" 2 + 3 = 6", ends=False),
    )
    assert preference.meta == {
        "dataset": "aqua",
        "full_chosen": "Step 1: 2 + 3 = 5",
        "full_rejected": "Step 1: 2 + 3 = 6",
        "answer": "5",
    }
    assert loaded.mapping["initial_reason_steps"] == "prefix"
    assert one(tmp_path, {**row, "ends": True}).responses[0].ends is True


def test_margin_weight_tools_and_unused_columns(tmp_path: Path) -> None:
    row = {
        "prompt": [QUESTION],
        "chosen": "5",
        "rejected": "6",
        "margin": 0.5,
        "weight": 2,
        "tools": '[{"name": "add"}]',
        "ref_chosen_logps": -3.0,
        "source": "mine",
        "nothing": None,
    }
    loaded = load(tmp_path, [row])
    assert loaded.preferences[0].pairs == (Pair(0, 1, weight=2.0, margin=0.5),)
    assert loaded.preferences[0].meta == {"tools": [{"name": "add"}], "source": "mine"}
    assert loaded.mapping == {
        "prompt": "prompt",
        "chosen": "chosen",
        "rejected": "rejected",
        "margin": "margin",
        "weight": "weight",
        "tools": "tools",
        "ref_chosen_logps": "not used",
        "source": "meta",
        "nothing": "meta",
    }


def test_columns_of_the_user_win(tmp_path: Path) -> None:
    row = {"q": "2 + 3?", "prompt": "ignore me", "better": "5", "worse": "6", "margin": "large"}
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse", "meta": "margin"}
    preference = one(tmp_path, row, columns=columns)
    assert (preference.prompt, preference.responses) == ("2 + 3?", PAIR)
    assert preference.meta == {"prompt": "ignore me", "margin": "large"}


def test_own_records(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    written = [
        Preference(
            "a", "q", (Response("x", score=1.0), Response("y", score=2.0)), prefix="Step 1:"
        ),
        Preference("b", "q", PAIR, (Pair(1, 0),), meta={"k": 1}),
    ]
    write_preferences(path, written)
    first, second = load_preferences(path, ledger=Ledger("own")).preferences
    assert (first.id, first.pairs, first.prefix) == ("a", (Pair(1, 0),), "Step 1:")
    assert (second.id, second.pairs, second.meta) == ("b", (Pair(1, 0),), {"k": 1})


@pytest.mark.parametrize(
    ("pairing", "pairs"),
    [
        ("best_vs_rest", [(1, 3), (1, 0)]),
        ("best_worst", [(1, 0)]),
        ("all", [(1, 3), (1, 0), (2, 3), (2, 0), (3, 0)]),
        ("adjacent", [(2, 3), (3, 0)]),
    ],
)
def test_pairings(pairing: str, pairs: list[tuple[int, int]], tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [1, 5, 5, 2]}
    assert [(p.chosen, p.rejected) for p in one(tmp_path, row, pairing=pairing).pairs] == pairs


def test_ids_and_origins(tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"t{i}"} for i in (7, 8)]
    assert [p.id for p in load(tmp_path, rows).preferences] == ["7", "8"]
    rows[1]["id"] = 7
    loaded = load(tmp_path, rows)
    assert [p.id for p in loaded.preferences] == ["data:1", "data:2"]
    assert loaded.mapping["id"] == "not used as id: values repeat or are missing"
    assert loaded.preferences[1].origin == f"{tmp_path / 'data.jsonl'}:2"


def test_poor_rows_are_dropped_with_a_reason(tmp_path: Path) -> None:
    ledger = Ledger("x")
    path = tmp_path / "data.jsonl"
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": " \n"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "b", "rejected": "a"},
        {"prompt": "", "chosen": "c", "rejected": "a"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    kept = load_preferences(path, ledger=ledger).preferences
    ledger.keep_undecided()
    assert [p.id for p in kept] == ["data:1", "data:5", "data:6"]
    assert ledger.reasons == {
        "empty response": 1,
        "chosen equals rejected": 1,
        "duplicate of an earlier row": 1,
    }
    assert ledger.notes == {
        "contradicts an earlier row: same responses, opposite preference": 1,
        "empty prompt": 1,
    }


def test_lists_lose_only_what_is_poor(tmp_path: Path) -> None:
    ledger = Ledger("x")
    path = tmp_path / "data.jsonl"
    rows = [
        {"prompt": "q", "responses": ["a", "", "a", "b"], "scores": [3, 9, 1, 2]},
        {"prompt": "r", "responses": ["a", "b"], "scores": [2, 2]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = load_preferences(path, ledger=ledger).preferences
    assert [r.text for r in first.responses] == ["a", "a", "b"]
    assert first.pairs == (Pair(0, 2),)
    assert second.pairs == ()
    ledger.keep_undecided()
    assert ledger.notes == {
        "empty response left out of the list": 1,
        "pair of equal texts left out": 1,
        "no pair: every score or rank is equal": 1,
    }


def write_as(kind: str, path: Path, rows: list[dict[str, str]]) -> Path:
    file = path / f"data.{kind}"
    if kind in {"csv", "tsv"}:
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, rows[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "folder":
        from datasets import Dataset, disable_progress_bars

        disable_progress_bars()
        file = path / "saved"
        Dataset.from_list(rows).save_to_disk(file)
    elif kind == "json":
        file.write_text(json.dumps(rows, indent=1))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("jsonl", [1, 2]),
        ("json", [2, 7]),
        ("csv", [2, 4]),
        ("tsv", [2, 4]),
        ("parquet", [1, 2]),
        pytest.param("folder", [1, 2], marks=pytest.mark.slow),
    ],
)
def test_all_kinds_of_files_give_the_same_records(
    kind: str, lines: list[int], tmp_path: Path
) -> None:
    rows = [
        {"prompt": 'with "quotes"\nand a line', "chosen": "5, é", "rejected": "6"},
        {"prompt": "2 + 3?", "chosen": "5", "rejected": "6"},
    ]
    file = write_as(kind, tmp_path, rows)
    loaded = load_preferences(file, ledger=Ledger("x"))
    assert [p.prompt for p in loaded.preferences] == [row["prompt"] for row in rows]
    assert [p.responses[0].text for p in loaded.preferences] == ["5, é", "5"]
    assert [p.origin.rsplit(":", 1)[1] for p in loaded.preferences] == [str(n) for n in lines]


def test_tables_hold_numbers_flags_and_lists_as_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,responses,scores\nq,"[""a"", ""b""]","[1, 2]"\n')
    (listed,) = load_preferences(path, ledger=Ledger("x")).preferences
    assert listed.responses == (Response("a", score=1.0), Response("b", score=2.0))
    path.write_text(
        'messages,label\n"[{""role"": ""user"", ""content"": ""q""}, '
        '{""role"": ""assistant"", ""content"": ""a""}]",false\n'
    )
    (labelled,) = load_preferences(path, ledger=Ledger("x")).preferences
    assert (labelled.prompt, labelled.responses) == (
        (Message(U, "q"),),
        (Response("a", label=False),),
    )


def test_json_lines_in_a_json_file_and_nulls_of_arrow(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"text": "a", "id": null}\n{"text": "b"}\n')
    assert [
        p.responses[0].text for p in load_preferences(path, ledger=Ledger("x")).preferences
    ] == ["a", "b"]


def test_limit_reads_the_first_rows_only(tmp_path: Path) -> None:
    loaded = load(tmp_path, [{"text": "a"}, {"text": "b"}, {"text": None}], limit=2)
    assert len(loaded.preferences) == 2


def test_one_row_can_be_looked_at_even_when_it_is_poor(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "a"}\n{"prompt": 3}\n')
    ledger = Ledger("x")
    assert load_row(path, row=1, ledger=ledger).id == "data:1"
    assert ledger.reasons == {"chosen equals rejected": 1}


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "records", "responses", "pairs"),
    [
        ("pairs_sharegpt.json", 149, 298, 149),
        ("unpaired_kto.jsonl", 150, 150, 0),
        ("tldr_ranked.jsonl", 102, 839, 583),
        ("imdb_ranked.jsonl", 20, 199, 179),
        ("gsm8k_train_200.jsonl", 200, 200, 0),
        ("math_test_200.jsonl", 200, 200, 0),
    ],
)
def test_real_files(name: str, records: int, responses: int, pairs: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    ledger = Ledger(name)
    loaded = load_preferences(path, ledger=ledger)
    assert len(loaded.preferences) == records == ledger.read
    assert sum(len(p.responses) for p in loaded.preferences) == responses
    assert sum(len(p.pairs) for p in loaded.preferences) == pairs
