"""The folder of a build: one process at a time, files written whole, the journal of everything generated.

build.yaml        the recipe, resolved
inputs.json       digests of the files and models that the build has read
outputs.json      digests of the files of records and rows that it has written
journal.sqlite    every completion, verdict and execution
pairs.jsonl       what `prefopt train` reads
solutions.jsonl   whole solutions, pair for pair: the data of the baseline
held-out.jsonl    pairs of the questions that are held out, if any
counts.json       how many there were at each stage, and what became of the rest
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefopt.build.contents import file_digest
from prefopt.build.settings import (
    INPUTS,
    OUTPUTS,
    RECIPE,
    BuildSection,
    changes_since,
    input_digests,
)
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
    """Paths and files of one build.

    The first file that is written takes the place of the build before; one that fails earlier has changed nothing.
    """

    def __init__(self, path: Path, journal: Journal, begin: Callable[[], None]) -> None:
        self.path = path
        self.journal = journal
        self._files = RunFolder(path)
        self._begin: Callable[[], None] | None = begin

    def write_records(self, name: str, records: Iterable[Preference]) -> Path:
        """A file of preference records; returns its path."""
        self._take_over()
        write_preferences(self.path / name, records)
        return self._noted(name)

    def write_rows(self, name: str, rows: Iterable[Mapping[str, JsonValue]]) -> Path:
        """A file of JSON lines; returns its path."""
        self._take_over()
        self._files.write_lines(self.path / name, rows)
        return self._noted(name)

    def write_facts(self, name: str, facts: Mapping[str, object]) -> None:
        """A JSON file."""
        self._take_over()
        self._files.write_json(self.path / name, facts)

    def _noted(self, name: str) -> Path:
        """The path of a file that has just been written, once its digest is."""
        digests = {**_written(self.path), name: file_digest(self.path / name)}
        self._files.write_json(self.path / OUTPUTS, digests)
        return self.path / name

    def _take_over(self) -> None:
        if self._begin is not None:
            self._begin()
            self._begin = None


@contextmanager
def open_build(
    path: Path, config: RunConfig, section: BuildSection, outputs: Sequence[str]
) -> Generator[BuildFolder]:
    """The folder, locked against other processes, with its journal open.

    Where it holds a build with other settings, the files of that build (`outputs`) go when the first new one is
    written, so that files and `build.yaml` always belong together, and a build that is refused or fails on the way
    leaves them as they are; the journal stays.

    Raises:
        ResumeError: another process builds here.
        StorageError: it cannot be written.
    """
    files = RunFolder(path)
    files.acquire()
    try:
        changes = changes_since(path, config, section)
        if changes:
            say(f"{path}: other settings than the last build here, whose files will be replaced:")
            for line in changes:
                say(f"  {line}")
        inputs = input_digests(config, section)  # as they are now, when they are read

        def begin() -> None:
            for name in (*outputs, OUTPUTS) if changes else ():
                (path / name).unlink(missing_ok=True)
            files.write_json(path / INPUTS, inputs)
            write_recipe(config, path / RECIPE)

        with Journal(path / "journal.sqlite") as journal:
            yield BuildFolder(path, journal, begin)
    finally:
        files.release()


def is_as_written(file: Path) -> bool:
    """Whether a file in the folder of a build is there and what the build wrote; of older builds that is not known."""
    if not file.is_file():
        return False
    digest = _written(file.parent).get(file.name)
    return digest is None or digest == file_digest(file)


def _written(folder: Path) -> dict[str, object]:
    """Digests of the files that builds wrote there, by name; empty where they are damaged or of an older version."""
    try:
        found = json.loads((folder / OUTPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def tell(counts: Mapping[str, int]) -> None:
    """The counts of a build, a line each."""
    for name, count in counts.items():
        say(f"  {count:8,} {name}")
