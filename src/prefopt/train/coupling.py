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
    """A global batch, in the order of its record ids, and where its parts lie."""

    scores: Scores
    weights: Mapping[str, Tensor]
    responses: Sequence[Tensor]
    """Of each part, the positions of its responses."""
    pairs: Sequence[Tensor]
    """Of each part, the positions of its pairs."""


def join(parts: Sequence[Part]) -> Whole:
    """The parts as one batch.

    Records are ordered by id, so that sums, sorts and draws are the same however the batch was split.
    """
    scores = _concatenate([part.scores for part in parts], [len(part.ids) for part in parts])
    place = _places([i for part in parts for i in part.ids]).to(scores.policy.device)
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
        for kind in parts[0].weights
    }
    return Whole(
        joined,
        weights,
        to_response.split([len(part.scores.policy) for part in parts]),
        to_pair.split([len(part.scores.chosen) for part in parts]),
    )


def _places(ids: Sequence[str]) -> Tensor:
    """The position of each id in sorted order."""
    place = torch.empty(len(ids), dtype=torch.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__)] = torch.arange(len(ids))
    return place


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
