"""A server that never answered is given up soon; one that did before has all the patience there is."""

from __future__ import annotations

import threading
import time

import pytest

from prefopt.errors import JudgeError
from prefopt.generate import server as module
from prefopt.generate.base import Request, Sampling
from prefopt.generate.openai import OpenAIGenerator
from prefopt.records import Message
from tests.generate.server import Answer, Body, FakeServer, chat

SAMPLING = Sampling()


def asking(name: str) -> list[Request]:
    return [Request(name, k, (Message("user", "x"),)) for k in range(3)]


@pytest.mark.slow
def test_nobody_there_and_nobody_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_CONTACT", 0.4)
    client = OpenAIGenerator("tiny", base_url="http://127.0.0.1:1/v1", patience=600)
    began = time.monotonic()
    message = "no connection .*for . s, and no answer ever; start the server and wait until it is"
    with pytest.raises(JudgeError, match=message):
        list(client.generate(asking("a"), SAMPLING))
    assert 0.4 <= time.monotonic() - began < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", [chat("ok"), Answer(400, {"error": {"message": "too long"}})], ids=["text", "refusal"]
)
def test_a_server_that_answered_before_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, first: Body | Answer
) -> None:
    """Any reply will do; what counts is remembered from one call to the next."""
    monkeypatch.setattr(module, "_FIRST_CONTACT", 0.2)
    with FakeServer(lambda *_: first) as server:
        port = server.port
        client = OpenAIGenerator("tiny", base_url=server.url, patience=20)
        assert len(list(client.generate(asking("a"), SAMPLING))) == 3
    again: list[FakeServer] = []
    timer = threading.Timer(
        1.0, lambda: again.append(FakeServer(lambda *_: chat("back"), port=port))
    )
    timer.start()
    try:
        assert [c.text for c in client.generate(asking("b"), SAMPLING)] == ["back"] * 3
    finally:
        timer.join()
        again[0].__exit__()


@pytest.mark.slow
def test_a_server_that_is_busy_at_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads its model refuses or hangs up, but it is there."""
    monkeypatch.setattr(module, "_FIRST_CONTACT", 0.2)
    for trouble in (Answer(503, "loading"), Answer(drop=True), Answer(body=chat("x"), delay=0.8)):
        answers = [trouble] * 2

        def script(number: int, path: str, body: Body, answers: list[Answer] = answers) -> Answer:
            del path, body
            return answers[number - 1] if number <= 2 else Answer(body=chat("ok"))

        with FakeServer(script) as server:
            client = OpenAIGenerator("tiny", base_url=server.url, patience=20, timeout=0.5)
            assert [c.text for c in client.generate(asking("a")[:1], SAMPLING)] == ["ok"]
