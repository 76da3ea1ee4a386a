"""The one place where a causal language model is run for training: batch in, token log-probabilities out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefopt.models.attention import attention_mask
from prefopt.models.divergence import PredictorStates, token_kl
from prefopt.models.head import TokenLogps, token_logps
from prefopt.models.load import CausalModel, attention_name, find_backbone, output_head
from prefopt.pack.batch import PackedBatch

SCORER_VERSION = "1"
"""Part of the key of cached log-probabilities: raise it when their values change."""


class Scorer(nn.Module):
    """Wraps a causal language model; what is trained and distributed is this module.

    Args:
        model: any transformers causal LM, or a PEFT model around one.
        chunk_bytes: bound on one chunk of logits in the head, in bytes.
        statistics: extra head statistics to return (`entropy`, `collision`).
    """

    def __init__(
        self,
        model: CausalModel,
        *,
        chunk_bytes: int = 1 << 26,
        statistics: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.chunk_bytes = chunk_bytes
        self.statistics = statistics

    def forward(self, batch: PackedBatch, against: PredictorStates | None = None) -> TokenLogps:
        """Log-probability [N] of each scored token, float32, nats; with `against`, also the KL from it."""
        states = self.states(batch)
        with torch.autocast(states.hidden.device.type, enabled=False):
            logps = token_logps(
                states.hidden,
                states.head,
                batch.target,
                chunk_bytes=self.chunk_bytes,
                statistics=self.statistics,
            )
            if against is None:
                return logps
            return logps._replace(kl=token_kl(states, against, chunk_bytes=self.chunk_bytes))

    def states(self, batch: PackedBatch) -> PredictorStates:
        """What the scored tokens are predicted from."""
        hidden = self.hidden_states(batch)
        picked = hidden.flatten(0, 1).index_select(0, batch.predictor)
        if torch.is_autocast_enabled(picked.device.type):
            picked = picked.to(torch.get_autocast_dtype(picked.device.type))
        return PredictorStates(picked, output_head(self.model))

    def hidden_states(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [B, L, H] under the batch's mask."""
        backbone = find_backbone(self.model)
        implementation = attention_name(self.model)
        mask = attention_mask(batch, implementation=implementation, dtype=self.model.dtype)
        # Chains need no positions: handing them over would make transformers look for packed sequences.
        position = None if mask is None else batch.position
        out = backbone(
            input_ids=batch.tokens, position_ids=position, attention_mask=mask, use_cache=False
        )
        return out.last_hidden_state


def sum_by_response(batch: PackedBatch, values: Tensor) -> Tensor:
    """Weighted sum [R] of per-token `values` [N] over the scored tokens of each response, float32."""
    total = values.new_zeros(len(batch.group))
    return total.index_add(0, batch.response, values[batch.token] * batch.weight.to(values.dtype))


def common_sums(batch: PackedBatch, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums [P] over the first min(n_chosen, n_rejected) scored tokens of each pair's two responses.

    The scored tokens of a response are taken in the order in which they are generated. Prefix sums are float64:
    the difference of two large ones would lose digits in float32.
    """
    order = torch.argsort(batch.response, stable=True)
    weighted = values[batch.token[order]] * batch.weight[order].to(values.dtype)
    total = F.pad(weighted.double().cumsum(0), (1, 0))
    length = torch.bincount(batch.response, minlength=len(batch.group))
    start = length.cumsum(0) - length
    common = torch.minimum(length[batch.chosen], length[batch.rejected])
    chosen, rejected = (
        total[start[side] + common] - total[start[side]] for side in (batch.chosen, batch.rejected)
    )
    return chosen.to(values.dtype), rejected.to(values.dtype)


def lengths(batch: PackedBatch) -> Tensor:
    """Number [R] of scored tokens of each response, float32."""
    count = torch.zeros(len(batch.group), dtype=torch.float32, device=batch.token.device)
    return count.index_add(0, batch.response, torch.ones_like(batch.weight))
