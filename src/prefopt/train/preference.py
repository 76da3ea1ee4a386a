"""The learner for causal language models: policy, reference and objectives over packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from prefopt.models.load import load_weights
from prefopt.models.reference import Reference
from prefopt.models.save import save_model
from prefopt.models.scorer import Scorer, lengths, sum_by_response
from prefopt.objectives import Losses, Objective, Pairs, Scores, needs_of
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.plan import Pack
from prefopt.train.learner import Weighted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class PreferenceLearner:
    """A causal language model under one or several objectives. Implements `Learner[PackedBatch]`.

    Args:
        scorer: the policy.
        reference: where reference log-probabilities come from.
        objectives: objectives with their coefficients; losses are added up.
        examples: training examples; `eval_examples` the held-out ones.
        layout: how batches are laid out; `row_length` for PACKED.
        tokenizer: saved beside the weights.
    """

    def __init__(  # noqa: PLR0913 - the composition root of a run
        self,
        scorer: Scorer,
        *,
        reference: Reference,
        objectives: Sequence[tuple[Objective, float]],
        examples: Sequence[Example],
        eval_examples: Sequence[Example] = (),
        layout: Layout,
        row_length: int | None = None,
        tokenizer: PreTrainedTokenizerFast,
        device: torch.device,
    ) -> None:
        self.module = scorer
        self.reference = reference
        self.objectives = [(o, needs_of(o), coefficient) for o, coefficient in objectives]
        self.examples = examples
        self.eval_examples = eval_examples
        self.layout = layout
        self.row_length = row_length
        self.tokenizer = tokenizer
        self.device = device

    def batch(self, pack: Pack, *, training: bool) -> PackedBatch:
        """The packed batch of a micro-batch, on the device."""
        examples = self.examples if training else self.eval_examples
        rows = [[examples[i] for i in row] for row in pack.rows]
        return collate(rows, layout=self.layout, row_length=self.row_length).to(self.device)

    def losses(self, module: nn.Module, batch: PackedBatch) -> list[Weighted]:
        """Score the batch and apply every objective."""
        scores = self.scores(module, batch)
        out: list[Weighted] = []
        for objective, need, coefficient in self.objectives:
            if need.view == "pairs":
                losses = cast("Callable[[Pairs], Losses]", objective)(scores.pairs())
            else:
                losses = cast("Callable[[Scores], Losses]", objective)(scores)
            if coefficient != 1.0:
                losses = losses._replace(loss=coefficient * losses.loss)
            out.append(
                Weighted(losses, batch.pair_weight if need.view == "pairs" else scores.length)
            )
        return out

    def scores(self, module: nn.Module, batch: PackedBatch) -> Scores:
        """Per-response quantities of a batch under policy and reference."""
        logps = module(batch)
        reference = self.reference.logps(batch)
        statistics = {
            name: sum_by_response(batch, value)
            for name in ("entropy", "collision")
            if (value := getattr(logps, name)) is not None
        }
        return Scores(
            policy=sum_by_response(batch, logps.logp),
            reference=None if reference is None else sum_by_response(batch, reference),
            length=lengths(batch),
            chosen=batch.chosen,
            rejected=batch.rejected,
            group=batch.group,
            score=batch.score,
            rank=batch.rank,
            label=batch.label,
            margin=batch.pair_margin,
            statistics=statistics,
        )

    def totals(self, items: Sequence[int], *, training: bool) -> list[float]:
        """Pair weights for pairwise objectives, scored tokens for the others."""
        examples = self.examples if training else self.eval_examples
        pairs = sum(sum(examples[i].pair_weight) for i in items)
        tokens = sum(examples[i].scored_tokens for i in items)
        return [float(pairs if need.view == "pairs" else tokens) for _, need, _ in self.objectives]

    def names(self, items: Sequence[int], *, training: bool) -> list[str]:
        """Record ids."""
        examples = self.examples if training else self.eval_examples
        return [examples[i].id for i in items]

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder or PEFT adapter."""
        save_model(self.module.model, self.tokenizer, folder)

    def load(self, folder: Path) -> None:
        """Read such a folder back into the policy."""
        load_weights(self.module.model, folder)

    def identity(self) -> dict[str, str]:
        """Reference digest and layout; data and schedule are the loop's."""
        return {"reference": self.reference.digest}
