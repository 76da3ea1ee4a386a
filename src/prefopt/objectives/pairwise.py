"""Pairwise objectives that see a pair only through its margin h, policy against reference: one loss per pair.

Symbols: S = summed log-probability of a response, n = its scored tokens, rho = S_policy - S_reference (log-ratio),
h = rho_chosen - rho_rejected, z = beta * h, sigma = logistic function, eps = label_smoothing. All in nats, all `[P]`.
Losses of each response on its own live in `pointwise`, losses with an offset of the data in `offsets`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from prefopt.objectives.parameters import fraction, positive
from prefopt.objectives.terms import lengths, log_ratios, reward_terms
from prefopt.objectives.types import Losses, Pairs, needs


@needs(view="pairs")
def dpo(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Direct Preference Optimization: raises the chosen response against the rejected one.

    ``loss = -log sigma(z)``

    At theta = reference the loss is ln 2 with slope d loss / d h = -beta / 2. It falls towards 0 and never reaches it:
    nothing but the slope, which vanishes as e^-z, stops the margin from growing. A wrong order costs about -z.
    An empty response has rho = 0.

    Args:
        beta: strength of the implicit KL anchor to the reference, > 0; small values let the policy move far.

    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7.
    Departures: none; label smoothing is a loss of its own, `cdpo`.
    """
    positive("dpo", beta=beta)
    chosen, rejected = log_ratios(pairs, "dpo")
    loss = -F.logsigmoid(beta * (chosen - rejected))
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def cdpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.2) -> Losses:
    """Conservative DPO: DPO for labels of which a known share is wrong, with a finite best margin.

    ``loss = -(1 - eps) log sigma(z) - eps log sigma(-z)``

    Convex with its minimum at z = log((1 - eps) / eps), where it is the entropy of eps: larger margins are pushed back.
    At theta = reference the loss is ln 2 with slope d loss / d h = -beta (1 - 2 eps) / 2. eps = 0 is DPO.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        label_smoothing: share of pairs whose order is believed to be wrong, at least 0 and below 0.5.

    Source: Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO, eq. 3.
    Peers: HALOs 0.2 by default, the DPO repository, OpenRLHF and open-instruct 0. LLaMA-Factory smooths its sigmoid
        loss only. TRL 1.16 accepts label_smoothing with its sigmoid loss and ignores it: what it trains is plain DPO.
    Departures: none.
    """
    positive("cdpo", beta=beta)
    fraction("cdpo", below=0.5, label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(pairs, "cdpo")
    z = beta * (chosen - rejected)
    loss = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def robust(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Losses:
    """Robust DPO: DPO with randomly flipped labels, corrected to be unbiased for the true labels.

    ``loss = (-(1 - eps) log sigma(z) + eps log sigma(-z)) / (1 - 2 eps)``

    Averaged over flips with probability eps this is the DPO loss of the true order. It is unbounded below: for large z
    it falls by eps / (1 - 2 eps) per unit of z for ever, so watch the margins or stop early. At theta = reference the
    loss is ln 2 with slope d loss / d h = -beta / (2 (1 - 2 eps)). eps = 0 is DPO.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        label_smoothing: probability that the order of a pair was flipped, at least 0 and below 0.5.

    Source: Chowdhury et al. 2024, arXiv 2403.00409.
    Peers: TRL 1.16 has the same formula and only warns when eps is out of range; eps = 0.5 divides by zero there.
    Departures: none.
    """
    positive("robust", beta=beta)
    fraction("robust", below=0.5, label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(pairs, "robust")
    z = beta * (chosen - rejected)
    unscaled = -(1 - label_smoothing) * F.logsigmoid(z) + label_smoothing * F.logsigmoid(-z)
    loss = unscaled / (1 - 2 * label_smoothing)
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def hinge(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Hinge loss with a reference (SLiC-norm, RSO): asks for z >= 1 and no more.

    ``loss = max(0, 1 - z)``

    At theta = reference the loss is 1 with slope d loss / d h = -beta. A pair with z >= 1 has loss and gradient 0:
    when every pair is there, training stands still.

    Args:
        beta: inverse of the margin h asked for, in 1 / nats, > 0.

    Source: Liu et al. 2023 (RSO), arXiv 2309.06657; without a reference, and not scaled, Zhao et al. 2023 (SLiC-HF),
        arXiv 2305.10425, which is `slic` here.
    Departures: none.
    """
    positive("hinge", beta=beta)
    chosen, rejected = log_ratios(pairs, "hinge")
    loss = torch.relu(1 - beta * (chosen - rejected))
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def ipo(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Identity Preference Optimization on length means: regresses the margin per token to a target.

    ``loss = (rho_chosen / n_chosen - rho_rejected / n_rejected - 1 / (2 beta))^2``

    The margin is in nats per token. Minimum 0 at the target 1 / (2 beta); a margin beyond it is pushed back. At
    theta = reference the loss is 1 / (4 beta^2). An empty response has rho / n = 0. The logged rewards are beta * rho,
    of the sums, like everywhere.

    Args:
        beta: the paper's tau, half the inverse of the target margin, > 0.

    Source: Azar et al. 2023, arXiv 2310.12036, eq. 17.
    Peers: length means as here in TRL 1.16 (DPO, CPO, TPO), HALOs and LLaMA-Factory; sums (`ipo_sum`) in the original
        DPO repository, OpenRLHF, turbo-alignment by default and TRL's OnlineDPO. The same beta means something else.
    Departures: the paper has no length normalisation; TRL says its authors confirmed it for their experiments.
    """
    positive("ipo", beta=beta)
    chosen, rejected = log_ratios(pairs, "ipo")
    length_chosen, length_rejected = lengths(pairs, "ipo")
    loss = (chosen / length_chosen - rejected / length_rejected - 1 / (2 * beta)).square()
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def ipo_sum(pairs: Pairs, *, beta: float = 0.1) -> Losses:
    """Identity Preference Optimization on sums: regresses the margin of whole responses to a target.

    ``loss = (h - 1 / (2 beta))^2``

    The margin is in nats. Minimum 0 at h = 1 / (2 beta); a margin beyond it is pushed back. At theta = reference the
    loss is 1 / (4 beta^2) with slope d loss / d h = -1 / beta. An empty response has rho = 0.

    Args:
        beta: the paper's tau, half the inverse of the target margin, > 0.

    Source: Azar et al. 2023, arXiv 2310.12036, eq. 17.
    Peers: sums as here in the original DPO repository, OpenRLHF, turbo-alignment by default and TRL's OnlineDPO;
        length means (`ipo`) in TRL 1.16 (DPO, CPO, TPO), HALOs and LLaMA-Factory.
    Departures: none.
    """
    positive("ipo_sum", beta=beta)
    chosen, rejected = log_ratios(pairs, "ipo_sum")
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def dpo_norm(pairs: Pairs, *, beta: float = 5.0) -> Losses:
    """Length-normalised DPO: DPO on log-ratios per token, so that long responses do not dominate.

    ``loss = -log sigma(beta * (rho_chosen / n_chosen - rho_rejected / n_rejected))``

    The margin is in nats per token, hence the large beta. With equal lengths n this is DPO with beta / n. At
    theta = reference the loss is ln 2. An empty response has rho / n = 0. The logged rewards are beta * rho, of the
    sums, like everywhere.

    Args:
        beta: strength of the anchor per token, > 0; about the mean length times the beta of DPO.

    Source: Lambert et al. 2024 (Tülu 3), arXiv 2411.15124.
    Peers: `sigmoid_norm` in TRL 1.16, the same formula with its general default beta = 0.1, some 50 times weaker.
    Departures: none.
    """
    positive("dpo_norm", beta=beta)
    chosen, rejected = log_ratios(pairs, "dpo_norm")
    length_chosen, length_rejected = lengths(pairs, "dpo_norm")
    loss = -F.logsigmoid(beta * (chosen / length_chosen - rejected / length_rejected))
    return Losses(loss, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def exo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Losses:
    """Efficient Exact Optimization for pairs: the reverse KL from the policy's preference to the label.

    ``loss = q (log q - log(1 - eps)) + (1 - q) (log(1 - q) - log eps)  with q = sigma(z)``

    KL(q || label) where DPO has KL(label || q). Between 0, at z* = log((1 - eps) / eps), and -log eps for z far below.
    d loss / d z = q (1 - q) (z - z*): a pair in strongly wrong order hardly moves. At theta = reference the loss is
    -log(eps (1 - eps)) / 2 - ln 2.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        label_smoothing: probability of the rejected response under the label, above 0 and below 0.5; at 0 the KL
            is infinite.

    Source: Ji et al. 2024, arXiv 2402.00856, eq. 16.
    Peers: `exo_pair` in TRL 1.16, the same, whose default eps = 0 raises; older TRL turned 0 into 1e-3 silently.
    Departures: none.
    """
    positive("exo", beta=beta, label_smoothing=label_smoothing)
    fraction("exo", below=0.5, label_smoothing=label_smoothing)
    chosen, rejected = log_ratios(pairs, "exo")
    z = beta * (chosen - rejected)
    right = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(label_smoothing))
    return Losses(right + wrong, reward_terms(pairs, beta * chosen, beta * rejected))


@needs(view="pairs")
def discopop(pairs: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> Losses:
    """Discovered Preference Optimization: a gated blend of the logistic and the exponential loss.

    ``loss = -(1 - q) log sigma(z) + q e^-z  with q = sigma(z / tau)``

    Found by a language model's search over losses. Not convex: at theta = reference the loss is (ln 2 + 1) / 2 with
    slope d loss / d z = (1 - ln 2) / (4 tau) - 3/4, which is +0.78 at the default tau; there is a local minimum just
    below z = 0 and a ridge just above. The product q e^-z is computed in logarithms and finite for tau <= 1.

    Args:
        beta: strength of the implicit KL anchor, > 0.
        tau: width of the gate in units of z, above 0 and at most 1.

    Source: Lu et al. 2024, arXiv 2406.08414, eq. 5.
    Peers: TRL 1.16 multiplies q and e^-z, which is 0 * inf = NaN in float32 below z = -88.
    Departures: none.
    """
    positive("discopop", beta=beta, tau=tau)
    fraction("discopop", tau=tau)
    chosen, rejected = log_ratios(pairs, "discopop")
    z = beta * (chosen - rejected)
    logistic = -torch.sigmoid(-z / tau) * F.logsigmoid(z)
    exponential = torch.exp(F.logsigmoid(z / tau) - z)
    return Losses(logistic + exponential, reward_terms(pairs, beta * chosen, beta * rejected))
