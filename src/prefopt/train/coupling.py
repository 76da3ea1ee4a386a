"""Objectives whose loss of one item depends on the others: they see the whole global batch, however it is split.

Before the micro-batches of a step, all of them are scored once without gradient and gathered over processes. Each
micro-batch then evaluates the objective on everything, with its own part live. The gradients of the parts add up to
the gradient of the whole, so a sort over the batch (AOT) or a batch mean (KTO) does not depend on micro-batches or
processes. The price is one more forward pass, and only where the global batch has more than one part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.objectives import Losses, Scores

_PER_PAIR = {
    "chosen",
    "rejected",
    "margin",
    "policy_chosen_common",
    "policy_rejected_common",
    "reference_chosen_common",
    "reference_rejected_common",
}
"""Fields of `Scores` with one value a pair; the others have one a response."""


class Part(NamedTuple):
    """One micro-batch of a global batch."""

    ids: tuple[str, ...]
    scores: Scores
    weights: Mapping[str, Tensor]
    """Weight of each loss, by kind of mean."""

    def to(self, device: torch.device) -> Part:
        """The same part on `device`, without gradient."""
        scores = self.scores.each(lambda values: values.detach().to(device))
        return Part(self.ids, scores, {k: v.to(device) for k, v in self.weights.items()})


class Whole(NamedTuple):
    """A global batch, in the order of its record ids, and where one part of it lies."""

    scores: Scores
    weights: Mapping[str, Tensor]
    responses: Tensor
    """Positions of the part's responses."""
    pairs: Tensor
    """Positions of the part's pairs."""


def join(parts: Sequence[Part], own: int, live: Part) -> Whole:
    """The global batch with part number `own` replaced by its live form.

    Records are ordered by id, so that sums, sorts and draws are the same however the batch was split.
    """
    parts = [live if i == own else part for i, part in enumerate(parts)]
    device = live.scores.policy.device
    scores = _concatenate([part.scores for part in parts], [len(part.ids) for part in parts])
    ids = [i for part in parts for i in part.ids]
    place = torch.empty(len(ids), dtype=torch.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__)] = torch.arange(len(ids))
    place = place.to(device)
    responses = torch.argsort(place[scores.group], stable=True)
    pairs = torch.argsort(place[scores.group[scores.chosen]], stable=True)
    to_response, to_pair = _inverse(responses), _inverse(pairs)
    joined = scores._replace(
        **{
            name: value[pairs if name in _PER_PAIR else responses]
            for name, value in scores._asdict().items()
            if value is not None
        }
    )
    joined = joined._replace(
        chosen=to_response[joined.chosen],
        rejected=to_response[joined.rejected],
        group=place[joined.group],
    )
    weights = {
        kind: torch.cat([part.weights[kind] for part in parts])[
            pairs if kind == "pairs" else responses
        ]
        for kind in live.weights
    }
    return Whole(
        joined,
        weights,
        to_response[_range([len(part.scores.policy) for part in parts], own)],
        to_pair[_range([len(part.scores.chosen) for part in parts], own)],
    )


def _concatenate(scores: Sequence[Scores], groups: Sequence[int]) -> Scores:
    """Several micro-batches as one, with their indices made global."""
    first, group, moved = 0, 0, list[Scores]()
    for one, count in zip(scores, groups, strict=True):
        moved.append(
            one._replace(
                chosen=one.chosen + first, rejected=one.rejected + first, group=one.group + group
            )
        )
        first += len(one.policy)
        group += count
    return Scores(*(_cat(list(values)) for values in zip(*moved, strict=True)))  # pyright: ignore[reportArgumentType] - None only where every part has None


def _cat(values: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [value for value in values if value is not None]
    return torch.cat(tensors) if tensors else None


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse


def _range(counts: Sequence[int], own: int) -> slice:
    start = sum(counts[:own])
    return slice(start, start + counts[own])


def own_share(losses: Losses, weight: Tensor, own: Tensor) -> Losses:
    """The losses of one part, with the gradient that its items have on the losses of all others.

    That gradient is carried by a term of value zero, spread over the part's losses by their weight.
    """
    weighted = losses.loss * weight
    others = weighted.sum() - weighted[own].sum()
    total = weight[own].sum()
    carried = (others - others.detach()) / torch.where(total > 0, total, 1.0)
    terms = {name: value[own] for name, value in losses.terms.items()}
    return Losses(losses.loss[own] + carried, terms)
