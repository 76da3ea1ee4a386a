"""Whole solutions of text, sampled and graded: the naive stage of Step-Controlled DPO for chains of thought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from prefopt.build.cuts import (
    ControlSettings,
    Solution,
    Solutions,
    Unusable,
    find_solutions,
    require,
)
from prefopt.build.grading import Grade
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.progress import counted
from prefopt.text.blocks import Block, has_apology
from prefopt.text.problems import MathProblem, Problem
from prefopt.text.segments import How, split_segments

P = TypeVar("P", bound=Problem)

CUT_SOLUTION = "solutions cut at the token limit"
REFUSED_SOLUTION = "solutions refused by the server"
APOLOGETIC = "right solutions with an apology or error left out"
TRUNCATED_RIGHT = "right solutions cut at the token limit left out"


@dataclass(frozen=True, slots=True)
class ControlledSettings(ControlSettings):
    """Sizes, sampling and options of the pipeline for chains of thought."""

    temperature: float = 1.0
    """Of whole solutions; tails have the `schedule`."""
    top_p: float = 1.0
    max_new_tokens: int = 1024
    """Longest solution, and longest tail."""
    segments: How = "auto"
    """What a step is: `markers` ("Step 1:"), `lines`, or whichever a solution has."""
    leave: int = 1
    """Segments that are always written anew."""
    max_segments: int = 64
    """A tail of more new segments is left out as noise."""
    max_segment_characters: int = 3000
    """A tail with a longer segment is left out as noise."""
    opening: str = ""
    """Unfinished assistant text that every solution starts with; problems that bring a prefix of their own
    (`MathProblem`) start with that."""
    drop_apologies: bool = False
    """Leave out right solutions that contain "error" or "apolog", as the published pipeline for code does: they
    correct themselves on the way."""
    count_truncated_as_wrong: bool = False
    """Texts cut at the token limit that do not hold the right answer are wrong ones, as in the published Mistral
    pipeline; else they are left out."""

    def __post_init__(self) -> None:
        # super() does not find its class in a dataclass with slots.
        ControlSettings.__post_init__(self)
        for name in ("leave", "max_segments", "max_segment_characters"):
            value = getattr(self, name)
            require(name, value, "use 1 or more", claim=value >= 1)


def sample_solutions(
    problems: Sequence[P],
    generator: Generator,
    *,
    grade: Grade[P],
    settings: ControlledSettings,
    journal: Journal | None,
    counts: Counter[str],
) -> dict[str, Solutions]:
    """Right and wrong solutions of every problem in the order they were sampled, by problem id."""

    def sample(asked: Sequence[tuple[P, int]]) -> list[Solution | Unusable]:
        requests = [
            Request(problem.id, number, problem.prompt, opening_of(problem, settings))
            for problem, number in asked
        ]
        with counted("sampling solutions") as tick:
            done = complete(generator, requests, _sampling(settings), journal, progress=tick)
        return [_solution(r.prefix, c, settings) for r, c in zip(requests, done, strict=True)]

    def judge(texts: Sequence[tuple[P, Solution]]) -> list[bool | Unusable]:
        right = grade([(problem, "".join(solution.parts)) for problem, solution in texts])
        return [_verdict(s, settings, right=r) for (_, s), r in zip(texts, right, strict=True)]

    return find_solutions(problems, sample, judge, settings, counts)


def opening_of(problem: Problem, settings: ControlledSettings) -> str:
    """The given text that solutions of a problem start with."""
    own = problem.prefix if isinstance(problem, MathProblem) else ""
    return own or settings.opening


def _sampling(settings: ControlledSettings) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        purpose="naive",
    )


def _solution(
    opening: str, completion: Completion, settings: ControlledSettings
) -> Solution | Unusable:
    if completion.finish_reason == "error":
        return Unusable(REFUSED_SOLUTION)
    ends = completion.finish_reason == "stop"
    if not ends and not settings.count_truncated_as_wrong:
        return Unusable(CUT_SOLUTION)
    if not completion.text.strip():
        return Unusable("solutions empty")
    parts, kind = split_segments(opening + completion.text, settings.segments, opening=opening)
    return Solution(completion.sample, parts, opening, ends, kind)


def _verdict(solution: Solution, settings: ControlledSettings, *, right: bool) -> bool | Unusable:
    """Right or wrong; right ones that nobody should learn from are neither."""
    if right and not solution.ends:
        return Unusable(TRUNCATED_RIGHT)
    if right and settings.drop_apologies and has_apology([Block("text", solution.tail(0))]):
        return Unusable(APOLOGETIC)
    return right
