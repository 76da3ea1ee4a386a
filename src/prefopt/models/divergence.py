"""KL divergence of a live reference from the policy at scored positions, without `[tokens, vocabulary]` logits."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.models.head import OutputHead


class PredictorStates(NamedTuple):
    """What a model predicts the scored tokens from."""

    hidden: Tensor
    """[N, H] last hidden states at the predictors."""
    head: OutputHead


def token_kl(policy: PredictorStates, reference: PredictorStates, *, chunk_bytes: int) -> Tensor:
    """KL(reference || policy) of the next-token distributions at N positions, `[N]` nats, float32.

    ``sum_v q_v (log q_v - log p_v)`` over the whole vocabulary, with p the policy and q the reference. Gradients
    flow to the policy only. Each chunk of logits is computed again in the backward pass instead of being kept;
    `chunk_bytes` bounds the float32 logits of one model.
    """
    rows = max(1, chunk_bytes // (4 * policy.head.weight.shape[0]))
    parts = [
        cast("Tensor", checkpoint(_chunk, hidden, policy.head, other, reference.head, use_reentrant=False))
        for hidden, other in zip(policy.hidden.split(rows), reference.hidden.split(rows), strict=True)
    ]  # fmt: skip
    return torch.cat(parts)


def _chunk(hidden: Tensor, head: OutputHead, other: Tensor, other_head: OutputHead) -> Tensor:
    log_p = _log_softmax(hidden, head)
    with torch.no_grad():
        log_q = _log_softmax(other, other_head)
    difference = log_q - log_p
    # A token that the reference excludes has log q = -inf and adds 0, not 0 * inf.
    return torch.where(torch.isneginf(log_q), 0.0, torch.exp(log_q) * difference).sum(-1)


def _log_softmax(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = F.linear(hidden, head.weight.to(hidden.dtype))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return F.log_softmax(logits, dim=-1)
