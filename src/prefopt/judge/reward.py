"""Verifiers as judges: one score per step, and the first step whose score is too low.

`RewardModelScorer` reads the scores off a process reward model; `prefopt.judge.rollout` estimates them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError, NonFiniteError
from prefopt.generate.base import Completion, Request
from prefopt.generate.journal import Journal, Progress, Series
from prefopt.judge.base import Location, WrongSolution
from prefopt.models.digest import model_digest
from prefopt.models.parts import CausalModel, find_backbone, output_head, plain_model
from prefopt.text.steps import split_steps


class StepScorer(Protocol):
    """Something that says how good each step of a solution is."""

    @property
    def name(self) -> str:
        """Short name for reports."""
        ...

    def scores(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[list[float]]:
        """One value in [0, 1] per step of each solution; NaN where there is none because a server failed.

        A solution without numbered steps has no scores, and neither has one that is too long for the scorer.
        `right`: the solutions are known to reach the right answer.
        """
        ...


class ThresholdLocator:
    """`Locator` that takes the first step whose score is below a threshold."""

    def __init__(self, scorer: StepScorer, *, threshold: float = 0.5) -> None:
        """Wrap a scorer.

        Raises:
            ConfigError: the threshold is not in (0, 1].
        """
        if not 0 < threshold <= 1:
            raise ConfigError(
                f"judge: threshold is {threshold}; scores lie in [0, 1]: use more than 0 and at most 1"
            )
        self._scorer = scorer
        self._threshold = threshold

    @property
    def name(self) -> str:
        """That of the scorer."""
        return self._scorer.name

    def locate(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[Location]:
        """One location per solution, in their order; the remark holds the scores of all steps.

        A solution without scores is `undecided`.
        """
        scored = self._scorer.scores(solutions, journal=journal, progress=progress, right=right)
        return [
            self._first_below(scores) if scores else _unscored(solution)
            for solution, scores in zip(solutions, scored, strict=True)
        ]

    def _first_below(self, scores: Sequence[float]) -> Location:
        shown = "scores " + " ".join(f"{score:.3g}" for score in scores)
        for number, score in enumerate(scores, start=1):
            if math.isnan(score):
                return Location(None, "failed", f"step {number} could not be scored; {shown}")
            if score < self._threshold:
                return Location(number, "found", shown)
        return Location(None, "none", shown)


def _unscored(solution: WrongSolution) -> Location:
    stepped = split_steps(solution.text).steps
    why = "longer than the scorer can read" if stepped else "the solution has no numbered steps"
    return Location(None, "undecided", f"not scored: {why}")


class _Row(NamedTuple):
    """One solution as the reward model reads it."""

    place: int
    """Of the solution."""
    key: tuple[str, int, str]
    """In the journal: id of the solution, 0, digest of the text that the model reads."""
    tokens: list[int]
    tags: list[int]
    """Positions of the step tags."""

    def completion(self, scores: Sequence[float]) -> Completion:
        """What the journal keeps of the scores."""
        return Completion(self.key[0], self.key[1], json.dumps(scores), "stop", 0)


class RewardModelScorer:
    r"""`StepScorer` over a causal language model with a step tag (Math-Shepherd, arXiv 2312.08935).

    The model reads ``question step_1 tag\n step_2 tag\n ...``; the score of a step is
    ``softmax(logit[good], logit[bad])[good]`` at its tag. What a solution says before its first step is not shown:
    such models are trained on steps alone.
    """

    name = "reward model"

    def __init__(
        self,
        model: CausalModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        step_tag: str,
        good: str,
        bad: str,
        batch_size: int = 16,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: a causal language model that was trained to judge steps.
            tokenizer: its tokenizer.
            step_tag: what follows each step, one token; `ки` in Math-Shepherd.
            good: the token that a right step is labelled with; `+` in Math-Shepherd.
            bad: the same of a wrong step; `-` in Math-Shepherd.
            batch_size: solutions scored together.

        Raises:
            ConfigError: a text that is not one token of the tokenizer, equal labels, or a batch size below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"reward model: batch_size is {batch_size}; use 1 or more")
        self._model = model
        self._tokenizer = tokenizer
        self._step_tag = step_tag
        self._tag = _token(tokenizer, "step_tag", step_tag)
        self._labels = (_token(tokenizer, "good", good), _token(tokenizer, "bad", bad))
        if self._labels[0] == self._labels[1]:
            raise ConfigError(f"reward model: good and bad are the same token {good!r}")
        self._batch_size = batch_size

    @cached_property
    def identity(self) -> str:
        """Digest of weights, tokenizer, step tag and labels, 32 hex digits: the journal keeps scores under it."""
        tokenizer = self._tokenizer.backend_tokenizer.to_str()
        facts = [model_digest(self._model), tokenizer, self._step_tag, self._tag, *self._labels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def scores(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,  # noqa: ARG002 - of the protocol; the model reads the steps alone
    ) -> list[list[float]]:
        """Probability that each step is right, in [0, 1]; none for what does not fit into the model's context.

        What the journal holds is not scored again: a row per solution, whose text is the JSON list of its scores.

        Raises:
            StorageError: the journal cannot be written.
            ConfigError: the tokenizer merges the step tag with what surrounds it.
            ModelError: the model is not built as backbone and linear head, or memory is short.
            NonFiniteError: a score is not a number.
        """
        found: list[list[float]] = [[] for _ in solutions]
        read = (self._row(k, solution) for k, solution in enumerate(solutions))
        rows = [row for row in read if row is not None]
        series = Series(self.identity if journal is not None else "", "judge", "scores")
        held = {} if journal is None else journal.series(series)
        for row in rows:
            if row.key in held:
                found[row.place] = json.loads(held[row.key].text)
        rows = sorted((r for r in rows if r.key not in held), key=lambda r: len(r.tokens))
        done = len(solutions) - len(rows)
        if progress is not None:
            progress(done, len(solutions))
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            for row, scores in zip(batch, self._score(batch), strict=True):
                if any(math.isnan(score) for score in scores):
                    raise NonFiniteError(
                        f"record {row.key[0]!r}: a score of the reward model is not a number; check "
                        "its weights, or use dtype float32"
                    )
                found[row.place] = scores
                if journal is not None:
                    journal.append(series, row.completion(scores), row.key[-1])
            done += len(batch)
            if progress is not None:
                progress(done, len(solutions))
        return found

    def _row(self, index: int, solution: WrongSolution) -> _Row | None:
        """What the model reads of a solution; None without steps, or where it does not fit into the context."""
        steps = split_steps(solution.text).steps
        if not steps:
            return None
        text, ends = solution.question.strip() + " ", list[int]()
        for step in steps:
            text += f"{(step.marker + step.text).strip()} {self._step_tag}"
            ends.append(len(text) - 1)
            text += "\n"
        encoded = self._tokenizer(text)
        tokens = list(encoded["input_ids"])
        tags: list[int | None] = [encoded.char_to_token(end) for end in ends]
        if any(tag is None or tokens[tag] != self._tag for tag in tags):
            raise ConfigError(
                f"reward model: record {solution.id!r}: the tokenizer merges step_tag {self._step_tag!r} with what "
                "surrounds it; name the tag that the model was trained with"
            )
        limit = plain_model(self._model).config.get_text_config(decoder=True)
        longest = getattr(limit, "max_position_embeddings", None)
        if longest is not None and len(tokens) > longest:
            return None
        key = (solution.id, 0, Request(solution.id, 0, text).digest())
        return _Row(index, key, tokens, [tag for tag in tags if tag is not None])

    def _score(self, rows: Sequence[_Row]) -> list[list[float]]:
        """Scores of a batch; logits are built for two tokens at the tags only."""
        model = self._model
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                logits = self._label_logits(rows)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"reward model: {len(rows)} solutions of up to {len(rows[-1].tokens)} tokens do not fit in memory; "
                "use a smaller batch_size"
            ) from error
        finally:
            model.train(was_training)
        good = torch.softmax(logits.float(), dim=-1)[:, 0].split([len(row.tags) for row in rows])
        return [scores.tolist() for scores in good]

    def _label_logits(self, rows: Sequence[_Row]) -> Tensor:
        """Logits of good and bad at every tag of every row, `[tags, 2]`."""
        device = plain_model(self._model).device
        width = max(len(row.tokens) for row in rows)
        # Padding comes last, where causal attention keeps it out of sight.
        tokens = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in rows])
        mask = torch.tensor([[1] * len(r.tokens) + [0] * (width - len(r.tokens)) for r in rows])
        backbone: PreTrainedModel = find_backbone(self._model)
        states: Tensor = backbone(
            input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        row = [k for k, r in enumerate(rows) for _ in r.tags]
        at = [tag for r in rows for tag in r.tags]
        head, labels = output_head(self._model), list(self._labels)
        bias = None if head.bias is None else head.bias[labels]
        logits = torch.nn.functional.linear(states[row, at], head.weight[labels], bias)
        logits = logits.float() * head.scale
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _token(tokenizer: PreTrainedTokenizerFast, key: str, text: str) -> int:
    """The one token of a text. SentencePiece may put a lone word boundary before it, which does not count."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    known = bool(tokens) and tokens[-1] != tokenizer.unk_token_id
    if known and not str(tokenizer.decode(tokens[:-1])).strip():
        return tokens[-1]
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    raise ConfigError(
        f"reward model: {key} {text!r} is not one token of this tokenizer (it reads {pieces}); name the token that "
        "the model was trained with"
    )
