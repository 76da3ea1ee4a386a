"""Files of problems: which columns mean what, where answers stand, and what is wrong in words."""

import json
from pathlib import Path

import pytest

from prefopt.errors import ConfigError, RecordError
from prefopt.ledger import Ledger
from prefopt.text.problems import load_problems
from prefopt.text.worked import final_answer, last_box

DATA = Path(__file__).parents[3] / "shared" / "data"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_one(tmp_path, row, **options):
    return load_problems(write(tmp_path / "set.jsonl", row), style="plain", **options)[0]


def test_gsm8k(tmp_path):
    row = {
        "question": "Clips?",
        "answer": "She sold 48/2 = <<48/2=24>>24.\nAll: <<24*50=1200>>1200\n#### 1,200",
    }
    found = load_one(tmp_path, row)
    assert (found.id, found.question, found.answer) == ("set-1", "Clips?", "1200")
    assert found.solution == "She sold 48/2 = 24.\nAll: 1200"
    assert (found.prompt, found.prefix, found.origin) == ("Clips?", "", f"{tmp_path}/set.jsonl:1")


def test_math(tmp_path):
    row = {
        "problem": "Why?",
        "level": "Level 3",
        "type": "Algebra",
        "solution": r"First $\boxed{1}$, then $\boxed{\frac{9}{7}}$.",
        "idx": 7,
    }
    found = load_one(tmp_path, row)
    assert (found.id, found.answer, found.kind) == ("7", r"\frac{9}{7}", "Algebra")
    assert found.meta == {"level": "Level 3"} and found.solution == row["solution"]


def test_released_forms(tmp_path):
    row = {
        "idx": "GSM8K_0",
        "instruction": "Q",
        "output": "2 = <<1+1=2>>2\n#### 2",
        "answer": ["2"],
    }
    found = load_one(tmp_path, row)
    assert (found.id, found.answer, found.solution) == ("GSM8K_0", "2", "2 = 2")
    row = {
        "instruction": "Q",
        "answer": ["3", "-2"],
        "output": "so",
        "type": "algebra",
        "filepath": "a",
    }
    found = load_one(tmp_path, row)
    assert found.answer == "3, -2"
    assert found.answers == found.several == ("3", "-2")
    assert found.meta == {"filepath": "a"}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "Q", "gold": 18}, "18"),
        ({"query": "Q", "final_answer": 18.0}, "18"),
        ({"query": "Q", "expected_answer": 0.5}, "0.5"),
        ({"prompt": "Q", "answer": r"so \boxed{x+1}"}, "x+1"),
        ({"problem": "Q", "answer": "1,234"}, "1,234"),
    ],
)
def test_answers_of_other_columns(tmp_path, row, answer):
    assert load_one(tmp_path, row).answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{\text{a}}", r"\text{a}"),
        (r"\fbox{7}", "7"),
        (r"\boxed 5$", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("nothing", None),
    ],
)
def test_the_last_balanced_box(text, answer):
    assert last_box(text) == answer


def test_thousands_commas_go_and_lists_stay():
    assert final_answer("#### 1,234,567") == "1234567"
    assert final_answer("#### 1, 2") == "1, 2"


def test_tables_and_named_columns(tmp_path):
    (tmp_path / "set.csv").write_text('id,text,value\na,"1, or 2?",2\nb,Q,"[""3"", ""4""]"\n')
    columns = {"question": "text", "answer": "value"}
    found = load_problems(tmp_path / "set.csv", columns=columns)
    assert [(p.id, p.answer) for p in found] == [("a", "2"), ("b", "3, 4")]


def test_the_style_writes_prompt_and_prefix(tmp_path):
    row = {"question": "Q", "answer": "1", "prefix": "Step 1: a\nStep 2:"}
    path = write(tmp_path / "set.jsonl", row)
    found = load_problems(path, style="qwen2-boxed-prefix")[0]
    assert found.prefix == "Let's think step by step.\nStep 1: a\nStep 2:"
    ledger = Ledger("set")
    assert load_problems(path, style="chat", ledger=ledger)[0].prefix == ""
    assert list(ledger.notes) == [
        "column 'prefix' is not used: the prompt style has no place for it"
    ]


def test_rows_without_an_answer_are_dropped_and_counted_where_asked(tmp_path):
    rows = [
        {"question": "a", "answer": "1"},
        {"question": "b", "answer": None},
        {"question": "a", "answer": "1"},
    ]
    path = write(tmp_path / "set.jsonl", *rows)
    ledger = Ledger("set")
    found = load_problems(path, on_unanswered="drop", ledger=ledger)
    assert [p.id for p in found] == ["set-1", "set-3"]
    assert (ledger.read, ledger.kept_count, ledger.reasons) == (3, 2, {"no readable answer": 1})
    assert ledger.notes == {"the question stands in an earlier row too": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "Q", "answer": None}],
            "set.jsonl:1: no readable answer: 'answer' is missing",
        ),
        ([{"question": "Q", "answer": []}], "'answer' is an empty list; give a text"),
        ([{"question": "Q", "answer": True}], "'answer' is true; give a text, a number"),
        ([{"problem": "Q", "solution": "so 5"}], r"'solution' has neither a \\boxed"),
        ([{"question": " ", "answer": "1"}], "'question' is empty text; give the problem"),
        (
            [{"id": 1, "question": "Q", "answer": "1"}] * 2,
            "set.jsonl:2: id '1' stands in row 1 already",
        ),
        (
            [{"text": "Q", "answer": "1"}],
            "no column holds the question .* the file has text, answer",
        ),
        ([{"question": "Q", "x": "1"}], "no column holds the answer"),
        ([{"question": "Q", "answer": "1", "id": 1.5}], "'id' is the number 1.5"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, rows, message):
    with pytest.raises(RecordError, match=message):
        load_problems(write(tmp_path / "set.jsonl", *rows))


def test_options_that_make_no_sense(tmp_path):
    path = write(tmp_path / "set.jsonl", {"question": "Q", "answer": "1"})
    with pytest.raises(ConfigError, match="limit is 0"):
        load_problems(path, limit=0)
    with pytest.raises(ConfigError, match="needs a ledger"):
        load_problems(path, on_unanswered="drop")
    with pytest.raises(ConfigError, match="unknown column role 'anwser': did you mean 'answer'"):
        load_problems(path, columns={"anwser": "answer"})
    with pytest.raises(RecordError, match="no column 'qestion' .*; did you mean 'question'"):
        load_problems(path, columns={"question": "qestion"})
    with pytest.raises(RecordError, match="there is no column 'prefix'"):
        load_problems(path, style="alpaca-cot-prefix")


@pytest.mark.skipif(not DATA.is_dir(), reason="no folder of public samples beside the repository")
@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("gsm8k_train_200", "72", "150"),
        ("gsm8k_test_200", "18", "7500"),
        ("math_test_200", "2", "-5"),
    ],
)
def test_public_samples_are_read_whole(name, first, last):
    found = load_problems(DATA / f"{name}.jsonl")
    assert (len(found), found[0].answer, found[-1].answer) == (200, first, last)
    assert not any("<<" in p.solution or "####" in p.solution for p in found)
