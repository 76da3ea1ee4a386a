"""What the loop trains: anything that turns packs of examples into unreduced, weighted losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor, nn

from prefopt.objectives import Losses
from prefopt.pack.plan import Pack
from prefopt.train.runtime import Runtime


class Weighted(NamedTuple):
    """Losses with the weight that each has in the global mean."""

    losses: Losses
    weight: Tensor
    """Shape of `losses.loss`, float32, without gradient."""
    name: str = "0"
    """What the share of this objective is called in metrics, where there are several."""


B = TypeVar("B")


class Learner(Protocol[B]):
    """The loop's view of what is trained. A language model, a regression, a preference model, a diffusion model."""

    @property
    def module(self) -> nn.Module:
        """Holds the trainable parameters; the loop may wrap it for distributed training."""
        ...

    def batch(self, pack: Pack, *, training: bool) -> B:
        """Collate the examples of a micro-batch and move them to the device of the module."""
        ...

    def step(
        self, module: nn.Module, packs: Sequence[Pack], runtime: Runtime, *, number: int | None
    ) -> AbstractContextManager[None]:
        """The span of optimiser step `number`, update included, or of an evaluation plan (None).

        Entered with all micro-batches of this process before the first of them is run: whatever needs the whole
        step, or has to happen after the update, happens here.
        """
        ...

    def losses(self, module: nn.Module, batch: B) -> Sequence[Weighted]:
        """Run the (possibly wrapped) module: one entry per objective, in a fixed order.

        Non-finite losses are found by the loop, which names the records through `names`.
        """
        ...

    def totals(self, items: Sequence[int], *, training: bool) -> Sequence[float]:
        """Total weight of these examples for each objective, known without running anything."""
        ...

    def names(self, items: Sequence[int], *, training: bool) -> list[str]:
        """Record ids for error messages."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights as an ordinary model folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read weights that `save` wrote into the module, bit for bit."""
        ...

    def identity(self) -> Mapping[str, str]:
        """Facts a resumed run must share (data digest, reference digest, ...), compared and shown as a diff."""
        ...
