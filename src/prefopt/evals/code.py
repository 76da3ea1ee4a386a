"""Accuracy of code-integrated solutions: text and programs in turn, the programs run in the sandbox.

The published evaluation of Step-Controlled DPO: greedy, at most 24 blocks of 512 tokens; what is graded is the last
block of a finished solution. Here a solution that does not end, or that goes wrong otherwise, is wrong with the reason
that the interpreter loop gives; it is never graded by what its last block happens to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from prefopt.agents.interpreted import Attempt, Solved, Solving, solve
from prefopt.evals.maths import GradeAll, count
from prefopt.evals.outcome import CutBy, Evaluation, Finish, Written
from prefopt.evals.settings import MAX_CALLS
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal, Progress
from prefopt.generate.schedule import constant
from prefopt.text.blocks import serialise
from prefopt.text.problems import MathProblem

if TYPE_CHECKING:
    from prefopt.sandbox.sandbox import Sandbox

GREEDY_CODE = Solving(
    max_calls=MAX_CALLS, max_new_tokens=512, schedule=constant(0.0), purpose="evaluation"
)


class CodeSettings(NamedTuple):
    """How solutions with programs are written."""

    system: str = ""
    """The system text of the conversation."""
    solving: Solving = GREEDY_CODE
    """Limits; greedy by default."""


_DEFAULT = CodeSettings()
_FINISH: dict[str, Finish] = {"finished": "stop", "calls": "length", "length": "length"}


def evaluate_code(
    generator: Generator,
    problems: Sequence[MathProblem],
    grade_all: GradeAll[MathProblem],
    sandbox: Sandbox,
    *,
    settings: CodeSettings = _DEFAULT,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The share of problems whose code-integrated solution ends in the right answer.

    Args:
        generator: what is evaluated; it writes the blocks of `prefopt.text.blocks`.
        problems: with unique ids; their questions are put into that format here.
        grade_all: verdicts on (problem, last block), in order.
        sandbox: where the programs run.
        settings: system text and limits.
        journal: keeps blocks and executions.
        progress: called with (done, total).

    Raises:
        RecordError: two problems have the same id.
        SandboxError: programs cannot be run in isolation.
    """
    attempts = [Attempt(p.id, 0, p.question, settings.system) for p in problems]
    solved = solve(
        attempts, generator, sandbox, settings.solving, journal=journal, progress=progress
    )
    return count(problems, [_written(s) for s in solved], grade_all, name="model")


def _written(solved: Solved) -> Written:
    finish = _FINISH.get(solved.status, "error")
    if solved.status == "length" and not solved.calls:
        finish = "error"  # the prompt alone fills the context: as where there are no programs
    text = solved.reason if finish == "error" else serialise(solved.blocks)
    ended = solved.status == "finished" and bool(solved.blocks)
    return Written(text, solved.blocks[-1].content if ended else "", finish, cut_by=_cut_by(solved))


def _cut_by(solved: Solved) -> CutBy:
    if solved.status == "calls":
        return "blocks"
    if solved.status != "length" or not solved.calls:
        return ""
    return "context" if "context" in solved.reason else "tokens"
