"""Bad data, as users bring it: each gives one line that names the place and the remedy, or a fate in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ConfigError, ModelError, PrefoptError, RecordError, StorageError
from prefopt.label.labels import read_items
from prefopt.ledger import Ledger
from prefopt.methods.odpo import OdpoConfig, scored_pairs
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.records import Pair, Preference, Response, read_preferences, write_preferences
from prefopt.runs.method import Paired
from prefopt.text.problems import load_problems
from prefopt.text.sources import load_preferences
from tests.tiny import make_tokenizer

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
ASK = {"role": "user", "content": "q"}
SAY = {"role": "assistant", "content": "a"}
LIST = {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}
NATIVE = {"id": "x", "prompt": "q", "responses": [{"text": "a"}, {"text": "b"}]}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


ERRORS: dict[str, tuple[str, str | bytes, type[PrefoptError], list[str]]] = {
    # columns
    "no known column": ("d.jsonl", lines({"q": "x", "a": "y"}), RecordError,
        ["d.jsonl:1: no responses recognised in the columns q, a", "columns.chosen=better"]),
    "no prompt": ("d.jsonl", lines({"completion": "x", "title": "y"}), RecordError,
        ["d.jsonl:1: no prompt recognised", "columns.prompt=<column>"]),
    "rejected missing in a row": ("d.jsonl", lines(GOOD, without(GOOD, "rejected")), RecordError,
        ["d.jsonl:2: column 'rejected' (rejected) is missing here but not in the first rows; add it"]),
    "csv without header": ("d.csv", "what is 2+3?,5,6\nwhat is 2+4?,6,7\n", RecordError,
        ["d.csv:2: no responses recognised", "add a header line above it, such as prompt,chosen,rejected"]),
    "csv header with a repeated name": ("d.csv", "5,5,6\n5,5,7\n", RecordError,
        ["d.csv:1: the header names column '5' twice", "add the missing header line"]),
    "csv row with too many cells": ("d.csv", "prompt,chosen,rejected\nq,a,b\nwell, what,a,b\n", RecordError,
        ["d.csv:3: 4 cells, but the header names 3 columns; put texts with commas"]),
    "csv with an open quote": ("d.csv", 'prompt,chosen,rejected\nq,"a,b\n', RecordError,
        ["d.csv:2: broken table", "check the quotes"]),
    # values
    "null": ("d.jsonl", lines(GOOD, {**GOOD, "chosen": None}), RecordError,
        ["d.jsonl:2: 'chosen' is null; give a text or a list of messages, or remove the row"]),
    "several malformed rows": ("d.jsonl", lines(*[{**GOOD, "chosen": None}] * 5, GOOD), RecordError,
        ["d.jsonl: 5 of 6 rows are malformed: ", "d.jsonl:1: 'chosen' is null", "d.jsonl:3", " | and 2 more"]),
    "a number for a text": ("d.jsonl", lines({**GOOD, "prompt": 3}), RecordError,
        ["d.jsonl:1: 'prompt' is the number 3; give a text"]),
    "text and messages in one row": ("d.jsonl", lines({**GOOD, "chosen": [SAY]}), RecordError,
        ["d.jsonl:1: 'chosen' is a list of messages but 'rejected' is text; make them alike"]),
    "text and messages without a prompt": ("d.jsonl", lines({"chosen": [ASK, SAY], "rejected": "b"}), RecordError,
        ["d.jsonl:1: one of chosen and rejected is text, the other a list of messages; make them alike"]),
    "score that is no number": ("d.jsonl", lines({**LIST, "scores": [1, "good"]}), RecordError,
        ["d.jsonl:1: 'scores[1]' is the text \"good\"; give a finite number"]),
    "score that is not finite": ("d.jsonl", lines({**LIST, "scores": [1, float("inf")]}), RecordError,
        ["d.jsonl:1: 'scores[1]' is the number inf; give a finite number, or null where there is no score"]),
    "score of a side that is not finite": ("d.jsonl", lines({**GOOD, "score_chosen": -float("inf")}), RecordError,
        ["d.jsonl:1: 'score_chosen' is the number -inf; give a finite number, or null"]),
    "weight that is not a number": ("d.jsonl", lines({**GOOD, "weight": float("nan")}), RecordError,
        ["d.jsonl:1: 'weight' is the number nan; give a finite number, or remove the row"]),
    "margin that is not a number": ("d.jsonl", lines({**GOOD, "margin": float("nan")}), RecordError,
        ["d.jsonl:1: 'margin' is the number nan; give a finite number, or remove the row"]),
    "rank that is null": ("d.jsonl", lines({"prompt": "q", "responses": ["a", "b"], "ranks": [1, None]}), RecordError,
        ["d.jsonl:1: 'ranks[1]' is null; ranks are whole numbers from 1 (best) on"]),
    "gold that is no text": ("d.jsonl", lines({**GOOD, "gold": 1}), RecordError,
        ["d.jsonl:1: 'gold' is the number 1; give a text or messages", "columns.meta=gold"]),
    "fewer scores than responses": ("d.jsonl", lines({**LIST, "scores": [1]}), RecordError,
        ["d.jsonl:1: 2 responses but 1 scores; give one for each, in the same order"]),
    "rank 0": ("d.jsonl", lines({"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]}), RecordError,
        ["d.jsonl:1: 'ranks[0]' is the number 0; ranks are whole numbers from 1 (best) on: renumber them"]),
    "no responses in the list": ("d.jsonl", lines(LIST, {**LIST, "responses": []}), RecordError,
        ["d.jsonl:2: 'responses' is an empty list; give a list with at least one item"]),
    "listed response without a text": ("d.jsonl", lines({"prompt": "q", "completions": [{"score": 1}]}), RecordError,
        ["d.jsonl:1: 'completions[0]' is an object with keys score; give it one of completion, response"]),
    "label that is no flag": ("d.jsonl", lines({"prompt": "q", "completion": "a", "label": "safe"}), RecordError,
        ["d.jsonl:1: 'label' is the text \"safe\"; give true or false, or name another column with columns.label"]),
    "tools that are no JSON": ("d.jsonl", lines({**GOOD, "tools": "[{"}), RecordError,
        ["d.jsonl:1: 'tools' is no JSON", "give a list"]),
    "images": ("d.jsonl", lines({**GOOD, "images": None}, {**GOOD, "images": ["a.png"]}), RecordError,
        ["d.jsonl:2: column 'images' holds media", "remove the column, or keep it unread with columns.meta=images"]),
    # conversations
    "unknown role": ("d.jsonl", lines({"messages": [{"role": "robot", "content": "q"}, SAY]}), RecordError,
        ["d.jsonl:1: 'messages[0].role' is the text \"robot\"; known roles are system, user, assistant and tool"]),
    "message without content": ("d.jsonl", lines({"messages": [{"role": "user"}, SAY]}), RecordError,
        ["d.jsonl:1: 'messages[0].content' is null; give a text"]),
    "message that is text": ("d.jsonl", lines({"messages": ["q", "a"]}), RecordError,
        ["d.jsonl:1: 'messages[0]' is the text \"q\"; give an object"]),
    "image inside a message": ("d.jsonl", lines({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAY]}),
        RecordError, ["d.jsonl:1: 'messages[0].content' is an object with keys type; only text parts can be used"]),
    "conversation without an answer": ("d.jsonl", lines({"messages": [ASK]}), RecordError,
        ["d.jsonl:1: 'messages' has no assistant message after a prompt (roles: user); add the answer"]),
    "prompt that ends with the assistant": (
        "d.jsonl", lines({"prompt": [ASK, SAY], "chosen": [SAY], "rejected": [SAY]}), RecordError,
        ["d.jsonl:1: the prompt ends with an assistant message; make it part of the responses, or", "'prefix'"]),
    "response that ends with the user": (
        "d.jsonl", lines({"prompt": [ASK], "chosen": [SAY, ASK], "rejected": [SAY]}), RecordError,
        ["d.jsonl:1: responses[0] ends with a user message; responses end with an assistant message"]),
    "chosen that does not start with the prompt": (
        "d.jsonl", lines({"prompt": [ASK], "chosen": [{"role": "user", "content": "other"}, SAY], "rejected": [SAY]}),
        RecordError, ["d.jsonl:1: 'chosen' does not start with the prompt: message 0 is \"other\"",
        'the prompt has "q"; give only the answer, or the same messages']),
    "conversations without a common prompt": (
        "d.jsonl", lines({"chosen": [ASK, SAY], "rejected": [{"role": "user", "content": "other"}, SAY]}), RecordError,
        ["d.jsonl:1: chosen (user, assistant) and rejected (user, assistant) differ before the first assistant",
        "add a prompt column"]),
    "nothing but a system message": ("d.jsonl", lines({"prompt": [], "chosen": "a", "rejected": "b"}), RecordError,
        ["d.jsonl:1: 'prompt' is an empty list; give a list with at least one item"]),
    # our own records
    "pair out of range": ("d.jsonl", lines({**NATIVE, "pairs": [{"chosen": 0, "rejected": 5}]}), RecordError,
        ["d.jsonl:1: pairs[0].rejected is 5, but there are 2 responses; use 0 to 1"]),
    "unknown key of our own": ("d.jsonl", lines({**NATIVE, "pairs": [], "promt": 1}), RecordError,
        ["d.jsonl:1: the record has the unknown key 'promt'", "further facts go into 'meta'"]),
    # files
    "empty file": ("d.jsonl", "", RecordError, ["d.jsonl: there are no rows; give a file with at least one"]),
    "empty list": ("d.json", "[]", RecordError, ["d.json: there are no rows"]),
    "header only": ("d.csv", "prompt,chosen,rejected\n", RecordError, ["d.csv: there are no rows"]),
    "broken line": ("d.jsonl", lines(GOOD) + '{"prompt": "q", chosen\n', RecordError,
        ["d.jsonl:2: broken JSON at column 17", "repair or remove the line"]),
    "line that is no object": ("d.jsonl", lines(GOOD) + "[1, 2]\n", RecordError,
        ["d.jsonl:2: the line is a list of 2 items; every line has to be one JSON object"]),
    "json that is no list": ("d.json", json.dumps({"data": [GOOD]}), RecordError,
        ["d.json: the file is an object with keys data, not a list of rows; wrap the rows in [ ], or use .jsonl"]),
    "json list of texts": ("d.json", '[\n"a"]', RecordError,
        ['d.json:2: the row is the text "a"; every row has to be an object']),
    "broken json list": ("d.json", '[{"prompt": "q"},\n {"prompt": }]', RecordError,
        ["d.json:2: broken JSON at column 13", "repair the file there"]),
    "json list that never ends": ("d.json", '[{"prompt": "q"}\n', RecordError, ["d.json:2: broken JSON at column 1"]),
    "half a surrogate pair": ("d.jsonl", lines(GOOD, {**GOOD, "chosen": "a \ud83d"}), RecordError,
        ["d.jsonl:2: 'chosen' holds \\ud83d, half of a surrogate pair", "write the whole character, or remove"]),
    "half a surrogate pair in a message": ("d.jsonl", lines({"messages": [ASK, {**SAY, "content": "\ude00"}]}),
        RecordError, ["d.jsonl:1: 'messages[1].content' holds \\ude00, half"]),
    "half a surrogate pair in a key": ("d.jsonl", lines(GOOD, {**GOOD, "\ud83d": 1}), RecordError,
        ["d.jsonl:2: the name of a key holds \\ud83d, half"]),
    "half a surrogate pair in a list": ("d.json", json.dumps([GOOD, {**GOOD, "chosen": "\ud83d\ud83d"}], indent=1),
        RecordError, ["d.json:7: 'chosen' holds \\ud83d, half"]),
    "half a surrogate pair of our own": ("d.jsonl", lines({**NATIVE, "meta": {"a": {"b": ["\udfff"]}}}), RecordError,
        ["d.jsonl:1: 'meta.a.b[0]' holds \\udfff, half"]),
    "half a surrogate pair in a cell": (
        "d.csv", 'prompt,responses,scores\nq,"[""\\ud83d"", ""b""]","[1, 2]"\n', RecordError,
        ["d.csv:2: 'responses[0]' holds \\ud83d, half"]),
    "half a surrogate pair in tools": ("d.jsonl", lines({**GOOD, "tools": '["\\ud83d"]'}), RecordError,
        ["d.jsonl:1: 'tools[0]' holds \\ud83d, half"]),
    "not utf-8": ("d.jsonl", b'{"prompt": "\xff"}', RecordError,
        ["d.jsonl: no UTF-8 text at byte 12; save the file as"]),
    "unreadable parquet": ("d.parquet", b"PAR1 nothing", RecordError,
        ["d.parquet: no readable Parquet file", "write it again or copy it anew"]),
    "unknown type": ("d.xlsx", b"", RecordError,
        ["d.xlsx: data files of type '.xlsx' cannot be read; use .jsonl, .ndjson, .json, .csv"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_one_line_with_place_and_remedy(name: str, tmp_path: Path) -> None:
    file, content, error, parts = ERRORS[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        load_preferences(path, ledger=Ledger("x"))
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


def test_whole_characters_may_be_written_as_escapes(tmp_path: Path) -> None:
    """A surrogate pair is one character; an escaped backslash before `ud83d` is none."""
    path = tmp_path / "d.jsonl"
    path.write_text(lines({**GOOD, "chosen": "😀", "rejected": r"\ud83d"}))
    assert r"\ud83d\ude00" in path.read_text()
    (record,) = load_preferences(path, ledger=Ledger("x")).preferences
    assert [r.text for r in record.responses] == ["😀", r"\ud83d"]


@pytest.mark.parametrize("read", [load_problems, read_items, read_preferences])
def test_half_a_surrogate_pair_is_refused_wherever_rows_are_read(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    row = {"id": "a", "question": "1 + \ud83d", "answer": "2", "text": "Step 1: 2"}
    path.write_text(lines(row))
    with pytest.raises(RecordError, match=r"d\.jsonl:1: 'question' holds \\ud83d, half") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_records_with_half_a_surrogate_pair_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good, bad = (
        Preference(name, "q", (Response(text),)) for name, text in (("a", "😀"), ("b", "\udc00"))
    )
    write_preferences(path, [good])
    before = path.read_bytes()
    with pytest.raises(
        RecordError, match=r"d\.jsonl: record 'b' cannot be written: .*\\udc00, half"
    ):
        write_preferences(path, [good, bad])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_missing_file_suggests_near_names(tmp_path: Path) -> None:
    (tmp_path / "train_pairs.jsonl").write_text(lines(GOOD))
    with pytest.raises(
        StorageError, match=r"train_pair\.jsonl: no such file; did you mean train_pairs\.jsonl\?"
    ):
        load_preferences(tmp_path / "train_pair.jsonl", ledger=Ledger("x"))
    with pytest.raises(StorageError, match="its folder .* does not exist either; check the path"):
        load_preferences(tmp_path / "absent" / "x.jsonl", ledger=Ledger("x"))


def test_relative_path_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(StorageError, match=r"^data/train: no such file"):
        load_preferences("data/train", ledger=Ledger("x"))
    with pytest.raises(StorageError, match=r"^dada/x\.jsonl: no such file, and its folder"):
        load_preferences("dada/x.jsonl", ledger=Ledger("x"))


def test_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="the folder was not saved by datasets; use .jsonl"):
        load_preferences(tmp_path, ledger=Ledger("x"))
    (tmp_path / "d.jsonl").write_text(lines(GOOD))
    with pytest.raises(RecordError, match=r"name one of its files, such as .*d\.jsonl"):
        load_preferences(tmp_path, ledger=Ledger("x"))


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"choosen": "a"},
            ConfigError,
            "columns: unknown role 'choosen'; did you mean 'chosen'? known roles are",
        ),
        (
            {"chosen": "promt"},
            RecordError,
            "columns.chosen: d.jsonl has no column 'promt'; did you mean 'prompt'?",
        ),
        (
            {"meta": "zzz"},
            RecordError,
            "columns.meta: d.jsonl has no column 'zzz'; there are prompt, chosen, rejected",
        ),
    ],
)
def test_wrong_mapping(
    columns: dict[str, str], error: type[PrefoptError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(lines(GOOD))
    with pytest.raises(error) as caught:
        load_preferences(tmp_path / "d.jsonl", ledger=Ledger("x"), columns=columns)
    assert message in str(caught.value)


def test_unknown_pairing(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(lines(LIST))
    with pytest.raises(ConfigError, match="pairing: unknown 'best'; known are best_vs_rest"):
        load_preferences(tmp_path / "d.jsonl", ledger=Ledger("x"), pairing="best")


FATES: dict[str, tuple[dict[str, Any], int, dict[str, int], dict[str, int]]] = {
    "empty response": ({**GOOD, "rejected": ""}, 64, {"empty response": 1}, {}),
    "white space response": ({**GOOD, "rejected": " \n\t"}, 64, {"empty response": 1}, {}),
    "identical": ({**GOOD, "rejected": "a"}, 64, {"chosen equals rejected": 1}, {}),
    "identical after the cut": (
        {"prompt": "q ", "chosen": "aaaaaaaa1", "rejected": "aaaaaaaa2"},
        6,
        {"identical after the cut": 1},
        {},
    ),
    "prompt too long": ({**GOOD, "prompt": "q" * 80}, 64, {"prompt too long": 1}, {}),
    "response too long": (
        {**GOOD, "prompt": "q ", "chosen": "x" * 80},
        64,
        {"end of a response cut": 1},
        {},
    ),
    "empty prompt": (
        {**GOOD, "prompt": "", "chosen": "abc"},
        64,
        {},
        {"empty prompt": 1, "empty prompt and no BOS token: the first token is not scored": 1},
    ),
    "empty prompt and one letter": (
        {**GOOD, "prompt": "", "chosen": [{"role": "assistant", "content": ""}], "rejected": [SAY]},
        64,
        {"empty response": 1},
        {},
    ),
    "all equal scores": (
        {**LIST, "scores": [2, 2], "prompt": "q "},
        64,
        {},
        {"no pair: every score or rank is equal": 1},
    ),
    "no scores": (
        {"prompt": "q ", "responses": ["a", "b"]},
        64,
        {},
        {"no pair: several responses without a score or rank for each": 1},
    ),
    "missing scores": (
        {**LIST, "responses": ["a", "b", "c"], "scores": [2, None, 1], "prompt": "q "},
        64,
        {},
        {"responses without a score are in no pair": 1},
    ),
    "one score": (
        {**LIST, "scores": [2, float("nan")], "prompt": "q "},
        64,
        {},
        {
            "responses without a score are in no pair": 1,
            "no pair: only one response has a score": 1,
        },
    ),
    "gold equals rejected": (
        {**GOOD, "prompt": "q ", "gold": "b"},
        64,
        {},
        {"the gold response equals the rejected one": 1},
    ),
    "inverted scores": (
        {**GOOD, "prompt": "q ", "score_chosen": 1, "score_rejected": 2},
        64,
        {},
        {"chosen scores lower than rejected": 1},
    ),
    "glued": (
        {**GOOD, "prompt": "q"},
        64,
        {},
        {
            "prompt ends in a letter or digit and a response starts with one, without a space; "
            "set response_separator": 1
        },
    ),
}


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("name", FATES)
def test_poor_rows_have_a_fate_or_a_note(name: str, pad: bool, tmp_path: Path) -> None:
    row, max_length, reasons, notes = FATES[name]
    path = tmp_path / "d.jsonl"
    path.write_text(lines(row))
    ledger = Ledger("x")
    loaded = load_preferences(path, ledger=ledger)
    prepare(
        loaded.preferences, make_tokenizer(pad=pad), PrepareSettings(max_length=max_length), ledger
    )
    assert (ledger.reasons, ledger.notes) == (reasons, notes)
    assert ledger.read == 1 == ledger.kept_count + ledger.cut_count + ledger.dropped_count


def test_missing_scores_reach_the_policies_of_odpo(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines({**GOOD, "score_chosen": float("nan"), "score_rejected": 1}))
    (record,) = load_preferences(path, ledger=Ledger("x")).preferences
    recipe = {"method": "odpo", "model_name_or_path": "m", "train_file": str(path)}
    kept = scored_pairs(record, OdpoConfig.model_validate({**recipe, "on_missing": "dpo"}))
    assert isinstance(kept, Paired)
    assert kept.preference.pairs == (Pair(0, 1),)
    assert scored_pairs(record, OdpoConfig.model_validate({**recipe, "on_missing": "drop"})) == (
        "a pair without two scores left out"
    )
    with pytest.raises(RecordError, match=r"d\.jsonl:1: the chosen response has score none, the"):
        scored_pairs(record, OdpoConfig.model_validate(recipe))


def test_duplicates_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines(GOOD, GOOD))
    ledger = Ledger("x")
    load_preferences(path, ledger=ledger)
    with pytest.raises(
        RecordError, match=r"d\.jsonl:2 dropped \(duplicate of an earlier row\); repair these rows"
    ):
        ledger.enforce(strict=True)


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines({"messages": [ASK, SAY]}))
    ledger = Ledger("x")
    loaded = load_preferences(path, ledger=ledger)
    with pytest.raises(
        ModelError, match=r"d\.jsonl:1: the prompt is a conversation, but the tokenizer has no chat"
    ):
        prepare(loaded.preferences, make_tokenizer(chat_template=None), PrepareSettings(), ledger)
