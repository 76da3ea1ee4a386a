"""Log-probabilities of chosen tokens without ever building the `[tokens, vocabulary]` logits.

The head works through the scored tokens in chunks, keeps one logsumexp per token, and has its own backward:
with a frozen head the gradient direction of every token, ``scale * (W[target] - p @ W)``, does not depend on the
loss, so it is formed in the forward pass and nothing is recomputed; with a trained head the chunk's logits are
computed once more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

STATISTICS = ("entropy", "collision")


class OutputHead(NamedTuple):
    """The last layer of a language model: ``logits = softcap * tanh(scale * (h W^T + b) / softcap)``."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None


class TokenLogps(NamedTuple):
    """Per scored token, float32, nats. The statistics are detached and None unless asked for."""

    logp: Tensor
    """[N]"""
    entropy: Tensor | None = None
    """[N] ``-sum_v p_v log p_v``"""
    collision: Tensor | None = None
    """[N] ``sum_v p_v^2``"""
    kl: Tensor | None = None
    """[N] KL(reference || policy), with gradient; see `prefopt.models.divergence`."""


def token_logps(
    hidden: Tensor,
    head: OutputHead,
    target: Tensor,
    *,
    chunk_bytes: int = 1 << 26,
    statistics: tuple[str, ...] = (),
) -> TokenLogps:
    """Log-probability of each target token given its predictor's hidden state.

    Args:
        hidden: [N, H] states, any floating dtype.
        head: the output layer; matrix products run in the dtype of `hidden`, the softmax in float32 (float64 for
            float64 input).
        target: [N] int64 token ids.
        chunk_bytes: bound in bytes on one chunk of float32 logits; at least one token is done at a time.
        statistics: names out of `STATISTICS`.

    Gradients flow to `hidden`, `weight` and `bias`. N = 0 gives a differentiable empty tensor.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"unknown head statistics {sorted(unknown)}; known: {list(STATISTICS)}")
    rows = max(1, chunk_bytes // (4 * head.weight.shape[0]))
    weight = head.weight if head.weight.dtype == hidden.dtype else head.weight.to(hidden.dtype)
    out = _TokenLogps.apply(
        hidden, weight, head.bias, target, _Settings(head.scale, head.softcap, rows, statistics)
    )
    named = dict(zip(statistics, out[1:], strict=True))
    return TokenLogps(out[0], named.get("entropy"), named.get("collision"))


class _Settings(NamedTuple):
    scale: float
    softcap: float | None
    rows: int
    statistics: tuple[str, ...]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> Tensor:
    z = torch.nn.functional.linear(hidden, weight)
    z = z if z.dtype == torch.float64 else z.float()
    if bias is not None:
        z += bias
    if settings.scale != 1.0:
        z *= settings.scale
    if settings.softcap is not None:
        z = z.div_(settings.softcap).tanh_().mul_(settings.softcap)
    return z


def _slope(probability: Tensor, target: Tensor, cap_slope: Tensor | None, scale: float) -> Tensor:
    """d logp / d (h W^T + b), in place of `probability` [n, V]: (onehot - p) * cap slope * scale."""
    slope = probability.neg_()
    slope[torch.arange(len(target), device=target.device), target] += 1
    if cap_slope is not None:
        slope *= cap_slope
    return slope.mul_(scale) if scale != 1.0 else slope


def _cap_slope(z: Tensor, softcap: float | None) -> Tensor | None:
    return None if softcap is None else 1 - (z / softcap).square_()


class _Context(FunctionCtx):
    """What the backward pass is told."""

    settings: _Settings
    frozen: bool
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _Saved(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    lse: Tensor


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        n = hidden.shape[0]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logp, lse = hidden.new_empty(n, dtype=wide), hidden.new_empty(n, dtype=wide)
        extra = {name: hidden.new_empty(n, dtype=wide) for name in settings.statistics}
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        frozen = not (wants_weight or wants_bias)
        direction = torch.empty_like(hidden) if frozen and wants_hidden else None
        for start in range(0, n, settings.rows):
            part = slice(start, start + settings.rows)
            z = _logits(hidden[part], weight, bias, settings)
            lse[part] = torch.logsumexp(z, dim=-1)
            logp[part] = z.gather(1, target[part, None]).squeeze(1) - lse[part]
            if not settings.statistics and direction is None:
                continue
            cap = _cap_slope(z, settings.softcap) if direction is not None else None
            if "entropy" in extra:
                mean = torch.einsum("nv,nv->n", z, torch.exp(z - lse[part, None]))
                extra["entropy"][part] = lse[part] - mean
            p = z.sub_(lse[part, None]).exp_()
            if "collision" in extra:
                extra["collision"][part] = torch.einsum("nv,nv->n", p, p)
            if direction is not None:
                slope = _slope(p, target[part], cap, settings.scale)
                direction[part] = slope.to(hidden.dtype) @ weight
        ctx.settings = settings
        ctx.frozen = frozen
        saved = (direction,) if frozen else (hidden, weight, bias, target, lse)
        ctx.save_for_backward(*saved)  # pyright: ignore[reportArgumentType] - None is allowed
        statistics = tuple(extra[name] for name in settings.statistics)
        ctx.mark_non_differentiable(*statistics)
        return logp, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        if ctx.frozen:
            if not ctx.needs_input_grad[0]:
                return None, None, None, None, None
            (direction,) = saved
            return direction * grad[:, None].to(direction.dtype), None, None, None, None
        return _recompute(ctx, grad, _Saved(*saved))


def _recompute(
    ctx: _Context,
    grad: Tensor,
    saved: _Saved,
) -> tuple[Tensor | None, ...]:
    settings = ctx.settings
    hidden, weight, bias, target, lse = saved
    wide = lse.dtype
    grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    # Sums over tokens are accumulated in float32 even under bfloat16 weights.
    grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
    grad_bias = (
        torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
    )
    for start in range(0, hidden.shape[0], settings.rows):
        part = slice(start, start + settings.rows)
        z = _logits(hidden[part], weight, bias, settings)
        cap = _cap_slope(z, settings.softcap)
        p = z.sub_(lse[part, None]).exp_()
        slope = _slope(p, target[part], cap, settings.scale).mul_(grad[part, None])
        if grad_bias is not None:
            grad_bias += slope.sum(0)
        slope = slope.to(hidden.dtype)
        if grad_hidden is not None:
            grad_hidden[part] = slope @ weight
        if grad_weight is not None:
            if grad_weight.dtype == slope.dtype:
                grad_weight.addmm_(slope.T, hidden[part])
            else:
                grad_weight += slope.T @ hidden[part]
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        None,
        None,
    )
