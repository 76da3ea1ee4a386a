"""The folder of a build: one process at a time, files written whole, the journal of everything generated.

build.yaml        the recipe, resolved
journal.sqlite    every completion, verdict and execution
pairs.jsonl       what `prefopt train` reads
solutions.jsonl   whole solutions, pair for pair: the data of the baseline
counts.json       how many there were at each stage, and what became of the rest
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

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
def open_build(path: Path, config: RunConfig) -> Generator[BuildFolder]:
    """The folder, locked against other processes, with its journal open.

    Raises:
        ResumeError: another process builds here.
        StorageError: it cannot be written.
    """
    files = RunFolder(path)
    files.acquire()
    try:
        write_recipe(config, path / "build.yaml")
        with Journal(path / "journal.sqlite") as journal:
            yield BuildFolder(path, journal)
    finally:
        files.release()


def tell(counts: Mapping[str, int]) -> None:
    """The counts of a build, a line each."""
    for name, count in counts.items():
        say(f"  {count:8,} {name}")
