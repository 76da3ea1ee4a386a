"""What the HTTP errors of servers mean: worth another attempt, no answer to this request, or nothing that works at all.

What is done about it is decided in `prefopt.generate.server`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, cast

from prefopt.errors import JudgeError
from prefopt.generate.reply import DeadEndError, RefusedError

if TYPE_CHECKING:
    from openai import APIStatusError

_WORDS = 300
"""Characters of a server's words that go into a message."""


class TroubleError(Exception):
    """Something that may pass: worth another attempt."""

    def __init__(
        self,
        words: str,
        *,
        wait: float | None = None,
        answered: bool = True,
        limited: bool = False,
        remedy: str = "look at the server's log",
    ) -> None:
        super().__init__(words)
        self.wait = wait
        """Seconds that the server asks for."""
        self.answered = answered
        """Whether a server was there at all."""
        self.limited = limited
        """Whether the server answers no more requests for now."""
        self.remedy = remedy
        """What may help where it does not pass."""


def one_line(text: str, key: str) -> str:
    """A server's words on one line, shortened, with the key blotted out."""
    line = " ".join(text.split())
    if key:
        line = line.replace(key, "***")
    return line if len(line) <= _WORDS else line[: _WORDS - 3] + "..."


def explain_status(error: APIStatusError, at: str, key: str) -> Exception:
    """What an HTTP error other than 404 means, as the exception to raise.

    Args:
        error: of the client.
        at: the address, for messages.
        key: is blotted out.

    Returns:
        `TroubleError`: it may pass. `RefusedError`: the server will not answer this request. `DeadEndError`: nor any
        other, perhaps. `JudgeError`: nor any other.
    """
    code, words = error.status_code, one_line(server_words(error), key)
    said = f"HTTP {code}" + (f" ({words})" if words else "")
    if code == 401:
        return JudgeError(f"{at}: {said}: {_KEY}")
    if code == 403:
        return DeadEndError(said, f": {_KEY}", whole=True)
    if code in {400, 413, 422}:
        return RefusedError(said)
    if code == 429 and "insufficient_quota" in server_words(error) + str(error.code):
        return JudgeError(
            f"{at}: {said}: the account has no quota left; add some, or use another key"
        )
    if code in {408, 409, 425, 429} or code >= 500:
        wait = _retry_after(error.response.headers)
        if code == 429:
            return TroubleError(said, wait=wait, limited=True, remedy=_LIMITED)
        return TroubleError(said, wait=wait)
    target = error.response.headers.get("location")
    if target is not None:
        return JudgeError(
            f"{at}: {said}: redirects are not followed; if {one_line(target, key)} is the server, give it as base_url"
        )
    return DeadEndError(said, "; check base_url and endpoint", whole=True)


_LIMITED = "lower concurrency, or raise patience"
_KEY = "the key is not accepted; set OPENAI_API_KEY, or pass api_key"


def gave_up(at: str, words: str, trouble: TroubleError, passed: float, patience: float) -> str:
    """What to say when patience with trouble is over.

    Args:
        at: the address.
        words: of the trouble, on one line.
        trouble: the last of it.
        passed: seconds since it began.
        patience: seconds that there were.
    """
    kept = "what was answered is kept"
    left = patience - passed
    if trouble.wait is not None and trouble.wait > left:
        whole = trouble.wait > patience
        than = (
            f"patience ({patience:g} s)" if whole else f"what is left of patience ({patience:g} s)"
        )
        return (
            f"{at}: {words}: the server asks to wait {trouble.wait:.0f} s, longer than {than}; raise patience, or "
            f"start again later: {kept}"
        )
    return f"{at}: {words}, for {passed:.0f} s; {trouble.remedy}, and start again: {kept}"


def server_words(error: APIStatusError) -> str:
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
