"""`prefopt plan`: what a run will cost, without training: tokens, what sharing saves, peak memory."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.models.load import CausalModel
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.plan import Pack, Schedule
from prefopt.runs.memory import estimate_memory


def summarise(
    examples: Sequence[Example],
    schedule: Schedule,
    model: CausalModel,
    *,
    chunk_bytes: int,
    second_model: bool = False,
) -> dict[str, object]:
    """Facts of `plan.json`; tokens are counted over one epoch, memory in bytes per device.

    Args:
        second_model: the reference stays in memory beside the policy.
    """
    rows = [sum(e.row_lengths(Layout.ROWS)) for e in examples]
    layout = schedule.limits.layout
    stored = [sum(e.row_lengths(layout)) for e in examples]
    longest = max(range(len(examples)), key=lambda i: max(examples[i].row_lengths(layout)))
    largest, row_length = _largest_pack(schedule)
    batch = collate(
        [[examples[i] for i in row] for row in largest.rows], layout=layout, row_length=row_length
    )
    memory = estimate_memory(model, batch, chunk_bytes=chunk_bytes)
    if second_model:
        memory["reference"] = memory["weights"]
    return {
        "layout": str(layout),
        "steps": schedule.total_steps,
        "batch_size": schedule.batch_size,
        "world_size": schedule.world_size,
        "examples": len(examples),
        "responses": sum(len(e.tree.leaf) for e in examples),
        "pairs": sum(len(e.pairs) for e in examples),
        "tokens_rows": sum(rows),
        "tokens_tree": sum(stored),
        "tokens_scored": sum(e.scored_tokens for e in examples),
        "saved": 1 - sum(stored) / max(1, sum(rows)),
        "padded_tokens": _padded(schedule),
        "longest": {
            "id": examples[longest].id,
            "tokens": max(examples[longest].row_lengths(layout)),
        },
        "largest_batch": list(batch.ids),
        "memory": memory,
        "peak_memory_bytes": sum(memory.values()),
    }


def _largest_pack(schedule: Schedule) -> tuple[Pack, int | None]:
    """The micro-batch of the first epoch with most positions, padding included."""
    packs = [p for step in schedule.epoch(0) for rank in step.ranks for p in rank if p.rows]
    return max(packs, key=lambda p: _positions(p, schedule)), schedule.limits.row_length


def _positions(pack: Pack, schedule: Schedule) -> int:
    if schedule.limits.row_length is not None:
        return schedule.limits.row_length
    lengths = [n for i in pack.items for n in schedule.lengths[i]]
    return max(lengths) * len(lengths)


def _padded(schedule: Schedule) -> int:
    return sum(
        _positions(p, schedule)
        for step in schedule.epoch(0)
        for rank in step.ranks
        for p in rank
        if p.rows
    )
