"""Likelihood objectives: one loss per response, no pairs, no reference."""

from __future__ import annotations

from prefopt.objectives.types import Losses, Scores, as_float32, needs


@needs(view="responses", reference=False)
def sft(scores: Scores) -> Losses:
    """Negative log-likelihood of a response, mean over its scored tokens: ``-S / n``, in nats per token.

    The learner weighs each response with its length, so the batch loss is the mean over *tokens* of the
    global batch, as in ordinary supervised fine-tuning. An empty response gives 0.
    """
    length = scores.length.clamp(min=1)
    loss = -as_float32(scores.policy) / length
    return Losses(loss, {"logps/response": scores.policy.detach(), "nll": loss.detach()})
