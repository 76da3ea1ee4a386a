"""One interpreter from the outside: its processes, its cells, its limits and its end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from prefopt.errors import SandboxError
from prefopt.sandbox.base import CellResult, Death, Limits, Status
from prefopt.sandbox.command import PRIVATE, Launch
from prefopt.sandbox.exchange import HELLO, Channel, ConnectionLostError, Exchange
from prefopt.sandbox.processes import (
    FolderUse,
    descendants,
    folder_use,
    has_ended,
    memory_shared_once,
    open_children,
    open_folder,
    reap,
    send,
    usage,
)

START_SECONDS = 60.0
"""For the interpreter to say hello, on a busy machine with cold discs."""
GRACE_SECONDS = 1.0
"""At most, and at most the time limit, between the interrupt and the end of a cell that runs too long."""


class Session:
    """An interpreter; starts at once, without waiting until it answers.

    `launch` is given the descriptor of the process's end of the socket. The process dies with the thread that creates
    it. `closed` is called once, after everything of the session is gone.
    """

    def __init__(
        self,
        launch: Callable[[int], Launch],
        limits: Limits,
        *,
        isolated: bool,
        closed: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.limits, self.isolated, self.closed = limits, isolated, closed
        self.death: Death | None = None
        self.channel: Channel | None = None
        self.first: int | None = None
        """Handle of the first process of the process space."""
        self.private: int | None = None
        """Handle of the private folder, a file system in memory."""
        self._open = True
        self._life = threading.RLock()
        self._running = threading.Lock()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        self._output, writing = os.pipe()
        os.set_blocking(self._output, False)
        self._launch = launch(theirs.fileno())
        try:
            self.process = self._start(writing)
        finally:
            theirs.close()
            os.close(writing)
            for read_by_bubblewrap in self._launch.files:
                os.close(read_by_bubblewrap)

    def _start(self, output: int) -> subprocess.Popen[bytes]:
        launch = self._launch
        try:
            return subprocess.Popen(  # noqa: S603 - our own command
                launch.command,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=launch.descriptors,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its sessions in order
                cwd=launch.folder.name if launch.folder else "/",
            )
        except OSError as error:
            self._control.close()
            os.close(self._output)
            if launch.folder is not None:
                launch.folder.cleanup()
            raise SandboxError(f"sandbox: cannot start {launch.command[0]}: {error}") from error

    def greet(self) -> Channel:
        """The descriptors of the interpreter, once it is ready. Raises SandboxError with what it said instead."""
        if self.channel is not None:
            return self.channel
        process = os.pidfd_open(self.process.pid)
        exchange = Exchange(
            Channel(self._control.fileno(), self._output, process), HELLO, b"", most=4000
        )
        reason = f"it did not answer within {START_SECONDS:g} s"
        reply = None
        try:
            reply = exchange.wait(time.monotonic() + START_SECONDS)
        except ConnectionLostError:
            exchange.drain()
            said = exchange.output()[0].strip().splitlines()
            reason = said[-1] if said else f"exit code {self.process.wait()}"
        if reply is None:
            os.close(process)
            self._end("crashed", f"it did not start: {reason}")
            raise SandboxError(f"sandbox: the interpreter did not start: {reason}")
        self.channel = Channel(self._control.fileno(), self._output, self._handles(process))
        return self.channel

    def _handles(self, process: int) -> int:
        """The handle of the interpreter's own process. No untrusted code has run yet, so it is the only one."""
        if not self.isolated:
            return process
        os.close(process)
        for number, first in open_children(self.process.pid).items():
            self.first = first
            try:
                self.private = open_folder(number, PRIVATE)
            except OSError as error:
                self._end("crashed", "its private folder cannot be watched")
                raise SandboxError(
                    f"sandbox: the private folder of an interpreter cannot be watched: {error}"
                ) from error
            for handle in open_children(number).values():
                return handle
        self._end("crashed", "it ended at once")
        raise SandboxError("sandbox: the interpreter was killed as soon as it had started")

    def run(self, cell: str) -> CellResult:
        """The result of one cell. Raises SandboxError, with the reason, if the interpreter is gone."""
        with self._running:
            if self.death is not None:
                raise SandboxError(
                    f"sandbox: the interpreter is gone ({self.death.reason}); open a new one"
                )
            channel = self.greet()
            body = cell.encode("utf-8", "surrogatepass")
            token = secrets.token_bytes(8)
            message = token + len(body).to_bytes(8, "big") + body
            exchange = Exchange(channel, token, message, most=self.limits.output_chars)
            start = time.monotonic()
            status, text = self._converse(exchange, channel, start)
            output, truncated = exchange.output(text)
            return CellResult(output, status, time.monotonic() - start, truncated)

    def _converse(self, exchange: Exchange, channel: Channel, start: float) -> tuple[Status, str]:
        limit = self.limits.seconds
        try:
            reply = exchange.wait(start + limit)
            late = reply is None
            if reply is None:
                send(channel.ended, signal.SIGINT)
                reply = exchange.wait(time.monotonic() + min(limit, GRACE_SECONDS))
        except ConnectionLostError as error:
            exchange.drain()
            return self._end("crashed", self._last_words(channel, str(error))).status, ""
        if reply is None:
            reason = f"a cell ran longer than {limit:g} s and did not react to an interrupt"
            return self._end("timeout", reason).status, ""
        if reply.status == "memory":
            self._end("memory", f"a cell needed more than {self._memory_limit()} of memory")
            return "memory", reply.text
        return "timeout" if late else reply.status, reply.text

    def _last_words(self, channel: Channel, reason: str) -> str:
        """How the process ended, if it did; the connection closes a moment earlier."""
        if not has_ended(channel.ended, wait=0.2):
            return reason
        try:
            code = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return "its process ended"
        number = code - 128 if self.isolated and code > 128 else -code
        if number in set(signal.Signals):
            return f"its process ended with signal {number} ({signal.Signals(number).name})"
        return f"its process ended with exit code {code}"

    def _memory_limit(self) -> str:
        return f"{self.limits.memory_bytes / 2**20:,.0f} MiB"

    def check(self) -> None:
        """End the session if all of its processes together use more than they may."""
        with self._life:
            if self.death is not None or not self._open:
                return
            own = [] if self.isolated else [self.process.pid]
            family = [*own, *descendants(self.process.pid)]
            used = usage(family)
            folder = FolderUse(0, 0) if self.private is None else folder_use(self.private)
        limits = self.limits
        most = limits.memory_bytes - folder.memory_bytes
        if not self.isolated and used.processes > limits.processes:
            self._end("crashed", f"it started more than {limits.processes} processes")
        elif used.memory_bytes > most and memory_shared_once(family) > most:
            self._end("memory", f"its processes needed more than {self._memory_limit()} of memory")
        elif folder.files > limits.files:
            self._end("memory", f"it made more than {limits.files:,} files")
        elif used.cpu_seconds > limits.cpu_seconds:
            self._end("timeout", f"it used more than {limits.cpu_seconds:g} s of processor time")

    def _end(self, status: Status, reason: str) -> Death:
        """End all processes; the first reason stands."""
        with self._life:
            self.death = self.death or Death(status, reason)
            if not self._open:
                return self.death
            firsts = [self.first] if self.first else []
            if self.isolated and not firsts and self.process.returncode is None:
                firsts = list(open_children(self.process.pid).values())
            for first in firsts:
                send(first, signal.SIGKILL)
            if not self.isolated:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            if firsts:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(
                        2
                    )  # bubblewrap waits for its first process and then ends by itself
            self.process.kill()
            self.process.wait()
            for first in firsts:
                reap(first)
            if self.first is None:
                for first in firsts:
                    os.close(first)
            return self.death

    def kill(self, reason: str) -> None:
        """End every process of the session at once; a cell that is running ends with it."""
        self._end("crashed", reason)

    def close(self) -> None:
        """End the session and every process of it; calling again does nothing."""
        self._end("crashed", "it was closed")
        with self._running, self._life:
            if not self._open:
                return
            self._open = False
            self._control.close()
            os.close(self._output)
            ended = self.channel.ended if self.channel else None
            for handle in (self.first, self.private, ended):
                if handle is not None:
                    os.close(handle)
            if self._launch.folder is not None:
                self._launch.folder.cleanup()
        self.closed(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
