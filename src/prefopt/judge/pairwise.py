"""A language model compares the answers of two models, as in AlpacaEval and MT-Bench's pairwise mode.

Judges favour positions. Either both orders are asked and verdicts that disagree make a tie, or each question is asked
in one order that is drawn by (seed, id). The wording is ours (`prefopt.judge.template`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from prefopt.errors import ConfigError
from prefopt.generate.journal import Journal, Progress
from prefopt.grade.winrate import Verdict, combine_positions
from prefopt.judge.asking import Asked, Asking, Heard, Spent, total_spent
from prefopt.judge.outputs import Contest
from prefopt.judge.readings import Preference
from prefopt.judge.single import asked_text, earlier, shown
from prefopt.judge.template import PAIRWISE, Template
from prefopt.records import Message

Order = Literal["both", "random"]
_MODEL_FIRST: dict[Preference, Verdict] = {"1": "win", "2": "loss", "tie": "tie"}
_MODEL_SECOND: dict[Preference, Verdict] = {"1": "loss", "2": "win", "tie": "tie"}
EQUAL = "the answers are equal: not asked"


class Seen(NamedTuple):
    """What the judge says in one order of the answers."""

    model_first: bool
    verdict: Verdict
    """About the model."""
    text: str
    """The judge's words."""
    remark: str
    """Why the verdict is missing; else empty."""


class Compared(NamedTuple):
    """The verdict on one turn of a contest."""

    id: str
    """Of the contest."""
    turn: int
    """From 1."""
    verdict: Verdict
    """About the model, of both orders together where both were asked; `missing` is no verdict."""
    seen: tuple[Seen, ...]
    """One for each order that was asked; none for equal answers."""
    remark: str
    spent: Spent

    def when(self, *, model_first: bool) -> Verdict:
        """The verdict of one order; that of equal answers is a tie, and an order not asked is missing."""
        if not self.seen:
            return self.verdict
        said: list[Verdict] = [s.verdict for s in self.seen if s.model_first == model_first]
        return said[0] if said else "missing"


class _Duel(NamedTuple):
    """One turn of a contest in one order."""

    contest: Contest
    turn: int
    model_first: bool


class PairwiseJudge:
    """Compares answers."""

    def __init__(
        self,
        asking: Asking[Preference],
        *,
        template: Template = PAIRWISE,
        order: Order = "both",
        seed: int = 0,
    ) -> None:
        """Wrap whoever is asked.

        Args:
            asking: the judge, with rules out of `prefopt.judge.readings.PREFERENCES`.
            template: what it is shown.
            order: `both`: each turn is judged twice, answers swapped. `random`: once.
            seed: of the random order.

        Raises:
            ConfigError: the order is neither.
        """
        if order not in {"both", "random"}:
            raise ConfigError(f"judge: order is {order!r}; use both or random")
        self._asking = asking
        self._template = template
        self._order = order
        self._seed = seed

    def compare(
        self,
        contests: Sequence[Contest],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> list[Compared]:
        """One verdict for each turn of each contest, in their order. Equal answers are a tie without being asked about.

        Raises:
            JudgeError: the server cannot be used (`prefopt.generate.openai`).
            RecordError: two contests have the same id.
        """
        turns = [(c, turn) for c in contests for turn in range(1, len(c.model.answers) + 1)]
        duels = [
            _Duel(contest, turn, first)
            for contest, turn in turns
            if not _equal(contest, turn)
            for first in self._orders(contest, turn)
        ]
        asked = [Asked(_name(duel), self._prompt(duel)) for duel in duels]
        heard = self._asking.ask(asked, journal=journal, progress=progress)
        found: dict[tuple[str, int], list[tuple[_Duel, Heard[Preference]]]] = {}
        for duel, each in zip(duels, heard, strict=True):
            found.setdefault((duel.contest.id, duel.turn), []).append((duel, each))
        return [_compared(c, turn, found.get((c.id, turn), [])) for c, turn in turns]

    def _orders(self, contest: Contest, turn: int) -> tuple[bool, ...]:
        """Whether the model's answer comes first, for each time that the judge is asked."""
        if self._order == "both":
            return (True, False)
        digest = hashlib.sha256(f"{self._seed}/{turn}/{contest.id}".encode()).digest()
        return (digest[0] % 2 == 0,)

    def _prompt(self, duel: _Duel) -> tuple[Message, ...]:
        (model, baseline), turn = duel.contest, duel.turn
        one, two = (model, baseline) if duel.model_first else (baseline, model)
        return self._template.fill(
            {
                "question": asked_text(model, turn),
                "answer_1": shown(one.answers[turn - 1]),
                "answer_2": shown(two.answers[turn - 1]),
                "earlier_1": earlier(one, turn),
                "earlier_2": earlier(two, turn),
                "reference": model.reference(turn) or baseline.reference(turn),
                "form": self._asking.rules.form,
            }
        )


def _name(duel: _Duel) -> str:
    order = "model first" if duel.model_first else "model second"
    return f"{duel.contest.id}/{duel.turn}/{order}"


def _equal(contest: Contest, turn: int) -> bool:
    """Whether both said the same up to this turn."""
    model, baseline = contest
    return model.answers[:turn] == baseline.answers[:turn] and earlier(model, 1) == earlier(
        baseline, 1
    )


def _compared(
    contest: Contest, turn: int, heard: Sequence[tuple[_Duel, Heard[Preference]]]
) -> Compared:
    if not heard:
        return Compared(contest.id, turn, "tie", (), EQUAL, Spent())
    seen = tuple(_seen(duel, each) for duel, each in heard)
    verdict = seen[0].verdict
    if len(seen) == 2:
        verdict = combine_positions(seen[0].verdict, seen[1].verdict)
    remark = next((s.remark for s in seen if s.remark), "")
    return Compared(
        contest.id, turn, verdict, seen, remark, total_spent([each.spent for _, each in heard])
    )


def _seen(duel: _Duel, heard: Heard[Preference]) -> Seen:
    meaning = _MODEL_FIRST if duel.model_first else _MODEL_SECOND
    verdict: Verdict = "missing" if heard.verdict is None else meaning[heard.verdict]
    return Seen(duel.model_first, verdict, heard.text, heard.remark)
