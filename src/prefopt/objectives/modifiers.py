"""What changes the quantities of an objective before it sees them: divergences, length, reference, and pair weights.

The functions that take and return `Pairs` go in front of any pairwise objective, `ipo(ld(pairs, ld_alpha=0.5))`;
the objectives here are DPO behind one of them. Symbols: S = summed log-probability of a response under the policy,
n its scored tokens, rho = S_policy - S_reference, h = rho_chosen - rho_rejected, sigma = logistic function. Nats.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import fraction, positive
from prefopt.objectives.terms import lengths, log_ratios, reward_terms
from prefopt.objectives.types import (
    Losses,
    Pairs,
    as_float32,
    needs,
    require,
    require_reference,
)

Divergence: TypeAlias = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
"""Which divergence from the reference holds the policy back; `reverse_kl` is DPO's."""

LARGEST_EXPONENT = 40.0
"""Above it e^x continues as its tangent: e^40 = 2.4e17, whose square is still finite in float32."""


def f_divergence(pairs: Pairs, *, divergence: Divergence, coefficient: float = 0.5) -> Pairs:
    """Pairs whose log-ratios rho are replaced by s(rho) = f'(e^rho), so that any objective of rho uses f's divergence.

    ``reverse_kl: s = rho;  forward_kl: s = 1 - e^-rho;  js_divergence: s = log 2 + log sigma(rho);
    alpha_divergence: s = (e^((a - 1) rho) - 1) / (a - 1), a = coefficient, and s = rho for |a - 1| < 1e-6``

    The policy's log-probabilities become reference + s; they are no log-probabilities any more, and whatever an
    objective derives from them (rewards, margins) follows s. Common parts (LD-DPO) and gold responses stay. s(0) = 0
    and s'(0) = 1 for reverse_kl, forward_kl and alpha_divergence; for js_divergence s'(0) = 1/2. An exponent above 40
    continues linearly with the slope e^40, finite in float32 and never without gradient: forward_kl below rho = -40,
    alpha_divergence where (a - 1) * rho > 40.

    Source: Wang et al. 2023, arXiv 2309.16240.
    Peers: TRL 1.16 does not bound forward_kl (inf below rho = -88), cuts alpha_divergence at 80 without gradient, logs
        rewards of rho whatever the divergence, and refuses all but sigmoid, sigmoid_norm, hinge, ipo, exo_pair,
        robust, discopop and sft.
    """
    if divergence not in get_args(Divergence):
        known = ", ".join(get_args(Divergence))
        raise ValueError(f"f_divergence: divergence is {divergence!r}; it must be one of {known}")
    if not math.isfinite(coefficient):
        raise ValueError(f"f_divergence: coefficient is {coefficient}; it must be a finite number")
    chosen, rejected = log_ratios(pairs, "f_divergence")
    reference_chosen, reference_rejected = require_reference(pairs, "f_divergence")
    return pairs._replace(
        policy_chosen=reference_chosen + _slope(chosen, divergence, coefficient),
        policy_rejected=reference_rejected + _slope(rejected, divergence, coefficient),
    )


def _slope(rho: Tensor, divergence: Divergence, coefficient: float) -> Tensor:
    """f'(e^rho), see `f_divergence`."""
    if divergence == "forward_kl":
        return -_expm1(-rho)
    if divergence == "js_divergence":
        return math.log(2) + F.logsigmoid(rho)
    power = coefficient - 1
    if divergence == "reverse_kl" or abs(power) < 1e-6:
        return rho
    return _expm1(power * rho) / power


def _expm1(x: Tensor) -> Tensor:
    """e^x - 1, continued by its tangent above `LARGEST_EXPONENT`."""
    bounded = x.clamp(max=LARGEST_EXPONENT)
    return torch.expm1(bounded) + math.exp(LARGEST_EXPONENT) * (x - LARGEST_EXPONENT).clamp(min=0)


def ld(pairs: Pairs, *, ld_alpha: float) -> Pairs:
    """Pairs whose log-probabilities count tokens beyond the shorter response's length only `ld_alpha` times.

    ``S = S_common + ld_alpha * (S - S_common)``, for the policy and for the reference

    S_common sums the first min(n_chosen, n_rejected) scored tokens; of the shorter response that is everything.
    Lengths stay, so a mean still divides by n. ld_alpha = 1 changes nothing, 0 ignores the tail.

    Source: Liu et al. 2024, arXiv 2409.06411.
    Peers: TRL 1.16 does the same; LLaMA-Factory treats the policy only, see `ld_policy`.
    """
    part = ld_policy(pairs, ld_alpha=ld_alpha)
    reference_chosen, reference_rejected = require_reference(pairs, "ld")
    common_chosen = require(pairs.reference_chosen_common, "reference_chosen_common", "ld")
    common_rejected = require(pairs.reference_rejected_common, "reference_rejected_common", "ld")
    return part._replace(
        reference_chosen=common_chosen + ld_alpha * (reference_chosen - common_chosen),
        reference_rejected=common_rejected + ld_alpha * (reference_rejected - common_rejected),
    )


def ld_policy(pairs: Pairs, *, ld_alpha: float) -> Pairs:
    """Pairs like those of `ld`, with the reference's log-probabilities left as they are (LLaMA-Factory's definition).

    The two definitions differ by (1 - ld_alpha) * (the reference's tail), a constant of the data: it shifts every
    pair's margin by what the reference thinks of the longer response's tail.
    """
    fraction("ld", ld_alpha=ld_alpha)
    chosen, rejected = as_float32(pairs.policy_chosen), as_float32(pairs.policy_rejected)
    common_chosen = require(pairs.policy_chosen_common, "policy_chosen_common", "ld")
    common_rejected = require(pairs.policy_rejected_common, "policy_rejected_common", "ld")
    return pairs._replace(
        policy_chosen=common_chosen + ld_alpha * (chosen - common_chosen),
        policy_rejected=common_rejected + ld_alpha * (rejected - common_rejected),
    )


def zero_reference(pairs: Pairs) -> Pairs:
    """Pairs whose reference gives log-probability 0 to everything, so that rho = S.

    `hinge`, `ipo` and `dpo` of such pairs are the losses of that name in TRL's CPO trainer, without their likelihood
    term.
    """
    return pairs._replace(
        reference_chosen=torch.zeros_like(as_float32(pairs.policy_chosen)),
        reference_rejected=torch.zeros_like(as_float32(pairs.policy_rejected)),
        reference_chosen_common=None
        if pairs.policy_chosen_common is None
        else torch.zeros_like(as_float32(pairs.policy_chosen_common)),
        reference_rejected_common=None
        if pairs.policy_rejected_common is None
        else torch.zeros_like(as_float32(pairs.policy_rejected_common)),
    )


def wpo_weights(pairs: Pairs) -> Tensor:
    """WPO's weight of each pair `[P]`, detached: how likely the policy itself would have written its responses.

    ``w_chosen * w_rejected, w = exp(1/n * sum_t (log p_t - log sum_v p_v^2))``

    The second term divides by what the policy's own samples would score on average, so an on-policy pair has a weight
    near 1 whatever its entropy; weights above 1 occur, there is no clamp. An empty response has w = 1.

    Source: Zhou et al. 2024, arXiv 2406.11827.
    Peers: TRL 1.16 does the same; open-instruct leaves out the second term and clamps at 1.
    """
    length_chosen, length_rejected = lengths(pairs, "wpo")
    chosen = require(pairs.alignment_chosen, "alignment_chosen", "wpo")
    rejected = require(pairs.alignment_rejected, "alignment_rejected", "wpo")
    return torch.exp((chosen / length_chosen + rejected / length_rejected).detach())


@needs(view="pairs", extras=("alignment",))
def wpo(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Weighted Preference Optimization: DPO in which pairs near the policy's own samples count more.

    ``loss = -w_chosen * w_rejected * log sigma(beta * h), w = exp(1/n * sum_t (log p_t - log sum_v p_v^2))``

    p is the policy's distribution at each position and p_t that of the response's token; the weights are detached
    and not clamped. The mean over pairs is not divided by the mean weight, so off-policy data means small steps.
    At theta = reference the loss is the weight times ln 2; with w = 1 it is DPO. An empty response has w = 1.

    Args:
        beta: strength of the implicit KL anchor, > 0.

    Source: Zhou et al. 2024, arXiv 2406.11827.
    Peers: TRL 1.16 does the same (`use_weighting`); open-instruct leaves out the second term and clamps w at 1.
    Departures: none.
    """
    positive("wpo", beta=beta)
    losses = _dpo(pairs, beta=beta, objective="wpo", given=pairs)
    weight = wpo_weights(pairs)
    return Losses(weight * losses.loss, {**losses.terms, "wpo_weight": weight})


@needs(view="pairs", extras=("common",))
def ld_dpo(pairs: Pairs, *, beta: float = 0.1, ld_alpha: float = 0.5) -> Losses:
    """Length-desensitised DPO: tokens beyond the shorter response's length count only in part.

    ``loss = -log sigma(beta * h'), h' = h with S = S_common + ld_alpha * (S - S_common)``

    S_common sums the first min(n_chosen, n_rejected) scored tokens, under the policy and under the reference alike.
    Rewards follow h'. ln 2 at theta = reference; ld_alpha = 1 is DPO, 0 ignores the tail. An empty response
    leaves ld_alpha * rho of the other one.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        ld_alpha: share at which the tail counts, from 0 to 1.

    Source: Liu et al. 2024, arXiv 2409.06411.
    Peers: TRL 1.16 does the same; LLaMA-Factory treats the policy only, which is `ld_dpo_policy`.
    Departures: none.
    """
    positive("ld_dpo", beta=beta)
    fraction("ld_dpo", ld_alpha=ld_alpha)
    return _dpo(ld(pairs, ld_alpha=ld_alpha), beta=beta, objective="ld_dpo", given=pairs)


@needs(view="pairs", extras=("common",))
def ld_dpo_policy(pairs: Pairs, *, beta: float = 0.1, ld_alpha: float = 0.5) -> Losses:
    """Length-desensitised DPO, policy only: the tail is discounted in the policy but not in the reference.

    ``loss = -log sigma(beta * h'), h' = h with S_policy = S_common + ld_alpha * (S_policy - S_common)``

    S_common sums the first min(n_chosen, n_rejected) scored tokens. The reference keeps its whole tail, so at
    theta = reference h' is not 0 but (ld_alpha - 1) * (tail of the chosen - tail of the rejected), a head start for
    the longer response; ld_alpha = 1 is DPO. Rewards follow h'.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        ld_alpha: share at which the policy's tail counts, from 0 to 1.

    Source: LLaMA-Factory, after Liu et al. 2024, arXiv 2409.06411.
    Peers: TRL 1.16 discounts the reference too, which is `ld_dpo`.
    Departures: the paper discounts both; for comparison with runs of LLaMA-Factory.
    """
    positive("ld_dpo_policy", beta=beta)
    fraction("ld_dpo_policy", ld_alpha=ld_alpha)
    discounted = ld_policy(pairs, ld_alpha=ld_alpha)
    return _dpo(discounted, beta=beta, objective="ld_dpo_policy", given=pairs)


@needs(view="pairs")
def f_dpo(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    f_divergence_type: Divergence = "forward_kl",
    f_alpha_divergence_coef: float = 0.5,
) -> Losses:
    """f-DPO: DPO whose anchor to the reference is another divergence than the reverse KL.

    ``loss = -log sigma(beta * (s(rho_chosen) - s(rho_rejected))), s(rho) = f'(e^rho)``

    reverse_kl: s = rho (DPO); forward_kl: s = 1 - e^-rho; js_divergence: s = log 2 + log sigma(rho), bounded above by
    log 2; alpha_divergence: s = (e^((a - 1) rho) - 1) / (a - 1), rho for a = 1. Exponents above 40 continue linearly.
    Rewards are beta * s. ln 2 at theta = reference. An empty response has s = 0.

    Args:
        beta: strength of the anchor, > 0.
        f_divergence_type: reverse_kl, forward_kl, js_divergence or alpha_divergence.
        f_alpha_divergence_coef: a of alpha_divergence (towards 0 forward KL, towards 1 reverse KL).

    Source: Wang et al. 2023, arXiv 2309.16240.
    Peers: TRL 1.16 has no bound in forward_kl, cuts alpha_divergence's exponent at 80, and logs rewards of rho.
    Departures: the linear continuation.
    """
    positive("f_dpo", beta=beta)
    bent = f_divergence(pairs, divergence=f_divergence_type, coefficient=f_alpha_divergence_coef)
    return _dpo(bent, beta=beta, objective="f_dpo", given=pairs)


def _dpo(pairs: Pairs, *, beta: float, objective: str, given: Pairs) -> Losses:
    """DPO of modified pairs; the log-probabilities that it logs are those of the pairs as `given`."""
    chosen, rejected = log_ratios(pairs, objective)
    terms = reward_terms(given, beta * chosen, beta * rejected)
    return Losses(-F.logsigmoid(beta * (chosen - rejected)), terms)
