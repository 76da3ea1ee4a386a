"""Chains of named operations modulo 20, solved by small programs that really run.

A problem is ``Start with 7. Step 1: blend 3. Step 2: fold 4. What is it modulo 20?`` A solution alternates a text
block that names the operation, a code block that carries it out and the interpreter's output, and ends with a text
block ``The answer is 13`` (the form of `prefopt.text.blocks`). The training corpus teaches the code of some operations
wrongly most of the time. Since the code runs, a trained model makes no mistakes in arithmetic, only in what an
operation means.
Texts, oracle, tokenizer and untrained model are made here; nothing is executed here, and training is the business
of the methods.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import ConfigError
from prefopt.records import Preference, Response
from prefopt.text.blocks import (
    END_OF_MESSAGE,
    SPECIAL_TOKENS,
    Block,
    conversation,
    parse_blocks,
    serialise,
)
from prefopt.worlds.base import Split, belongs_to
from prefopt.worlds.program_texts import OPERATIONS, Language, Use, broken, traceback
from prefopt.worlds.text_world import ModelSize, TextWorld
from prefopt.worlds.tokenizer import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ANSWER = re.compile(r"The answer is (\d+)")
_PATIENCE = 10_000
"""Draws without a new problem after which there are taken to be no more."""


class ProgramProblem(NamedTuple):
    """A chain of operations to carry out."""

    id: str
    question: str
    answer: str
    start: int
    uses: tuple[Use, ...]
    """One per step."""

    @property
    def prompt(self) -> str:
        """The question as the conversation that a solution continues."""
        return conversation("", self.question)


class ProgramVerdict(NamedTuple):
    """What the oracle says about a solution."""

    correct: bool
    """The last answer is the right number (also where a wrong step led to it)."""
    first_wrong: int | None
    """Position of the first wrong, missing or superfluous block, from 0. None: all blocks are right."""
    span: tuple[int, int] | None
    """The characters at fault in the serialised solution: of a code block the expression, of another its content.
    None: no block is wrong, or the first wrong one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings(ModelSize):
    """What the world is made of. Equal settings make equal worlds."""

    modulus: int = 20
    min_steps: int = 3
    max_steps: int = 6
    misconception_share: float = 0.15
    """Part of all operations with their operands whose code the corpus teaches wrongly."""
    misconception_rate: float = 0.7
    """How often the corpus gives the wrong code of such an operation."""
    raising_share: float = 0.1
    """Part of the misconceptions whose code raises a NameError; the others compute something else."""
    corpus_size: int = 9600
    """Solved problems in the corpus."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (self.modulus < 3, "modulus", "use 3 or more"),
            (self.min_steps < 1, "min_steps", "use 1 or more"),
            (self.max_steps < self.min_steps, "max_steps", f"use at least {self.min_steps}"),
            (not 0 <= self.misconception_share <= 1, "misconception_share", "use 0 to 1"),
            (not 0 <= self.misconception_rate <= 1, "misconception_rate", "use 0 to 1"),
            (not 0 <= self.raising_share <= 1, "raising_share", "use 0 to 1"),
            (self.corpus_size < 1, "corpus_size", "use 1 or more"),
        ]
        self.refuse("program", rules)


class ProgramWorld(TextWorld[ProgramSettings]):
    """Problems, oracle, corpus, tokenizer and untrained model of one world."""

    name = "programs"
    positions = 512

    def __init__(self, settings: ProgramSettings | None = None) -> None:
        super().__init__(settings or ProgramSettings())
        self.language = Language(self.settings.modulus)
        self.misconceptions: Mapping[Use, str] = _misconceptions(self.settings, self.language)
        """The operations whose code the corpus teaches wrongly, and the wrong expression it teaches."""

    def problems(self, split: Split, count: int, *, seed: int = 0) -> list[ProgramProblem]:
        """The first `count` problems of a split, all different; a larger count continues the same list.

        A question belongs to one split only, so splits share no problem whatever counts and seeds are.

        Raises:
            ConfigError: there are not that many.
        """
        found = list(islice(self._stream(split, seed), count))
        if len(found) < count:
            raise ConfigError(
                f"program world: the {split} split has only about {len(found)} different problems of "
                f"{self.settings.min_steps} to {self.settings.max_steps} steps, {count} are wanted; "
                "raise max_steps or ask for fewer"
            )
        return found

    def values(self, problem: ProgramProblem) -> list[int]:
        """The right value after each step."""
        values = [problem.start]
        for use in problem.uses:
            values.append(self.language.apply(use, values[-1]))
        return values[1:]

    def misled_at(self, problem: ProgramProblem) -> int | None:
        """The first step, from 1, whose operation is a misconception; None where the corpus misleads nowhere."""
        uses = enumerate(problem.uses, start=1)
        return next((k for k, use in uses if use in self.misconceptions), None)

    def solution(
        self, problem: ProgramProblem, *, misled: random.Random | None = None
    ) -> tuple[Block, ...]:
        """The solution as blocks: right, or, with `misled`, as the corpus teaches it.

        A misled solution takes the wrong code of a misconception with probability `misconception_rate` and goes
        on from what that prints. Code that raises leaves the number as it was.
        """
        blocks: list[Block] = []
        x = problem.start
        for k, use in enumerate(problem.uses, start=1):
            expression = self.language.expression(use)
            if misled is not None and use in self.misconceptions:
                slips = misled.random() < self.settings.misconception_rate
                expression = self.misconceptions[use] if slips else expression
            value = self.language.evaluate(expression, x)
            code = self.language.cell(expression, problem.start if k == 1 else None)
            output = traceback(code, k) if value is None else f"{value}"
            blocks.append(Block("text", f"Step {k}: {use}"))
            blocks += (Block("code", code), Block("execution", output))
            x = x if value is None else value
        return (*blocks, Block("text", f"The answer is {x}"))

    def verify(self, problem: ProgramProblem, solution: Sequence[Block] | str) -> ProgramVerdict:
        """Whether the answer is right, which block is the first that is not, and which characters are at fault.

        Code is right when it computes the right function, whatever its spelling (within `Language`). A wrong
        operation is wrong also where it gives the right number by chance. In a text the first piece that is no
        block is wrong if no block before it is; whether the end of the message is there does not matter.
        """
        if not isinstance(solution, str):
            return self._verify(problem, solution)
        parsed = parse_blocks(solution)
        if not parsed.faults:
            return self._verify(problem, parsed.blocks)
        fault = parsed.faults[0]
        whole = parse_blocks(solution[: fault.start]).blocks
        found = self._verify(problem, whole)
        correct = self._answers_rightly(problem, parsed.blocks)
        if found.first_wrong is None or found.span is None:
            span = (fault.start, fault.start + len(fault.text))
            return ProgramVerdict(correct, len(whole), span)
        return found._replace(correct=correct)

    def _verify(self, problem: ProgramProblem, blocks: Sequence[Block]) -> ProgramVerdict:
        correct = self._answers_rightly(problem, blocks)
        expected = self.solution(problem)
        for k, (right, block) in enumerate(zip(expected, blocks, strict=False)):
            if not self._agree(right, block):
                return ProgramVerdict(correct, k, self._span(blocks, k))
        if len(blocks) == len(expected):
            return ProgramVerdict(correct, None, None)
        k = min(len(blocks), len(expected))
        return ProgramVerdict(correct, k, self._span(blocks, k) if k < len(blocks) else None)

    def grade(self, problem: ProgramProblem, text: str) -> bool:
        """Whether the last answer in a text is right: what an evaluation counts."""
        answers = _ANSWER.findall(text)
        return bool(answers) and answers[-1] == problem.answer

    def corpus(self) -> Iterator[Preference]:
        """The training corpus: one misled solution to each of `corpus_size` problems of the train split."""
        rng = self._random("corpus")
        for problem in self.problems("train", self.settings.corpus_size):
            text = serialise(self.solution(problem, misled=rng)) + END_OF_MESSAGE
            yield Preference(problem.id, problem.prompt, (Response(text),))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per number, step number, operation and part of an expression.

        The markers of blocks and messages are special tokens.
        """
        settings = self.settings
        words = ["Step", " Step", ".", "The answer is", "Start with"]
        words += [f" What is it modulo {settings.modulus}?", *self.language.words()]
        words += [f" {k}:" for k in range(1, settings.max_steps + 1)]
        words += [f"{space}{n}" for n in range(settings.modulus) for space in ("", " ")]
        words += [f" {name}" for name in OPERATIONS]
        return word_tokenizer(list(dict.fromkeys(words)), special=SPECIAL_TOKENS)

    def _answers_rightly(self, problem: ProgramProblem, blocks: Sequence[Block]) -> bool:
        return (
            bool(blocks) and blocks[-1].kind == "text" and self.grade(problem, blocks[-1].content)
        )

    def _agree(self, right: Block, block: Block) -> bool:
        if right.kind != block.kind:
            return False
        if right.kind == "code":
            return self.language.same_cell(right.content, block.content)
        return right.content == block.content.rstrip("\n")

    def _span(self, blocks: Sequence[Block], k: int) -> tuple[int, int]:
        """The characters at fault in block k of the serialised blocks."""
        block = blocks[k]
        content = len(serialise(blocks[:k])) + serialise([block]).index(">") + 1
        first, last = 0, len(block.content)
        if block.kind == "code":
            first, last = self.language.expression_span(block.content)
        return content + first, content + last

    def _stream(self, split: Split, seed: int) -> Iterator[ProgramProblem]:
        """Problems of the split without repetition until no new one turns up."""
        settings = self.settings
        rng = self._random(f"{split}/{seed}")
        names = tuple(OPERATIONS)
        seen: set[str] = set()
        idle = 0
        while idle < _PATIENCE:
            start = rng.randrange(settings.modulus)
            steps = rng.randint(settings.min_steps, settings.max_steps)
            uses = tuple(
                Use(rng.choice(names), rng.randrange(1, settings.modulus)) for _ in range(steps)
            )
            question = self._question(start, uses)
            if question in seen or not belongs_to(question, split):
                idle += 1
                continue
            idle = 0
            seen.add(question)
            problem = ProgramProblem(f"{split}-{seed}-{len(seen)}", question, "", start, uses)
            yield problem._replace(answer=str(self.values(problem)[-1]))

    def _question(self, start: int, uses: tuple[Use, ...]) -> str:
        chain = " ".join(f"Step {k}: {use}." for k, use in enumerate(uses, start=1))
        return f"Start with {start}. {chain} What is it modulo {self.settings.modulus}?"

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"programs/{self.settings.seed}/{purpose}")


def _misconceptions(settings: ProgramSettings, language: Language) -> dict[Use, str]:
    """Wrong expressions: another operation's with the same operand, or one that raises."""
    rng = random.Random(f"programs/{settings.seed}/misconceptions")
    uses = list(language.uses())
    chosen = rng.sample(uses, round(settings.misconception_share * len(uses)))
    raising = round(settings.raising_share * len(chosen))
    found: dict[Use, str] = {}
    for k, use in enumerate(chosen):
        right = language.expression(use)
        others = [language.expression(Use(name, use.operand)) for name in OPERATIONS]
        wrong = rng.choice([other for other in others if not language.same(right, other)])
        found[use] = broken(right) if k < raising else wrong
    return found
