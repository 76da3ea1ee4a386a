"""Drawing tokens from logits with randomness that belongs to the sample, not to the batch it lies in.

Each sample has a 64-bit key made of (seed, purpose, id, sample) (`prefopt.generate.seeds`); the uniform number at
position t is a hash of key and t. A token is found by inverting the cumulative distribution in vocabulary order, where
a rounding difference between two batch shapes moves a boundary by 1e-7 instead of reordering the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(keys: Sequence[int], position: int) -> NDArray[np.float64]:
    """The number in [0, 1) that each stream has at `position`: element `position` of a SplitMix64 stream.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", with the state advanced to
    `position + 1` in one multiplication; the top 53 bits become the fraction.
    """
    with np.errstate(over="ignore"):
        state = np.array(keys, dtype=np.uint64) + np.uint64(position + 1) * _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
    mixed = state ^ (state >> np.uint64(31))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_tokens(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """One token id per row, `[B]` int64: the smallest v whose cumulative probability exceeds `uniform`.

    Args:
        logits: `[B, V]`.
        uniform: `[B]` numbers in [0, 1).
        temperature: divides the logits; must be positive.
        top_p: tokens outside the nucleus get probability 0 before the distribution is inverted.
    """
    probability = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        probability = probability * _nucleus(probability, top_p)
    # Float32 sums of a large vocabulary lose whole tokens; MPS has nothing wider.
    wide = torch.float32 if probability.device.type == "mps" else torch.float64
    cumulative = probability.to(wide).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = uniform.to(cumulative.device, wide).unsqueeze(1) * total
    found = torch.searchsorted(cumulative, target, right=True)
    # Rounding may put the target at the total itself: the last token with probability takes it.
    return torch.minimum(found, (cumulative < total).sum(dim=-1, keepdim=True)).squeeze(1)


def _nucleus(probability: Tensor, top_p: float) -> Tensor:
    """`[B, V]` bool: the most probable tokens whose predecessors together hold less than `top_p`."""
    ordered, index = probability.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probability, dtype=torch.bool).scatter(1, index, before < top_p)
