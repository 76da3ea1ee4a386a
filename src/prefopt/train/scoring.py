"""Passes over examples without training: filling the reference cache and the step-0 guard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import ModelError
from prefopt.models.reference import LogpStore, Reference
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.plan import Pack, PackLimits, plan_steps
from prefopt.progress import progress
from prefopt.train.runtime import Runtime


class Packing(NamedTuple):
    """How examples are laid out and how many at a time."""

    layout: Layout
    limits: PackLimits

    def batches(self, examples: Sequence[Example], *, rank: int, world_size: int) -> list[Pack]:
        """Micro-batches of this process over all `examples`."""
        lengths = [e.row_lengths(self.layout) for e in examples]
        plans = plan_steps(
            lengths,
            range(len(examples)),
            batch_size=max(1, len(examples)),
            world_size=world_size,
            limits=self.limits,
        )
        return [pack for plan in plans for pack in plan.ranks[rank]]

    def collate(self, examples: Sequence[Example], pack: Pack) -> PackedBatch:
        """One batch."""
        rows = [[examples[i] for i in row] for row in pack.rows]
        return collate(rows, layout=self.layout, row_length=self.limits.row_length)


def fill_store(
    store: LogpStore,
    scorer: Scorer,
    examples: Sequence[Example],
    *,
    packing: Packing,
    runtime: Runtime,
) -> int:
    """Score under the reference whatever `store` lacks, shared out over processes; returns how many were scored.

    The store's `quantity` names the field of `TokenLogps` that is kept; `scorer` must compute it.

    Scored arrays are committed batch by batch, so a killed pass goes on where it stopped.
    """
    keys = [e.key(packing.layout) for e in examples]
    store.load(keys)
    todo = [e for e, key in _first_of_each(examples, keys) if key not in store.values]
    if not todo:
        return 0
    scorer.eval()
    packs = packing.batches(todo, rank=runtime.rank, world_size=runtime.world_size)
    with (
        store.session() if runtime.is_main else nullcontext(),
        progress("reference pass", len(packs), quiet=not runtime.is_main) as tick,
    ):
        for pack in packs:
            batch = packing.collate(todo, pack).to(runtime.device)
            with torch.no_grad(), runtime.autocast():
                values = getattr(scorer(batch), store.quantity).float()
            scored = runtime.gather(list(_split(batch, values).items()))
            store.add(dict(scored), write=runtime.is_main)
            tick()
    return len(todo)


def _first_of_each(
    examples: Sequence[Example], keys: Sequence[bytes]
) -> list[tuple[Example, bytes]]:
    seen: dict[bytes, Example] = {}
    for example, key in zip(examples, keys, strict=True):
        seen.setdefault(key, example)
    return [(example, key) for key, example in seen.items()]


def _split(batch: PackedBatch, logps: Tensor) -> dict[bytes, np.ndarray]:
    """Per-example arrays: scored tokens lie example by example."""
    counts = torch.bincount(batch.scored_group, minlength=len(batch.keys)).tolist()
    parts = np.split(logps.cpu().numpy(), np.cumsum(counts)[:-1]) if counts else []
    return dict(zip(batch.keys, parts, strict=True))


def policy_reference_gap(
    scorer: Scorer, reference: Reference, batch: PackedBatch, runtime: Runtime
) -> float | None:
    """Largest |policy - reference| per token on one batch, in nats; None without a reference.

    Where the policy starts as the reference this must be numerical noise: anything else means that margins do
    not start at zero and the whole run is off.
    """
    with torch.no_grad(), runtime.autocast():
        expected = reference.score(batch)
        if expected is None or not len(expected.logp):
            return None
        scorer.eval()
        return float((scorer(batch).logp.float() - expected.logp).abs().max())


def require_small_gap(gap: float, *, precision: str) -> float:
    """The bound for `precision`; raises `ModelError` when `gap` exceeds it."""
    bound = {"no": 1e-3, "fp16": 0.05, "bf16": 0.3}[precision]
    if gap > bound:
        raise ModelError(
            f"policy and reference differ by {gap:.3g} nats per token at step 0 (bound {bound:g}): they are not "
            "the same weights, or scoring depends on the batch; set reference_model if that is meant, or delete "
            "the cache_dir"
        )
    return bound
