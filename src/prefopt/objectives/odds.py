"""Pairwise objectives on the odds of a response, without a reference: ORPO and ASFT.

Symbols: m = mean log-probability of a response's scored tokens under the policy, p = e^m (the geometric mean of
their probabilities), r = log(p / (1 - p)) = m - log(1 - e^m) the odds score, sigma = logistic function. All in
nats, all `[P]`. Sums instead of means would make p underflow and the rejected side vanish silently, hence lengths
are demanded. Nothing here reduces, gathers, logs or reads a configuration.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import non_negative, positive
from prefopt.objectives.terms import log1mexp, means, reward_terms
from prefopt.objectives.types import Losses, Pairs, needs, require


@needs(view="pairs", reference=False)
def orpo(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Odds Ratio Preference Optimization: likelihood of the chosen response plus a penalty on the odds ratio.

    ``loss = -m_chosen - beta * log sigma(r_chosen - r_rejected), r = m - log(1 - e^m)``

    The gradient of the second term carries 1 / (1 + odds_chosen / odds_rejected) and fades once the pair is apart.
    At m_chosen = m_rejected it is beta * ln 2. Above m = -1e-6 log(1 - e^m) keeps its value -13.8 and its slope
    -1e6. An empty response has no term: the odds term of its pair is 0 without gradient; data preparation drops
    such responses before.

    Args:
        beta: weight of the odds term, > 0; the paper calls it lambda. It is not a temperature.

    Source: Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7.
    Peers: TRL takes the likelihood over the tokens of prompt and response and averages it over the batch, logs
        beta * m as reward, and gives NaN gradients for m > -3e-8; turbo-alignment has a temperature too and calls
        that one beta.
    Departures: the likelihood is the mean per token of each chosen response; the prompt does not count.
    """
    positive("orpo", beta=beta)
    chosen, rejected = _sides(pairs, "orpo")
    nll = -chosen.mean * chosen.present
    odds_chosen, odds_rejected = _odds(chosen.mean), _odds(rejected.mean)
    both = chosen.present * rejected.present
    loss = nll - beta * F.logsigmoid(odds_chosen - odds_rejected) * both
    return Losses(loss, _terms(pairs, beta, chosen, rejected))


@needs(view="pairs", reference=False)
def asft(pairs: Pairs, *, lambda_: float = 1.0, ce_coef: float = 1.0, beta: float = 1.0) -> Losses:
    """Aligned Supervised Fine-Tuning: likelihood of the chosen response, unlikelihood of the rejected one.

    ``loss = -ce_coef * m_chosen + lambda_ * (-log sigma(beta * r_chosen) - log sigma(-beta * r_rejected))``

    With beta = 1 this is -(ce_coef + lambda_) * m_chosen - lambda_ * log(1 - e^m_rejected) and computed so: the chosen
    side has no singularity, and its slope -(ce_coef + lambda_) never fades. The slope in m_rejected is lambda_ times
    the odds p / (1 - p). The two responses do not interact: equal texts do not cancel. At p = 1/2 on both sides the
    loss is (ce_coef + 2 * lambda_) * ln 2. Above m = -1e-6 log(1 - e^m) keeps its value -13.8 and its slope -1e6. An
    empty response has no term and no gradient; data preparation drops such responses before. ce_coef = 0 is the
    second stage after ordinary fine-tuning.

    Args:
        lambda_: weight of the alignment part, >= 0.
        ce_coef: weight of the likelihood of the chosen response, >= 0.
        beta: temperature of the odds scores, > 0; 1 is the original.

    Source: Wang et al. 2024, arXiv 2409.10571; temperature: Gorbatovski et al. 2025, arXiv 2502.01237.
    Peers: turbo-alignment clamps p at 1 - 1e-7, which stops the gradient there, and logs beta * m as reward; the
        ASFT of LLaMA-Factory, Unsloth and NeMo-RL is Anchored SFT (arXiv 2509.23753), which is unrelated.
    Departures: none.
    """
    positive("asft", beta=beta)
    non_negative("asft", lambda_=lambda_, ce_coef=ce_coef)
    if lambda_ == 0 and ce_coef == 0:
        raise ValueError("asft: lambda_ 0 and ce_coef 0 leave nothing to train; set one of them")
    chosen, rejected = _sides(pairs, "asft")
    nll = -chosen.mean * chosen.present
    if beta == 1:
        align = nll - log1mexp(rejected.mean) * rejected.present
    else:
        align = (
            -F.logsigmoid(beta * _odds(chosen.mean)) * chosen.present
            - F.logsigmoid(-beta * _odds(rejected.mean)) * rejected.present
        )
    return Losses(ce_coef * nll + lambda_ * align, _terms(pairs, beta, chosen, rejected))


class _Side(NamedTuple):
    """The chosen or the rejected responses."""

    mean: Tensor
    """m `[P]`; -1 without gradient for an empty response."""
    present: Tensor
    """1 where the response has scored tokens, else 0."""


def _sides(pairs: Pairs, objective: str) -> tuple[_Side, _Side]:
    """Means of the chosen and rejected responses, ready for logarithms of odds."""
    chosen, rejected = means(pairs, objective)
    return (
        _side(chosen, require(pairs.length_chosen, "length_chosen", objective)),
        _side(rejected, require(pairs.length_rejected, "length_rejected", objective)),
    )


def _side(mean: Tensor, length: Tensor) -> _Side:
    present = length > 0
    # Without tokens m = 0 would say p = 1, infinite odds. 0 * mean drops the gradient but keeps a NaN a NaN.
    return _Side(torch.where(present, mean, 0 * mean - 1), present.to(mean.dtype))


def _odds(mean: Tensor) -> Tensor:
    return mean - log1mexp(mean)


def _terms(pairs: Pairs, beta: float, chosen: _Side, rejected: _Side) -> dict[str, Tensor]:
    """What both log: beta times the odds scores as rewards, and the likelihood of the chosen response."""
    rewards = (beta * _odds(side.mean.detach()) * side.present for side in (chosen, rejected))
    return {**reward_terms(pairs, *rewards), "nll": (-chosen.mean * chosen.present).detach()}
