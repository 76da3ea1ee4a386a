"""Checks a model against plain transformers calls before it is trusted with a tree mask or our head.

Runs on a handful of random tokens, so an architecture nobody has listed is either right, demoted to separate
rows, or refused by name; it is never silently wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefopt.errors import ModelError
from prefopt.models.load import CausalModel, attention_name, embedding_rows, plain_model
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.tree import TokenSequence, build_tree

_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-6, torch.bfloat16: 0.15, torch.float16: 0.03}


class SelfCheck(NamedTuple):
    """Largest absolute differences in nats against the model's own logits, and the bound they must keep."""

    head: float
    """Separate rows through our head."""
    tree: float
    """The same tokens as one tree; inf where the model cannot take the mask."""
    tolerance: float
    reason: str
    """Why the tree form is unusable; empty when it is fine."""

    @property
    def head_ok(self) -> bool:
        """Whether our head reproduces the model's logits."""
        return self.head <= self.tolerance

    @property
    def tree_ok(self) -> bool:
        """Whether the tree mask reproduces separate rows."""
        return self.tree <= self.tolerance


def check_model(model: CausalModel) -> SelfCheck:
    """Compare separate rows and a small tree against the model's own logits on random tokens."""
    example = _random_example(embedding_rows(model))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = _plain_logps(model, example)
            head = _difference(_scored(model, example, Layout.ROWS), expected)
            tree, reason = _tree_difference(model, example, expected)
    finally:
        model.train(was_training)
    tolerance = _TOLERANCE.get(model.dtype, 0.15)
    if not reason and tree > tolerance:
        reason = (
            f"its log-probabilities under a tree mask differ by {tree:.2g} nats from separate rows"
        )
    return SelfCheck(head, tree, tolerance, reason)


def require_head(model: CausalModel, check: SelfCheck) -> None:
    """Raise `ModelError` when the model changes its logits in a way that the head does not know."""
    if not check.head_ok:
        raise ModelError(
            f"{type(model).__name__}: the chunked head differs from the model's own logits by "
            f"{check.head:.3g} nats (bound {check.tolerance:g}); this architecture post-processes its logits "
            f"in a way prefopt does not know: please report the model type '{plain_model(model).config.model_type}'"
        )


def _random_example(vocabulary: int) -> Example:
    """Three responses: two share the prompt and their first tokens, one leaves at the prompt."""
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    prompt, shared = generator.integers(0, vocabulary, 6), generator.integers(0, vocabulary, 3)
    tails = [np.r_[shared, generator.integers(0, vocabulary, n)] for n in (2, 4)]
    tails.append(generator.integers(0, vocabulary, 5))
    sequences = [
        TokenSequence(
            tokens=[int(t) for t in (*prompt, *tail)],
            scored=[False] * len(prompt) + [True] * len(tail),
            turn=[-1] * len(prompt) + [0] * len(tail),
        )
        for tail in tails
    ]
    none = (None,) * 3
    return Example("selfcheck", build_tree(sequences), (), (), (), none, none, none)


def _plain_logps(model: CausalModel, example: Example) -> Tensor:
    """Per incidence, from the model's own logits, one ordinary row at a time."""
    parts: list[Tensor] = []
    tree = example.tree
    for response in range(len(tree.leaf)):
        path = tree.path(response)
        tokens = torch.from_numpy(tree.tokens[path]).to(model.device)
        scored = torch.from_numpy(np.nonzero(tree.scored[path])[0]).to(model.device)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0].float()
        parts.append(torch.log_softmax(logits, -1)[scored - 1, tokens[scored]])
    return torch.cat(parts)


def _scored(model: CausalModel, example: Example, layout: Layout) -> Tensor:
    row_length = 128 if layout is Layout.PACKED else None
    batch = collate([[example]], layout=layout, row_length=row_length).to(model.device)
    return Scorer(model)(batch).logp[batch.token]


def _tree_difference(model: CausalModel, example: Example, expected: Tensor) -> tuple[float, str]:
    flex = attention_name(model) == "flex_attention"
    layout = Layout.PACKED if flex else Layout.TREE
    try:
        return _difference(_scored(model, example, layout), expected), ""
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        # Whatever an unknown architecture does with a 4-D mask, the answer is the same: separate rows.
        return float("inf"), f"it does not take a tree mask ({type(error).__name__}: {error})"


def _difference(actual: Tensor, expected: Tensor) -> float:
    value = (actual.float() - expected.float()).abs().max().item()
    return float("inf") if value != value else value  # noqa: PLR0124 - NaN compares unequal to itself
