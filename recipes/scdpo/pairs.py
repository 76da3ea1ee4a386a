"""The training pairs of one seed: built once from the base model's samples, kept in a folder, cut to size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tasks import Sizes, Task

from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.records import Preference, read_preferences, write_preferences

KINDS = ("naive", "controlled", "data_equal", "steps")


class Share(NamedTuple):
    """How many pairs of a kind an arm takes: all that SCDPO takes of them, or its total."""

    kind: str
    of: str
    """`naive`, `controlled` or `total`."""
    crossed: bool = False
    """Fronts and tails of different questions."""


MIXTURES: Mapping[str, tuple[Share, ...]] = {
    "DPO": (Share("naive", "naive"),),
    "data-equal DPO": (Share("data_equal", "total"),),
    "SCDPO": (Share("naive", "naive"), Share("controlled", "controlled")),
    "SCDPO, crossed tails": (
        Share("naive", "naive"),
        Share("controlled", "controlled", crossed=True),
    ),
    "Step-DPO": (Share("steps", "total"),),
}


class Numbers(NamedTuple):
    """Pairs that SCDPO trains on."""

    naive: int
    controlled: int

    @property
    def total(self) -> int:
        """What every arm but plain DPO has."""
        return self.naive + self.controlled


def build_pairs(
    task: Task[Any], generator: Generator, sizes: Sizes, folder: Path
) -> dict[str, list[Preference]]:
    """The pairs of each kind; made on the first call, then read from the folder.

    The folder's journal lets a killed build go on where it stopped.
    """
    done = folder / "counts.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with Journal(folder / "journal.sqlite") as journal:
            data = task.controlled(generator, sizes, journal)
            steps = task.steps(generator, sizes, journal)
        made = (data.naive, data.controlled, data.data_equal, steps)
        for kind, records in zip(KINDS, made, strict=True):
            write_preferences(folder / f"{kind}.jsonl", records)
        done.write_text(json.dumps(data.counts, indent=1) + "\n", encoding="utf-8")
    return {kind: read_preferences(folder / f"{kind}.jsonl") for kind in KINDS}


def mixture(
    arm: str, pairs: Mapping[str, Sequence[Preference]], numbers: Numbers
) -> list[Preference]:
    """The training set of an arm.

    Raises:
        SystemExit: the build has fewer pairs.
    """
    found: list[Preference] = []
    for share in MIXTURES[arm]:
        records = crossed(pairs[share.kind]) if share.crossed else list(pairs[share.kind])
        wanted = getattr(numbers, share.of)
        if len(records) < wanted:
            raise SystemExit(
                f"{arm}: {len(records)} {share.kind} pairs, {wanted} are wanted; raise --problems or --samples"
            )
        found += spread(records, wanted)
    return found


def spread(records: Sequence[Preference], count: int) -> list[Preference]:
    """`count` records in their order, evenly spaced: all questions of the build stay represented."""
    return [records[k * len(records) // count] for k in range(count)]


def crossed(records: Sequence[Preference]) -> list[Preference]:
    """The negative control: each question and front with the two tails of another question.

    Tails move among records whose fronts have equally many steps, so that a tail's numbering fits; a record without
    such a partner is left out.
    """
    groups: dict[object, list[Preference]] = {}
    for record in records:
        groups.setdefault(record.meta["start_steps"], []).append(record)
    found: list[Preference] = []
    for group in groups.values():
        for own, other in zip(group, [*group[1:], *group[:1]], strict=True):
            if own.meta["problem"] != other.meta["problem"]:
                found.append(replace(own, id=f"{own.id}/crossed", responses=other.responses))
    return found
