"""Running sums of weighted metrics that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Accumulator:
    """Weighted sums by name; `read` reduces over processes once and starts afresh."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], weight: Tensor) -> None:
        """Add per-item `terms` with their `weight`, all of one shape."""
        for name, values in terms.items():
            self._add(name, values.detach().double(), weight.detach().double())

    def add_known(self, terms: Mapping[str, Tensor], weight: Tensor) -> None:
        """The same, where NaN stands for no value (the reward of a rejected response among the chosen ones)."""
        for name, values in terms.items():
            known = ~torch.isnan(values)
            wide = values.detach().double()
            self._add(name, torch.where(known, wide, 0.0), weight.detach().double() * known)

    def _add(self, name: str, values: Tensor, weight: Tensor) -> None:
        pair = torch.stack([(values * weight).sum(), weight.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Weighted means by name; names without weight are left out. One transfer for all of them.

        Args:
            reduce: sums a tensor over processes.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        table = reduce(torch.stack([self._sums[name] for name in names])).cpu()
        self._sums = {}
        return {
            name: float(total / weight)
            for name, (total, weight) in zip(names, table.tolist(), strict=True)
            if weight != 0
        }
