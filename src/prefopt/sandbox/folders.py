"""Working folders of interpreters that are not isolated, and those that a killed parent has left behind.

Nothing is removed but what `remove` finds to be such a folder, and only the parent removes: an interpreter that removed
the folder it finds itself in would remove whatever folder it was started in by mistake.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "prefopt-unsafe-"
MARKER = "made-by-prefopt"
"""File beside the working folder that says who made both."""
MARK = "The working folder of an interpreter of prefopt.sandbox. It is removed when the interpreter ends.\n"


class WorkFolder:
    """A fresh, empty folder for one interpreter.

    It is within a folder that is locked as long as the process that made it lives, or until `cleanup`.
    """

    def __init__(self) -> None:
        while True:
            self._outer = Path(tempfile.mkdtemp(prefix=PREFIX))
            # a process that looks for left folders may hold it in the moment before it is locked
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                self._lock = locked(self._outer, fcntl.LOCK_SH)
                break
        (self._outer / MARKER).write_text(MARK, encoding="utf-8")
        self.name = str(self._outer / "work")
        Path(self.name).mkdir(mode=0o700)

    def cleanup(self) -> None:
        """Remove the folder with all that is in it, as far as its owner may."""
        remove(self._outer, within=self._outer.parent)
        os.close(self._lock)


def remove(folder: Path, *, within: Path) -> bool:
    """Whether a folder is one that this module made for this user, directly in `within`; it is then removed.

    It is if it is no link, its name and its owner are right, and the marker is in it, as written.
    """
    if not (folder.is_absolute() and folder.parent == within and folder.name.startswith(PREFIX)):
        return False
    try:
        found = folder.lstat()
        marked = (folder / MARKER).read_bytes() == MARK.encode()
    except OSError:
        return False
    if not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and marked):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


def locked(folder: Path, kind: int) -> int:
    """A handle of a folder with a lock on it. Raises BlockingIOError if another has one, OSError if it is gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError(f"{folder} has been replaced")
    except OSError:
        os.close(handle)
        raise
    return handle


def remove_left_folders() -> list[Path]:
    """The working folders of this user that killed processes have left behind, now removed."""
    removed: list[Path] = []
    within = Path(tempfile.gettempdir()).absolute()
    for folder in sorted(within.glob(f"{PREFIX}*")):
        try:
            handle = locked(folder, fcntl.LOCK_EX)
        except OSError:  # in use, gone by now, or another's
            continue
        removed += [folder] if remove(folder, within=within) else []
        os.close(handle)
    return removed
