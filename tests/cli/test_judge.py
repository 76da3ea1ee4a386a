"""`prefopt judge`: files in, verdicts and numbers out."""

import json
import os
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
        "cost of these verdicts: 5 requests (5 replies are new), 500 tokens read, 35 written; 0 refused, 2 unreadable"
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
    two = facts["numbers"]["by_turn"]["2"]
    assert (two["value"], two["graded"], two["missing"]) == (4.0, 1, 1)
    assert facts["cost"] == {
        "requests": 5,
        "refused": 0,
        "unread": 2,
        "prompt_tokens": 500,
        "tokens": 35,
        "prompts_uncounted": 0,
        "uncounted": 0,
        "last_run": {"new": 5, "retries": 0, "timeouts": 0},
        "journal": {"completions": 5, "prompt_tokens": 500, "tokens": 35},
    }
    assert facts["missing"] == 1 and facts["left_out"] == 0
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
    assert "the journal holds" not in printed and "further attempts" not in printed
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
    printed = capsys.readouterr().out
    assert (
        "cost of these verdicts: 2 requests (0 replies are new), 200 tokens read, 14 w" in printed
    )
    assert (
        "the journal holds 4 replies, those to other settings too: 400 tokens read, 28 written, as far"
        in printed
    )
    facts = json.loads((tmp_path / "out" / "judgement.json").read_text())
    assert facts["settings"]["order"] == "random" and facts["numbers"]["adjusted"] is None
    assert facts["cost"]["requests"] == 2 and facts["cost"]["journal"]["completions"] == 4


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


def test_a_judge_without_one_verdict_is_an_error(tmp_path, capsys):
    folder = make_model_folder(tmp_path / "m", "llama", max_position_embeddings=4096)
    source = write_rows(tmp_path / "mine.jsonl", MINE[:1])
    command = ["judge", str(source), "--single", "--judge-model", str(folder), "--attempts", "1"]
    command += ["--max-new-tokens", "3", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "mine.jsonl: not one verdict (1 missing), so nothing is written; first '" in error
    assert "no verdict to be read by the rules 'agreed'; cut at 3 tokens in \"" in error
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["judgement.sqlite"], "what it wrote is kept, and nothing passes for a result"


def test_nothing_but_refusals_is_an_error_and_an_earlier_judgement_stays(tmp_path, capsys):
    refusing: list[int] = []
    script = lambda *_: Answer(400, "no seed here") if refusing else counted("[[7]]")  # noqa: E731
    with FakeServer(script) as server:
        assert main(of(tmp_path, server, "--single")) == 0
        before = (tmp_path / "out" / "judgement.json").read_bytes()
        refusing.append(1)
        assert main(of(tmp_path, server, "--single", "--seed", "1", "--overwrite")) == 2
    error = capsys.readouterr().err
    assert "not one verdict (3 missing)" in error and "refused: HTTP 400 (no seed here)" in error
    assert (tmp_path / "out" / "judgement.json").read_bytes() == before


def test_one_order_with_verdicts_is_enough(tmp_path, capsys):
    """Of both orders only one can be read: there are single verdicts."""
    base = write_rows(tmp_path / "base.jsonl", BASE[1:2])
    script = lambda n, _, body: counted(  # noqa: E731
        "[[1]]" if between(shown(body), "answer_1") == "also" else "well"
    )
    with FakeServer(script) as server:
        assert main(of(tmp_path, server, "--against", str(base), "--attempts", "1")) == 0
    assert "mine: win rate 0.0%" in capsys.readouterr().out


def test_a_file_without_outputs_is_an_error(tmp_path, capsys):
    source = write_rows(tmp_path / "mine.jsonl", MINE[3:])
    command = ["judge", str(source), "--single", "--server", "http://localhost:1/v1"]
    assert main([*command, "--model", "j", "--output", str(tmp_path / "out")]) == 2
    assert "mine.jsonl: no row has an output" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [Answer(403, "flagged"), Answer(500, "boom")], ids=["403", "500"])
def test_a_bad_row_blocks_neither_this_judgement_nor_its_repetition(
    tmp_path, capsys, monkeypatch, bad
):
    monkeypatch.setattr("prefopt.generate.server._FIRST_WAIT", 0.02)
    script = lambda n, _, body: (  # noqa: E731
        bad if between(shown(body), "answer") == "c" else counted("[[7]]")
    )
    with FakeServer(script) as server:
        for new in (2, 0, 0):
            assert main(of(tmp_path, server, "--single", "--patience", "0.2")) == 0
            printed = capsys.readouterr().out
            assert "mine: 7.00 of 10" in printed and "2 graded, 1 missing" in printed
            assert f"3 requests ({new} replies are new)" in printed and "1 refused" in printed


def test_what_the_server_does_not_say_is_unknown(tmp_path, capsys):
    silent = counted("[[7]]")
    del silent["usage"]
    some: list[int] = []
    script = lambda *_: silent if not some or some.pop() else counted("[[8]]")  # noqa: E731
    with FakeServer(script) as server:
        assert main(of(tmp_path, server, "--single")) == 0
        assert "are new), tokens read: unknown (not counted), written: unknown" in (
            capsys.readouterr().out
        )
        cost = json.loads((tmp_path / "out" / "judgement.json").read_text())["cost"]
        assert (cost["prompt_tokens"], cost["tokens"], cost["uncounted"]) == (None, None, 3)
        some += [1, 1, 0]
        assert main(of(tmp_path, server, "--single", "--seed", "1", "--overwrite")) == 0
    printed = capsys.readouterr().out
    assert (
        "100 tokens read (not those of 2 replies, which were not counted), 7 written (not"
        in printed
    )


def test_what_was_tried_again_is_counted_in_the_run_that_did_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prefopt.generate.server._FIRST_WAIT", 0.02)
    script = lambda n, *_: Answer(500, "flaky") if n <= 2 else counted("[[7]]")  # noqa: E731
    out = tmp_path / "out" / "judgement.json"
    with FakeServer(script) as server:
        assert main(of(tmp_path, server, "--single")) == 0
        assert len(server.asked) == 5
        assert "in this run: 2 further attempts; 0 brought no reply in time" in (
            capsys.readouterr().out
        )
        last = json.loads(out.read_text())["cost"]["last_run"]
        assert last == {"new": 3, "retries": 2, "timeouts": 0}
        assert main(of(tmp_path, server, "--single")) == 0
        assert "further attempts" not in capsys.readouterr().out
        last = json.loads(out.read_text())["cost"]["last_run"]
        assert last == {"new": 0, "retries": 0, "timeouts": 0}


def test_a_server_that_has_moved_is_not_asked_again(tmp_path, capsys):
    script = lambda *_: counted("[[7]]")  # noqa: E731
    with FakeServer(script) as old:
        assert main(of(tmp_path, old, "--single")) == 0
        assert "--known-as" not in capsys.readouterr().err
    with FakeServer(script) as new:
        assert main(of(tmp_path, new, "--single")) == 2
        error = capsys.readouterr().err
        assert (
            "holds 3 texts by another model or address, which are not used; if this is the same model at a new "
            "address, give its first one with --known-as" in error
        )
        assert f"model j at {old.url} / j at {new.url}" in error and not new.asked
        assert error.endswith(
            f"; if this is the same model at a new address, give --known-as {old.url}\n"
        )
        (tmp_path / "out" / "judgement.json").unlink()  # as after a kill
        assert main(of(tmp_path, new, "--single", "--known-as", old.url)) == 0
        assert new.asked == [] and "holds" not in capsys.readouterr().err
        assert main(of(tmp_path, new, "--single", "--known-as", old.url)) == 0
        command = of(tmp_path, new, "--single", "--known-as", old.url, "--overwrite")
        command[command.index("j")] = "k"
        assert main(command) == 0
        assert len(new.asked) == 3, "another model at that address is asked"


def test_a_server_that_moves_twice_is_known_by_its_first_address(tmp_path, capsys):
    script = lambda *_: counted("[[7]]")  # noqa: E731
    with FakeServer(script) as first, FakeServer(script) as second, FakeServer(script) as third:
        assert main(of(tmp_path, first, "--single")) == 0
        facts = json.loads((tmp_path / "out" / "judgement.json").read_text())
        assert "known_as" not in facts
        assert main(of(tmp_path, second, "--single", "--known-as", first.url)) == 0
        facts = json.loads((tmp_path / "out" / "judgement.json").read_text())
        assert (facts["known_as"], facts["settings"]["server"]) == (first.url, second.url)
        capsys.readouterr()
        assert main(of(tmp_path, third, "--single", "--known-as", second.url)) == 2
        assert f"address, give --known-as {first.url}\n" in capsys.readouterr().err
        assert main(of(tmp_path, third, "--single", "--known-as", first.url)) == 0
        assert main(of(tmp_path, third, "--single", "--known-as", first.url, "--seed", "1")) == 2
        error = capsys.readouterr().err
        assert "seed 0 / 1" in error and "--known-as" not in error, "the server is the same"
        assert not second.asked and not third.asked


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (Answer(500, "boom"), "look at the server's log"),
        (counted("", message={"reasoning": "hm"}), "start the server without the reasoning parser"),
    ],
    ids=["500", "reasoning"],
)
def test_a_server_that_fails_at_all_rows_ends_the_judgement(
    tmp_path, capsys, monkeypatch, bad, remedy
):
    """It answers short questions, and it graded half of the rows before."""
    monkeypatch.setattr("prefopt.generate.server._FIRST_WAIT", 0.02)
    rows = [{"prompt": f"{k}?", "output": "o"} for k in range(40)]
    graded: list[int] = []

    def script(_, __, body):
        if shown(body) == "Say yes." or len(graded) < 20:
            graded.append(1)
            return counted("[[7]]")
        return bad

    command = ["judge", str(write_rows(tmp_path / "a.jsonl", rows)), "--single", "--model", "j"]
    command += ["--output", str(tmp_path / "out"), "--patience", "0.2", "--concurrency", "4"]
    with FakeServer(script) as server:
        for _ in range(2):
            assert main([*command, "--server", server.url]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert (
                remedy in error and "6 requests failed for good, and none was answered in" in error
            )
            assert (
                "(20 of " in error and "requests are left; the same command goes on with" in error
            )
    assert not (tmp_path / "out" / "judgement.json").exists()


def test_two_commands_do_not_pay_twice(tmp_path, capsys):
    """The second one is refused while the first one waits for its replies."""
    second: list[int] = []

    def script(number, _, body):
        if number == 1:
            second.append(main(command))
        return counted("[[7]]")

    with FakeServer(script) as server:
        command = of(tmp_path, server, "--single")
        assert main(command) == 0
        assert second == [2] and len(server.asked) == 3
    assert f"out: process {os.getpid()} is judging here; wait for it" in capsys.readouterr().err
    assert not (tmp_path / "out" / ".lock").exists()


def test_further_fields_are_sent_and_are_part_of_the_judge(tmp_path, capsys):
    with FakeServer(lambda *_: counted("[[7]]")) as server:
        more = ("--extra-body", '{"temperature": null, "top_k": 5}')
        assert main(of(tmp_path, server, "--single")) == 0
        assert main(of(tmp_path, server, "--single", *more)) == 2
        assert "extra_body none / temperature=None,top_k=5" in capsys.readouterr().err
        assert main(of(tmp_path, server, "--single", *more, "--overwrite")) == 0
        assert "temperature" not in server.asked[-1] and server.asked[-1]["top_k"] == 5
    facts = json.loads((tmp_path / "out" / "judgement.json").read_text())["settings"]
    assert facts["extra_body"] == {"temperature": None, "top_k": 5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --single --against is required"),
        (["--single"], "who judges? give --server URL"),
        (["--single", "--server", "http://localhost:1/v1"], "belong together"),
        (["--single", "--judge-model", "m", "--order", "both"], "--order belongs to --against"),
        (["--single", "--judge-model", "m", "--patience", "1"], "--patience belongs to --server"),
        (["--single", "--judge-model", "m", "--known-as", "u"], "--known-as belongs to --server"),
        (
            ["--single", "--server", "http://h/v1", "--model", "m", "--extra-body", "[1]"],
            "--extra-body is '[1]'; give a JSON object in single quotes",
        ),
        (
            ["--single", "--server", "http://h/v1", "--model", "m", "--extra-body", "{x}"],
            "--extra-body is '{x}'; give a JSON object",
        ),
        (
            ["--single", "--server", "http://h/v1", "--model", "m", "--extra-body", '{"model": 1}'],
            "extra_body has 'model', which says who is asked or what; leave it out",
        ),
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
