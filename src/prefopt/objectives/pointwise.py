"""Pairwise objectives that move each response of a pair on its own, by its log-ratio to the reference.

Symbols as in `pairwise`: rho = S_policy - S_reference of a response, h = rho_chosen - rho_rejected, z = beta * h.
What takes responses without pairs is in `unpaired`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import positive
from prefopt.objectives.terms import log_ratios, reward_terms
from prefopt.objectives.types import Losses, Pairs, Running, needs


@needs(view="pairs")
def nca(pairs: Pairs, *, beta: float = 0.01) -> Losses:
    """Noise Contrastive Alignment for pairs: absolute rewards, with a finite one for the chosen.

    ``loss = -log sigma(beta rho_chosen) - log sigma(-beta rho_chosen) / 2 - log sigma(-beta rho_rejected) / 2``

    The chosen response is drawn to beta rho = ln 2 from both sides, so its likelihood does not fall with the rejected
    one's, which is pushed down without end. At theta = reference the loss is 2 ln 2; it stays above 3/2 ln 3 - ln 2.
    Slopes there: d loss / d rho_chosen = -beta / 4, d loss / d rho_rejected = beta / 4.

    Args:
        beta: scale of the rewards, > 0.

    Source: Chen et al. 2024, arXiv 2402.05369.
    Departures: none; the pair form, in which the two rewards of the data are 1 and 0 in the limit.
    """
    positive("nca", beta=beta)
    chosen, rejected = _rewards(pairs, beta, "nca")
    pull = -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen)
    push = -0.5 * F.logsigmoid(-rejected)
    return Losses(pull + push, reward_terms(pairs, chosen, rejected))


def advance_bco(
    pairs: Pairs, state: Mapping[str, Tensor], *, beta: float = 0.01
) -> dict[str, Tensor]:
    """The running mean `delta` of all rewards beta * rho, chosen and rejected, and their `count`, after this batch.

    ``delta' = delta + (sum of rewards - k * delta) / (count + k)`` for a batch of k rewards, in float64: the plain mean
    of every reward so far, whatever the batch sizes. A batch without pairs leaves both as they are.
    """
    rewards = torch.cat(_rewards(pairs, beta, "bco")).detach().double()
    count = state["count"] + rewards.numel()
    moved = (rewards.sum() - rewards.numel() * state["delta"]) / count.clamp(min=1)
    return {"delta": state["delta"] + moved, "count": count}


@needs(
    view="pairs",
    coupled=True,
    running=Running({"delta": 0.0, "count": 0.0}, advance_bco, ("delta",)),
)
def bco(pairs: Pairs, *, beta: float = 0.01, delta: float | Tensor = 0.0) -> Losses:
    """Binary Classifier Optimization for pairs: tells chosen from rejected around a running mean reward.

    ``loss = -log sigma(beta rho_chosen - delta) - log sigma(-(beta rho_rejected - delta))``

    delta is the mean of all rewards beta * rho, chosen and rejected, of every batch so far, the current one included;
    a constant for the gradient, kept in checkpoints. The loss is an upper bound of DPO's for any delta. At
    theta = reference with delta = 0 it is 2 ln 2. Bounded below by 0, which it never reaches.

    Args:
        beta: scale of the rewards, > 0.
        delta: reward at which a response is neither good nor bad; the learner provides the running mean.

    Source: Jung et al. 2024, arXiv 2404.04656.
    Peers: `bco_pair` in TRL 1.16 has no delta (0 here). LLaMA-Factory and older TRL have the cumulative, not an
        exponential, mean of batch means, where small batches count as much as large ones.
    Departures: the paper speaks of a moving average; this one is over all rewards so far with equal weight.
    """
    positive("bco", beta=beta)
    chosen, rejected = _rewards(pairs, beta, "bco")
    loss = -F.logsigmoid(chosen - delta) - F.logsigmoid(delta - rejected)
    return Losses(loss, reward_terms(pairs, chosen, rejected))


@needs(view="pairs")
def bco_pair(pairs: Pairs, *, beta: float = 0.01) -> Losses:
    """Binary Classifier Optimization without its shift: each response classified by its own reward.

    ``loss = -log sigma(beta rho_chosen) - log sigma(-beta rho_rejected)``

    `bco` with delta = 0: no statistic, no coupling of the batch. 2 ln 2 at theta = reference. An empty response has
    rho = 0.

    Args:
        beta: scale of the rewards, > 0.

    Source: Jung et al. 2024, arXiv 2404.04656, without the reward shift; in MPO (Wang et al. 2024, arXiv 2411.10442)
        one of three objectives: loss_type [dpo, bco_pair, sft], loss_weights [0.8, 0.2, 1.0].
    Peers: TRL 1.16's bco_pair is this.
    Departures: no reward shift.
    """
    return bco(pairs, beta=beta, delta=0.0)


@needs(view="pairs")
def sppo(pairs: Pairs, *, beta: float = 0.001) -> Losses:
    """Self-Play Preference Optimization, hard labels: regresses both log-ratios to fixed targets.

    ``loss = (rho_chosen - 1 / (2 beta))^2 + (rho_rejected + 1 / (2 beta))^2``

    In squared nats: the targets are +-500 at the default beta, far outside what training reaches, so the slopes
    d loss / d rho = -+1 / beta at theta = reference stay nearly constant. The loss there is 1 / (2 beta^2).

    Args:
        beta: half the inverse of the target log-ratio, > 0; the inverse of the paper's eta.

    Source: Wu et al. 2024, arXiv 2405.00675, eq. 4.7.
    Departures: the win probabilities that a judge estimates are 1 for the chosen and 0 for the rejected response.
    """
    positive("sppo", beta=beta)
    chosen, rejected = log_ratios(pairs, "sppo")
    target = 1 / (2 * beta)
    loss = (chosen - target).square() + (rejected + target).square()
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Anchored Preference Optimization, zero: the chosen response up, the rejected one down, each alone.

    ``loss = sigma(-beta rho_chosen) + sigma(beta rho_rejected)``

    For chosen responses that are better than what the model gives by itself. Between 0 and 2 and flat at both ends:
    responses far from the reference, right or wrong, no longer move. At theta = reference the loss is 1 with slopes
    d loss / d rho_chosen = -beta / 4 and d loss / d rho_rejected = beta / 4.

    Args:
        beta: scale of the rewards, > 0.

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7.
    Departures: none.
    """
    positive("apo_zero", beta=beta)
    chosen, rejected = _rewards(pairs, beta, "apo_zero")
    loss = torch.sigmoid(-chosen) + torch.sigmoid(rejected)
    return Losses(loss, reward_terms(pairs, chosen, rejected))


@needs(view="pairs")
def apo_down(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Anchored Preference Optimization, down: both responses down, the rejected one further.

    ``loss = sigma(beta rho_chosen) + sigma(-z)``

    For chosen responses that are worse than what the model gives by itself. Between 0 and 2 and flat at both ends. At
    theta = reference the loss is 1 with slopes d loss / d rho_chosen = 0 and d loss / d rho_rejected = beta / 4.

    Args:
        beta: scale of the rewards, > 0.

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8.
    Departures: none.
    """
    positive("apo_down", beta=beta)
    chosen, rejected = _rewards(pairs, beta, "apo_down")
    loss = torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
    return Losses(loss, reward_terms(pairs, chosen, rejected))


@needs(view="pairs")
def cal_dpo(pairs: Pairs, *, beta: float = 1e-3) -> Losses:
    """Calibrated DPO: an unscaled DPO loss plus a regression of both log-ratios to fixed targets.

    ``loss = -log sigma(h) + (rho_chosen - 1 / (2 beta))^2 + (rho_rejected + 1 / (2 beta))^2``

    The first term has no beta. The squares keep the chosen likelihood from falling along with the rejected one and
    outweigh the first term by far for small beta. At theta = reference the loss is ln 2 + 1 / (2 beta^2) with slopes
    d loss / d rho = -+(1 / 2 + 1 / beta).

    Args:
        beta: half the inverse of the target log-ratio, > 0; 1e-5 to 3e-3 in tuned comparisons.

    Source: Xiao et al. 2024, arXiv 2412.14516.
    Peers: turbo-alignment takes the squares as a mean over the batch, the same after averaging.
    Departures: none.
    """
    positive("cal_dpo", beta=beta)
    chosen, rejected = log_ratios(pairs, "cal_dpo")
    target = 1 / (2 * beta)
    calibration = (chosen - target).square() + (rejected + target).square()
    loss = -F.logsigmoid(chosen - rejected) + calibration
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


def _rewards(pairs: Pairs, beta: float, objective: str) -> tuple[Tensor, Tensor]:
    """The implicit rewards beta * rho of the chosen and of the rejected response, `[P]`."""
    chosen, rejected = log_ratios(pairs, objective)
    return beta * chosen, beta * rejected
