"""Answers of a model to a file of questions, turn by turn: what `prefopt generate` does.

Beside the file that is written stand a journal of what the model wrote (an interrupted command goes on where it
stopped) and the settings it was written with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import ConfigError, JudgeError, RecordError
from prefopt.evals.writer import Opened, require_same_writer, tell_of_strangers
from prefopt.generate.base import Completion, Request, Sampling, Tally, tally_of
from prefopt.generate.journal import Journal, complete
from prefopt.judge.outputs import OUTPUT_COLUMNS
from prefopt.progress import counted
from prefopt.records import Message
from prefopt.text.files import Row
from prefopt.text.lock import locked
from prefopt.text.questions import Question, read_questions
from prefopt.text.whole import write_whole
from prefopt.values import JsonValue

_BUSY = "wait for it, or give another --output"


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How questions are put and answered."""

    model: str
    """What the rows call it (`generator`)."""
    server: str | None = None
    sampling: Sampling = field(
        default_factory=lambda: Sampling(max_new_tokens=1024, purpose="answers")
    )
    system: str = ""
    """System text before each question that has none."""
    talk: bool | None = None
    """Whether questions are put as conversations; None: where the model has a chat template."""
    limit: int | None = None
    extra_body: Mapping[str, JsonValue] | None = None
    """Further fields of requests to the server; part of what decides the answers."""
    known_as: str | None = None
    """An earlier address of the server, which its texts are known by."""


class Answers(NamedTuple):
    """What was written."""

    path: Path
    rows: int
    new: int
    """Texts that were not in the journal before."""
    cut: int
    """Texts that were cut at the limit of tokens."""
    failed: list[tuple[str, str]]
    """Ids of rows that the model or server refused, and why; their output is null."""
    tokens: int
    """Over the texts of which they are known."""
    uncounted: int
    """Texts whose tokens are not known: a server that does not count them."""
    tally: Tally
    """Of the server in this run; zeros for a model in this process."""


@dataclass(slots=True)
class _Talk:
    """A question on its way."""

    question: Question
    given: list[Completion] = field(default_factory=list)

    @property
    def failed(self) -> Completion | None:
        return next((c for c in self.given if c.finish_reason == "error"), None)


def write_answers(
    source: Path, target: Path, opened: Opened, settings: AnswerSettings, *, overwrite: bool
) -> Answers:
    """The answers to all questions of a file, written into another; each turn is answered before the next is said.

    A row of the target has all columns of its question, `id`, `prompt`, and `output`: a text, a list of texts where
    there are several turns, or null where the model or server refused.

    Raises:
        ConfigError: the target exists with other settings, or is the source or a folder.
        RecordError: a row has no question, or several turns that a model without chat template cannot be told.
        StorageError: a file cannot be read or written.
        JudgeError: the server cannot be used, or nothing at all was answered; what was answered is kept.
        ResumeError: another process writes this file.
    """
    if target.is_dir() or (target.exists() and source.exists() and target.samefile(source)):
        what = "a folder" if target.is_dir() else "the file of questions"
        raise ConfigError(f"--output {target} is {what}; give the name of a new file")
    questions = read_questions(source, limit=settings.limit)
    talk = opened.talks if settings.talk is None else settings.talk
    facts = _facts(source, settings, opened, talk=talk)
    told = target.with_name(f"{target.stem}.settings.json")
    if target.exists() and not told.exists() and not overwrite:
        raise ConfigError(
            f"{target} exists, and nothing says how it was made; give another name, or replace it with --overwrite"
        )
    talks, tally = [_Talk(question) for question in questions], tally_of(opened.generator)
    with (
        locked(target.with_name(f".{target.name}.lock"), busy=f"is writing {target.name}; {_BUSY}"),
        Journal(target.with_name(f"{target.stem}.sqlite")) as journal,
    ):
        if settings.server is not None:
            tell_of_strangers(journal, opened.generator)
        require_same_writer(
            target.parent, facts, overwrite=overwrite, file=told.name, known_as=settings.known_as
        )
        before = journal.count()
        _answer(talks, opened, settings, journal, talk=talk)
        new = journal.count() - before
        found = _sum_up(target, talks, new, tally_of(opened.generator).since(tally))
        rows = [json.dumps(_row(t, settings), ensure_ascii=False) for t in talks]
        write_whole(target, (f"{row}\n" for row in rows))
        known = {} if settings.known_as is None else {"known_as": settings.known_as}
        made = {"name": target.name, **known, "settings": facts}
        write_whole(told, [json.dumps(made, indent=1), "\n"])
    return found


def _sum_up(target: Path, talks: Sequence[_Talk], new: int, tally: Tally) -> Answers:
    failed = [(t.question.id, t.failed.text) for t in talks if t.failed is not None]
    if len(failed) == len(talks):
        name, why = failed[0]
        raise JudgeError(
            f"{target}: not one of {len(talks):,} questions was answered, so nothing is written; first '{name}': {why}"
        )
    given = [c for t in talks for c in t.given if c.finish_reason != "error"]
    return Answers(
        target,
        len(talks),
        new,
        sum(c.finish_reason == "length" for c in given),
        failed,
        sum(c.tokens for c in given),
        sum(not c.tokens and bool(c.text) for c in given),
        tally,
    )


def _answer(
    talks: Sequence[_Talk],
    opened: Opened,
    settings: AnswerSettings,
    journal: Journal,
    *,
    talk: bool,
) -> None:
    """Fill `given` of each talk."""
    longest = max(len(t.question.turns) for t in talks)
    for turn in range(longest):
        going = [t for t in talks if turn < len(t.question.turns) and t.failed is None]
        requests = [
            Request(t.question.id, turn, _conversation(t, turn, settings.system))
            if talk
            else Request(t.question.id, turn, _text(t.question, settings.system))
            for t in going
        ]
        title = "answers" if longest == 1 else f"answers, turn {turn + 1}"
        with counted(title) as tick:
            done = complete(opened.generator, requests, settings.sampling, journal, progress=tick)
        for each, completion in zip(going, done, strict=True):
            each.given.append(completion)


def _conversation(talk: _Talk, turn: int, system: str) -> tuple[Message, ...]:
    question = talk.question
    messages = list(question.opening)
    if system and not any(m.role == "system" for m in messages):
        messages.insert(0, Message("system", system))
    for said, given in zip(question.turns, talk.given, strict=False):
        messages += [Message("user", said), Message("assistant", given.text)]
    return (*messages, Message("user", question.turns[turn]))


def _text(question: Question, system: str) -> str:
    first, *more = question.turns
    if more or question.opening or system:
        raise RecordError(
            f"{question.origin}: a conversation (several turns, messages or a system text) needs a model with a chat "
            "template; this one continues plain text"
        )
    return first


def _row(talk: _Talk, settings: AnswerSettings) -> Row:
    question, given = talk.question, talk.given
    texts: list[JsonValue] = [c.text for c in given]
    reasons: list[JsonValue] = [c.finish_reason for c in given]
    several = len(question.turns) > 1
    opening: list[JsonValue] = [{"role": m.role, "content": m.content} for m in question.opening]
    asked: list[JsonValue] = list(question.turns)
    prompt: JsonValue = asked if several else asked[0]
    if opening:
        prompt = [*opening, {"role": "user", "content": question.turns[0]}]
    output: JsonValue = texts if several else texts[0]
    kept = {k: v for k, v in question.values.items() if k not in OUTPUT_COLUMNS}
    row: dict[str, JsonValue] = {
        **kept,
        "id": question.id,
        "prompt": prompt,
        "output": None if talk.failed is not None else output,
        "generator": settings.model,
        "finish_reason": reasons if several else reasons[0],
        "tokens": sum(c.tokens for c in given),
    }
    return row if talk.failed is None else {**row, "remark": talk.failed.text}


def _facts(
    source: Path, settings: AnswerSettings, opened: Opened, *, talk: bool
) -> dict[str, JsonValue]:
    """Everything that decides the answers."""
    sampling = settings.sampling
    return {
        "target": settings.model,
        "server": settings.server,
        "generator": opened.generator.identity,
        "problems": str(source),
        "problems_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "limit": settings.limit,
        "chat": talk,
        "system": settings.system or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "extra_body": None if settings.extra_body is None else dict(settings.extra_body),
    }
