"""What the published Step-DPO scripts do in another way than is right, each as a named option.

`CORRECTED` is what we think is right; `OFFICIAL` is the repository dvlab-research/Step-DPO at c4902fd. The judge has
rules of its own (`prefopt.judge.verdict`): there a neutral step counts as wrong in the published way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from prefopt.text.steps import StepCut, cut_at_step, take_step


@dataclass(frozen=True, slots=True)
class StepRules:
    """Options of the pipeline that exist for fidelity."""

    cut_samples_are_wrong: bool = False
    """Solutions cut at the token limit count as wrong ones; else they are left out."""
    limit_admits_one_more: bool = False
    """The limit of wrong solutions per problem is compared before it is counted, so that one more is taken, and a
    solution that the judge cannot place uses it up."""
    markers: Literal["in order", "first"] = "in order"
    """`in order`: `Step k:` counts at the start of a line and in order. `first`: its first occurrence anywhere in the
    text cuts there, and a step runs to the next line that starts with "Step "."""
    keep_equal_steps: bool = False
    """Pairs whose two steps are the same text are kept: their loss is ln 2 and their gradient 0."""

    def cut(self, text: str, number: int) -> StepCut:
        """The solution cut around step `number`.

        Raises:
            ValueError: there is no such step.
        """
        return cut_at_step(text, number) if self.markers == "in order" else _cut_first(text, number)

    def take(self, continuation: str, number: int) -> str:
        """The part of a continuation that belongs to step `number`."""
        if self.markers == "in order":
            return take_step(continuation, number)
        return re.split(r"\nStep ", continuation, maxsplit=1)[0]


CORRECTED = StepRules()
OFFICIAL = StepRules(
    cut_samples_are_wrong=True,
    limit_admits_one_more=True,
    markers="first",
    keep_equal_steps=True,
)


def _cut_first(text: str, number: int) -> StepCut:
    before, marker, after = text.partition(f"Step {number}:")
    if not marker:
        raise ValueError(f"no step {number}: the text has no 'Step {number}:'")
    step = re.split(r"\nStep ", after, maxsplit=1)[0]
    return StepCut(before + marker, step, after[len(step) :])
