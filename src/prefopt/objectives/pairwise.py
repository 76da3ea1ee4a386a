"""Pairwise objectives with a reference: one loss per (chosen, rejected) pair.

Symbols: S = summed log-probability of a response, rho = S_policy - S_reference (log-ratio),
h = rho_chosen - rho_rejected, z = beta * h, sigma = logistic function. All in nats, all `[P]`.
Nothing here reduces, gathers, logs or reads a configuration.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.types import Losses, Pairs, as_float32, needs, require_reference


@needs(view="pairs")
def dpo(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Direct Preference Optimization: ``-log sigma(beta * h)`` per pair.

    Args:
        pairs: summed log-probabilities `[P]` in nats, reference required.
        beta: strength of the implicit KL anchor, > 0. With policy == reference the loss is ln 2 and
            d loss / d h = -beta / 2.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7. Departures: none; no label smoothing (that is cDPO).
    """
    z, terms = _implicit(pairs, beta, "dpo")
    return Losses(-F.logsigmoid(z), terms)


def _implicit(pairs: Pairs, beta: float, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """z and the reward metrics that all pairwise objectives with a reference log."""
    reference_chosen, reference_rejected = require_reference(pairs, name)
    ratio_chosen = as_float32(pairs.policy_chosen) - as_float32(reference_chosen)
    ratio_rejected = as_float32(pairs.policy_rejected) - as_float32(reference_rejected)
    z = beta * (ratio_chosen - ratio_rejected)
    chosen, rejected = beta * ratio_chosen.detach(), beta * ratio_rejected.detach()
    terms = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": pairs.policy_chosen.detach(),
        "logps/rejected": pairs.policy_rejected.detach(),
    }
    return z, terms
