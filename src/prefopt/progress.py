"""Progress of long work: a bar on a terminal, plain lines otherwise. All of it goes to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Ticker(Protocol):
    """Receives progress."""

    def __call__(self, advance: int = 1, note: str = "", *, total: int | None = None) -> None:
        """Count `advance` more as done, show `note` beside the bar; `total`: there is so much now."""
        ...


@contextmanager
def progress(title: str, total: int, *, quiet: bool = False, done: int = 0) -> Generator[Ticker]:
    """A progress bar on a terminal, a plain line about every tenth otherwise, nothing when `quiet`."""
    if quiet:
        yield lambda advance=1, note="", *, total=None: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainTicker(title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def tick(advance: int = 1, note: str = "", *, total: int | None = None) -> None:
            bar.update(task, advance=advance, total=total)
            if note:
                bar.update(task, note=note)

        yield tick


class _PlainTicker:
    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.printed = done * 10 // max(1, total)
        self.note = ""

    def __call__(self, advance: int = 1, note: str = "", *, total: int | None = None) -> None:
        if total is not None and total != self.total:
            self.total = total
            self.printed = self.done * 10 // max(1, total)
        self.done += advance
        self.note = note or self.note
        tenth = self.done * 10 // max(1, self.total)
        if tenth > self.printed:
            self.printed = tenth
            say(f"{self.title}: {self.done}/{self.total}  {self.note}".rstrip())


def say(line: str) -> None:
    """One line for the user, on stderr, so that stdout stays for results."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - the user interface


@contextmanager
def counted(title: str) -> Generator[Callable[[int, int], None]]:
    """A progress bar for work that reports (done, total); the total may change on the way."""
    with ExitStack() as stack:
        ticker: Ticker | None = None
        seen = 0

        def report(done: int, total: int) -> None:
            nonlocal ticker, seen
            if ticker is None:
                ticker = stack.enter_context(progress(title, total, done=done))
            else:
                ticker(advance=done - seen, total=total)
            seen = done

        yield report
