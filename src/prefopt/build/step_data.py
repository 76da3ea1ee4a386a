"""Settings, errors and records of the Step-DPO pipeline (`prefopt.build.steps`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, NamedTuple, TypeVar

from prefopt.build.rules import CORRECTED, StepRules
from prefopt.judge.base import Location, WrongSolution
from prefopt.records import Pair, Preference, Response
from prefopt.text.problems import MathProblem, Problem
from prefopt.values import JsonValue

P = TypeVar("P", bound=Problem)

AWAITED = ("missing", "failed")
"""Verdicts that may still come: a person's label, a server that failed."""


@dataclass(frozen=True, slots=True)
class StepSettings:
    """Sizes and sampling of the pipeline; defaults as published."""

    samples: int = 2
    """Solutions sampled per problem."""
    corrections: int = 20
    """Continuations sampled per located error."""
    errors_per_problem: int = 1
    """Wrong solutions of one problem that are taken further."""
    pairs_per_error: int | None = None
    """Distinct corrected steps kept per error; None keeps all."""
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 2048
    seed: int = 0
    opening: str = ""
    """Unfinished assistant text that every solution starts with, such as `Let's think step by step.`; problems that
    bring a prefix of their own (`MathProblem`) start with that."""
    first_step: Literal["step", "solution", "drop"] = "step"
    """Errors in the first step, where nothing right precedes the pair: a step pair like any other, a pair of whole
    solutions (ordinary DPO), or none."""
    check_chosen: bool = False
    """Ask the judge about corrected solutions as well, and leave out those with a wrong step up to the corrected one.
    The paper mentions such a check; the published code has none."""
    end_last_step: bool = False
    """Score the end token after a step that is the last of its solution. Not in the published code, which never
    trains where to stop."""
    rules: StepRules = CORRECTED


class StepError(NamedTuple, Generic[P]):
    """A wrong solution, cut around its first wrong step."""

    problem: P
    id: str
    solution: str
    number: int
    """The first wrong step, from 1."""
    prefix: str
    """The correct steps before it and its marker."""
    step: str
    """The wrong step."""
    is_last: bool
    """Nothing follows the wrong step."""


class Correction(NamedTuple):
    """A continuation that reaches the right answer."""

    step: str
    continuation: str
    is_last: bool


class StepData(NamedTuple):
    """What the pipeline made."""

    steps: list[Preference]
    """Step-DPO records: a shared prefix, one rejected step, one or more chosen steps."""
    solutions: list[Preference]
    """The same corrections and errors as whole solutions: data for the DPO baseline, pair for pair."""
    counts: Counter[str]
    """How many there were at each stage, and what became of the rest."""
    judged: list[tuple[WrongSolution, Location]]
    """The wrong solutions that the judge was asked about, and what it said."""

    @property
    def awaited(self) -> int:
        """Solutions whose verdict may still come: a person's label, a server that failed."""
        return sum(location.verdict in AWAITED for _, location in self.judged)


def wrong_solution(problem: Problem, sample: int, text: str) -> WrongSolution:
    """A solution as judges are asked about it."""
    question, gold = question_of(problem), ""
    if isinstance(problem, MathProblem):
        gold = problem.solution
    return WrongSolution(f"{problem.id}/{sample}", question, gold, problem.answer, text)


def check_id(error: StepError[P], sample: int) -> str:
    """Id under which the judge is asked about correction number `sample` of an error."""
    return f"{error.id}/check-{sample}"


def problem_id(solution: WrongSolution) -> str:
    """Id of the problem that a solution of this pipeline (`problem/sample`, or a check of one) is about."""
    return re.sub(r"/check-\d+$", "", solution.id).rpartition("/")[0]


def question_of(problem: Problem) -> str:
    """The problem as people read it: its own text, or the last message of its prompt."""
    if isinstance(problem, MathProblem):
        return problem.question
    prompt = problem.prompt
    return prompt if isinstance(prompt, str) else prompt[-1].content


def repeats(step: str, wrong: str) -> bool:
    """Whether one is the other, apart from further lines (a last step carries the answer line with it)."""
    return f"{step}\n".startswith(f"{wrong}\n") or f"{wrong}\n".startswith(f"{step}\n")


def step_record(
    error: StepError[P], chosen: Sequence[Correction], *, end_last_step: bool
) -> Preference:
    """The wrong step and its corrections after the correct steps; whole solutions go along in `meta`."""
    responses = [
        Response(error.step, ends=end_last_step and error.is_last),
        *(Response(c.step, ends=end_last_step and c.is_last) for c in chosen),
    ]
    record = _record(error, responses, prefix=error.prefix)
    whole: dict[str, JsonValue] = {
        "full_rejected": error.solution,
        "full_chosen": [error.prefix + c.continuation for c in chosen],
    }
    return replace(record, meta={**record.meta, **whole})


def solution_record(error: StepError[P], chosen: Sequence[Correction]) -> Preference:
    """The error and its corrections as whole solutions."""
    whole = [Response(error.prefix + c.continuation) for c in chosen]
    return _record(error, [Response(error.solution), *whole], prefix="")


def _record(error: StepError[P], responses: Sequence[Response], *, prefix: str) -> Preference:
    """The rejected response first, every other one chosen against it."""
    return Preference(
        id=error.id,
        prompt=error.problem.prompt,
        responses=tuple(responses),
        pairs=tuple(Pair(chosen=i, rejected=0) for i in range(1, len(responses))),
        prefix=prefix,
        meta={"answer": error.problem.answer, "step": error.number, "problem": error.problem.id},
    )
