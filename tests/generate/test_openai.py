"""The client of OpenAI-compatible servers against a real HTTP server that fails in every way we know."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from email.utils import formatdate
from typing import Any

import pytest

from prefopt.errors import ConfigError, JudgeError, RecordError
from prefopt.generate.base import Completion, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.generate.openai import OpenAIGenerator
from prefopt.records import Message
from tests.generate.server import Answer, FakeServer, chat, plain
from tests.tiny import CHATML, make_tokenizer

KEY = "sk-very-secret-key"
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_new_tokens=50, stop=("\n\n",), seed=3)


def asking(text="Hello", *, id="a", sample=0, prefix=""):
    return Request(id, sample, (Message("user", text),), prefix)


def generator(server, **options):
    settings: dict[str, Any] = {"patience": 5, **options}
    return OpenAIGenerator("tiny", base_url=server.url, api_key=KEY, **settings)


def ask(script, *, request=None, sampling=SAMPLING, **options):
    """The only completion, and the server that gave it."""
    with FakeServer(script) as server:
        (done,) = generator(server, **options).generate([request or asking()], sampling)
    return done, server


def failing(*answers):
    """A script that gives these answers first and a good one afterwards."""
    return lambda number, path, body: answers[number - 1] if number <= len(answers) else chat("ok")


def test_a_request_is_what_the_protocol_says():
    done, server = ask(lambda *_: chat("Hi"))
    assert done == Completion("a", 0, "Hi", "stop", 7, None)
    (body,) = server.asked
    # The seed is the low 31 bits of the sample's key: blake2b of [3, "generate", "a", 0].
    assert body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": body["seed"],
        "stop": ["\n\n"],
    }
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_seeds_belong_to_samples_and_not_to_their_company():
    requests = [asking(id=i, sample=s) for i in "ab" for s in range(3)]
    with FakeServer(lambda *_: chat("x")) as server:
        list(generator(server).generate(requests, SAMPLING))
        together = sorted(body["seed"] for body in server.asked)
        server.asked.clear()
        for request in reversed(requests):
            list(generator(server, concurrency=1).generate([request], SAMPLING))
        apart = sorted(body["seed"] for body in server.asked)
    assert together == apart
    assert len(set(apart)) == 6 and all(0 <= seed < 2**31 for seed in apart)


def test_extra_fields_are_sent_and_null_takes_one_out():
    _, server = ask(lambda *_: chat("x"), extra_body={"top_k": 5, "top_p": None})
    assert server.asked[0]["top_k"] == 5
    assert "top_p" not in server.asked[0]


def test_a_prefix_is_the_unfinished_last_message():
    done, server = ask(lambda *_: chat(" 7"), request=asking(prefix="Step 1:"))
    assert done.text == " 7"
    assert server.asked[0]["messages"][-1] == {"role": "assistant", "content": "Step 1:"}
    assert server.asked[0]["continue_final_message"] is True
    assert server.asked[0]["add_generation_prompt"] is False


@pytest.mark.parametrize(
    "answer",
    [
        chat("Step 1: 3 + 4 = 7"),
        Answer(422, {"detail": "Unexpected fields in the request: {'continue_final_message'}"}),
        Answer(400, {"error": {"message": "Unrecognized argument: add_generation_prompt"}}),
    ],
)
def test_a_server_that_does_not_continue_is_found_out(answer):
    with pytest.raises(JudgeError, match="use endpoint: completions"):
        ask(lambda *_: answer, request=asking(prefix="Step 1:"))


def test_the_completions_endpoint_gets_the_text_of_training():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    done, server = ask(
        lambda *_: plain(" 7", stop_reason="\n\n"),
        request=asking(prefix="Step 1:"),
        endpoint="completions",
        tokenizer=tokenizer,
    )
    assert done == Completion("a", 0, " 7", "stop", 5, "\n\n")
    assert server.asked[0]["prompt"] == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nStep 1:"
    )
    assert server.asked[0]["add_special_tokens"] is False


def test_a_field_that_only_some_servers_take_is_left_out_when_refused():
    def script(_number, _path, body):
        if "add_special_tokens" in body:
            return Answer(422, {"detail": "Unexpected fields: {'add_special_tokens'}"})
        return plain("x")

    with FakeServer(script) as server:
        requests = [Request("a", k, "2 + 2 = ") for k in range(3)]
        done = list(
            generator(server, endpoint="completions", concurrency=1).generate(requests, SAMPLING)
        )
    assert [c.finish_reason for c in done] == ["stop"] * 3
    assert len(server.asked) == 4


def test_prompts_that_do_not_fit_the_endpoint_are_refused():
    with FakeServer(lambda *_: chat("x")) as server:
        with pytest.raises(RecordError, match="'a': the prompt is plain text, .*endpoint: compl"):
            list(generator(server).generate([Request("a", 0, "p")], SAMPLING))
        with pytest.raises(ConfigError, match="'a': the prompt is a conversation, .*tokenizer"):
            list(generator(server, endpoint="completions").generate([asking()], SAMPLING))
        assert not server.asked


@pytest.mark.parametrize(
    ("reply", "text", "finish", "stopped"),
    [
        (chat("a", stop_reason="\n\n"), "a", "stop", "\n\n"),
        (chat("a", matched_stop="\n\n"), "a", "stop", "\n\n"),
        (chat("a", stop_reason=151645), "a", "stop", None),
        (chat("a", "length"), "a", "length", None),
        (chat("a", "eos_token"), "a", "stop", None),
        (chat("a\n\nb", "length"), "a", "stop", "\n\n"),
        (chat("", message={"reasoning_content": "hm"}, finish="length"), "", "length", None),
        (chat(""), "", "stop", None),
        (chat(None, "content_filter"), "stopped by the server's content filter", "error", None),
        (chat(None, message={"refusal": "no"}), "the model refuses: no", "error", None),
    ],
)
def test_how_texts_end(reply, text, finish, stopped):
    done, _ = ask(lambda *_: reply)
    assert (done.text, done.finish_reason, done.stopped_by) == (text, finish, stopped)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_request_is_returned_but_not_kept(tmp_path, code):
    def script(_number, _path, body):
        if body["messages"][0]["content"] == "long":
            return Answer(code, {"error": {"message": f"too long, {KEY}"}})
        return chat("ok")

    with FakeServer(script) as server, Journal(tmp_path / "j.sqlite") as journal:
        requests = [asking("long", id="l"), asking("short", id="s")]
        done = complete(generator(server), requests, SAMPLING, journal)
        assert done[0] == Completion("l", 0, f"HTTP {code} (too long, ***)", "error", 0)
        assert done[1].text == "ok"
        assert journal.count() == 1
        complete(generator(server), requests, SAMPLING, journal)
        assert len(server.asked) == 3


def test_nothing_but_refusals_is_a_wrong_setting():
    with FakeServer(lambda *_: Answer(400, {"error": {"message": "no max_tokens"}})) as server:
        with pytest.raises(JudgeError, match="first 20 requests was refused: .*no max_tokens"):
            list(generator(server).generate([asking(sample=k) for k in range(100)], SAMPLING))
        assert len(server.asked) < 60


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(500, {"error": {"message": "out of memory"}}),
        Answer(503, "overloaded"),
        Answer(429, {"error": {"message": "slow down"}}),
        Answer(drop=True),
        Answer(body="<html>proxy</html>"),
        Answer(body={"error": "upstream"}),
        Answer(body={"choices": []}),
        chat("ok", None),
        chat("ok", "abort"),
        chat(None),
        {"choices": [*chat("a")["choices"], *chat("b")["choices"]]},
    ],
)
def test_what_may_pass_is_tried_again(trouble):
    done, server = ask(failing(trouble))
    assert done.text == "ok"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Answer(body="{cut"), "no JSON: '{cut', 3 times in a row; check that the server speaks"),
        (Answer(body={"choices": []}), "0 choices where 1 was asked for, 3 times in a row"),
        (chat("a", None), "finish_reason is null: nothing says whether the text is whole"),
        (chat(None, message={"reasoning": "hm"}), "text as reasoning and has no content"),
        (chat(None, "tool_calls"), "finish_reason 'tool_calls'"),
        (Answer(401, {"error": {"message": f"bad key {KEY}"}}), r"bad key \*\*\*.*OPENAI_API_KEY"),
        (Answer(403, ""), "HTTP 403: the key is not accepted"),
        (Answer(404, {"message": "gone"}), r"check model 'tiny' \(the server has tiny\) and base"),
        (Answer(405, ""), "HTTP 405; check base_url and endpoint"),
        (
            Answer(307, "", {"location": "http://other.invalid/v1"}),
            "redirects are not followed; if http://other.invalid/v1 is the server",
        ),
        (Answer(429, {"error": {"code": "insufficient_quota"}}), "the account has no quota left"),
    ],
)
def test_what_will_not_pass_is_one_clear_line(reply, message):
    with pytest.raises(JudgeError, match=message) as caught:
        ask(lambda *_: reply)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
@pytest.mark.slow
def test_retry_after_is_honoured(value):
    began = time.monotonic()
    ask(failing(Answer(429, "", {"retry-after": value()})))
    assert 0.95 < time.monotonic() - began < 4


def test_a_longer_wait_than_patience_is_not_sat_out():
    with pytest.raises(JudgeError, match=r"asks to wait 3600 s, longer than patience \(5 s\)"):
        ask(lambda *_: Answer(429, "", {"retry-after": "3600"}))


@pytest.mark.slow
def test_a_server_that_never_answers_in_time():
    with pytest.raises(JudgeError, match="no reply within 0.2 s, for .* raise timeout"):
        ask(lambda *_: Answer(body=chat("x"), delay=0.6), timeout=0.2, patience=1)


@pytest.mark.slow
def test_one_request_that_always_fails_does_not_end_a_run():
    def script(_number, _path, body):
        bad = body["messages"][0]["content"] == "bad"
        return Answer(500, "boom") if bad else Answer(body=chat("ok"), delay=0.2)

    with FakeServer(script) as server:
        requests = [asking("bad", id="bad"), *(asking(id=f"g{k}") for k in range(10))]
        client = generator(server, patience=1, concurrency=2)
        done = {c.id: c for c in client.generate(requests, SAMPLING)}
    assert done["bad"].finish_reason == "error" and "boom" in done["bad"].text
    assert sum(c.finish_reason == "stop" for c in done.values()) == 10
    assert client.tally.answered == 10 and client.tally.refused == 1 and client.tally.retries >= 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_no_server_is_said_after_patience_and_one_that_comes_late_is_used():
    port = free_port()
    late = OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1", patience=10)
    gone = OpenAIGenerator("tiny", base_url=f"http://127.0.0.1:{port}/v1", patience=0.5)
    with pytest.raises(JudgeError, match=rf":{port}/v1/chat.*no connection .*start the server"):
        list(gone.generate([asking(sample=k) for k in range(4)], SAMPLING))
    servers = []
    timer = threading.Timer(
        0.7, lambda: servers.append(FakeServer(lambda *_: chat("late"), port=port))
    )
    timer.start()
    try:
        assert [c.text for c in late.generate([asking()], SAMPLING)] == ["late"]
    finally:
        timer.join()
        servers[0].__exit__()


def test_requests_overlap_and_results_stream():
    script = lambda number, *_: Answer(body=chat("x"), delay=1.0 if number == 1 else 0.1)  # noqa: E731
    with FakeServer(script) as server:
        began = time.monotonic()
        requests = [asking(sample=k) for k in range(33)]
        stream = generator(server, concurrency=16).generate(requests, SAMPLING)
        next(stream)
        first = time.monotonic() - began
        rest = list(stream)
    assert len(rest) == 32
    assert first < 0.8  # the slow first request does not hold up the others
    assert time.monotonic() - began < 2.5  # one after the other: 4.2 s
    assert 8 < server.busiest <= 16


def test_leaving_early_ends_everything():
    with FakeServer(lambda *_: Answer(body=chat("x"), delay=0.05)) as server:
        stream = generator(server, concurrency=4).generate(
            [asking(sample=k) for k in range(1000)], SAMPLING
        )
        next(stream)
        began, threads = time.monotonic(), threading.active_count()
        assert isinstance(stream, Generator)
        stream.close()
        assert time.monotonic() - began < 1
        asked = len(server.asked)
        time.sleep(0.2)
        assert len(server.asked) <= asked + 4 < 50
    assert threading.active_count() < threads


INTERRUPTED = """
import sys
from prefopt.generate.base import Request, Sampling
from prefopt.generate.openai import OpenAIGenerator
from prefopt.records import Message
writer = OpenAIGenerator("tiny", base_url=sys.argv[1])
try:
    list(writer.generate([Request("a", k, (Message("user", "x"),)) for k in range(9)], Sampling()))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_replies():
    with (
        FakeServer(lambda *_: Answer(body=chat("x"), delay=30)) as server,
        subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.url],
            stdout=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore SIGINT, and so would their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        ) as child,
    ):
        while len(server.asked) < 9:
            time.sleep(0.01)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60)[0] == "stopped\n"
        assert time.monotonic() - began < 15


def test_the_identity_is_the_server_and_never_the_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(**options):
        settings: dict[str, Any] = {"base_url": "http://h/v1", **options}
        return OpenAIGenerator("m", **settings).identity

    same = [make(), make(api_key=KEY), make(base_url="http://u:pw@h/v1/"), make(concurrency=1)]
    others = [
        make(base_url="http://h2/v1"),
        make(endpoint="completions"),
        make(extra_body={"top_k": 1}),
        OpenAIGenerator("n", base_url="http://h/v1").identity,
    ]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 5
    assert KEY not in repr(vars(OpenAIGenerator("m", base_url="http://h/v1", api_key=KEY)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url is .*; give an address such as http://"),
        ({"concurrency": 0}, "concurrency is 0; use 1 or more"),
        ({"timeout": 0}, "timeout is 0; use more than 0 seconds"),
        ({"endpoint": "responses"}, "endpoint is 'responses'; use chat or completions"),
    ],
)
def test_wrong_settings_are_named(options, message):
    settings: dict[str, Any] = {"base_url": "http://localhost/v1", **options}
    with pytest.raises(ConfigError, match=message):
        OpenAIGenerator("m", **settings)


def test_proxies_are_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(lambda *_: chat("direct"), patience=1)[0].text == "direct"


def test_a_server_that_ignores_the_temperature_is_mentioned(capsys):
    with FakeServer(lambda *_: chat("always the same words, however often you ask me")) as server:
        requests = [asking(f"q{i}", id=f"{i}", sample=s) for i in range(4) for s in range(2)]
        list(generator(server).generate(requests, SAMPLING))
    assert "all samples of 4 prompts are equal at temperature 0.7" in capsys.readouterr().err
