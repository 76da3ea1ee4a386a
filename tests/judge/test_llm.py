"""A judge behind a real HTTP server: verdicts, failures, and a run that is killed."""

import signal
import subprocess
import sys
from typing import Any, cast

import pytest

from prefopt.errors import ConfigError, JudgeError
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.llm import LlmLocator, judge_prompt, needs_diagram
from prefopt.judge.oracle import OracleLocator
from prefopt.models.load import load_model
from tests.generate.server import Answer, FakeServer, chat
from tests.tiny import make_model_folder

TEXT = (
    "Let's think step by step.\nStep 1: 3 + 4 = 7\n\n\nStep 2: 7 - 2 = 4\nStep 3: The answer is 4."
)
DECISION = "Final Decision\nStep 1: correct; Step 2: incorrect"


def solution(id="a", *, question="3 + 4 - 2?", gold="3 + 4 = 7, 7 - 2 = 5", text=TEXT):
    return WrongSolution(id, question, gold, "5", text)


def judge(script, solutions, journal=None, *, progress=None, right=False, **options):
    with FakeServer(script) as server:
        writer = OpenAIGenerator("judge", base_url=server.url, patience=3)
        locator = LlmLocator(writer, **options)
        return locator.locate(solutions, journal=journal, progress=progress, right=right), server


def test_the_judge_sees_problem_solution_and_answer():
    (found,), server = judge(lambda *_: chat(DECISION), [solution()])
    assert found == Location(2, "found", DECISION)
    (message,) = server.asked[0]["messages"]
    text = message["content"]
    assert message["role"] == "user"
    assert (
        "Problem:\n3 + 4 - 2?\n\nCorrect solution:\n3 + 4 = 7, 7 - 2 = 5\n\nWrong answer:\n" in text
    )
    assert text.endswith("Step 1: 3 + 4 = 7\nStep 2: 7 - 2 = 4\nStep 3: The answer is 4.")
    assert server.asked[0]["temperature"] == 0.0 and server.asked[0]["max_tokens"] == 1024


def test_without_a_worked_solution_the_result_is_shown():
    (message,) = judge_prompt(solution(gold=""))
    assert "Correct result: 5\n\nWrong answer:" in message.content
    assert "Correct solution" not in message.content


@pytest.mark.parametrize(
    ("reply", "rules", "expected"),
    [
        (chat("Step 1: neutral; Step 2: incorrect"), "official", (1, "found")),
        (chat("Step 1: neutral; Step 2: incorrect"), "corrected", (2, "found")),
        (chat("Step 1: correct; Step 2: correct"), "official", (None, "none")),
        (chat("Step 1: correct; Step 2: correct"), "corrected", (None, "none")),
        (chat("I cannot say."), "corrected", (None, "undecided")),
        (chat("Step 4: incorrect"), "corrected", (None, "undecided")),
        (chat("Step 4: incorrect"), "official", (None, "undecided")),
        (chat("Step 0: incorrect"), "corrected", (None, "undecided")),
        (Answer(400, "too long"), "corrected", (None, "failed")),
    ],
)
def test_every_reply_has_its_verdict(reply, rules, expected):
    (found,), _ = judge(lambda *_: reply, [solution()], rules=rules)
    assert (found.number, found.verdict) == expected


def test_a_step_that_is_not_there_and_a_cut_reply_are_said():
    (found,), _ = judge(lambda *_: chat("Step 4: incorrect"), [solution()])
    assert found.remark.startswith("names step 4, which the solution does not have: ")
    (found,), _ = judge(lambda *_: chat("Let us see", "length"), [solution()])
    assert found.remark == "no verdict to be read (no verdict); cut at 1024 tokens: Let us see"


def test_what_the_judge_cannot_see_is_not_asked():
    solutions = [
        solution("a", text="The answer is 4."),
        solution("b", question="In the diagram, which is easy, find x."),
        solution("c", question="In the diagram [asy]draw((0,0));[/asy] find x."),
    ]
    found, server = judge(lambda *_: chat(DECISION), solutions, skip_diagrams=True)
    assert [x.verdict for x in found] == ["undecided", "undecided", "found"]
    assert found[0].remark == "not asked: the solution has no numbered steps"
    assert len(server.asked) == 1
    assert not needs_diagram("An easy one.") and needs_diagram("See the Diagram.")


def test_unreadable_verdicts_are_asked_again_and_progress_reaches_all(tmp_path):
    script = lambda n, *_: chat("hm" if n <= 3 else DECISION)  # noqa: E731
    seen = []
    with Journal(tmp_path / "j.sqlite") as journal:
        found, server = judge(
            script,
            [solution("a"), solution("b")],
            journal,
            attempts=3,
            sampling=Sampling(temperature=0.5, purpose="judge"),
            progress=lambda done, total: seen.append((done, total)),
        )
        assert journal.count() == 5
    assert [x.verdict for x in found] == ["found", "found"]
    assert len(server.asked) == 5 and len({b["seed"] for b in server.asked}) == 5
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)


def test_a_greedy_judge_is_asked_again_at_another_temperature():
    script = lambda n, *_: chat("hm")  # noqa: E731
    (found,), server = judge(script, [solution()], attempts=3)
    assert [b["temperature"] for b in server.asked] == [0.0, 0.7, 0.7]
    assert found == Location(None, "undecided", "no verdict to be read (no verdict): hm")
    _, server = judge(script, [solution()], attempts=2, sampling=Sampling(temperature=0.2))
    assert [b["temperature"] for b in server.asked] == [0.2, 0.2]


def test_of_right_solutions_the_judge_is_told_that_they_are_right():
    reply = chat("Step 1: correct; Step 2: correct; Step 3: neutral")
    (found,), server = judge(lambda *_: reply, [solution()], right=True)
    assert found.verdict == "none"
    text = server.asked[0]["messages"][0]["content"]
    assert "Its final result is right." in text and "\n\nAnswer:\nLet's" in text
    assert "Wrong answer" not in text and "ends in a wrong result" not in text
    (found,), _ = judge(lambda *_: chat(DECISION), [solution()], right=True)
    assert (found.number, found.verdict) == (2, "found")


def test_what_a_local_judge_cannot_read_is_undecided(tmp_path):
    folder = make_model_folder(tmp_path, "llama", max_position_embeddings=2048)
    loaded = load_model(str(folder))
    writer = LocalGenerator(loaded.model, loaded.tokenizer)
    solutions = [solution("long", text=TEXT + " so 4" * 2000), solution("short")]
    sampling = Sampling(max_new_tokens=2, purpose="judge")
    found = LlmLocator(writer, sampling=sampling).locate(solutions, journal=None)
    assert found[0] == Location(None, "undecided", "not asked: too long for the judge's context")
    assert found[1].remark.startswith("no verdict to be read")


def test_a_second_run_asks_nothing_but_what_failed(tmp_path):
    script = lambda n, *_: Answer(422, "no") if n == 1 else chat(DECISION)  # noqa: E731
    solutions = [solution(f"s{k}") for k in range(5)]
    with FakeServer(script) as server, Journal(tmp_path / "j.sqlite") as journal:
        locator = LlmLocator(OpenAIGenerator("judge", base_url=server.url))
        first = locator.locate(solutions, journal=journal)
        second = locator.locate(solutions, journal=journal)
    assert sorted(x.verdict for x in first) == ["failed"] + ["found"] * 4
    assert [x.verdict for x in second] == ["found"] * 5
    assert len(server.asked) == 6


def test_a_server_that_cannot_be_used_ends_the_run():
    with pytest.raises(JudgeError, match="set OPENAI_API_KEY"):
        judge(lambda *_: Answer(401, ""), [solution()])


def test_wrong_settings_are_named():
    writer = OpenAIGenerator("judge", base_url="http://localhost/v1")
    with pytest.raises(ConfigError, match="attempts is 0; use 1 or more"):
        LlmLocator(writer, attempts=0)
    with pytest.raises(ConfigError, match="rules is 'mine'; use official or corrected"):
        LlmLocator(writer, rules=cast("Any", "mine"))


def test_the_oracle_knows():
    oracle = OracleLocator(lambda s: {"a": 2}.get(s.id))
    found = oracle.locate([solution("a"), solution("b")], journal=None)
    assert found == [Location(2, "found"), Location(None, "none")]


JUDGING = """
import sys
from prefopt.generate.journal import Journal
from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.base import WrongSolution
from prefopt.judge.llm import LlmLocator
text = "Step 1: 1 + 1 = 3"
solutions = [WrongSolution(f"s{k}", "1 + 1?", "", "2", text) for k in range(200)]
with Journal(sys.argv[2]) as journal:
    locator = LlmLocator(OpenAIGenerator("judge", base_url=sys.argv[1], concurrency=4))
    found = locator.locate(solutions, journal=journal, progress=lambda d, n: print(d, flush=True))
    print(sorted({x.verdict for x in found}), journal.count(), flush=True)
"""


@pytest.mark.slow
def test_a_killed_judge_goes_on_where_it_was(tmp_path):
    path = tmp_path / "build.sqlite"
    script = lambda *_: Answer(body=chat("Step 1: incorrect"), delay=0.005)  # noqa: E731
    with FakeServer(script) as server:
        command = [sys.executable, "-c", JUDGING, server.url, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            while (reported := int(child.stdout.readline())) < 60:
                pass
            child.send_signal(signal.SIGKILL)
        with Journal(path) as journal:
            held = journal.count()
        assert reported <= held < 200
        asked = len(server.asked)
        assert held <= asked <= held + 8
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == str(held)
        assert done.stdout.splitlines()[-1] == "['found'] 200"
        assert len(server.asked) == asked + 200 - held
