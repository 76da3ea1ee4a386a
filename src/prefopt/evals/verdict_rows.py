"""The verdicts of a judge as rows of `verdicts.jsonl`, one per row of the file that was judged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from prefopt.judge.outputs import Exchange
from prefopt.judge.pairwise import Compared
from prefopt.judge.single import Graded
from prefopt.values import JsonValue

T = TypeVar("T", Graded, Compared)


def by_row(found: Sequence[T]) -> dict[str, list[T]]:
    """The verdicts on each row's turns, by the row's id."""
    rows: dict[str, list[T]] = {}
    for verdict in found:
        rows.setdefault(verdict.id, []).append(verdict)
    return rows


def is_missing(verdict: Graded | Compared) -> bool:
    """Whether a turn has no verdict; of two orders one may have."""
    said = verdict.score if isinstance(verdict, Graded) else verdict.verdict
    return said is None or said == "missing"


def is_silent(verdict: Graded | Compared) -> bool:
    """Whether a turn has no verdict in any order."""
    if isinstance(verdict, Compared) and any(s.verdict != "missing" for s in verdict.seen):
        return False
    return is_missing(verdict)


def verdict_line(exchange: Exchange, found: Sequence[Graded | Compared], remark: str) -> str:
    """One row as JSON: its verdicts turn by turn, or why it has none."""
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
