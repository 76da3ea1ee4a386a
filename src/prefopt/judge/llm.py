"""A language model as the judge: it is shown problem, right solution and wrong one, and lists verdicts step by step.

The wording is ours; what is asked follows the published Step-DPO pipeline (arXiv 2406.18629, section 3.2 and code):
a short analysis, then `Step i: correct | neutral | incorrect` up to the first incorrect step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from prefopt.errors import ConfigError
from prefopt.generate.base import Bounded, Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.judge.base import Location, WrongSolution
from prefopt.judge.verdict import Rules, parse_verdict
from prefopt.records import Message
from prefopt.text.steps import split_steps

_SAMPLING = Sampling(temperature=0.0, max_new_tokens=1024, purpose="judge")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_MARKER = re.compile(r"Step \d+:")

_TASK = """\
Below is a mathematics problem and an answer to it that ends in a wrong result. The answer is written in numbered \
steps. Find the first step that goes wrong.

Write at most 200 words of analysis first: go through the steps in order and check calculation and reasoning of each. \
Do not solve the problem anew.

Then write a line with the title "Final Decision", and under it one verdict per step in the form "Step i: verdict", \
separated by ";". A verdict is one of: correct (the step is right and helps), neutral (nothing in it is wrong, but it \
does not help), incorrect (it holds a mistake). Stop after the first incorrect step.
For example:
Final Decision
Step 1: correct; Step 2: neutral; Step 3: incorrect"""
_TASK_RIGHT = """\
Below is a mathematics problem and an answer to it. Its final result is right. The answer is written in numbered \
steps. Find out whether a step goes wrong all the same: mistakes can cancel out, and a right result can follow from a \
wrong step by luck.

Write at most 200 words of analysis first: go through the steps in order and check calculation and reasoning of each. \
Do not solve the problem anew.

Then write a line with the title "Final Decision", and under it one verdict per step in the form "Step i: verdict", \
separated by ";". A verdict is one of: correct (the step is right and helps), neutral (nothing in it is wrong, but it \
does not help), incorrect (it holds a mistake). Stop after the first incorrect step; where no step is incorrect, go on \
to the last.
For example:
Final Decision
Step 1: correct; Step 2: neutral; Step 3: correct"""
_AGAIN = 0.7
"""Temperature of the second and later attempts of a judge that is greedy at first."""


class LlmLocator:
    """`Locator` that asks a generator, usually a strong model on a server."""

    name = "llm"

    def __init__(
        self,
        generator: Generator,
        *,
        rules: Rules = "corrected",
        sampling: Sampling = _SAMPLING,
        attempts: int = 1,
        skip_diagrams: bool = False,
    ) -> None:
        """Wrap a generator.

        Args:
            generator: who is asked.
            rules: how its texts are read (`prefopt.judge.verdict`).
            sampling: how it writes. A greedy judge would repeat itself, so that from the second attempt on
                temperature 0 becomes 0.7.
            attempts: how often one solution is put to it while its verdict cannot be read.
            skip_diagrams: do not ask about problems that speak of a diagram without holding its `[asy]` code.

        Raises:
            ConfigError: `attempts` is below 1, or `rules` is no set of rules.
        """
        if attempts < 1:
            raise ConfigError(f"judge: attempts is {attempts}; use 1 or more")
        if rules not in {"official", "corrected"}:
            raise ConfigError(f"judge: rules is {rules!r}; use official or corrected")
        self._generator = generator
        self._rules: Rules = rules
        self._sampling = sampling
        self._again = sampling if sampling.temperature else replace(sampling, temperature=_AGAIN)
        self._attempts = attempts
        self._skip_diagrams = skip_diagrams

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[Location]:
        """One location per solution, in their order; the remark is the judge's text, or why there is none.

        Solutions without numbered steps are not put to the judge, and neither are diagrams that it cannot see nor
        what fills the context of a judge in this process; all are `undecided`, and so is a verdict that cannot be
        read after all attempts. A step that the solution does not have is no verdict.

        Raises:
            JudgeError: the server cannot be used (`prefopt.generate.openai`).
            RecordError: two solutions have the same id.
        """
        asked = [_request(solution, 0, right=right) for solution in solutions]
        found = dict(enumerate(self._skip(solutions, asked)))
        open_ = [k for k, location in found.items() if location is None]
        for attempt in range(self._attempts):
            if not open_:
                break
            requests = [replace(asked[k], sample=attempt) for k in open_]
            sampling = self._again if attempt else self._sampling
            shown = _shifted(progress, len(solutions) - len(open_), len(solutions))
            replies = complete(self._generator, requests, sampling, journal, progress=shown)
            for k, reply in zip(open_, replies, strict=True):
                found[k] = self._read(solutions[k], reply)
            open_ = [k for k in open_ if _unread(found[k])]
        if progress is not None:
            progress(len(solutions), len(solutions))
        return [location for location in found.values() if location is not None]

    def _skip(
        self, solutions: Sequence[WrongSolution], asked: Sequence[Request]
    ) -> list[Location | None]:
        """Why a solution is not put to the judge; None where it is."""
        found = [self._unfit(solution) for solution in solutions]
        fit = [k for k, location in enumerate(found) if location is None]
        if isinstance(self._generator, Bounded):
            for k, room in zip(fit, self._generator.room([asked[k] for k in fit]), strict=True):
                if room < 1:
                    found[k] = Location(
                        None, "undecided", "not asked: too long for the judge's context"
                    )
        return found

    def _unfit(self, solution: WrongSolution) -> Location | None:
        if not split_steps(solution.text).steps and not (
            self._rules == "official" and _MARKER.search(solution.text)
        ):
            return Location(None, "undecided", "not asked: the solution has no numbered steps")
        if self._skip_diagrams and needs_diagram(solution.question):
            return Location(None, "undecided", "not asked: the problem's diagram is missing")
        return None

    def _read(self, solution: WrongSolution, reply: Completion) -> Location:
        if reply.finish_reason == "error":
            return Location(None, "failed", reply.text)
        reading = parse_verdict(reply.text, rules=self._rules)
        if reading.number is not None:
            if self._has_step(solution.text, reading.number):
                return Location(reading.number, "found", reply.text)
            why = f"names step {reading.number}, which the solution does not have"
        elif parse_verdict(reply.text).reason == "none":
            return Location(None, "none", reply.text)
        else:
            why = f"no verdict to be read ({reading.reason})"
        if reply.finish_reason == "length":
            why += f"; cut at {self._sampling.max_new_tokens} tokens"
        return Location(None, "undecided", f"{why}: {reply.text}")

    def _has_step(self, text: str, number: int) -> bool:
        if self._rules == "official":
            return f"Step {number}:" in text
        return 1 <= number <= len(split_steps(text).steps)


def judge_prompt(solution: WrongSolution, *, right: bool = False) -> tuple[Message, ...]:
    """The conversation that a judge is shown: one user message. Blank lines of the answer are collapsed.

    With `right` the judge is told that the result is right, and asked whether a step is wrong all the same.
    """
    parts = [_TASK_RIGHT if right else _TASK, f"Problem:\n{solution.question.strip()}"]
    if solution.gold.strip():
        parts.append(f"Correct solution:\n{solution.gold.strip()}")
    elif solution.answer.strip():
        parts.append(f"Correct result: {solution.answer.strip()}")
    written = _BLANK_LINES.sub("\n", solution.text.strip())
    parts.append(f"{'Answer' if right else 'Wrong answer'}:\n{written}")
    return (Message("user", "\n\n".join(parts)),)


def needs_diagram(question: str) -> bool:
    """Whether a problem speaks of a diagram without the `[asy]` code that draws it.

    The published filter looked for the letters `asy`, which are in "easy" as well.
    """
    return "diagram" in question.lower() and "[asy]" not in question.lower()


def _request(solution: WrongSolution, attempt: int, *, right: bool) -> Request:
    return Request(solution.id, attempt, judge_prompt(solution, right=right))


def _unread(location: Location | None) -> bool:
    return location is not None and location.verdict == "undecided"


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress over all solutions from that over the ones that are asked."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
