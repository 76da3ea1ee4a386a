"""One episode on its way: what the agent and its environment have said, and whose turn it is. No models, no processes.

The agent's replies and the environment's outcomes are handed in one by one, from wherever they come; the episode says
what it is waiting for and how it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prefopt.agents.environment import Outcome, Task
from prefopt.agents.formats import Format
from prefopt.agents.trajectory import Status, Trajectory
from prefopt.generate.base import Completion, Request
from prefopt.records import Message


@dataclass(slots=True)
class Episode:
    """A task that an agent is at."""

    task: Task
    sample: int
    format: Format
    opening_of: Callable[[str], tuple[Message, ...]]
    """What the agent is shown first, given the first observation."""
    max_turns: int
    opening: tuple[Message, ...] = ()
    turns: list[Message] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """That of the reset, then one for each action."""
    steps: int = 0
    """Turns of the agent."""
    format_errors: int = 0
    failures: int = 0
    """Times that the environment has failed."""
    status: Status | None = None
    """None while it goes on."""
    reason: str = ""

    @property
    def owner(self) -> tuple[str, int]:
        """Task id and sample."""
        return self.task.id, self.sample

    @property
    def waits_for_outcome(self) -> bool:
        """Whether the environment has to say something before the agent can go on."""
        return self.status is None and len(self.outcomes) <= len(self.actions)

    def request(self) -> Request:
        """The request for the next reply. Its id holds the turn, so that episodes at different turns go together."""
        name = f"{self.task.id}, turn {self.steps}"
        return Request(name, self.sample, (*self.opening, *self.turns))

    def take_outcome(self, outcome: Outcome) -> None:
        """What the last action, or the reset, led to."""
        if self.outcomes:
            self.turns.append(self.format.observe(outcome.observation))
        else:
            self.opening = self.opening_of(outcome.observation)
        self.outcomes.append(outcome)
        if outcome.done:
            self.end("done")
        elif self.steps >= self.max_turns:
            self.end("turns")

    def take_reply(self, reply: Completion) -> None:
        """What the agent says. A reply that was cut is kept and not acted on."""
        if reply.finish_reason == "error":
            self.end("error", f"the server refused: {reply.text}")
            return
        action = None if reply.finish_reason == "length" else self.format.read(reply.text)
        self.take_turn(Message("assistant", reply.text), action)
        if reply.finish_reason == "length":
            self.end("length", "a reply was cut at the token limit")
        elif action is None:
            self.format_errors += 1
            if self.steps >= self.max_turns:
                self.end("turns")
            else:
                self.turns.append(self.format.observe(self.format.complaint))

    def take_turn(self, message: Message, action: str | None) -> None:
        """A message of the agent, and the action in it."""
        self.turns.append(message)
        self.steps += 1
        if action is not None:
            self.actions.append(action)

    def end(self, status: Status, reason: str = "") -> None:
        """Nothing more happens."""
        self.status, self.reason = status, reason

    def fail(self, reason: str, attempts: int) -> None:
        """The environment has failed; after so many times, the episode ends."""
        self.failures += 1
        if self.failures >= attempts:
            self.end("error", reason)

    def start_anew(self) -> None:
        """As if nothing had been said; times that the environment has failed still count."""
        self.opening, self.steps, self.format_errors = (), 0, 0
        self.turns, self.actions, self.outcomes = [], [], []

    def trajectory(self) -> Trajectory:
        """What has become of it."""
        turns = list(self.turns)
        while turns and turns[-1].role != "assistant":
            turns.pop()
        last = self.outcomes[-1] if self.outcomes and self.status != "error" else None
        return Trajectory(
            task=self.task,
            opening=self.opening,
            turns=tuple(turns),
            reward=None if last is None else last.reward,
            success=last is not None and last.success,
            status=self.status or "error",
            sample=self.sample,
            reason=self.reason,
            format_errors=self.format_errors,
        )


def differ(before: Sequence[Outcome], again: Sequence[Outcome]) -> bool:
    """Whether an environment answers differently when an episode is played again, as far as both go."""
    return any(then != now for then, now in zip(before, again, strict=False))
