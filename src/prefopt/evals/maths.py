"""Accuracy on problems with a checkable answer: generate, grade, count, and say how sure the number is.

What an evaluation holds is in `prefopt.evals.outcome`, its files in `prefopt.evals.files`; both are re-exported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from prefopt.evals.earlier import require_same_problems
from prefopt.evals.files import OUTPUTS_FILE, RESULT_FILE, read_evaluation, write_evaluation
from prefopt.evals.outcome import (
    UNGRADED,
    CutBy,
    Evaluation,
    Output,
    Share,
    Verdict,
    Written,
    by_label,
    make_output,
    share,
)
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.grade.statistics import Difference, mcnemar, paired_bootstrap
from prefopt.text.problems import MathProblem, Problem

__all__ = [
    "GREEDY",
    "OUTPUTS_FILE",
    "RESULT_FILE",
    "Comparison",
    "Evaluation",
    "Output",
    "Share",
    "by_label",
    "compare",
    "count",
    "evaluate",
    "evaluate_all",
    "read_evaluation",
    "write_evaluation",
]

GREEDY = Sampling(purpose="evaluation")

P = TypeVar("P", bound=Problem)
GradeAll = Callable[[Sequence[tuple[P, str]]], Sequence[Verdict]]
"""Verdicts on (problem, text), in order; the text begins with the problem's prefix."""


class Mark(NamedTuple):
    """The verdict of a grader that only says right or wrong."""

    correct: bool
    extracted: str | None = None
    reason: str = ""


class Comparison(NamedTuple):
    """Two evaluations of the same problems."""

    gained: int
    """Problems that only the second is right on."""
    lost: int
    """Problems that only the first is right on."""
    p: float
    """Two-sided exact p-value of McNemar's test."""
    difference: Difference
    """Of the accuracies, second minus first, with the 95% interval of a paired bootstrap."""


def evaluate(
    generator: Generator,
    problems: Sequence[P],
    grade: Callable[[P, str], bool],
    *,
    sampling: Sampling = GREEDY,
    journal: Journal | None = None,
    progress: Progress | None = None,
    name: str = "model",
) -> Evaluation:
    """The share of problems that the generator answers rightly, by default with greedy decoding.

    Args:
        generator: what is evaluated.
        problems: with unique ids; one with a `prefix` is continued from there.
        grade: whether a text, its prefix included, answers the problem rightly; a text cut at the token limit is
            graded as it is.
        sampling: one completion per problem.
        journal: keeps the completions, so that an interrupted evaluation goes on where it stopped.
        progress: called with (done, total).
        name: of the model, for tables and the report.

    Raises:
        RecordError: two problems have the same id, or a prompt cannot be rendered.
    """
    return evaluate_all(
        generator,
        problems,
        lambda pairs: [Mark(grade(problem, text)) for problem, text in pairs],
        sampling=sampling,
        journal=journal,
        progress=progress,
        name=name,
    )


def evaluate_all(
    generator: Generator,
    problems: Sequence[P],
    grade_all: GradeAll[P],
    *,
    sampling: Sampling = GREEDY,
    journal: Journal | None = None,
    progress: Progress | None = None,
    name: str = "model",
) -> Evaluation:
    """As `evaluate`, with a grader that takes all texts at once (`prefopt.grade.maths.Grader` in worker processes).

    Texts that were not written (finish_reason `error`: a server refused, or the prompt fills the model's context) are
    not graded: they count as wrong, with the reason `no solution`.

    Args:
        generator, problems, sampling, journal, progress, name: as `evaluate`.
        grade_all: verdicts on (problem, text), in order.

    Raises:
        RecordError: as `evaluate`.
        ValueError: the grader returns another number of verdicts.
    """
    requests = [Request(p.id, 0, p.prompt, prefix=prefix_of(p)) for p in problems]
    completions = complete(generator, requests, sampling, journal, progress=progress)
    written = [
        Written(c.text, prefix_of(p) + c.text, c.finish_reason, c.tokens, _cut_by(c, sampling))
        for p, c in zip(problems, completions, strict=True)
    ]
    return count(problems, written, grade_all, name=name)


def _cut_by(completion: Completion, sampling: Sampling) -> CutBy:
    """What ended a completion before its end; servers that do not count tokens say 0."""
    if completion.finish_reason != "length":
        return ""
    return "context" if 0 < completion.tokens < sampling.max_new_tokens else "tokens"


def count(
    problems: Sequence[P], written: Sequence[Written], grade_all: GradeAll[P], *, name: str
) -> Evaluation:
    """The evaluation of what was written about each problem, in order.

    Raises:
        ValueError: the grader returns another number of verdicts than it was given texts.
    """
    pairs = list(zip(problems, written, strict=True))
    texts = [(p, w.graded) for p, w in pairs if w.finish_reason != "error"]
    given = grade_all(texts) if texts else []
    if len(given) != len(texts):
        raise ValueError(f"the grader gave {len(given)} verdicts on {len(texts)} texts")
    verdicts = iter(given)
    refused = Mark(correct=False, reason=UNGRADED)
    outputs = tuple(
        make_output(
            problem,
            text,
            refused if text.finish_reason == "error" else next(verdicts),
            prefix=prefix_of(problem),
            labels=labels_of(problem),
        )
        for problem, text in pairs
    )
    return Evaluation(name, *share(outputs), outputs)


def prefix_of(problem: Problem) -> str:
    """The unfinished solution that a problem brings; problems of worlds bring none."""
    return problem.prefix if isinstance(problem, MathProblem) else ""


def labels_of(problem: Problem) -> Mapping[str, str]:
    """Type and level of a file's problem, as far as the file names them."""
    if not isinstance(problem, MathProblem):
        return {}
    labels = {"type": problem.kind, "level": problem.meta.get("level")}
    return {name: str(value) for name, value in labels.items() if value not in (None, "")}


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """How the second evaluation differs from the first, item by item.

    Raises:
        ConfigError: they are not about the same problems.
    """
    before = {output.id: output for output in first.outputs}
    after = {output.id: output for output in second.outputs}
    alike = first.name == second.name
    names = ("the first", f"the second evaluation of {second.name}")
    require_same_problems(
        {key: output.answer for key, output in before.items()},
        {key: output.answer for key, output in after.items()},
        names=names if alike else (first.name, second.name),
    )
    marks = [(before[key].correct, after[key].correct) for key in before]
    gained, lost = marks.count((False, True)), marks.count((True, False))
    difference = paired_bootstrap([b for b, _ in marks], [a for _, a in marks])
    return Comparison(gained, lost, mcnemar(lost, gained), difference)
