"""Which plots the report shows, from which columns, and the table of numbers under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from prefopt.report.folder import Evaluation, Run, number
from prefopt.report.numerals import count, decimal, interval, percent, size
from prefopt.report.objectives import rewards_note, rewards_of
from prefopt.report.plots import Bar, Line, draw_bars, draw_curves, draw_tokens
from prefopt.report.series import change
from prefopt.report.svg import Caption
from prefopt.report.verdict import show_value


class Panel(NamedTuple):
    """A plot with its words and numbers."""

    name: str
    title: str
    note: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class _Columns(NamedTuple):
    """A panel of curves: `columns` are `(column of metrics.jsonl, role)`; the second one is drawn dashed."""

    name: str
    title: str
    note: str
    columns: Sequence[tuple[str, str]]
    scale: Literal["value", "percent"] = "value"
    rule: float | None = None
    rewards: bool = False
    """Rewards of single responses: note and rule depend on whether the objectives have a reference."""


_SIDES = ("chosen", "rejected")
_CURVES = (
    _Columns("loss", "Loss", "What the optimiser lowers.", [("loss", "")]),
    _Columns(
        "accuracies",
        "Pairs in the right order",
        "Share of pairs whose chosen response has the higher reward. 50% is chance.",
        [("rewards/accuracies", "")],
        "percent",
        0.5,
    ),
    _Columns(
        "rewards",
        "Rewards",
        "",
        [(f"rewards/{side}", side) for side in _SIDES],
        rewards=True,
    ),
    _Columns(
        "reward",
        "Reward",
        "Implicit reward of all responses. Below zero: less likely than under the reference.",
        [("reward", "")],
        rule=0.0,
    ),
    _Columns(
        "logps",
        "Log-probabilities",
        "Of whole responses under the policy, in nats: chosen solid, rejected dashed.",
        [(f"logps/{side}", side) for side in _SIDES],
    ),
    _Columns(
        "margins",
        "Margins",
        "Reward of the chosen minus reward of the rejected response.",
        [("rewards/margins", "")],
        rule=0.0,
    ),
    _Columns(
        "nll",
        "Negative log-likelihood",
        "Of the responses that are imitated, per token, in nats.",
        [("nll", "")],
    ),
    _Columns("grad-norm", "Gradient norm", "Before clipping.", [("grad_norm", "")]),
)


def curve_panels(runs: Sequence[Run], colours: Mapping[str, str]) -> list[Panel]:
    """The panels for which any run has logged a column; `colours` maps run names to colours."""
    panels = [_curve_panel(columns, runs, colours) for columns in _CURVES]
    return [panel for panel in panels if panel is not None]


def evaluation_panels(runs: Sequence[Run], colours: Mapping[str, str]) -> list[Panel]:
    """One panel of bars for each metric and split, so that only like is set beside like."""
    evaluated = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    subjects = dict.fromkeys(evaluation.subject for _, evaluation in evaluated)
    panels: list[Panel] = []
    for place, subject in enumerate(subjects):
        group = [(run.name, found) for run, found in evaluated if found.subject == subject]
        panels.append(_evaluation_panel(f"evaluation-{place}", subject, group, colours))
    return panels


def token_panel(runs: Sequence[Run], colours: Mapping[str, str]) -> Panel | None:
    """Tokens stored in trees against separate rows; None when no run has a plan with both."""
    planned = [run for run in runs if run.saved is not None]
    if not planned:
        return None
    bars = [
        (
            run.name,
            colours[run.name],
            number(run.plan, "tokens_rows") or 0.0,
            number(run.plan, "tokens_tree") or 0.0,
        )
        for run in planned
    ]
    summary = "; ".join(f"{run.name} stores {percent(run.saved)} fewer tokens" for run in planned)
    return Panel(
        "tokens",
        "Tokens stored",
        "Strong: tokens in trees, where everything that responses share is stored and computed once. Pale: the "
        "same responses as separate rows.",
        draw_tokens(bars, Caption("tokens", "Tokens in trees and in separate rows", f"{summary}.")),
        (
            "run",
            "layout",
            "examples",
            "responses",
            "pairs",
            "rows",
            "trees",
            "saved",
            "scored",
            "longest",
            "peak memory",
        ),
        [_token_row(run) for run in planned],
    )


def _curve_panel(
    columns: _Columns, runs: Sequence[Run], colours: Mapping[str, str]
) -> Panel | None:
    found = _logged(columns, runs)
    if not found:
        return None
    if columns.rewards:
        columns = _explained(columns, list({run.name: run for run, _, _ in found}.values()))
    several = len({run.name for run, _, _ in found}) > 1
    lines: list[Line] = []
    rows: list[list[str]] = []
    show = percent if columns.scale == "percent" else decimal
    for run, column, role in found:
        label = " ".join(part for part in (run.name if several else "", role) if part)
        dashed = column != columns.columns[0][0]
        train, held_out = run.series.get(column), run.series.get(f"eval_{column}")
        if train is not None:
            lines.append(Line(label or "train", colours[run.name], train, dashed))
        if held_out is not None:
            name = "" if train is not None else f"{label} held out".strip()
            lines.append(Line(name, colours[run.name], held_out, dashed, held_out=True))
        moved = change(train)
        ends = ("–", "–") if moved is None else (show(moved.start), show(moved.end))
        last = None if held_out is None else float(held_out.values[-1])
        rows.append([f"{run.name} {role}".strip(), *ends, show(last)])
    header = ["", "start", "end", "held out"]
    if not any(line.held_out for line in lines):
        header, rows = header[:-1], [row[:-1] for row in rows]
    told = "; ".join(f"{row[0]} from {row[1]} to {row[2]}" for row in rows)
    caption = Caption(columns.name, f"{columns.title} over optimiser steps", f"{told}.")
    return Panel(
        columns.name,
        columns.title,
        columns.note,
        draw_curves(lines, caption, scale=columns.scale, rule=columns.rule),
        header,
        rows,
    )


def _logged(columns: _Columns, runs: Sequence[Run]) -> list[tuple[Run, str, str]]:
    """Run, column and role of each curve that there is."""
    return [
        (run, column, role)
        for run in runs
        for column, role in columns.columns
        if (column in run.series or f"eval_{column}" in run.series) and not _repeats(run, column)
    ]


def _explained(columns: _Columns, runs: Sequence[Run]) -> _Columns:
    """The panel of rewards with a note on these runs, and a rule where zero is the reference of any."""
    anchored = any(rewards_of(run).zero == "reference" for run in runs)
    return columns._replace(note=rewards_note(runs), rule=0.0 if anchored else None)


def _repeats(run: Run, column: str) -> bool:
    """Whether it is the loss under another name: the likelihood in supervised training."""
    loss, series = run.series.get("loss"), run.series.get(column)
    return (
        column == "nll"
        and loss is not None
        and series is not None
        and np.array_equal(loss.values, series.values)
    )


def _evaluation_panel(
    name: str, subject: str, group: Sequence[tuple[str, Evaluation]], colours: Mapping[str, str]
) -> Panel:
    proportion = all(evaluation.proportion for _, evaluation in group)
    bars: list[Bar] = []
    rows: list[list[str]] = []
    for run, found in group:
        span = interval(found.low, found.high, proportion=found.proportion)
        share = (
            f"{count(found.correct)} of {count(found.total)}" if found.correct is not None else "–"
        )
        text = show_value(found) if found.low is None else f"{show_value(found)} ({span})"
        bars.append(Bar(run, colours[run], found.value, found.low, found.high, text))
        rows.append([run, show_value(found), span, share])
    told = "; ".join(f"{row[0]} {row[1]}, interval {row[2]}" for row in rows)
    caption = Caption(name, f"{subject} of each run with 95% intervals", f"{told}.")
    return Panel(
        name,
        subject[:1].upper() + subject[1:],
        "Lines are 95% intervals.",
        draw_bars(bars, caption, proportion=proportion),
        ("run", "value", "95% interval", "correct"),
        rows,
    )


def _token_row(run: Run) -> list[str]:
    longest = run.plan.get("longest")
    tokens = number(longest, "tokens") if isinstance(longest, dict) else None
    counts = [
        count(number(run.plan, key))
        for key in ("examples", "responses", "pairs", "tokens_rows", "tokens_tree")
    ]
    return [
        run.name,
        str(run.plan.get("layout") or "–"),
        *counts,
        percent(run.saved),
        count(number(run.plan, "tokens_scored")),
        f"{count(tokens)} ({longest.get('id')})" if isinstance(longest, dict) and tokens else "–",
        size(number(run.plan, "peak_memory_bytes")),
    ]
