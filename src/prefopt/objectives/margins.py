"""Which objectives depend on a pair through the difference of its two log-ratios alone; found out by trying them."""

from __future__ import annotations

from functools import cache

import torch

from prefopt.objectives import Pairs, find_objective, needs_of, parameters_of


@cache
def sees_margins_only(name: str) -> bool:
    """Whether an objective depends on a pair through rho_chosen - rho_rejected, in sums, and nothing else of tokens.

    Only in that difference do the partition functions of weighted turns cancel. Lengths, statistics of tokens and
    likelihoods without a reference would be mixed with weighted sums. Found out by trying: both log-ratios are
    raised by the same amount, and nothing but sums is given.
    """
    function = find_objective(name)
    need = needs_of(function)
    if need.view != "pairs" or not need.reference or "gamma" in parameters_of(function):
        return False
    if "f_divergence_type" in parameters_of(function):
        return False
    try:
        losses = [function(_trial(shift)).loss for shift in (0.0, 1.0)]
    except ValueError:  # it asks for what is not given
        return False
    return torch.allclose(losses[0], losses[1], rtol=1e-9, atol=1e-9)


def _trial(shift: float) -> Pairs:
    """Two pairs with nothing but sums and annotations, the policy's raised by `shift`."""
    both = torch.tensor([[-3.0, -5.0], [-4.0, -4.5]], dtype=torch.float64) + shift
    scores = torch.tensor([[3.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    return Pairs(
        policy_chosen=both[0],
        policy_rejected=both[1],
        reference_chosen=torch.tensor([-3.5, -4.0], dtype=torch.float64),
        reference_rejected=torch.tensor([-4.0, -5.0], dtype=torch.float64),
        score_chosen=scores[0],
        score_rejected=scores[1],
        margin=scores[1],
    )
