"""Objectives with their inputs or weights changed: any pairwise objective, under any combination of modifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps

from torch import Tensor

from prefopt.objectives.modifiers import (
    Divergence,
    f_divergence,
    ld,
    ld_policy,
    wpo_weights,
    zero_reference,
)
from prefopt.objectives.types import (
    Extra,
    Losses,
    Needs,
    Objective,
    Pairs,
    as_float32,
    needs_of,
    unbound,
)

Change = Callable[[Pairs], Pairs]


def without_reference(objective: Objective) -> Objective:
    """The objective with 0 in place of the reference's log-probabilities."""
    return _changed(objective, zero_reference, needs_of(objective)._replace(reference=False))


def with_divergence(
    objective: Objective, *, divergence: Divergence, coefficient: float = 0.5
) -> Objective:
    """The objective under another divergence from the reference; see `f_divergence`."""
    change = partial(f_divergence, divergence=divergence, coefficient=coefficient)
    return _changed(objective, change, needs_of(objective))


def with_ld(objective: Objective, *, ld_alpha: float, scope: str) -> Objective:
    """The objective with the tails of longer responses weighed by `ld_alpha`; see `ld` and `ld_policy`."""
    changes = {"policy_and_reference": ld, "policy": ld_policy}
    if scope not in changes:
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(changes)}")
    change = partial(changes[scope], ld_alpha=ld_alpha)
    return _changed(objective, change, _with_extra(needs_of(objective), "common"))


def with_wpo(objective: Objective) -> Objective:
    """The objective with every loss times the pair's `wpo_weights`."""

    def weigh(pairs: Pairs, losses: Losses) -> Losses:
        weight: Tensor = wpo_weights(pairs)
        return Losses(losses.loss * weight, {**losses.terms, "wpo_weight": weight})

    if needs_of(objective).positional:
        name = unbound(objective).__name__
        raise ValueError(
            f"{name} sorts the batch: its losses belong to no pair that could be weighed"
        )
    need = _with_extra(needs_of(objective), "alignment")
    return _changed(objective, lambda pairs: pairs, need, finish=weigh)


def _with_extra(need: Needs, extra: Extra) -> Needs:
    return need._replace(extras=tuple(dict.fromkeys([*need.extras, extra])))


def _changed(
    objective: Objective,
    change: Change,
    need: Needs,
    *,
    finish: Callable[[Pairs, Losses], Losses] = lambda _, losses: losses,
) -> Objective:
    """A new objective that sees changed pairs, in its loss and in its running statistic alike."""
    if need.view != "pairs":
        raise ValueError(
            f"{unbound(objective).__name__} takes no pairs; this modifier has no meaning for it"
        )

    @wraps(unbound(objective))
    def modified(pairs: Pairs, **provided: object) -> Losses:
        losses = finish(pairs, objective(change(pairs), **provided))
        # The rewards are those of the changed pairs; log-probabilities are what the model gives.
        own = {
            "logps/chosen": as_float32(pairs.policy_chosen).detach(),
            "logps/rejected": as_float32(pairs.policy_rejected).detach(),
        }
        return Losses(losses.loss, {**losses.terms, **own})

    if need.running is not None:
        advance = need.running.advance

        def changed_advance(
            pairs: Pairs, state: Mapping[str, Tensor], **parameters: object
        ) -> Mapping[str, Tensor]:
            return advance(change(pairs), state, **parameters)

        need = need._replace(running=need.running._replace(advance=changed_advance))
    modified.__dict__["needs"] = need
    modified.__dict__["keywords"] = getattr(objective, "keywords", {})
    return modified
