"""Results of a study, one JSON line a cell, so that a killed grid goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
