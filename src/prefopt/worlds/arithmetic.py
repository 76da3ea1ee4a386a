"""Chains of additions and subtractions modulo 20, with an exact oracle and built-in misconceptions.

A problem is ``What is 3 + 4 - 9 modulo 20?``, its solution a line ``Step 1: 3 + 4 = 7`` per operand and the
line ``The answer is 18``. The training corpus teaches some facts wrongly most of the time. A model trained on
it errs in a known way while the right result stays among its samples, which is what preference training needs.
Texts, tokenizer and untrained model are made here; training it is the business of the methods.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import ConfigError
from prefopt.records import Message, Preference, Response
from prefopt.worlds.base import Split, belongs_to
from prefopt.worlds.text_world import ModelSize, TextWorld
from prefopt.worlds.tokenizer import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DIGITS = range(1, 10)
_ANSWER = re.compile(r"^The answer is (\d+)", re.MULTILINE)
_PATIENCE = 10_000
"""Draws without a new problem after which there are taken to be no more."""


class Fact(NamedTuple):
    """One thing to know: the result of `value` plus the signed digit `operand`."""

    value: int
    operand: int


class ArithmeticProblem(NamedTuple):
    """A chain to work out."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    start: int
    operands: tuple[int, ...]
    """Signed digits, one per step."""


class Verdict(NamedTuple):
    """What the oracle says about a solution."""

    correct: bool
    """The last answer line holds the right number (also where a wrong step led to it)."""
    first_wrong: int | None
    """First wrong, missing or unreadable line, from 1. The answer line is line n + 1, and what follows it is
    its fault. None: all lines are right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticSettings(ModelSize):
    """What the world is made of. Equal settings make equal worlds."""

    modulus: int = 20
    min_steps: int = 5
    max_steps: int = 10
    misconception_share: float = 0.075
    """Part of all facts that the corpus teaches wrongly."""
    misconception_rate: float = 0.65
    """How often the corpus gives the wrong value of such a fact."""
    corpus_size: int = 14_400
    """Solved problems in the corpus."""
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (self.modulus < 2, "modulus", "use 2 or more"),
            (self.min_steps < 1, "min_steps", "use 1 or more"),
            (self.max_steps < self.min_steps, "max_steps", f"use at least {self.min_steps}"),
            (not 0 <= self.misconception_share <= 1, "misconception_share", "use 0 to 1"),
            (not 0 <= self.misconception_rate <= 1, "misconception_rate", "use 0 to 1"),
            (self.corpus_size < 1, "corpus_size", "use 1 or more"),
        ]
        self.refuse("arithmetic", rules)


class ArithmeticWorld(TextWorld[ArithmeticSettings]):
    """Problems, oracle, corpus, tokenizer and untrained model of one world."""

    name = "arithmetic"
    positions = 256

    def __init__(self, settings: ArithmeticSettings | None = None) -> None:
        super().__init__(settings or ArithmeticSettings())
        self.misconceptions: Mapping[Fact, int] = _misconceptions(self.settings)
        """The facts that the corpus teaches wrongly, and the wrong result it teaches."""

    def result(self, fact: Fact) -> int:
        """The right result of a fact."""
        return (fact.value + fact.operand) % self.settings.modulus

    def problems(self, split: Split, count: int, *, seed: int = 0) -> list[ArithmeticProblem]:
        """The first `count` problems of a split, all different; a larger count continues the same list.

        A question belongs to one split only, so splits share no problem whatever counts and seeds are.

        Raises:
            ConfigError: there are not that many.
        """
        found = list(islice(self._stream(split, seed), count))
        if len(found) < count:
            raise ConfigError(
                f"arithmetic world: the {split} split has only about {len(found)} different problems of "
                f"{self.settings.min_steps} to {self.settings.max_steps} steps, {count} are wanted; "
                "raise max_steps or ask for fewer"
            )
        return found

    def values(self, problem: ArithmeticProblem) -> list[int]:
        """The right value after each step."""
        return [self.result(fact) for fact in self._facts(problem)]

    def misled_at(self, problem: ArithmeticProblem) -> int | None:
        """The first step, from 1, whose fact is a misconception; None where the corpus misleads nowhere."""
        facts = enumerate(self._facts(problem), start=1)
        return next((k for k, fact in facts if fact in self.misconceptions), None)

    def solution(self, problem: ArithmeticProblem, *, misled: random.Random | None = None) -> str:
        """The solution as text: right, or, with `misled`, as the corpus teaches it.

        A misled solution takes the wrong result of a misconception with probability `misconception_rate`
        and goes on from there without further slips.
        """
        lines: list[str] = []
        value = problem.start
        for k, operand in enumerate(problem.operands, start=1):
            fact = Fact(value, operand)
            value = self.result(fact)
            if misled is not None and fact in self.misconceptions:
                slips = misled.random() < self.settings.misconception_rate
                value = self.misconceptions[fact] if slips else value
            lines.append(_step(k, fact, value))
        return "\n".join([*lines, f"The answer is {value}"])

    def verify(self, problem: ArithmeticProblem, text: str) -> Verdict:
        """Whether the answer is right, and which line is the first that is not."""
        answers = _ANSWER.findall(text)
        correct = bool(answers) and answers[-1] == problem.answer
        expected = self.solution(problem).split("\n")
        written = text.removesuffix("\n").split("\n")
        pairs = zip(expected, written, strict=False)
        for number, (right, line) in enumerate(pairs, start=1):
            if line != right:
                return Verdict(correct, number)
        same = len(written) == len(expected)
        return Verdict(correct, None if same else min(len(written) + 1, len(expected)))

    def grade(self, problem: ArithmeticProblem, text: str) -> bool:
        """Whether the answer is right: what an evaluation counts."""
        return self.verify(problem, text).correct

    def corpus(self) -> Iterator[Preference]:
        """The training corpus: one misled solution to each of `corpus_size` problems of the train split."""
        rng = self._random("corpus")
        for problem in self.problems("train", self.settings.corpus_size):
            response = Response(self.solution(problem, misled=rng))
            yield Preference(problem.id, problem.prompt, (response,))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per number, per step number, and per signed operand (with ``=`` in steps)."""
        settings = self.settings
        words = ["\n", "Step", "The answer is", "What is", f" modulo {settings.modulus}?"]
        words += [f" {k}:" for k in range(1, settings.max_steps + 1)]
        words += [f" {n}" for n in range(settings.modulus)]
        # With "=" in the operand's token the result is predicted where the operand stands: a fact is then
        # learnt in one step of attention, and training takes a third of the time.
        words += [_signed(o) + end for o in _operands() for end in ("", " =")]
        return word_tokenizer(words)

    def _facts(self, problem: ArithmeticProblem) -> Iterator[Fact]:
        value = problem.start
        for operand in problem.operands:
            fact = Fact(value, operand)
            yield fact
            value = self.result(fact)

    def _stream(self, split: Split, seed: int) -> Iterator[ArithmeticProblem]:
        """Problems of the split without repetition until no new one turns up."""
        settings = self.settings
        rng = self._random(f"{split}/{seed}")
        seen: set[str] = set()
        idle = 0
        while idle < _PATIENCE:
            start = rng.randrange(settings.modulus)
            steps = rng.randint(settings.min_steps, settings.max_steps)
            operands = tuple(rng.choice(_operands()) for _ in range(steps))
            question = self._question(start, operands)
            if question in seen or not belongs_to(question, split):
                idle += 1
                continue
            idle = 0
            seen.add(question)
            answer = (start + sum(operands)) % settings.modulus
            yield ArithmeticProblem(
                f"{split}-{seed}-{len(seen)}",
                (Message("user", question),),
                str(answer),
                start,
                operands,
            )

    def _question(self, start: int, operands: tuple[int, ...]) -> str:
        chain = "".join(_signed(operand) for operand in operands)
        return f"What is {start}{chain} modulo {self.settings.modulus}?"

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"arithmetic/{self.settings.seed}/{purpose}")


def _misconceptions(settings: ArithmeticSettings) -> dict[Fact, int]:
    rng = random.Random(f"arithmetic/{settings.seed}/misconceptions")
    facts = [Fact(value, o) for value in range(settings.modulus) for o in _operands()]
    chosen = rng.sample(facts, round(settings.misconception_share * len(facts)))
    return {
        fact: (fact.value + fact.operand + rng.randrange(1, settings.modulus)) % settings.modulus
        for fact in chosen
    }


def _operands() -> list[int]:
    return [sign * digit for sign in (1, -1) for digit in _DIGITS]


def _signed(operand: int) -> str:
    return f" {'+' if operand > 0 else '-'} {abs(operand)}"


def _step(number: int, fact: Fact, result: int) -> str:
    return f"Step {number}: {fact.value}{_signed(fact.operand)} = {result}"
