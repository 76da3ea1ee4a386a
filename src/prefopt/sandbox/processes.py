"""What the kernel says about the processes of a solution: who belongs to it, and what they use together.

All of it is read from `/proc` of the parent's own process space, so nothing that runs inside can change it, and from a
handle of the private folder that was opened before any untrusted code ran.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
HELD = ("RssAnon", "RssShmem", "VmSwap", "HugetlbPages")
"""Of `status`: all that a process holds in memory but pages of files on a disc, which the kernel can drop."""
HELD_IN_PROPORTION = ("Pss_Anon", "Pss_Shmem", "SwapPss", "Shared_Hugetlb", "Private_Hugetlb")
"""The same of `smaps_rollup`, a page that n processes share counting a n-th for each (but huge pages count whole)."""


class Usage(NamedTuple):
    """Of all processes of a solution together."""

    processes: int
    memory_bytes: int
    """In memory or swapped out, without files on a disc; what processes share counts for each of them."""
    cpu_seconds: float
    """Of the living and of those that have been waited for."""


def children(pid: int) -> list[int]:
    """The direct children of a process, of all its threads; empty if it is gone."""
    try:
        lists = [(task / "children").read_text() for task in (PROC / str(pid) / "task").iterdir()]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]


def descendants(pid: int) -> list[int]:
    """All processes below one. Orphans count too: in a process space they fall to its first process."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children(waiting.pop())
        found += below
        waiting += below
    return found


def usage(pids: list[int]) -> Usage:
    """The sum over processes; those that have just ended count nothing."""
    memory = ticks = 0
    for pid in pids:
        try:
            memory += memory_held(pid)
            # after the name, which may hold anything: state is field 3, utime to cstime are fields 14 to 17
            times = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15]
        except OSError:
            continue
        ticks += sum(int(time) for time in times)
    return Usage(len(pids), memory, ticks / TICKS)


def memory_held(pid: int) -> int:
    """Bytes that a process holds, what it shares with others included. Raises OSError if it has just ended."""
    return sum(sizes_in(pid, "status", HELD).values())


def memory_shared_once(pids: list[int]) -> int:
    """Bytes that processes hold together, a page that several of them share counted once.

    The kernel walks all their pages for this, some milliseconds per GiB: for when the simple sum is over a limit.
    What cannot be looked at (a parent without CAP_SYS_PTRACE, kernels before 5.4) counts as in `usage`.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            try:
                sizes = sizes_in(pid, "smaps_rollup", HELD_IN_PROPORTION)
            except PermissionError:
                sizes = {}
            total += sum(sizes.values()) if "Pss_Anon" in sizes else memory_held(pid)
    return total


def sizes_in(pid: int, file: str, names: Sequence[str]) -> dict[str, int]:
    """The named sizes, in bytes, that a file of `/proc` gives for a process. Raises OSError if it has ended.

    Without a living first thread a process still has its memory, but only the folders of its other threads say so.
    """
    wanted = {f"{name}:".encode(): name for name in names}
    folder = PROC / str(pid)
    threads = sorted((folder / "task").iterdir()) if is_zombie(folder) else [folder]
    found: dict[str, int] = {}
    for thread in threads:
        if found:
            break
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # a process chooses its name, but not a new line in it
            rows = (line.split() for line in (thread / file).read_bytes().split(b"\n"))
            found = {wanted[row[0]]: int(row[1]) * 1024 for row in rows if row and row[0] in wanted}
    return found


def is_zombie(folder: Path) -> bool:
    """Whether the first thread of a process has ended. Raises OSError if the process has."""
    return (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX"


class FolderUse(NamedTuple):
    """Of the private folder of a solution, a file system of its own in memory."""

    files: int
    """Files, folders and links, open files without a name included."""
    memory_bytes: int


def open_folder(pid: int, path: str) -> int:
    """A handle of a folder as a process sees it; it can only be asked. Raises OSError."""
    return os.open(PROC / str(pid) / "root" / path.lstrip("/"), os.O_PATH | os.O_DIRECTORY)


def folder_use(handle: int) -> FolderUse:
    """What is in the file system of a folder, without the folder itself."""
    found = os.fstatvfs(handle)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return FolderUse(found.f_files - found.f_ffree - 1, used)


def open_children(parent: int) -> dict[int, int]:
    """A handle (pidfd) for each direct child by its number: unlike numbers, handles are never reused."""
    handles: dict[int, int] = {}
    for child in children(parent):
        try:
            handle = os.pidfd_open(child)
        except ProcessLookupError:
            continue
        if child in children(parent):
            handles[child] = handle
        else:  # it ended in between, and the number may be another's
            os.close(handle)
    return handles


def send(handle: int, number: int) -> None:
    """Send a signal to the process of a handle, if it still lives."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def has_ended(handle: int, *, wait: float = 0.0) -> bool:
    """Whether the process of a handle has ended, after at most `wait` seconds.

    The first process of a process space ends after all others in it.
    """
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(wait * 1000))


def reap(handle: int) -> None:
    """Wait for the end of a killed process, and take it off the table if it has fallen to us, as the first process."""
    has_ended(handle, wait=10)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOHANG)
