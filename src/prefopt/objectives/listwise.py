"""Objectives for rankings: all responses to a prompt at once."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.objectives.parameters import positive
from prefopt.objectives.types import Losses, Scores, as_float32, needs, require


@needs(view="responses", mean="groups", annotations=("ranking",))
def plackett_luce(scores: Scores, *, beta: float = 0.1) -> Losses:
    """Plackett-Luce DPO: the likelihood of a whole ranking of K responses, best first.

    ``loss = sum over i of (log sum over j in L(i) of exp(beta * rho_j) - beta * rho_i), L(i) = i and all not better``

    The negative log-likelihood of a prompt's ranking. It stands at the best response (the first of equals), all others
    have loss 0; averages are per prompt. Order is that of the scores (highest best) or, without them, of the ranks.
    Tied responses stand in each other's L (Breslow's form), so a tie of two costs 2 ln 2 when they are equal. Responses
    without a place in the order, and mismatched ones, take no part. ln K! at theta = reference; K = 2 is DPO. An empty
    response has rho = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.

    Source: Plackett 1975; Luce 1959; Rafailov et al. 2023, arXiv 2305.18290, appendix; also a baseline in
        Liu et al. 2024 (LiPO), arXiv 2402.01878.
    Departures: ties.
    """
    positive("plackett_luce", beta=beta)
    reference = require(scores.reference, "reference", "plackett_luce")
    reward = beta * (as_float32(scores.policy) - reference)
    order = scores.order()
    same = scores.group[None, :] == scores.group[:, None]
    # Differences before the exponential: exact in float32 however large the rewards are.
    excess = reward[None, :] - reward[:, None]
    term = torch.where(_not_better(order, same), excess, -torch.inf).logsumexp(dim=1)
    total = torch.where(same, term[None, :], 0.0).sum(dim=1)
    return Losses(torch.where(scores.heads(), total, 0.0), {"reward": reward.detach()})


def _not_better(order: Tensor, same: Tensor) -> Tensor:
    """[R, R] bool: whether j is in L(i). Everything is in its own, so no row is empty and no gradient NaN."""
    # A comparison with NaN is False.
    behind = same & (order[None, :] >= order[:, None])
    return behind | torch.eye(len(order), dtype=torch.bool, device=order.device)
