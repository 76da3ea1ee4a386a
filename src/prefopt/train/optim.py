"""The optimiser and the learning-rate schedule, as plain functions of the settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class OptimSettings(NamedTuple):
    """AdamW and its schedule; names as in transformers."""

    learning_rate: float = 1e-6
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8


def adamw(module: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on vectors (norms, biases)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=all(p.device.type in ("cpu", "cuda") for p in trainable),
    )


def learning_rate_at(step: int, *, total: int, settings: OptimSettings) -> float:
    """Learning rate of optimiser step `step` (from 0) out of `total`.

    Linear warm-up over `warmup_steps`, then the shape named by `lr_scheduler_type` down to 0 (`constant`: none).
    `one_cycle` warms up by a cosine over the first 30% when no warm-up is set, then falls by a cosine.
    """
    warmup = settings.warmup_steps
    if settings.lr_scheduler_type == "one_cycle" and not warmup:
        warmup = max(1, int(0.3 * total))
    if step < warmup:
        rise = (step + 1) / warmup
        if settings.lr_scheduler_type == "one_cycle":
            rise = 0.5 * (1 - math.cos(math.pi * rise))
        return settings.learning_rate * rise
    progress = (step - warmup) / max(1, total - warmup)
    return settings.learning_rate * _SHAPES[settings.lr_scheduler_type](min(1.0, progress))


_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "one_cycle": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
