"""Rooms: a text game of keys and locked doors, with the shortest way as its expert and exact rewards.

The agent goes through rooms on a grid, takes keys and opens doors until it is in the room of the treasure. It sees the
room it is in. A note at the start tells where treasure and keys are. Everything follows from the task; nothing
is random, and nothing but the standard library is needed. Layouts and shortest ways: `prefopt.agents.layouts`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice

from prefopt.agents.environment import Environment, Move, Outcome, Task
from prefopt.agents.layouts import (
    COLOURS,
    DIRECTIONS,
    MOST_COLUMNS,
    Door,
    Exit,
    Layout,
    Plan,
    digest,
    draw_layout,
    is_puzzle,
    needed_colours,
    read_layout,
    shortest,
)
from prefopt.errors import AgentError, ConfigError

INSTRUCTION = (
    "You are in a house of rooms on a grid. Find the treasure. Rooms A1, B1, ... are in the north, from west to "
    "east. A locked room has a door of its colour on every side; a key opens the doors of its colour. "
    "Actions: go north, go south, go east, go west; take red key (or another colour); open north door (or another "
    "direction); look."
)
NO_SUCH = "You cannot do that. "
FOUND = "You find the treasure."
LOCKED = "The door is locked. "

_SPLITS = ("train", "seen", "unseen")
_TRAIN_PERCENT = 80
"""Of the layouts whose ends are not held out; the others are `seen`."""
_HELD_OUT_PERCENT = 20
"""Of the pairs of start and goal; their layouts are `unseen`."""
_PATIENCE = 20_000
"""Draws without a new layout after which there are taken to be no more."""
_EDITION = 1
"""Raised when equal options begin to make other tasks or other observations."""


class Rooms:
    """The running game."""

    def __init__(self, *, note: bool = True) -> None:
        self._note = note
        self._exits: dict[str, dict[str, Exit]] = {}
        """Empty before the first reset."""
        self._goal = ""
        self._needed: frozenset[str] = frozenset()
        self._room = ""
        self._lying: dict[str, str] = {}
        """Room of every key that is not carried."""
        self._carried: tuple[str, ...] = ()
        """Colours, in the order of `COLOURS`."""
        self._opened: set[Door] = set()
        self._colours: set[str] = set()
        """Of the opened doors."""

    def reset(self, task: Task) -> Outcome:
        """The start of an episode; equal tasks start equally.

        Raises:
            RecordError: `Task.meta` is no layout.
        """
        layout = read_layout(task.meta, origin=f"task {task.id}")
        self._exits = layout.exits()
        self._goal = layout.goal
        self._needed = frozenset(needed_colours(layout))
        self._room = layout.start
        self._lying = dict(layout.keys)
        self._carried = ()
        self._opened = set()
        self._colours = set()
        note = note_of(layout) if self._note else ""
        return Outcome(note + self._view(), self._reward())

    def step(self, action: str) -> Outcome:
        """What an action does; anything that cannot be done is answered and changes nothing.

        Raises:
            AgentError: no episode was started.
        """
        if not self._exits:
            raise AgentError("rooms: a step before the first reset; reset with a task")
        # After the end nothing changes any more.
        said = "" if self._room == self._goal else self._act(action.lower().split())
        if self._room == self._goal:
            return Outcome(FOUND, 1.0, done=True, success=True)
        return Outcome(said + self._view(), self._reward())

    def expert(self, task: Task) -> Sequence[Move]:
        """The shortest way, each move with a thought; none where there is no way. Ends the current episode."""
        self._exits = {}
        return moves(read_layout(task.meta, origin=f"task {task.id}"))

    def close(self) -> None:
        """Nothing is held."""

    def _act(self, words: Sequence[str]) -> str:
        """Carry an action out; the answer is empty where the room says enough."""
        exits = self._exits[self._room]
        match words:
            case ["look"]:
                return ""
            case ["go", direction] if direction in exits:
                other, colour = exits[direction]
                if colour is not None and frozenset((self._room, other)) not in self._opened:
                    return LOCKED
                self._room = other
                return ""
            case ["take", colour, "key"] if self._lying.get(colour) == self._room:
                del self._lying[colour]
                held = (*self._carried, colour)
                self._carried = tuple(c for c in COLOURS if c in held)
                return ""
            case ["open", direction, "door"] if direction in exits:
                return self._open(*exits[direction])
            case _:
                return NO_SUCH

    def _open(self, other: str, colour: str | None) -> str:
        door = frozenset((self._room, other))
        if colour is None or door in self._opened or colour not in self._carried:
            return NO_SUCH
        self._opened.add(door)
        self._colours.add(colour)
        return ""

    def _reward(self) -> float:
        """Fraction of what is needed: each needed key taken, a door of its colour opened, the goal reached."""
        taken = len(self._needed.difference(self._lying))
        opened = len(self._needed & self._colours)
        return (taken + opened) / (2 * len(self._needed) + 1)

    def _view(self) -> str:
        room = self._room
        parts = [f"You are in {room}."]
        for direction, (other, colour) in self._exits[room].items():
            passage = colour is None or frozenset((room, other)) in self._opened
            parts.append(f" {direction.capitalize()}: {'open' if passage else f'{colour} door'}.")
        parts += [f" Here: {colour} key." for colour, at in self._lying.items() if at == room]
        parts += [f" You have the {colour} key." for colour in self._carried]
        return "".join(parts)


def note_of(layout: Layout) -> str:
    """What the note at the start says: where treasure and keys are, and behind which doors."""
    places = [("treasure", layout.goal), *((f"{c} key", room) for c, room in layout.keys.items())]
    said = [f"The {what} is in {room}. {_behind(layout.locks.get(room))}" for what, room in places]
    return "".join(said)


def _behind(colour: str | None) -> str:
    return "" if colour is None else f"It is behind a {colour} door. "


def moves(layout: Layout) -> list[Move]:
    """The shortest way as moves, with what each is for: the next key, or the treasure."""
    found: list[Move] = []
    thought = f"I go to the treasure in {layout.goal}."
    for action in reversed(shortest(layout) or []):
        if action.startswith("take "):
            colour = action.split()[1]
            thought = f"I need the {colour} key in {layout.keys[colour]}."
        found.append(Move(action, thought))
    return found[::-1]


def all_actions() -> list[str]:
    """Every action that the game knows."""
    return [
        *(f"go {direction}" for direction in DIRECTIONS),
        *(f"take {colour} key" for colour in COLOURS),
        *(f"open {direction} door" for direction in DIRECTIONS),
        "look",
    ]


@dataclass(frozen=True)
class RoomsSuite:
    """The game's tasks. Equal options make equal tasks.

    A pair of start and goal belongs to `unseen` or to the other splits, by its digest, so none of the pairs of
    `unseen` occurs in them. A layout belongs to `train` or to `seen`, by its digest.
    """

    width: int = 3
    """Columns of the grid; 26 at most."""
    height: int = 3
    """Rows; 1: rooms in a line."""
    min_doors: int = 1
    """Fewest locked rooms that a task takes the agent into."""
    doors: int = 2
    """Most of them."""
    spare_keys: int = 1
    """Keys that open nothing."""
    walls: int = 0
    """Passages walled up, which the note does not tell."""
    note: bool = True
    """Whether the first observation tells where treasure and keys are."""
    slack: int = 6
    """Turns that a task allows beyond the shortest way."""
    train_tasks: int = 3000
    seen_tasks: int = 300
    unseen_tasks: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        rooms = self.width * self.height
        spare = len(COLOURS) - self.doors
        wrong = [
            (not 1 <= self.width <= MOST_COLUMNS, "width", f"use 1 to {MOST_COLUMNS}"),
            (self.height < 1, "height", "use 1 or more"),
            (self.min_doors < 1, "min_doors", "use 1 or more"),
            (self.doors < self.min_doors, "doors", f"use at least {self.min_doors}"),
            (self.doors > min(len(COLOURS), rooms - 1), "doors", f"use at most {min(len(COLOURS), rooms - 1)}"),
            (not 0 <= self.spare_keys <= spare, "spare_keys", f"use 0 to {spare}"),
            (self.walls < 0, "walls", "use 0 or more"),
            (self.slack < 0, "slack", "use 0 or more"),
            (self.train_tasks < 1, "train_tasks", "use 1 or more"),
            (self.seen_tasks < 1, "seen_tasks", "use 1 or more"),
            (self.unseen_tasks < 1, "unseen_tasks", "use 1 or more"),
        ]  # fmt: skip
        for bad, key, remedy in wrong:
            if bad:
                raise ConfigError(f"environment rooms: {key} is {getattr(self, key)}; {remedy}")

    @property
    def name(self) -> str:
        """What recipes call it."""
        return "rooms"

    @property
    def identity(self) -> str:
        """Digest of everything that decides what happens in an episode; not of how many tasks there are."""
        options = {k: v for k, v in asdict(self).items() if not k.endswith("_tasks")}
        facts = json.dumps([self.name, options, _EDITION], sort_keys=True)
        return f"rooms-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"

    @property
    def instruction(self) -> str:
        """The game and its actions."""
        return INSTRUCTION

    @property
    def splits(self) -> Sequence[str]:
        """`train`; `seen`: other layouts of the same kind; `unseen`: pairs of start and goal that neither has."""
        return _SPLITS

    @property
    def per_worker(self) -> int:
        """Environments of a worker process: they hold next to nothing."""
        return 64

    @property
    def start_seconds(self) -> float:
        """Time that opening or resetting may take."""
        return 30.0

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        """The first `count` tasks of a split, all different; None: as many as the options say.

        Raises:
            ConfigError: no such split, or fewer tasks than asked for.
        """
        if split not in _SPLITS:
            raise ConfigError(f"environment rooms: no split {split!r}; it has {', '.join(_SPLITS)}")
        most = {"train": self.train_tasks, "seen": self.seen_tasks, "unseen": self.unseen_tasks}
        wanted = most[split] if count is None else count
        if wanted > most[split]:
            raise ConfigError(
                f"environment rooms: the {split} split has {most[split]} tasks, {wanted} are wanted; ask for "
                f"fewer, or raise {split}_tasks"
            )
        found = _drawn(self, split, wanted)
        if len(found) < wanted:
            raise ConfigError(
                f"environment rooms: the {split} split has only about {len(found)} different tasks of "
                f"{self.width} x {self.height} rooms and {self.min_doors} to {self.doors} locks, {wanted} are "
                f"wanted; lower {split}_tasks, or use more rooms"
            )
        return list(found)

    def open(self) -> Environment:
        """A running game."""
        return Rooms(note=self.note)

    def stream(self, split: str) -> Iterator[Task]:
        """Tasks of the split without repetition until no new one turns up."""
        rng = random.Random(f"rooms/{self.seed}/{split}")
        plan = Plan(
            self.width, self.height, (self.min_doors, self.doors), self.spare_keys, self.walls
        )
        seen: set[int] = set()
        idle = 0
        while idle < _PATIENCE:
            layout = draw_layout(plan, rng)
            idle += 1
            if self.split_of(layout) != split or layout.digest() in seen or not is_puzzle(layout):
                continue
            idle = 0
            seen.add(layout.digest())
            yield self._task(f"{split}-{len(seen)}", split, layout)

    def split_of(self, layout: Layout) -> str:
        """The split that a layout belongs to."""
        if _is_held_out(layout.start, layout.goal):
            return "unseen"
        return "train" if layout.digest() % 100 < _TRAIN_PERCENT else "seen"

    def _task(self, id: str, split: str, layout: Layout) -> Task:
        doors = len(layout.locks)
        return Task(
            id=id,
            split=split,
            kind="1 door" if doors == 1 else f"{doors} doors",
            max_turns=len(shortest(layout) or []) + self.slack,
            meta=layout.to_json(),
        )


SUITE = RoomsSuite


@lru_cache(maxsize=4096)
def _is_held_out(start: str, goal: str) -> bool:
    return digest(f"{start}-{goal}") % 100 < _HELD_OUT_PERCENT


@lru_cache(maxsize=16)
def _drawn(suite: RoomsSuite, split: str, count: int) -> tuple[Task, ...]:
    return tuple(islice(suite.stream(split), count))
