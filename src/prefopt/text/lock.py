"""A file that keeps other processes from doing the same work, for as long as this one does it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from prefopt.errors import ResumeError, StorageError

PROCESS = "<process>"
"""Stands for the number of another process in what is said of it."""


@contextmanager
def locked(file: Path, *, busy: str) -> Generator[None]:
    """Hold the lock of a file, which is made with its folder and removed again; it ends with the process, even killed.

    Args:
        file: holds the number of the process.
        busy: what to say and to do where another process holds it, after "process N".

    Raises:
        ResumeError: another process holds it.
        StorageError: the file cannot be made.
    """
    try:
        lock = acquire(file, busy=f"process {PROCESS} {busy}")
    except OSError as error:
        raise StorageError(
            f"{file.parent}: cannot be written ({error.strerror}); choose another --output"
        ) from error
    try:
        yield
    finally:
        release(file, lock)


def acquire(file: Path, *, busy: str) -> TextIO:
    """Take the lock of a file, which is made with its folder.

    Args:
        file: holds the number of the process.
        busy: what to say and to do where another process holds it, whose number takes the place of `PROCESS`.

    Raises:
        ResumeError: another process holds it.
        OSError: the file cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _open(file, busy)
    with suppress(OSError):  # a full disk: the lock holds without the number in it
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), str(os.getpid()).encode())
    return lock


def release(file: Path, lock: TextIO) -> None:
    """Let others in again."""
    file.unlink(missing_ok=True)
    lock.close()


def _open(file: Path, busy: str) -> TextIO:
    while True:
        lock = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise ResumeError(f"{file.parent}: {busy.replace(PROCESS, owner)}") from None
        # The process before may have removed the file between our opening and locking it.
        if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
            return lock
        lock.close()
