"""`prefopt plan`: what a run will cost, without training: tokens, what sharing saves, peak memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from prefopt.models.load import find_backbone
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.plan import Pack, Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def summarise(
    examples: Sequence[Example], schedule: Schedule, model: PreTrainedModel, *, chunk_bytes: int
) -> dict[str, object]:
    """Facts of `plan.json`; tokens are counted over one epoch, memory in bytes per device."""
    rows = [sum(e.row_lengths(Layout.ROWS)) for e in examples]
    layout = schedule.limits.layout
    stored = [sum(e.row_lengths(layout)) for e in examples]
    longest = max(range(len(examples)), key=lambda i: max(examples[i].row_lengths(layout)))
    largest, row_length = _largest_pack(schedule)
    batch = collate(
        [[examples[i] for i in row] for row in largest.rows], layout=layout, row_length=row_length
    )
    memory = estimate_memory(model, batch, chunk_bytes=chunk_bytes)
    return {
        "layout": str(layout),
        "steps": schedule.total_steps,
        "batch_size": schedule.batch_size,
        "world_size": schedule.world_size,
        "examples": len(examples),
        "responses": sum(len(e.tree.leaf) for e in examples),
        "pairs": sum(len(e.pairs) for e in examples),
        "tokens_rows": sum(rows),
        "tokens_tree": sum(stored),
        "tokens_scored": sum(e.scored_tokens for e in examples),
        "saved": 1 - sum(stored) / max(1, sum(rows)),
        "padded_tokens": _padded(schedule),
        "longest": {
            "id": examples[longest].id,
            "tokens": max(examples[longest].row_lengths(layout)),
        },
        "largest_batch": list(batch.ids),
        "memory": memory,
        "peak_memory_bytes": sum(memory.values()),
    }


def _largest_pack(schedule: Schedule) -> tuple[Pack, int | None]:
    """The micro-batch of the first epoch with most positions, padding included."""
    packs = [p for step in schedule.epoch(0) for rank in step.ranks for p in rank if p.rows]
    return max(packs, key=lambda p: _positions(p, schedule)), schedule.limits.row_length


def _positions(pack: Pack, schedule: Schedule) -> int:
    if schedule.limits.row_length is not None:
        return schedule.limits.row_length
    lengths = [n for i in pack.items for n in schedule.lengths[i]]
    return max(lengths) * len(lengths)


def _padded(schedule: Schedule) -> int:
    return sum(
        _positions(p, schedule)
        for step in schedule.epoch(0)
        for rank in step.ranks
        for p in rank
        if p.rows
    )


def estimate_memory(
    model: PreTrainedModel, batch: PackedBatch, *, chunk_bytes: int
) -> dict[str, int]:
    """Peak bytes of one training step on `batch`, by part.

    Weights, gradients and the two AdamW moments are counted from the parameters. Activations are what autograd
    would save, counted exactly by running the model on the `meta` device, where nothing is computed. The head
    adds its chunk of float32 logits twice over (values and slope).
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in trainable)
    fixed = sum(p.numel() * p.element_size() for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore
    rows = max(1, chunk_bytes // (4 * vocabulary))
    head = 2 * 4 * vocabulary * min(rows, max(1, len(batch.target)))
    return {
        "weights": fixed,
        "gradients": size,
        "optimizer": 2 * size,
        "activations": _saved_activations(model, batch) + _mask_bytes(batch),
        "head": head,
    }


def _saved_activations(model: PreTrainedModel, batch: PackedBatch) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass of one micro-batch."""
    shadow = _on_meta(model).train(model.training)
    backbone = find_backbone(shadow)
    if backbone.config._attn_implementation == "flex_attention":  # noqa: SLF001 - no public reader
        # The same tensors are kept as by fused SDPA, which runs on `meta`.
        shadow.set_attn_implementation("sdpa")
    rows, length = batch.tokens.shape
    mask = torch.ones((rows, 1, length, length), dtype=torch.bool, device="meta")
    excluded = {_identity(t) for t in (*shadow.parameters(), mask)}
    saved = _Saved()
    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda t: t):
        hidden = backbone(
            input_ids=batch.tokens.to("meta"),
            position_ids=batch.position.to("meta"),
            attention_mask=mask if backbone.config._attn_implementation == "sdpa" else mask.to(model.dtype),  # noqa: SLF001
            use_cache=False,
        ).last_hidden_state
        hidden.sum()
    return sum(size for identity, size in saved.sizes.items() if identity not in excluded)


def _mask_bytes(batch: PackedBatch) -> int:
    """The dense tree mask: booleans, and the float32 copy that fused SDPA makes of them on CPU."""
    if batch.layout is not Layout.TREE or not batch.branching:
        return 0
    rows, length = batch.tokens.shape
    return rows * length * length * (1 + 4)


class _Saved:
    """Sizes of the storages that autograd saved, each once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def note(self, tensor: Tensor) -> Tensor:
        identity = _identity(tensor)
        if identity not in self.sizes:
            self.sizes[identity] = tensor.untyped_storage().nbytes()
            self._alive.append(tensor)  # or its identity could be given to another storage
        return tensor


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - identity of a storage has no public form


class _FusedAttention(TorchFunctionMode):
    """Makes SDPA on `meta` save what its fused kernels save: q, k, v, output and one logsumexp per query."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204, D105
        del types
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _FusedShape.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, None, None]:
        del ctx, gradients
        return None, None, None


def _on_meta(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model without data, sharing nothing with it."""
    memo: dict[int, object] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)
