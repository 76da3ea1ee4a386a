"""Small random preference examples with every kind of sharing, for the numerics tests."""

from __future__ import annotations

import numpy as np

from prefopt.pack.batch import Example
from prefopt.pack.tree import TokenSequence, build_tree


def random_example(
    seed: int, *, vocabulary: int, responses: int = 3, prompt: int = 7, length: int = 9
) -> Example:
    """Responses that share the prompt, and some of them scored beginnings; pairs of the first with the rest."""
    g = np.random.default_rng(seed)
    context = [int(t) for t in g.integers(0, vocabulary, prompt)]
    shared = [int(t) for t in g.integers(0, vocabulary, 4)]
    sequences: list[TokenSequence] = []
    for r in range(responses):
        own = [int(t) for t in g.integers(0, vocabulary, int(g.integers(2, length)))]
        tail = (shared[: int(g.integers(0, 5))] if r % 2 == 0 else []) + own
        tokens = context + tail
        scored = [False] * prompt + [True] * len(tail)
        sequences.append(TokenSequence(tokens, scored, [-1] * prompt + [0] * len(tail)))
    pairs = tuple((0, r) for r in range(1, responses))
    none = (None,) * responses
    return Example(
        id=f"e{seed}",
        tree=build_tree(sequences),
        pairs=pairs,
        pair_weight=tuple(1.0 + 0.5 * i for i in range(len(pairs))),
        pair_margin=(None,) * len(pairs),
        score=none,
        rank=none,
        label=none,
    )
