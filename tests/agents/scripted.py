"""A generator that writes given pieces: a whole implementation of the protocol, without a model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence

from prefopt.generate.base import Completion, Request, Sampling

CUT = "<cut>"
"""A piece that ends with it was cut at its token limit."""
FULL = "<full>"
"""A piece that ends with it was cut before that, where the context of the model ends."""
REFUSED = "<refused>"
"""A piece that begins with it stands for a server that refuses the request for good."""


class Scripted:
    """Writes piece number i of a record's script when it is asked for block i."""

    identity = "scripted"

    def __init__(
        self, script: Mapping[str, Sequence[str]], *, kill_after: int | None = None
    ) -> None:
        self.script = script
        self.kill_after = kill_after
        self.requests: list[Request] = []
        self.samplings: list[Sampling] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        self.samplings.append(sampling)
        call = int(sampling.purpose.rpartition(" ")[2])
        for request in requests:
            if self.kill_after is not None and len(self.requests) >= self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.requests.append(request)
            yield self._completion(request, self.script[request.id][call], sampling)

    def _completion(self, request: Request, piece: str, sampling: Sampling) -> Completion:
        name = (request.id, request.sample)
        if piece.startswith(REFUSED):
            return Completion(*name, piece.removeprefix(REFUSED), "error", 0)
        if piece.endswith(CUT):
            return Completion(*name, piece.removesuffix(CUT), "length", sampling.max_new_tokens)
        if piece.endswith(FULL):
            return Completion(*name, piece.removesuffix(FULL), "length", 9)
        for stop in sampling.stop:
            if piece.endswith(stop):
                return Completion(*name, piece.removesuffix(stop), "stop", 9, stop)
        return Completion(*name, piece, "stop", 9)
