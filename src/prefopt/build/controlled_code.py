"""Pairs of Step-Controlled DPO from solutions whose code really runs (Lu et al. 2024, arXiv 2407.00782).

The pipeline of `prefopt.build.controlled` over blocks of text, code and interpreter output: solutions are cut after
text and output only, the code of the front runs again before a new tail is written, and every new block is hotter than
the one before. Block format: `prefopt.text.blocks`; the solving loop: `prefopt.agents.interpreted`.

Departures from the published code: attempts that failed or did not end are no wrong solutions; the limit of pairs
holds within each question; noisy tails are tried again while attempts last; equal tails make no pair.
`ControlledCodeSettings` has the published ways as options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from prefopt.agents.interpreted import Attempt, Solved, Solving, solve
from prefopt.build.cuts import (
    ControlSettings,
    Cut,
    Solution,
    Tail,
    Unusable,
    find_cuts,
    find_solutions,
    find_tails,
    require,
    require_unique,
)
from prefopt.build.grading import Grade
from prefopt.build.mixing import ControlledData, combine
from prefopt.build.tails import IDENTICAL, RIGHT
from prefopt.errors import RecordError
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.generate.schedule import Rising, constant
from prefopt.progress import counted
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import (
    END_OF_MESSAGE,
    Block,
    conversation,
    cut_points,
    has_apology,
    noise,
    parse_blocks,
    serialise,
    similar,
)
from prefopt.text.problems import Problem

__all__ = ["ControlledCodeSettings", "ControlledData", "build_controlled_code_pairs"]


class CodeProblem(Problem, Protocol):
    """A problem whose question stands alone, to be put into the conversation of the block format."""

    @property
    def question(self) -> str:
        """The question, without system text or chat template."""
        ...


P = TypeVar("P", bound=CodeProblem)


@dataclass(frozen=True, slots=True)
class ControlledCodeSettings(ControlSettings):
    """Sizes, sampling and options of the pipeline for code-integrated solutions; defaults as published."""

    system: str = ""
    """System text; published: empty, and a request to solve step by step for MathCoder."""
    temperature: float = 1.0
    """Of whole solutions; tails have the `schedule`, a block of text or code at a time."""
    top_p: float = 1.0
    max_new_tokens: int = 512
    """Tokens of one block."""
    max_calls: int = 64
    """Blocks of text and code of one solution or tail."""
    drop_apologies: bool = True
    """Leave out right solutions with "error" or "apolog" in any block."""
    drop_similar: bool = True
    """Keep only one of the solutions of a problem that have as many blocks and differ by less than 500 characters in
    length, as published; else only equal ones count as the same."""
    drop_noisy: bool = True
    """Leave out tails with more than 24 messages, a block of more than 3000 characters, or interpreter output that
    the model made up."""
    count_failures_as_wrong: bool = False
    """Solutions and tails that failed, were cut or never ended are wrong ones, as in the published Mistral pipeline."""

    def __post_init__(self) -> None:
        # super() does not find its class in a dataclass with slots.
        ControlSettings.__post_init__(self)
        for name in ("max_new_tokens", "max_calls"):
            value = getattr(self, name)
            require(name, value, "use 1 or more", claim=value >= 1)


def build_controlled_code_pairs(
    problems: Sequence[P],
    generator: Generator,
    sandbox: Sandbox,
    *,
    grade: Grade[P],
    settings: ControlledCodeSettings,
    journal: Journal | None = None,
) -> ControlledData:
    """Naive pairs, controlled pairs and the baseline of equal size of code-integrated solutions.

    Prompts are the serialised conversation (`prefopt.text.blocks.conversation`), as in training on such solutions.

    Args:
        problems: with unique ids.
        generator: the policy that is to be trained; it has to say which stop string ended a text.
        sandbox: runs the code.
        grade: whether the last block of a solution holds the right answer.
        settings: sizes, sampling, options.
        journal: keeps every block and every execution.

    Raises:
        RecordError: two problems have the same id, or a question holds a marker of the format.
        SandboxError: an interpreter cannot be started.
    """
    require_unique(problems)
    counts: Counter[str] = Counter(problems=len(problems))
    solver = _Solver(generator, sandbox, grade, settings, journal)
    same = _similar if settings.drop_similar else _equal
    solutions = find_solutions(problems, solver.sample, solver.judge, settings, counts, same=same)
    cuts = find_cuts(problems, solutions, lambda s: cut_points(_blocks(s)), settings, counts)
    tails = find_tails(cuts, solver.write, settings, counts)
    return combine(
        problems,
        solutions,
        tails,
        settings,
        counts,
        prompt_of=lambda problem: conversation(settings.system, problem.question),
    )


class _Solver(Generic[P]):
    """Writes and judges whole solutions and tails."""

    def __init__(
        self,
        generator: Generator,
        sandbox: Sandbox,
        grade: Grade[P],
        settings: ControlledCodeSettings,
        journal: Journal | None,
    ) -> None:
        self.generator = generator
        self.sandbox = sandbox
        self.grade = grade
        self.settings = settings
        self.journal = journal

    def sample(self, asked: Sequence[tuple[P, int]]) -> list[Solution | Unusable]:
        """Whole solutions at one temperature."""
        attempts = [
            Attempt(problem.id, number, problem.question, self.settings.system)
            for problem, number in asked
        ]
        solved = self._solve(
            attempts, constant(self.settings.temperature), "naive", "sampling solutions"
        )
        return [self._solution(one) for one in solved]

    def judge(self, solutions: Sequence[tuple[P, Solution]]) -> list[bool | Unusable]:
        """Right or wrong by the last block, or why a solution is neither."""
        blocks = [_blocks(solution) for _, solution in solutions]
        graded = self._right([p for p, _ in solutions], blocks)
        return [
            self._verdict(solution, own, right=right)
            for (_, solution), own, right in zip(solutions, blocks, graded, strict=True)
        ]

    def write(self, cuts: Sequence[Cut[P]], attempt: int) -> list[Tail[P] | Unusable]:
        """One wrong tail per cut at rising temperatures, or why there is none."""
        attempts = [
            Attempt(
                cut.id,
                attempt,
                cut.problem.question,
                self.settings.system,
                parse_blocks(cut.front).blocks,
            )
            for cut in cuts
        ]
        title = f"writing new tails, attempt {attempt + 1}"
        solved = self._solve(attempts, self.settings.schedule, "tails", title)
        tails = [self._tail(cut, one, attempt) for cut, one in zip(cuts, solved, strict=True)]
        usable = [i for i, tail in enumerate(tails) if isinstance(tail, Tail)]
        graded = self._right([cuts[i].problem for i in usable], [solved[i].blocks for i in usable])
        for i, right in zip(usable, graded, strict=True):
            if right:
                tails[i] = Unusable(RIGHT)
        return tails

    def _solve(
        self, attempts: Sequence[Attempt], schedule: Rising, purpose: str, title: str
    ) -> list[Solved]:
        settings = self.settings
        solving = Solving(
            max_calls=settings.max_calls,
            max_new_tokens=settings.max_new_tokens,
            schedule=schedule,
            top_p=settings.top_p,
            seed=settings.seed,
            purpose=purpose,
        )
        with counted(title) as tick:
            return solve(
                attempts, self.generator, self.sandbox, solving, journal=self.journal, progress=tick
            )

    def _right(self, problems: Sequence[P], blocks: Sequence[Sequence[Block]]) -> Sequence[bool]:
        return self.grade([(p, b[-1].content) for p, b in zip(problems, blocks, strict=True)])

    def _solution(self, solved: Solved) -> Solution | Unusable:
        ends = solved.status == "finished"
        if not solved.blocks or not (ends or self.settings.count_failures_as_wrong):
            return Unusable(f"solutions {_FATE[solved.status]}")
        parts = _parts(solved.blocks, ends=ends)
        if parts is None:
            return Unusable("solutions that hold a marker of the format")
        return Solution(solved.sample, parts, ends=ends, kind="blocks")

    def _verdict(
        self, solution: Solution, blocks: Sequence[Block], *, right: bool
    ) -> bool | Unusable:
        if right and not solution.ends:
            return Unusable("right solutions without an end left out")
        if right and self.settings.drop_apologies and has_apology(blocks):
            return Unusable("right solutions with an apology or error left out")
        if not right and len(blocks) == 1:
            return Unusable("wrong solutions of a single block left out")
        return right

    def _tail(self, cut: Cut[P], solved: Solved, attempt: int) -> Tail[P] | Unusable:
        """The tail as a negative, as far as can be said before it is graded."""
        ends = solved.status == "finished"
        if not solved.tail or not (ends or self.settings.count_failures_as_wrong):
            return Unusable(f"tails {_FATE[solved.status]}")
        reason = noise(solved.blocks) if self.settings.drop_noisy else None
        if reason is not None:
            return Unusable(f"tails left out as noisy: {reason}")
        parts = _parts(solved.tail, ends=ends)
        if parts is None:
            return Unusable("tails that hold a marker of the format")
        text = "".join(parts)
        same = text == cut.source.tail(cut.start)
        return Unusable(IDENTICAL) if same else Tail(cut, attempt, text, ends)


_FATE = {
    "finished": "empty",
    "calls": "that never ended",
    "length": "cut at the token limit",
    "error": "that failed",
}


def _parts(blocks: Sequence[Block], *, ends: bool) -> tuple[str, ...] | None:
    """Each block serialised, the end of the message with the last; None where they could not be read back."""
    try:
        parts = [serialise([block]) for block in blocks]
    except RecordError:
        return None
    if ends:
        parts[-1] += END_OF_MESSAGE
    whole = "".join(parts)
    return tuple(parts) if parse_blocks(whole).blocks == tuple(blocks) else None


def _blocks(solution: Solution) -> tuple[Block, ...]:
    return parse_blocks("".join(solution.parts)).blocks


def _similar(first: Solution, second: Solution) -> bool:
    return similar(_blocks(first), _blocks(second))


def _equal(first: Solution, second: Solution) -> bool:
    return first.parts == second.parts
