"""How much memory a training step takes, from the shapes alone: nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from prefopt.models.load import (
    CausalModel,
    attention_name,
    embedding_rows,
    find_backbone,
    plain_model,
)
from prefopt.pack.batch import Layout, PackedBatch


def estimate_memory(model: CausalModel, batch: PackedBatch, *, chunk_bytes: int) -> dict[str, int]:
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
    vocabulary = embedding_rows(model)
    rows = max(1, chunk_bytes // (4 * vocabulary))
    head = 2 * 4 * vocabulary * min(rows, max(1, len(batch.target)))
    return {
        "weights": fixed,
        "gradients": size,
        "optimizer": 2 * size,
        "activations": _saved_activations(model, batch) + _mask_bytes(batch),
        "head": head,
    }


def _saved_activations(model: CausalModel, batch: PackedBatch) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass of one micro-batch."""
    shadow = _on_meta(model).train(model.training)
    backbone = find_backbone(shadow)
    if attention_name(shadow) == "flex_attention":
        # The same tensors are kept as by fused SDPA, which runs on `meta`.
        plain_model(shadow).set_attn_implementation("sdpa")
    rows, length = batch.tokens.shape
    mask = torch.ones((rows, 1, length, length), dtype=torch.bool, device="meta")
    excluded = {_identity(t) for t in (*shadow.parameters(), mask)}
    fused = attention_name(shadow) == "sdpa"
    saved = _Saved()
    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(saved.note, lambda t: t):
        hidden = backbone(
            input_ids=batch.tokens.to("meta"),
            position_ids=batch.position.to("meta"),
            attention_mask=mask if fused else mask.to(model.dtype),
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
    # The identity of a storage has no public form.
    return tensor.untyped_storage()._cdata  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


class _FusedAttention(TorchFunctionMode):
    """Makes SDPA on `meta` save what its fused kernels save: q, k, v, output and one logsumexp per query."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[Tensor, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
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


def _on_meta(model: CausalModel) -> CausalModel:
    """A copy of the model without data, sharing nothing with it."""
    memo: dict[int, object] = {
        id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)
