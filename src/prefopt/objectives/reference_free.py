"""Pairwise objectives without a reference model: the policy's own log-probability is the reward.

Symbols: S and m = sum and mean of a response's token log-probabilities under the policy, n = its scored tokens,
sigma = logistic function. All in nats, all `[P]`. Wherever a likelihood term is added it is the mean per scored
token of one response, so that the loss of a pair does not depend on its batch. Odds-based objectives are in
`odds.py`. Nothing here reduces, gathers, logs or reads a configuration.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import fraction, non_negative, positive
from prefopt.objectives.terms import means, reward_terms, sums
from prefopt.objectives.types import Losses, Pairs, as_float32, needs, require

_STEEPEST = 40.0
"""Largest exponent of AlphaPO's reward: e^40 = 2.4e17, whose square still fits a float32 gradient norm."""


@needs(view="pairs", reference=False)
def slic(pairs: Pairs, *, delta: float = 1.0, lambda_: float = 0.1) -> Losses:
    """SLiC-HF: a hinge on the gap between the two log-probabilities, plus likelihood of the chosen response.

    ``loss = max(0, delta - (S_chosen - S_rejected)) + lambda_ * (-m_chosen)``

    At S_chosen = S_rejected the hinge is delta. Its slope is -1 in S_chosen and +1 in S_rejected below the kink
    S_chosen - S_rejected = delta and 0 from there on; only the likelihood term keeps pulling. Bounded below by 0.
    An empty response has S = m = 0. length_chosen is needed unless lambda_ is 0.

    Args:
        delta: gap in nats from which on a pair is left alone, >= 0.
        lambda_: weight of the likelihood term, >= 0.

    Source: Zhao et al. 2023, arXiv 2305.10425.
    Peers: TRL calls its hinge with a reference and beta SLiC (here `hinge`); HALOs adds the likelihood per token;
        turbo-alignment subtracts lambda times the data's margin after the hinge, which has no gradient.
    Departures: the likelihood is that of the chosen response, mean per token (the paper: of the SFT target, summed).
    """
    non_negative("slic", delta=delta, lambda_=lambda_)
    chosen, rejected = sums(pairs)
    hinge = torch.relu(delta - (chosen - rejected))
    terms = reward_terms(pairs, chosen, rejected)
    return _add_nll(Losses(hinge, terms), lambda_, _chosen(pairs), "slic")


@needs(view="pairs", reference=False)
def cpo(
    pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0, cpo_alpha: float = 1.0
) -> Losses:
    """Contrastive Preference Optimization: DPO with a uniform reference, plus likelihood of the chosen response.

    ``loss = -(1 - eps) * log sigma(z) - eps * log sigma(-z) + cpo_alpha * (-m_chosen)``

    z = beta * (S_chosen - S_rejected). At z = 0 the preference part is ln 2 with slope -beta * (1/2 - eps) in
    S_chosen. With eps = 0 it falls to 0 as z grows; with eps > 0 its minimum is at z = log((1 - eps) / eps). Sums
    favour short responses. An empty response has S = m = 0. length_chosen is needed unless cpo_alpha is 0.

    Args:
        beta: temperature of the preference part, > 0.
        label_smoothing: assumed share of swapped labels, at least 0 and below 0.5.
        cpo_alpha: weight of the likelihood term, >= 0.

    Source: Xu et al. 2024, arXiv 2401.08417.
    Peers: TRL averages the likelihood over the tokens of the batch (here: cpo_alpha 0 and `sft` as a second
        objective); turbo-alignment adds -S or -m, whichever its averaging switch selects.
    Departures: the likelihood is the mean per token of each chosen response (the paper: the sum); label smoothing.
    """
    positive("cpo", beta=beta)
    non_negative("cpo", cpo_alpha=cpo_alpha)
    return _contrast(pairs, beta, label_smoothing, cpo_alpha, "cpo")


@needs(view="pairs", reference=False)
def simpo(
    pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
) -> Losses:
    """Simple Preference Optimization: mean log-probability as reward, with a margin to be exceeded.

    ``loss = -(1 - eps) * log sigma(z) - eps * log sigma(-z), z = beta * (m_chosen - m_rejected) - gamma``

    gamma is the full margin, in units of the reward beta * m: it is not multiplied by beta. At m_chosen = m_rejected
    and eps = 0 the loss is log(1 + e^gamma) with slope -beta * sigma(gamma) in m_chosen. Nothing keeps the policy
    near where it started but a small learning rate. An empty response has m = 0.

    Args:
        beta: scale of the reward, > 0; usually 2 to 10.
        gamma: margin in units of the reward, >= 0; usually 0.1 to 0.8 times beta.
        label_smoothing: assumed share of swapped labels, at least 0 and below 0.5.

    Source: Meng et al. 2024, arXiv 2405.14734.
    Peers: the official code, HALOs and open-instruct are configured with gamma / beta; TRL (in its CPO) and
        LLaMA-Factory with the full margin, defaults beta 0.1 and gamma 0.5; TRL adds cpo_alpha = 1 times the
        likelihood unless told not to; turbo-alignment's gamma is multiplied by beta.
    Departures: none; label smoothing as in the official code.
    """
    positive("simpo", beta=beta)
    non_negative("simpo", gamma=gamma)
    chosen, rejected = means(pairs, "simpo")
    z = beta * (chosen - rejected) - gamma
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    return Losses(_smoothed(z, label_smoothing, "simpo"), terms)


@needs(view="pairs", reference=False)
def alphapo(pairs: Pairs, *, beta: float = 2.5, gamma: float = 0.5, alpha: float = 0.25) -> Losses:
    """AlphaPO: SimPO with a reward whose steepness depends on the probability.

    ``loss = -log sigma(beta * (r_chosen - r_rejected) - gamma), r = (1 - p^(-alpha)) / alpha, p = e^m``

    The slope of r in m is p^(-alpha): with alpha > 0 unlikely responses count more, with alpha < 0 less; alpha = 0 is
    r = m, SimPO. gamma is the full margin, not multiplied by beta. Beyond -alpha * m = 40 (at alpha = 0.25: 160 nats
    per token) value and slope of r stay what they are there, so that both are finite for every m. At m_chosen =
    m_rejected the loss is log(1 + e^gamma). An empty response has m = r = 0.

    Args:
        beta: scale of the reward, > 0.
        gamma: margin in units of beta * r, >= 0.
        alpha: shape of the reward, any finite number.

    Source: Gupta et al. 2025, arXiv 2501.03884.
    Peers: TRL (in its CPO) takes p to the power -alpha unprotected: in float32 infinite or NaN gradients below about
        m = -88 / (1 + alpha) and NaN losses where p underflows; its default alpha is 0; it allows label smoothing.
    Departures: the bound on the exponent.
    """
    positive("alphapo", beta=beta)
    non_negative("alphapo", gamma=gamma)
    if not math.isfinite(alpha):
        raise ValueError(f"alphapo: alpha is {alpha}; it must be a finite number")
    chosen, rejected = (_shaped(mean, alpha) for mean in means(pairs, "alphapo"))
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    return Losses(-F.logsigmoid(beta * (chosen - rejected) - gamma), terms)


@needs(view="pairs", reference=False, extras=("gold",))
def tpo(
    pairs: Pairs, *, beta: float = 0.01, tpo_alpha: float = 1.0, label_smoothing: float = 0.0
) -> Losses:
    """Triple Preference Optimization: CPO whose likelihood term is that of a third, best response.

    ``loss = -(1 - eps) * log sigma(z) - eps * log sigma(-z) + tpo_alpha * (-m_gold)``

    z = beta * (S_chosen - S_rejected); m_gold is the mean token log-probability of the best response to the prompt.
    Where policy_gold is None it is the chosen response, and the loss is CPO's. At z = 0 the preference part is ln 2.
    An empty response has S = m = 0. The lengths of the gold responses are needed unless tpo_alpha is 0.

    Args:
        beta: temperature of the preference part, > 0.
        tpo_alpha: weight of the likelihood term, >= 0.
        label_smoothing: assumed share of swapped labels, at least 0 and below 0.5.

    Source: Saeidi et al. 2024, arXiv 2405.16681.
    Peers: TRL averages the likelihood over the tokens of the batch, and demands a gold response.
    Departures: the likelihood is the mean per token of each gold response; label smoothing as in TRL.
    """
    positive("tpo", beta=beta)
    non_negative("tpo", tpo_alpha=tpo_alpha)
    return _contrast(pairs, beta, label_smoothing, tpo_alpha, "tpo", gold=True)


@needs(view="pairs", reference=False, extras=("gold",))
def tpo_l(pairs: Pairs, *, beta: float = 2.0, gamma: float = 0.5, tpo_alpha: float = 1.0) -> Losses:
    """TPO-L: SimPO plus likelihood of a third, best response.

    ``loss = -log sigma(beta * (m_chosen - m_rejected) - gamma) + tpo_alpha * (-m_gold)``

    gamma is the full margin, not multiplied by beta. m_gold is the mean token log-probability of the best response to
    the prompt; where policy_gold is None it is the chosen response. At m_chosen = m_rejected the preference part is
    log(1 + e^gamma). An empty response has m = 0.

    Args:
        beta: scale of the reward, > 0.
        gamma: margin in units of the reward beta * m, >= 0.
        tpo_alpha: weight of the likelihood term, >= 0.

    Source: Saeidi et al. 2024, arXiv 2405.16681.
    Peers: TRL has beta 0.01 as default for both forms, averages the likelihood over the tokens of the batch, and
        demands a gold response.
    Departures: the likelihood is the mean per token of each gold response.
    """
    positive("tpo_l", beta=beta)
    non_negative("tpo_l", gamma=gamma, tpo_alpha=tpo_alpha)
    chosen, rejected = means(pairs, "tpo_l")
    z = beta * (chosen - rejected) - gamma
    losses = Losses(-F.logsigmoid(z), reward_terms(pairs, beta * chosen, beta * rejected))
    return _add_nll(losses, tpo_alpha, _gold(pairs), "tpo_l")


class _Response(NamedTuple):
    """Whose likelihood is added."""

    policy: Tensor
    length: Tensor | None
    field: str
    """The field of `Pairs` that `length` is."""


@needs(view="pairs", reference=False, extras=("gold",))
def gold_nll(pairs: Pairs) -> Losses:
    """Likelihood of the gold response: TPO's anchor by itself, to be added to any objective of pairs.

    ``loss = -m_gold``

    m_gold is the mean token log-probability of the best response to the prompt, the chosen one where policy_gold is
    None. TPO's hinge and IPO forms are loss_type [hinge, gold_nll] and [ipo, gold_nll] with reference_free. An empty
    response gives 0.

    Source: Saeidi et al. 2024, arXiv 2405.16681.
    Peers: TRL 1.16 averages over the tokens of the batch.
    Departures: the mean per token of each gold response.
    """
    nothing = Losses(as_float32(pairs.policy_chosen).new_zeros(pairs.policy_chosen.shape), {})
    return _add_nll(nothing, 1.0, _gold(pairs), "gold_nll")


def _contrast(
    pairs: Pairs, beta: float, eps: float, weight: float, objective: str, *, gold: bool = False
) -> Losses:
    """The loss that CPO and TPO share; they differ in whose likelihood is added."""
    chosen, rejected = sums(pairs)
    loss = _smoothed(beta * (chosen - rejected), eps, objective)
    losses = Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))
    return _add_nll(losses, weight, _gold(pairs) if gold else _chosen(pairs), objective)


def _chosen(pairs: Pairs) -> _Response:
    return _Response(pairs.policy_chosen, pairs.length_chosen, "length_chosen")


def _gold(pairs: Pairs) -> _Response:
    """The gold response, the chosen one where there is none."""
    if pairs.policy_gold is None:
        return _chosen(pairs)
    return _Response(pairs.policy_gold, pairs.length_gold, "length_gold")


def _add_nll(losses: Losses, weight: float, response: _Response, objective: str) -> Losses:
    """`losses` plus `weight` times the negative mean token log-probability, which is logged as `nll`."""
    if weight == 0:
        return losses
    length = require(response.length, response.field, objective).clamp(min=1)
    nll = -as_float32(response.policy) / length
    return Losses(losses.loss + weight * nll, {**losses.terms, "nll": nll.detach()})


def _smoothed(z: Tensor, eps: float, objective: str) -> Tensor:
    """(1 - eps) * -log sigma(z) + eps * -log sigma(-z), written with one logarithm."""
    fraction(objective, below=0.5, label_smoothing=eps)
    return -F.logsigmoid(z) + eps * z if eps else -F.logsigmoid(z)


def _shaped(mean: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward (1 - e^(-alpha m)) / alpha, whose exponent is bounded without losing its gradient."""
    if alpha == 0:
        return mean
    exponent = -alpha * mean
    bounded = exponent.clamp(max=_STEEPEST).detach() + (exponent - exponent.detach())
    return -torch.expm1(bounded) / alpha
