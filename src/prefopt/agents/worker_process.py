"""The main process's side of a worker: starting it, orders to it, answers from it, and its end. No scheduling.

Whatever the worker is doing, `kill` ends it and the programs it has started, but for those that have left its process
group; nothing here waits for a worker longer than a stated time. The inside is `prefopt.agents.worker`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from typing import IO

from prefopt.agents.worker import ENDED
from prefopt.errors import StorageError
from prefopt.values import JsonValue

_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from prefopt.agents.worker import keep
keep(*map(int, sys.argv[2:]))
"""
_PATIENCE = 5.0
"""Seconds that the end of a process which is known to have ended may take to be seen."""
_TAIL = 4000
"""Bytes of stderr that are looked at for the reason of an end."""


class WorkerProcess:
    """A running worker."""

    def __init__(self, first_line: str) -> None:
        """Start it.

        Raises:
            StorageError: the system starts no more processes, or has no room for a temporary file.
        """
        self._pending, self._outbox = b"", b""
        try:
            # Ours are closed if anything fails, which ends whatever has been started.
            with ExitStack() as theirs, ExitStack() as ours:
                life, self._life = _pipe(theirs, ours)
                orders, self._orders = _pipe(theirs, ours)
                self._answers, answers = _pipe(ours, theirs)
                # Without a name, so that it is gone when the last process that writes to it is.
                self._said = ours.enter_context(tempfile.TemporaryFile())
                self._process = _started((life, orders, answers), self._said)
                self._ours = ours.pop_all()
        except OSError as error:
            raise StorageError(
                f"a process for environments cannot be started ({error.strerror}); lower the number of workers"
            ) from error
        os.set_blocking(self._orders.fileno(), False)
        os.set_blocking(self._answers.fileno(), False)
        self.send_line(first_line)

    @property
    def answers(self) -> int:
        """Descriptor that is readable when there are answers, or when the worker has ended."""
        return self._answers.fileno()

    @property
    def orders(self) -> int:
        """Descriptor that is writable when `flush` can go on."""
        return self._orders.fileno()

    @property
    def unsent(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._outbox)

    def send(self, orders: list[dict[str, JsonValue]]) -> None:
        """Hand over orders; what the pipe does not take now waits for `flush`."""
        self.send_line(json.dumps(orders))

    def send_line(self, line: str) -> None:
        """Hand over one line."""
        self._outbox += line.encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what fits into the pipe. That the worker is gone shows when answers are read."""
        while self._outbox:
            try:
                self._outbox = self._outbox[os.write(self.orders, self._outbox) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._outbox = b""

    def receive(self) -> list[list[JsonValue]]:
        """The answers that have arrived, without waiting.

        Raises:
            EOFError: the worker has ended and has nothing more to say.
        """
        try:
            data = os.read(self.answers, 1 << 18)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def why(self) -> str:
        """Why a worker that has ended has ended, in words; waits for its last words."""
        self.await_end(_PATIENCE)
        size = os.fstat(self._said.fileno()).st_size
        tail = os.pread(self._said.fileno(), _TAIL, max(0, size - _TAIL))
        lines = tail.decode(errors="replace").splitlines()
        spoken = [line.strip() for line in lines if line.strip()]
        how = next((s.removeprefix(ENDED) for s in spoken if s.startswith(ENDED)), "killed")
        last = next((s for s in reversed(spoken) if not s.startswith(ENDED)), "")
        return f"its process ended ({how})" + (f": {last}" if last else "")

    def dismiss(self) -> None:
        """Let it close its environments and end; nothing can be sent any more."""
        self._orders.close()

    def await_end(self, seconds: float) -> None:
        """Wait until it has ended, at most so long. Its id stays taken, so that `kill` can hit no other process."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        until = time.monotonic() + seconds
        while os.waitid(os.P_PID, self._process.pid, how) is None and time.monotonic() < until:
            time.sleep(0.002)

    def kill(self) -> None:
        """End it and everything in its process group; doing so twice is allowed."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._ours.close()


def _pipe(reads: ExitStack, writes: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Both ends of a new pipe, each closed with its stack."""
    reader, writer = os.pipe()
    return (
        reads.enter_context(os.fdopen(reader, "rb", 0)),
        writes.enter_context(os.fdopen(writer, "wb", 0)),
    )


def _started(
    pipes: tuple[IO[bytes], IO[bytes], IO[bytes]], said: IO[bytes]
) -> subprocess.Popen[bytes]:
    numbers = [pipe.fileno() for pipe in pipes]
    command = [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, numbers)]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and code
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        pass_fds=numbers,
        # A session of its own: Ctrl-C reaches the main process alone, and one signal the whole group.
        start_new_session=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
