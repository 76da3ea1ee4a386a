"""Objectives for single responses that are marked desirable or undesirable: one loss per response, no pairs needed.

Symbols: S = summed log-probability of a response, rho = S_policy - S_reference, sigma = logistic function. Nats, `[R]`.
Answers to other prompts (`mismatched`) and responses without a mark have loss 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import non_negative, positive
from prefopt.objectives.types import Losses, Running, Scores, as_float32, needs, require


def desirable(scores: Scores) -> Tensor:
    """1 for desirable responses, 0 for undesirable ones, NaN for what takes no part, `[R]`.

    A response's own label decides. Without one, a chosen response of a pair is desirable and a rejected one is not;
    what is both (the middle of a ranking), in no pair, or mismatched is NaN.
    """
    label = as_float32(scores.label)
    chosen = torch.zeros_like(label).scatter(0, scores.chosen, 1.0)
    rejected = torch.zeros_like(label).scatter(0, scores.rejected, 1.0)
    of_pair = torch.where(chosen != rejected, chosen, torch.nan)
    label = torch.where(torch.isnan(label), of_pair, label)
    if scores.mismatched is None:
        return label
    return label.masked_fill(scores.mismatched, torch.nan)


@needs(
    view="responses",
    mean="responses",
    mismatched=True,
    coupled=True,
    annotations=("labels",),
)
def kto(
    scores: Scores,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Losses:
    """Kahneman-Tversky Optimization: desirable responses above the policy's KL, undesirable ones below it.

    ``loss = desirable_weight * (1 - sigma(beta * (rho - z0))) if desirable,
    undesirable_weight * (1 - sigma(beta * (z0 - rho))) if undesirable, z0 = max(0, mean of rho over mismatched)``

    z0 estimates KL(policy || reference) from answers to other prompts, over the whole global batch; it is detached.
    WITHOUT MISMATCHED ANSWERS z0 IS 0, and the loss is that of `apo_zero_unpaired`. Bounded: 0 to the weight, half the
    weight at theta = reference; the gradient vanishes on both sides. Mismatched and unmarked responses have loss 0.
    An empty response has rho = 0.

    Args:
        beta: how fast gains and losses saturate, > 0.
        desirable_weight: weight of desirable responses, >= 0.
        undesirable_weight: weight of undesirable responses, >= 0; the paper asks for desirable_weight * number of
            desirable to be 1 to 4/3 times undesirable_weight * number of undesirable.

    Source: Ethayarajh et al. 2024, arXiv 2402.01306.
    Peers: TRL 1.16 and HALOs agree; TRL takes the mean of the devices' means for z0 and needs sequential sampling.
    Departures: none.
    """
    positive("kto", beta=beta)
    non_negative("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if desirable_weight == 0 and undesirable_weight == 0:
        raise ValueError("kto: both weights are 0, which leaves nothing to train; set one of them")
    rho = _log_ratio(scores, "kto")
    drift = _mismatched_mean(scores, rho)
    x = beta * (rho - drift)
    loss = _by_mark(
        scores, desirable_weight * torch.sigmoid(-x), undesirable_weight * torch.sigmoid(x)
    )
    return Losses(loss, {**_rewards(scores, beta * rho), "kl": drift.expand_as(rho)})


@needs(view="responses", mean="responses", annotations=("labels",))
def apo_zero_unpaired(scores: Scores, *, beta: float = 0.1) -> Losses:
    """Anchored Preference Optimization, unpaired: desirable responses up, undesirable ones down, anchored at 0.

    ``loss = 1 - sigma(beta * rho) if desirable, sigma(beta * rho) if undesirable``

    KTO without its KL term. Bounded: 0 to 1, and 1/2 at theta = reference; the gradient vanishes on both sides.
    Mismatched and unmarked responses have loss 0. An empty response has rho = 0.

    Args:
        beta: how fast the loss saturates, > 0.

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266.
    Departures: one response at a time, as in TRL; the paper's loss is the sum over a pair.
    """
    positive("apo_zero_unpaired", beta=beta)
    rho = _log_ratio(scores, "apo_zero_unpaired")
    loss = _by_mark(scores, torch.sigmoid(-beta * rho), torch.sigmoid(beta * rho))
    return Losses(loss, _rewards(scores, beta * rho))


def advance_delta(
    scores: Scores, state: Mapping[str, Tensor], *, beta: float = 0.1, **_parameters: object
) -> dict[str, Tensor]:
    """The mean reward beta * rho of all marked responses so far, this batch included, and their number; float64."""
    rho = _log_ratio(scores, "bco_unpaired").detach().double()
    marked = ~torch.isnan(desirable(scores))
    count = state["count"] + marked.sum()
    excess = torch.where(marked, beta * rho - state["delta"], 0.0).sum()
    return {"delta": state["delta"] + excess / count.clamp(min=1), "count": count}


@needs(
    view="responses",
    mean="responses",
    coupled=True,
    annotations=("labels",),
    running=Running({"delta": 0.0, "count": 0.0}, advance_delta, ("delta",)),
)
def bco_unpaired(scores: Scores, *, beta: float = 0.1, delta: Tensor | float = 0.0) -> Losses:
    """Binary Classifier Optimization, unpaired: logistic regression of the mark on the implicit reward.

    ``loss = -log sigma(beta * rho - delta) if desirable, -log sigma(delta - beta * rho) if undesirable``

    delta is the mean reward of all marked responses since the start of the run, this global batch included, with every
    response counted once; it is carried in checkpoints and detached. ln 2 at theta = reference and delta = 0. Unbounded
    above, 0 below. Mismatched and unmarked responses have loss 0 and do not count. An empty response has rho = 0.

    Args:
        beta: scale of the reward, > 0.
        delta: the running mean of rewards; given by the learner.

    Source: Jung et al. 2024, arXiv 2404.04656.
    Peers: TRL 1.16 has the pairwise form only, without delta; older TRL's running mean is this one.
    Departures: no density-ratio weights for prompts that differ between desirable and undesirable data.
    """
    positive("bco_unpaired", beta=beta)
    rho = _log_ratio(scores, "bco_unpaired")
    x = beta * rho - delta
    loss = _by_mark(scores, -F.logsigmoid(x), -F.logsigmoid(-x))
    return Losses(loss, _rewards(scores, beta * rho))


def _log_ratio(scores: Scores, objective: str) -> Tensor:
    """rho `[R]` nats."""
    return as_float32(scores.policy) - require(scores.reference, "reference", objective)


def _mismatched_mean(scores: Scores, rho: Tensor) -> Tensor:
    """max(0, mean of rho over the mismatched answers), detached `[]`; 0 without any."""
    rho = rho.detach()
    if scores.mismatched is None:
        return rho.new_zeros(())
    total = torch.where(scores.mismatched, rho, 0.0).sum()
    return (total / scores.mismatched.sum().clamp(min=1)).clamp(min=0)


def _rewards(scores: Scores, reward: Tensor) -> dict[str, Tensor]:
    """Rewards and log-probabilities under the names of pairs, NaN where a response is not of that side; detached."""
    mark, reward, logp = desirable(scores), reward.detach(), as_float32(scores.policy).detach()
    return {
        "rewards/chosen": torch.where(mark == 1, reward, torch.nan),
        "rewards/rejected": torch.where(mark == 0, reward, torch.nan),
        "logps/chosen": torch.where(mark == 1, logp, torch.nan),
        "logps/rejected": torch.where(mark == 0, logp, torch.nan),
    }


def _by_mark(scores: Scores, if_desirable: Tensor, if_undesirable: Tensor) -> Tensor:
    """The loss that a response's mark selects; 0 without one. All candidates are finite, so gradients are too."""
    mark = desirable(scores)
    return torch.where(mark == 1, if_desirable, torch.where(mark == 0, if_undesirable, 0.0))
