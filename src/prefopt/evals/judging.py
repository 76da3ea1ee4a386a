"""Judging files of answers: what `prefopt judge` does.

One folder holds a journal of what the judge wrote (an interrupted judgement goes on where it stopped), then
`verdicts.jsonl`, one row per row of the file in its order, and `judgement.json`, both replaced whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from prefopt.errors import JudgeError, RecordError
from prefopt.evals.judgement import GradeTable, RateTable, grade_table, rate_table
from prefopt.evals.verdict_rows import by_row, is_missing, is_silent, verdict_line
from prefopt.evals.writer import require_same_writer, tell_of_strangers
from prefopt.generate.base import Generator, Sampling, Tally, tally_of
from prefopt.generate.journal import Held, Journal, Progress
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
from prefopt.text.lock import locked
from prefopt.text.whole import write_whole
from prefopt.values import JsonValue, quote

JOURNAL_FILE = "judgement.sqlite"
RESULT_FILE = "judgement.json"
VERDICTS_FILE = "verdicts.jsonl"
LOCK_FILE = ".lock"
T = TypeVar("T", Graded, Compared)
_BUSY = "is judging here; wait for it, or give another --output"


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
    extra_body: Mapping[str, JsonValue] | None = None
    """Further fields of requests to the server; part of what decides the verdicts."""
    known_as: str | None = None
    """An earlier address of the server, which its texts are known by."""


class Effort(NamedTuple):
    """What the last run of a judgement did, and what its journal holds after it."""

    new: int
    """Replies that were not in the journal before."""
    tally: Tally
    """Of the server; zeros for a judge in this process."""
    held: Held
    """Replies to other settings as well."""


class Judgement(NamedTuple):
    """A file of answers, judged."""

    folder: Path
    name: str
    table: GradeTable | RateTable
    cost: Spent
    """Of the replies that these verdicts rest on, whichever run asked for them."""
    effort: Effort
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
        JudgeError: the server cannot be used, or there is no verdict at all; what was answered is kept.
        ResumeError: another process judges in this folder.
    """
    rules = find_rules(settings.rules, GRADES)
    template = (
        SINGLE if settings.template is None else read_template(settings.template, SINGLE_PLACES)
    )
    exchanges = read_outputs(outputs)
    if not any(e.answers for e in exchanges):
        raise RecordError(f"{outputs}: no row has an output, so there is nothing to judge")
    facts = _facts(settings, template, generator, kind="single", outputs=outputs)
    asking = Asking(generator, rules, settings.sampling, settings.attempts)
    judge = SingleJudge(asking, template=template)
    remarks = ["" if e.answers else "there is no output" for e in exchanges]
    place = _Place(folder, outputs, facts, known_as=settings.known_as)
    with locked(folder / LOCK_FILE, busy=_BUSY):
        found, effort = place.ask(
            generator,
            lambda journal, tick: judge.grade(exchanges, journal=journal, progress=tick),
            overwrite=overwrite,
        )
        place.require_verdicts(found)
        table = grade_table(found, exchanges)
        return place.write(exchanges, by_row(found), remarks, table, effort)


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
        JudgeError: the server cannot be used, or there is no verdict at all; what was answered is kept.
        ResumeError: another process judges in this folder.
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
    judge = PairwiseJudge(
        Asking(generator, rules, settings.sampling, settings.attempts),
        template=template,
        order=settings.order,
        seed=settings.sampling.seed,
    )
    place = _Place(folder, outputs, facts, baseline, settings.known_as)
    with locked(folder / LOCK_FILE, busy=_BUSY):
        found, effort = place.ask(
            generator,
            lambda journal, tick: judge.compare(contests, journal=journal, progress=tick),
            overwrite=overwrite,
        )
        place.require_verdicts(found)
        table = rate_table(found, contests, both=settings.order == "both")
        judged = place.write(exchanges, by_row(found), joined.remarks, table, effort)
    return judged._replace(unused=joined.unused)


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
    baseline: Path | None = None
    known_as: str | None = None

    def ask(
        self,
        generator: Generator,
        work: Callable[[Journal, Progress], list[T]],
        *,
        overwrite: bool,
    ) -> tuple[list[T], Effort]:
        """The verdicts, and what this run did for them."""
        with Journal(self.folder / JOURNAL_FILE) as journal:
            if self.facts["server"] is not None:
                tell_of_strangers(journal, generator)
            require_same_writer(
                self.folder,
                self.facts,
                overwrite=overwrite,
                file=RESULT_FILE,
                known_as=self.known_as,
            )
            before, tally = journal.count(), tally_of(generator)
            with counted("judging") as tick:
                found = work(journal, tick)
            held = journal.held()
            return found, Effort(held.completions - before, tally_of(generator).since(tally), held)

    def require_verdicts(self, found: Sequence[Graded | Compared]) -> None:
        """Nothing, unless all verdicts are missing: that is no judgement, and none is written."""
        if not all(map(is_silent, found)):
            return
        first = found[0]
        said = first.text if isinstance(first, Graded) else first.seen[0].text
        words = f" in {quote(said)}" if first.spent.unread else ""
        raise JudgeError(
            f"{self.outputs}: not one verdict ({len(found):,} missing), so nothing is written; first '{first.id}': "
            f"{first.remark}{words}; what the judge said is kept in {self.folder / JOURNAL_FILE}"
        )

    def write(
        self,
        exchanges: Sequence[Exchange],
        rows: dict[str, list[Graded]] | dict[str, list[Compared]],
        remarks: Sequence[str],
        table: GradeTable | RateTable,
        effort: Effort,
    ) -> Judgement:
        """Both files, the numbers last; and what to tell the user."""
        lines = [
            verdict_line(exchange, rows.get(exchange.id, []), remark)
            for exchange, remark in zip(exchanges, remarks, strict=True)
        ]
        left_out = [(e.id, r) for e, r in zip(exchanges, remarks, strict=True) if r]
        verdicts = [verdict for row in rows.values() for verdict in row]
        missing = {v.id: v.remark for v in verdicts if is_missing(v)}
        spent = total_spent([v.spent for v in verdicts])
        name = self.outputs.stem
        versus = {} if self.baseline is None else {"baseline": str(self.baseline)}
        result: dict[str, JsonValue] = {
            "name": name,
            "outputs": str(self.outputs),
            **versus,
            **({} if self.known_as is None else {"known_as": self.known_as}),
            "rows": len(exchanges),
            "left_out": len(left_out),
            "missing": len(missing),
            "numbers": table.to_json(),
            "cost": _cost(spent, effort),
            "settings": self.facts,
        }
        write_whole(self.folder / VERDICTS_FILE, (f"{line}\n" for line in lines))
        write_whole(
            self.folder / RESULT_FILE, [json.dumps(result, indent=1, ensure_ascii=False), "\n"]
        )
        return Judgement(
            self.folder, name, table, spent, effort, left_out, [], list(missing.items())
        )


def _cost(spent: Spent, effort: Effort) -> dict[str, JsonValue]:
    """As `judgement.json` holds it; null is unknown."""
    unknown: dict[str, JsonValue] = {}
    if spent.prompts_uncounted and not spent.prompt_tokens:
        unknown["prompt_tokens"] = None
    if spent.uncounted and not spent.tokens:
        unknown["tokens"] = None
    return {
        **spent._asdict(),
        **unknown,
        "last_run": {
            "new": effort.new,
            "retries": effort.tally.retries,
            "timeouts": effort.tally.timeouts,
        },
        "journal": dict(effort.held._asdict()),
    }


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
        "extra_body": None if settings.extra_body is None else dict(settings.extra_body),
        "outputs_sha256": _sha256(outputs),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
