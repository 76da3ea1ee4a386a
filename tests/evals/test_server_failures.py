"""`prefopt eval` on a server in trouble: its failures are no wrong answers."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from prefopt.cli.main import main
from tests.generate.server import Answer, Body, FakeServer, chat
from tests.integration.runs import read_json, write_rows

pytestmark = pytest.mark.slow
SUMS = 40


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.generate.server._FIRST_WAIT", 0.02)


def number_of(body: Body) -> int | None:
    """Of the sum that is asked for; None for another question."""
    found = re.search(r"What is (\d+)", str(body["messages"][-1]["content"]))
    return None if found is None else int(found[1])


def right(a: int) -> Body:
    return chat(f"The answer is \\boxed{{{a + 1}}}")


def evaluate(folder: Path, server: FakeServer, count: int = SUMS) -> int:
    rows = [{"question": f"What is {a} + 1?", "answer": f"#### {a + 1}"} for a in range(count)]
    file = write_rows(folder / "sums.jsonl", rows)
    words = ["--output", str(folder / "out"), "--grader", "scdpo", "--patience", "0.3"]
    return main(["eval", "tiny", str(file), "--server", server.url, *words])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            Answer(500, "boom"),
            "s; look at the server's log, and start again: what was answered is kept",
        ),
        (chat("", message={"reasoning": "hm"}), "start the server without the reasoning parser"),
        (Answer(body='{"choices": ['), "check that the server speaks the OpenAI protocol"),
        (Answer(429, "busy"), "s; lower concurrency, or raise patience, and start again"),
    ],
    ids=["500", "reasoning", "truncated", "429"],
)
def test_problems_that_are_left_end_the_run_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: Answer | Body, message: str
) -> None:
    """The server answers short questions and the first ten problems, and recovers."""
    broken, answered = [True], set[int]()

    def script(_: int, __: str, body: Body) -> Answer | Body:
        a = number_of(body)
        if a is None:
            return chat("yes")
        if not broken or a < 10:
            answered.add(a)
            return right(a)
        while len(answered) < 10:
            time.sleep(0.01)
        time.sleep(0.2)  # so that those answers are there first
        return bad

    with FakeServer(script) as server:
        assert evaluate(tmp_path, server) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and "requests failed for good, and none was answered in" in error
        assert "(30 of 40 requests are left; the same command goes on with them)" in error
        assert not (tmp_path / "out" / "evaluation.json").exists()
        broken.clear()
        asked = len(server.asked)
        assert evaluate(tmp_path, server) == 0
        assert len(server.asked) - asked == 30
    facts = read_json(tmp_path / "out" / "evaluation.json")
    assert (facts["correct"], facts["total"], facts["failed"]) == (40, 40, 0)


def test_few_of_them_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(_: int, __: str, body: Body) -> Answer | Body:
        a = number_of(body)
        return chat("yes") if a is None else Answer(500, "boom") if a == 2 else right(a)

    with FakeServer(script) as server:
        for _ in range(2):
            assert evaluate(tmp_path, server, 8) == 0
            said = capsys.readouterr()
            assert "1 problems got no solution and count as wrong, first 'sums-3'" in said.out
            assert (
                "1 requests failed for good and have no text, the next run asks again: record 'sums-3': failed for"
                in said.err
            )
    facts = read_json(tmp_path / "out" / "evaluation.json")
    assert (facts["correct"], facts["failed"], facts["total"]) == (7, 1, 8)


def test_a_server_that_answers_one_request_at_a_time_loses_none(tmp_path: Path) -> None:
    servers: list[FakeServer] = []

    def script(_: int, __: str, body: Body) -> Answer | Body:
        a = number_of(body)
        assert a is not None
        busy = servers[0].busy > 1
        return (
            Answer(429, "busy", {"retry-after": "0.02"})
            if busy
            else Answer(body=right(a), delay=0.03)
        )

    with FakeServer(script) as server:
        servers.append(server)
        assert evaluate(tmp_path, server, 30) == 0
    assert read_json(tmp_path / "out" / "evaluation.json")["correct"] == 30


def test_a_server_that_refuses_every_problem_says_nothing_about_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(lambda *_: Answer(400, "unsupported content type")) as server:
        assert evaluate(tmp_path, server, 3) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        "sums.jsonl: not one of 3 problems got a solution, so nothing is written; first 'sum"
        in error
    )
    assert "HTTP 400 (unsupported content type)" in error
    assert not (tmp_path / "out" / "evaluation.json").exists()
