"""What the losses of a batch are averaged over: the weight of each item, and its total known from the data alone.

The loop divides by the total of the global batch before anything has run, so both forms must agree: a test compares
them for every kind of mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from prefopt.objectives import Mean, Scores
from prefopt.pack.batch import Example


def batch_weight(scores: Scores, pair_weight: Tensor, mean: Mean) -> Tensor:
    """Weight of each loss in the global mean: [P] for `pairs`, [R] for the others; float32, no gradient.

    Args:
        scores: the micro-batch.
        pair_weight: [P] weights of the data.
        mean: `pairs`: those weights. `tokens`: the length of each response that is to be imitated, 0 for the others.
            `responses`: 1 where the response is known to be desirable or not, else 0. `groups`: 1 for the best
            response of each prompt that has two ranked ones, where the loss of the list stands, else 0.
    """
    if mean == "pairs":
        return pair_weight
    if mean == "groups":
        return scores.heads().to(scores.length.dtype)
    chosen, rejected = (
        torch.zeros_like(scores.length).bool(),
        torch.zeros_like(scores.length).bool(),
    )
    chosen[scores.chosen] = True
    rejected[scores.rejected] = True
    own = torch.ones_like(chosen) if scores.mismatched is None else ~scores.mismatched
    if mean == "responses":
        # Chosen in one pair and rejected in another, a response without a label is neither.
        judged = (~torch.isnan(scores.label) | (chosen ^ rejected)) & own
        return judged.to(scores.length.dtype)
    has_pairs = torch.zeros_like(chosen)  # by prompt: there are no more prompts than responses
    has_pairs[scores.group[scores.chosen]] = True
    unpaired = ~has_pairs[scores.group] & (scores.label != 0) & own
    return scores.length * (chosen | unpaired)


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
    paired = {c for c, _ in example.pairs} ^ {r for _, r in example.pairs}
    known = {i for i, label in enumerate(example.label) if label is not None} | paired
    return float(sum(not _is_mismatched(example, i) for i in known))


def _groups(example: Example) -> float:
    own = [i for i in range(len(example.score)) if not _is_mismatched(example, i)]
    scores, ranks = [example.score[i] for i in own], [example.rank[i] for i in own]
    by_rank = None in scores and (None not in ranks or all(s is None for s in scores))
    placed = [value for value in (ranks if by_rank else scores) if value is not None]
    return float(len(placed) >= 2)


_TOTALS: Mapping[Mean, Callable[[Example], float]] = {
    "pairs": lambda example: float(sum(example.pair_weight)),
    "tokens": _tokens,
    "responses": _responses,
    "groups": _groups,
}
