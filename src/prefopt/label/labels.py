"""Solutions to be labelled and the file their labels go into: what terminal and web page share.

A label is on disk (fsync) before `LabelStore.add` returns. Changing one's mind is a new line; the latest counts.
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from prefopt.errors import RecordError, StorageError
from prefopt.judge.base import WrongSolution
from prefopt.judge.human import Label, LabelVerdict, now, read_labels, solution_digest
from prefopt.progress import say
from prefopt.records import parse_line
from prefopt.text.steps import split_steps
from prefopt.values import read_text, repaired

_FIELDS = ("id", "question", "gold", "answer", "text")

NO_MARKERS = (
    "no markers: the solution has no 'Step 1:', so none of its lines can be named as a step; "
    "say n (no wrong step), u (unclear) or s (skip)"
)


class Piece(NamedTuple):
    """A stretch of a solution as it is shown."""

    number: int | None
    """Of the step; None for what precedes step 1, and for the lines of a solution without steps."""
    text: str


class Item(NamedTuple):
    """A solution to be labelled."""

    solution: WrongSolution
    digest: str
    pieces: tuple[Piece, ...]
    """The whole text; white space at their ends is left out."""

    @property
    def key(self) -> tuple[str, str]:
        """(id, digest)."""
        return self.solution.id, self.digest

    @property
    def steps(self) -> int:
        """Number of steps; 0 for a text without step markers."""
        return sum(piece.number is not None for piece in self.pieces)


def read_items(path: str | Path) -> list[Item]:
    """The solutions of a file: one object a line with id, question, gold, answer and text.

    `gold` (a worked solution) and `answer` may be missing. Repeated lines are shown once, which is said.

    Raises:
        StorageError: the file cannot be read.
        RecordError: a line is no solution, the file is empty, or one id has two different texts.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{path} is no UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    items: dict[str, Item] = {}
    repeated = 0
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        item = _read_item(line, f"{path}:{number}")
        known = items.setdefault(item.solution.id, item)
        if known.digest != item.digest:
            raise RecordError(
                f"{path}:{number}: the id '{item.solution.id}' stands for another text in an earlier line; "
                "give every solution its own id"
            )
        repeated += known is not item
    if not items:
        raise RecordError(f"{path} holds no solutions; give a file such as errors.jsonl of a build")
    if repeated:
        say(f"{path}: {repeated} repeated lines are shown once")
    return list(items.values())


def _read_item(line: str, origin: str) -> Item:
    row = parse_line(line, origin)
    for key in ("id", "question", "text"):
        if key not in row:
            raise RecordError(
                f"{origin}: no '{key}'; every line needs {', '.join(_FIELDS)} "
                "(errors.jsonl, as `prefopt build` writes it)"
            )
    values = {key: read_text(row.get(key) or "", key, origin) for key in _FIELDS}
    solution = WrongSolution(**values)
    if not solution.id or not solution.text.strip():
        empty = "id" if not solution.id else "text"
        raise RecordError(f"{origin}: '{empty}' is empty; remove the line")
    return Item(solution, solution_digest(solution.question, solution.text), _pieces(solution.text))


def _pieces(text: str) -> tuple[Piece, ...]:
    opening, steps = split_steps(text)
    if not steps:
        return tuple(Piece(None, line) for line in text.splitlines() if line.strip())
    before = (Piece(None, opening.strip()),) if opening.strip() else ()
    return (*before, *(Piece(step.number, step.text.strip()) for step in steps))


class LabelStore:
    """The labels of a file, held by one process at a time: a context manager, safe to use from many threads.

    Args:
        path: the file; made with its folder where it is missing.
        annotator: who labels; None is the name of the user. In it and in notes, half of a surrogate pair becomes
            U+FFFD.

    Raises (on entering):
        StorageError: the file cannot be opened, or another process labels into it.
        RecordError: a line of it is no label.
    """

    def __init__(self, path: str | Path, *, annotator: str | None = None) -> None:
        self.path = Path(path)
        self.annotator = repaired(_user() if annotator is None else annotator)
        self.latest: dict[tuple[str, str], Label] = {}
        self._guard = threading.Lock()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = _open_alone(self.path)
        try:
            found = read_labels(self.path)
            self._mend(self._file, found.size, ended=found.ended, torn=found.torn)
        except BaseException:
            self.close()
            raise
        self.latest = found.latest()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes label; waits for a label that is being written."""
        with self._guard:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _mend(self, file: BinaryIO, size: int, *, ended: bool, torn: str) -> None:
        """Take away what a killed process left unfinished."""
        if torn:
            file.truncate(size)
            say(
                f"{self.path}: the last line was not finished (a labeller was killed) and is removed: {torn[:60]}"
            )
        if not ended:
            file.write(b"\n")
        os.fsync(file.fileno())

    def add(
        self, item: Item, verdict: LabelVerdict, *, step: int | None = None, note: str = ""
    ) -> Label:
        """The label, after it is on disk.

        Raises:
            RecordError: the verdict needs a step and has none, or the solution has no such step.
            StorageError: the disk is full or the file may not be written; the label is then not in it.
        """
        check_step(item, verdict, step)
        clean = repaired(" ".join(note.split()))
        label = Label(*item.key, step, verdict, clean, self.annotator, now())
        line = (label.to_line() + "\n").encode()
        with self._guard:
            if self._file is None:
                raise StorageError(f"{self.path}: the file is closed; start labelling again")
            size = os.fstat(self._file.fileno()).st_size
            try:
                _write_through(self._file, line)
            except OSError as error:
                os.ftruncate(self._file.fileno(), size)
                raise StorageError(
                    f"{self.path}: the label cannot be saved ({error.strerror}); make room and label it again"
                ) from error
            self.latest[item.key] = label
        return label

    def label_of(self, item: Item) -> Label | None:
        """The label that counts, None where there is none."""
        return self.latest.get(item.key)

    def is_open(self, item: Item, *, skipped: bool = False) -> bool:
        """Whether the item still needs a label; with `skipped`, also if it was skipped or called unclear."""
        label = self.label_of(item)
        return label is None or (skipped and label.verdict in {"skip", "unclear"})

    def summary(self, items: Sequence[Item]) -> str:
        """How many items have which verdict, in one line."""
        labels = [self.label_of(item) for item in items]
        counts = Counter(label.verdict for label in labels if label is not None)
        shown = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(counts.items()))
        done = sum(counts.values())
        return f"{done:,} of {len(items):,} labelled" + (f": {shown}" if shown else "")


def check_step(item: Item, verdict: LabelVerdict, step: int | None) -> None:
    """Nothing, if the verdict and the step go together and the solution has that step.

    Raises:
        RecordError: otherwise; the message says what is possible.
    """
    if verdict != "wrong step":
        if step is not None:
            raise RecordError(f"'{verdict}' names no step, but step {step} is given; leave it out")
        return
    if item.steps == 0:
        raise RecordError(NO_MARKERS)
    if step is None or not 1 <= step <= item.steps:
        given = "no step is given" if step is None else f"there is no step {step}"
        raise RecordError(f"{given}; the solution has steps 1 to {item.steps}")


def _write_through(file: BinaryIO, line: bytes) -> None:
    if file.write(line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return ""


def _open_alone(path: Path) -> BinaryIO:
    """The file, locked until it is closed or the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise StorageError(
            f"{path}: labels cannot be written there ({error.strerror}); choose another --output"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise StorageError(
            f"{path}: another process is labelling into this file; end it first, or choose another --output"
        ) from error
    except OSError as error:
        file.close()
        raise StorageError(f"{path}: cannot be locked ({error.strerror})") from error
    return file
