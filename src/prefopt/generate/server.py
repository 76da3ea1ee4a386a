"""One request to an OpenAI-compatible server, with patience: what is tried again, refused or final.

Servers fail in many ways, some of them silently; here each reply is either a whole text, a refusal in the server's
own words, or an error with a remedy. What is asked, and many requests at a time, is the business of
`prefopt.generate.openai`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import urlsplit, urlunsplit

from prefopt.errors import ConfigError, JudgeError, MissingExtraError
from prefopt.generate.reply import GarbledError, RefusedError, Reply, read_reply
from prefopt.progress import say

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_GARBLED_ATTEMPTS = 3
"""A server that answers nonsense this often in a row is not asked again."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_CONNECT_SECONDS = 5.0
_FIRST_CONTACT = 10.0
"""Seconds for which a server that never answered is tried, however much patience there is: it is not there."""
_SAY_EVERY = 30.0
"""Seconds between two lines about a server in trouble."""
_WORDS = 300
"""Characters of a server's words that go into a message."""
_UNREACHED = frozenset({"ConnectError", "ConnectTimeout"})
"""Names, since the classes are those of httpx for openai 2 and of httpx2 for openai 3."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Server:
    """Where a model is, and how long to wait for it."""

    base_url: str
    """Ends before `/chat/completions`, usually in `/v1`."""
    path: str
    """`/chat/completions` or `/completions`."""
    model: str
    api_key: str = field(repr=False)
    timeout: float
    """Seconds for one reply."""
    patience: float
    """Seconds for which a request is tried again."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(
                f"server: base_url is {self.shown!r}; give an address such as http://localhost:8000/v1"
            )
        for name, value in (("timeout", self.timeout), ("patience", self.patience)):
            if not value > 0:
                raise ConfigError(f"server: {name} is {value}; use more than 0 seconds")

    @property
    def shown(self) -> str:
        """The address without user, password and query, for messages and digests."""
        parts = urlsplit(self.base_url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))

    def words(self, text: str) -> str:
        """A server's words on one line, shortened, with the key blotted out."""
        line = " ".join(text.split())
        if self.api_key:
            line = line.replace(self.api_key, "***")
        return line if len(line) <= _WORDS else line[: _WORDS - 3] + "..."


def open_client(server: Server) -> AsyncOpenAI:
    """A client of the `openai` package that talks to this address only.

    It follows no redirects, tries nothing again by itself, and goes through no proxy to this machine.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError(
            "talking to a server needs the openai client: pip install 'prefopt[openai]'"
        ) from error
    proxies = urlsplit(server.base_url).hostname not in _LOOPBACK
    timeout = openai.Timeout(server.timeout, connect=min(_CONNECT_SECONDS, server.timeout))
    transport = openai.DefaultAsyncHttpxClient(
        follow_redirects=False, trust_env=proxies, timeout=timeout
    )
    return openai.AsyncOpenAI(
        api_key=server.api_key,
        base_url=server.base_url,
        max_retries=0,
        timeout=timeout,
        http_client=transport,
    )


class _TroubleError(Exception):
    """Something that may pass: worth another attempt."""

    def __init__(self, words: str, *, wait: float | None = None, answered: bool = True) -> None:
        super().__init__(words)
        self.wait = wait
        """Seconds that the server asks for."""
        self.answered = answered
        """Whether a server was there at all."""


class _Attempts(NamedTuple):
    """One request's story so far."""

    began: float
    number: int
    garbled: int


class Line:
    """The connection of one run to one server: asks, waits, tries again, gives up.

    A server that was reached once may come back, so it has all of `patience`; one that never was has 10 seconds.
    """

    def __init__(self, server: Server, client: AsyncOpenAI, *, reached: bool = False) -> None:
        self._server = server
        self._client = client
        self.reached = reached
        """Whether something ever listened at the address."""
        self._answered_at = float("-inf")
        self._said_at = float("-inf")
        self.retries = 0
        """Attempts beyond the first of all requests together."""

    async def ask(self, body: Mapping[str, object], where: str) -> Reply:
        """The reply to one request.

        Args:
            body: the request's JSON object.
            where: whose request it is, for messages.

        Raises:
            RefusedError: the server will not answer this request, now or later.
            JudgeError: the server cannot be used: no key, no such model, nothing but nonsense, or no answer in
                `patience` seconds (10 at most while nothing ever listened there).
        """
        garbled = 0
        began: float | None = None
        for attempt in count():
            try:
                reply = read_reply(await self._post(body), self._server.path)
            except GarbledError as error:
                garbled += 1
                if garbled >= _GARBLED_ATTEMPTS:
                    if began is not None and self._answered_at > began:
                        raise RefusedError(
                            f"{garbled} broken replies while others were answered: {error}"
                        ) from None
                    raise JudgeError(
                        f"{self._at()}: {where}: {self._server.words(str(error))}, {garbled} times in a row; "
                        "check that the server speaks the OpenAI protocol"
                    ) from None
                trouble = _TroubleError(str(error))
            except _TroubleError as error:
                trouble = error
            else:
                self._answered_at = time.monotonic()
                return reply
            began = time.monotonic() if began is None else began
            await self._wait(trouble, _Attempts(began, attempt, garbled), where)
        raise AssertionError

    async def _wait(self, trouble: _TroubleError, story: _Attempts, where: str) -> None:
        """Sleep before the next attempt, or give up."""
        server = self._server
        patience = server.patience if self.reached else min(server.patience, _FIRST_CONTACT)
        passed = time.monotonic() - story.began
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(story.number, 20))
        pause *= random.uniform(0.5, 1)
        if trouble.wait is not None:
            pause = max(pause, trouble.wait)
        words = server.words(str(trouble))
        left = patience - passed
        if left <= 0 or (trouble.wait is not None and trouble.wait > left):
            if trouble.answered and self._answered_at > story.began:
                raise RefusedError(f"failed for {passed:.0f} s while others were answered: {words}")
            if not self.reached:
                raise JudgeError(
                    f"{self._at()}: {words}, for {passed:.0f} s, and no answer ever; start the server and wait "
                    "until it is ready, or check the address"
                ) from None
            raise JudgeError(_gave_up(server, words, trouble, passed)) from None
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY:
            self._said_at = now
            say(f"{self._at()}: {where}: {words}; trying again for up to {patience:.0f} s")
        self.retries += 1
        # The last attempt falls on the end of patience, however long the pause would have been.
        await asyncio.sleep(min(pause, left))

    async def _post(self, body: Mapping[str, object]) -> str:
        """The text of a successful reply."""
        import openai

        server, status = self._server, None
        try:
            async with asyncio.timeout(server.timeout):
                text = await self._client.post(server.path, body=dict(body), cast_to=str)
        except openai.APIStatusError as error:
            text, status = "", error
        except (TimeoutError, openai.APIConnectionError) as error:
            cause = error.__cause__ or error
            listens = type(cause).__name__ not in _UNREACHED
            self.reached = self.reached or listens
            if isinstance(error, TimeoutError | openai.APITimeoutError) and listens:
                raise _TroubleError(f"no reply within {server.timeout:g} s") from None
            words = f"no connection ({type(cause).__name__}: {cause})".replace(": )", ")")
            raise _TroubleError(words, answered=False) from None
        self.reached = True
        return text if status is None else await self._judge_status(status)

    async def _judge_status(self, error: APIStatusError) -> str:
        """Never returns: what an HTTP error means."""
        server, code = self._server, error.status_code
        words = server.words(_words(error))
        said = f"HTTP {code}" + (f" ({words})" if words else "")
        if code in {401, 403}:
            raise JudgeError(
                f"{self._at()}: {said}: the key is not accepted; set OPENAI_API_KEY, or pass api_key"
            ) from None
        if code == 404:
            raise JudgeError(
                f"{self._at()}: {said}; check model {server.model!r}{await self._offered()} and base_url, "
                "which usually ends in /v1"
            ) from None
        if code in {400, 413, 422}:
            raise RefusedError(said) from None
        if code == 429 and "insufficient_quota" in _words(error) + str(error.code):
            raise JudgeError(
                f"{self._at()}: {said}: the account has no quota left; add some, or use another key"
            ) from None
        if code in {408, 409, 425, 429} or code >= 500:
            raise _TroubleError(said, wait=_retry_after(error.response.headers)) from None
        target = error.response.headers.get("location")
        if target is not None:
            raise JudgeError(
                f"{self._at()}: {said}: redirects are not followed; if {server.words(target)} is the server, "
                "give it as base_url"
            ) from None
        raise JudgeError(f"{self._at()}: {said}; check base_url and endpoint") from None

    async def _offered(self) -> str:
        """The models that the server lists, if it does, for a message."""
        import openai

        try:
            async with asyncio.timeout(min(5.0, self._server.timeout)):
                listed = json.loads(await self._client.get("/models", cast_to=str))
            names = [str(model["id"]) for model in listed["data"]][:5]
        except (openai.OpenAIError, TimeoutError, ValueError, LookupError, TypeError):
            return ""
        return f" (the server has {', '.join(names)})" if names else ""

    def _at(self) -> str:
        return self._server.shown + self._server.path


def _gave_up(server: Server, words: str, trouble: _TroubleError, passed: float) -> str:
    at = server.shown + server.path
    if trouble.wait is not None and trouble.wait > server.patience - passed:
        return (
            f"{at}: {words}: the server asks to wait {trouble.wait:.0f} s, longer than patience "
            f"({server.patience:g} s); raise patience, or start again later: what was answered is kept"
        )
    remedy = (
        "raise timeout, or lower concurrency or max_new_tokens"
        if words.startswith("no reply")
        else "start the server, or check base_url"
        if not trouble.answered
        else "look at the server's log"
    )
    return (
        f"{at}: {words}, for {passed:.0f} s; {remedy}, and start again: what was answered is kept"
    )


def _words(error: APIStatusError) -> str:
    """What the server says in its error reply, without JSON around it where that is of a known form."""
    body: object = error.body
    for key in ("error", "message", "detail"):
        if isinstance(body, dict) and key in body:
            body = cast("dict[str, object]", body)[key]
    if isinstance(body, str):
        return body
    if body is None:
        return error.response.text
    return json.dumps(body, ensure_ascii=False, default=str)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `Retry-After` as a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
