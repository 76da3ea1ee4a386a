"""`prefopt generate`: questions in, answers out, turn by turn."""

import json
import os
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.errors import RecordError
from prefopt.judge.outputs import read_outputs
from tests.generate.server import Answer, FakeServer, chat
from tests.integration.runs import write_rows
from tests.tiny import make_model_folder

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["One?", "Two?"]},
    {"instruction": "I?", "output": "of another model", "dataset": "d"},
    {"id": "m", "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "P?"}]},
]


def echo(_: int, __: str, body):
    """The model repeats how much it was told."""
    return chat(f"{len(body['messages'])}:{body['messages'][-1]['content']}")


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_turns_are_answered_one_after_the_other(tmp_path, capsys):
    out = tmp_path / "new" / "out.jsonl"
    with FakeServer(echo) as server:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        command += ["--server", server.url, "--output", str(out), "--temperature", "0.5"]
        assert main(command) == 0
        assert "3 rows, 28 tokens; 4 texts are new" in capsys.readouterr().out
        assert len(server.asked) == 4 and server.asked[0]["temperature"] == 0.5
        assert main(command) == 0, "the same command again"
        assert "0 texts are new" in capsys.readouterr().out and len(server.asked) == 4
    talk, plain, messages = read(out)
    assert talk["id"] == "81" and talk["prompt"] == ["One?", "Two?"] and talk["tokens"] == 14
    assert talk["output"] == ["1:One?", "3:Two?"] and talk["finish_reason"] == ["stop", "stop"]
    assert talk["category"] == "writing" and talk["generator"] == "tiny"
    assert plain["output"] == "1:I?" and plain["instruction"] == plain["prompt"] == "I?"
    assert messages["output"] == "2:P?" and messages["prompt"] == ROWS[2]["prompt"]
    assert [e.answers for e in read_outputs(out)] == [("1:One?", "3:Two?"), ("1:I?",), ("2:P?",)]


def test_other_settings_do_not_replace_answers_unless_told(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    with FakeServer(echo) as server:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        command += ["--server", server.url, "--output", str(out)]
        assert main(command) == 0
        before = out.read_text()
        assert main([*command, "--system", "Be brief."]) == 2
        assert "(then / now: system none / Be brief.)" in capsys.readouterr().err
        assert out.read_text() == before
        assert main([*command, "--system", "Be brief.", "--overwrite"]) == 0
    assert read(out)[1]["output"] == "2:I?" and read(out)[2]["output"] == "2:P?"
    (tmp_path / "mine.jsonl").write_text("mine")
    assert main([*command[:-1], str(tmp_path / "mine.jsonl")]) == 2
    assert "nothing says how it was made" in capsys.readouterr().err
    assert (tmp_path / "mine.jsonl").read_text() == "mine"


def test_a_refused_question_has_no_output_and_is_asked_again(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    script = lambda n, p, body: (  # noqa: E731
        Answer(400, "too long") if n == 1 else echo(n, p, body)
    )
    with FakeServer(script) as server:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        command += ["--server", server.url, "--output", str(out), "--concurrency", "1"]
        assert main(command) == 0
        assert "1 rows have no output, the next run asks again: '81'" in capsys.readouterr().out
        first = read(out)[0]
        assert first["output"] is None and first["remark"] == "HTTP 400 (too long)"
        assert main(command) == 0
    assert [row["output"] is None for row in read(out)] == [False] * 3


def test_a_file_without_one_answer_is_not_written(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    with FakeServer(lambda *_: Answer(400, "unknown field seed")) as server:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        command += ["--server", server.url, "--output", str(out)]
        assert main(command) == 2
        assert (
            "not one of 3 questions was answered, so nothing is written; first '81': HTTP 400 (u"
            in (capsys.readouterr().err)
        )
    assert not out.exists() and not (tmp_path / "out.settings.json").exists()
    with FakeServer(
        lambda n, p, b: echo(n, p, b) if "seed" not in b else Answer(400, "s")
    ) as server:
        command[command.index("--server") + 1] = server.url
        assert main([*command, "--extra-body", '{"seed": null}']) == 0
    settings = json.loads((tmp_path / "out.settings.json").read_text())["settings"]
    assert settings["extra_body"] == {"seed": None}


def test_what_is_not_counted_and_what_was_tried_again_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prefopt.generate.server._FIRST_WAIT", 0.02)
    silent = chat("hm")
    del silent["usage"]
    script = lambda n, *_: Answer(503, "busy") if n == 1 else silent  # noqa: E731
    out = tmp_path / "out.jsonl"
    with FakeServer(script) as server:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        assert main([*command, "--server", server.url, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 rows, tokens unknown (not counted); 4 texts are new" in printed
    assert "in this run: 1 further attempts; 0 brought no reply in time" in printed


def test_a_server_that_has_moved_and_a_second_command(tmp_path, capsys):
    out, second = tmp_path / "out.jsonl", []

    def script(number, path, body):
        if number == 1:
            second.append(main(command))
        return echo(number, path, body)

    with FakeServer(script) as old:
        command = ["generate", str(write_rows(tmp_path / "q.jsonl", ROWS)), "--model", "tiny"]
        command += ["--output", str(out), "--server", old.url]
        assert main(command) == 0
        assert second == [2] and len(old.asked) == 4
        error = capsys.readouterr().err
        assert f"process {os.getpid()} is writing out.jsonl; wait for it, or give another" in error
        out.unlink()
        (tmp_path / "out.settings.json").unlink()
    with FakeServer(echo) as new:
        command[-1] = new.url
        assert main([*command, "--known-as", old.url]) == 0
        assert new.asked == [] and "--known-as" not in capsys.readouterr().err
        assert json.loads((tmp_path / "out.settings.json").read_text())["known_as"] == old.url
        assert main(command) == 2
        assert f"at a new address, give --known-as {old.url}\n" in capsys.readouterr().err
        assert main([*command, "--overwrite"]) == 0
        assert "holds 4 texts by another model or address" in capsys.readouterr().err


def test_a_local_model_answers(tmp_path, capsys):
    folder = make_model_folder(tmp_path / "m", "llama")
    rows = [{"prompt": "What is 3 + 4?"}, {"prompt": "x " * 600}]
    command = ["generate", str(write_rows(tmp_path / "q.jsonl", rows)), "--model", str(folder)]
    command += ["--output", str(tmp_path / "out.jsonl"), "--max-new-tokens", "4"]
    assert main(command) == 0
    short, long = read(tmp_path / "out.jsonl")
    assert short["generator"] == "m" and short["tokens"] > 0 and isinstance(short["output"], str)
    assert long["output"] is None and "leaves no room in the model's context" in long["remark"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-size", "2", "--server", "http://localhost:1/v1"], "--batch-size belongs to"),
        (["--timeout", "2"], "--timeout belongs to --server URL"),
        (["--limit", "-1"], "--limit -1: give 1 or more"),
        (["--limit", "0"], "--limit 0: give 1 or more"),
        (["--temperature", "-1", "--server", "http://localhost:1/v1"], "temperature is -1.0"),
    ],
)
def test_options_without_meaning_are_errors(tmp_path, capsys, words, message):
    source = write_rows(tmp_path / "q.jsonl", ROWS)
    command = ["generate", str(source), "--model", "m", "--output", str(tmp_path / "o.jsonl")]
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert main([*command[:4], "--output", str(source)]) == 2


def test_conversations_need_a_chat_template(tmp_path, capsys):
    source = write_rows(tmp_path / "q.jsonl", ROWS[:1])
    command = ["generate", str(source), "--model", "m", "--server", "http://localhost:1/v1"]
    command += ["--endpoint", "completions", "--output", str(tmp_path / "o.jsonl")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "q.jsonl:1: a conversation" in error and RecordError.__name__ not in error
