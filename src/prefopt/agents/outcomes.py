"""What environments have said, in the journal: outcomes by task, sample and actions so far; experts' moves by task.

A task is its split, id and `meta`: splits of an environment of one's own may number their tasks alike.

Failures of environments are not kept: a later run tries again. Nor is a course of events that an environment did not
repeat used any more: the journal keeps what was written and notes that the episode has started anew, and outcomes from
then on have keys of their own. No processes here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from prefopt.agents.environment import Move, Outcome, Suite, Task
from prefopt.generate.base import Completion
from prefopt.generate.journal import Journal, Series


class Outcomes:
    """The part of a journal that belongs to a suite; without a journal it holds nothing."""

    def __init__(self, suite: Suite, journal: Journal | None) -> None:
        self._journal = journal
        self._episodes = Series(suite.identity, "episode", "")
        self._experts = Series(suite.identity, "expert", "")
        self._anew = Series(suite.identity, "anew", "")
        self._starts: dict[tuple[str, int], int] = {}
        if journal is not None:
            for (_, sample, digest), note in journal.series(self._anew).items():
                before = self._starts.get((digest, sample), 0)
                self._starts[digest, sample] = max(before, int(note.text))
        self._held = {} if journal is None else journal.series(self._episodes)
        self._moves = {} if journal is None else journal.series(self._experts)

    def find(self, task: Task, sample: int, actions: Sequence[str]) -> Outcome | None:
        """What the last action led to (no actions: the reset); None where that is not known."""
        found = self._held.get(self._key(task, sample, actions))
        return None if found is None else Outcome(*json.loads(found.text))

    def course(self, task: Task, sample: int, actions: Sequence[str]) -> list[Outcome]:
        """The outcomes of the reset and of all these actions, as far as they are known."""
        found: list[Outcome] = []
        for count in range(len(actions) + 1):
            outcome = self.find(task, sample, actions[:count])
            if outcome is None:
                break
            found.append(outcome)
        return found

    def keep(self, task: Task, sample: int, actions: Sequence[str], outcome: Outcome) -> None:
        """Commit an outcome to the journal.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._append(self._episodes, self._key(task, sample, actions), json.dumps(list(outcome)))

    def start_anew(self, task: Task, sample: int) -> None:
        """Nothing that was kept of the episode is found any more, by later runs either.

        Raises:
            StorageError: the journal cannot be written.
        """
        digest = _key(task, sample, ())[2]
        number = self._starts.get((digest, sample), 0) + 1
        self._append(self._anew, (f"{task.id}, start {number}", sample, digest), str(number))
        self._starts[digest, sample] = number

    def find_moves(self, task: Task) -> tuple[Move, ...] | None:
        """The expert's moves; None where they are not known."""
        found = self._moves.get(_key(task, 0, ()))
        return None if found is None else tuple(Move(*move) for move in json.loads(found.text))

    def keep_moves(self, task: Task, moves: Sequence[Move]) -> None:
        """Commit the expert's moves to the journal.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._append(self._experts, _key(task, 0, ()), json.dumps([list(move) for move in moves]))

    def _key(self, task: Task, sample: int, actions: Sequence[str]) -> tuple[str, int, str]:
        start = self._starts.get((_key(task, sample, ())[2], sample), 0) if self._starts else 0
        return _key(task, sample, actions, start)

    def _append(self, series: Series, key: tuple[str, int, str], text: str) -> None:
        if self._journal is not None:
            name, sample, digest = key
            self._journal.append(series, Completion(name, sample, text, "stop", 0), digest)


def _key(task: Task, sample: int, actions: Sequence[str], start: int = 0) -> tuple[str, int, str]:
    """Request, sample and digest as the journal has them. What is set up and done decides, not the turns there are."""
    parts = [task.split, task.id, dict(task.meta), list(actions), *([start] if start else [])]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"{task.id}, action {len(actions)}", sample, digest
