"""Layouts of rooms, keys and locked doors: what is where, what it takes to reach the goal, the shortest way. No texts.

Rooms lie on a grid and are called by column and row, ``A1`` in the north-west. A locked room has a door of its colour
on every side. Two rooms of different colours have a wall between them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from prefopt.errors import RecordError
from prefopt.values import JsonValue, read_list, read_number, read_object, read_text

DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "north": (0, -1),
    "south": (0, 1),
    "east": (1, 0),
    "west": (-1, 0),
}
"""Steps in columns and rows. Of several shortest ways the one that comes first in this order is taken."""
COLOURS = ("red", "blue", "green", "yellow", "purple", "white")
MOST_COLUMNS = 26

Door: TypeAlias = frozenset[str]
"""The two rooms that it joins."""


class Exit(NamedTuple):
    """What is on one side of a room."""

    room: str
    colour: str | None
    """Of the door; None: an open passage."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is at the start."""

    width: int
    height: int
    start: str
    goal: str
    locks: Mapping[str, str]
    """Colour of every locked room."""
    keys: Mapping[str, str]
    """Room in which the key of a colour lies."""
    walls: tuple[tuple[str, str], ...] = ()
    """Neighbours without a passage."""

    def rooms(self) -> list[str]:
        """All rooms, row by row."""
        return [room_name(x, y) for y in range(self.height) for x in range(self.width)]

    def exits(self) -> dict[str, dict[str, Exit]]:
        """What is where in each room, by direction; directions with a wall are left out."""
        walls = {frozenset(wall) for wall in self.walls}
        found: dict[str, dict[str, Exit]] = {}
        for y in range(self.height):
            for x in range(self.width):
                room = room_name(x, y)
                found[room] = {}
                for direction, (dx, dy) in DIRECTIONS.items():
                    if not (0 <= x + dx < self.width and 0 <= y + dy < self.height):
                        continue
                    other = room_name(x + dx, y + dy)
                    colours = {self.locks.get(room), self.locks.get(other)} - {None}
                    if len(colours) < 2 and frozenset((room, other)) not in walls:
                        joined = self.locks.get(room) == self.locks.get(other)
                        colour = None if joined else next(iter(colours))
                        found[room][direction] = Exit(other, colour)
        return found

    def to_json(self) -> dict[str, JsonValue]:
        """The layout as a JSON object that `read_layout` reads back."""
        return {
            "width": self.width,
            "height": self.height,
            "start": self.start,
            "goal": self.goal,
            "locks": dict(self.locks),
            "keys": dict(self.keys),
            "walls": [list(wall) for wall in self.walls],
        }

    def digest(self) -> int:
        """Digest of the layout, 64 bits: equal layouts have equal ones."""
        return digest(json.dumps(self.to_json(), sort_keys=True))


def read_layout(row: Mapping[str, JsonValue], *, origin: str) -> Layout:
    """The layout of a JSON object.

    Raises:
        RecordError: a key is missing or of the wrong type, or a room does not exist; begins with `origin`.
    """

    def texts(name: str) -> dict[str, str]:
        items = sorted(read_object(row.get(name), name, origin).items())
        return {key: read_text(value, f"{name}.{key}", origin) for key, value in items}

    keys = texts("keys")
    walls = [read_list(w, "walls", origin) for w in _items(row.get("walls"))]
    layout = Layout(
        width=int(read_number(row.get("width"), "width", origin)),
        height=int(read_number(row.get("height"), "height", origin)),
        start=read_text(row.get("start"), "start", origin),
        goal=read_text(row.get("goal"), "goal", origin),
        locks=texts("locks"),
        # A file may hold them in any order; what is told about them has one order.
        keys={colour: keys.pop(colour) for colour in COLOURS if colour in keys},
        walls=tuple((str(wall[0]), str(wall[-1])) for wall in walls),
    )
    named = {layout.start, layout.goal, *layout.locks, *layout.keys.values()}
    unknown = [
        *named.difference(layout.rooms()),
        *keys,
        *{*layout.locks.values()}.difference(COLOURS),
    ]
    if unknown:
        raise RecordError(
            f"{origin}: there is no room or colour {min(unknown)!r} in a grid of {layout.width} x {layout.height}; "
            "take tasks of the environment `rooms`"
        )
    return layout


def _items(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []


class _State(NamedTuple):
    room: str
    keys: frozenset[str]
    opened: frozenset[Door]
    ahead: str
    """Direction of the door opened last, which is gone through next: opening it earlier than that gains nothing."""


def shortest(layout: Layout) -> list[str] | None:
    """The shortest actions from the start to the goal, by breadth-first search; None: there is no way.

    Among equally short ones: taking comes before going, going before opening, and directions in the order of
    `DIRECTIONS`.
    """
    exits = layout.exits()
    start = _State(layout.start, frozenset(), frozenset(), "")
    came: dict[_State, tuple[_State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for action, after in _successors(layout, exits, state):
            if after in came:
                continue
            came[after] = (state, action)
            if after.room == layout.goal:
                return _traced(came, after)
            queue.append(after)
    return None


def _successors(
    layout: Layout, exits: Mapping[str, Mapping[str, Exit]], state: _State
) -> Iterator[tuple[str, _State]]:
    """What can be done, without what cannot be part of a shortest way."""
    room, keys, opened, ahead = state
    if ahead:
        yield f"go {ahead}", _State(exits[room][ahead].room, keys, opened, "")
        return
    useful = set(layout.locks.values()) - keys
    for colour, where in layout.keys.items():
        if where == room and colour in useful:
            yield f"take {colour} key", _State(room, keys | {colour}, opened, "")
    closed: list[tuple[str, Door]] = []
    for direction, (other, colour) in exits[room].items():
        door = frozenset((room, other))
        if colour is None or door in opened:
            yield f"go {direction}", _State(other, keys, opened, "")
        elif colour in keys:
            closed.append((direction, door))
    for direction, door in closed:
        yield f"open {direction} door", _State(room, keys, opened | {door}, direction)


def _traced(came: Mapping[_State, tuple[_State, str] | None], last: _State) -> list[str]:
    actions: list[str] = []
    step = came[last]
    while step is not None:
        state, action = step
        actions.append(action)
        step = came[state]
    return actions[::-1]


def needed_colours(layout: Layout) -> list[str]:
    """Colours whose key and door every way to the goal needs, in the order of `COLOURS`.

    A colour is needed when the goal cannot be reached without its key. An agent at the goal has taken the key
    and opened a door of every needed colour, whichever way it went.
    """
    exits = layout.exits()
    used = set(layout.locks.values())
    return [c for c in COLOURS if c in used and not _reachable(layout, exits, without=c)]


def _reachable(
    layout: Layout, exits: Mapping[str, Mapping[str, Exit]], *, without: str | None = None
) -> bool:
    reached = {layout.start}
    while True:
        keys = {c for c, where in layout.keys.items() if where in reached and c != without}
        more = {
            other
            for room in reached
            for other, colour in exits[room].values()
            if colour is None or colour in keys
        }
        if more <= reached:
            return layout.goal in reached
        reached |= more


class Plan(NamedTuple):
    """What layouts are drawn from."""

    width: int
    height: int
    doors: tuple[int, int]
    """Fewest and most colours of locked rooms, all of them needed."""
    spare_keys: int
    """Keys that open nothing."""
    walls: int
    """Passages walled up."""


def draw_layout(plan: Plan, rng: random.Random) -> Layout:
    """A random layout; only some are puzzles, see `is_puzzle`.

    The goal is in a locked room, its key may be in another one, and so on: as many as there are locks.
    """
    rooms = [room_name(x, y) for y in range(plan.height) for x in range(plan.width)]
    doors = rng.randint(*plan.doors)
    start, *locked = rng.sample(rooms, doors + 1)
    colours = rng.sample(COLOURS, doors + plan.spare_keys)
    # Spare keys must not lie where nobody can get, or else one could tell them by that.
    free = [room for room in rooms if room not in locked]
    places = [rng.choice(free), *locked[:-1], *(rng.choice(free) for _ in range(plan.spare_keys))]
    keys = dict(zip(colours, places, strict=True))
    return Layout(
        plan.width,
        plan.height,
        start,
        locked[-1],
        dict(zip(locked, colours[:doors], strict=True)),
        # In the order of colours: that of the chain would give away which key comes first.
        {colour: keys[colour] for colour in COLOURS if colour in keys},
        _walls(plan, rng),
    )


def is_puzzle(layout: Layout) -> bool:
    """Whether the goal can be reached, and only with the keys of all locks."""
    locks = set(layout.locks.values())
    return _reachable(layout, layout.exits()) and set(needed_colours(layout)) == locks


def _walls(plan: Plan, rng: random.Random) -> tuple[tuple[str, str], ...]:
    if not plan.walls:
        return ()
    passages = [
        (room_name(x, y), room_name(x + dx, y + dy))
        for y in range(plan.height)
        for x in range(plan.width)
        for dx, dy in ((1, 0), (0, 1))
        if x + dx < plan.width and y + dy < plan.height
    ]
    return tuple(sorted(rng.sample(passages, min(plan.walls, len(passages)))))


def room_name(x: int, y: int) -> str:
    """The room in column x and row y, both from 0."""
    return f"{chr(ord('A') + x)}{y + 1}"


def digest(text: str) -> int:
    """A digest of a text, 64 bits; the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
