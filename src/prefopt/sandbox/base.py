"""What a sandbox promises: limits, the result of a cell, an interpreter. No processes here."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from prefopt.errors import SandboxError

Status = Literal["ok", "error", "timeout", "memory", "crashed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one solution (the cells of one interpreter) may use."""

    seconds: float = 6.0
    """Wall time of one cell; at most a day."""
    cpu_seconds: float = 60.0
    """Processor time of the whole solution, all of its processes together; the start of Python is part of it."""
    memory_bytes: int = 2**30
    """Address space of each process; memory of all processes together and of the files they wrote."""
    processes: int = 16
    """Processes and threads at one time, the interpreter itself included."""
    output_chars: int = 10_000
    """Of one cell; the rest is cut and the result says so."""
    disk_bytes: int = 64 * 2**20
    """Size of the private, empty temporary folder, the only place that can be written; it is kept in memory."""
    files: int = 10_000
    """Files, folders and links in that folder at one time: each takes memory of the kernel, even when empty."""

    def __post_init__(self) -> None:
        for field, (least, most) in _BOUNDS.items():
            value = getattr(self, field)
            whole = field not in _SECONDS
            kinds = (int,) if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise SandboxError(
                    f"limits: {field}={value!r} must be a {'whole ' if whole else ''}number"
                )
            if field == "memory_bytes" and 0 < value < least:
                raise SandboxError(
                    f"limits: memory_bytes={value} is too little for a Python interpreter; "
                    f"give at least {least} (64 MiB)"
                )
            if not least <= value <= most:
                raise SandboxError(
                    f"limits: {field}={value} must lie between {least:,} and {most:,}"
                )
        allowed = _processes_of_user()
        if allowed is not None and self.processes > allowed:
            raise SandboxError(
                f"limits: processes={self.processes} is more than a user may have here; give at most {allowed} "
                "(`ulimit -Hu` less the sandbox's own)"
            )


_SECONDS = {"seconds", "cpu_seconds"}
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "seconds": (0.001, 86_400),
    "cpu_seconds": (0.5, 10**7),
    "memory_bytes": (64 * 2**20, 2**50),
    "processes": (1, 2**22),
    "output_chars": (1, 10**9),
    "disk_bytes": (4096, 2**50),
    "files": (1, 10**9),
}
"""Least and most of each limit: less is used up by the start of Python, more is refused by the kernel."""


def _processes_of_user() -> int | None:
    """The most that the kernel lets the sandbox set, without its own first process; None: any number."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return None if hard == resource.RLIM_INFINITY else hard - 1


class CellResult(NamedTuple):
    """What became of one cell."""

    output: str
    """What the cell printed (stdout and stderr as written); then the repr of its last expression's value unless None,
    as in a notebook, or the traceback."""
    status: Status
    """`ok`; `error`: it raised, the interpreter lives on; `timeout`: ended after `Limits.seconds` (state kept if an
    interrupt was enough) or after all processor time; `memory` (too many files, too), `crashed`: the interpreter is
    gone."""
    seconds: float
    """Wall time; 0 for a cell that could not run because the interpreter was gone."""
    truncated: bool
    """Whether output was cut at `Limits.output_chars`."""


class Death(NamedTuple):
    """Why an interpreter is gone."""

    status: Status
    reason: str


class Interpreter(Protocol):
    """A Python session: names defined in one cell are there in the next."""

    @property
    def death(self) -> Death | None:
        """Why the interpreter is gone, or None while it answers."""
        ...

    def run(self, cell: str) -> CellResult:
        """The result of one cell. Raises SandboxError, with the reason, if the interpreter is gone."""
        ...

    def close(self) -> None:
        """End the session and every process of it; calling again does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
