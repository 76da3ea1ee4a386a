"""Judges that are scripted as servers, and answers for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from prefopt.generate.openai import OpenAIGenerator
from prefopt.judge.asking import Asking
from prefopt.judge.outputs import Contest, Exchange
from prefopt.judge.pairwise import Compared, PairwiseJudge
from prefopt.judge.readings import GRADES, PREFERENCES
from prefopt.judge.single import Graded, SingleJudge
from tests.generate.server import Answer, Body, FakeServer, chat

Script = Callable[[int, str, Body], Answer | Body]


def exchange(id: str, answer: str = "It is 5.", **fields: Any) -> Exchange:
    return Exchange(id, ("What is 3 + 2?",), (answer,), **fields)


def contest(id: str, model: str, baseline: str) -> Contest:
    return Contest(exchange(id, model), exchange(id, baseline))


def shown(body: Body) -> str:
    """The user message of a request."""
    return str(body["messages"][-1]["content"])


def between(text: str, tag: str) -> str:
    """What stands between `<tag>` and `</tag>`."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL)
    return "" if found is None else found[1]


def longer(_: int, __: str, body: Body) -> Body:
    """A fair judge that prefers the longer answer."""
    one, two = (between(shown(body), f"answer_{k}") for k in "12")
    verdict = "tie" if len(one) == len(two) else "1" if len(one) > len(two) else "2"
    return counted(f"The lengths tell.\n[[{verdict}]]")


def counted(text: str | None, **extra: Any) -> Body:
    """A reply of a server that counts tokens on both sides."""
    return {**chat(text, **extra), "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def grade(
    script: Script,
    exchanges: list[Exchange],
    *,
    rules: str = "agreed",
    journal: Any = None,
    timeout: float = 120,
    **options: Any,
) -> tuple[list[Graded], FakeServer]:
    with FakeServer(script) as server:
        writer = OpenAIGenerator("judge", base_url=server.url, patience=5, timeout=timeout)
        judge = SingleJudge(Asking(writer, GRADES[rules], **options))
        return judge.grade(exchanges, journal=journal), server


def compare(
    script: Script,
    contests: list[Contest],
    *,
    rules: str = "agreed",
    journal: Any = None,
    attempts: int = 3,
    **options: Any,
) -> tuple[list[Compared], FakeServer]:
    with FakeServer(script) as server:
        writer = OpenAIGenerator("judge", base_url=server.url, patience=5)
        asking = Asking(writer, PREFERENCES[rules], attempts=attempts)
        return PairwiseJudge(asking, **options).compare(contests, journal=journal), server
