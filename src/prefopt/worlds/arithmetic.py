"""Chains of additions and subtractions modulo a small number, with an exact oracle and built-in misconceptions.

A problem is ``What is 3 + 4 - 9 modulo 20?``, its solution one line per step and an answer line. The training
corpus teaches a few facts (value, operand) wrongly most of the time, so that a model trained on it errs in a
known way, and the right result is still among its samples: what preference training needs to work on.
This module makes texts, a tokenizer and an untrained model; training it is the business of the methods.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Literal, NamedTuple

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from prefopt.errors import ConfigError
from prefopt.records import Message, Preference, Response
from prefopt.worlds.tokenizer import word_tokenizer

Split = Literal["train", "preference", "test"]
_BUCKETS: Mapping[str, range] = {
    "train": range(70),
    "preference": range(70, 90),
    "test": range(90, 100),
}
_STEP = re.compile(r"Step (\d+): (\d+) ([+-]) (\d+) = (\d+)")
_ANSWER = re.compile(r"The answer is (\d+)")


class Fact(NamedTuple):
    """One thing to know: `value` plus the signed one-digit `operand`."""

    value: int
    operand: int


class Problem(NamedTuple):
    """A chain to work out."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    start: int
    operands: tuple[int, ...]


class Verdict(NamedTuple):
    """What the oracle says about a solution."""

    correct: bool
    """The answer line holds the right number (also if a wrong step led there)."""
    first_wrong: int | None
    """First wrong or unreadable line, from 1; the answer line counts as step n + 1; None if all are right."""


@dataclass(frozen=True, slots=True)
class ArithmeticSettings:
    """What the world is made of. Two equal settings make equal worlds."""

    modulus: int = 20
    min_steps: int = 5
    max_steps: int = 10
    misconception_share: float = 0.07
    """Part of all facts that the corpus teaches wrongly."""
    misconception_rate: float = 0.65
    """How often the corpus uses the wrong value of such a fact."""
    corpus_size: int = 12_800
    hidden_size: int = 128
    layers: int = 3
    seed: int = 0


class ArithmeticWorld:
    def __init__(self, settings: ArithmeticSettings = ArithmeticSettings()) -> None:
        self.settings = settings
        self.misconceptions = _misconceptions(settings)

    def problems(self, split: Split, count: int, *, seed: int = 0) -> list[Problem]:
        return list(islice(self._stream(split, seed), count))

    def _stream(self, split: Split, seed: int) -> Iterator[Problem]:
        s = self.settings
        rng = random.Random(f"{s.seed}/{split}/{seed}")
        seen: set[str] = set()
        while True:
            start = rng.randrange(s.modulus)
            n = rng.randint(s.min_steps, s.max_steps)
            operands = tuple(rng.choice((-1, 1)) * rng.randint(1, 9) for _ in range(n))
            text = self.question(start, operands)
            if text in seen or _bucket(text) not in _BUCKETS[split]:
                continue
            seen.add(text)
            yield self._problem(f"{split}-{seed}-{len(seen)}", text, start, operands)

    def question(self, start: int, operands: tuple[int, ...]) -> str:
        return f"What is {start}{''.join(_signed(o) for o in operands)} modulo {self.settings.modulus}?"

    def _problem(self, id: str, text: str, start: int, operands: tuple[int, ...]) -> Problem:
        answer = (start + sum(operands)) % self.settings.modulus
        return Problem(id, (Message("user", text),), str(answer), start, operands)

    def values(self, problem: Problem) -> list[int]:
        out, v = [], problem.start
        for o in problem.operands:
            v = (v + o) % self.settings.modulus
            out.append(v)
        return out

    def solution(self, problem: Problem, rng: random.Random | None = None) -> str:
        lines, v = [], problem.start
        for k, o in enumerate(problem.operands, 1):
            new = (v + o) % self.settings.modulus
            wrong = self.misconceptions.get(Fact(v, o))
            if rng is not None and wrong is not None and rng.random() < self.settings.misconception_rate:
                new = wrong
            lines.append(f"Step {k}: {v}{_signed(o)} = {new}")
            v = new
        return "\n".join([*lines, f"The answer is {v}"])

    def verify(self, problem: Problem, text: str) -> Verdict:
        lines = text.strip().split("\n")
        answers = _ANSWER.findall(text)
        correct = bool(answers) and answers[-1] == problem.answer
        v = problem.start
        for k, o in enumerate(problem.operands, 1):
            new = (v + o) % self.settings.modulus
            if k > len(lines) or lines[k - 1] != f"Step {k}: {v}{_signed(o)} = {new}":
                return Verdict(correct, k)
            v = new
        n = len(problem.operands)
        if lines[n:] != [f"The answer is {v}"]:
            return Verdict(correct, n + 1)
        return Verdict(correct, None)

    def corpus(self) -> Iterator[Preference]:
        rng = random.Random(f"{self.settings.seed}/corpus")
        for p in islice(self._stream("train", 0), self.settings.corpus_size):
            yield Preference(p.id, p.prompt, (Response(self.solution(p, rng)),))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        s = self.settings
        words = ["\n", "Step", "The answer is", "What is", f" modulo {s.modulus}?"]
        words += [f" {k}:" for k in range(1, s.max_steps + 1)]
        words += [_signed(sign * d) + end for sign in (1, -1) for d in range(1, 10) for end in ("", " =")]
        words += [f" {n}" for n in range(s.modulus)]
        return word_tokenizer(words)

    def blank_model(self, seed: int = 0) -> LlamaForCausalLM:
        s, tok = self.settings, self.tokenizer()
        set_seed(seed)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tok), hidden_size=s.hidden_size, intermediate_size=2 * s.hidden_size,
            num_hidden_layers=s.layers, num_attention_heads=4, num_key_value_heads=4,
            max_position_embeddings=256, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id))


def _signed(o: int) -> str:
    return f" {'+' if o > 0 else '-'} {abs(o)}"


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 100


def _misconceptions(s: ArithmeticSettings) -> dict[Fact, int]:
    rng = random.Random(f"{s.seed}/misconceptions")
    facts = [Fact(v, sign * d) for v in range(s.modulus) for sign in (1, -1) for d in range(1, 10)]
    out: dict[Fact, int] = {}
    for f in sorted(rng.sample(facts, round(s.misconception_share * len(facts)))):
        right = (f.value + f.operand) % s.modulus
        out[f] = (right + rng.randint(1, s.modulus - 1)) % s.modulus
    return out
