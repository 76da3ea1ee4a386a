"""The append-only record of everything generated: one SQLite file per build, written before it is used.

Killing the process at any time loses no committed completion, and the next run repeats none: a completion is
found again by what it depends on (series, request, sample and prompt). No models here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from prefopt.errors import RecordError, StorageError
from prefopt.generate.base import Completion, Generator, Reminded, Request, Sampling
from prefopt.values import repaired

Progress = Callable[[int, int], None]
"""Called with (completions there, completions in all), first with what the journal holds."""

_APPLICATION_ID = 0x70666F6A
"""Marks a SQLite file as a journal of this library ("pfoj")."""
_VERSION = 3
"""1 had no columns `stopped_by` and `prompt_tokens`, 2 lacked the latter; such files are brought up to date when they
are opened."""
_ADDED = ("stopped_by TEXT", "prompt_tokens INTEGER NOT NULL DEFAULT 0")
"""The columns that versions 2 and 3 added."""
_BUSY_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE completions (
    generator TEXT NOT NULL,
    purpose TEXT NOT NULL,
    sampling TEXT NOT NULL,
    request TEXT NOT NULL,
    sample INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    stopped_by TEXT,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    UNIQUE (generator, purpose, sampling, request, sample, prompt)
)
"""
_INSERT = """
INSERT OR IGNORE INTO completions
    (generator, purpose, sampling, request, sample, prompt, text, finish_reason, tokens, stopped_by, prompt_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_SELECT = """
SELECT text, finish_reason, tokens, stopped_by, prompt_tokens FROM completions
WHERE generator = ? AND purpose = ? AND sampling = ? AND request = ? AND sample = ? AND prompt = ?
"""


class Series(NamedTuple):
    """What the completions of one call have in common: who writes, what for, and how."""

    generator: str
    purpose: str
    sampling: str


class Held(NamedTuple):
    """What a journal holds."""

    completions: int
    prompt_tokens: int
    """Over those of which they are known."""
    tokens: int


class Journal:
    """One SQLite file of completions (write-ahead log, synchronous=NORMAL), safe against kill -9.

    Any number of threads may read and write one journal at the same time.
    """

    def __init__(self, path: Path | str) -> None:
        """Open or create the file.

        Raises:
            StorageError: the folder cannot be written, or the file is damaged or not a journal.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"{self.path}: cannot open the journal ({error}); check folder and permissions"
            ) from error
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with self._lock:
            self._connection.close()

    def count(self) -> int:
        """Number of completions in the file."""
        return self._number("SELECT count(*) FROM completions")

    def held(self) -> Held:
        """Everything in the file, whoever wrote it and whatever for."""
        (row,) = self._execute(
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(tokens), 0) FROM completions"
        )
        return Held(*map(int, row))

    def strangers(self, generator: str) -> int:
        """Completions by other generators, where there is none by this one (`Generator.identity`); else 0."""
        (row,) = self._execute(
            "SELECT count(*), coalesce(sum(generator = ?), 0) FROM completions", (generator,)
        )
        return 0 if row[1] else int(row[0])

    def series(self, series: Series) -> dict[tuple[str, int, str], Completion]:
        """The completions of a series by (request id, sample, prompt digest)."""
        rows = self._execute(
            "SELECT prompt, request, sample, text, finish_reason, tokens, stopped_by, prompt_tokens "
            "FROM completions WHERE generator = ? AND purpose = ? AND sampling = ?",
            series,
        )
        found = ((prompt, Completion(*rest)) for prompt, *rest in rows)
        return {(c.id, c.sample, prompt): c for prompt, c in found}

    def find(
        self, series: Series, keys: Sequence[tuple[str, int, str]]
    ) -> dict[tuple[str, int, str], Completion]:
        """Those completions of a series that `keys` name: (request id, sample, prompt digest).

        Looked up one by one in the index, so that many small calls do not read a long series again and again.
        """
        found: dict[tuple[str, int, str], Completion] = {}
        for request, sample, prompt in keys:
            rows = self._execute(_SELECT, (*series, request, sample, prompt))
            if rows:
                found[request, sample, prompt] = Completion(request, sample, *rows[0])
        return found

    def append(self, series: Series, completion: Completion, prompt: str) -> None:
        """Commit one completion to the file; one that is there already is left as it is.

        A refusal (finish reason `error`) is no completion and is not written: a later run asks again.

        Args:
            series: what the completion shares with its siblings.
            completion: the text and its request.
            prompt: `Request.digest()` of the request.

        Raises:
            StorageError: full disk, or another process holds the file.
        """
        c = completion
        if c.finish_reason == "error":
            return
        told = (c.text, c.finish_reason, c.tokens, c.stopped_by, c.prompt_tokens)
        self._execute(_INSERT, (*series, c.id, c.sample, prompt, *told))

    def _prepare(self) -> None:
        tables = self._number("SELECT count(*) FROM sqlite_master")
        mark = self._number("PRAGMA application_id")
        version = self._number("PRAGMA user_version")
        if tables and mark != _APPLICATION_ID:
            raise StorageError(
                f"{self.path}: this SQLite file is not a prefopt journal; choose another path"
            )
        if tables and not 1 <= version <= _VERSION:
            raise StorageError(
                f"{self.path}: journal format {version}, this version reads 1 to {_VERSION}; "
                "use the version of prefopt that wrote it, or choose another path"
            )
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = NORMAL")
        if not tables or version != _VERSION:
            self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        """Marks, table and columns in one transaction, so that a kill leaves the file as it was or as it should be.

        What is missing is looked up inside the transaction: another process may have been faster.
        """
        self._execute("BEGIN IMMEDIATE")
        if not self._number("SELECT count(*) FROM sqlite_master"):
            self._execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._execute(_SCHEMA)
        else:
            for column in _ADDED[self._number("PRAGMA user_version") - 1 :]:
                self._execute(f"ALTER TABLE completions ADD COLUMN {column}")
        self._execute(f"PRAGMA user_version = {_VERSION}")
        self._execute("COMMIT")

    def _number(self, statement: str) -> int:
        return int(self._execute(statement)[0][0])

    def _execute(
        self, statement: str, values: Sequence[str | int | None] = ()
    ) -> list[tuple[Any, ...]]:
        """All rows of one statement; the lock is held until they are read."""
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: {_explain(error)}") from error


def complete(
    generator: Generator,
    requests: Sequence[Request],
    sampling: Sampling,
    journal: Journal | None = None,
    *,
    progress: Progress | None = None,
) -> list[Completion]:
    """Completions of all requests, in their order; what the journal holds is not generated again.

    Every new completion is committed to the journal before `progress` hears of it and before this returns.
    Refusals of a server (finish reason `error`) are returned but not kept. Half of a surrogate pair, which some servers
    write, becomes U+FFFD here, so that journal, memory and the files made of them hold the same text.

    Raises:
        RecordError: two requests have the same id and sample.
        StorageError: the journal cannot be written.
    """
    digests = _digests(requests)
    series = Series(generator.identity, sampling.purpose, sampling.digest())
    held = {} if journal is None else journal.find(series, [(*k, d) for k, d in digests.items()])
    done: dict[tuple[str, int], Completion] = {}
    missing: list[Request] = []
    for request in requests:
        key = (request.id, request.sample)
        found = held.get((*key, digests[key]))
        if found is None:
            missing.append(request)
        else:
            done[key] = found
    if progress is not None:
        progress(len(done), len(requests))
    if isinstance(generator, Reminded):
        generator.remind(len(done))
    for written in generator.generate(missing, sampling) if missing else ():
        completion = written._replace(text=repaired(written.text))
        key = (completion.id, completion.sample)
        if journal is not None:
            journal.append(series, completion, digests[key])
        done[key] = completion
        if progress is not None:
            progress(len(done), len(requests))
    return [done[request.id, request.sample] for request in requests]


def _digests(requests: Sequence[Request]) -> dict[tuple[str, int], str]:
    digests: dict[tuple[str, int], str] = {}
    for request in requests:
        key = (request.id, request.sample)
        if key in digests:
            raise RecordError(
                f"record {request.id!r}: sample {request.sample} is asked for twice; "
                "ids must be unique within a data set"
            )
        digests[key] = request.digest()
    return digests


def _explain(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; free some space and start again, nothing written so far is lost"
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return "another process is writing this journal; wait for it or choose another path"
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return f"not a readable journal ({error}); move the file away and start again"
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN}:
        return f"the journal cannot be written ({error}); check permissions of file and folder"
    return f"the journal cannot be used ({error}); check disk and file system"
