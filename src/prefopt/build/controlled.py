"""Pairs of Step-Controlled DPO from a policy's own chains of thought (Lu et al. 2024, arXiv 2407.00782, section 2).

Sample whole solutions; a right and a wrong one of a question are a naive pair. Cut the first right solution after each
of its steps and let the policy go on at temperatures that rise with every new step, until the answer is wrong: the
right tail is chosen, the wrong one rejected, the front is their context. So the negative goes wrong after a known
place. Every text is journaled before it is used; the same call with the same journal goes on where it stopped.

Departures from the published pipeline, which has no code for chains of thought: texts cut at the token limit and
refused requests are no wrong solutions; the limit of pairs holds within each question; equal tails make no pair.
`ControlledSettings` has the published ways as options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from prefopt.build.cuts import Solution, find_cuts, find_tails, require_unique
from prefopt.build.grading import Grade
from prefopt.build.mixing import ControlledData, combine
from prefopt.build.naive import ControlledSettings, sample_solutions
from prefopt.build.tails import TailWriter
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.text.problems import Problem
from prefopt.text.segments import cut_points

__all__ = ["ControlledData", "ControlledSettings", "build_controlled_pairs"]

P = TypeVar("P", bound=Problem)


def build_controlled_pairs(
    problems: Sequence[P],
    generator: Generator,
    *,
    grade: Grade[P],
    settings: ControlledSettings,
    journal: Journal | None = None,
) -> ControlledData:
    """Naive pairs, controlled pairs and the baseline of equal size, all from the generator's own samples.

    Args:
        problems: with unique ids.
        generator: the policy that is to be trained; it has to say which stop string ended a text unless the schedule
            is constant (`Completion.stopped_by`).
        grade: whether solutions, opening included, reach the right answer.
        settings: sizes, sampling, options.
        journal: keeps every completion.

    Raises:
        RecordError: two problems have the same id, or a prompt cannot be rendered.
        JudgeError: a server cannot be used, or does not say what ended its texts.
    """
    require_unique(problems)
    counts: Counter[str] = Counter(problems=len(problems))
    solutions = sample_solutions(
        problems, generator, grade=grade, settings=settings, journal=journal, counts=counts
    )

    def starts(solution: Solution) -> range:
        return cut_points(len(solution.parts), leave=settings.leave)

    cuts = find_cuts(problems, solutions, starts, settings, counts)
    writer = TailWriter(generator, grade=grade, settings=settings, journal=journal)
    tails = find_tails(cuts, writer, settings, counts)
    return combine(
        problems, solutions, tails, settings, counts, prompt_of=lambda problem: problem.prompt
    )
