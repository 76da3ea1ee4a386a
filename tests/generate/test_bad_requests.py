"""One request that fails for good does not end a run; a server that answers nothing does."""

import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ConfigError, JudgeError
from prefopt.generate import failures
from prefopt.generate import server as module
from prefopt.generate.base import Completion, Generator, Request, Sampling, Tally, tally_of
from prefopt.generate.journal import Journal, complete
from prefopt.generate.openai import OpenAIGenerator
from prefopt.records import Message
from prefopt.values import JsonValue
from tests.generate.server import Answer, Body, FakeServer, chat, plain

LOCK = threading.Lock()
SAMPLING = Sampling(max_new_tokens=9, stop=("#",), seed=1)
FLAGGED = Answer(403, {"error": {"message": "Your input was flagged by moderation"}})
NO_MAX_TOKENS = Answer(400, {"error": {"message": "Use 'max_completion_tokens' instead."}})
ONE_LEFT = r" \(1 of 1 requests are left; the same command goes on with them\)$"
LOG = "; look at the server's log$"
BAD: dict[str, tuple[Answer | Body, str]] = {
    "truncated": (Answer(body='{"choices": ['), "^the reply is no JSON: .*, 3 times in a row$"),
    "tools": (chat(None, "tool_calls"), "reason 'tool_calls', .*; use a model and options that"),
    "reasoning": (
        chat("", message={"reasoning_content": "hm"}),
        "text as reasoning and has no content; start the server without the reasoning parser, or",
    ),
    "flagged": (FLAGGED, r"^HTTP 403 \(Your input was flagged by moderation\)$"),
    "legal": (Answer(451, "blocked"), r"^HTTP 451 \(blocked\)$"),
    "500": (Answer(500, "boom"), rf"^failed for . s HOW: HTTP 500 \(boom\){LOG}"),
    "dropped": (Answer(drop=True), f"^failed for . s HOW: no connection .*{LOG}"),
    "limited": (
        Answer(429, "slow down"),
        r"^failed for . s HOW: HTTP 429 \(slow down\); lower concurrency, or raise patience$",
    ),
}
SHORT = "though a short question was answered"


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
        writer.remind(7)
        (done,) = writer.generate(asking("bad"), SAMPLING)
        assert done.finish_reason == "error" and not done.tokens
        assert re.search(words.replace("HOW", SHORT), done.text), done.text
        assert said(server.asked[-1]) == "Say yes."
        assert {said(body) for body in server.asked[:-1]} == {"bad"}
        assert writer.tally.retries == len(server.asked) - 1


@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=list(BAD))
def test_a_bad_request_among_others_is_refused(
    bad: Answer | Body, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = lambda n, p, body: bad if said(body) == "bad" else chat("yes")  # noqa: E731
    with FakeServer(script) as server:
        requests = [*asking("good", 3), *asking("bad"), *asking("well", 3)]
        done = {c.id: c for c in client(server).generate(requests, SAMPLING)}
    one = done.pop("bad0")
    assert one.finish_reason == "error" and re.search(words.replace("HOW", SHORT), one.text)
    assert {c.finish_reason for c in done.values()} == {"stop"} and len(done) == 6
    assert (
        f"1 requests failed for good and have no text, the next run asks again: record 'bad0': {one.text}\n"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("bad", [Answer(500, "boom"), chat("", message={"reasoning": "hm"})])
def test_a_single_failure_proves_nothing_where_nothing_was_ever_answered(
    bad: Answer | Body,
) -> None:
    script = lambda n, p, body: bad if said(body) == "bad" else chat("yes")  # noqa: E731
    with (
        FakeServer(script) as server,
        pytest.raises(JudgeError, match="1 requests failed for good, 0 were answered" + ONE_LEFT),
    ):
        list(client(server).generate(asking("bad"), SAMPLING))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (Answer(500, "boom"), "look at the server's log, and start again"),
        (Answer(body=chat("x"), delay=0.5), "no reply within 0.2 s.* raise timeout, or lower"),
        (chat("", message={"reasoning": "hm"}), "start the server without the reasoning parser"),
        (Answer(body='{"choices": ['), "check that the server speaks the OpenAI protocol"),
        (Answer(403, "not your region"), "set OPENAI_API_KEY, or pass api_key"),
    ],
    ids=["500", "late", "reasoning", "truncated", "403"],
)
@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_server_that_answers_short_questions_only_ends_the_run(
    bad: Answer | Body, remedy: str, concurrency: int
) -> None:
    script = lambda n, p, body: bad if said(body) == "bad" else chat("yes")  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server, concurrency=concurrency, timeout=0.2)
        assert len(list(writer.generate(asking("good", 9), SAMPLING))) == 9
        began, asked = time.monotonic(), len(server.asked)
        with pytest.raises(JudgeError, match=remedy) as caught:
            list(writer.generate(asking("bad", 60), SAMPLING))
        assert time.monotonic() - began < 6, "patience is 0.3 s, and half of what is left each time"
        assert len(server.asked) - asked < 90
    assert "; 6 requests failed for good, and none was answered in between (60 of 60 requests" in (
        str(caught.value)
    )


@pytest.mark.slow
def test_few_failures_among_answers_end_no_run_and_more_do() -> None:
    """They come every third request, so that there is always an answer in between."""

    def run(bad: int, count: int, held: int = 0) -> list[Completion]:
        script = lambda n, p, body: FLAGGED if said(body) == "bad" else chat("yes")  # noqa: E731
        kinds = [asking("bad" if k % 3 == 1 and k < 3 * bad else "good")[0] for k in range(count)]
        requests = [replace(r, id=f"{r.id}/{k}") for k, r in enumerate(kinds)]
        with FakeServer(script) as server:
            writer = client(server)
            writer.remind(held)
            return list(writer.generate(requests, SAMPLING))

    assert [c.finish_reason for c in run(5, 30)].count("error") == 5
    with pytest.raises(JudgeError, match=r"; 6 of 30 requests failed for good \(1. of 30 requests"):
        run(6, 30)
    assert [c.finish_reason for c in run(7, 30, held=670)].count("error") == 7, "one in a hundred"
    with pytest.raises(JudgeError, match="8 of 700 requests failed for good"):
        run(8, 30, held=670)


def test_many_that_fail_fast_wait_for_the_ones_that_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first three of twelve fail at once, before another can be answered."""
    monkeypatch.setattr(failures, "FEW", 2)
    monkeypatch.setattr(failures, "SHARE", 4)

    def script(number: int, path: str, body: Body) -> Answer | Body:
        del number, path
        if said(body) == "good":
            return Answer(body=chat("yes"), delay=0.3)
        return FLAGGED if said(body) == "bad" else chat("yes")

    with FakeServer(script) as server:
        requests = [*asking("bad", 3), *asking("good", 9)]
        done = list(client(server, concurrency=12).generate(requests, SAMPLING))
        assert [c.finish_reason for c in done].count("error") == 3
        writer = client(server)
        assert len(list(writer.generate(asking("well", 9), SAMPLING))) == 9
        with pytest.raises(JudgeError, match="3 requests failed for good, and none was answered"):
            list(writer.generate(asking("bad", 3), SAMPLING))


def test_a_run_that_goes_on_takes_as_many_in_a_row_as_the_first_one_did_among_others() -> None:
    script = lambda n, p, body: FLAGGED if said(body) == "bad" else chat("yes")  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server)
        writer.remind(800)
        assert len(list(writer.generate(asking("bad", 8), SAMPLING))) == 8
        with pytest.raises(JudgeError, match="9 requests failed for good, and none"):
            list(writer.generate(asking("bad", 8), SAMPLING))


def test_a_journal_says_that_a_server_worked(tmp_path: Path) -> None:
    script = lambda n, p, body: FLAGGED if said(body) == "bad" else chat("yes")  # noqa: E731
    requests = [*asking("good", 7), *asking("bad")]
    with FakeServer(script) as server, Journal(tmp_path / "j.sqlite") as journal:
        for _ in range(2):
            done = complete(client(server), requests, SAMPLING, journal)
            assert [c.finish_reason for c in done] == ["stop"] * 7 + ["error"]
        assert [said(body) for body in server.asked[8:]] == ["Say yes.", "bad", "Say yes."]


@pytest.mark.slow
def test_a_limit_on_requests_is_waited_for_while_others_are_answered() -> None:
    """Each third request is answered, so most wait longer than there is patience."""
    last = [0.0]

    def script(number: int, path: str, body: Body) -> Answer | Body:
        del number, path, body
        with LOCK:
            if time.monotonic() - last[0] < 0.04:
                return Answer(429, "slow down", {"retry-after": "0.02"})
            last[0] = time.monotonic()
        return chat("yes")

    with FakeServer(script) as server:
        writer = client(server, concurrency=16, patience=0.4)
        began = time.monotonic()
        done = list(writer.generate(asking("x", 40), SAMPLING))
    assert [c.finish_reason for c in done] == ["stop"] * 40
    assert time.monotonic() - began > 3 * 0.4 and writer.tally.retries > 40


def test_a_wait_that_is_too_long_ends_the_run_even_where_others_are_answered() -> None:
    seen: list[str] = []

    def script(number: int, path: str, body: Body) -> Answer | Body:
        del number, path
        if said(body) != "bad":
            return Answer(body=chat("yes"), delay=0.02)
        seen.append("bad")
        return Answer(429, "tokens per day", {"retry-after": "0.1" if len(seen) == 1 else "3600"})

    requests = [*asking("bad"), *asking("good", 40)]
    with FakeServer(script) as server:
        message = r"the server asks to wait 3600 s, longer than patience \(0.3 s\); raise patience"
        with pytest.raises(JudgeError, match=message):
            list(client(server, concurrency=2).generate(requests, SAMPLING))


@pytest.mark.slow
def test_patience_is_kept_where_everything_hangs() -> None:
    with FakeServer(lambda *_: Answer(body=chat("x"), delay=3)) as server:
        writer = client(server, timeout=0.5, patience=0.2, concurrency=4)
        began = time.monotonic()
        with pytest.raises(JudgeError, match="no reply within 0.5 s"):
            list(writer.generate(asking("x", 16), SAMPLING))
        # Two attempts of 0.5 s, patience between them and for one short question.
        assert time.monotonic() - began < 1.9


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
        writer = client(server)
        writer.remind(1)
        (done,) = writer.generate(asking("bad"), SAMPLING)
    assert done.finish_reason == "error" and not trouble


def test_a_short_question_has_everything_of_the_request_but_its_texts() -> None:
    short = ["Answer in one word.", "Say yes.", "Yes", "Answer in one word.", "Yes"]
    script = lambda n, p, body: (  # noqa: E731
        chat("y") if [m["content"] for m in body["messages"]] == short else FLAGGED
    )
    calls: JsonValue = [{"id": "c1", "function": {"name": "f"}}]
    talk = (
        Message("system", "Be bad."),
        Message("user", "bad"),
        Message("assistant", "f()", extra={"tool_calls": calls}),
        Message("tool", "1", extra={"tool_call_id": "c1"}),
    )
    meta: dict[str, JsonValue] = {
        "chat_template_kwargs": {"think": False},
        "tools": [{"type": "f"}],
    }
    with FakeServer(script) as server:
        writer = client(server, extra_body={"top_k": 3, "top_p": None})
        writer.remind(1)
        list(writer.generate([Request("a", 0, talk, "Step", meta=meta)], SAMPLING))
        first, last = server.asked
    assert {"stop", "tools", "continue_final_message", "top_k"} < set(first) == set(last)
    assert {k: v for k, v in last.items() if k != "messages"} == {
        k: v for k, v in first.items() if k != "messages"
    }
    assert [{**m, "content": ""} for m in last["messages"]] == [
        {**m, "content": ""} for m in first["messages"]
    ]
    script = lambda n, p, body: plain(" four") if body["prompt"] == "One, two, three," else FLAGGED  # noqa: E731
    with FakeServer(script) as server:
        writer = client(server, endpoint="completions")
        writer.remind(1)
        (done,) = writer.generate([Request("a", 0, "bad")], SAMPLING)
    assert done.text == "HTTP 403 (Your input was flagged by moderation)"


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("stop", Request("a", 0, (Message("user", "x"),))),
        ("tools", Request("a", 0, (Message("user", "x"),), meta={"tools": [{"type": "f"}]})),
        ("system", Request("a", 0, (Message("system", "S"), Message("user", "x")))),
    ],
)
def test_what_the_server_refuses_of_every_request_is_a_wrong_setting(
    field: str, request_: Request
) -> None:
    def script(number: int, path: str, body: Body) -> Answer | Body:
        del number, path
        has = field in body or any(m["role"] == field for m in body["messages"])
        return Answer(400, f"Unsupported: '{field}'") if has else chat("yes")

    with FakeServer(script) as server:
        with pytest.raises(JudgeError, match=rf"first 20 .*Unsupported: '{field}'.*extra_body"):
            list(
                client(server).generate([replace(request_, sample=k) for k in range(30)], SAMPLING)
            )
        assert len(server.asked) == 21


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


@pytest.mark.parametrize("field", ["model", "messages", "prompt"])
def test_further_fields_do_not_say_who_is_asked_or_what(field: str) -> None:
    with pytest.raises(ConfigError, match=f"extra_body has '{field}', which says who is asked or"):
        OpenAIGenerator("m", base_url="http://h/v1", extra_body={field: None})
