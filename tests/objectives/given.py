# ruff: noqa: N806 - arrays carry the letters of the formulas
"""Random pairs, once as tensors and once as numpy arrays of the same values."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from prefopt.objectives.types import Pairs


def random_pairs(seed: int, n: int = 200) -> tuple[Pairs, SimpleNamespace]:
    """Pairs in float64 with every field set; the policy tensors require gradients.

    The arrays: Sw, Sl, Rw, Rl (reference), nw, nl (lengths), sw, sl (scores, sw > sl > 0), margin, Sg, ng (gold),
    Dw, Dl (KL), Hw, Hl (dispersion sums), aw, al (alignment sums), and *c for common parts.
    """
    g = np.random.default_rng(seed)
    nw, nl = (g.integers(2, 40, n).astype(float) for _ in range(2))
    Sw, Sl = -nw * g.uniform(0.05, 4, n), -nl * g.uniform(0.05, 4, n)
    Rw, Rl = Sw + g.normal(0, 4, n), Sl + g.normal(0, 4, n)
    sl = g.uniform(0.1, 1, n)
    sw = sl + g.uniform(0.01, 3, n)
    share_w, share_l = np.minimum(1, nl / nw), np.minimum(1, nw / nl)
    a = SimpleNamespace(
        Sw=Sw, Sl=Sl, Rw=Rw, Rl=Rl, nw=nw, nl=nl, sw=sw, sl=sl, margin=g.normal(0, 1, n),
        Sg=-g.uniform(1, 60, n), ng=g.integers(2, 40, n).astype(float),
        Dw=g.uniform(0, 5, n), Dl=g.uniform(0, 5, n),
        Hw=nw * g.uniform(0.05, 0.9, n), Hl=nl * g.uniform(0.05, 0.9, n),
        aw=-nw * g.uniform(0, 1, n), al=-nl * g.uniform(0, 1, n),
        Swc=Sw * share_w, Slc=Sl * share_l, Rwc=Rw * share_w, Rlc=Rl * share_l,
    )  # fmt: skip
    grad = {"Sw", "Sl", "Sg", "Dw", "Dl", "Swc", "Slc"}
    order = ["Sw", "Sl", "Rw", "Rl", "nw", "nl", "sw", "sl", "margin", "Sg", "ng", "Dw", "Dl", "Hw", "Hl", "aw", "al",
             "Swc", "Slc", "Rwc", "Rlc"]  # fmt: skip
    values = [torch.tensor(getattr(a, name), requires_grad=name in grad) for name in order]
    return Pairs(*values), a
