"""`prefopt grade`: whether the outputs of a file answer their problems rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from prefopt.grade.maths import Graded, GradeItem
    from prefopt.values import JsonValue

NAME = "grade"
HELP = """\
Grade answers to mathematics problems: `prefopt grade FILE --output OUT`.

FILE holds one JSON object a line with `answer` (the gold one: a text, a number or a list of these), `output` (what a
model wrote) and, if there is one, `problem` (or `question`). OUT gets the same rows in the same order with `correct`,
`extracted` and `reason`. Prints the accuracy with its 95% interval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the grader and its limits."""
    parser.add_argument(
        "file", metavar="FILE", help="JSON Lines with answer, output and maybe problem"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="JSON Lines file to write")
    parser.add_argument(
        "--grader",
        default="math-verify",
        metavar="NAME",
        help="math-verify (the default), step_dpo or scdpo",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="processor time of one comparison before it counts as wrong (5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Grade, write and print; returns 0."""
    from prefopt.errors import ConfigError
    from prefopt.grade.maths import Grader
    from prefopt.progress import counted

    source, target = Path(arguments.file), Path(arguments.output)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"--output {target} is the input file; give another name")
    if target.is_dir():
        raise ConfigError(f"--output {target} is a folder; give the name of a file")
    _prepare(target)
    with Grader(arguments.grader, workers=arguments.workers, seconds=arguments.seconds) as grader:
        rows = read_rows(source)
        with counted("grading") as progress:
            graded = grader.grade([row.item for row in rows], progress=progress)
    _write(target, rows, graded)
    print("\n".join(summary(graded)))
    return 0


class GradeRow(NamedTuple):
    """A row of the file."""

    values: Mapping[str, JsonValue]
    """All its keys."""
    item: GradeItem


def read_rows(source: Path) -> list[GradeRow]:
    """The rows of a file to grade.

    Raises:
        RecordError: a row is not what is needed; the message names file and line.
        StorageError: the file cannot be read.
    """
    from prefopt.errors import RecordError
    from prefopt.text.files import read_rows as read_source_rows

    if source.suffix.lower() not in {".jsonl", ".ndjson", ".json"}:
        raise RecordError(f"{source}: rows to grade are read from JSON Lines; name a .jsonl file")
    return [
        GradeRow(row.values, _item(row.values, row.origin)) for row in read_source_rows(source).rows
    ]


def summary(graded: Sequence[Graded]) -> list[str]:
    """The accuracy and what else to know about the verdicts, as lines.

    Rows whose gold answer cannot be read are no measure of the outputs: they are told, and not part of the accuracy.
    """
    from collections import Counter

    from prefopt.grade.maths import mishaps, told
    from prefopt.grade.statistics import wilson

    reasons = Counter(g.reason for g in graded)
    unread = reasons["unreadable gold"]
    correct, total = sum(g.correct for g in graded), len(graded) - unread
    rows = "1 row has an answer" if unread == 1 else f"{unread:,} rows have answers"
    warning = f"warning: {rows} that cannot be read (empty?); left out of the accuracy"
    warnings = [warning] if unread else []
    ended = mishaps(g.reason for g in graded)
    if ended:
        warnings.append(f"warning: {told(ended, len(graded))}")
    if not total:
        return [*warnings, "accuracy: no rows to grade"]
    low, high = wilson(correct, total)
    interval = f"{100 * low:.2f}% to {100 * high:.2f}%"
    return [
        *warnings,
        f"accuracy: {100 * correct / total:.2f}% ({correct:,} of {total:,}), 95% interval {interval}",
        "reasons: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()),
        f"no answer: {reasons['no answer']:,}; over the time limit: {reasons['time limit']:,}",
    ]


def _item(row: Mapping[str, JsonValue], where: str) -> GradeItem:
    from prefopt.errors import RecordError
    from prefopt.grade.maths import GradeItem

    problem = row.get("problem", row.get("question", ""))
    if not isinstance(problem, str):
        raise RecordError(f"{where}: problem is {json.dumps(problem)[:60]}; it has to be a text")
    for key in ("answer", "output"):
        if key not in row:
            raise RecordError(
                f"{where}: there is no {key!r}; a row needs answer and output (problem may be missing)"
            )
    output = row["output"]
    if not isinstance(output, str):
        raise RecordError(f"{where}: output is {json.dumps(output)[:60]}; it has to be a text")
    return GradeItem(problem, _answer(row["answer"], where), output)


def _answer(answer: JsonValue, where: str) -> str:
    from prefopt.errors import RecordError
    from prefopt.grade.answers import join_answers

    items = answer if isinstance(answer, list) else [answer]
    texts = [
        str(item)
        for item in items
        if isinstance(item, str | int | float) and not isinstance(item, bool)
    ]
    if not texts or len(texts) < len(items):
        raise RecordError(
            f"{where}: answer is {json.dumps(answer)[:60]}; it has to be a text, a number or a list of these"
        )
    return join_answers(texts) if isinstance(answer, list) else texts[0]


def _prepare(target: Path) -> None:
    """Make the folder of the output, before hours of grading are lost to a wrong one."""
    import os

    from prefopt.errors import StorageError
    from prefopt.text.whole import is_stream

    if is_stream(target):
        return
    folder = Path(os.path.realpath(target)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be made ({error.strerror}); give --output another folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: no permission to write; give --output another folder")


def _write(target: Path, rows: Sequence[GradeRow], graded: Sequence[Graded]) -> None:
    """The output file, whole or not at all; a pipe or device gets the rows one by one."""
    from prefopt.text.whole import write_whole

    lines = (
        json.dumps({**row.values, **verdict._asdict()}, ensure_ascii=False) + "\n"
        for row, verdict in zip(rows, graded, strict=True)
    )
    write_whole(target, lines)
