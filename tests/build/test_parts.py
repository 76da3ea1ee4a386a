"""The parts of a pipeline: what graders are given of the problems, and what is said of comparisons without verdict."""

from __future__ import annotations

import pytest

from prefopt.build.parts import graded_by
from prefopt.grade.maths import Grader
from prefopt.text.problems import MathProblem

pytest.importorskip("math_verify")


def problem(question: str, *answers: str) -> MathProblem:
    several = answers if len(answers) > 1 else ()
    return MathProblem("a", question, ", ".join(answers), question, several=several)


@pytest.mark.slow
def test_lists_and_markup_reach_the_published_rules():
    both = problem("Find all x, separated by commas.", "-2", "3")
    name = problem("Who?", "\\text{Evelyn}")
    with Grader("step_dpo", workers=1) as grader:
        grade = graded_by(grader)
        found = grade(
            [(both, "\\boxed{3,-2}"), (both, "\\boxed{3}"), (name, "\\boxed{\\text{Evelyn}}")]
        )
    assert list(found) == [True, False, True]


@pytest.mark.slow
def test_a_comparison_without_verdict_is_told(capsys):
    hangs = "\\boxed{9^{9^{9^{9}}}}"
    with Grader(workers=1, seconds=0.2) as grader:
        pairs = [(problem("q", "x+1"), hangs), (problem("q", "5"), "The answer is 5.")]
        assert list(graded_by(grader)(pairs)) == [False, True]
    said = capsys.readouterr().err
    assert "grading: 1 of 2 comparisons gave no verdict and count as wrong (1 time limit)" in said
