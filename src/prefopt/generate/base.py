"""The one protocol for making text: requests in, completions out. No models, no torch, no files.

Local transformers models, servers and anything else that writes text implement `Generator`; everything that
needs text (data building, evaluation) takes one and goes through `prefopt.generate.journal.complete`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from prefopt.errors import ConfigError
from prefopt.records import Message
from prefopt.values import JsonValue

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """One text to be made: sample number `sample` for record `id`."""

    id: str
    sample: int
    prompt: str | tuple[Message, ...]
    """A conversation, rendered with the chat template, or a plain string, used as it is."""
    prefix: str = ""
    """Unfinished assistant text that the completion continues; it is not repeated in the completion."""
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    """Of the record; chat templates read `tools` and `chat_template_kwargs`."""

    def digest(self) -> str:
        """Digest of what the model is shown (prompt, prefix, template arguments), 16 hex digits."""
        prompt = self.prompt if isinstance(self.prompt, str) else [_message(m) for m in self.prompt]
        arguments = [self.meta.get("tools"), self.meta.get("chat_template_kwargs")]
        return _digest([prompt, self.prefix, arguments])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy decoding."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Nucleus: the smallest set of most probable tokens that holds this much probability; 1 is everything."""
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Strings that end a completion; the text ends before the first one."""
    seed: int = 0
    purpose: str = "generate"
    """What the completions are for (`errors`, `corrections`, `evaluation`); part of every sample's seed."""
    keep_special: bool = False
    """Whether special tokens stay in the text, for formats whose structure they are; what ends the text never does."""
    needs_stops: bool = False
    """Whether `Completion.stopped_by` decides how a text goes on; a server that does not say it is then an error. It
    changes no sample, so it is in no digest."""

    def __post_init__(self) -> None:
        wrong = [
            (not 0 <= self.temperature < math.inf, "temperature", "use 0 (greedy) or more"),
            (not 0 < self.top_p <= 1, "top_p", "use more than 0 and at most 1"),
            (self.max_new_tokens < 1, "max_new_tokens", "use 1 or more"),
            ("" in self.stop, "stop", "an empty string would end every completion: remove it"),
        ]
        for bad, key, remedy in wrong:
            if bad:
                raise ConfigError(f"sampling: {key} is {getattr(self, key)!r}; {remedy}")

    def digest(self) -> str:
        """Digest of everything that decides a sample except its purpose, 16 hex digits."""
        stop = list(self.stop)
        parts: list[object] = [self.temperature, self.top_p, self.max_new_tokens, stop, self.seed]
        # Only where it is set, so that journals from before this field hold.
        return _digest([*parts, "special tokens kept"] if self.keep_special else parts)


class Completion(NamedTuple):
    """One text made for a `Request` with the same `id` and `sample`."""

    id: str
    sample: int
    text: str
    """What follows prompt and prefix, without end-of-sequence token and stop string.

    With finish reason `error`: the server's own words about why it refused."""
    finish_reason: FinishReason
    """`stop`: the model ended it or a stop string did. `length`: it was cut at the token limit.

    `error`: a server refused this request for good (too long a prompt, a content filter), or fails at this one where it
    answers others; there is no text, and the journal keeps nothing, so that a later run asks again."""
    tokens: int
    """Tokens the model produced, end-of-sequence token and stop string included; 0 where a server does not say."""
    stopped_by: str | None = None
    """The stop string that ended the text; None where the model ended it itself.

    None as well where a server does not say, unless `Sampling.needs_stops` forbids that."""
    prompt_tokens: int = 0
    """Tokens of the prompt that was read for it; 0 where a server does not say."""


class Generator(Protocol):
    """Something that completes prompts."""

    @property
    def identity(self) -> str:
        """Digest of everything that decides what it writes: weights, tokenizer, chat template."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion per request, in any order.

        A sample depends on (seed, purpose, id, sample) and its prompt, never on the other requests.
        """
        ...


class Tally(NamedTuple):
    """What a generator on a server did so far."""

    answered: int = 0
    refused: int = 0
    retries: int = 0
    """Requests sent beyond the first attempt at each text, whatever for."""
    timeouts: int = 0
    """Attempts that brought no reply in time."""

    def since(self, before: Tally) -> Tally:
        """What was done after `before`."""
        return Tally(*(now - then for now, then in zip(self, before, strict=True)))


@runtime_checkable
class Tallied(Protocol):
    """A generator that counts what it takes to get its texts."""

    @property
    def tally(self) -> Tally:
        """Counts since the object was made."""
        ...


def tally_of(generator: Generator) -> Tally:
    """The counts of a generator; zeros for one that has none, such as a model in this process."""
    return generator.tally if isinstance(generator, Tallied) else Tally()


@runtime_checkable
class Reminded(Protocol):
    """A generator that is told of its texts in a journal: they say that it worked before."""

    def remind(self, texts: int) -> None:
        """There were so many more texts of it."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A generator that knows how much its model can read."""

    def room(self, requests: Sequence[Request]) -> list[int]:
        """Tokens that each request's prompt leaves in the model's context; below 1 it cannot be completed."""
        ...


def _message(message: Message) -> list[JsonValue]:
    return [message.role, message.content, dict(message.extra)]


def _digest(value: Sequence[object]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
