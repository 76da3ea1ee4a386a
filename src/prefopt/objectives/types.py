"""What objectives take and return, and how they declare what they need. torch and the standard library only.

An objective is a pure function: tensors and bound keyword parameters in, unreduced losses out. What it cannot
take from its own arguments (the rest of a batch, a running statistic, another model's entropy) it declares here,
and the learner provides it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """P pairs of responses. Every tensor is float `[P]`; log-probabilities are sums over scored tokens in nats."""

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
    """Margin that the data asks for, in units of the implicit reward; NaN where missing."""
    policy_gold: Tensor | None = None
    """Log-probability of the best response to the same prompt (TPO); the chosen one where there is no better."""
    length_gold: Tensor | None = None
    kl_chosen: Tensor | None = None
    """Sum over the response's positions of KL(reference || policy), nats, with gradient (TDPO)."""
    kl_rejected: Tensor | None = None
    dispersion_chosen: Tensor | None = None
    """Sum over the response's positions of the reference's entropy / log |V|, each in 0..1 (MallowsPO)."""
    dispersion_rejected: Tensor | None = None
    alignment_chosen: Tensor | None = None
    """Sum over the response's tokens of log p_t - log sum_v p_v^2 under the policy, detached, nats (WPO)."""
    alignment_rejected: Tensor | None = None
    policy_chosen_common: Tensor | None = None
    """Like `policy_chosen`, over the first min(length_chosen, length_rejected) scored tokens only (LD-DPO)."""
    policy_rejected_common: Tensor | None = None
    reference_chosen_common: Tensor | None = None
    reference_rejected_common: Tensor | None = None


class Scores(NamedTuple):
    """Per-response quantities of one batch. R responses, P pairs."""

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
    """[R] int64, which prompt of the batch the response belongs to."""
    score: Tensor
    """[R] annotated score, NaN where missing."""
    rank: Tensor
    """[R] annotated rank (1 best), NaN where missing."""
    label: Tensor
    """[R] 1 desirable, 0 undesirable, NaN where missing."""
    margin: Tensor
    """[P] per-pair margin of the data, NaN where missing."""
    mismatched: Tensor | None = None
    """[R] bool: an answer to another prompt, there only to estimate the KL (KTO). None: there are none."""
    kl: Tensor | None = None
    """[R] see `Pairs.kl_chosen`; so are the next two."""
    dispersion: Tensor | None = None
    alignment: Tensor | None = None
    policy_chosen_common: Tensor | None = None
    """[P] see `Pairs`; so are the next three."""
    policy_rejected_common: Tensor | None = None
    reference_chosen_common: Tensor | None = None
    reference_rejected_common: Tensor | None = None

    def pairs(self, *, gold: bool = False) -> Pairs:
        """The view that pairwise objectives take; `gold` also looks for the best response of each pair's prompt."""
        chosen, rejected = self.chosen, self.rejected

        def take(values: Tensor | None, index: Tensor) -> Tensor | None:
            return None if values is None else values[index]

        best = self.gold() if gold else None
        return Pairs(
            policy_chosen=self.policy[chosen],
            policy_rejected=self.policy[rejected],
            reference_chosen=take(self.reference, chosen),
            reference_rejected=take(self.reference, rejected),
            length_chosen=self.length[chosen],
            length_rejected=self.length[rejected],
            score_chosen=self.score[chosen],
            score_rejected=self.score[rejected],
            margin=self.margin,
            policy_gold=None if best is None else self.policy[best],
            length_gold=None if best is None else self.length[best],
            kl_chosen=take(self.kl, chosen),
            kl_rejected=take(self.kl, rejected),
            dispersion_chosen=take(self.dispersion, chosen),
            dispersion_rejected=take(self.dispersion, rejected),
            alignment_chosen=take(self.alignment, chosen),
            alignment_rejected=take(self.alignment, rejected),
            policy_chosen_common=self.policy_chosen_common,
            policy_rejected_common=self.policy_rejected_common,
            reference_chosen_common=self.reference_chosen_common,
            reference_rejected_common=self.reference_rejected_common,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """The same with `change` applied to every tensor that is there."""
        return self._replace(
            **{name: change(value) for name, value in self._asdict().items() if value is not None}
        )

    def order(self) -> Tensor:
        """[R] smaller is better, NaN for what has no place.

        Minus the score where all responses to the prompt have one, else the rank where all have one, else minus the
        scores that there are, else the ranks. Answers to other prompts have no place.
        """
        same = self.group[None, :] == self.group[:, None]
        own = same if self.mismatched is None else same & ~self.mismatched[None, :]

        def complete(values: Tensor) -> Tensor:
            return ~(own & torch.isnan(values)[None, :]).any(dim=1)

        some = (own & ~torch.isnan(self.score)[None, :]).any(dim=1)
        by_rank = ~complete(self.score) & (complete(self.rank) | ~some)
        order = torch.where(by_rank, self.rank, -self.score)
        return order if self.mismatched is None else order.masked_fill(self.mismatched, torch.nan)

    def heads(self) -> Tensor:
        """[R] bool: the best response of each prompt with at least two in an order, the first of equals."""
        order = self.order()
        same = self.group[None, :] == self.group[:, None]
        index = torch.arange(len(order), device=order.device)
        ahead = (order[None, :] < order[:, None]) | (
            (order[None, :] == order[:, None]) & (index[None, :] < index[:, None])
        )
        placed = ~torch.isnan(order)
        several = (same & placed[None, :]).sum(dim=1) >= 2
        return placed & several & ~(same & ahead).any(dim=1)

    def gold(self) -> Tensor:
        """[P] position of the best response to each pair's prompt; the chosen one where nothing is ranked above it."""
        order = self.order()[None, :]
        own = order[0, self.chosen][:, None]
        better = (self.group[None, :] == self.group[self.chosen][:, None]) & (order < own)
        # Where order is NaN the comparison is False, so unranked data keeps the chosen response.
        key = torch.where(better, order, torch.inf)
        if not key.shape[1]:
            return self.chosen
        best = key.min(dim=1)
        return torch.where(torch.isfinite(best.values), best.indices, self.chosen)


class Losses(NamedTuple):
    """Unreduced losses and the named quantities worth logging."""

    loss: Tensor
    """[P] for pairwise objectives, [R] for the others."""
    terms: Mapping[str, Tensor]
    """Detached tensors of the shape of `loss`, under the metric names users know (`rewards/chosen`, ...)."""


Mean = Literal["pairs", "tokens", "responses", "groups"]
"""Over what the losses of a global batch are averaged: pairs (by their weight), scored tokens, responses, prompts."""

Extra = Literal["kl", "dispersion", "alignment", "common", "gold"]
"""What costs extra to compute: the fields of `Pairs` and `Scores` of that name."""

Annotation = Literal["scores", "margins", "labels", "ranking"]
"""What every record has to bring."""


class Running(NamedTuple):
    """A statistic carried from step to step and kept in checkpoints; all values are float64 tensors `[]`."""

    start: Mapping[str, float]
    """Names and values before the first step."""
    advance: Callable[..., Mapping[str, Tensor]]
    """(detached global batch, state before, **the objective's parameters) -> state of this step, all values."""
    arguments: tuple[str, ...]
    """The values that the objective takes as keyword arguments, under the same names."""


class Needs(NamedTuple):
    """What an objective has to be given."""

    view: Literal["pairs", "responses"]
    """`pairs` (takes `Pairs`, one loss per pair) or `responses` (takes `Scores`, one loss per response)."""
    reference: bool = True
    mean: Mean = "pairs"
    extras: tuple[Extra, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    mismatched: bool = False
    """Answers to other prompts are needed (KTO's KL estimate)."""
    coupled: bool = False
    """The loss of an item depends on the other items: the learner hands over the whole global batch, whatever
    the micro-batches and processes are."""
    running: Running | None = None
    """What is carried from step to step."""
    random: bool = False
    """Takes a `generator`, seeded by run and step."""
    positional: bool = False
    """Losses belong to positions of a sorted batch, not to pairs, so that weights of pairs have no meaning."""


Objective: TypeAlias = Callable[..., Losses]
"""A pure function from `Pairs` or `Scores` to unreduced losses; parameters are keyword arguments."""

_F = TypeVar("_F", bound=Callable[..., Losses])


def needs(  # noqa: PLR0913 - the fields of `Needs`
    *,
    view: Literal["pairs", "responses"],
    reference: bool = True,
    mean: Mean | None = None,
    extras: tuple[Extra, ...] = (),
    annotations: tuple[Annotation, ...] = (),
    mismatched: bool = False,
    coupled: bool = False,
    running: Running | None = None,
    random: bool = False,
    positional: bool = False,
) -> Callable[[_F], _F]:
    """Declare what an objective needs (see `Needs`); read back with `needs_of`. `mean` defaults to the view."""

    def mark(function: _F) -> _F:
        function.__dict__["needs"] = Needs(
            view,
            reference,
            mean or view,
            extras,
            annotations,
            mismatched,
            coupled,
            running,
            random,
            positional,
        )
        return function

    return mark


def unbound(objective: Objective) -> Objective:
    """The function behind `functools.partial`s and modifiers."""
    while True:
        if isinstance(objective, partial):
            objective = cast("Objective", objective.func)
        elif inner := getattr(objective, "__wrapped__", None):
            objective = cast("Objective", inner)
        else:
            return objective


def needs_of(objective: Objective) -> Needs:
    """The declaration of an objective, also through `functools.partial`."""
    function = objective
    while isinstance(function, partial):
        function = cast("Objective", function.func)
    declared = getattr(function, "needs", None)
    if not isinstance(declared, Needs):
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name} is not declared as an objective: decorate it with @needs(view=...)"
        )
    return declared


def parameters_of(objective: Objective) -> dict[str, object]:
    """The keyword parameters that a user may set, with their defaults; what the learner provides is not among them."""
    need = needs_of(objective)
    provided = {"generator", *(need.running.arguments if need.running else ())}
    return {
        name: parameter.default
        for name, parameter in inspect.signature(unbound(objective)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in provided
    }


def require(value: Tensor | None, field: str, objective: str) -> Tensor:
    """The tensor, or a clear error for callers who passed none."""
    if value is None:
        raise ValueError(f"{objective} needs {field}; got None")
    return as_float32(value)


def require_reference(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor]:
    """The reference log-probabilities, or a clear error for callers who passed none."""
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        raise ValueError(f"{objective} needs reference_chosen and reference_rejected; got None")
    return as_float32(pairs.reference_chosen), as_float32(pairs.reference_rejected)


def as_float32(tensor: Tensor) -> Tensor:
    """Losses are computed in float32 at least, whatever the compute dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
