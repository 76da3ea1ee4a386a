"""The report: one static HTML page from one or several run folders. It opens without network.

Here are the two public functions and what the templates are given; the words come from `verdict` and `health`,
the drawings from `panels`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.errors import StorageError
from prefopt.report import dice
from prefopt.report.agents import HEADER, agent_rows
from prefopt.report.folder import JsonObject, Run, number, read_runs
from prefopt.report.health import examine
from prefopt.report.numerals import MISSING, count, decimal, interval, percent
from prefopt.report.objectives import margin_note
from prefopt.report.pairs import Example, choose_examples
from prefopt.report.panels import curve_panels, evaluation_panels, token_panel
from prefopt.report.remark import Remark
from prefopt.report.series import change
from prefopt.report.svg import css_colour, run_colour
from prefopt.report.verdict import difference, find_baseline, recipe_words, show_value, verdict
from prefopt.values import JsonValue

LEDGER_ROWS = 10
"""Rows of a ledger shown per split; the file has them all."""


class SummaryRow(NamedTuple):
    """One run in the table at the end of a command. Absent numbers are None."""

    name: str
    accuracy: float | None
    """Value of the evaluation, a fraction when `proportion`."""
    low: float | None
    high: float | None
    margin: float | None
    """Mean of `rewards/margins` over the last tenth of the training lines."""
    saved: float | None
    """Share of tokens that sharing saves, 0 to 1."""
    proportion: bool

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, accuracy, 95% interval, margin and saved tokens as they are written in the report."""
        show = percent if self.proportion else decimal
        span = interval(self.low, self.high, proportion=self.proportion)
        return self.name, show(self.accuracy), span, decimal(self.margin), percent(self.saved)


class RunView(NamedTuple):
    """What the templates read about one run."""

    run: Run
    anchor: str
    colour: str
    baseline: bool
    value: str
    span: str
    moved: str
    """Difference from the baseline in words, empty where there is none."""
    recipe: str
    saved: str
    remarks: Sequence[Remark]
    examples: Sequence[Example]
    wrong: int
    """Samples whose rejected response has the higher reward."""


class LedgerView(NamedTuple):
    """The fate of the rows of one split of one run."""

    run: str
    split: str
    source: str
    read: float | None
    fates: Sequence[tuple[str, float]]
    reasons: Sequence[tuple[str, str]]
    """Reason of a cut or drop and its rows, the most frequent first; `notes` likewise for rows that were kept."""
    notes: Sequence[tuple[str, str]]
    first: Sequence[Sequence[str]]
    """id, origin, fate, reason, tokens: rows cut or dropped, then kept ones with notes."""
    listed: int


class Comparison(NamedTuple):
    """One key of settings or environment across the runs."""

    key: str
    values: Sequence[str]
    differs: bool


def write_report(runs: Sequence[Path], output: Path, *, title: str | None = None) -> Path:
    """The path of the page written for those run folders, `output` or `report.html` inside it if it is a folder.

    The page replaces an earlier one only when it is complete. Every file of a run is optional; what is missing or
    unreadable is left out, the latter with a remark. Raises `ConfigError` for no or repeated folders and
    `StorageError` for a folder that is no run and for a page that cannot be written.
    """
    page = render_page(read_runs(runs), title=title)
    target = output / "report.html" if output.is_dir() else output
    _write(target, page)
    return target


def summary_table(runs: Sequence[Path]) -> list[SummaryRow]:
    """One row for each run folder, in that order. Raises as `write_report` does."""
    return [_summary(run) for run in read_runs(runs)]


def render_page(runs: Sequence[Run], *, title: str | None = None) -> str:
    """The HTML text of the report; the same runs give the same text."""
    baseline = find_baseline(runs)
    colours = _colours(runs, baseline)
    environment = Environment(
        loader=PackageLoader("prefopt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(decimal=decimal, count=count, percent=percent)
    return environment.get_template("page.html.j2").render(
        title=title or _title(runs),
        verdict=verdict(runs, baseline),
        views=[_view(place, run, baseline, colours[run.name]) for place, run in enumerate(runs)],
        evaluations=evaluation_panels(runs, colours),
        agent_header=HEADER,
        agents=agent_rows(runs),
        own_header=dice.HEADER,
        own_answers=dice.own_answers(runs),
        curves=curve_panels(runs, colours),
        margins=margin_note([run for run in runs if run.samples]),
        tokens=token_panel(runs, colours),
        ledgers=[_ledger_view(run, *entry) for run in runs for entry in run.ledgers.items()],
        names=[run.name for run in runs],
        settings=_compare([run.settings for run in runs]),
        environment=_compare([run.environment for run in runs]),
        version=_version(),
    )


def _colours(runs: Sequence[Run], baseline: Run | None) -> dict[str, str]:
    others = [run.name for run in runs if run is not baseline]
    colours = {name: run_colour(place) for place, name in enumerate(others)}
    return colours | ({baseline.name: run_colour(None)} if baseline else {})


def _view(place: int, run: Run, baseline: Run | None, colour: str) -> RunView:
    found = run.evaluation
    before = baseline.evaluation if baseline and baseline is not run else None
    moved = difference(found, before) if found and before else None
    margins = [sample.margin for sample in run.samples if sample.margin is not None]
    return RunView(
        run=run,
        anchor=f"run{place}",
        colour=css_colour(colour),
        baseline=run is baseline,
        value=show_value(found) if found else MISSING,
        span=interval(found.low, found.high, proportion=found.proportion) if found else MISSING,
        moved=moved.words() if moved else "",
        recipe=recipe_words(run),
        saved=percent(run.saved) if run.saved is not None else "",
        remarks=examine(run, before),
        examples=choose_examples(run.samples),
        wrong=sum(margin < 0 for margin in margins),
    )


def _summary(run: Run) -> SummaryRow:
    found, margin = run.evaluation, change(run.series.get("rewards/margins"))
    return SummaryRow(
        name=run.name,
        accuracy=found.value if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        margin=margin.end if margin else None,
        saved=run.saved,
        proportion=found.proportion if found else True,
    )


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    if len(names) <= 4:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{names[0]} and {len(names) - 1} other runs"


def _compare(objects: Sequence[JsonObject]) -> list[Comparison]:
    """Every key of any object with its values, the keys that differ first."""
    flat = [_flatten(entry) for entry in objects]
    keys = dict.fromkeys(key for entry in flat for key in entry)
    rows: list[Comparison] = []
    for key in keys:
        values = [entry.get(key, MISSING) for entry in flat]
        present = {value for entry, value in zip(flat, values, strict=True) if entry}
        rows.append(Comparison(key, values, differs=len(present) > 1))
    return sorted(rows, key=lambda row: not row.differs)


def _flatten(entry: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            text = (
                value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False, default=str)
            )
            flat[f"{prefix}{key}"] = text
    return flat


def _ledger_view(run: Run, split: str, ledger: JsonObject) -> LedgerView:
    fates = [(fate, number(ledger, fate) or 0.0) for fate in ("kept", "cut", "dropped")]
    listed = ledger.get("rows")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    first = sorted(rows, key=lambda row: row.get("fate") == "kept")[:LEDGER_ROWS]
    return LedgerView(
        run=run.name,
        split=split,
        source=str(ledger.get("source") or ""),
        read=number(ledger, "read"),
        fates=fates,
        reasons=_counts(ledger.get("reasons")),
        notes=_counts(ledger.get("notes")),
        first=[_ledger_row(row) for row in first],
        listed=len(rows),
    )


def _counts(reasons: JsonValue) -> list[tuple[str, str]]:
    known = {key: number(reasons, key) for key in reasons} if isinstance(reasons, dict) else {}
    return [
        (key, count(value))
        for key, value in sorted(known.items(), key=lambda item: -(item[1] or 0.0))
    ]


def _ledger_row(row: JsonObject) -> list[str]:
    notes = row.get("notes")
    remarks = [str(note) for note in notes] if isinstance(notes, list) else []
    reason = "; ".join([str(row["reason"])] if row.get("reason") else remarks)
    shown = [str(row.get(key) or MISSING) for key in ("id", "origin", "fate")]
    return [*shown, reason or MISSING, count(number(row, "tokens"))]


def _version() -> str:
    try:
        return version("prefopt")
    except PackageNotFoundError:
        return ""


def _write(target: Path, page: str) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(page, encoding="utf-8", errors="replace")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"report '{target}' cannot be written ({reason}): choose another path"
        ) from error
