"""What an evaluation found: each output with its verdict, the accuracy over all, and over topics and levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from prefopt.grade.statistics import wilson
from prefopt.records import Message
from prefopt.text.problems import Problem
from prefopt.values import JsonValue

Finish = Literal["stop", "length", "error"]
CutBy = Literal["", "tokens", "context", "blocks"]
_NOTHING: Mapping[str, str] = {}
_NO_SETTINGS: Mapping[str, JsonValue] = {}

UNGRADED = "no solution"
"""Reason of an output that could not be written: refused by a server, or its prompt fills the model's context."""


class Written(NamedTuple):
    """What a model wrote about one problem, before it is graded."""

    text: str
    """After prompt and prefix; with finish reason `error` what went wrong."""
    graded: str
    """The text that the grader sees."""
    finish_reason: Finish
    tokens: int = 0
    cut_by: CutBy = ""
    """With finish reason `length` what was used up; see `Output.cut_by`."""


class Verdict(Protocol):
    """What a grader says about one output; `prefopt.grade.maths.Graded` is one."""

    @property
    def correct(self) -> bool:
        """Whether it answers the problem rightly."""
        ...

    @property
    def extracted(self) -> str | None:
        """The answer found in the text; None where there is none."""
        ...

    @property
    def reason(self) -> str:
        """Why, in a few fixed words."""
        ...


class Output(NamedTuple):
    """What the model wrote about one problem."""

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    """The right one."""
    output: str
    """What the model wrote after prompt and prefix."""
    correct: bool
    prefix: str = ""
    """The beginning of the solution that was given to the model; graded together with `output`."""
    extracted: str | None = None
    """The answer that the grader found; None where there is none, or where the grader names none."""
    reason: str = ""
    """The grader's, in a few fixed words."""
    finish_reason: Finish = "stop"
    """`length`: cut, see `cut_by`. `error`: there is no solution, and `output` says why not."""
    tokens: int = 0
    """Tokens that the model wrote; 0 where a server does not say."""
    cut_by: CutBy = ""
    """What cut it, if something did: `tokens`: the limit of new tokens; `context`: there was no more room in the model;
    `blocks`: the limit of blocks of a solution with programs."""
    labels: Mapping[str, str] = _NOTHING
    """What the problem belongs to, such as {"type": "Algebra", "level": "Level 3"}."""


class Share(NamedTuple):
    """A share of problems answered rightly, with its 95% Wilson interval."""

    correct: int
    total: int
    value: float
    """correct / total; 0 when there are no problems."""
    low: float
    high: float


class Evaluation(NamedTuple):
    """An accuracy with its 95% Wilson interval, and the outputs it counts."""

    name: str
    """Of what was evaluated."""
    correct: int
    total: int
    value: float
    """correct / total; 0 when there are no problems."""
    low: float
    high: float
    outputs: tuple[Output, ...]
    """In the order of the problems."""
    metric: str = "accuracy"
    split: str = "test"
    """Where the problems are from."""
    settings: Mapping[str, JsonValue] = _NO_SETTINGS
    """What decided the numbers: model, prompt style, grader, sampling, file."""

    @property
    def cut(self) -> int:
        """Outputs that were cut; those without programs are graded as they are."""
        return sum(output.finish_reason == "length" for output in self.outputs)

    @property
    def failed(self) -> int:
        """Problems without a solution, such as those a server refused; they count as wrong."""
        return sum(output.finish_reason == "error" for output in self.outputs)

    @property
    def unanswered(self) -> int:
        """Solutions in which the grader found no answer; 0 for graders that name no answers."""
        return sum(
            bool(output.reason) and output.extracted is None and output.finish_reason != "error"
            for output in self.outputs
        )


def share(outputs: Sequence[Output]) -> Share:
    """The share of right outputs."""
    correct, total = sum(output.correct for output in outputs), len(outputs)
    low, high = wilson(correct, total)
    return Share(correct, total, correct / total if total else 0.0, low, high)


def by_label(outputs: Sequence[Output]) -> dict[str, dict[str, Share]]:
    """For each label name (`type`, `level`) the share of each of its values, values in alphabetical order."""
    groups: dict[str, dict[str, list[Output]]] = {}
    for output in outputs:
        for name, value in output.labels.items():
            groups.setdefault(name, {}).setdefault(value, []).append(output)
    return {
        name: {value: share(group[value]) for value in sorted(group)}
        for name, group in groups.items()
    }


def make_output(
    problem: Problem,
    written: Written,
    verdict: Verdict,
    *,
    prefix: str,
    labels: Mapping[str, str] = _NOTHING,
) -> Output:
    """One line of an evaluation."""
    return Output(
        id=problem.id,
        prompt=problem.prompt,
        answer=problem.answer,
        output=written.text,
        correct=verdict.correct,
        prefix=prefix,
        extracted=verdict.extracted,
        reason=verdict.reason,
        finish_reason=written.finish_reason,
        tokens=written.tokens,
        cut_by=written.cut_by,
        labels=labels,
    )
