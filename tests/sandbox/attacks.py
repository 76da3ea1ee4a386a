"""Running hostile code, and seeing that nothing of it is left."""

import contextlib
import time
from pathlib import Path

from prefopt.sandbox import Sandbox
from prefopt.sandbox.base import CellResult
from prefopt.sandbox.processes import descendants
from prefopt.sandbox.session import Session

PRIVATE = "/tmp"  # noqa: S108 - inside the sandbox
"""The folder inside that code may write to, in memory."""


def attack(pool: Sandbox, code: str) -> CellResult:
    """The result of hostile code; afterwards nothing of it is left and every worker of the pool still answers."""
    interpreter = pool.open()
    assert isinstance(interpreter, Session)
    family = [interpreter.process.pid, *descendants(interpreter.process.pid)]
    started = time.monotonic()
    with interpreter:
        result = interpreter.run(code)
        family += descendants(interpreter.process.pid)
    assert time.monotonic() - started < 15
    assert survivors(family) == []
    with pool.open() as first, pool.open() as second:
        assert [first.run("1 + 1")[:2], second.run("1 + 1")[:2]] == [("2", "ok"), ("2", "ok")]
    return result


def survivors(pids: list[int]) -> list[int]:
    """Which of them run. What is dead may stay on the table until the machine's first process takes notice."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            alive += [pid] if state not in "ZX" else []
    return alive


def raises(pool: Sandbox, code: str, *names: str) -> None:
    """The code ends with one of these exceptions."""
    result = attack(pool, code)
    assert result.status == "error", result
    assert result.output.strip().splitlines()[-1].startswith(names), result


def fresh(pool: Sandbox) -> Sandbox:
    """A pool of its own, started with what the test has changed."""
    return Sandbox(pool.limits, workers=2)
