"""A generator that knows whole solutions by (request id, sample) and writes what follows the prefix, up to a stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prefopt.generate.base import Completion, Request, Sampling


class Task(NamedTuple):
    id: str
    prompt: str
    answer: str


class Knowing:
    """Deterministic; `limit` completions are given before the process kills itself."""

    identity = "knowing"

    def __init__(
        self,
        texts: Mapping[tuple[str, int], str],
        *,
        cut: Sequence[str] = (),
        refused: Sequence[str] = (),
        silent: bool = False,
        limit: int | None = None,
    ) -> None:
        self.texts, self.cut, self.refused, self.silent = texts, cut, refused, silent
        self.left = limit
        self.asked: list[tuple[Request, Sampling]] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left = None if self.left is None else self.left - 1
            self.asked.append((request, sampling))
            yield self.complete(request, sampling)

    def complete(self, request: Request, sampling: Sampling) -> Completion:
        whole = self.texts[request.id, request.sample]
        assert whole.startswith(request.prefix), (whole, request.prefix)
        if whole in self.refused:
            return Completion(request.id, request.sample, "too long", "error", 0)
        text = whole[len(request.prefix) :]
        found = [(text.find(stop), stop) for stop in sampling.stop if stop in text]
        if not found:
            reason = "length" if whole in self.cut else "stop"
            return Completion(request.id, request.sample, text, reason, 1)
        at, stop = min(found)
        name = None if self.silent else stop
        return Completion(request.id, request.sample, text[:at], "stop", 1, name)


def is_right(task: Task, text: str) -> bool:
    return text.rsplit("The answer is ", 1)[-1].strip() == task.answer


TASK = Task("t", "What is 1 + 2 + 3?\n", "6")
FIRST = "Step 1: 1 + 2 = 3\n"
RIGHT = FIRST + "Step 2: 3 + 3 = 6\nThe answer is 6"
WRONG = FIRST + "Step 2: 3 + 3 = 7\nThe answer is 7"
HOT = FIRST + "Step 2: 3 * 3 = 9\nStep 3: 9 = 9\nStep 4: so\nStep 5: so\nThe answer is 9"
