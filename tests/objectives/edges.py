"""What every pairwise objective has to keep, whatever its formula; each function fails with what was broken."""

from __future__ import annotations

from collections.abc import Callable

import torch

from prefopt.objectives.types import Losses, Pairs
from tests.objectives.given import random_pairs

Bound = Callable[[Pairs], Losses]

REWARD_TERMS = {
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
}  # fmt: skip


def pairs_at(
    rho_chosen: list[float], rho_rejected: list[float] | None = None, dtype=torch.float64
) -> Pairs:
    """Pairs with these log-ratios (rejected 0 unless given), lengths 4 and 5, scores 1.5 and 0.5, margin 0.25."""
    n = len(rho_chosen)
    chosen = torch.tensor(rho_chosen, dtype=dtype, requires_grad=True)
    rejected = torch.tensor(rho_rejected or [0.0] * n, dtype=dtype, requires_grad=True)
    full = [torch.full((n,), value, dtype=dtype) for value in (4.0, 5.0, 1.5, 0.5, 0.25)]
    zero = torch.zeros(n, dtype=dtype)
    return Pairs(chosen, rejected, zero, zero, *full)


def slopes(objective: Bound, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """d loss / d rho of the chosen and of the rejected responses."""
    inputs = [pairs.policy_chosen, pairs.policy_rejected]
    chosen, rejected = torch.autograd.grad(objective(pairs).loss.sum(), inputs)
    return chosen, rejected


def same(one: Bound, other: Bound, pairs: Pairs, *, atol: float = 0.0) -> None:
    """Equal losses and gradients; bit for bit unless a tolerance is given."""
    torch.testing.assert_close(one(pairs).loss, other(pairs).loss, rtol=0, atol=atol)
    torch.testing.assert_close(slopes(one, pairs), slopes(other, pairs), rtol=0, atol=atol)


def keeps_finite(objective: Bound) -> None:
    """Values and slopes are finite in float32 up to |h| = 1e6, moved by the chosen, the rejected or both."""
    h = [-1e6, -1e3, 0.0, 1e3, 1e6]
    minus, zero = [-x for x in h], [0.0] * len(h)
    for chosen, rejected in [(h, zero), (zero, minus), (h, minus), (h, h)]:
        pairs = pairs_at(chosen, rejected, torch.float32)
        for tensor in (objective(pairs).loss, *slopes(objective, pairs)):
            assert torch.isfinite(tensor).all(), (chosen, rejected, tensor)


def keeps_form(objective: Bound) -> None:
    """Empty in, empty out and differentiable; bfloat16 in, float32 out; terms detached, complete, `[P]`."""
    empty = pairs_at([])
    loss = objective(empty).loss
    assert loss.shape == (0,)
    loss.sum().backward()
    assert empty.policy_chosen.grad is not None
    assert objective(pairs_at([0.5, 2.0], dtype=torch.bfloat16)).loss.dtype == torch.float32
    out = objective(pairs_at([0.5, 2.0]))
    assert out.loss.dtype == torch.float64
    assert set(out.terms) >= REWARD_TERMS
    assert all(not term.requires_grad and term.shape == (2,) for term in out.terms.values())


def keeps_order(objective: Bound) -> None:
    """Permuting pairs permutes losses; inputs are left as they were."""
    pairs, _ = random_pairs(3, 50)
    fields = [field for field in pairs if field is not None]
    assert len(fields) == len(pairs), "every field is set"
    before = [field.detach().clone() for field in fields]
    loss = objective(pairs).loss
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    permuted = Pairs(*(field[order] for field in fields))
    torch.testing.assert_close(objective(permuted).loss, loss[order], rtol=0, atol=0)
    assert all(torch.equal(field, old) for field, old in zip(fields, before, strict=True))


def keeps_off_the_host(objective: Bound) -> None:
    """Nothing waits for the device: tensors without data would raise where a value is read."""
    values = [field.detach().to("meta") for field in pairs_at([0.5, 2.0]) if field is not None]
    pairs = Pairs(values[0].requires_grad_(), *values[1:])
    out = objective(pairs)
    out.loss.sum().backward()
    assert out.loss.device.type == "meta"
