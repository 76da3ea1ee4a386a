"""People as judges: what they said about first wrong steps, read from a file of labels.

`prefopt label` writes the file (see `prefopt.label`). It is append-only: one JSON object a line, and the latest line
about a solution counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from prefopt.errors import RecordError, StorageError
from prefopt.generate.journal import Journal, Progress
from prefopt.judge.base import Location, WrongSolution
from prefopt.progress import say
from prefopt.records import parse_line
from prefopt.text.steps import split_steps
from prefopt.values import JsonValue, read_text, refuse

LabelVerdict = Literal["wrong step", "no wrong step", "unclear", "skip"]
VERDICTS: tuple[LabelVerdict, ...] = get_args(LabelVerdict)

_KEYS = ("id", "digest", "step", "verdict", "note", "annotator", "time")
_NOT_ASKED = "not asked: people label solutions that end wrong, and this one ends right"


class Label(NamedTuple):
    """What one person said about one solution."""

    id: str
    digest: str
    """Of question and text (`solution_digest`), so that a label never applies to another text."""
    step: int | None
    """First wrong step, from 1; None unless the verdict is `wrong step`."""
    verdict: LabelVerdict
    note: str = ""
    annotator: str = ""
    time: str = ""
    """UTC, ISO 8601."""

    def to_line(self) -> str:
        """The label as a line of the file, without line break."""
        line = json.dumps(self._asdict(), ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can hold
            return json.dumps(self._asdict())
        return line


class LabelFile(NamedTuple):
    """The content of a file of labels."""

    labels: list[Label]
    """In the order of the lines."""
    size: int
    """Bytes of the sound lines."""
    ended: bool
    """Whether the last sound line has its line break."""
    torn: str
    """The beginning of a line that a killed process did not finish; empty where there is none."""

    def latest(self) -> dict[tuple[str, str], Label]:
        """The label that counts for each (id, digest)."""
        return {(label.id, label.digest): label for label in self.labels}


def solution_digest(question: str, text: str) -> str:
    """Digest of a solution and its question, 16 hex digits."""
    facts = json.dumps([question, text], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(facts, digest_size=8).hexdigest()


def read_labels(path: str | Path) -> LabelFile:
    """The labels of a file; a file that does not exist yet has none.

    An unfinished last line is reported in `torn`, not read.

    Raises:
        StorageError: the file cannot be read.
        RecordError: a line is no label; the message names file and line.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return LabelFile([], 0, ended=True, torn="")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; check the path") from error
    *lines, last = content.split(b"\n")
    labels = [
        _read_label(line, f"{path}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    size = len(content) - len(last)
    if not last.strip():
        return LabelFile(labels, size, ended=True, torn="")
    try:
        json.loads(last)
    except ValueError:
        return LabelFile(labels, size, ended=True, torn=last.decode("utf-8", "replace"))
    # Only the line break is missing.
    labels.append(_read_label(last, f"{path}:{len(lines) + 1}"))
    return LabelFile(labels, len(content), ended=False, torn="")


def _read_label(line: bytes, origin: str) -> Label:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{origin}: no UTF-8 text (byte {error.start} of the line); repair it"
        ) from error
    row = parse_line(text, origin)
    missing = [key for key in _KEYS[:4] if key not in row]
    if missing:
        raise RecordError(
            f"{origin}: the label has no '{missing[0]}'; labels have the keys {', '.join(_KEYS)}"
        )
    verdict = row["verdict"]
    if verdict not in VERDICTS:
        refuse(verdict, "verdict", origin, f"known are {', '.join(VERDICTS)}")
    return Label(
        id=read_text(row["id"], "id", origin),
        digest=read_text(row["digest"], "digest", origin),
        step=_read_step(row["step"], origin, named=verdict == "wrong step"),
        verdict=verdict,
        **{key: read_text(row.get(key) or "", key, origin) for key in _KEYS[4:]},
    )


def _read_step(value: JsonValue, origin: str, *, named: bool) -> int | None:
    if not named:
        if value is not None:
            refuse(value, "step", origin, "only the verdict 'wrong step' has a number; use null")
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        refuse(value, "step", origin, "give the number of the first wrong step, from 1")
    return value


def now() -> str:
    """The time of a label: UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class HumanLocator:
    """A `Locator` that looks up what people said in a file of labels.

    Args:
        labels_file: as written by `prefopt label`; it is read again on every call, and may not exist yet.
    """

    name = "human"

    def __init__(self, labels_file: str | Path) -> None:
        self.labels_file = Path(labels_file)

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[Location]:
        """One location per solution: `found`, `none`, `undecided` or `missing`, these with the reason as their remark.

        `undecided` is a solution that was called unclear or skipped; `missing` one that nobody has judged yet, or
        whose text is another than when it was judged. With `right` all are `missing`, since people are asked about
        wrong solutions. Nothing is written, so the journal is not used.

        Raises:
            StorageError: the file cannot be read.
            RecordError: a line is no label, or names a step that the solution does not have.
        """
        del journal
        if right:
            return [Location(None, "missing", _NOT_ASKED)] * len(solutions)
        file = read_labels(self.labels_file)
        if file.torn:
            say(f"{self.labels_file}: the unfinished last line is left out: {file.torn[:60]}")
        latest = file.latest()
        judged = {label.id for label in file.labels}
        found: list[Location] = []
        for number, solution in enumerate(solutions, start=1):
            label = latest.get((solution.id, solution_digest(solution.question, solution.text)))
            found.append(self._location(solution, label, known=solution.id in judged))
            if progress is not None:
                progress(number, len(solutions))
        return found

    def _location(self, solution: WrongSolution, label: Label | None, *, known: bool) -> Location:
        if label is None:
            changed = "labelled for another text of this id" if known else "not labelled yet"
            return Location(None, "missing", changed)
        if label.verdict == "no wrong step":
            return Location(None, "none", label.note)
        if label.step is None:
            reason = "skipped" if label.verdict == "skip" else label.verdict
            return Location(None, "undecided", f"{reason}: {label.note}" if label.note else reason)
        steps = split_steps(solution.text).steps
        if label.step > len(steps):
            raise RecordError(
                f"{self.labels_file}: the label of '{solution.id}' names step {label.step}, but the solution has "
                f"{len(steps)}; label it again"
            )
        return Location(label.step, "found", label.note)
