"""What pairwise objectives share: log-ratios, length means, safe logarithms, and the metrics they all log."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.objectives.types import Pairs, as_float32, require, require_reference


def log_ratios(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor]:
    """rho of the chosen and of the rejected response, `[P]` nats: log-probability sum, policy minus reference."""
    reference_chosen, reference_rejected = require_reference(pairs, objective)
    return (
        as_float32(pairs.policy_chosen) - reference_chosen,
        as_float32(pairs.policy_rejected) - reference_rejected,
    )


def sums(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """S of the chosen and of the rejected response under the policy, `[P]` nats."""
    return as_float32(pairs.policy_chosen), as_float32(pairs.policy_rejected)


def means(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor]:
    """m of the chosen and of the rejected response under the policy: mean log-probability per scored token, `[P]`.

    A response without scored tokens has mean 0 and no gradient.
    """
    chosen, rejected = lengths(pairs, objective)
    return as_float32(pairs.policy_chosen) / chosen, as_float32(pairs.policy_rejected) / rejected


def lengths(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor]:
    """Scored tokens of the chosen and the rejected response as divisors, at least 1, `[P]`."""
    chosen = require(pairs.length_chosen, "length_chosen", objective)
    rejected = require(pairs.length_rejected, "length_rejected", objective)
    return chosen.clamp(min=1), rejected.clamp(min=1)


def reward_terms(pairs: Pairs, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """The metrics that every pairwise objective logs, from its (implicit) rewards `[P]`; all detached."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": as_float32(pairs.policy_chosen).detach(),
        "logps/rejected": as_float32(pairs.policy_rejected).detach(),
    }


def log1mexp(x: Tensor, *, ceiling: float = -1e-6) -> Tensor:
    """log(1 - e^x) for x <= 0, finite in value and gradient everywhere.

    Above `ceiling` value and slope stay what they are there (-13.8, -1e6): at x = 0, a response of certain tokens,
    the exact value is minus infinity, and a clamp would silently stop its gradient. Both branches are computed on
    inputs that suit them: with a single `where` the branch not taken turns the gradient into NaN.
    """
    x = x + (x.clamp(max=ceiling) - x).detach()
    near = x > -0.6931471805599453
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
