"""One request that fails for good does not end a run; a server that answers nothing does."""

import re
from typing import Any

import pytest

from prefopt.errors import ConfigError, JudgeError
from prefopt.generate import server as module
from prefopt.generate.base import Completion, Generator, Request, Sampling, Tally, tally_of
from prefopt.generate.openai import OpenAIGenerator
from prefopt.records import Message
from tests.generate.server import Answer, Body, FakeServer, chat, plain

SAMPLING = Sampling(max_new_tokens=9, stop=("#",), seed=1)
FLAGGED = Answer(403, {"error": {"message": "Your input was flagged by moderation"}})
NO_MAX_TOKENS = Answer(400, {"error": {"message": "Use 'max_completion_tokens' instead."}})
BAD: dict[str, tuple[Answer | Body, str]] = {
    "truncated": (Answer(body='{"choices": ['), "the reply is no JSON: .*, 3 times in a row"),
    "tools": (chat(None, "tool_calls"), "the reply has finish_reason 'tool_calls', which is no"),
    "reasoning": (chat("", message={"reasoning_content": "hm"}), "text as reasoning and has no"),
    "flagged": (FLAGGED, r"HTTP 403 \(Your input was flagged by moderation\)$"),
    "legal": (Answer(451, "blocked"), r"HTTP 451 \(blocked\)$"),
    "500": (Answer(500, "boom"), r"failed for . s while others were answered: HTTP 500 \(boom\)"),
    "dropped": (Answer(drop=True), "failed for . s while others were answered: no connection"),
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.02)


def asking(text: str, count: int = 1) -> list[Request]:
    return [Request(f"{text}{k}", 0, (Message("user", text),)) for k in range(count)]


def said(body: Body) -> str:
    return str(body["messages"][-1]["content"])


def client(server: FakeServer, **options: Any) -> OpenAIGenerator:
    settings: dict[str, Any] = {"patience": 0.3, "concurrency": 1, **options}
    return OpenAIGenerator("tiny", base_url=server.url, **settings)


@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=list(BAD))
def test_a_bad_request_alone_is_refused_where_the_server_works(
    bad: Answer | Body, words: str
) -> None:
    """As in a run that goes on where only the bad one is left: a short question shows that the server works."""
    script = lambda n, p, body: bad if said(body) == "bad" else chat("yes")  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server)
        (done,) = writer.generate(asking("bad"), SAMPLING)
        assert done.finish_reason == "error" and not done.tokens
        assert re.search(words, done.text), done.text
        assert said(server.asked[-1]) == "Say yes."
        assert {said(body) for body in server.asked[:-1]} == {"bad"}
        assert writer.tally.retries == len(server.asked) - 1


@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=list(BAD))
def test_a_bad_request_among_others_is_refused(bad: Answer | Body, words: str) -> None:
    script = lambda n, p, body: bad if said(body) == "bad" else chat("yes")  # noqa: E731
    with FakeServer(script) as server:
        requests = [*asking("good", 3), *asking("bad"), *asking("well", 3)]
        done = {c.id: c.finish_reason for c in client(server).generate(requests, SAMPLING)}
    assert done.pop("bad0") == "error" and set(done.values()) == {"stop"} and len(done) == 6


@pytest.mark.parametrize("bad", ["truncated", "tools", "flagged", "500"])
def test_a_server_that_answers_nothing_ends_the_run(bad: str) -> None:
    """Good replies of an earlier time do not help one that answers nothing any more."""
    answers: list[Answer | Body] = [chat("ok"), chat("ok")]
    with FakeServer(lambda n, *_: answers[n - 1] if n <= 2 else BAD[bad][0]) as server:
        writer = client(server)
        assert len(list(writer.generate(asking("good", 2), SAMPLING))) == 2
        with pytest.raises(JudgeError):
            list(writer.generate(asking("good", 50), SAMPLING))
        assert len(server.asked) < 12


def test_a_short_question_is_tried_again_where_that_may_help() -> None:
    """The server is in trouble itself for a moment."""
    trouble: list[Answer | Body] = [Answer(503, "busy"), Answer(503, "busy"), chat("yes")]

    def script(_: int, __: str, body: Body) -> Answer | Body:
        return trouble.pop(0) if said(body) == "Say yes." else chat(None, "tool_calls")

    with FakeServer(script) as server:
        (done,) = client(server).generate(asking("bad"), SAMPLING)
    assert done.finish_reason == "error" and not trouble


def test_a_short_question_has_the_fields_of_the_request() -> None:
    script = lambda n, p, body: chat("y") if said(body) == "Say yes." else FLAGGED  # noqa: E731
    request = Request(
        "a", 0, (Message("user", "bad"),), "Step", meta={"chat_template_kwargs": {"think": False}}
    )
    with FakeServer(script) as server:
        list(client(server, extra_body={"top_k": 3, "top_p": None}).generate([request], SAMPLING))
        first, last = server.asked
    gone = {"stop", "continue_final_message", "add_generation_prompt"}
    assert set(first) - set(last) == gone
    assert last == {k: v for k, v in first.items() if k not in gone} | {
        "messages": [{"role": "user", "content": "Say yes."}]
    }
    script = lambda n, p, body: plain(" four") if body["prompt"] == "One, two, three," else FLAGGED  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server, endpoint="completions")
        (done,) = writer.generate([Request("a", 0, "bad")], SAMPLING)
    assert done.text == "HTTP 403 (Your input was flagged by moderation)"


def test_many_refusals_first_are_no_wrong_setting_where_others_are_answered() -> None:
    """A run that is started again asks only what was refused before."""
    script = lambda n, p, body: Answer(400, "too long") if said(body) == "long" else chat("y")  # noqa: E731
    with FakeServer(script) as server:
        done = list(client(server).generate(asking("long", 30), SAMPLING))
        assert [c.finish_reason for c in done] == ["error"] * 30
        assert len(server.asked) == 31, "one short question is enough"


def test_a_wrong_setting_is_told_by_the_first_refusals() -> None:
    message = "each of the first 20 requests was refused: .* --extra-body '{\"field\": null}'"
    with FakeServer(lambda *_: Answer(400, "unknown field seed")) as server:
        with pytest.raises(JudgeError, match=message):
            list(client(server).generate(asking("x", 30), SAMPLING))
        assert len(server.asked) == 21


def test_the_limit_of_tokens_gets_the_name_that_the_server_wants() -> None:
    script = lambda n, p, body: NO_MAX_TOKENS if "max_tokens" in body else chat("ok")  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server)
        done = list(writer.generate(asking("x", 4), SAMPLING))
        assert [c.text for c in done] == ["ok"] * 4
        assert [body.get("max_tokens") for body in server.asked] == [9, None, None, None, None]
        assert [body.get("max_completion_tokens") for body in server.asked] == [None, 9, 9, 9, 9]
        assert writer.tally == Tally(answered=4, refused=0, retries=1, timeouts=0)
    with FakeServer(lambda *_: NO_MAX_TOKENS) as server:
        (done,) = client(server).generate(asking("x"), SAMPLING)
        assert done.finish_reason == "error" and len(server.asked) == 2


def test_retries_and_time_outs_are_counted() -> None:
    trouble = {1: Answer(500, "x"), 2: Answer(body=chat("late"), delay=0.6)}
    with FakeServer(lambda n, *_: trouble.get(n, Answer(body=chat("ok")))) as server:
        writer = client(server, timeout=0.3, patience=5)
        assert [c.text for c in writer.generate(asking("x"), SAMPLING)] == ["ok"]
        before = tally_of(writer)
        assert before == Tally(answered=1, refused=0, retries=2, timeouts=1)
        list(writer.generate(asking("y"), SAMPLING))
        assert tally_of(writer).since(before) == Tally(answered=1)


def test_a_generator_without_a_server_counts_nothing() -> None:
    class Here:
        identity = "here"

        def generate(self, requests: Any, sampling: Sampling) -> Any:
            del sampling
            return (Completion(r.id, r.sample, "", "stop", 1) for r in requests)

    here: Generator = Here()
    assert tally_of(here) == Tally(0, 0, 0, 0)


def test_a_server_that_has_moved_keeps_its_identity() -> None:
    old = OpenAIGenerator("m", base_url="http://u:pw@a:1/v1/")
    moved = OpenAIGenerator("m", base_url="http://b:2/v1", known_as="http://a:1/v1")
    other = OpenAIGenerator("n", base_url="http://b:2/v1", known_as="http://a:1/v1")
    new = OpenAIGenerator("m", base_url="http://b:2/v1")
    assert moved.identity == old.identity != new.identity
    assert other.identity not in {old.identity, new.identity}, "another model is another model"
    with pytest.raises(ConfigError, match="base_url is 'b'; give an address"):
        OpenAIGenerator("m", base_url="http://b:2/v1", known_as="b")
