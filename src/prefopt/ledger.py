"""The fate of every input row: kept, cut or dropped, and why. Nothing is lost without a line here.

Rows `enter` when they are read and get exactly one fate afterwards; `note` adds health remarks that change no
fate. Reasons are short constant texts, so that they can be counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prefopt.errors import RecordError, StorageError
from prefopt.values import JsonValue

Fate = Literal["kept", "cut", "dropped"]

_NAMED = 3


@dataclass(slots=True)
class _Row:
    origin: str
    fate: Fate | None = None
    reason: str = ""
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


class Ledger:
    """Counts and names what happened to each row of `source`; kept + cut + dropped = read is enforced."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._rows: dict[str, _Row] = {}
        self._repeats: Counter[str] = Counter()

    def enter(self, row_id: str, *, origin: str = "") -> str:
        """The row_id under which the row is counted: `row_id`, or `row_id#2`, `row_id#3`, ... when it is taken."""
        name = row_id
        while name in self._rows:
            self._repeats[row_id] += 1
            name = f"{row_id}#{self._repeats[row_id] + 1}"
        self._rows[name] = _Row(origin)
        return name

    def keep(self, row_id: str) -> None:
        """Record that the row is used whole."""
        self._decide(row_id, "kept", reason="", tokens=0)

    def cut(self, row_id: str, *, tokens: int, reason: str) -> None:
        """Record that the row is used without `tokens` of its tokens."""
        self._decide(row_id, "cut", reason=reason, tokens=tokens)

    def drop(self, row_id: str, *, reason: str) -> None:
        """Record that the row is not used."""
        self._decide(row_id, "dropped", reason=reason, tokens=0)

    def note(self, row_id: str, *, reason: str) -> None:
        """Record a remark about the row that changes no fate; the same remark counts once a row."""
        if row_id not in self._rows:
            self.enter(row_id)
        if reason not in self._rows[row_id].notes:
            self._rows[row_id].notes.append(reason)

    def keep_undecided(self) -> None:
        """Keep every row without a fate: for readers that look at no tokens."""
        for row_id, row in self._rows.items():
            if row.fate is None:
                self.keep(row_id)

    def _decide(self, row_id: str, fate: Fate, *, reason: str, tokens: int) -> None:
        if row_id not in self._rows:
            self.enter(row_id)
        row = self._rows[row_id]
        if row.fate is not None:
            raise ValueError(
                f"row '{row_id}' of {self.source} is {row.fate} already, it cannot be {fate}"
            )
        row.fate, row.reason, row.tokens = fate, reason, tokens

    @property
    def read(self) -> int:
        """Number of rows that entered."""
        return len(self._rows)

    @property
    def kept_count(self) -> int:
        """Number of rows used whole."""
        return self._count("kept")

    @property
    def cut_count(self) -> int:
        """Number of rows used in part."""
        return self._count("cut")

    @property
    def dropped_count(self) -> int:
        """Number of rows not used."""
        return self._count("dropped")

    def _count(self, fate: Fate) -> int:
        return sum(row.fate == fate for row in self._rows.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Number of rows cut or dropped for each reason, most frequent first."""
        return dict(Counter(row.reason for row in self._rows.values() if row.reason).most_common())

    @property
    def notes(self) -> dict[str, int]:
        """Number of rows with each remark, most frequent first."""
        return dict(
            Counter(note for row in self._rows.values() for note in row.notes).most_common()
        )

    def enforce(self, *, strict: bool) -> None:
        """Nothing, unless `strict` and a row was cut or dropped: then `RecordError` names the first ones."""
        lost = [
            (row_id, row) for row_id, row in self._rows.items() if row.fate in ("cut", "dropped")
        ]
        if not strict or not lost:
            return
        first = "; ".join(
            f"{row.origin or row_id} {row.fate} ({row.reason})" for row_id, row in lost[:_NAMED]
        )
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise RecordError(
            f"{self.source}: strict forbids cut and dropped rows, but there are {len(lost)}: {first}{more}; "
            "repair these rows or turn strict off"
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Counts, reasons, notes, and the rows that were cut, dropped or remarked upon.

        Raises:
            RuntimeError: a row has no fate (a bug of the reader, never of the data).
        """
        self._settled()
        return {
            "source": self.source,
            "read": self.read,
            "kept": self.kept_count,
            "cut": self.cut_count,
            "dropped": self.dropped_count,
            "reasons": dict(self.reasons),
            "notes": dict(self.notes),
            "rows": [
                {
                    "id": row_id,
                    "origin": row.origin,
                    "fate": row.fate,
                    "reason": row.reason,
                    "tokens": row.tokens,
                    "notes": list(row.notes),
                }
                for row_id, row in self._rows.items()
                if row.fate != "kept" or row.notes
            ],
        }

    def _settled(self) -> None:
        undecided = [row_id for row_id, row in self._rows.items() if row.fate is None]
        if undecided:
            raise RuntimeError(
                f"{len(undecided)} rows of {self.source} have no fate, first '{undecided[0]}': "
                "every row that is read has to be kept, cut or dropped"
            )

    def summary(self) -> list[str]:
        """Lines for people: the balance, then each reason and note with its count and first rows.

        Raises:
            RuntimeError: a row has no fate.
        """
        self._settled()
        balance = (
            f"{self.read} rows read = {self.kept_count} kept + {self.cut_count} cut "
            f"+ {self.dropped_count} dropped"
        )
        lines = [f"{self.source}: {balance}"]
        for reason, count in self.reasons.items():
            rows = [(row_id, row) for row_id, row in self._rows.items() if row.reason == reason]
            tokens = sum(row.tokens for _, row in rows)
            lost = f", {tokens} tokens" if tokens else ""
            lines.append(f"  {rows[0][1].fate} {count}{lost}: {reason} ({_name(rows)})")
        for note, count in self.notes.items():
            rows = [(row_id, row) for row_id, row in self._rows.items() if note in row.notes]
            lines.append(f"  note {count}: {note} ({_name(rows)})")
        return lines

    def write(self, path: str | Path) -> None:
        """Nothing; `to_json` then stands in the file, which is replaced as a whole.

        Raises:
            StorageError: the folder does not exist, is full or may not be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n"
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise StorageError(
                f"cannot write {target}: {error.strerror}; free or choose another place"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _name(rows: list[tuple[str, _Row]]) -> str:
    shown = ", ".join(_short(row.origin or row_id) for row_id, row in rows[:_NAMED])
    return f"{shown}, ..." if len(rows) > _NAMED else shown


def _short(origin: str) -> str:
    """`file:line` without folders: the summary's first line has the path."""
    return origin.rsplit("/", 1)[-1]
