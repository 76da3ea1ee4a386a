"""Pairwise objectives whose strength depends on the batch or the tokens: sorted, selected, dispersed, token-level.

Symbols: S = summed log-probability of a response under the policy, n its scored tokens, rho = S_policy - S_reference,
h = rho_chosen - rho_rejected, z = beta * h, sigma = logistic function, eps = label_smoothing. All in nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import fraction, non_negative, positive
from prefopt.objectives.terms import lengths, log_ratios, reward_terms, sums
from prefopt.objectives.types import (
    Losses,
    Pairs,
    Running,
    needs,
    require,
    require_reference,
)

SMALLEST_BETA = 1e-3
"""The floor of beta-DPO's beta: below it a batch of inverted gaps would turn the loss around."""

MOMENTUM = 0.9
"""Share of the earlier value in beta-DPO's running mean and standard deviation of the gap."""

LEAST_DISPERSION = 1e-6
"""The floor of MallowsPO's normalised entropy: a reference that is certain of every token has phi = 13.8 * scale."""


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
    safe = torch.where(spread > 0, spread, 1.0)
    log_weight = torch.where(spread > 0, -0.5 * ((gap - mean) / safe) ** 2, 0.0)
    # Drawn on the CPU: the same pairs whatever the device is.
    uniform = torch.rand(pairs, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform))
    keys = log_weight + gumbel.to(gap.device, gap.dtype, non_blocking=True)
    drawn = keys.topk(kept).indices
    return torch.zeros_like(gap).scatter(0, drawn, pairs / max(kept, 1))


@needs(view="pairs", extras=("dispersion",))
def mallows(pairs: Pairs, *, beta: float = 0.1, scale: float = 0.29) -> Losses:
    """MallowsPO (Mallows-theta-DPO): trusts a preference more where the reference is sure what comes next.

    ``loss = -log sigma(phi * beta * h), phi = -scale * log H, H = (d_chosen / n_chosen + d_rejected / n_rejected) / 2``

    d is the sum over a response's tokens of the reference's entropy / log |V|, so H is in 0..1 and phi >= 0: near 0 for
    a reference close to uniform (no gradient), large for a certain one. H is clamped to 1e-6..1, hence phi <= 13.8 *
    scale; phi is a constant of the data, without gradient. ln 2 at theta = reference; phi = 1 is DPO. An empty response
    counts as entropy 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        scale: multiplies the negative log-dispersion, > 0; its inverse is the -log H at which the loss is DPO's.

    Source: Chen et al. 2024, arXiv 2405.14953, and the authors' code (commit c188a2e).
    Peers: the authors' trainer drops the reference from h by default (`reference_free`), and has no clamp.
    Departures: the clamp of H.
    """
    positive("mallows", beta=beta, scale=scale)
    chosen, rejected = log_ratios(pairs, "mallows")
    length_chosen, length_rejected = lengths(pairs, "mallows")
    entropy_chosen = require(pairs.dispersion_chosen, "dispersion_chosen", "mallows")
    entropy_rejected = require(pairs.dispersion_rejected, "dispersion_rejected", "mallows")
    dispersion = (entropy_chosen / length_chosen + entropy_rejected / length_rejected).detach() / 2
    phi = -scale * torch.log(dispersion.clamp(min=LEAST_DISPERSION, max=1.0))
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    terms["phi"] = phi
    return Losses(-F.logsigmoid(phi * beta * (chosen - rejected)), terms)


@needs(view="pairs", extras=("kl",))
def tdpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 0.5) -> Losses:
    """Token-level DPO, second form (TDPO2): DPO that also holds down the drift on the rejected response.

    ``loss = -log sigma(beta * (h - alpha * (D_rejected - D_chosen)))``

    D is the sum over a response's positions of KL(reference || policy) over the whole vocabulary, nats. D_chosen is
    detached, so the rejected response's divergence is pushed down and the chosen one's is left alone. ln 2 at
    theta = reference, where D and its gradient vanish; alpha = 0 is DPO. An empty response has rho = D = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        alpha: weight of the divergence term, >= 0.

    Source: Zeng et al. 2024, arXiv 2404.11999.
    Peers: the authors' code logs beta * (rho + D) as rewards where this logs beta * rho, as every objective here.
    Departures: none.
    """
    positive("tdpo", beta=beta)
    non_negative("tdpo", alpha=alpha)
    kl_chosen = require(pairs.kl_chosen, "kl_chosen", "tdpo")
    kl_rejected = require(pairs.kl_rejected, "kl_rejected", "tdpo")
    return _token_level(pairs, beta, alpha * (kl_rejected - kl_chosen.detach()), "tdpo")


@needs(view="pairs", extras=("kl",))
def tdpo1(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Token-level DPO, first form (TDPO1): the Bradley-Terry loss of the token-level problem.

    ``loss = -log sigma(beta * (h - (D_rejected - D_chosen)))``

    D is the sum over a response's positions of KL(reference || policy) over the whole vocabulary, nats. Nothing is
    detached: the loss *raises* the chosen response's divergence, which the second form (`tdpo`) mends. ln 2 at
    theta = reference. An empty response has rho = D = 0.

    Args:
        beta: strength of the implicit KL anchor, > 0.

    Source: Zeng et al. 2024, arXiv 2404.11999.
    Peers: the authors' code logs beta * (rho + D) as rewards where this logs beta * rho, as every objective here.
    Departures: none.
    """
    positive("tdpo1", beta=beta)
    kl_chosen = require(pairs.kl_chosen, "kl_chosen", "tdpo1")
    kl_rejected = require(pairs.kl_rejected, "kl_rejected", "tdpo1")
    return _token_level(pairs, beta, kl_rejected - kl_chosen, "tdpo1")


def _token_level(pairs: Pairs, beta: float, drift: Tensor, objective: str) -> Losses:
    """The loss of both TDPO forms, given the divergence term `[P]` in nats."""
    chosen, rejected = log_ratios(pairs, objective)
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    terms["kl/chosen"] = require(pairs.kl_chosen, "kl_chosen", objective).detach()
    terms["kl/rejected"] = require(pairs.kl_rejected, "kl_rejected", objective).detach()
    return Losses(-F.logsigmoid(beta * (chosen - rejected - drift)), terms)


def _check_smoothed(objective: str, beta: float, label_smoothing: float) -> None:
    positive(objective, beta=beta)
    fraction(objective, below=0.5, label_smoothing=label_smoothing)


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    """Logistic loss of z with the label flipped with probability `label_smoothing`."""
    return (label_smoothing - 1) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
