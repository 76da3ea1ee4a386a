"""`prefopt judge`: files in, verdicts and numbers out."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.cli.main import main
from tests.generate.server import Answer, FakeServer
from tests.integration.runs import write_rows
from tests.judge.judged import between, counted, longer, shown
from tests.tiny import make_model_folder

MINE = [
    {"instruction": "A?", "output": "a long answer", "dataset": "easy"},
    {"instruction": "B?", "output": "b", "dataset": "hard"},
    {"instruction": "C?", "output": "c", "dataset": "hard"},
    {"instruction": "D?", "output": None},
]
BASE = [
    {"instruction": "B?", "output": "basic"},
    {"instruction": "A?", "output": "also"},
    {"instruction": "E?", "output": "e"},
]


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def of(tmp_path: Path, server: FakeServer, *more: str) -> list[str]:
    """The command with its files and its server."""
    command = [
        "judge",
        str(write_rows(tmp_path / "mine.jsonl", MINE)),
        "--output",
        str(tmp_path / "out"),
    ]
    return [*command, "--server", server.url, "--model", "j", *more]


def test_grades_by_turn_and_category(tmp_path, capsys):
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["1?", "2?"], "output": ["x", "y"]},
        {"question_id": 82, "category": "math", "turns": ["3?", "4?"], "output": ["x", "z"]},
    ]
    grades = {"x": "[[8]]", "y": "[[4]]", "z": "well"}
    script = lambda n, _, body: counted(grades[between(shown(body), "answer")])  # noqa: E731
    with FakeServer(script) as server:
        source = write_rows(tmp_path / "mt.jsonl", rows)
        command = ["judge", str(source), "--single", "--server", server.url, "--model", "j"]
        command += ["--output", str(tmp_path / "out"), "--attempts", "2"]
        assert main(command) == 0
        assert len(server.asked) == 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mt: 6.67 of 10 (95% interval 6.00 to 8.00; 3 graded, 1 missing)")
    assert lines[1].startswith("  turn 1: 8.00") and lines[2].startswith("  turn 2: 4.00")
    assert [line.split(":")[0].strip() for line in lines[3:5]] == ["math", "writing"]
    assert lines[5].startswith("without a verdict: 1 rows ('82': no verdict to be read")
    assert lines[6] == (
        "cost: 5 requests (5 replies are new), 500 tokens read, 35 written; 0 refused, 2 unreadable"
    )
    first, second = read(tmp_path / "out" / "verdicts.jsonl")
    assert first == {
        "id": "81",
        "category": "writing",
        "turns": [{"score": 8.0, "text": "[[8]]"}, {"score": 4.0, "text": "[[4]]"}],
    }
    assert second["turns"][1]["score"] is None and second["turns"][1]["text"] == "well"
    facts = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert facts["numbers"]["all"]["value"] == pytest.approx(20 / 3)
    assert facts["numbers"]["by_turn"]["2"] == {
        "value": 4.0, "low": 4.0, "high": 4.0, "graded": 1, "missing": 1,
    }  # fmt: skip
    assert facts["cost"]["tokens"] == 35 and facts["missing"] == 1 and facts["left_out"] == 0
    assert facts["settings"]["target"] == "j" and facts["settings"]["rules"] == "agreed"


def test_win_rates_and_what_could_not_be_compared(tmp_path, capsys):
    pytest.importorskip("sklearn")
    base = write_rows(tmp_path / "base.jsonl", BASE)
    with FakeServer(longer) as server:
        assert main(of(tmp_path, server, "--against", str(base))) == 0
        assert len(server.asked) == 4
        assert main(of(tmp_path, server, "--against", str(base))) == 0, "the same again"
        assert len(server.asked) == 4
    printed = capsys.readouterr().out
    assert "mine: win rate 50.0% (95% interval 0.0 to 100.0%; 2 won, 0 drawn, 2 lost)" in printed
    assert "adjusted for position: 50.0%" in printed and "0 changed with the order" in printed
    assert "  easy: 100.0%" in printed and "  hard: 0.0%" in printed
    assert (
        "  length-controlled: " in printed and "verdicts for the answer shown first: 50%" in printed
    )
    assert "not judged: 2 rows (" in printed and "the baseline has no such question" in printed
    assert "only in the baseline's file: 1 rows" in printed
    assert "4 requests (4 replies are new), 400 tokens read, 28 written" in printed
    assert "4 requests (0 replies are new), 400 tokens read, 28 written" in printed
    rows = read(tmp_path / "out" / "verdicts.jsonl")
    assert [[t["verdict"] for t in row["turns"]] for row in rows] == [["win"], ["loss"], [], []]
    assert [row.get("remark") for row in rows[2:]] == ["the baseline has no such question"] * 2
    assert [s["model"] for s in rows[0]["turns"][0]["seen"]] == ["first", "second"]


def test_other_settings_are_refused_unless_told(tmp_path, capsys):
    base = write_rows(tmp_path / "base.jsonl", BASE)
    with FakeServer(longer) as server:
        assert main(of(tmp_path, server, "--against", str(base))) == 0
        before = (tmp_path / "out" / "judgement.json").read_bytes()
        capsys.readouterr()
        assert main(of(tmp_path, server, "--against", str(base), "--order", "random")) == 2
        error = capsys.readouterr().err
        assert "order both / random" in error and "--overwrite" in error
        assert (tmp_path / "out" / "judgement.json").read_bytes() == before
        more = ("--order", "random", "--overwrite")
        assert main(of(tmp_path, server, "--against", str(base), *more)) == 0
        assert len(server.asked) == 4, "what was asked in both orders serves for one"
    facts = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert facts["settings"]["order"] == "random" and facts["numbers"]["adjusted"] is None


def test_files_without_a_question_in_common_are_an_error(tmp_path, capsys):
    base = write_rows(tmp_path / "base.jsonl", BASE[2:])
    with FakeServer(longer) as server:
        assert main(of(tmp_path, server, "--against", str(base))) == 2
    assert "no row can be compared; first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_template_and_rules_of_ones_own(tmp_path, capsys):
    base, mine = write_rows(tmp_path / "base.jsonl", BASE), tmp_path / "t.txt"
    mine.write_text("{question} m={answer_1} M={answer_2}")
    script = lambda n, _, body: counted("m" if "m=a " in shown(body) else "M")  # noqa: E731
    with FakeServer(script) as server:
        more = ("--against", str(base), "--template", str(mine), "--rules", "bare")
        assert main(of(tmp_path, server, *more)) == 0
        texts = {shown(body) for body in server.asked}
    assert "A? m=a long answer M=also" in texts and "A? m=also M=a long answer" in texts
    assert "win rate" in capsys.readouterr().out


def test_a_local_judge_that_cannot_judge_gives_nothing_but_missing(tmp_path, capsys):
    folder = make_model_folder(tmp_path / "m", "llama", max_position_embeddings=4096)
    source = write_rows(tmp_path / "mine.jsonl", MINE[:1])
    command = ["judge", str(source), "--single", "--judge-model", str(folder), "--attempts", "1"]
    command += ["--max-new-tokens", "3", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert (
        "mine: no grade (1 missing)" in printed
        and "cost: 1 requests (1 replies are new)" in printed
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --single --against is required"),
        (["--single"], "who judges? give --server URL"),
        (["--single", "--server", "http://localhost:1/v1"], "belong together"),
        (["--single", "--judge-model", "m", "--order", "both"], "--order belongs to --against"),
        (["--single", "--judge-model", "m", "--patience", "1"], "--patience belongs to --server"),
    ],
)
def test_options_without_meaning_are_errors(tmp_path, capsys, words, message):
    source = write_rows(tmp_path / "mine.jsonl", MINE)
    assert main(["judge", str(source), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path):
    rows = [{"prompt": f"{k}?", "output": "o"} for k in range(300)]
    script = lambda *_: Answer(body=counted("[[6]]"), delay=0.01)  # noqa: E731
    with FakeServer(script) as server:
        source, out = write_rows(tmp_path / "a.jsonl", rows), tmp_path / "out"
        command = [
            sys.executable,
            "-m",
            "prefopt",
            "judge",
            str(source),
            "--single",
            "--model",
            "j",
        ]
        command += ["--server", server.url, "--output", str(out), "--concurrency", "2"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            while len(server.asked) < 80:
                assert child.poll() is None
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        assert not (out / "judgement.json").exists()
        with sqlite3.connect(out / "judgement.sqlite") as connection:
            (held,) = connection.execute("SELECT count(*) FROM completions").fetchone()
        connection.close()
        asked = len(server.asked)
        assert 60 < held <= asked < 300
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(server.asked) - asked == 300 - held
    assert f"300 requests ({300 - held} replies are new)" in done.stdout
    assert len(read(out / "verdicts.jsonl")) == 300
