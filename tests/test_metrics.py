from __future__ import annotations

import torch

from prefopt.metrics import Accumulator


def test_weighted_means_and_a_fresh_start() -> None:
    window = Accumulator(torch.device("cpu"))
    window.add({"a": torch.tensor([1.0, 3.0])}, torch.tensor([1.0, 3.0]))
    window.add({"a": torch.tensor([5.0]), "b": torch.tensor([2.0])}, torch.tensor([4.0]))
    window.add({"c": torch.zeros(0)}, torch.zeros(0))
    assert window.read(lambda table: table) == {"a": (1 + 9 + 20) / 8, "b": 2.0}
    assert window.read(lambda table: table) == {}


def test_one_reduction_for_everything() -> None:
    window = Accumulator(torch.device("cpu"))
    window.add({"a": torch.tensor([2.0]), "b": torch.tensor([4.0])}, torch.tensor([1.0]))
    calls: list[torch.Size] = []

    def double(table: torch.Tensor) -> torch.Tensor:
        calls.append(table.shape)
        return 2 * table

    assert window.read(double) == {"a": 2.0, "b": 4.0}
    assert calls == [torch.Size([2, 2])]
