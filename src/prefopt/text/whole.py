"""Text files that are written whole or not at all. What they hold is not known here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from prefopt.errors import StorageError

_DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/self/fd)/(\d+)|/dev/(stdout|stderr)")
_REMEDY = "free some space or check permissions"


def write_whole(
    path: Path,
    text: str | Iterable[str],
    *,
    errors: Literal["strict", "backslashreplace"] = "strict",
    remedy: str = _REMEDY,
) -> None:
    """Nothing; the file then holds the text, replaced as a whole; its folder is made.

    Where the path is a link, what it points to is replaced, and the link stays. A pipe or a device is never replaced:
    the text is written into it.

    Args:
        path: where to.
        text: as one string, or piece by piece.
        errors: what becomes of half a surrogate pair.
        remedy: what to do if it cannot be written, for the message.

    Raises:
        StorageError: it cannot be written; a file is then as it was before.
    """
    chunks = [text] if isinstance(text, str) else text
    try:
        if is_stream(path):
            _write_into(path, chunks, errors)
        else:
            _replace(Path(os.path.realpath(path)), chunks, errors)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


def is_stream(path: Path) -> bool:
    """Whether what is written there goes elsewhere: a pipe, a device, a descriptor of this process."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    return path.exists() and not (path.is_file() or path.is_dir())


def _write_into(path: Path, chunks: Iterable[str], errors: str) -> None:
    named = _DESCRIPTOR.fullmatch(str(path))
    sys.stdout.flush()
    sys.stderr.flush()
    where = path if named is None else os.dup(int(named[1] or {"stdout": 1, "stderr": 2}[named[2]]))
    with open(where, "w", encoding="utf-8", errors=errors, newline="\n") as file:  # noqa: PTH123 - a descriptor
        file.writelines(chunks)


def _replace(target: Path, chunks: Iterable[str], errors: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors, newline="\n") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
