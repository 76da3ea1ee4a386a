"""What workers of the farm are asked to do and what comes of it: plays, places, orders. No processes here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.values import JsonValue

Owner = tuple[str, int]
"""Task id and sample of an episode."""


class Play(NamedTuple):
    """What is to happen in an episode."""

    owner: Owner
    task: Task
    actions: tuple[str, ...] = ()
    """All actions from the start of the episode; those already taken in the owner's environment are not repeated."""
    expert: bool = False
    """Ask for the expert's moves instead."""
    last: bool = False
    """Whether the owner's place is free afterwards."""


class Played(NamedTuple):
    """What became of a play."""

    outcomes: tuple[Outcome, ...] = ()
    """Of the actions that were taken; ends early where an outcome is the end of the episode."""
    first: int = 0
    """How many outcomes of the episode come before these; 0: they begin with that of the reset."""
    moves: tuple[Move, ...] = ()
    """The expert's, if they were asked for."""
    failure: str = ""
    """What went wrong with the environment, which is gone; empty where nothing did."""


@dataclass(slots=True)
class Place:
    """Room for one environment in a worker."""

    slot: int
    owner: Owner | None = None
    taken: int = -1
    """Actions taken in the owner's episode; -1: it has not begun here."""


@dataclass(slots=True)
class Order:
    """A play on its way."""

    index: int
    play: Play
    place: Place
    first: int
    outcomes: list[Outcome] = field(default_factory=list)
    opened: bool = False
    """Whether its environment is known to be open."""

    @property
    def begun(self) -> bool:
        """Whether the episode has started, so that the next answer is that to an action."""
        return self.first > 0 or bool(self.outcomes)

    @property
    def complete(self) -> bool:
        """Whether all answers are there."""
        wanted = len(self.play.actions) + 1 - self.first
        return len(self.outcomes) >= wanted or (bool(self.outcomes) and self.outcomes[-1].done)


def order_to_json(order: Order) -> dict[str, JsonValue]:
    """The order as a worker reads it (`prefopt.agents.worker`)."""
    play, starts = order.play, order.first == 0
    return {
        "slot": order.place.slot,
        "task": _task_to_json(play.task) if starts else None,
        "actions": list(play.actions if starts else play.actions[order.first - 1 :]),
        "expert": play.expert,
    }


def _task_to_json(task: Task) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {"id": task.id, "split": task.split, "kind": task.kind}
    return {**fields, "max_turns": task.max_turns, "meta": dict(task.meta)}
