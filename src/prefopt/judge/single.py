"""A language model grades answers one at a time, from 1 to 10, as in MT-Bench (Zheng et al. 2023, arXiv 2306.05685).

Each turn of a conversation is graded by itself; the judge sees the turns before it. Where there is a reference answer,
the judge is told to compare with it first. The wording is ours (`prefopt.judge.template`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from prefopt.generate.journal import Journal, Progress
from prefopt.judge.asking import Asked, Asking, Spent
from prefopt.judge.outputs import Exchange
from prefopt.judge.template import SINGLE, Template
from prefopt.records import Message

NOTHING, NOTHING_ASKED = "(The answer is empty.)", "(The question is empty.)"
"""Shown in the place of an empty answer and of an empty question."""


class Graded(NamedTuple):
    """The grade of one turn."""

    id: str
    """Of the exchange."""
    turn: int
    """From 1."""
    score: float | None
    """From 1 to 10; None: missing, which is no score."""
    text: str
    """The judge's words."""
    remark: str
    """Why the grade is missing; else empty."""
    spent: Spent


class SingleJudge:
    """Grades answers."""

    def __init__(self, asking: Asking[float], *, template: Template = SINGLE) -> None:
        """Wrap whoever is asked.

        Args:
            asking: the judge, with rules out of `prefopt.judge.readings.GRADES`.
            template: what it is shown.
        """
        self._asking = asking
        self._template = template

    def grade(
        self,
        exchanges: Sequence[Exchange],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> list[Graded]:
        """One grade for each turn of each exchange that has answers, in their order.

        Raises:
            JudgeError: the server cannot be used (`prefopt.generate.openai`).
            RecordError: two exchanges have the same id.
        """
        turns = [(e, turn) for e in exchanges for turn in range(1, len(e.answers) + 1)]
        asked = [Asked(f"{e.id}/{turn}", self._prompt(e, turn)) for e, turn in turns]
        heard = self._asking.ask(asked, journal=journal, progress=progress)
        return [
            Graded(e.id, turn, h.verdict, h.text, h.remark, h.spent)
            for (e, turn), h in zip(turns, heard, strict=True)
        ]

    def _prompt(self, exchange: Exchange, turn: int) -> tuple[Message, ...]:
        return self._template.fill(
            {
                "question": asked_text(exchange, turn),
                "answer": shown(exchange.answers[turn - 1]),
                "earlier": earlier(exchange, turn),
                "reference": exchange.reference(turn),
                "form": self._asking.rules.form,
            }
        )


def asked_text(exchange: Exchange, turn: int) -> str:
    """What the user says in a turn, or words for an empty question."""
    question = exchange.questions[turn - 1]
    return question if question.strip() else NOTHING_ASKED


def shown(answer: str) -> str:
    """The answer, or words for an empty one."""
    return answer if answer.strip() else NOTHING


def earlier(exchange: Exchange, turn: int) -> str:
    """What was said before a turn, system text included; empty before the first turn of a plain question."""
    said = [(m.role, m.content) for m in exchange.opening]
    for question, answer in zip(
        exchange.questions[: turn - 1], exchange.answers[: turn - 1], strict=True
    ):
        said += [("user", question), ("assistant", shown(answer))]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in said)
