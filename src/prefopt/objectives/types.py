"""What objectives take and return, and how they declare what they need. torch and the standard library only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Per-pair view of `Scores`. Every tensor is float32 `[P]`; log-probabilities are sums in nats."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    length_chosen: Tensor | None = None
    """Scored tokens of the chosen response."""
    length_rejected: Tensor | None = None
    score_chosen: Tensor | None = None
    """Annotated score; NaN where missing."""
    score_rejected: Tensor | None = None
    margin: Tensor | None = None
    """Per-pair margin of the data; NaN where missing."""


class Scores(NamedTuple):
    """Per-response quantities of one micro-batch. R responses, P pairs."""

    policy: Tensor
    """[R] summed (weighted) log-probability of the response's scored tokens, nats, float32."""
    reference: Tensor | None
    """[R] the same under the reference, detached; None for objectives without one."""
    length: Tensor
    """[R] number of scored tokens, float32."""
    chosen: Tensor
    """[P] int64 positions in R."""
    rejected: Tensor
    """[P] int64 positions in R."""
    group: Tensor
    """[R] int64, which prompt of the micro-batch the response belongs to."""
    score: Tensor
    """[R] annotated score, NaN where missing."""
    rank: Tensor
    """[R] annotated rank (1 best), NaN where missing."""
    label: Tensor
    """[R] 1 desirable, 0 undesirable, NaN where missing."""
    margin: Tensor
    """[P] per-pair margin of the data, NaN where missing."""
    statistics: Mapping[str, Tensor] = {}
    """[R] sums over scored tokens of further head statistics, only those asked for by name (`Needs`)."""

    def pairs(self) -> Pairs:
        """The view that pairwise objectives take."""
        reference = self.reference
        return Pairs(
            policy_chosen=self.policy[self.chosen],
            policy_rejected=self.policy[self.rejected],
            reference_chosen=None if reference is None else reference[self.chosen],
            reference_rejected=None if reference is None else reference[self.rejected],
            length_chosen=self.length[self.chosen],
            length_rejected=self.length[self.rejected],
            score_chosen=self.score[self.chosen],
            score_rejected=self.score[self.rejected],
            margin=self.margin,
        )


class Losses(NamedTuple):
    """Unreduced losses and the named quantities worth logging."""

    loss: Tensor
    """[P] for pairwise objectives, [R] for the others."""
    terms: Mapping[str, Tensor]
    """Detached tensors of the shape of `loss`, under the metric names users know (`rewards/chosen`, ...)."""


class Needs(NamedTuple):
    """What an objective has to be given."""

    view: str
    """`pairs` (takes `Pairs`, one loss per pair) or `responses` (takes `Scores`, one loss per response)."""
    reference: bool = True
    statistics: tuple[str, ...] = ()
    """Names of extra head statistics: `entropy`, `collision`."""


Objective: TypeAlias = Callable[[Pairs], Losses] | Callable[[Scores], Losses]
"""A pure function from per-response quantities to unreduced losses, parameters already bound."""

_F = TypeVar("_F", bound=Callable[..., Losses])


def needs(
    *, view: str, reference: bool = True, statistics: tuple[str, ...] = ()
) -> Callable[[_F], _F]:
    """Declare what an objective needs; read back with `needs_of`."""

    def mark(function: _F) -> _F:
        function.__dict__["needs"] = Needs(view, reference, statistics)
        return function

    return mark


def needs_of(objective: Objective) -> Needs:
    """The declaration of an objective, also through `functools.partial`."""
    function = objective
    while isinstance(function, partial):
        function = function.func
    declared = getattr(function, "needs", None)
    if not isinstance(declared, Needs):
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name} is not declared as an objective: decorate it with @needs(view=...)"
        )
    return declared


def require_reference(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor]:
    """The reference log-probabilities, or a clear error for callers who passed none."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError(f"{objective} needs reference_chosen and reference_rejected; got None")
    return pairs.reference_chosen, pairs.reference_rejected


def as_float32(tensor: Tensor) -> Tensor:
    """Losses are computed in float32 at least, whatever the compute dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
