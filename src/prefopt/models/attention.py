"""The tree mask in its two forms. One line says it all: q sees k iff ``k <= q < until[k]``.

Dense for SDPA and eager attention (CPU, tests), a FlexAttention `BlockMask` for one long row (GPU).
transformers passes either through unchanged, so no model is patched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefopt.pack.batch import Layout, PackedBatch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""FlexAttention's block size; packed rows are multiples of it."""


def dense_mask(until: Tensor) -> Tensor:
    """Boolean mask [B, 1, L, L], True where the query (third axis) sees the key (fourth axis).

    Args:
        until: [B, L] int64.
    """
    index = torch.arange(until.shape[1], device=until.device)
    q, k = index[:, None], index[None, :]
    return ((k <= q) & (q < until[:, None, :])).unsqueeze(1)


def tree_mask_function(until: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The same predicate as a FlexAttention mask function ``(batch, head, q, k) -> bool``."""

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del h  # all heads see the same
        return (k <= q) & (q < until[b, k])

    return visible


def block_mask(until: Tensor, *, compiled: bool = True) -> BlockMask:
    """FlexAttention BlockMask of `until` [B, L]; L must be a multiple of `BLOCK`.

    Args:
        compiled: evaluate the mask function with torch.compile, which never builds the dense mask.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = until.shape
    if length % BLOCK:
        raise ValueError(f"a packed row has {length} positions, not a multiple of {BLOCK}")
    return create_block_mask(
        tree_mask_function(until),
        B=rows,
        H=None,
        Q_LEN=length,
        KV_LEN=length,
        device=until.device,
        BLOCK_SIZE=BLOCK,
        _compile=compiled,
    )


def attention_mask(
    batch: PackedBatch, *, implementation: str, dtype: torch.dtype
) -> Tensor | BlockMask | None:
    """The `attention_mask` argument for a transformers model.

    None where plain causal attention is right (no branching, padding at the end), else the dense mask
    (boolean for SDPA, additive in `dtype` for eager attention) or the BlockMask.
    """
    if batch.layout is Layout.ROWS or (batch.layout is Layout.TREE and not batch.branching):
        return None
    if implementation == "flex_attention":
        return block_mask(batch.until, compiled=batch.until.is_cuda)
    visible = dense_mask(batch.until)
    if implementation == "sdpa":
        return visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
