import json
import os
import threading

import pytest

from prefopt.cli.main import main

pytest.importorskip("math_verify")

ROWS = [
    {
        "id": 1,
        "problem": "p",
        "answer": "18",
        "output": "The answer is 18.",
        "extra": [1, {"a": None}],
    },
    {"question": "q", "answer": 18, "output": "The answer is 19."},
    {"problem": "p", "answer": ["3", "-2"], "output": "\\boxed{-2, 3}"},
    {"problem": "p", "answer": "x\n#### 5", "output": ""},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_in_order_with_verdicts(tmp_path, capsys):
    write(tmp_path / "in.jsonl", ROWS)
    out = tmp_path / "new" / "out.jsonl"
    assert main(["grade", str(tmp_path / "in.jsonl"), "--output", str(out), "--workers", "1"]) == 0
    assert read(out) == [
        {**ROWS[0], "correct": True, "extracted": "18", "reason": "equal"},
        {**ROWS[1], "correct": False, "extracted": "19", "reason": "different"},
        {**ROWS[2], "correct": True, "extracted": "-2, 3", "reason": "equal"},
        {**ROWS[3], "correct": False, "extracted": None, "reason": "no answer"},
    ]
    printed = capsys.readouterr().out
    assert "accuracy: 50.00% (2 of 4), 95% interval 15.00% to 85.00%" in printed
    assert "no answer: 1; over the time limit: 0" in printed
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "in.jsonl:2: broken JSON"),
        ("[]", "in.jsonl:2: the line is"),
        ('{"problem": "p", "output": "5"}', "in.jsonl:2: there is no 'answer'"),
        ('{"problem": "p", "answer": "5"}', "in.jsonl:2: there is no 'output'"),
        ('{"answer": "5", "output": null}', "in.jsonl:2: output is null"),
        ('{"answer": [], "output": "5"}', "in.jsonl:2: answer is []"),
        ('{"answer": true, "output": "5"}', "in.jsonl:2: answer is true"),
        ('{"problem": 3, "answer": "5", "output": "5"}', "in.jsonl:2: problem is 3"),
    ],
)
def test_a_wrong_line_is_one_error_and_nothing_is_written(tmp_path, capsys, line, message):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n", encoding="utf-8")
    out.write_text("before", encoding="utf-8")
    assert main(["grade", str(source), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.strip().count("\n") == 0
    assert out.read_text(encoding="utf-8") == "before"


def test_other_mistakes(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    write(source, ROWS)
    before = source.read_text(encoding="utf-8")
    assert main(["grade", str(source), "--output", str(source)]) == 2
    assert "is the input file" in capsys.readouterr().err
    assert source.read_text(encoding="utf-8") == before
    assert main(["grade", str(source), "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "im.jsonl"), "--output", str(tmp_path / "o")]) == 2
    assert "did you mean in.jsonl" in capsys.readouterr().err
    assert main(["grade", str(source), "--output", str(tmp_path / "o"), "--grader", "sc-dpo"]) == 2
    assert "did you mean scdpo" in capsys.readouterr().err
    assert main(["grade", str(source), "--output", str(tmp_path / "o"), "--seconds", "0"]) == 2
    assert "seconds is 0" in capsys.readouterr().err


def test_half_a_character_is_one_error(tmp_path, capsys):
    write(tmp_path / "in.jsonl", [{"answer": "5", "output": "The answer is 5. \ud83d"}])
    out = tmp_path / "out.jsonl"
    assert main(["grade", str(tmp_path / "in.jsonl"), "--output", str(out)]) == 2
    assert "in.jsonl:1: 'output' holds \\ud83d" in capsys.readouterr().err
    assert not out.exists()


def test_unreadable_golds_are_told_and_left_out(tmp_path, capsys):
    rows = [
        {"answer": "", "output": "5"},
        {"answer": [1, 2], "output": "\\boxed{2, 1}"},
        {"answer": "5", "output": "6"},
    ]
    write(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    for grader in ("math-verify", "step_dpo", "scdpo"):
        arguments = [str(tmp_path / "in.jsonl"), "--output", str(out), "--grader", grader]
        assert main(["grade", *arguments, "--workers", "1"]) == 0
        printed = capsys.readouterr().out
        assert "warning: 1 row has an answer that cannot be read (empty?)" in printed
        assert "of 2)" in printed
        assert (read(out)[0]["correct"], read(out)[0]["reason"]) == (False, "unreadable gold")
        if grader == "math-verify":
            assert read(out)[1]["correct"] is True


def test_a_pipe_and_a_link_get_the_rows_and_stay(tmp_path):
    write(tmp_path / "in.jsonl", ROWS[:1])
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("real.jsonl")
    taken: list[str] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    for target in (pipe, link):
        words = ["--output", str(target), "--workers", "1"]
        assert main(["grade", str(tmp_path / "in.jsonl"), *words]) == 0
    reader.join(10)
    assert pipe.is_fifo() and link.is_symlink()
    assert json.loads(taken[0]) == read(tmp_path / "real.jsonl")[0]


def test_an_absurd_limit_is_one_line(tmp_path, capsys):
    write(tmp_path / "in.jsonl", ROWS)
    words = ["--output", str(tmp_path / "out.jsonl"), "--seconds", "1e18"]
    assert main(["grade", str(tmp_path / "in.jsonl"), *words]) == 2
    assert "seconds is 1e+18; give the limit" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
