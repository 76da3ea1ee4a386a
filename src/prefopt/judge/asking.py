"""Putting questions to a judge until its verdicts can be read, and counting what that takes.

A verdict that cannot be read is asked for again, and is missing after all attempts; so is one that the server refused.
Neither ever becomes a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from prefopt.errors import ConfigError
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.judge.readings import Rules
from prefopt.records import Message

T = TypeVar("T")

AGAIN = 0.7
"""Temperature of the second and later attempts of a judge that is greedy at first and would repeat itself."""


class Spent(NamedTuple):
    """What stands behind verdicts: requests and replies, whether of now or of an earlier run."""

    requests: int = 0
    """Questions put to the judge; a failed attempt that was tried again is part of one."""
    refused: int = 0
    """Requests that the server will not answer; nothing is known of their tokens."""
    unread: int = 0
    """Replies without a verdict that can be read."""
    prompt_tokens: int = 0
    """Tokens that the judge read, over the replies of which they are known."""
    tokens: int = 0
    """Tokens that the judge wrote, likewise."""
    prompts_uncounted: int = 0
    """Replies to prompts of which no tokens are known: servers need not count them."""
    uncounted: int = 0
    """Replies that are not empty, and of which no tokens are known."""

    @property
    def replies(self) -> int:
        """Requests that were answered."""
        return self.requests - self.refused

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))


class Heard(NamedTuple, Generic[T]):
    """What a judge said to one question."""

    verdict: T | None
    """None: missing."""
    text: str
    """The judge's words, those of the last attempt; a server's where it refused."""
    remark: str
    """Why the verdict is missing; else empty."""
    spent: Spent


class Asked(NamedTuple):
    """One question to a judge."""

    id: str
    """Unique within one call."""
    prompt: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Asking(Generic[T]):
    """Who is asked, how, and how the answers are read."""

    generator: Generator
    rules: Rules[T]
    sampling: Sampling = field(
        default_factory=lambda: Sampling(max_new_tokens=1024, purpose="judge")
    )
    attempts: int = 3
    """How often one question is put while its verdict cannot be read."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"judge: attempts is {self.attempts}; use 1 or more")

    def ask(
        self,
        questions: Sequence[Asked],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> list[Heard[T]]:
        """What the judge says to each question, in their order. The journal's replies are not asked for again.

        Raises:
            JudgeError: the server cannot be used (`prefopt.generate.openai`).
            RecordError: two questions have the same id.
        """
        heard: dict[int, Heard[T]] = {}
        open_ = list(range(len(questions)))
        greedy = self.sampling.temperature == 0
        again = replace(self.sampling, temperature=AGAIN) if greedy else self.sampling
        for attempt in range(self.attempts):
            if not open_:
                break
            requests = [Request(questions[k].id, attempt, questions[k].prompt) for k in open_]
            shown = _shifted(progress, len(questions) - len(open_), len(questions))
            sampling = again if attempt else self.sampling
            replies = complete(self.generator, requests, sampling, journal, progress=shown)
            for k, reply in zip(open_, replies, strict=True):
                before = heard[k].spent if k in heard else Spent()
                heard[k] = self._hear(reply, before)
            open_ = [
                k
                for k, reply in zip(open_, replies, strict=True)
                if heard[k].verdict is None and reply.finish_reason != "error"
            ]
        if progress is not None:
            progress(len(questions), len(questions))
        return [heard[k] for k in range(len(questions))]

    def _hear(self, reply: Completion, before: Spent) -> Heard[T]:
        if reply.finish_reason == "error":
            spent = before.plus(Spent(requests=1, refused=1))
            return Heard(None, reply.text, f"refused: {reply.text}", spent)
        cut = reply.finish_reason == "length"
        verdict = None if cut and self.rules.last else self.rules.read(reply.text)
        spent = before.plus(_spent(reply, unread=verdict is None))
        if verdict is not None:
            return Heard(verdict, reply.text, "", spent)
        why = f"no verdict to be read by the rules '{self.rules.name}'"
        if cut:
            why += f"; cut at {self.sampling.max_new_tokens} tokens"
        return Heard(None, reply.text, why, spent)


def _spent(reply: Completion, *, unread: bool) -> Spent:
    silent = int(reply.prompt_tokens == 0), int(reply.tokens == 0 and reply.text != "")
    return Spent(1, 0, int(unread), reply.prompt_tokens, reply.tokens, *silent)


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress over all questions from that over the ones that are asked."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def total_spent(parts: Sequence[Spent]) -> Spent:
    """The sum."""
    total = Spent()
    for part in parts:
        total = total.plus(part)
    return total
