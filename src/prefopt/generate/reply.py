"""The replies of OpenAI-compatible servers as texts. Nothing that looks like success but is none gets through.

Fields beyond the protocol are those of vLLM (`stop_reason`) and SGLang (`matched_stop`): the stop string that ended
the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast

_ENDED = frozenset({"stop", "eos_token", "stop_sequence"})
"""`eos_token` and `stop_sequence` are the words of text-generation-inference."""
_STOPPED_BY = ("stop_reason", "matched_stop")
_REASONING = ("reasoning_content", "reasoning")


class Reply(NamedTuple):
    """What a server wrote."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    """0 where the server does not say."""
    stopped_by: str | None
    names_stops: bool
    """Whether the server said what stopped the text, if only that no stop string did."""
    prompt_tokens: int
    """0 where the server does not say."""


class GarbledError(Exception):
    """A reply that breaks the protocol; another attempt may help."""


class DeadEndError(Exception):
    """No other attempt will help: the fault of the request where the server answers others, else of how it is used."""

    def __init__(self, words: str, remedy: str, *, whole: bool = False) -> None:
        super().__init__(words)
        self.remedy = remedy
        """What to do where nothing is answered, with the sign before it."""
        self.whole = whole
        """Whether the remedy is about all requests together, so that it is none for a single one."""


class RefusedError(Exception):
    """The server will not answer this request; the text is its reason."""


def read_reply(text: str, path: str) -> Reply:
    """The reply in the body of a successful response to `path`.

    A model that thinks first and is cut before it has written anything else gives an empty text of finish reason
    `length`.

    Raises:
        GarbledError: no JSON object, not exactly one choice, no text, or no finish reason.
        RefusedError: a content filter or the model itself refuses.
        DeadEndError: a finish reason that is no end of a text, or nothing but reasoning.
    """
    try:
        body = json.loads(text)
    except ValueError:
        raise GarbledError(f"the reply is no JSON: {text[:80]!r}") from None
    choice = _choice(body)
    reason = choice.get("finish_reason")
    message = choice.get("message") if path == "/chat/completions" else choice
    if not isinstance(message, dict):
        raise GarbledError("the reply's choice has no message")
    message = cast("dict[str, object]", message)
    refusal = message.get("refusal")
    if reason == "content_filter":
        raise RefusedError("stopped by the server's content filter")
    if isinstance(refusal, str) and refusal:
        raise RefusedError(f"the model refuses: {refusal}")
    finish = _finish(reason)
    content = message.get("content" if path == "/chat/completions" else "text")
    if not isinstance(content, str) or not content:
        content = _empty(message, content, finish)
    stopped = next((s for s in map(choice.get, _STOPPED_BY) if s), None)
    return Reply(
        content,
        finish,
        _tokens(body, "completion_tokens"),
        stopped if isinstance(stopped, str) else None,
        any(name in choice for name in _STOPPED_BY),
        _tokens(body, "prompt_tokens"),
    )


def _choice(body: object) -> dict[str, object]:
    if not isinstance(body, dict):
        raise GarbledError(f"the reply is no JSON object: {str(body)[:80]}")
    fields = cast("dict[str, object]", body)
    choices = fields.get("choices")
    if not isinstance(choices, list):
        said = f": {json.dumps(fields['error'])[:200]}" if fields.get("error") else ""
        raise GarbledError(f"the reply has no choices{said}")
    listed = cast("list[object]", choices)
    if len(listed) != 1 or not isinstance(listed[0], dict):
        raise GarbledError(f"the reply has {len(listed)} choices where 1 was asked for")
    return cast("dict[str, object]", listed[0])


def _finish(reason: object) -> Literal["stop", "length"]:
    if reason in _ENDED:
        return "stop"
    if reason == "length":
        return "length"
    if reason is None:
        raise GarbledError("finish_reason is null: nothing says whether the text is whole")
    if reason == "abort":
        raise GarbledError("the server broke the request off (finish_reason 'abort')")
    raise DeadEndError(
        f"the reply has finish_reason {reason!r}, which is no end of a text",
        "; use a model and options that answer in plain text",
    )


def _empty(
    message: Mapping[str, object], content: object, finish: Literal["stop", "length"]
) -> str:
    """The text where there is none to be seen: legitimate, or a reason to stop."""
    thought = next((v for v in map(message.get, _REASONING) if isinstance(v, str) and v), None)
    if thought is not None and finish == "length":
        return ""
    if thought is not None:
        raise DeadEndError(
            "the reply holds its text as reasoning and has no content",
            "; start the server without the reasoning parser, or use a model that does not think aloud",
        )
    if not isinstance(content, str):
        raise GarbledError(f"the reply has no text (content is {json.dumps(content)[:80]})")
    return content


def _tokens(body: object, name: str) -> int:
    usage = cast("dict[str, object]", body).get("usage")
    if not isinstance(usage, dict):
        return 0
    tokens = cast("dict[str, object]", usage).get(name)
    return tokens if isinstance(tokens, int) and tokens > 0 else 0
