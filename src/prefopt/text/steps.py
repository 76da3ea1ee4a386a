"""Solutions written as `Step 1: ... Step 2: ...`: split, join, and cut before a step. Nothing is ever lost.

A marker counts only at the start of a line and in order, so that a text which quotes "Step 2:" inside a line,
or refers back to an earlier step at the start of one, is not split there. A colon, a full stop or a bracket ends a
marker; Markdown around it (`**Step 2:**`, `**Step 2**:`, `### Step 2.`) is part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_MARKER = re.compile(
    r"^[ \t]*(?:[#>*_-]+[ \t]*)*Step[ \t]+(\d+)[*_]*[ \t]*(?:[:)]|\.(?!\d))[*_]*",
    re.MULTILINE | re.IGNORECASE,
)
"""`Step 2.5` at the start of a line is a number, and no second step."""


class Step(NamedTuple):
    """One step of a solution."""

    number: int
    marker: str
    """What announces it, such as `Step 2:`, from the start of its line."""
    text: str
    """What follows the marker, up to the line of the next marker; line breaks at its end included."""


class Solution(NamedTuple):
    """A solution taken apart; `join_steps` puts it together again, character for character."""

    opening: str
    """What precedes the first step."""
    steps: tuple[Step, ...]


class StepCut(NamedTuple):
    """A solution cut around one step; the three texts joined are the solution."""

    prefix: str
    """Everything before the step's content, its marker included: what a new attempt at the step continues."""
    step: str
    """The step's content without the line breaks that lead to the next step."""
    rest: str


def split_steps(text: str, *, first: int = 1) -> Solution:
    """The solution as steps numbered `first`, `first + 1`, ...; without such markers it is all opening."""
    marks = _markers(text, first)
    if not marks:
        return Solution(text, ())
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    steps = tuple(
        Step(first + k, mark.group(), text[mark.end() : end])
        for k, (mark, end) in enumerate(zip(marks, ends, strict=True))
    )
    return Solution(text[: marks[0].start()], steps)


def _markers(text: str, first: int) -> list[re.Match[str]]:
    found: list[re.Match[str]] = []
    for mark in _MARKER.finditer(text):
        if int(mark.group(1)) == first + len(found):
            found.append(mark)
    return found


def join_steps(opening: str, steps: Sequence[Step]) -> str:
    """The text of a solution: the inverse of `split_steps`."""
    return opening + "".join(step.marker + step.text for step in steps)


def cut_at_step(text: str, number: int, *, first: int = 1) -> StepCut:
    """The solution cut around step `number`.

    Raises:
        ValueError: there is no such step; the message says which there are.
    """
    opening, steps = split_steps(text, first=first)
    at = number - first
    if not 0 <= at < len(steps):
        there = f"steps {first} to {first + len(steps) - 1}" if steps else "no steps"
        raise ValueError(f"no step {number}: the text has {there}")
    prefix = join_steps(opening, steps[:at]) + steps[at].marker
    step, rest = _without_breaks(steps[at].text, last=at == len(steps) - 1)
    return StepCut(prefix, step, rest + join_steps("", steps[at + 1 :]))


def prefix_before(text: str, number: int, *, first: int = 1) -> str:
    """The text up to and including the marker of step `number`: the prefix that a step pair shares.

    Raises:
        ValueError: there is no such step.
    """
    return cut_at_step(text, number, first=first).prefix


def take_step(continuation: str, number: int) -> str:
    """The part of a continuation that belongs to step `number`, whose marker came before it.

    It ends before the line breaks that lead to step `number + 1`, or with the continuation.
    """
    opening, steps = split_steps(continuation, first=number + 1)
    return _without_breaks(opening, last=not steps)[0]


def _without_breaks(text: str, *, last: bool) -> tuple[str, str]:
    """The text and the line breaks after it, which belong to the step only when it is the last one."""
    if last:
        return text, ""
    kept = text.rstrip("\r\n")
    return kept, text[len(kept) :]
