"""The folder of a build: one process at a time, files written whole, the journal of everything generated.

build.yaml        the recipe, resolved
journal.sqlite    every completion, verdict and execution
pairs.jsonl       what `prefopt train` reads
solutions.jsonl   whole solutions, pair for pair: the data of the baseline
held-out.jsonl    pairs of the problems that are held out, if any
counts.json       how many there were at each stage, and what became of the rest
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefopt.build.settings import RECIPE, BuildSection, changes_since
from prefopt.config import RunConfig, write_recipe
from prefopt.generate.journal import Journal
from prefopt.progress import say
from prefopt.records import Preference, write_preferences
from prefopt.train.folder import RunFolder
from prefopt.values import JsonValue

SOLUTIONS = "solutions.jsonl"
ERRORS = "errors.jsonl"
RELEASED = "released.jsonl"
COUNTS = "counts.json"
HELD_OUT = "held-out.jsonl"


class BuildFolder:
    """Paths and files of one build."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self.journal = journal
        self._files = RunFolder(path)

    def write_records(self, name: str, records: Iterable[Preference]) -> Path:
        """A file of preference records; returns its path."""
        write_preferences(self.path / name, records)
        return self.path / name

    def write_rows(self, name: str, rows: Iterable[Mapping[str, JsonValue]]) -> Path:
        """A file of JSON lines; returns its path."""
        self._files.write_lines(self.path / name, rows)
        return self.path / name

    def write_facts(self, name: str, facts: Mapping[str, object]) -> None:
        """A JSON file."""
        self._files.write_json(self.path / name, facts)


@contextmanager
def open_build(
    path: Path, config: RunConfig, section: BuildSection, outputs: Sequence[str]
) -> Generator[BuildFolder]:
    """The folder, locked against other processes, with its journal open.

    Where it holds a build with other settings, the files of that build (`outputs`) go before anything else is done, so
    that files and `build.yaml` always belong together; the journal stays.

    Raises:
        ResumeError: another process builds here.
        StorageError: it cannot be written.
    """
    files = RunFolder(path)
    files.acquire()
    try:
        changes = changes_since(path, config, section)
        if changes:
            say(f"{path}: other settings than the last build here, whose files are made anew:")
            for line in changes:
                say(f"  {line}")
            for name in outputs:
                (path / name).unlink(missing_ok=True)
        write_recipe(config, path / RECIPE)
        with Journal(path / "journal.sqlite") as journal:
            yield BuildFolder(path, journal)
    finally:
        files.release()


def tell(counts: Mapping[str, int]) -> None:
    """The counts of a build, a line each."""
    for name, count in counts.items():
        say(f"  {count:8,} {name}")


def split_held_out(
    records: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
    """The records to train on and those held out, by the problem in their `meta`: no problem is on both sides.

    A problem's side depends on its id alone, so it is the same for every file of a build and for every later build.
    """
    out = [belongs_to_share(str(record.meta["problem"]), share) for record in records]
    kept = [r for r, held in zip(records, out, strict=True) if not held]
    return kept, [r for r, held in zip(records, out, strict=True) if held]


def belongs_to_share(name: str, share: float) -> bool:
    """Whether the digest of a name falls into the given share of all digests."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64
