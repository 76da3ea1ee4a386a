"""Pairwise objectives with statistics of every token: the reference's entropy, the KL between the models.

Symbols: S = summed log-probability of a response under the policy, n its scored tokens, rho = S_policy - S_reference,
h = rho_chosen - rho_rejected, sigma = logistic function. All in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.parameters import non_negative, positive
from prefopt.objectives.terms import lengths, log_ratios, reward_terms
from prefopt.objectives.types import Losses, Pairs, needs, require

LEAST_DISPERSION = 1e-6
"""The floor of MallowsPO's normalised entropy: a reference that is certain of every token has phi = 13.8 * scale."""


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
    positive("mallows", beta=beta)
    phi = _phi(pairs, scale, "mallows")
    chosen, rejected = log_ratios(pairs, "mallows")
    terms = reward_terms(pairs, beta * chosen, beta * rejected)
    terms["phi"] = phi
    return Losses(-F.logsigmoid(phi * beta * (chosen - rejected)), terms)


@needs(view="pairs", extras=("dispersion",))
def mallows_ipo(pairs: Pairs, *, beta: float = 0.1, scale: float = 0.29) -> Losses:
    """MallowsPO in IPO's form: the dispersed margin is regressed to a fixed target.

    ``loss = (phi * h - 1 / (2 beta))^2, phi = -scale * log H, H = (d_chosen / n_chosen + d_rejected / n_rejected) / 2``

    phi as in `mallows`; h in sums of log-probabilities. 1 / (4 beta^2) at theta = reference, 0 at h = 1 / (2 beta phi).
    An empty response has rho = 0.

    Args:
        beta: reciprocal of twice the target, > 0.
        scale: c, the factor of the dispersion, > 0.

    Source: Chen et al. 2024, arXiv 2405.14953.
    Departures: the clamp of H, as in `mallows`.
    """
    positive("mallows_ipo", beta=beta)
    phi = _phi(pairs, scale, "mallows_ipo")
    chosen, rejected = log_ratios(pairs, "mallows_ipo")
    loss = (phi * (chosen - rejected) - 1 / (2 * beta)).square()
    return Losses(loss, {**reward_terms(pairs, beta * chosen, beta * rejected), "phi": phi})


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


def _phi(pairs: Pairs, scale: float, objective: str) -> Tensor:
    """MallowsPO's weight of the margin `[P]`, a constant of the data."""
    positive(objective, scale=scale)
    length_chosen, length_rejected = lengths(pairs, objective)
    entropy_chosen = require(pairs.dispersion_chosen, "dispersion_chosen", objective)
    entropy_rejected = require(pairs.dispersion_rejected, "dispersion_rejected", objective)
    dispersion = (entropy_chosen / length_chosen + entropy_rejected / length_rejected).detach() / 2
    return -scale * torch.log(dispersion.clamp(min=LEAST_DISPERSION, max=1.0))
