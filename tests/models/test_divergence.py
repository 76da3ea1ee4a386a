"""KL of a reference from the policy: against float64 over whole logits, in value and gradient, and in its chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from prefopt.models.divergence import PredictorStates, token_kl
from prefopt.models.head import OutputHead


def states(seed: int, *, dtype=torch.float64, bias=False, softcap=None) -> PredictorStates:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(7, 5, generator=g, dtype=torch.float64)
    weight = torch.randn(11, 5, generator=g, dtype=torch.float64)
    shift = torch.randn(11, generator=g, dtype=torch.float64) if bias else None
    head = OutputHead(weight.to(dtype).requires_grad_(), shift, scale=0.7, softcap=softcap)
    return PredictorStates(hidden.to(dtype).requires_grad_(), head)


def naive(policy: PredictorStates, reference: PredictorStates) -> torch.Tensor:
    def log_probabilities(s: PredictorStates) -> torch.Tensor:
        z = s.hidden @ s.head.weight.T
        z = (z if s.head.bias is None else z + s.head.bias) * s.head.scale
        z = z if s.head.softcap is None else s.head.softcap * torch.tanh(z / s.head.softcap)
        return z - torch.logsumexp(z, dim=-1, keepdim=True)

    p, q = log_probabilities(policy), log_probabilities(reference)
    return (q.exp() * (q - p)).sum(-1)


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 11 * 3, 1 << 20])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, 2.0)])
def test_against_whole_logits(chunk_bytes, bias, softcap) -> None:
    policy, reference = states(0, bias=bias, softcap=softcap), states(1, bias=bias, softcap=softcap)
    weigh = torch.arange(1.0, 8.0, dtype=torch.float64)
    expected = naive(policy, reference)
    found = token_kl(policy, reference, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    inputs = (policy.hidden, policy.head.weight)
    for mine, theirs in zip(
        torch.autograd.grad((found * weigh).sum(), inputs),
        torch.autograd.grad((expected * weigh).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_reference_gets_no_gradient() -> None:
    policy, reference = states(0), states(1)
    token_kl(policy, reference, chunk_bytes=100).sum().backward()
    assert reference.hidden.grad is None and reference.head.weight.grad is None


def test_equal_models_have_none() -> None:
    same = states(0, dtype=torch.float32)
    assert token_kl(same, same, chunk_bytes=100).abs().max() < 1e-6


def test_a_token_that_the_reference_excludes_counts_nothing() -> None:
    policy, reference = states(0, bias=True), states(1, bias=True)
    bias = policy.head.bias
    assert bias is not None and reference.head.bias is not None
    shift = reference.head.bias.clone()
    shift[3] = -torch.inf
    reference = reference._replace(head=reference.head._replace(bias=shift))
    found = token_kl(policy, reference, chunk_bytes=1 << 20)
    (gradient,) = torch.autograd.grad(found.sum(), policy.hidden)
    assert torch.isfinite(found).all() and torch.isfinite(gradient).all()
    keep = [i for i in range(11) if i != 3]
    p = F.log_softmax((policy.hidden @ policy.head.weight.T + bias) * 0.7, dim=-1)[:, keep]
    q = F.log_softmax((reference.hidden @ reference.head.weight.T + shift)[:, keep] * 0.7, dim=-1)
    torch.testing.assert_close(found, (q.exp() * (q - p)).sum(-1), rtol=0, atol=1e-12)


def test_no_tokens_and_bfloat16() -> None:
    empty = states(0)
    empty = empty._replace(hidden=empty.hidden[:0])
    assert token_kl(empty, empty, chunk_bytes=10).shape == (0,)
    half = token_kl(
        states(0, dtype=torch.bfloat16), states(1, dtype=torch.bfloat16), chunk_bytes=100
    )
    assert half.dtype == torch.float32
