"""What `prefopt eval` prints: tables, groups, remarks and comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefopt.evals.earlier import Earlier
    from prefopt.evals.harness import HarnessResult
    from prefopt.evals.maths import Evaluation
    from prefopt.evals.settings import EvalSettings
    from prefopt.evals.suite import Evaluated

_LEVELS_SHOWN = 12
_CUT_SHOWN = 0.01
_OF_MODEL = frozenset({"model", "endpoint", "dtype"})
"""Settings in which evaluations that are compared may well differ."""


def print_table(found: Sequence[Evaluated]) -> None:
    """One line a file."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("problems")
    for title in ("accuracy", "95% interval", "right", "no answer", "cut", "seconds"):
        table.add_column(title, justify="right")
    for evaluation, _, seconds, *_ in found:
        table.add_row(
            evaluation.split,
            f"{100 * evaluation.value:.1f}%",
            f"{100 * evaluation.low:.1f} to {100 * evaluation.high:.1f}%",
            f"{evaluation.correct}/{evaluation.total}",
            str(evaluation.unanswered),
            str(evaluation.cut),
            f"{seconds:.1f}",
        )
    Console().print(table)


def print_groups(evaluation: Evaluation) -> None:
    """Accuracy by level and type, where the file names more than one."""
    from prefopt.evals.maths import by_label

    for name, group in by_label(evaluation.outputs).items():
        if len(group) > 1:
            shown = [
                f"{value} {100 * found.value:.1f}% ({found.correct}/{found.total})"
                for value, found in list(group.items())[:_LEVELS_SHOWN]
            ]
            more = len(group) - _LEVELS_SHOWN
            rest = [f"{more} more in evaluation.json"] if more > 0 else []
            print(f"{evaluation.split} by {name}: " + ", ".join([*shown, *rest]))


def print_remarks(found: Evaluated, settings: EvalSettings) -> None:
    """What should be known about the number: what the file's reader noticed, cut, ungraded and missing solutions."""
    from prefopt.grade.maths import mishaps, told

    evaluation = found.evaluation
    for line in found.remarks:
        print(line)
    if evaluation.cut > _CUT_SHOWN * evaluation.total:
        for line in _cut(evaluation, settings):
            print(line)
    ended = mishaps(output.reason for output in evaluation.outputs)
    if ended:
        print(f"{evaluation.split}: {told(ended, evaluation.total)}")
    if evaluation.failed:
        first = next(o for o in evaluation.outputs if o.finish_reason == "error")
        print(
            f"{evaluation.split}: {evaluation.failed} problems got no solution and count as wrong, first "
            f"'{first.id}': {first.output}"
        )


def _cut(evaluation: Evaluation, settings: EvalSettings) -> list[str]:
    """How many solutions were cut, by what, and what may help against it."""
    from prefopt.evals.settings import MAX_CALLS

    fate = "count as wrong" if settings.code else "were graded as they are"
    length = settings.max_new_tokens
    tokens = f"were cut at {length} tokens{' a block' if settings.code else ''}"
    kinds = {
        "tokens": (tokens, f"a higher --max-new-tokens than {length} may change the number"),
        "context": (
            "were cut at the end of the model's context",
            "only a longer context or shorter prompts may change the number",
        ),
        "blocks": (f"did not end within {MAX_CALLS} blocks", ""),
    }
    lines: list[str] = []
    for kind, (what, remedy) in kinds.items():
        count = sum(
            output.finish_reason == "length" and (output.cut_by or "tokens") == kind
            for output in evaluation.outputs
        )
        if count:
            line = f"{evaluation.split}: {count} of {evaluation.total} solutions {what} and {fate}"
            lines.append(f"{line}; {remedy}" if remedy else line)
    return lines


def print_comparison(earlier: Earlier, found: Evaluated) -> None:
    """The difference, how sure it is, and what else than the model differs."""
    from prefopt.evals.earlier import differences
    from prefopt.evals.maths import compare

    before, after = earlier.evaluation, found.evaluation
    result = compare(before, after)
    value, low, high = result.difference[:3]
    names = (after.name, before.name)
    if after.name == before.name:
        names = (f"{after.name} in {found.folder}", f"that in {earlier.folder}")
    print(
        f"{after.split}: {names[0]} against {names[1]}: {100 * value:+.1f} points "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}), {result.gained} gained, {result.lost} lost, "
        f"p = {result.p:.3g} (McNemar)"
    )
    if not before.settings:
        print(f"  {earlier.folder} does not say how it was evaluated")
        return
    changed = differences(before.settings, after.settings)
    shown = [f"{key} {values}" for key, values in changed.items() if key not in _OF_MODEL]
    if shown:
        print(f"  the two were not evaluated alike (then / now): {'; '.join(shown)}")


def print_harness(result: HarnessResult) -> None:
    """One line a number of the harness."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("task", "metric", "filter"):
        table.add_column(title)
    for title in ("value", "standard error", "problems"):
        table.add_column(title, justify="right")
    for score in result.scores:
        table.add_row(
            score.task,
            score.metric,
            score.filter,
            f"{score.value:.4f}",
            "-" if score.stderr is None else f"{score.stderr:.4f}",
            str(score.problems),
        )
    Console().print(table)
