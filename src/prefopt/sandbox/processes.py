"""What the kernel says about the processes of a solution: who belongs to it, and what they use together.

All of it is read from `/proc` of the parent's own process space, so nothing that runs inside can change it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


class Usage(NamedTuple):
    """Of all processes of a solution together."""

    processes: int
    memory_bytes: int
    """Resident and private, so that what forked processes share with files counts for none of them."""
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
            pages = (PROC / str(pid) / "statm").read_text().split()
            # after the name, which may hold anything: state is field 3, utime to cstime are fields 14 to 17
            times = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15]
        except OSError:
            continue
        memory += (int(pages[1]) - int(pages[2])) * PAGE
        ticks += sum(int(time) for time in times)
    return Usage(len(pids), memory, ticks / TICKS)


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
