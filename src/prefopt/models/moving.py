"""A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from prefopt.models.load import CausalModel
from prefopt.models.reference import LiveReference
from prefopt.models.scorer import Scorer

_FILE = "moving_reference.safetensors"


class MovingReference(LiveReference):
    """A live reference whose weights are mixed with the policy's every `every` optimiser steps.

    ``reference <- mixup_alpha * policy + (1 - mixup_alpha) * reference``; `mixup_alpha` 1 is the hard update. The sum
    is formed in float32 and stored in the reference's dtype. Checkpoints hold the moved weights.

    Args:
        mixup_alpha: in (0, 1].
        every: optimiser steps between two moves, >= 1.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        digest: str,
        mixup_alpha: float,
        every: int,
        with_states: bool = False,
    ) -> None:
        super().__init__(scorer, digest=digest, with_states=with_states)
        self.mixup_alpha = mixup_alpha
        self.every = every

    @torch.no_grad()
    def follow(self, policy: CausalModel, *, step: int) -> None:
        """Move where a move is due. Both models have the same parameters by construction."""
        if step % self.every:
            return
        own = dict(self.scorer.model.named_parameters())
        for name, weight in policy.named_parameters():
            mixed = torch.lerp(own[name].float(), weight.float(), self.mixup_alpha)
            own[name].copy_(mixed)

    def save(self, folder: Path) -> None:
        """`moving_reference.safetensors`; tied weights are stored once."""
        folder.mkdir(parents=True, exist_ok=True)
        named = {n: p.detach().contiguous() for n, p in self.scorer.model.named_parameters()}
        save_file(named, folder / _FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read the moved weights back, bit for bit."""
        own = dict(self.scorer.model.named_parameters())
        for name, weight in load_file(folder / _FILE).items():
            own[name].copy_(weight)
