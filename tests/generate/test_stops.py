"""Servers that do not say which stop string ended a text, or hide special tokens, are refused where it matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.agents.interpreted import Attempt, Solving, solve
from prefopt.build.controlled import ControlledSettings, build_controlled_pairs
from prefopt.build.grading import one_by_one
from prefopt.errors import JudgeError
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.generate.openai import OpenAIGenerator
from prefopt.generate.schedule import Rising, constant
from prefopt.sandbox.base import Limits
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import END_OF_BLOCK, END_OF_MESSAGE
from tests.build.scripted import RIGHT, WRONG, Task, is_right
from tests.generate.server import Answer, Body, FakeServer, plain

STOPS = ("\n",)
NEEDED = Sampling(temperature=1.0, stop=STOPS, needs_stops=True)
SILENT = r"record 'a': the server does not say which stop string ended a text \(stop_reason or"


def writer(server: FakeServer) -> OpenAIGenerator:
    return OpenAIGenerator("tiny", base_url=server.url, endpoint="completions", patience=5)


def ask(answer: Body, sampling: Sampling) -> Completion:
    with FakeServer(lambda *_: answer) as server:
        (done,) = writer(server).generate([Request("a", 0, "2 + 2 = ")], sampling)
    return done


def test_one_silent_text_is_enough(tmp_path: Path) -> None:
    with FakeServer(lambda *_: plain("4")) as server, Journal(tmp_path / "j.sqlite") as journal:
        requests = [Request("a", 0, "2 + 2 = ")]
        with pytest.raises(JudgeError, match=SILENT):
            complete(writer(server), requests, NEEDED, journal)
        # Nothing doubtful is kept: behind another server the same build asks again.
        assert journal.count() == 0
        (done,) = complete(writer(server), requests, replace(NEEDED, needs_stops=False), journal)
        assert (done.text, done.stopped_by) == ("4", None)


@pytest.mark.parametrize(
    ("reply", "text", "finish", "stopped"),
    [
        (plain("4", stop_reason="\n"), "4", "stop", "\n"),
        (plain("4", matched_stop="\n"), "4", "stop", "\n"),
        (plain("4", stop_reason=None), "4", "stop", None),  # the model ended it (vLLM)
        (plain("4", matched_stop=151645), "4", "stop", None),  # by that token (SGLang)
        (plain("4", "length"), "4", "length", None),
        (plain("4\nso"), "4", "stop", "\n"),  # it can be seen in the text
    ],
)
def test_servers_that_say_it_in_any_way_are_taken(
    reply: Body, text: str, finish: str, stopped: str | None
) -> None:
    done = ask(reply, NEEDED)
    assert (done.text, done.finish_reason, done.stopped_by) == (text, finish, stopped)


def test_the_need_changes_no_sample() -> None:
    assert NEEDED.digest() == replace(NEEDED, needs_stops=False).digest()


def solution(number: int, path: str, body: Body) -> Body:
    """Whole solutions and their tails, without a word about what stopped them."""
    del number, path
    prompt = str(body["prompt"])
    written = prompt.partition("?\n")[2]
    whole = RIGHT if body["seed"] % 2 else WRONG
    rest = whole[len(written) :]
    return plain(rest.partition("\n")[0] if "stop" in body else rest)


def controlled(server: FakeServer, schedule: Rising) -> int:
    tasks = [Task(f"t{i}", f"What is 1 + 2 + {i}?\n", "6") for i in range(1, 9)]
    settings = ControlledSettings(samples=4, attempts=1, schedule=schedule)
    data = build_controlled_pairs(
        tasks, writer(server), grade=one_by_one(is_right), settings=settings, journal=None
    )
    return data.counts["cut points"]


def test_tails_at_rising_temperatures_need_it_and_constant_ones_do_not() -> None:
    with FakeServer(solution) as server:
        with pytest.raises(JudgeError, match="for tails, one constant temperature"):
            controlled(server, Rising(1.1, 0.1, 1.4))
        assert controlled(server, constant(1.2)) > 0


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(seconds=2), workers=1, unsafe_local_execution=True) as opened:
        yield opened


def blocks(number: int, path: str, body: Body) -> Body:
    del path
    assert body["skip_special_tokens"] is False
    assert body["stop"] == [END_OF_BLOCK, END_OF_MESSAGE]
    texts = ["<|code|>print(3 + 4)", "<|text|>It is 7.", ""]
    return plain(texts[number - 1], stop_reason=END_OF_BLOCK if texts[number - 1] else None)


def test_blocks_through_a_server_keep_their_markers(sandbox: Sandbox) -> None:
    with FakeServer(blocks) as server:
        (solved,) = solve([Attempt("a", 0, "3 + 4?")], writer(server), sandbox, Solving())
        prompts = [str(body["prompt"]) for body in server.asked]
    assert solved.status == "finished"
    assert [b.content for b in solved.blocks] == ["print(3 + 4)", "7", "It is 7."]
    assert prompts[2].endswith(
        "<|assistant|><|code|>print(3 + 4)<|endofblock|><|execution|>7<|endofblock|>"
        "<|text|>It is 7.<|endofblock|>"
    )


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (plain("<|text|>7"), SILENT),
        (
            Answer(422, {"detail": "Unexpected fields: {'skip_special_tokens'}"}),
            "record 'a': the server cannot keep special tokens in its texts: HTTP 422",
        ),
    ],
)
def test_blocks_need_both(sandbox: Sandbox, answer: Answer | Body, message: str) -> None:
    with FakeServer(lambda *_: answer) as server, pytest.raises(JudgeError, match=message):
        solve([Attempt("a", 0, "3 + 4?")], writer(server), sandbox, Solving())
