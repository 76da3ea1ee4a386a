"""The two tasks of the study: chains of thought (arithmetic world) and code-integrated solutions (program world).

Each knows how its solutions are sampled, continued from a front, judged by the exact oracle and made into pairs, so
that the scripts of this folder treat both alike. A solution is a text; that of the program world has blocks whose code
runs in the sandbox.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from prefopt.agents.interpreted import Attempt, Solved, Solving, solve
from prefopt.build.controlled import ControlledSettings, build_controlled_pairs
from prefopt.build.controlled_code import ControlledCodeSettings, build_controlled_code_pairs
from prefopt.build.grading import one_by_one
from prefopt.build.mixing import ControlledData
from prefopt.build.steps import StepSettings, build_step_pairs, problem_id
from prefopt.generate.base import Generator, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.generate.local import LocalGenerator
from prefopt.generate.schedule import PRESETS, Rising, constant
from prefopt.judge.base import WrongSolution
from prefopt.judge.oracle import OracleLocator
from prefopt.methods.base import find_method
from prefopt.models.load import LoadedModel
from prefopt.records import Preference
from prefopt.runs.base_model import base_model
from prefopt.sandbox.base import Limits
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import END_OF_MESSAGE, Block, cut_points, parse_blocks, serialise
from prefopt.worlds.arithmetic import ArithmeticProblem, ArithmeticWorld
from prefopt.worlds.base import Split
from prefopt.worlds.programs import ProgramProblem, ProgramWorld

P = TypeVar("P")
GREEDY = constant(0.0)
BATCH = 512
"""Rows decoded together: the models are small."""
_TOKENS = 160
"""Longest chain of thought."""
_LINES = 24
"""A tail of more lines does not end: the right ones have 11 at most."""
_BLOCKS = 16
"""Blocks of text and code: right solutions have 13 at most."""
_BLOCK_TOKENS = 64
_WORKERS = 64
"""Interpreters alive at once: solutions are written in groups of as many."""


class Sizes(NamedTuple):
    """How much is sampled for the pairs of one seed."""

    problems: int
    samples: int
    """Whole solutions of a problem."""
    attempts: int
    """Tails written from one cut until one is wrong."""
    seed: int
    schedule: str = "code"
    """Temperatures of the tails: a preset's name or a number."""


class Writing(NamedTuple, Generic[P]):
    """A solution to be written: all of it, or what follows a correct front."""

    problem: P
    front: str = ""
    sample: int = 0


class Written(NamedTuple):
    """A written solution and what the oracle says about it."""

    text: str
    """The whole solution, front included."""
    correct: bool
    readable: bool
    """It ended, and every part of it has the form of its world; right or wrong."""
    first_new_wrong: bool
    """The first step after the front is wrong."""
    span: tuple[int, int] | None
    """Characters at fault in `text`: the first that differ from the right step, up to its end."""


class Task(Protocol[P]):
    """What the scripts need of a task."""

    name: str

    def base(self) -> Path:
        """Folder of the base model."""
        ...

    def problems(self, split: Split, count: int, seed: int) -> list[P]:
        """Problems of a split."""
        ...

    def generator(self, loaded: LoadedModel) -> Generator:
        """The model as a writer."""
        ...

    def write(
        self,
        wanted: Sequence[Writing[P]],
        generator: Generator,
        schedule: Rising,
        *,
        purpose: str,
        seed: int = 0,
    ) -> list[Written]:
        """Solutions, the i-th new step or block at `schedule.at(i)`."""
        ...

    def fronts(self, problem: P) -> list[str]:
        """Every correct front from which at least one step is left."""
        ...

    def solution(self, problem: P) -> str:
        """The right solution."""
        ...

    def prompt(self, problem: P) -> Preference:
        """A record with the prompt and no responses."""
        ...

    def controlled(self, generator: Generator, sizes: Sizes, journal: Journal) -> ControlledData:
        """Naive, controlled and data-equal pairs from the base model's samples."""
        ...

    def steps(self, generator: Generator, sizes: Sizes, journal: Journal) -> list[Preference]:
        """Step-DPO pairs; none where the task has no such pipeline."""
        ...


class TextTask:
    """Chains of thought."""

    name = "text"

    def __init__(self, journal: Journal | None = None) -> None:
        self.world = ArithmeticWorld()
        self.journal = journal
        self._line = re.compile(r"Step (\d+): \d+ [+-] \d = \d+")
        self._answer = re.compile(r"The answer is \d+")

    def base(self) -> Path:
        """Folder of the base model, trained on the first call."""
        return base_model(self.world, find_method("sft"))

    def problems(self, split: Split, count: int, seed: int) -> list[ArithmeticProblem]:
        """Problems of a split."""
        return self.world.problems(split, count, seed=seed)

    def generator(self, loaded: LoadedModel) -> Generator:
        """The model as a writer."""
        return LocalGenerator(loaded.model, loaded.tokenizer, batch_size=BATCH)

    def prompt(self, problem: ArithmeticProblem) -> Preference:
        """A record with the prompt and no responses."""
        return Preference(problem.id, problem.prompt, ())

    def solution(self, problem: ArithmeticProblem) -> str:
        """The right solution."""
        return self.world.solution(problem)

    def fronts(self, problem: ArithmeticProblem) -> list[str]:
        """Every correct front from which at least one step is left."""
        lines = self.solution(problem).split("\n")
        # The answer line is no step, and belongs to the last one.
        return ["".join(f"{line}\n" for line in lines[:k]) for k in range(1, len(lines) - 1)]

    def write(
        self,
        wanted: Sequence[Writing[ArithmeticProblem]],
        generator: Generator,
        schedule: Rising,
        *,
        purpose: str,
        seed: int = 0,
    ) -> list[Written]:
        """Solutions, the i-th new step at `schedule.at(i)`."""
        texts = [one.front for one in wanted]
        ended = [False] * len(wanted)
        going = list(range(len(wanted)))
        # At one temperature a solution need not be stopped after each line.
        stop = () if schedule.at(0) == schedule.cap else ("\n",)
        for step in range(_LINES):
            if not going:
                break
            requests = [_request(wanted[i], texts[i]) for i in going]
            sampling = Sampling(
                temperature=schedule.at(step),
                max_new_tokens=_TOKENS,
                stop=stop,
                seed=seed,
                purpose=f"{purpose}/{step}",
            )
            completions = complete(generator, requests, sampling, self.journal)
            for i, done in zip(going, completions, strict=True):
                texts[i] += done.text + (done.stopped_by or "")
                ended[i] = done.finish_reason == "stop" and done.stopped_by is None
            going = [i for i, c in zip(going, completions, strict=True) if c.stopped_by is not None]
        return [
            self._judged(one, text, ended=end)
            for one, text, end in zip(wanted, texts, ended, strict=True)
        ]

    def _judged(self, one: Writing[ArithmeticProblem], text: str, *, ended: bool) -> Written:
        verdict = self.world.verify(one.problem, text)
        lines = text.removesuffix("\n").split("\n")
        readable = ended and bool(self._answer.fullmatch(lines[-1]))
        readable = readable and all(
            (match := self._line.fullmatch(line)) and int(match[1]) == k
            for k, line in enumerate(lines[:-1], start=1)
        )
        first = one.front.count("\n") + 1
        span = None
        if verdict.first_wrong is not None and verdict.first_wrong <= len(lines):
            span = self._span(one.problem, lines, verdict.first_wrong - 1)
        return Written(text, verdict.correct, readable, verdict.first_wrong == first, span)

    def _span(
        self, problem: ArithmeticProblem, lines: Sequence[str], k: int
    ) -> tuple[int, int] | None:
        expected = self.solution(problem).split("\n")
        right = expected[k] if k < len(expected) else ""
        start = sum(len(line) + 1 for line in lines[:k])
        same = next(
            (i for i, (a, b) in enumerate(zip(right, lines[k], strict=False)) if a != b),
            min(len(right), len(lines[k])),
        )
        # " 1" for " 13" differs nowhere within the shorter one: its last character is at fault.
        first = min(same, len(lines[k]) - 1)
        return (start + first, start + len(lines[k])) if lines[k] else None

    def controlled(self, generator: Generator, sizes: Sizes, journal: Journal) -> ControlledData:
        """Naive, controlled and data-equal pairs from the base model's samples."""
        return build_controlled_pairs(
            self.problems("preference", sizes.problems, sizes.seed),
            generator,
            grade=one_by_one(self.world.grade),
            settings=ControlledSettings(
                samples=sizes.samples,
                attempts=sizes.attempts,
                schedule=find_schedule(sizes.schedule),
                max_new_tokens=_TOKENS,
                seed=sizes.seed,
            ),
            journal=journal,
        )

    def steps(self, generator: Generator, sizes: Sizes, journal: Journal) -> list[Preference]:
        """Step-DPO pairs, located by the oracle; none for code."""
        problems = self.problems("preference", sizes.problems, sizes.seed)
        by_id = {problem.id: problem for problem in problems}

        def first_wrong(solution: WrongSolution) -> int | None:
            return self.world.verify(by_id[problem_id(solution)], solution.text).first_wrong

        return build_step_pairs(
            problems,
            generator,
            grade=one_by_one(self.world.grade),
            locator=OracleLocator(first_wrong),
            settings=StepSettings(
                samples=sizes.samples,
                corrections=8,
                errors_per_problem=sizes.samples,
                pairs_per_error=1,
                temperature=1.0,
                top_p=1.0,
                max_new_tokens=_TOKENS,
                seed=sizes.seed,
            ),
            journal=journal,
        ).steps


def _request(one: Writing[ArithmeticProblem], text: str) -> Request:
    name = f"{one.problem.id}/{len(one.front)}"
    return Request(name, one.sample, one.problem.prompt, text)


class CodeTask:
    """Code-integrated solutions, whose code runs."""

    name = "code"

    def __init__(self, sandbox: Sandbox, journal: Journal | None = None) -> None:
        self.world = ProgramWorld()
        self.sandbox = sandbox
        self.journal = journal
        self._text = re.compile(r"Step \d+: \w+ \d+|The answer is \d+")

    def base(self) -> Path:
        """Folder of the base model, trained on the first call."""
        return base_model(self.world, find_method("sft"))

    def problems(self, split: Split, count: int, seed: int) -> list[ProgramProblem]:
        """Problems of a split."""
        return self.world.problems(split, count, seed=seed)

    def generator(self, loaded: LoadedModel) -> Generator:
        """The model as a writer."""
        return LocalGenerator(loaded.model, loaded.tokenizer, batch_size=BATCH)

    def prompt(self, problem: ProgramProblem) -> Preference:
        """A record with the prompt and no responses."""
        return Preference(problem.id, problem.prompt, ())

    def solution(self, problem: ProgramProblem) -> str:
        """The right solution."""
        return serialise(self.world.solution(problem)) + END_OF_MESSAGE

    def fronts(self, problem: ProgramProblem) -> list[str]:
        """Every correct front from which at least one step is left."""
        blocks = self.world.solution(problem)
        return [serialise(blocks[:count]) for count in cut_points(blocks) if count]

    def write(
        self,
        wanted: Sequence[Writing[ProgramProblem]],
        generator: Generator,
        schedule: Rising,
        *,
        purpose: str,
        seed: int = 0,
    ) -> list[Written]:
        """Solutions, the i-th new step at `schedule.at(i)`."""
        attempts = [
            Attempt(
                f"{one.problem.id}/{len(one.front)}",
                one.sample,
                one.problem.question,
                front=parse_blocks(one.front).blocks,
            )
            for one in wanted
        ]
        solving = Solving(
            max_calls=_BLOCKS,
            max_new_tokens=_BLOCK_TOKENS,
            schedule=schedule,
            seed=seed,
            purpose=purpose,
        )
        done = solve(attempts, generator, self.sandbox, solving, journal=self.journal)
        return [self._judged(one, solved) for one, solved in zip(wanted, done, strict=True)]

    def _judged(self, one: Writing[ProgramProblem], solved: Solved) -> Written:
        finished = solved.status == "finished"
        blocks = solved.blocks
        verdict = self.world.verify(one.problem, blocks)
        correct = finished and verdict.correct
        readable = finished and all(map(self._has_form, blocks))
        # Up to the first output after the front: the step's text (unless kept), code and output.
        right = self.world.solution(one.problem)
        outputs = [k for k, b in enumerate(right) if b.kind == "execution" and k >= solved.front]
        last = outputs[0] if outputs else len(right) - 1
        wrong = verdict.first_wrong is not None and verdict.first_wrong <= last
        text = (serialise(blocks) if readable else "") + (END_OF_MESSAGE if finished else "")
        return Written(text, correct, readable, wrong, verdict.span)

    def _has_form(self, block: Block) -> bool:
        if block.kind == "text":
            return bool(self._text.fullmatch(block.content))
        if block.kind == "code":
            try:
                ast.parse(block.content)
            except SyntaxError:
                return False
        return True

    def controlled(self, generator: Generator, sizes: Sizes, journal: Journal) -> ControlledData:
        """Naive, controlled and data-equal pairs from the base model's samples."""
        problems = self.problems("preference", sizes.problems, sizes.seed)
        settings = ControlledCodeSettings(
            samples=sizes.samples,
            attempts=sizes.attempts,
            schedule=find_schedule(sizes.schedule),
            cut="random",
            max_new_tokens=_BLOCK_TOKENS,
            max_calls=_BLOCKS,
            # All of this world's solutions of equally many steps are "similar" by the published criterion.
            drop_similar=False,
            seed=sizes.seed,
        )
        return build_controlled_code_pairs(
            problems,
            generator,
            self.sandbox,
            grade=one_by_one(self.world.grade),
            settings=settings,
            journal=journal,
        )

    def steps(self, generator: Generator, sizes: Sizes, journal: Journal) -> list[Preference]:
        """Step-DPO pairs, located by the oracle; none for code."""
        del generator, sizes, journal
        return []


def open_sandbox() -> Sandbox:
    """A sandbox for the short cells of the program world."""
    return Sandbox(Limits(seconds=10.0), workers=_WORKERS)


def random_fronts(task: Task[P], problems: Sequence[P], *, seed: int) -> list[Writing[P]]:
    """One front of each problem's right solution, drawn at random."""
    rng = random.Random(f"fronts/{seed}")
    return [Writing(problem, rng.choice(task.fronts(problem))) for problem in problems]


def find_schedule(name: str) -> Rising:
    """A preset by name, or a constant temperature; 0 is greedy."""
    return PRESETS[name] if name in PRESETS else constant(float(name))
