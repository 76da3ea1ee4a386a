"""What the losses of a batch are averaged over: the weight of each item, and its total known from the data alone.

The loop divides by the total of the global batch before anything has run, so both forms must agree: a test compares
them for every kind of mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prefopt.pack.batch import Example, PackedBatch

Mean = Literal["pairs", "tokens", "responses", "groups"]


def batch_weight(batch: PackedBatch, length: Tensor, mean: Mean) -> Tensor:
    """Weight of each loss in the global mean: [P] for `pairs`, [R] for the others; float32, no gradient.

    Args:
        batch: the micro-batch.
        length: [R] scored tokens.
        mean: `pairs`: the weights of the data. `tokens`: the length of each response that is to be imitated, 0 for
            the others. `responses`: 1 where the response is known to be desirable or not, else 0. `groups`: 1
            everywhere, with one total per prompt whose responses are ranked.
    """
    if mean == "pairs":
        return batch.pair_weight
    if mean == "tokens":
        return length * _wanted(batch)
    if mean == "responses":
        return _judged(batch).to(length.dtype)
    return torch.ones_like(length)


def _paired(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """[R] bool: chosen in some pair, rejected in some pair."""
    chosen = torch.zeros(len(batch.group), dtype=torch.bool, device=batch.group.device)
    rejected = chosen.clone()
    chosen[batch.chosen] = True
    rejected[batch.rejected] = True
    return chosen, rejected


def _judged(batch: PackedBatch) -> Tensor:
    chosen, rejected = _paired(batch)
    return (~torch.isnan(batch.label) | chosen | rejected) & ~batch.mismatched


def _wanted(batch: PackedBatch) -> Tensor:
    chosen, _ = _paired(batch)
    groups = len(batch.ids)
    has_pairs = torch.zeros(groups, dtype=torch.bool, device=batch.group.device)
    has_pairs[batch.pair_group] = True
    unpaired = ~has_pairs[batch.group] & (batch.label != 0) & ~batch.mismatched
    return (chosen | unpaired).to(torch.float32)


def example_weight(example: Example, mean: Mean) -> float:
    """The total that `batch_weight` gives the example; for `groups`, 1 where at least two responses are ranked."""
    return _TOTALS[mean](example)


def _tokens(example: Example) -> float:
    _, response = example.tree.incidences()
    count = np.bincount(response, minlength=len(example.tree.leaf))
    return float(sum(count[i] for i in _wanted_responses(example)))


def _wanted_responses(example: Example) -> list[int]:
    if example.pairs:
        return sorted({chosen for chosen, _ in example.pairs})
    return [
        i for i, label in enumerate(example.label) if label != 0 and not _is_mismatched(example, i)
    ]


def _is_mismatched(example: Example, response: int) -> bool:
    return bool(example.mismatched) and example.mismatched[response]


def _responses(example: Example) -> float:
    paired = {i for pair in example.pairs for i in pair}
    known = {i for i, label in enumerate(example.label) if label is not None} | paired
    return float(sum(not _is_mismatched(example, i) for i in known))


def _groups(example: Example) -> float:
    ranked = [
        i
        for i, (rank, score) in enumerate(zip(example.rank, example.score, strict=True))
        if not (rank is None and score is None) and not _is_mismatched(example, i)
    ]
    return float(len(ranked) >= 2)


_TOTALS: Mapping[Mean, Callable[[Example], float]] = {
    "pairs": lambda example: float(sum(example.pair_weight)),
    "tokens": _tokens,
    "responses": _responses,
    "groups": _groups,
}
