"""The verdicts of two papers' published graders, as observed when run on these inputs."""

import pytest

from prefopt.grade.answers import join_answers
from prefopt.grade.maths import GradeItem, Grader

pytest.importorskip("math_verify")

COMMAS = "Find all x, separated by commas."

STEP_DPO = [
    ("", "\\boxed{50}", "0.5", True),
    ("", "\\boxed{1000}", "10", True),
    ("", "\\boxed{50\\%}", "0.5", True),
    ("", "\\boxed{0.5}", "\\frac{1}{2}", True),
    ("", "\\boxed{1/2}", "\\frac12", True),
    ("", "\\boxed{3.0005}", "3", True),
    ("", "\\boxed{3.002}", "3", False),
    ("", "\\boxed{4} then \\boxed{5}", "5", True),
    ("", "\\boxed{5} then \\boxed{4}", "5", False),
    (COMMAS, "\\boxed{3,-2}", join_answers(["-2", "3"]), True),
    ("", "\\boxed{3,-2}", "-2,3", False),
    ("", "\\boxed{[1,2]\\cup[3,4]}", "[3,4]\\cup[1,2]", True),
    ("", "\\boxed{x=5}", "5", True),
    ("", "\\boxed{5\\text{ miles}}", "5", True),
    ("", "\\boxed{90^\\circ}", "90", True),
    ("", "\\boxed{2x+1}", "1+2x", True),
    ("", "\\boxed{\\text{even}}", "\\text{even}", False),
    ("", "\\boxed{\\text{even}}", "even", True),
    ("", "\\boxed{j}", "i", True),
    ("", "The answer is: 1,234", "1234", True),
    ("", "First there were 3 then 7 apples", "7", True),
    ("", "\\boxed{}", "5", False),
    ("", "", "5", False),
    ("", "\\boxed{5 ", "5", False),
    # From the rules: bracket kinds are not looked at, matrices by cells, equations up to sign, printed output.
    ("", "\\boxed{(1,2)}", "[1,2]", True),
    ("", "\\boxed{\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", True),
    ("", "\\boxed{x-y=1}", "y-x=-1", True),
    ("", "```output\n12\n```", "12", True),
    ("", "Final Answer: The final answer is $7$. I hope it is correct.", "7", True),
]  # fmt: skip

SCDPO = [
    ("answer is $\\boxed{18}$.", "18", True),
    ("18", "18", True),
    ("The total is 18.", "18", False),
    ("\\boxed{0.001}", "0.004", True),
    ("\\boxed{3.004}", "3", False),
    ("\\boxed{5} or \\boxed{7}", "7", False),
    ("\\boxed{5} or \\boxed{7}", "5", True),
    ("\\boxed{x=5}", "5", True),
    ("\\boxed{0.5}", "\\frac{1}{2}", True),
    ("\\boxed{90^\\circ}", "90", True),
    ("\\boxed{\\frac12}", "\\frac{1}{2}", False),
    ("\\boxed{2,3}", "3,2", True),
    ("\\boxed{1,234}", "1234", True),
    ("\\boxed{50\\%}", "50", True),
    ("\\boxed{50\\%}", "0.5", False),
    ("\\boxed{5\\text{ miles}}", "5", False),
    ("\\boxed{\\text{Even}}", "\\text{even}", True),
    ("\\boxed{1+2x}", "2x+1", False),
    ("", "5", False),
    ("\\boxed{}", "5", False),
]


@pytest.mark.slow
def test_step_dpo():
    items = [GradeItem(problem, gold, output) for problem, output, gold, _ in STEP_DPO]
    with Grader("step_dpo", workers=1) as grader:
        found = grader.grade(items)
    wrong = [(c, g) for c, g in zip(STEP_DPO, found, strict=True) if g.correct is not c[3]]
    assert wrong == []
    assert found[STEP_DPO.index(("", "", "5", False))].reason == "no answer"


AS_FILES_GIVE_THEM = [
    (COMMAS, "\\boxed{3,-2}", ("-2", "3"), True),
    (COMMAS, "\\boxed{3,-2}", ("-2,3",), True),
    ("", "\\boxed{3,-2}", ("-2,3",), False),
    ("", "\\boxed{\\text{Evelyn}}", ("\\text{Evelyn}",), True),
    ("", "\\boxed{(1, 9/2)}", ("\\left(1,\\frac{9}{2}\\right)",), True),
    ("", "\\boxed{x \\in [-2,7]}", ("x \\in [-2,7]",), True),
    ("", "\\boxed{[-2,7]}", ("x\\in[-2,7]",), True),
    ("", "\\boxed{[-2,7]}", ("x \\in [-2,7]",), False),  # as published: left out before spaces are
    ("", "\\boxed{2\\text{ and }3}", ("\\text{2 and 3}",), False),
    ("", "The answer is 18", ("18",), True),
    ("", "\\boxed{19}", ("18",), False),
    ("", "\\boxed{5}", ("5{",), False),
]


@pytest.mark.slow
def test_step_dpo_normalises_the_answers_of_files():
    cases = [(problem, answers, output) for problem, output, answers, _ in AS_FILES_GIVE_THEM]
    with Grader("step_dpo", workers=1) as grader:
        found = grader.grade_answers(cases)
    assert [g.correct for g in found] == [case[3] for case in AS_FILES_GIVE_THEM]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math-verify", "scdpo"])
def test_other_rules_take_the_answers_of_files_as_they_are(name):
    with Grader(name, workers=1) as grader:
        found = grader.grade_answers(
            [(COMMAS, ("3", "-2"), "\\boxed{-2,3}"), ("", ("18",), "\\boxed{18}")]
        )
    assert [g.correct for g in found] == [True, True]


@pytest.mark.slow
def test_scdpo():
    with Grader("scdpo", workers=1) as grader:
        found = grader.grade([GradeItem("", gold, output) for output, gold, _ in SCDPO])
    wrong = [(c, g) for c, g in zip(SCDPO, found, strict=True) if g.correct is not c[2]]
    assert wrong == []
