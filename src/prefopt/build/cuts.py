"""Correct solutions, the places to cut them, and the search for wrong tails: Step-Controlled DPO, text and code alike.

A solution is a row of parts (steps, lines, blocks); joined they are its text. Who writes and judges tails is the
business of `prefopt.build.controlled` and `prefopt.build.controlled_code`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

from prefopt.errors import ConfigError, RecordError
from prefopt.generate.schedule import PRESETS, Rising
from prefopt.text.problems import Problem

P = TypeVar("P", bound=Problem)

StartZero = Literal["drop", "controlled", "naive"]


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What the pipelines of text and of code have in common; defaults as published for Mistral-7B."""

    samples: int = 4
    """Solutions sampled per problem."""
    max_samples: int | None = None
    """Problems that still lack a correct or a wrong solution get `samples` more, up to so many; None: no more.
    Published: 100."""
    naive_correct: int = 1
    """Correct solutions of a question that make naive pairs: the first ones."""
    naive_wrong: int = 1
    """Wrong solutions of a question, each paired with each of those."""
    add_naive: bool = True
    """Whether naive pairs are in the training set. Published: added by the builder for MathCoder and InternLM; not by
    the one for Mistral, whose whole solutions are those of `start_zero: controlled`."""
    per_question: int | None = 2
    """Controlled pairs of a question, those found in the fewest attempts first; None: all. Published: 2 for GSM8K,
    3 for MATH."""
    compat_limit: bool = False
    """The published limit: counted down over the whole data set instead of within each question, so that it cuts
    one question short and then nothing any more."""
    start_zero: StartZero = "drop"
    """Whole solutions written anew at the rising temperatures. `drop`: none are made (the published builder that adds
    naive pairs); `controlled`: they are controlled pairs and count towards the limit (the published builder for
    Mistral); `naive`: they are naive pairs, beside those sampled."""
    cut: Literal["all", "random"] = "all"
    """Cut points of a solution: every one (the published code), or one drawn at random (the paper)."""
    attempts: int = 10
    """Tails written at most from one cut point until one of them is wrong."""
    schedule: Rising = PRESETS["code"]
    """Temperature of each newly written step."""
    held_out: float = 0.0
    """Share of the questions whose pairs are kept apart, to evaluate on."""
    seed: int = 0

    @property
    def limit(self) -> int | None:
        """The limit of controlled pairs within each question."""
        return None if self.compat_limit else self.per_question

    def limits(self, cut: Cut[P]) -> bool:
        """Whether tails of that cut count towards the limit."""
        return cut.start > 0 or self.start_zero != "naive"

    def __post_init__(self) -> None:
        for name in ("samples", "naive_correct", "naive_wrong", "attempts"):
            value = getattr(self, name)
            require(name, value, "use 1 or more", claim=value >= 1)
        most, limit, share = self.max_samples, self.per_question, self.held_out
        remedy = f"use at least samples ({self.samples}), or none"
        require("max_samples", most, remedy, claim=most is None or most >= self.samples)
        remedy = "use 1 or more, or none for all"
        require("per_question", limit, remedy, claim=limit is None or limit >= 1)
        require("held_out", share, "use 0 or more, and less than 1", claim=0 <= share < 1)
        hot = self.schedule.start > 0 and self.schedule.cap > 0
        remedy = "greedy tails never differ: use more than 0"
        require("schedule", tuple(self.schedule), remedy, claim=hot)
        self._refuse_without_effect()

    def _refuse_without_effect(self) -> None:
        if self.compat_limit:
            remedy = "with start_zero 'controlled' it has no effect: remove it"
            require("compat_limit", True, remedy, claim=self.start_zero != "controlled")
            remedy = "without per_question it has no effect: remove it"
            require("compat_limit", True, remedy, claim=self.per_question is not None)
        remedy = "start_zero 'naive' makes naive pairs, which would be left out: use 'controlled'"
        left_out = not self.add_naive and self.start_zero == "naive"
        require("add_naive", self.add_naive, remedy, claim=not left_out)


def require(name: str, value: object, remedy: str, *, claim: bool) -> None:
    """Nothing where the claim holds.

    Raises:
        ConfigError: it does not.
    """
    if not claim:
        raise ConfigError(f"controlled pairs: {name} is {value!r}; {remedy}")


class Solution(NamedTuple):
    """One solution of a problem."""

    sample: int
    parts: tuple[str, ...]
    """Joined they are everything after the prompt."""
    opening: str = ""
    """Given text at the start of the first part; nobody is rewarded for it."""
    ends: bool = True
    """Whether the model ended it itself."""
    kind: str = ""
    """What its parts are: `markers`, `lines` or `blocks`."""

    def front(self, start: int) -> str:
        """The first `start` parts, or the opening."""
        return "".join(self.parts[:start]) if start else self.opening

    def tail(self, start: int) -> str:
        """What follows that front."""
        return "".join(self.parts)[len(self.front(start)) :]


class Solutions(NamedTuple):
    """The solutions of one problem, in the order they were sampled."""

    right: list[Solution]
    wrong: list[Solution]


class Cut(NamedTuple, Generic[P]):
    """A correct solution and the place where a new tail starts."""

    problem: P
    source: Solution
    start: int
    """Parts kept."""

    @property
    def id(self) -> str:
        """Unique among the cuts of problems with unique ids."""
        return f"{self.problem.id}/{self.start}"

    @property
    def front(self) -> str:
        """What is kept of the solution."""
        return self.source.front(self.start)


class Tail(NamedTuple, Generic[P]):
    """A wrong way to go on from a cut."""

    cut: Cut[P]
    attempt: int
    """From 0; a small one says that the policy errs easily here."""
    text: str
    ends: bool = True


class Unusable(NamedTuple):
    """A tail that is no negative, and why."""

    reason: str


Write = Callable[[Sequence[Cut[P]], int], Sequence[Tail[P] | Unusable]]
"""Writes one tail per cut for an attempt, and judges it; in the order of the cuts."""


def require_unique(problems: Sequence[Problem]) -> None:
    """Nothing where all ids differ.

    Raises:
        RecordError: two problems have the same id.
    """
    counted = Counter(problem.id for problem in problems)
    for name, count in counted.items():
        if count > 1:
            raise RecordError(f"problem '{name}': {count} problems have this id; make ids unique")


def find_solutions(
    problems: Sequence[P],
    sample: Callable[[Sequence[tuple[P, int]]], Sequence[Solution | Unusable]],
    judge: Callable[[Sequence[tuple[P, Solution]]], Sequence[bool | Unusable]],
    settings: ControlSettings,
    counts: Counter[str],
    *,
    same: Callable[[Solution, Solution], bool] = lambda a, b: a.parts == b.parts,
) -> dict[str, Solutions]:
    """Right and wrong solutions of every problem, none twice, by problem id and in the order they were sampled.

    Args:
        problems: with unique ids.
        sample: writes solutions for (problem, sample number), in order.
        judge: whether they are right, in order, or why they are neither.
        settings: how many samples, and which problems get more of them.
        counts: receives what there was.
        same: whether a solution adds nothing to one that is kept already.
    """
    found = {problem.id: Solutions([], []) for problem in problems}
    pending, start = list(problems), 0
    while pending and start < (settings.max_samples or settings.samples):
        end = min(start + settings.samples, settings.max_samples or settings.samples)
        asked = [(problem, number) for problem in pending for number in range(start, end)]
        usable: list[tuple[P, Solution]] = []
        for (problem, _), solution in zip(asked, sample(asked), strict=True):
            counts["solutions sampled"] += 1
            if isinstance(solution, Solution):
                usable.append((problem, solution))
            else:
                counts[solution.reason] += 1
        for (problem, solution), verdict in zip(usable, judge(usable), strict=True):
            if isinstance(verdict, Unusable):
                counts[verdict.reason] += 1
                continue
            counts["solutions right" if verdict else "solutions wrong"] += 1
            kept = found[problem.id].right if verdict else found[problem.id].wrong
            if any(same(solution, other) for other in kept):
                counts["solutions repeated"] += 1
            else:
                kept.append(solution)
        pending = [p for p in pending if _lacks(found[p.id], settings)]
        start = end
    return found


def _lacks(solutions: Solutions, settings: ControlSettings) -> bool:
    few = len(solutions.right) < settings.naive_correct
    return few or len(solutions.wrong) < settings.naive_wrong


def find_cuts(
    problems: Sequence[P],
    solutions: Mapping[str, Solutions],
    starts: Callable[[Solution], Sequence[int]],
    settings: ControlSettings,
    counts: Counter[str],
) -> list[Cut[P]]:
    """The places to write new tails from: cut points of the first correct solution of each problem.

    Args:
        problems: with unique ids.
        solutions: by problem id.
        starts: cut points of a solution, 0 (the whole) included.
        settings: whether all, or one at random; whether 0.
        counts: receives what there was.
    """
    cuts: list[Cut[P]] = []
    for problem in problems:
        right = solutions[problem.id].right
        if not right:
            counts["questions without a correct solution"] += 1
            continue
        inner = [start for start in starts(right[0]) if start > 0]
        if not inner:
            counts["correct solutions too short to cut"] += 1
        if settings.cut == "random" and inner:
            inner = [random.Random(f"{settings.seed}/cut/{problem.id}").choice(inner)]
        zero = [] if settings.start_zero == "drop" else [0]
        cuts.extend(Cut(problem, right[0], start) for start in [*zero, *inner])
    counts["cut points"] = len(cuts)
    return cuts


def find_tails(
    cuts: Sequence[Cut[P]], write: Write[P], settings: ControlSettings, counts: Counter[str]
) -> list[Tail[P]]:
    """A wrong tail for every cut from which one was written within `attempts`, earlier attempts first.

    A cut whose tail is of no use is tried again, its output forgotten, with the next attempt number, unless its
    question has reached the limit: later tails would not be kept (`prefopt.build.mixing.limit_tails`).
    """
    found: list[Tail[P]] = []
    pending = list(cuts)
    for attempt in range(settings.attempts):
        if not pending:
            break
        again: list[Cut[P]] = []
        for cut, result in zip(pending, write(pending, attempt), strict=True):
            counts["tails written"] += 1
            if isinstance(result, Tail):
                found.append(result)
            else:
                counts[result.reason] += 1
                again.append(cut)
        full = _full(found, settings)
        pending = [cut for cut in again if not settings.limits(cut) or cut.problem.id not in full]
        counts["cut points not needed any more"] += len(again) - len(pending)
    counts["tails wrong"] = len(found)
    counts["cut points given up"] = len(pending)
    return found


def _full(tails: Sequence[Tail[P]], settings: ControlSettings) -> set[str]:
    """Ids of the problems that have as many tails as may be kept."""
    if settings.limit is None:
        return set()
    have = Counter(tail.cut.problem.id for tail in tails if settings.limits(tail.cut))
    return {problem for problem, count in have.items() if count >= settings.limit}
