"""The types of tasks of ScienceWorld: variations, splits, limits on turns. Known without starting the simulator."""

from __future__ import annotations

from typing import NamedTuple

SPLITS = ("train", "seen", "unseen")
OTHER_TURNS = 100
"""Limit on turns of the types that have no published one."""


class Kind(NamedTuple):
    """A type of task."""

    number: int
    """What published files call it: `14_0` is the first variation of number 14."""
    name: str
    variations: int
    """Of package version 1.2, all splits together."""
    turns: int
    """Published limit on the agent's turns; `OTHER_TURNS` where none is published."""
    published: bool = True
    """Whether it is one of the 24 types of the published lists."""

    @property
    def electrical(self) -> bool:
        """Whether things have to be connected."""
        return "power" in self.name or "conductivity" in self.name


KINDS = (
    Kind(0, "boil", 30, 100),
    Kind(1, "change-the-state-of-matter-of", 30, 80),
    Kind(2, "freeze", 30, 80),
    Kind(3, "melt", 30, 80),
    Kind(4, "measure-melting-point-known-substance", 436, 120),
    Kind(5, "measure-melting-point-unknown-substance", 300, OTHER_TURNS, published=False),
    Kind(6, "use-thermometer", 540, 30),
    Kind(7, "power-component", 20, 20),
    Kind(8, "power-component-renewable-vs-nonrenewable-energy", 20, 30),
    Kind(9, "test-conductivity", 900, 30),
    Kind(10, "test-conductivity-of-unknown-substances", 600, 30),
    Kind(11, "find-animal", 300, 15),
    Kind(12, "find-living-thing", 300, 15),
    Kind(13, "find-non-living-thing", 300, 15),
    Kind(14, "find-plant", 300, 15),
    Kind(15, "grow-fruit", 126, 60),
    Kind(16, "grow-plant", 126, 30),
    Kind(17, "chemistry-mix", 32, 60),
    Kind(18, "chemistry-mix-paint-secondary-color", 36, 15),
    Kind(19, "chemistry-mix-paint-tertiary-color", 36, 30),
    Kind(20, "lifespan-longest-lived", 125, 10),
    Kind(21, "lifespan-longest-lived-then-shortest-lived", 125, 12),
    Kind(22, "lifespan-shortest-lived", 125, 10),
    Kind(23, "identify-life-stages-1", 14, 30),
    Kind(24, "identify-life-stages-2", 10, 30),
    Kind(25, "inclined-plane-determine-angle", 168, OTHER_TURNS, published=False),
    Kind(26, "inclined-plane-friction-named-surfaces", 1386, OTHER_TURNS, published=False),
    Kind(27, "inclined-plane-friction-unnamed-surfaces", 162, OTHER_TURNS, published=False),
    Kind(28, "mendelian-genetics-known-plant", 120, OTHER_TURNS, published=False),
    Kind(29, "mendelian-genetics-unknown-plant", 480, OTHER_TURNS, published=False),
)


def variations(kind: Kind, split: str) -> range:
    """The variations of a type of task in a split, by the package's rule.

    With q = floor(variations / 4), the first 2q are its training variations (`train`), the next q its development
    variations (`seen`), and the others its test variations (`unseen`).
    """
    quarter = kind.variations // 4
    ends = (0, 2 * quarter, 3 * quarter, kind.variations)
    at = SPLITS.index(split)
    return range(ends[at], ends[at + 1])


def split_of(kind: Kind, variation: int) -> str:
    """The split that a variation is in."""
    return next(split for split in SPLITS if variation in variations(kind, split))


def task_id(kind: Kind, variation: int) -> str:
    """What a task is called: `find-plant:0`."""
    return f"{kind.name}:{variation}"
