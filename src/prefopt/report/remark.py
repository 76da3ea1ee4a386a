"""One observation on a finished run, and how the movement of a curve is put in words."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from prefopt.report.numerals import decimal
from prefopt.report.series import Change

Level = Literal["serious", "warning", "note", "good"]


class Remark(NamedTuple):
    """One observation."""

    level: Level
    title: str
    text: str
    """What was seen, with numbers."""
    advice: str = ""
    """What to try; empty where nothing needs doing."""


def move_words(name: str, moved: Change) -> str:
    """`rewards/chosen fell by 0.537 (−0.032 → −0.568)`."""
    if math.isclose(moved.start, moved.end, rel_tol=1e-9, abs_tol=1e-12):
        return f"{name} stayed at {decimal(moved.end)}"
    verb = "fell" if moved.amount < 0 else "rose"
    return f"{name} {verb} by {decimal(abs(moved.amount))} ({decimal(moved.start)} → {decimal(moved.end)})"
