"""Pairwise objectives that depend on the whole batch: sorted, or selected with a strength of its own.

Symbols: S = summed log-probability of a response under the policy, n its scored tokens, rho = S_policy - S_reference,
h = rho_chosen - rho_rejected, z = beta * h, sigma = logistic function, eps = label_smoothing. All in nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import fraction, non_negative, positive
from prefopt.objectives.terms import log_ratios, reward_terms, sums
from prefopt.objectives.types import (
    Losses,
    Pairs,
    Running,
    needs,
    require_reference,
)

SMALLEST_BETA = 1e-3
"""The floor of beta-DPO's beta: below it a batch of inverted gaps would turn the loss around."""

ROUNDING = 1e-4
"""A spread of gaps, in nats, that is taken for none: at theta = reference they differ by rounding, which depends on how
the batch was computed and must not decide which pairs are drawn."""

MOMENTUM = 0.9
"""Share of the earlier value in beta-DPO's running mean and standard deviation of the gap."""


@needs(view="pairs", coupled=True, positional=True)
def aot(pairs: Pairs, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Losses:
    """Alignment via Optimal Transport, paired: the distribution of policy margins exceeds the reference's.

    ``loss = -(1 - eps) * log sigma(beta * d) - eps * log sigma(-beta * d),
    d = sort(S_chosen - S_rejected) - sort(R_chosen - R_rejected)``

    R is S under the reference; both sorts are ascending and run over the whole global batch. One loss per *sorted
    position*, not per pair: element i belongs to the i-th smallest margins of policy and reference, which are mostly
    those of different pairs; weights of pairs have no meaning here and should be equal. ln 2 at theta = reference; one
    pair alone is DPO. Bounded below by 0. An empty response has S = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        label_smoothing: assumed share of flipped preferences, at least 0 and below 0.5.

    Source: Melnyk et al. 2024, arXiv 2406.05882.
    Peers: TRL 1.16 sorts what one device holds in one micro-batch, so its loss depends on the number of devices.
    Departures: none.
    """
    _check_smoothed("aot", beta, label_smoothing)
    ratio_chosen, ratio_rejected = log_ratios(pairs, "aot")
    chosen, rejected = sums(pairs)
    reference_chosen, reference_rejected = require_reference(pairs, "aot")
    d = (chosen - rejected).sort().values - (reference_chosen - reference_rejected).sort().values
    terms = reward_terms(pairs, beta * ratio_chosen, beta * ratio_rejected)
    return Losses(_smoothed(beta * d, label_smoothing), terms)


@needs(view="pairs", coupled=True, positional=True)
def aot_unpaired(pairs: Pairs, *, beta: float = 0.01, label_smoothing: float = 0.0) -> Losses:
    """Alignment via Optimal Transport, unpaired: chosen log-ratios exceed rejected ones as distributions.

    ``loss = -(1 - eps) * log sigma(beta * d) - eps * log sigma(-beta * d), d = sort(rho_chosen) - sort(rho_rejected)``

    Both sorts are ascending and run over the whole global batch; which response was paired with which has no
    influence. One loss per *sorted position*, not per pair, as in `aot`. ln 2 at theta = reference; one pair alone is
    DPO. Bounded below by 0. An empty response has rho = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        label_smoothing: assumed share of flipped preferences, at least 0 and below 0.5.

    Source: Melnyk et al. 2024, arXiv 2406.05882.
    Peers: TRL 1.16 sorts what one device holds in one micro-batch, so its loss depends on the number of devices.
    Departures: as many chosen as rejected responses; the paper's quantiles also allow unequal numbers.
    """
    _check_smoothed("aot_unpaired", beta, label_smoothing)
    chosen, rejected = log_ratios(pairs, "aot_unpaired")
    d = chosen.sort().values - rejected.sort().values
    return Losses(
        _smoothed(beta * d, label_smoothing), reward_terms(pairs, beta * chosen, beta * rejected)
    )


def advance_gap(
    pairs: Pairs, state: Mapping[str, Tensor], **_parameters: object
) -> dict[str, Tensor]:
    """beta-DPO's running mean and standard deviation of h after this batch, float64 `[]` nats.

    ``new = 0.9 * old + 0.1 * batch``, the batch's standard deviation being the unbiased one. A batch of one pair has
    none and leaves the old one; an empty batch changes nothing.
    """
    chosen, rejected = log_ratios(pairs, "beta_dpo")
    gap = (chosen - rejected).detach().double()
    mean, std = state["gap_mean"], state["gap_std"]
    if gap.numel():
        mean = MOMENTUM * mean + (1 - MOMENTUM) * gap.mean()
    if gap.numel() > 1:
        std = MOMENTUM * std + (1 - MOMENTUM) * gap.std()
    return {"gap_mean": mean, "gap_std": std}


@needs(
    view="pairs",
    coupled=True,
    running=Running({"gap_mean": 0.0, "gap_std": 0.0}, advance_gap, ("gap_mean", "gap_std")),
    random=True,
)
def beta_dpo(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    alpha: float = 0.6,
    rho: float = 0.2,
    generator: torch.Generator | None = None,
    gap_mean: Tensor | float = 0.0,
    gap_std: Tensor | float = 0.0,
) -> Losses:
    """beta-DPO: leaves out pairs with unusual margins and adapts beta to the margins of the rest.

    ``loss = -log sigma(beta_b * h) * P / K if selected else 0,
    beta_b = max(0.001, beta * (1 + alpha * (mean of selected h - M)))``

    K = floor((1 - rho) * P), at least 1, of the batch's P pairs are drawn without replacement with weights
    exp(-0.5 * ((h - M) / s)^2); the others have loss 0 and the factor P / K makes the mean over all pairs the mean over
    the selected. M and s are running means (momentum 0.9, start 0, this batch included) of the batch's mean and
    standard deviation of h; with s = 0 all weights are equal. Selection and beta_b are detached. Without a generator
    (evaluation) or with rho = 0 every pair counts once; alpha = rho = 0 is DPO. (The parameter rho, so named in the
    paper, is no log-ratio.) At theta = reference a selected pair's loss is ln 2 * P / K. An empty response has S = 0.

    Args:
        beta: strength of the implicit KL anchor at an ordinary batch, > 0.
        alpha: how much a nat of excess mean margin scales beta, >= 0.
        rho: share of pairs that is left out, at least 0 and below 1.
        generator: CPU generator of the selection; given by the learner.
        gap_mean: M, nats; given by the learner.
        gap_std: s, nats; given by the learner.

    Source: Wu et al. 2024, arXiv 2407.08639, and the authors' code (commit 1629047).
    Peers: the authors' configuration file has alpha = 0 while their README runs 0.6; their code also advances M and s
        in evaluation, and selects per micro-batch.
    Departures: guards where the authors' code divides by s = 0, has the undefined s of one pair, or selects none;
        drawn in log space, so far outliers cannot underflow to too few drawable pairs. Rewards are beta * rho.
    """
    positive("beta_dpo", beta=beta)
    non_negative("beta_dpo", alpha=alpha)
    fraction("beta_dpo", below=1.0, rho=rho)
    chosen, rejected = log_ratios(pairs, "beta_dpo")
    h = chosen - rejected
    gap = h.detach()
    weight = torch.ones_like(gap)
    if generator is not None and rho > 0:
        weight = _select(gap, rho=rho, mean=gap_mean, std=gap_std, generator=generator)
    selected_mean = (weight * gap).sum() / max(gap.numel(), 1)
    beta_batch = (beta * (1 + alpha * (selected_mean - gap_mean))).clamp(min=SMALLEST_BETA)
    beta_batch = beta_batch.to(h.dtype).expand_as(h)
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    terms["beta"] = beta_batch
    return Losses(-F.logsigmoid(beta_batch * h) * weight, terms)


def _select(
    gap: Tensor,
    *,
    rho: float,
    mean: Tensor | float,
    std: Tensor | float,
    generator: torch.Generator,
) -> Tensor:
    """P / K for the K drawn pairs, 0 for the others, `[P]`: weighted sampling without replacement by Gumbel top-k."""
    pairs = gap.numel()
    # The small term undoes the rounding of 10 * (1 - 0.9) to just below 1.
    kept = min(max(int(pairs * (1 - rho) + 1e-9), 1), pairs)
    spread = gap.new_zeros(()) + std
    safe = torch.where(spread > ROUNDING, spread, 1.0)
    log_weight = torch.where(spread > ROUNDING, -0.5 * ((gap - mean) / safe) ** 2, 0.0)
    # Drawn on the CPU: the same pairs whatever the device is.
    uniform = torch.rand(pairs, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform))
    keys = log_weight + gumbel.to(gap.device, gap.dtype, non_blocking=True)
    drawn = keys.topk(kept).indices
    return torch.zeros_like(gap).scatter(0, drawn, pairs / max(kept, 1))


def _check_smoothed(objective: str, beta: float, label_smoothing: float) -> None:
    positive(objective, beta=beta)
    fraction(objective, below=0.5, label_smoothing=label_smoothing)


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    """Logistic loss of z with the label flipped with probability `label_smoothing`."""
    return (label_smoothing - 1) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
