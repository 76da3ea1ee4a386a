"""One cell's conversation with the process inside: what is still to be sent, what came back, what was printed.

See `inside.py` for the form of messages. Nothing that comes from inside is trusted: a reply is read up to a bound, must
repeat the token drawn for this cell, and is only ever text.
"""

from __future__ import annotations

import os
import select
import time
from typing import NamedTuple

from prefopt.errors import SandboxError
from prefopt.sandbox.base import Status

HELLO = bytes(8)
HEADER = 17
LETTERS: dict[bytes, Status] = {b"o": "ok", b"e": "error", b"m": "memory"}
BLOCK = 2**18
WIDEST = 6
"""Bytes of one character in a reply: an escaped lone surrogate."""


class ConnectionLostError(SandboxError):
    """The process inside has ended, closed its connection, or said what it must not say."""


class Reply(NamedTuple):
    """What the process inside says of a cell."""

    status: Status
    text: str


class Channel(NamedTuple):
    """The descriptors of one interpreter, all of the parent's side."""

    control: int
    """Socket for messages, not blocking."""
    output: int
    """Pipe that everything inside prints to, not blocking."""
    ended: int
    """Readable when the process has ended."""


class Exchange:
    """Sends one message, collects what is printed, waits for the reply."""

    def __init__(self, channel: Channel, token: bytes, message: bytes, *, most: int) -> None:
        self.channel, self.token, self.most = channel, token, most
        self.pending = memoryview(message)
        self.received = bytearray()
        self.printed = bytearray()
        self.cut = False
        self.output_open = True

    def wait(self, until: float) -> Reply | None:
        """The reply, or None when the monotonic clock passes `until`. Raises ConnectionLostError."""
        while (left := until - time.monotonic()) > 0:
            ready = dict(self.poller().poll(left * 1000))
            if ready.get(self.channel.output):
                self.collect()
            events = ready.get(self.channel.control, 0)
            if events & select.POLLOUT:
                self.send()
            if events & ~select.POLLOUT and (reply := self.receive()) is not None:
                self.drain()
                return reply
            if self.channel.ended in ready and not events & select.POLLIN:
                raise ConnectionLostError("the process has ended")
        return None

    def poller(self) -> select.poll:
        """What to wait for now."""
        poller = select.poll()
        poller.register(
            self.channel.control, select.POLLIN | (select.POLLOUT if self.pending else 0)
        )
        poller.register(self.channel.ended, select.POLLIN)
        if self.output_open:
            poller.register(self.channel.output, select.POLLIN)
        return poller

    def send(self) -> None:
        """Send as much as goes out at once."""
        try:
            self.pending = self.pending[os.write(self.channel.control, self.pending) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLostError("the connection was closed inside") from error

    def receive(self) -> Reply | None:
        """The reply if it is complete. Raises ConnectionLostError for anything but a reply to this cell."""
        try:
            more = os.read(self.channel.control, BLOCK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionLostError("the connection was closed inside") from error
        if not more:
            raise ConnectionLostError("the connection was closed inside")
        self.received += more
        head = bytes(self.received[:HEADER])
        length = int.from_bytes(head[9:], "big")
        if not self.token.startswith(head[:8]) or (
            len(head) == HEADER
            and (
                head[8:9] not in LETTERS
                or length > WIDEST * (self.most + 1)
                or len(self.received) > HEADER + length
            )
        ):
            raise ConnectionLostError("the code inside wrote to the connection of its interpreter")
        if len(head) < HEADER or len(self.received) < HEADER + length:
            return None
        return Reply(LETTERS[head[8:9]], self.received[HEADER:].decode("utf-8", "replace"))

    def collect(self) -> int:
        """Read once from the output pipe; keep what may be needed, note what is not kept. The number of bytes read."""
        try:
            data = os.read(self.channel.output, BLOCK)
        except BlockingIOError:
            return 0
        self.output_open = bool(data)
        room = 4 * (self.most + 1) - len(self.printed)
        self.printed += data[: max(0, room)]
        self.cut = self.cut or len(data) > room
        return len(data)

    def drain(self) -> None:
        """Read what was printed before the reply: a pipe holds no more than this unless more is printed meanwhile."""
        left = 4 * BLOCK
        while left > 0 and self.output_open and (count := self.collect()):
            left -= count

    def output(self, text: str = "") -> tuple[str, bool]:
        """What was printed and then `text`, cut to the limit; whether anything was cut."""
        whole = self.printed.decode("utf-8", "replace") + text
        return whole[: self.most], self.cut or len(whole) > self.most
