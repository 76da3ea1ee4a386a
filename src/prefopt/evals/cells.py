"""Results of a study, one JSON line a cell, so that a killed grid goes on where it stopped."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.grade.statistics import paired_t

Row = dict[str, Any]
"""A cell: what decides it, and what was measured."""


class Cells:
    """The rows of a JSONL file. A line that a killed run left unfinished is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]

    def has(self, key: Mapping[str, object]) -> bool:
        """Whether a row agrees with everything in `key`."""
        return any(key.items() <= row.items() for row in self.rows)

    def of(self, keys: Sequence[Mapping[str, object]]) -> list[Row]:
        """The rows that agree with one of `keys`."""
        return [row for row in self.rows if any(key.items() <= row.items() for key in keys)]

    def append(self, row: Row) -> None:
        """Add a row to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; the error of a single value is 0."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def mean_cell(values: Iterable[float | None], *, digits: int, scale: float = 1.0) -> str:
    """`mean ± standard error` of the numbers that are there, for a table; a dash where there is none."""
    there = [scale * value for value in values if value is not None]
    if not there:
        return "-"
    mean, error = mean_and_error(there)
    return f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if len(there) > 1 else "")


def difference_cells(gaps: Sequence[float], *, digits: int) -> tuple[str, str]:
    """Mean of paired differences with its 95% interval (Student's t), and p, for a table; dashes for less than two."""
    if len(gaps) < 2:
        return "-", "-"
    test = paired_t(gaps)
    found = f"{test.value:+.{digits}f} ({test.low:+.{digits}f} to {test.high:+.{digits}f})"
    return found, f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
