"""Likelihood objectives: one loss per response, no pairs, no reference."""

from __future__ import annotations

from prefopt.objectives.types import Losses, Scores, as_float32, needs


@needs(view="responses", reference=False, mean="tokens")
def sft(scores: Scores) -> Losses:
    """Supervised fine-tuning: the negative log-likelihood of the responses to be imitated, per token.

    ``loss = -S / n``

    Each response weighs as many times as it has scored tokens, so the batch loss is the mean over *tokens* of the
    global batch, as in ordinary supervised fine-tuning. In a sum with pairwise objectives (an NLL anchor, as in RPO)
    only chosen responses count, each once; rejected ones, answers to other prompts and those labelled undesirable
    have weight 0. An empty response gives 0.

    Source: folklore; as an anchor: Pang et al. 2024, arXiv 2404.19733 (a mean per response there, not per token);
    Liu et al. 2024, arXiv 2405.16436.
    Peers: TRL 1.16 counts a chosen response once per pair; LLaMA-Factory (`pref_ftx`) takes the mean per response.
    Departures: none.
    """
    length = scores.length.clamp(min=1)
    loss = -as_float32(scores.policy) / length
    return Losses(loss, {"logps/response": scores.policy.detach(), "nll": loss.detach()})
