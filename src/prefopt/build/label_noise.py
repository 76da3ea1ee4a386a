"""How many negatives are right answers in another form: one grader's wrong verdicts before a stricter one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from prefopt.build.grading import Grade
from prefopt.grade.statistics import wilson
from prefopt.text.problems import Problem

P = TypeVar("P", bound=Problem)


class LabelNoise(NamedTuple):
    """The share of wrong verdicts that another grader does not share."""

    solutions: int
    wrong: int
    """By the first grader."""
    right: int
    """Of those, right by the second."""
    share: float
    """right / wrong; 0 when nothing is wrong."""
    low: float
    """95% Wilson interval of the share."""
    high: float


def label_noise(
    solutions: Sequence[tuple[P, str]], *, used: Grade[P], strict: Grade[P]
) -> LabelNoise:
    """How much of what `used` calls wrong `strict` calls right: false negatives of a build that `used` labelled.

    Args:
        solutions: (problem, text) as the build graded them, right ones included or not.
        used: the grader of the build, such as the published string comparison.
        strict: a grader that compares values, such as math-verify.
    """
    verdicts = used(solutions)
    wrong = [item for item, right in zip(solutions, verdicts, strict=True) if not right]
    right = sum(strict(wrong)) if wrong else 0
    low, high = wilson(right, len(wrong))
    share = right / len(wrong) if wrong else 0.0
    return LabelNoise(len(solutions), len(wrong), right, share, low, high)
