"""The chunked head against a plain float64 log-softmax, values and gradients, and its peak memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.models.head import OutputHead, TokenLogps, token_logps


def plain(hidden: Tensor, head: OutputHead, target: Tensor) -> Tensor:
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, -1)


def make(
    *, n: int = 13, v: int = 31, h: int = 8, dtype: torch.dtype = torch.float64, bias: bool = True
) -> tuple[Tensor, OutputHead, Tensor]:
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, h, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(v, h, generator=g, dtype=dtype).requires_grad_()
    offset = torch.randn(v, generator=g, dtype=dtype).requires_grad_() if bias else None
    return hidden, OutputHead(weight, offset), torch.randint(0, v, (n,), generator=g)


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.0, 2.0), (1.7, 5.0)])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_plain_log_softmax(
    rows: int, scale: float, softcap: float | None, frozen: bool
) -> None:
    hidden, head, target = make()
    head = head._replace(scale=scale, softcap=softcap)
    if frozen:
        assert head.bias is not None
        head = head._replace(weight=head.weight.detach(), bias=head.bias.detach())
    assert head.bias is not None
    inputs = [hidden] if frozen else [hidden, head.weight, head.bias]
    out = token_logps(hidden, head, target, chunk_bytes=rows * 4 * 31).logp
    expected = plain(hidden, head, target).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    coefficient = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    got = torch.autograd.grad((out * coefficient).sum(), inputs)
    want = torch.autograd.grad((expected * coefficient).sum(), inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_literal_value() -> None:
    # logits (0, ln 3): p = (1/4, 3/4)
    head = OutputHead(torch.tensor([[0.0], [1.0986122886681098]]))
    out = token_logps(
        torch.ones(2, 1), head, torch.tensor([0, 1]), statistics=("collision", "entropy")
    )
    torch.testing.assert_close(out.logp, torch.tensor([-1.3862944, -0.2876821]))
    assert out.collision is not None and out.entropy is not None
    torch.testing.assert_close(out.collision, torch.tensor([0.625, 0.625]))
    torch.testing.assert_close(out.entropy, torch.tensor([0.5623351, 0.5623351]))


def test_gradcheck() -> None:
    hidden, head, target = make(n=3, v=5, h=2)

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return token_logps(hidden, OutputHead(weight, bias, 1.3, 4.0), target, chunk_bytes=40).logp

    assert head.bias is not None
    assert torch.autograd.gradcheck(f, (hidden, head.weight, head.bias))


def test_statistics_leave_values_alone() -> None:
    hidden, head, target = make()
    bare = token_logps(hidden, head, target)
    full = token_logps(hidden, head, target, statistics=("entropy", "collision"), chunk_bytes=500)
    p = plain(hidden, head, target).exp()
    assert torch.equal(bare.logp, full.logp) or torch.allclose(bare.logp, full.logp, atol=1e-12)
    assert full.entropy is not None and full.collision is not None
    torch.testing.assert_close(full.entropy, -(p * p.log()).sum(1).detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(full.collision, (p * p).sum(1).detach(), rtol=0, atol=1e-12)
    assert not full.entropy.requires_grad


def test_no_tokens_is_a_differentiable_nothing() -> None:
    hidden, head, _ = make(n=4)
    out = token_logps(hidden[:0], head, torch.zeros(0, dtype=torch.int64)).logp
    assert out.shape == (0,)
    out.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bfloat16_states_give_float32_logps_near_the_exact_ones() -> None:
    hidden, head, target = make(dtype=torch.float32, bias=False)
    exact = plain(hidden, head, target).gather(1, target[:, None]).squeeze(1)
    half = token_logps(hidden.bfloat16(), OutputHead(head.weight.bfloat16()), target).logp
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.15


def test_unknown_statistic_is_named() -> None:
    hidden, head, target = make()
    with pytest.raises(ValueError, match="unknown head statistics \\['perplexity'\\]"):
        token_logps(hidden, head, target, statistics=("perplexity",))


class PeakTensor(TorchDispatchMode):
    """Largest number of elements of any tensor that an operation returns."""

    peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.peak = max(self.peak, value.numel())
        return out


@pytest.mark.parametrize("frozen", [False, True])
def test_a_large_vocabulary_never_meets_all_tokens(frozen: bool) -> None:
    """150,000 entries x 600 tokens would be 90M elements; nothing may exceed the chunk or the head itself."""
    v, h, n, rows = 150_000, 4, 600, 16
    weight = torch.zeros(v, h, requires_grad=not frozen)
    hidden = torch.randn(n, h, requires_grad=True)
    with PeakTensor() as peak:
        out: TokenLogps = token_logps(
            hidden, OutputHead(weight), torch.arange(n), chunk_bytes=rows * 4 * v
        )
        out.logp.sum().backward()
    assert hidden.grad is not None
    assert peak.peak <= rows * v
