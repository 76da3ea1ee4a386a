"""Pairs of single reasoning steps from a policy's own mistakes (Step-DPO, arXiv 2406.18629, section 3.2).

Sample solutions, keep the wrong ones, locate the first wrong step of each, sample new continuations from there, keep
those that reach the right answer: the wrong step is rejected, the new one is chosen, what precedes both is their
context. Every text is journaled before it is used; the same call with the same journal goes on where it stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, TypeVar

from prefopt.build.grading import Grade
from prefopt.build.step_data import (
    AWAITED,
    Correction,
    StepData,
    StepError,
    StepSettings,
    check_id,
    problem_id,
    question_of,
    repeats,
    solution_record,
    step_record,
    wrong_solution,
)
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.judge.base import Location, Locator, WrongSolution
from prefopt.progress import counted
from prefopt.text.problems import MathProblem, Problem

__all__ = [
    "StepData",
    "StepError",
    "StepSettings",
    "build_step_pairs",
    "problem_id",
    "question_of",
]

P = TypeVar("P", bound=Problem)


def build_step_pairs(
    problems: Sequence[P],
    generator: Generator,
    *,
    grade: Grade[P],
    locator: Locator,
    settings: StepSettings,
    journal: Journal | None = None,
    corrector: Generator | None = None,
) -> StepData:
    """Step pairs and whole-solution pairs from the generator's own samples.

    Args:
        problems: with unique ids.
        generator: the policy that is to be trained.
        grade: whether solutions reach the right answer.
        locator: finds the first wrong step of a wrong solution.
        settings: sizes and sampling.
        journal: keeps every completion and verdict.
        corrector: who writes the corrections; None: the generator (in-distribution corrections).

    Raises:
        RecordError: two problems have the same id, or a prompt cannot be rendered.
        JudgeError: a server cannot be used at all.
    """
    pipeline = _Pipeline(generator, corrector or generator, grade, locator, settings, journal)
    return pipeline.run(problems)


class _Pipeline(Generic[P]):
    """The stages, in reading order; `counts` says what became of everything."""

    def __init__(
        self,
        generator: Generator,
        corrector: Generator,
        grade: Grade[P],
        locator: Locator,
        settings: StepSettings,
        journal: Journal | None,
    ) -> None:
        self.generator = generator
        self.corrector = corrector
        self.grade = grade
        self.locator = locator
        self.settings = settings
        self.journal = journal
        self.counts: Counter[str] = Counter()
        self.judged: list[tuple[WrongSolution, Location]] = []
        self.unchecked: set[str] = set()
        """Errors that had right corrections, none of which passed the check."""

    def run(self, problems: Sequence[P]) -> StepData:
        self.counts["problems"] = len(problems)
        errors = self.locate(self.wrong_solutions(problems))
        right = self.right_corrections(errors)
        data = StepData([], [], self.counts, self.judged)
        for error in errors:
            chosen = self.choose(error, right[error.id])
            if chosen:
                whole = solution_record(error, chosen)
                as_solution = error.number == 1 and self.settings.first_step == "solution"
                end = self.settings.end_last_step
                data.steps.append(
                    whole if as_solution else step_record(error, chosen, end_last_step=end)
                )
                data.solutions.append(whole)
        return data

    def wrong_solutions(self, problems: Sequence[P]) -> dict[str, list[tuple[P, WrongSolution]]]:
        """Stage 1 and 2: the wrong solutions of each problem, in the order they were sampled."""
        by_id = {p.id: p for p in problems}
        requests = [
            Request(p.id, sample, p.prompt, self.opening(p))
            for p in problems
            for sample in range(self.settings.samples)
        ]
        with counted("sampling solutions") as tick:
            sampling = self.sampling("errors")
            samples = complete(self.generator, requests, sampling, self.journal, progress=tick)
        self.counts["solutions sampled"] = len(samples)
        whole = [s for s in samples if self.is_whole(s)]
        texts = [(by_id[s.id], self.opening(by_id[s.id]) + s.text) for s in whole]
        wrong: dict[str, list[tuple[P, WrongSolution]]] = {}
        for sample, (problem, text), right in zip(whole, texts, self.grade(texts), strict=True):
            if not right:
                self.counts["solutions wrong"] += 1
                found = wrong_solution(problem, sample.sample, text)
                wrong.setdefault(problem.id, []).append((problem, found))
        return wrong

    def opening(self, problem: P) -> str:
        own = problem.prefix if isinstance(problem, MathProblem) else ""
        return own or self.settings.opening

    def is_whole(self, sample: Completion) -> bool:
        """Whether a solution counts; cut and refused ones are counted and left out."""
        if sample.finish_reason == "error":
            self.counts["solutions refused by the server"] += 1
            return False
        if sample.finish_reason == "length":
            self.counts["solutions cut at the token limit"] += 1
            return self.settings.rules.cut_samples_are_wrong
        return True

    def locate(self, wrong: dict[str, list[tuple[P, WrongSolution]]]) -> list[StepError[P]]:
        """Stage 3: errors with a first wrong step, at most `errors_per_problem` of a problem.

        A solution that cannot be placed makes room for the next one of its problem.
        """
        strict = self.settings.rules.limit_admits_one_more
        limit = self.settings.errors_per_problem + strict
        found: dict[str, list[StepError[P]]] = {key: [] for key in wrong}
        room = dict.fromkeys(wrong, limit)
        queues = {key: list(candidates) for key, candidates in wrong.items()}
        while batch := [c for key, queue in queues.items() for c in queue[: room[key]]]:
            for key, queue in queues.items():
                del queue[: room[key]]
            for (problem, solution), location in zip(batch, self.judge(batch), strict=True):
                error = self.cut(problem, solution, location)
                if error is not None:
                    found[problem.id].append(error)
                # A verdict that may still come keeps its place, so that it changes no other pair.
                if strict or error is not None or location.verdict in AWAITED:
                    room[problem.id] -= 1
        self.counts["errors beyond the limit per problem"] += sum(map(len, queues.values()))
        errors = [error for group in found.values() for error in group]
        self.counts["errors located"] = len(errors)
        return errors

    def judge(self, batch: Sequence[tuple[P, WrongSolution]]) -> list[Location]:
        solutions = [solution for _, solution in batch]
        with counted("locating first wrong steps") as tick:
            located = self.locator.locate(solutions, journal=self.journal, progress=tick)
        self.judged += zip(solutions, located, strict=True)
        return located

    def cut(self, problem: P, solution: WrongSolution, location: Location) -> StepError[P] | None:
        """The error that a verdict names; None, counted, where it names none."""
        if location.number is None:
            self.counts[_UNPLACED[location.verdict]] += 1
            return None
        if location.number == 1 and self.settings.first_step == "drop":
            self.counts["errors in the first step left out"] += 1
            return None
        try:
            cut = self.settings.rules.cut(solution.text, location.number)
        except ValueError:
            self.counts["errors placed at a step that is not there"] += 1
            return None
        if not cut.step.strip():
            self.counts["errors placed at an empty step"] += 1
            return None
        number, last = location.number, not cut.rest
        return StepError(problem, solution.id, solution.text, number, cut.prefix, cut.step, last)

    def right_corrections(self, errors: Sequence[StepError[P]]) -> dict[str, list[Completion]]:
        """Stage 4: continuations of each error's prefix that reach the right answer, in order."""
        requests = [
            Request(error.id, sample, error.problem.prompt, error.prefix)
            for error in errors
            for sample in range(self.settings.corrections)
        ]
        with counted("sampling corrections") as tick:
            sampling = self.sampling("corrections")
            done = complete(self.corrector, requests, sampling, self.journal, progress=tick)
        self.counts["corrections sampled"] = len(done)
        by_id = {error.id: error for error in errors}
        finished = [c for c in done if c.finish_reason == "stop"]
        self.counts["corrections cut or refused"] = len(done) - len(finished)
        texts = [(by_id[c.id].problem, by_id[c.id].prefix + c.text) for c in finished]
        right: dict[str, list[Completion]] = {error.id: [] for error in errors}
        for completion, good in zip(finished, self.grade(texts), strict=True):
            if good:
                right[completion.id].append(completion)
        self.counts["corrections right"] = sum(map(len, right.values()))
        if not self.settings.check_chosen:
            return right
        kept = self.checked(by_id, right)
        self.unchecked = {key for key, group in right.items() if group and not kept[key]}
        return kept

    def checked(
        self, errors: dict[str, StepError[P]], right: dict[str, list[Completion]]
    ) -> dict[str, list[Completion]]:
        """Those corrections in which the judge finds no wrong step up to the corrected one."""
        asked = [(errors[key], c) for key, group in right.items() for c in group]
        solutions = [
            wrong_solution(e.problem, c.sample, e.prefix + c.text)._replace(
                id=check_id(e, c.sample)
            )
            for e, c in asked
        ]
        with counted("checking corrected steps") as tick:
            located = self.locator.locate(
                solutions, journal=self.journal, progress=tick, right=True
            )
        kept: dict[str, list[Completion]] = {key: [] for key in right}
        for (error, completion), location in zip(asked, located, strict=True):
            if location.verdict in (*AWAITED, "undecided"):
                self.counts["corrections without a verdict on the step"] += 1
            elif location.number is not None and location.number <= error.number:
                self.counts["corrections right through a wrong step"] += 1
            else:
                kept[error.id].append(completion)
        return kept

    def choose(self, error: StepError[P], right: Sequence[Completion]) -> list[Correction]:
        """Stage 5: the corrected steps that make a pair with the wrong one, counted."""
        distinct = self.distinct_steps(error, right)
        if not right:
            lost = error.id in self.unchecked
            failed = "errors whose right corrections fail the check"
            self.counts[failed if lost else "errors without a right correction"] += 1
        elif not distinct:
            self.counts["errors whose corrections repeat the wrong step"] += 1
        chosen = distinct[: self.settings.pairs_per_error]
        self.counts["errors corrected"] += bool(chosen)
        self.counts["pairs"] += len(chosen)
        return chosen

    def distinct_steps(self, error: StepError[P], right: Sequence[Completion]) -> list[Correction]:
        """Corrected steps that differ from the wrong one and from each other, in the order they were sampled."""
        rules = self.settings.rules
        found: dict[str, Correction] = {}
        for completion in right:
            step = rules.take(completion.text, error.number)
            if not step.strip():
                self.counts["corrections with an empty step"] += 1
            elif not rules.keep_equal_steps and repeats(step.strip(), error.step.strip()):
                self.counts["corrections that repeat the wrong step"] += 1
            else:
                last = step == completion.text
                found.setdefault(step, Correction(step, completion.text, last))
        return list(found.values())

    def sampling(self, purpose: str) -> Sampling:
        settings = self.settings
        return Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            purpose=purpose,
        )


_UNPLACED = {
    "found": "errors without a step number",
    "none": "errors in which the judge finds no wrong step",
    "missing": "errors without a verdict yet",
    "undecided": "errors on which the judge cannot decide",
    "failed": "errors whose judge failed",
}
