"""A learner that is no language model: linear regression with per-item weights, for tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prefopt.objectives import Losses
from prefopt.pack.batch import Layout
from prefopt.pack.plan import Pack, PackLimits, Schedule
from prefopt.train.learner import Weighted
from prefopt.train.runtime import Runtime


class Rows(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor


class Regression:
    """Implements `Learner[Rows]`: weighted squared error of a linear layer."""

    def __init__(self, count: int = 24, *, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 3, generator=g)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(
            count, 1, generator=g
        )
        self.weight = torch.rand(count, generator=g) + 0.5
        self.module = nn.Linear(3, 1)
        with torch.no_grad():
            self.module.weight.fill_(0.1)
            self.module.bias.zero_()

    def batch(self, pack: Pack, *, training: bool) -> Rows:
        del training
        index = torch.tensor(pack.items, dtype=torch.int64)
        return Rows(self.x[index], self.y[index], self.weight[index])

    def step(
        self, module: nn.Module, packs: Sequence[Pack], runtime: Runtime, *, number: int | None
    ):
        return nullcontext()

    def losses(self, module: nn.Module, batch: Rows) -> list[Weighted]:
        loss = (module(batch.x) - batch.y).square().squeeze(1)
        return [Weighted(Losses(loss, {"error": loss.detach().sqrt()}), batch.weight)]

    def totals(self, items: Sequence[int], *, training: bool) -> list[float]:
        del training
        return [float(self.weight[list(items)].sum())]

    def names(self, items: Sequence[int], *, training: bool) -> list[str]:
        del training
        return [f"row-{i}" for i in items]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.module.state_dict(), folder / "model.safetensors")

    def load(self, folder: Path) -> None:
        self.module.load_state_dict(load_file(folder / "model.safetensors"))

    def identity(self) -> dict[str, str]:
        return {"reference": "none"}


def regression_schedule(
    *, micro: int, batch_size: int = 8, world_size: int = 1, epochs: float = 2, count: int = 24
) -> Schedule:
    """Steps over `count` rows in micro-batches of `micro`."""
    return Schedule(
        lengths=((1,),) * count,
        batch_size=batch_size,
        world_size=world_size,
        limits=PackLimits(Layout.TREE, micro),
        seed=5,
        epochs=epochs,
    )
