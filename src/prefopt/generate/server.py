"""One request to an OpenAI-compatible server, with patience: what is tried again, refused or final.

Servers fail in many ways, some of them silently; here each reply is either a whole text, a refusal in the server's
own words, or an error with a remedy. One request that fails for good ends no run: where nothing was answered in the
meantime, a short question (`prefopt.generate.trial`) tells a server in trouble from a request that it cannot answer;
but more than a few of them do (`prefopt.generate.failures`). What is asked, and many requests at a time, is the
business of `prefopt.generate.openai`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from prefopt.errors import ConfigError, JudgeError, MissingExtraError
from prefopt.generate.failures import Failures
from prefopt.generate.reply import DeadEndError, GarbledError, RefusedError, Reply, read_reply
from prefopt.generate.trial import trial
from prefopt.generate.trouble import (
    TroubleError,
    explain_status,
    gave_up,
    one_line,
    server_words,
)
from prefopt.progress import say

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

    from prefopt.values import JsonValue

_GARBLED_ATTEMPTS = 3
"""A server that answers nonsense this often in a row is not asked again."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_CONNECT_SECONDS = 5.0
_FIRST_CONTACT = 10.0
"""Seconds for which a server that never answered is tried, however much patience there is: it is not there."""
_SAY_EVERY = 30.0
"""Seconds between two lines about a server in trouble."""
_TRIALS = 3
"""How often a server is asked something short before it counts as in trouble."""
_LOOK_AGAIN = 0.05
"""Seconds."""
_TRIAL_SECONDS = 30.0
"""How long that may take altogether; no longer than one reply, or than there is patience."""
_UNREACHED = frozenset({"ConnectError", "ConnectTimeout"})
"""Names, since the classes are those of httpx for openai 2 and of httpx2 for openai 3."""
_PROTOCOL = "check that the server speaks the OpenAI protocol"
_LATE = "raise timeout, or lower concurrency or max_new_tokens"
_NOBODY = "start the server, or check base_url"
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
        return one_line(text, self.api_key)


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


class _Story(NamedTuple):
    """One request so far."""

    where: str
    """Whose it is, for messages."""
    failed: float
    """When its first attempt failed."""
    number: int
    """Of the last attempt, from 0."""


class Line:
    """The connection of one run to one server: asks, waits, tries again, gives up.

    A server that was reached once may come back, so it has all of `patience`; one that never was has 10 seconds.
    """

    def __init__(
        self, server: Server, client: AsyncOpenAI, failures: Failures, *, reached: bool = False
    ) -> None:
        self._server = server
        self._client = client
        self._failures = failures
        self.reached = reached
        """Whether something ever listened at the address."""
        self._answered_at = float("-inf")
        self._worked_at = float("-inf")
        """As before, with answers to short questions."""
        self._said_at = float("-inf")
        self._trial = asyncio.Lock()
        self._under_way = self._waiting = 0
        """Requests that are neither answered nor given up, and those of them that only wait for the others."""
        self.retries = 0
        """Requests beyond the first attempts: further ones, and short questions whether the server works."""
        self.timeouts = 0
        """Attempts that brought no reply in time."""

    async def ask(self, body: Mapping[str, JsonValue], where: str) -> Reply:
        """The reply to one request.

        Args:
            body: the request's JSON object.
            where: whose request it is, for messages.

        Raises:
            RefusedError: the server says that it will not answer this request.
            FailedError: it fails for good where others are answered, and few do.
            JudgeError: the server cannot be used: no key, no such model, nothing but nonsense, or no answer in
                `patience` seconds (10 at most while nothing ever listened there).
        """
        self._under_way += 1
        try:
            return await self._ask(body, where)
        finally:
            self._under_way -= 1

    async def _ask(self, body: Mapping[str, JsonValue], where: str) -> Reply:
        began, garbled = time.monotonic(), 0
        failed: float | None = None
        for attempt in count():
            try:
                reply = await self._attempt(body)
            except DeadEndError as error:
                raise await self._end(error, body, since=began, where=where) from None
            except GarbledError as error:
                garbled += 1
                if garbled >= _GARBLED_ATTEMPTS:
                    words = f"{error}, {garbled} times in a row"
                    end = DeadEndError(words, f"; {_PROTOCOL}", whole=True)
                    since = began if failed is None else failed
                    raise await self._end(end, body, since=since, where=where) from None
                trouble = TroubleError(str(error), remedy=_PROTOCOL)
            except TroubleError as error:
                trouble = error
            else:
                self._answered_at = self._worked_at
                self._failures.answer()
                return reply
            failed = time.monotonic() if failed is None else failed
            await self._wait(trouble, body, _Story(where, failed, attempt))
        raise AssertionError

    async def works(self, body: Mapping[str, JsonValue], *, since: float = float("-inf")) -> bool:
        """Whether the server has answered anything after `since`; where it has not, it is asked something short.

        Args:
            body: of a request that the server does not answer; the short one has its fields.
            since: as `time.monotonic`; the default is any time in this run.
        """
        async with self._trial:
            if self._worked_at > since:
                return True
            server = self._server
            try:
                async with asyncio.timeout(min(_TRIAL_SECONDS, server.timeout, server.patience)):
                    return await self._answers(trial(body))
            except TimeoutError:
                return False

    async def _answers(self, short: Mapping[str, JsonValue]) -> bool:
        for attempt in range(_TRIALS):
            if attempt:
                await asyncio.sleep(_FIRST_WAIT)
            self.retries += 1
            try:
                await self._attempt(short)
            except (DeadEndError, JudgeError, RefusedError):
                return False
            except (GarbledError, TroubleError):
                continue
            return True
        return False

    async def _attempt(self, body: Mapping[str, JsonValue]) -> Reply:
        reply = read_reply(await self._post(body), self._server.path)
        self._worked_at = time.monotonic()
        return reply

    async def _end(
        self, error: DeadEndError, body: Mapping[str, JsonValue], *, since: float, where: str
    ) -> Exception:
        """A failure of this request where the server works, else that it cannot be used."""
        words = self._server.words(str(error))
        ending = f"{self._at()}: {where}: {words}{error.remedy}"
        if not await self.works(body, since=since):
            return JudgeError(ending)
        return await self._fail(where, words if error.whole else words + error.remedy, ending)

    async def _wait(
        self, trouble: TroubleError, body: Mapping[str, JsonValue], story: _Story
    ) -> None:
        """Sleep before the next attempt, or give up."""
        patience = self._failures.patience(self._server.patience)
        if not self.reached:
            patience = min(patience, _FIRST_CONTACT)
        # A limit on requests is kept to by waiting: while others are answered it is one's turn some time.
        since = max(story.failed, self._answered_at) if trouble.limited else story.failed
        left = patience - (time.monotonic() - since)
        pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(story.number, 20))
        pause *= random.uniform(0.5, 1)
        if trouble.wait is not None:
            pause = max(pause, trouble.wait)
        if left <= 0 or (trouble.wait is not None and trouble.wait > left):
            raise await self._give_up(trouble, body, story.where, since) from None
        self._say(trouble, story.where, patience)
        self.retries += 1
        # The last attempt falls on the end of patience, however long the pause would have been.
        await asyncio.sleep(min(pause, left))

    def _say(self, trouble: TroubleError, where: str, patience: float) -> None:
        """A line about trouble, once in a while."""
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY:
            self._said_at = now
            words = self._server.words(str(trouble))
            say(f"{self._at()}: {where}: {words}; trying again for up to {patience:.0f} s")

    async def _give_up(
        self, trouble: TroubleError, body: Mapping[str, JsonValue], where: str, since: float
    ) -> Exception:
        """What to raise when patience is over."""
        server = self._server
        words, passed = server.words(str(trouble)), time.monotonic() - since
        ending = gave_up(self._at(), words, trouble, passed, server.patience)
        if not self.reached:
            return JudgeError(
                f"{self._at()}: {words}, for {passed:.0f} s, and no answer ever; start the server and wait "
                "until it is ready, or check the address"
            )
        # A server that asks to wait longer than we can is not asked something else instead.
        asks = trouble.wait is not None and trouble.wait > server.patience
        if not trouble.answered or (asks and (trouble.limited or self._answered_at <= since)):
            return JudgeError(ending)
        if not await self.works(body, since=since):
            return JudgeError(ending)
        others = self._answered_at > since
        how = "while others were answered" if others else "though a short question was answered"
        told = f"failed for {passed:.0f} s {how}: {words}; {trouble.remedy}"
        return await self._fail(where, told, ending)

    async def _fail(self, where: str, words: str, ending: str) -> Exception:
        """A failure of this request, or of the run where there are too many.

        Many in a row may be those that fail fast: the others that are under way are waited for first.
        """
        failures = self._failures
        error = failures.fail(where, words, ending)
        if isinstance(error, JudgeError):
            return error
        self._waiting += 1
        # Answers, failures and other requests that wait all end this, so an event would have to be set everywhere.
        while failures.many_in_a_row and self._waiting < self._under_way:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN)
        self._waiting -= 1
        return failures.end() if failures.many_in_a_row else error

    async def _post(self, body: Mapping[str, JsonValue]) -> str:
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
                self.timeouts += 1
                raise TroubleError(f"no reply within {server.timeout:g} s", remedy=_LATE) from None
            words = f"no connection ({type(cause).__name__}: {cause})".replace(": )", ")")
            if listens:
                raise TroubleError(words) from None
            raise TroubleError(words, answered=False, remedy=_NOBODY) from None
        self.reached = True
        if status is None:
            return text
        raise await self._explain(status) from None

    async def _explain(self, error: APIStatusError) -> Exception:
        """What an HTTP error means, as the exception to raise."""
        if error.status_code != 404:
            return explain_status(error, self._at(), self._server.api_key)
        words = self._server.words(server_words(error))
        said = "HTTP 404" + (f" ({words})" if words else "")
        return JudgeError(
            f"{self._at()}: {said}; check model {self._server.model!r}{await self._offered()} and base_url, "
            "which usually ends in /v1"
        )

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
