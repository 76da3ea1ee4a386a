"""Pairwise objectives that shift the margin: by a column of the data, by scores, by a constant, by a penalty.

Symbols as in `pairwise`: rho = S_policy - S_reference, h = rho_chosen - rho_rejected, z = beta * h, and s = the score
that the data gives a response. What to do with pairs whose scores an objective cannot use is the method's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import non_negative, positive
from prefopt.objectives.terms import log_ratios, reward_terms
from prefopt.objectives.types import Losses, Pairs, as_float32, needs, require

Offset: TypeAlias = Literal["log", "difference", "log_ratio"]
"""The function of the scores that becomes ODPO's offset."""

Unscored: TypeAlias = Literal["error", "dpo"]
"""What a pair with a missing score is."""


@needs(view="pairs", annotations=("scores",))
def odpo(
    pairs: Pairs,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    offset: Offset = "log",
    delta_min: float | None = None,
    unscored: Unscored = "error",
) -> Losses:
    """DPO with an offset: the better the chosen response by its score, the larger the margin asked for.

    ``loss = -log sigma(z - Delta)  with Delta = alpha log(s_chosen - s_rejected)``

    or, by `offset`, Delta = alpha (s_chosen - s_rejected) or alpha (log s_chosen - log s_rejected). Delta is outside
    beta and has no gradient: d loss / d z = -sigma(Delta - z). With g = s_chosen - s_rejected the log form is
    log(1 + g^alpha e^-z), log(1 + g^alpha) at theta = reference: DPO at g = 1, weaker below, stronger above, so the
    unit of the scores matters (a factor c adds alpha log c to every Delta); a tie has loss and gradient 0, and its
    offset is logged as 0 (`ties` is the share of such pairs). alpha = 0 is DPO, bit for bit, whatever the scores are.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        alpha: strength of the offset, >= 0.
        offset: "log" (of the difference), "difference" or "log_ratio".
        delta_min: floor of Delta, so that near-ties keep some weight; None: none, as published.
        unscored: what pairs with a NaN or infinite score are: an "error", or plain "dpo" (Delta = 0).

    Source: Amini et al. 2024, arXiv 2402.10571.
    Peers: TRL 1.16 has no margin or offset in its DPO trainer. turbo-alignment's `sigmoid_with_margin` is `dpo_margin`.
    Departures: scores that have no offset raise an error, where the official code trains on NaN: NaN or infinite
        scores, a chosen score below the rejected one (log), a score <= 0 (log_ratio). Ties at alpha = 0 are DPO.
    """
    positive("odpo", beta=beta)
    score_chosen = require(pairs.score_chosen, "score_chosen", "odpo")
    score_rejected = require(pairs.score_rejected, "score_rejected", "odpo")
    delta = odpo_offset(
        score_chosen,
        score_rejected,
        alpha=alpha,
        offset=offset,
        delta_min=delta_min,
        unscored=unscored,
    )
    chosen, rejected = log_ratios(pairs, "odpo")
    z = beta * (chosen - rejected)
    # The offset of a tie is minus infinity, which has no place in a graph or a log: it never meets z.
    tie = torch.isneginf(delta)
    delta = delta.masked_fill(tie, 0.0)
    loss = (-F.logsigmoid(z - delta)).masked_fill(tie, 0.0)
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    terms |= {
        "offset": delta,
        "score_gap": (score_chosen - score_rejected).detach(),
        "ties": tie.to(delta.dtype),
    }
    return Losses(loss, terms)


def odpo_offset(
    score_chosen: Tensor,
    score_rejected: Tensor,
    *,
    alpha: float = 1.0,
    offset: Offset = "log",
    delta_min: float | None = None,
    unscored: Unscored = "error",
) -> Tensor:
    """The offsets Delta of ODPO from the scores of the chosen and the rejected responses, `[P]`, without gradient.

    ``alpha log(s_chosen - s_rejected)``, ``alpha (s_chosen - s_rejected)`` or ``alpha (log s_chosen - log s_rejected)``
    in units of the implicit reward, at least `delta_min`. Minus infinity for a tie in the log form (without a floor); 0
    for alpha = 0 whatever the scores are, and for pairs without a score where `unscored` is "dpo".
    Integer and half-precision scores are taken as float32. Raises `ValueError` for scores that have no offset, with the
    number of such pairs and the first of them.
    """
    non_negative("odpo", alpha=alpha)
    if offset not in _FORMS:
        known = ", ".join(repr(name) for name in _FORMS)
        raise ValueError(f"odpo: offset is {offset!r}; it must be one of {known}")
    chosen, rejected = as_float32(score_chosen).detach(), as_float32(score_rejected).detach()
    if alpha == 0:
        return torch.zeros_like(chosen)
    form = _FORMS[offset]
    plain = torch.zeros_like(chosen, dtype=torch.bool)
    if unscored == "dpo":
        plain = _MISSING.found(chosen, rejected)
        chosen, rejected = chosen.masked_fill(plain, 2.0), rejected.masked_fill(plain, 1.0)
    _check_scores(chosen, rejected, form)
    delta = alpha * form.of(chosen, rejected)
    if delta_min is not None:
        if not math.isfinite(delta_min):
            raise ValueError(f"odpo: delta_min is {delta_min}; it must be a finite number, or None")
        delta = delta.clamp(min=delta_min)
    return delta.masked_fill(plain, 0.0)


@needs(view="pairs", annotations=("margins",))
def dpo_margin(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """DPO with a margin from the data: asks z of each pair to exceed the margin that the pair brings.

    ``loss = -log sigma(z - margin)``

    The margin is in units of the implicit reward, outside beta, of either sign, and has no gradient. d loss / d z =
    -sigma(margin - z). At theta = reference the loss is log(1 + e^margin). margin = 0 is DPO.

    Args:
        beta: strength of the implicit KL anchor, > 0.

    Source: Touvron et al. 2023 (Llama 2), arXiv 2307.09288, there for reward models.
    Peers: turbo-alignment's `sigmoid_with_margin`. TRL 1.16 takes a margin in its reward trainer only.
    Departures: the reward is the implicit one of DPO.
    """
    positive("dpo_margin", beta=beta)
    margin = require(pairs.margin, "margin", "dpo_margin").detach()
    chosen, rejected = log_ratios(pairs, "dpo_margin")
    loss = -F.logsigmoid(beta * (chosen - rejected) - margin)
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def home_advantage(pairs: Pairs, *, beta: float = 0.1, advantage: float = 0.0) -> Losses:
    """DPO with a constant offset: the chosen response has to lead by more than a fixed margin.

    ``loss = -log sigma(beta * (h - advantage))``

    The advantage is in nats of h, inside beta. d loss / d h = -beta sigma(-beta (h - advantage)). At theta = reference
    the loss is log(1 + e^(beta * advantage)). advantage = 0 is DPO.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        advantage: margin asked for, in nats, of either sign.

    Source: Zhao et al. 2024 (RainbowPO), arXiv 2410.04203.
    Departures: none.
    """
    positive("home_advantage", beta=beta)
    if not math.isfinite(advantage):
        raise ValueError(f"home_advantage: advantage is {advantage}; it must be a finite number")
    chosen, rejected = log_ratios(pairs, "home_advantage")
    loss = -F.logsigmoid(beta * (chosen - rejected - advantage))
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def dpop(pairs: Pairs, *, beta: float = 0.3, lambda_: float = 50.0) -> Losses:
    """DPO-Positive (Smaug): DPO that is penalised when the chosen response becomes less likely.

    ``loss = -log sigma(beta * (h - lambda_ * max(0, -rho_chosen)))``

    The penalty is inside beta. Where the chosen response has become less likely than under the reference, the slope of
    the bracket in rho_chosen is 1 + lambda_ instead of 1; elsewhere the loss is DPO's. At theta = reference, the kink,
    the loss is ln 2 and the gradient that of DPO. lambda_ = 0 is DPO.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        lambda_: strength of the penalty, >= 0.

    Source: Pal et al. 2024, arXiv 2402.13228, eq. 3.
    Peers: turbo-alignment has lambda 0.1 by default.
    Departures: none.
    """
    positive("dpop", beta=beta)
    non_negative("dpop", lambda_=lambda_)
    chosen, rejected = log_ratios(pairs, "dpop")
    loss = -F.logsigmoid(beta * (chosen - rejected - lambda_ * torch.relu(-chosen)))
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs", annotations=("scores",))
def mmpo(pairs: Pairs, *, beta: float = 0.1, gamma: float = 1.0) -> Losses:
    """Margin Matching Preference Optimization: soft labels from the difference of the scores.

    ``loss = -p log sigma(z) - (1 - p) log sigma(-z)  with p = sigma(gamma * (s_chosen - s_rejected))``

    Convex with its minimum, the entropy of p, at z = gamma * (s_chosen - s_rejected): a good pair is asked for a large
    margin, a tie for none, a pair in the wrong order for the opposite. p has no gradient. At theta = reference the loss
    is ln 2 with slope d loss / d z = 1/2 - p. gamma -> infinity is DPO where s_chosen > s_rejected.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        gamma: implicit reward per unit of score, >= 0.

    Source: Kim et al. 2024, arXiv 2410.03145.
    Peers: `rpo_bwd_kl` of NeMo-Aligner (reward-aware preference optimisation) is this minus the entropy of p, a
        constant of the data: same gradient, minimum 0; its gt_reward_scale is gamma.
    Departures: none.
    """
    positive("mmpo", beta=beta)
    non_negative("mmpo", gamma=gamma)
    score_chosen = require(pairs.score_chosen, "score_chosen", "mmpo")
    score_rejected = require(pairs.score_rejected, "score_rejected", "mmpo")
    gap = (score_chosen - score_rejected).detach()
    chosen, rejected = log_ratios(pairs, "mmpo")
    z = beta * (chosen - rejected)
    agree = torch.sigmoid(gamma * gap) * F.logsigmoid(z)
    oppose = torch.sigmoid(-gamma * gap) * F.logsigmoid(-z)
    terms = reward_terms(pairs, beta * chosen, beta * rejected) | {"score_gap": gap}
    return Losses(-(agree + oppose), terms)


class _Trouble(NamedTuple):
    """Scores that have no offset."""

    found: Callable[[Tensor, Tensor], Tensor]
    """(chosen, rejected) -> [P] bool."""
    what: str
    cure: str


class _Form(NamedTuple):
    """One of the offsets."""

    of: Callable[[Tensor, Tensor], Tensor]
    """(chosen, rejected) -> Delta / alpha `[P]`."""
    troubles: tuple[_Trouble, ...]


_MISSING = _Trouble(
    lambda chosen, rejected: ~(torch.isfinite(chosen) & torch.isfinite(rejected)),
    "a score that is missing or infinite",
    "score them, or let the odpo method drop them or train them as plain DPO",
)
_INVERTED = _Trouble(
    lambda chosen, rejected: chosen < rejected,
    "the lower score on the chosen response, where offset 'log' has no value",
    "swap or drop them (the odpo method does either), or take offset 'difference'",
)
_NOT_POSITIVE = _Trouble(
    lambda chosen, rejected: (chosen <= 0) | (rejected <= 0),
    "a score <= 0, where offset 'log_ratio' has no value",
    "shift the scores above 0, or take offset 'log' or 'difference'",
)
_FORMS: Mapping[str, _Form] = {
    "log": _Form(lambda chosen, rejected: torch.log(chosen - rejected), (_MISSING, _INVERTED)),
    "difference": _Form(lambda chosen, rejected: chosen - rejected, (_MISSING,)),
    "log_ratio": _Form(
        lambda chosen, rejected: torch.log(chosen) - torch.log(rejected), (_MISSING, _NOT_POSITIVE)
    ),
}


def _check_scores(chosen: Tensor, rejected: Tensor, form: _Form) -> None:
    """Nothing if every pair has an offset; a `ValueError` that counts the pairs without and shows the first if not."""
    found = torch.stack([trouble.found(chosen, rejected) for trouble in form.troubles])
    # The one place where an objective waits for the device: scores are data, a bad one is the user's to mend, and the
    # NaN that it would become names no pair. All further waiting is on the way to the error.
    if not bool(found.any()):
        return
    trouble, bad = next(
        (trouble, bad) for trouble, bad in zip(form.troubles, found, strict=True) if bool(bad.any())
    )
    first = int(bad.nonzero()[0].item())
    raise ValueError(
        f"odpo: {int(bad.sum())} of {bad.numel()} pairs with {trouble.what}, the first at index {first} "
        f"(chosen {chosen[first].item():.6g}, rejected {rejected[first].item():.6g}); {trouble.cure}"
    )
