"""The learner for causal language models: policy, reference and objectives over packed batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prefopt.models.head import TokenLogps
from prefopt.models.load import embedding_rows, load_weights
from prefopt.models.reference import Reference, ReferenceScores
from prefopt.models.save import save_model
from prefopt.models.scorer import Scorer, common_sums, lengths, sum_by_response
from prefopt.objectives import Mean, Scores
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.pack.plan import Pack
from prefopt.train.coupling import Part
from prefopt.train.learner import Weighted
from prefopt.train.runtime import Runtime
from prefopt.train.terms import Term, Terms
from prefopt.train.weights import batch_weight, example_weight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STATE = "objectives.json"


class PreferenceLearner:
    """A causal language model under one or several objectives. Implements `Learner[PackedBatch]`.

    Args:
        scorer: the policy.
        reference: where reference log-probabilities come from.
        objectives: objectives with their coefficients; losses are added up.
        examples: training examples; `eval_examples` the held-out ones.
        layout: how batches are laid out; `row_length` for PACKED.
        tokenizer: saved beside the weights.
        autocast: the precision that the reference is computed in; the policy's, so that margins start at 0.
        seed: of what objectives draw at random.
    """

    def __init__(  # noqa: PLR0913 - the composition root of a run
        self,
        scorer: Scorer,
        *,
        reference: Reference,
        objectives: Sequence[Term],
        examples: Sequence[Example],
        eval_examples: Sequence[Example] = (),
        layout: Layout,
        row_length: int | None = None,
        tokenizer: PreTrainedTokenizerFast,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        seed: int = 0,
    ) -> None:
        self.module = scorer
        self.reference = reference
        self.terms = Terms(objectives, seed=seed, device=device)
        self.examples = examples
        self.eval_examples = eval_examples
        self.layout = layout
        self.row_length = row_length
        self.tokenizer = tokenizer
        self.device = device
        self.autocast = autocast
        self._log_vocabulary = math.log(embedding_rows(scorer.model))

    def batch(self, pack: Pack, *, training: bool) -> PackedBatch:
        """The packed batch of a micro-batch, on the device."""
        examples = self.examples if training else self.eval_examples
        rows = [[examples[i] for i in row] for row in pack.rows]
        return collate(rows, layout=self.layout, row_length=self.row_length).to(self.device)

    @contextmanager
    def step(
        self, module: nn.Module, packs: Sequence[Pack], runtime: Runtime, *, number: int | None
    ) -> Generator[None]:
        """The span of an optimiser step, update included, or of an evaluation (`number` None).

        Objectives that couple the items of a batch get all of it scored ahead, where there is more than one part.
        """
        parts: list[Part] = []
        first = 0
        if self.terms.coupled and (len(packs) > 1 or runtime.world_size > 1):
            own = [self._scored_part(module, pack, training=number is not None) for pack in packs]
            first = sum(runtime.gather([len(own)])[: runtime.rank])
            parts = [part.to(self.device) for part in runtime.gather(own)]
        with self.terms.step(number, parts, first=first):
            yield
        if number is not None:
            self.reference.follow(self.module.model, step=number + 1)

    def _scored_part(self, module: nn.Module, pack: Pack, *, training: bool) -> Part:
        with torch.no_grad():
            return self._part(module, self.batch(pack, training=training)).to(torch.device("cpu"))

    def _part(self, module: nn.Module, batch: PackedBatch) -> Part:
        scores = self.scores(module, batch)
        kinds: set[Mean] = {need.mean for need in self.terms.needs}
        weights = {kind: batch_weight(scores, batch.pair_weight, kind) for kind in kinds}
        return Part(batch.ids, scores, weights)

    def losses(self, module: nn.Module, batch: PackedBatch) -> list[Weighted]:
        """Score the batch and apply every objective."""
        return self.terms.apply(self._part(module, batch))

    def scores(self, module: nn.Module, batch: PackedBatch) -> Scores:
        """Per-response quantities of a batch under policy and reference."""
        with self.autocast():
            reference = self.reference.score(batch)
        states = None if reference is None else reference.states
        logps: TokenLogps = module(batch) if states is None else module(batch, states)
        return Scores(
            policy=sum_by_response(batch, logps.logp),
            reference=None if reference is None else sum_by_response(batch, reference.logp),
            length=lengths(batch),
            chosen=batch.chosen,
            rejected=batch.rejected,
            group=batch.group,
            score=batch.score,
            rank=batch.rank,
            label=batch.label,
            margin=batch.pair_margin,
            mismatched=batch.mismatched,
            **self._extras(batch, logps, reference),
        )

    def _extras(
        self, batch: PackedBatch, logps: TokenLogps, reference: ReferenceScores | None
    ) -> dict[str, Tensor]:
        """The fields of `Scores` that some objective asked for."""
        wanted = {name for need in self.terms.needs for name in need.extras}
        extras: dict[str, Tensor] = {}
        if "kl" in wanted and logps.kl is not None:
            extras["kl"] = sum_by_response(batch, logps.kl)
        if "alignment" in wanted and logps.collision is not None:
            alignment = logps.logp.detach() - torch.log(logps.collision)
            extras["alignment"] = sum_by_response(batch, alignment)
        if "dispersion" in wanted and reference is not None and reference.entropy is not None:
            share = reference.entropy / self._log_vocabulary
            extras["dispersion"] = sum_by_response(batch, share)
        if "common" in wanted:
            sides = common_sums(batch, logps.logp)
            extras["policy_chosen_common"], extras["policy_rejected_common"] = sides
            if reference is not None:
                sides = common_sums(batch, reference.logp)
                extras["reference_chosen_common"], extras["reference_rejected_common"] = sides
        return extras

    def totals(self, items: Sequence[int], *, training: bool) -> list[float]:
        """What each objective is averaged over: pair weights, tokens, responses or prompts."""
        examples = self.examples if training else self.eval_examples
        means: list[Mean] = [need.mean for need in self.terms.needs]
        return [sum(example_weight(examples[i], mean) for i in items) for mean in means]

    def names(self, items: Sequence[int], *, training: bool) -> list[str]:
        """Record ids."""
        examples = self.examples if training else self.eval_examples
        return [examples[i].id for i in items]

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder or PEFT adapter, and beside it what else has moved."""
        save_model(self.module.model, self.tokenizer, folder)
        self.reference.save(folder)
        if state := self.terms.state():
            (folder / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read such a folder back into policy, reference and running statistics."""
        load_weights(self.module.model, folder)
        self.reference.load(folder)
        if self.terms.state():
            self.terms.load_state(json.loads((folder / _STATE).read_text(encoding="utf-8")))

    def identity(self) -> dict[str, str]:
        """Reference digest and layout; data and schedule are the loop's."""
        return {"reference": self.reference.digest}
