"""Any two models as a reward model: what training with preferences has made likelier is what it prefers.

``r(x, y) = beta * (log policy(y|x) - log reference(y|x))`` is, up to a term of the prompt alone, the reward that a
policy trained by DPO from that reference is optimal for (Rafailov et al. 2023, eq. 5), so it ranks the responses to one
prompt. Here are the scores; what is made of them is elsewhere (`prefopt.judge.agreement`, `prefopt.build`).
"""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from prefopt.errors import ConfigError, ModelError, RecordError
from prefopt.generate.base import Completion
from prefopt.generate.journal import Journal, Progress, Series
from prefopt.judge.model_pair import Models, require_one_vocabulary
from prefopt.models.digest import model_digest
from prefopt.models.likelihood import context_length, sequence_logps
from prefopt.models.load import LoadedModel, embedding_rows, load_model
from prefopt.models.scorer import SCORER_VERSION
from prefopt.records import Preference
from prefopt.text.render import RenderSettings, TokenSequence, encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Missing = Literal["", "truncated", "not finite", "no tokens"]
"""Why a response has no reward: with its prompt it is longer than a model can read or than is allowed; a
log-probability is no finite number; there is nothing to score. Empty: it has one."""

RESOLUTION = 2.0**-20
"""Relative error of a log-probability: eight units in the last place of float32, in which it is computed. With weights
in float32, rows batched in another way or a shared prompt change it by less; with others they can change it by more."""

_RECORDS = 256
"""Records whose tokens are in memory together."""
_AS_IT_IS = RenderSettings()


class ImplicitScore(NamedTuple):
    """The implicit reward of one response, with what it is made of."""

    reward: float | None
    """``beta * (policy - reference)``, nats times beta; None where `missing` says why."""
    policy: float | None
    """Log-probability under the policy, nats: the sum over `tokens`."""
    reference: float | None
    """The same under the reference."""
    tokens: int
    """Scored tokens, the end token included where the response ends."""
    missing: Missing = ""

    @property
    def truncated(self) -> bool:
        """Whether it was too long to be scored whole."""
        return self.missing == "truncated"

    @property
    def noise(self) -> float:
        """How far ``policy - reference`` may be off by rounding alone, nats; 0 where one of them is missing."""
        if self.policy is None or self.reference is None:
            return 0.0
        return RESOLUTION * (abs(self.policy) + abs(self.reference))


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """How responses are scored."""

    render: RenderSettings = _AS_IT_IS
    """How records become text; the settings of the training that made the policy."""
    batch_size: int = 32
    """Responses run together."""
    max_length: int | None = None
    """Tokens of prompt and response together; longer ones have no reward. None: what both models can read."""


class _Text(NamedTuple):
    """One response as tokens."""

    id: str
    """Of its record."""
    response: int
    sequence: TokenSequence
    digest: str
    """Of tokens and scored positions."""

    @property
    def scored(self) -> int:
        return sum(self.sequence.scored)


class _Logp(NamedTuple):
    total: float | None
    tokens: int
    missing: Missing = ""


def implicit_reward(policy: float, reference: float, *, beta: float) -> float:
    """``beta * (policy - reference)`` of two log-probabilities in nats."""
    return beta * (policy - reference)


class ImplicitReward:
    """The reward that a policy has in it, relative to a reference.

    The two models are in memory one after the other, never both. Both are shown the same tokens, those of the policy's
    tokenizer and chat template.
    """

    def __init__(
        self,
        policy: str | Path,
        reference: str | Path,
        *,
        beta: float,
        settings: ScoringSettings | None = None,
        load: Callable[[str], LoadedModel] = load_model,
    ) -> None:
        """Name the models; nothing is loaded yet.

        Args:
            policy: folder, adapter or hub id.
            reference: what the policy is compared with, usually the model that its training started from.
            beta: unit of the reward; that of the policy's training makes it the reward of that training.
            settings: how responses are scored.
            load: how a model is loaded from its name.

        Raises:
            ConfigError: `beta` is not above 0, or a size is below 1.
        """
        self.models = Models(str(policy), str(reference))
        self.beta = beta
        self.settings = settings or ScoringSettings()
        self._load = load
        self._tokenizer: PreTrainedTokenizerFast | None = None
        if not 0 < beta < math.inf:
            raise ConfigError(f"implicit reward: beta is {beta}; use a number above 0")
        if self.settings.batch_size < 1:
            raise ConfigError(
                f"implicit reward: batch_size is {self.settings.batch_size}; use 1 or more"
            )

    def score(
        self,
        records: Sequence[Preference],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> dict[str, tuple[ImplicitScore, ...]]:
        """Record id -> the score of each of its responses; their annotations and pairs are not looked at.

        Log-probabilities in the journal are not computed again: they are kept under the digest of the model and of the
        tokens, so that order, number and file of the records may change between two calls.

        Args:
            records: with unique ids.
            journal: keeps every log-probability.
            progress: called with (responses done, all), each response counted for either model.

        Raises:
            RecordError: two records have one id, or a record cannot be rendered.
            ModelError: a model cannot be loaded, or the two do not share their vocabulary, or memory is short.
            StorageError: the journal cannot be written.
        """
        _require_unique(records)
        count = 2 * sum(len(record.responses) for record in records)
        done = 0

        def told(advance: int) -> None:
            nonlocal done
            done += advance
            if progress is not None:
                progress(done, count)

        told(0)
        policy = self._logps(self.models.policy, records, journal, told)
        reference = self._logps(self.models.reference, records, journal, told)
        self._tokenizer = None
        return {
            record.id: tuple(
                self._joined(policy[record.id, k], reference[record.id, k])
                for k in range(len(record.responses))
            )
            for record in records
        }

    def _joined(self, policy: _Logp, reference: _Logp) -> ImplicitScore:
        missing = policy.missing or reference.missing
        if policy.total is None or reference.total is None:
            return ImplicitScore(None, policy.total, reference.total, policy.tokens, missing)
        reward = implicit_reward(policy.total, reference.total, beta=self.beta)
        return ImplicitScore(reward, policy.total, reference.total, policy.tokens)

    def _logps(
        self,
        name: str,
        records: Sequence[Preference],
        journal: Journal | None,
        told: Callable[[int], None],
    ) -> dict[tuple[str, int], _Logp]:
        """By record and response, under one model, which is gone from memory afterwards."""
        loaded = self._load(name)
        if self._tokenizer is None:
            self._tokenizer = loaded.tokenizer
        else:
            require_one_vocabulary(self._tokenizer, loaded.tokenizer, self.models)
        digest = model_digest(loaded.model) if journal is not None else ""
        series = Series(digest, "log-probability", SCORER_VERSION)
        found: dict[tuple[str, int], _Logp] = {}
        for texts in self._texts(records, self._tokenizer):
            found |= self._scored(loaded, texts, series, journal)
            told(len(texts))
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    def _texts(
        self, records: Sequence[Preference], tokenizer: PreTrainedTokenizerFast
    ) -> Iterator[list[_Text]]:
        """All responses as tokens, some records at a time."""
        for start in range(0, len(records), _RECORDS):
            part = records[start : start + _RECORDS]
            rendered = [render(record, tokenizer, self.settings.render) for record in part]
            encoded = iter(encode([text for texts in rendered for text in texts], tokenizer))
            yield [
                _Text(record.id, k, sequence, _digest(sequence))
                for record, texts in zip(part, rendered, strict=True)
                for k, sequence in enumerate(next(encoded).sequence for _ in texts)
            ]

    def _scored(
        self, loaded: LoadedModel, texts: Sequence[_Text], series: Series, journal: Journal | None
    ) -> dict[tuple[str, int], _Logp]:
        limit = min(
            context_length(loaded.model), self.settings.max_length or context_length(loaded.model)
        )
        keys = {(t.id, t.response): (t.id, t.response, t.digest) for t in texts}
        held = {} if journal is None else journal.find(series, list(keys.values()))
        found: dict[tuple[str, int], _Logp] = {}
        waiting: list[_Text] = []
        for text in texts:
            place = (text.id, text.response)
            if not text.scored:
                found[place] = _Logp(None, 0, "no tokens")
            elif len(text.sequence.tokens) > limit:
                found[place] = _Logp(None, text.scored, "truncated")
            elif keys[place] in held:
                found[place] = _read(float(held[keys[place]].text), text.scored)
            else:
                waiting.append(text)
        for i, total in self._computed(loaded, waiting):
            text = waiting[i]
            found[text.id, text.response] = _read(total, text.scored)
            if journal is not None:
                kept = Completion(text.id, text.response, repr(total), "stop", text.scored)
                journal.append(series, kept, text.digest)
        return found

    def _computed(self, loaded: LoadedModel, texts: Sequence[_Text]) -> Iterator[tuple[int, float]]:
        rows = embedding_rows(loaded.model)
        for text in texts:
            if max(text.sequence.tokens) >= rows:
                raise ModelError(
                    f"record {text.id!r}: token {max(text.sequence.tokens)} of the policy's tokenizer is none of the "
                    f"{rows} of a model; use two models of one vocabulary"
                )
        try:
            yield from sequence_logps(
                loaded.model, [text.sequence for text in texts], batch_size=self.settings.batch_size
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.settings.batch_size} responses do not fit in memory together; use a smaller batch_size"
            ) from error


def _read(total: float, tokens: int) -> _Logp:
    return _Logp(total, tokens) if math.isfinite(total) else _Logp(None, tokens, "not finite")


def _digest(sequence: TokenSequence) -> str:
    """Of tokens and scored positions, 32 hex digits."""
    tokens = np.asarray(sequence.tokens, dtype="<i8").tobytes()
    scored = np.asarray(sequence.scored, dtype=np.bool_).tobytes()
    return hashlib.sha256(tokens + scored).hexdigest()[:32]


def _require_unique(records: Sequence[Preference]) -> None:
    origins: dict[str, str] = {}
    for record in records:
        if record.id in origins:
            where = f"{record.origin}: " if record.origin else ""
            raise RecordError(
                f"{where}id {record.id!r} belongs to two records; scores are joined by id: make ids unique"
            )
        origins[record.id] = record.origin
