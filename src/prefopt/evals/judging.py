"""Judging files of answers: what `prefopt judge` does.

One folder holds a journal of what the judge wrote (an interrupted judgement goes on where it stopped), then
`verdicts.jsonl`, one row per row of the file in its order, and `judgement.json`, both replaced whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from prefopt.errors import RecordError
from prefopt.evals.earlier import require_replaceable
from prefopt.evals.judgement import GradeTable, RateTable, grade_table, rate_table
from prefopt.generate.base import Generator, Sampling
from prefopt.generate.journal import Journal
from prefopt.judge.asking import Asking, Spent, total_spent
from prefopt.judge.outputs import Exchange, Join, Joined, join_outputs, read_outputs
from prefopt.judge.pairwise import Compared, Order, PairwiseJudge
from prefopt.judge.readings import GRADES, PREFERENCES, find_rules
from prefopt.judge.single import Graded, SingleJudge
from prefopt.judge.template import (
    PAIRWISE,
    PAIRWISE_PLACES,
    SINGLE,
    SINGLE_PLACES,
    Template,
    read_template,
)
from prefopt.progress import counted
from prefopt.text.whole import write_whole
from prefopt.values import JsonValue

JOURNAL_FILE = "judgement.sqlite"
RESULT_FILE = "judgement.json"
VERDICTS_FILE = "verdicts.jsonl"
T = TypeVar("T", Graded, Compared)


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """How answers are judged."""

    judge: str
    """What the judge is called."""
    server: str | None = None
    rules: str = "agreed"
    """How its texts are read (`prefopt.judge.readings`)."""
    template: Path | None = None
    """A file with what it is shown; None: ours."""
    sampling: Sampling = field(
        default_factory=lambda: Sampling(max_new_tokens=1024, purpose="judge")
    )
    attempts: int = 3
    order: Order = "both"
    join: Join = "question"


class Judgement(NamedTuple):
    """A file of answers, judged."""

    folder: Path
    name: str
    table: GradeTable | RateTable
    cost: Spent
    """In all runs together."""
    new: int
    """Replies that were not in the journal before."""
    left_out: list[tuple[str, str]]
    """Ids of rows that were not judged, and why."""
    unused: list[str]
    """Ids of the baseline's rows that no row asks for."""
    missing: list[tuple[str, str]]
    """Ids of rows with a turn without a verdict, and why."""


def judge_single(
    outputs: Path, generator: Generator, settings: JudgeSettings, folder: Path, *, overwrite: bool
) -> Judgement:
    """The grades of a file of answers, written into the folder.

    Raises:
        ConfigError: the folder holds a judgement with other settings, or a setting is wrong.
        RecordError, StorageError: the file cannot be read; the message names file and line.
        JudgeError: the server cannot be used; what it answered is kept.
    """
    rules = find_rules(settings.rules, GRADES)
    template = (
        SINGLE if settings.template is None else read_template(settings.template, SINGLE_PLACES)
    )
    exchanges = read_outputs(outputs)
    facts = _facts(settings, template, generator, kind="single", outputs=outputs)
    require_replaceable(folder, facts, overwrite=overwrite, file=RESULT_FILE)
    asking = Asking(generator, rules, settings.sampling, settings.attempts)
    judge = SingleJudge(asking, template=template)
    with Journal(folder / JOURNAL_FILE) as journal, counted("judging") as tick:
        before = journal.count()
        found = judge.grade(exchanges, journal=journal, progress=tick)
        new = journal.count() - before
    table = grade_table(found, exchanges)
    remarks = ["" if e.answers else "there is no output" for e in exchanges]
    place = _Place(folder, outputs, facts, new)
    return place.write(exchanges, _by_row(found), remarks, table)


def judge_against(
    outputs: Path,
    baseline: Path,
    generator: Generator,
    settings: JudgeSettings,
    folder: Path,
    *,
    overwrite: bool,
) -> Judgement:
    """The win rates of a file of answers against another, written into the folder.

    Raises:
        ConfigError: the folder holds a judgement with other settings, or a setting is wrong.
        RecordError: the files have no question in common, or a row is wrong; the message names file and line.
        StorageError: a file cannot be read.
        JudgeError: the server cannot be used; what it answered is kept.
    """
    rules = find_rules(settings.rules, PREFERENCES)
    template = (
        PAIRWISE if settings.template is None else read_template(settings.template, PAIRWISE_PLACES)
    )
    exchanges = read_outputs(outputs)
    joined = join_outputs(exchanges, read_outputs(baseline), by=settings.join)
    contests = [contest for contest in joined.contests if contest is not None]
    if not contests:
        raise RecordError(_nothing(outputs, baseline, exchanges, joined))
    facts = _facts(settings, template, generator, kind="pairwise", outputs=outputs)
    facts |= {"order": settings.order, "join": settings.join, "baseline_sha256": _sha256(baseline)}
    require_replaceable(folder, facts, overwrite=overwrite, file=RESULT_FILE)
    judge = PairwiseJudge(
        Asking(generator, rules, settings.sampling, settings.attempts),
        template=template,
        order=settings.order,
        seed=settings.sampling.seed,
    )
    with Journal(folder / JOURNAL_FILE) as journal, counted("judging") as tick:
        before = journal.count()
        found = judge.compare(contests, journal=journal, progress=tick)
        new = journal.count() - before
    table = rate_table(found, contests, both=settings.order == "both")
    place = _Place(folder, outputs, facts, new, baseline)
    return place.write(exchanges, _by_row(found), joined.remarks, table)._replace(
        unused=joined.unused
    )


def _nothing(outputs: Path, baseline: Path, exchanges: Sequence[Exchange], joined: Joined) -> str:
    return (
        f"{outputs} and {baseline}: no row can be compared; first '{exchanges[0].id}': {joined.remarks[0]}; give "
        "answers to the same questions (--join id joins rows by their ids)"
    )


class _Place(NamedTuple):
    """Where a judgement is written, and what is known of it before."""

    folder: Path
    outputs: Path
    facts: dict[str, JsonValue]
    new: int
    baseline: Path | None = None

    def write(
        self,
        exchanges: Sequence[Exchange],
        rows: dict[str, list[Graded]] | dict[str, list[Compared]],
        remarks: Sequence[str],
        table: GradeTable | RateTable,
    ) -> Judgement:
        """Both files, the numbers last; and what to tell the user."""
        lines = [
            _line(exchange, rows.get(exchange.id, []), remark)
            for exchange, remark in zip(exchanges, remarks, strict=True)
        ]
        left_out = [(e.id, r) for e, r in zip(exchanges, remarks, strict=True) if r]
        verdicts = [verdict for row in rows.values() for verdict in row]
        missing = {v.id: v.remark for v in verdicts if _is_missing(v)}
        spent = total_spent([v.spent for v in verdicts])
        name = self.outputs.stem
        versus = {} if self.baseline is None else {"baseline": str(self.baseline)}
        result: dict[str, JsonValue] = {
            "name": name,
            "outputs": str(self.outputs),
            **versus,
            "rows": len(exchanges),
            "left_out": len(left_out),
            "missing": len(missing),
            "numbers": table.to_json(),
            "cost": spent._asdict(),
            "settings": self.facts,
        }
        write_whole(self.folder / VERDICTS_FILE, (f"{line}\n" for line in lines))
        write_whole(
            self.folder / RESULT_FILE, [json.dumps(result, indent=1, ensure_ascii=False), "\n"]
        )
        return Judgement(
            self.folder, name, table, spent, self.new, left_out, [], list(missing.items())
        )


def _facts(
    settings: JudgeSettings,
    template: Template,
    generator: Generator,
    *,
    kind: Literal["single", "pairwise"],
    outputs: Path,
) -> dict[str, JsonValue]:
    """Everything that decides the verdicts."""
    sampling = settings.sampling
    return {
        "kind": kind,
        "target": settings.judge,
        "server": settings.server,
        "generator": generator.identity,
        "rules": settings.rules,
        "template": template.digest(),
        "attempts": settings.attempts,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        "outputs_sha256": _sha256(outputs),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _by_row(found: Sequence[T]) -> dict[str, list[T]]:
    rows: dict[str, list[T]] = {}
    for verdict in found:
        rows.setdefault(verdict.id, []).append(verdict)
    return rows


def _is_missing(verdict: Graded | Compared) -> bool:
    said = verdict.score if isinstance(verdict, Graded) else verdict.verdict
    return said is None or said == "missing"


def _line(exchange: Exchange, found: Sequence[Graded | Compared], remark: str) -> str:
    row: dict[str, JsonValue] = {"id": exchange.id}
    if exchange.category:
        row["category"] = exchange.category
    row["turns"] = [_turn(verdict) for verdict in found]
    if remark:
        row["remark"] = remark
    return json.dumps(row, ensure_ascii=False)


def _turn(verdict: Graded | Compared) -> dict[str, JsonValue]:
    if isinstance(verdict, Graded):
        row: dict[str, JsonValue] = {"score": verdict.score, "text": verdict.text}
    else:
        seen: list[JsonValue] = [
            {"model": "first" if s.model_first else "second", "verdict": s.verdict, "text": s.text}
            for s in verdict.seen
        ]
        row = {"verdict": verdict.verdict, "seen": seen}
    if verdict.remark:
        row["remark"] = verdict.remark
    return row
