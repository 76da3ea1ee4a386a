"""The packing plan: which examples make up each optimiser step, and how each process packs its share.

A pure function of (row lengths, order, limits, world size). The composition of a global batch depends on the
order and the batch size alone, so any split into micro-batches or processes yields the same gradient.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefopt.pack.batch import Layout

PACK_OVERHEAD = 256
"""What one more micro-batch costs, in positions; measured on CPU between 100 (20M) and 350 (0.6M parameters)."""


class Pack(NamedTuple):
    """One micro-batch: example indices, by row. An empty pack keeps ranks in step."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def items(self) -> tuple[int, ...]:
        """All example indices, row by row."""
        return tuple(i for row in self.rows for i in row)


class StepPlan(NamedTuple):
    """One optimiser step."""

    items: tuple[int, ...]
    """The global batch: example indices in order."""
    ranks: tuple[tuple[Pack, ...], ...]
    """Micro-batches of each process; every process has the same number of them."""


class PackLimits(NamedTuple):
    """What fits into one micro-batch."""

    layout: Layout
    items: int
    """At most this many examples (`per_device_train_batch_size`)."""
    tokens: int | None = None
    """At most this many positions, padding included; replaces `items` when given."""
    row_length: int | None = None
    """PACKED layout: positions of the one row."""


def shuffled(count: int, *, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of range(count) that depends on seed and epoch only."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return tuple(int(i) for i in generator.permutation(count))


def plan_steps(
    lengths: Sequence[tuple[int, ...]],
    order: Sequence[int],
    *,
    batch_size: int,
    world_size: int,
    limits: PackLimits,
) -> list[StepPlan]:
    """The optimiser steps of one pass over `order`.

    Args:
        lengths: per example, the tokens of each row it takes (`Example.row_lengths`).
        order: example indices; an index may occur more than once.
        batch_size: examples per optimiser step over all processes; the last step may be smaller.
        world_size: number of processes.
        limits: what fits into one micro-batch.

    An example larger than the token limit gets a micro-batch of its own.
    """
    steps: list[StepPlan] = []
    for start in range(0, len(order), batch_size):
        items = tuple(order[start : start + batch_size])
        shares = [_packs(share, lengths, limits) for share in _deal(items, lengths, world_size)]
        count = max(len(share) for share in shares)
        steps.append(
            StepPlan(items, tuple(tuple(s) + (Pack(()),) * (count - len(s)) for s in shares))
        )
    return steps


def _deal(
    items: Sequence[int], lengths: Sequence[tuple[int, ...]], world_size: int
) -> list[list[int]]:
    """Longest first to the least loaded process: every optimiser step waits for the slowest one."""
    if world_size == 1:
        return [list(items)]
    load = [0] * world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for i in sorted(items, key=lambda i: -sum(lengths[i])):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        shares[rank].append(i)
        load[rank] += sum(lengths[i])
    return shares


def _packs(
    share: Sequence[int], lengths: Sequence[tuple[int, ...]], limits: PackLimits
) -> list[Pack]:
    ordered = sorted(share, key=lambda i: (-max(lengths[i]), i))
    if limits.layout is Layout.PACKED:
        return _first_fit(ordered, lengths, limits)
    return _cut([(i, lengths[i]) for i in ordered], limits)


def _cut(ordered: Sequence[tuple[int, tuple[int, ...]]], limits: PackLimits) -> list[Pack]:
    """The cheapest cut of examples, longest first, into micro-batches padded to their longest row.

    A micro-batch costs its positions, padding included, plus `PACK_OVERHEAD`. Dynamic programming over the
    place of the last cut: `best[n]` is the least cost of the first n examples.
    """
    best = [0.0] + [float("inf")] * len(ordered)
    start_of = [0] * (len(ordered) + 1)
    for start in range(len(ordered)):
        width = max(ordered[start][1])
        rows = 0
        for end in range(start + 1, len(ordered) + 1):
            rows += len(ordered[end - 1][1])
            if end - start > 1 and not _fits(end - start, width * rows, limits):
                break
            cost = best[start] + width * rows + PACK_OVERHEAD
            if cost < best[end]:
                best[end], start_of[end] = cost, start
    packs: list[Pack] = []
    end = len(ordered)
    while end:
        packs.append(Pack(tuple((i,) for i, _ in ordered[start_of[end] : end])))
        end = start_of[end]
    return packs[::-1]


def _fits(items: int, tokens: int, limits: PackLimits) -> bool:
    return items <= limits.items if limits.tokens is None else tokens <= limits.tokens


def _first_fit(
    ordered: Sequence[int], lengths: Sequence[tuple[int, ...]], limits: PackLimits
) -> list[Pack]:
    """First-fit decreasing into rows of constant length, one row a micro-batch."""
    capacity = limits.row_length or 0
    bins: list[list[int]] = []
    free: list[int] = []
    for i in ordered:
        need = sum(lengths[i])
        slot = next((b for b, room in enumerate(free) if room >= need), None)
        if slot is None:
            bins.append([])
            free.append(capacity)
            slot = len(bins) - 1
        bins[slot].append(i)
        free[slot] -= need
    return [Pack((tuple(group),)) for group in bins]


def row_length_for(lengths: Sequence[tuple[int, ...]], limits: PackLimits) -> int:
    """Positions of a packed row: the token limit, or room for `items` of the longest, in blocks of 128."""
    longest = max((sum(rows) for rows in lengths), default=1)
    wanted = limits.tokens if limits.tokens is not None else limits.items * longest
    return -(-max(wanted, longest) // 128) * 128


class Schedule(NamedTuple):
    """All optimiser steps of a run, epoch after epoch, computed when they are reached.

    With several stages all epochs of one come before those of the next; no batch holds examples of two.
    """

    lengths: tuple[tuple[int, ...], ...]
    batch_size: int
    world_size: int
    limits: PackLimits
    seed: int
    epochs: float
    max_steps: int | None = None
    """Optimiser steps of the run in place of `epochs`; with several stages it may only end the run earlier or later."""
    stage: tuple[int, ...] = ()
    """Stage of each example, lower ones first; empty: one stage."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass over the data, the last smaller one (of each stage) included."""
        return sum(-(-len(members) // self.batch_size) for members in self.members())

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run: `max_steps`, or `epochs` passes over each stage."""
        if self.max_steps is not None:
            return self.max_steps
        return sum(self._steps(members) for members in self.members())

    def members(self) -> list[list[int]]:
        """Example indices of each stage, in the order of the stages."""
        if not self.stage:
            return [list(range(len(self.lengths)))]
        found: dict[int, list[int]] = {}
        for i, stage in enumerate(self.stage):
            found.setdefault(stage, []).append(i)
        return [found[stage] for stage in sorted(found)]

    def stage_ends(self) -> list[int]:
        """Optimiser steps that are done when each stage is; the last stage ends with the run."""
        ends = list(itertools.accumulate(self._steps(members) for members in self.members()))
        last = ends[-1] if self.max_steps is None else self.max_steps
        return [min(end, last) for end in ends[:-1]] + [last]

    def _steps(self, members: Sequence[int]) -> int:
        return int(np.ceil(self.epochs * -(-len(members) // self.batch_size) - 1e-9))

    def epoch(self, number: int) -> list[StepPlan]:
        """The steps of one epoch of every stage, one stage after another."""
        stages = enumerate(self.members())
        return [step for k, members in stages for step in self._epoch(members, k, number)]

    def _epoch(self, members: Sequence[int], place: int, number: int) -> list[StepPlan]:
        # A stage draws like an epoch of its own, far beyond any that is reached, so that no two stages share orders.
        drawn = shuffled(len(members), seed=self.seed, epoch=number + (place << 32))
        return plan_steps(
            self.lengths,
            [members[i] for i in drawn],
            batch_size=self.batch_size,
            world_size=self.world_size,
            limits=self.limits,
        )

    def from_step(self, start: int) -> Iterator[tuple[int, StepPlan]]:
        """(step number, plan) from `start` to the end of the run."""
        first = 0
        for place, (members, end) in enumerate(zip(self.members(), self.stage_ends(), strict=True)):
            step = max(start, first)
            per_epoch = -(-len(members) // self.batch_size)
            while step < end:
                number, within = divmod(step - first, per_epoch)
                for plan in self._epoch(members, place, number)[within : within + end - step]:
                    yield step, plan
                    step += 1
            first = end

    def digest(self) -> str:
        """Identity of what is trained on, step by step; independent of processes and micro-batches."""
        facts = [self.batch_size, self.seed, self.lengths, self.total_steps]
        stages = self.members()
        if len(stages) > 1:
            facts += [stages, [self._steps(members) for members in stages]]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
