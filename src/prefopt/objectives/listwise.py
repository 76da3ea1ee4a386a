"""Objectives for rankings: all responses to a prompt at once, one term per response."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.objectives.parameters import positive
from prefopt.objectives.types import Losses, Scores, as_float32, needs, require


@needs(view="responses", mean="groups", annotations=("ranking",))
def plackett_luce(scores: Scores, *, beta: float = 0.1) -> Losses:
    """Plackett-Luce DPO: the likelihood of a whole ranking of K responses, best first.

    ``loss = log sum over j in L of exp(beta * rho_j) - beta * rho, L = the response and all that is not better``

    The terms of a prompt's responses sum to the negative log-likelihood of its ranking; averages are per prompt. Order
    is the rank (1 best), else the score (highest best). Tied responses stand in each other's L (Breslow's form), so a
    tie of two costs 2 ln 2 when they are equal. Responses without rank and score, and mismatched ones, take no part and
    have loss 0; so does the last of a ranking. ln K! at theta = reference; K = 2 is DPO. An empty response has rho = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.

    Source: Plackett 1975; Luce 1959; Rafailov et al. 2023, arXiv 2305.18290, appendix; also a baseline in
        Liu et al. 2024 (LiPO), arXiv 2402.01878.
    Departures: ties.
    """
    positive("plackett_luce", beta=beta)
    reference = require(scores.reference, "reference", "plackett_luce")
    reward = beta * (as_float32(scores.policy) - reference)
    # Differences before the exponential: exact in float32 however large the rewards are.
    excess = reward[None, :] - reward[:, None]
    loss = torch.where(_not_better(scores), excess, -torch.inf).logsumexp(dim=1)
    return Losses(loss, {"reward": reward.detach()})


def _not_better(scores: Scores) -> Tensor:
    """[R, R] bool: whether j is in L(i). Everything is in its own, so no row is empty and no gradient NaN."""
    order = scores.order()
    if scores.mismatched is not None:
        order = order.masked_fill(scores.mismatched, torch.nan)
    same = scores.group[None, :] == scores.group[:, None]
    # A comparison with NaN is False.
    behind = same & (order[None, :] >= order[:, None])
    return behind | torch.eye(len(order), dtype=torch.bool, device=order.device)
