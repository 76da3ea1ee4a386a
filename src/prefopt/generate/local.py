"""Completions from a transformers causal language model in this process: one batched decode loop.

Rows are sorted by length, left-padded and share one key-value cache; the finished ones leave it once they are
half of the batch. Loading models is not done here (`prefopt.models.load`).
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError, NonFiniteError, RecordError
from prefopt.generate.base import Completion, FinishReason, Request, Sampling
from prefopt.generate.draw import draw_tokens, uniforms
from prefopt.generate.prompts import encode_prompts
from prefopt.generate.seeds import sample_key
from prefopt.models.digest import model_digest
from prefopt.models.parts import plain_model
from prefopt.text.render import RenderSettings

_CONTEXT = 8
"""Prompt tokens decoded together with a completion, so that its leading space survives."""
_AS_IT_IS = RenderSettings()


@dataclass(slots=True)
class _Row:
    """One request on its way through the decode loop."""

    request: Request
    prompt: list[int]
    limit: int
    key: int
    tokens: list[int] = field(default_factory=list)
    text: str | None = None
    """Set early by a stop string."""
    finish: FinishReason | None = None
    stopped_by: str | None = None


class _Stops(NamedTuple):
    """What ends a completion besides its length."""

    tokens: frozenset[int]
    strings: tuple[str, ...]
    special: Mapping[int, str]
    """Stop strings that are special tokens, by token; they are among `tokens`."""
    keep_special: bool
    """Whether special tokens stay in the text."""


class LocalGenerator:
    """`Generator` over a causal language model and its tokenizer.

    A sample's randomness derives from (seed, purpose, id, sample, position), so a text does not depend on
    order or size of batches beyond the rounding of matrix products (about 1e-7 of a probability). The weights
    must not change while it is in use: `identity` is taken once.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        batch_size: int = 64,
        render: RenderSettings = _AS_IT_IS,
        overlong: Literal["error", "refuse"] = "error",
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: any causal language model of transformers, or a PEFT model around one.
            tokenizer: its tokenizer; no padding token is needed.
            batch_size: rows decoded together.
            render: how prompts become text; the settings of the training run.
            overlong: a prompt that fills the model's context is an error, or is refused as servers do it: its
                completion has the finish reason `error` and the reason as its text, and the others go on.

        Raises:
            ConfigError: `batch_size` is below 1, or `overlong` is neither.
        """
        if batch_size < 1:
            raise ConfigError(f"generation: batch_size is {batch_size}; use 1 or more")
        if overlong not in {"error", "refuse"}:
            raise ConfigError(f"generation: overlong is {overlong!r}; use error or refuse")
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._render = render
        self._refuses = overlong == "refuse"
        self._ends = end_tokens(model, tokenizer)
        self._accepted = _forward_keywords(model)

    @property
    def identity(self) -> str:
        """Digest of weights, tokenizer, rendering and end tokens, 32 hex digits; computed on first use."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = [
            model_digest(self._model),
            self._tokenizer.backend_tokenizer.to_str(),
            str(self._tokenizer.chat_template),
            str(tuple(self._render)),
            str(sorted(self._ends)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yield one completion per request, batch by batch, shortest prompts first; before them what is refused.

        Raises:
            RecordError: a prompt is empty or fills the model's context (unless `overlong` is `refuse`), or the
                template refuses it.
            ModelError: a conversation and a tokenizer without chat template, or a batch that does not fit in
                memory.
            NonFiniteError: the model's logits are not numbers.
        """
        stops = _stops(sampling, self._ends, self._tokenizer)
        rows, refused = self._rows(requests, sampling)
        yield from refused
        rows.sort(key=lambda row: (len(row.prompt), row.request.id, row.request.sample))
        for start in range(0, len(rows), self._batch_size):
            batch = rows[start : start + self._batch_size]
            self._decode(batch, sampling, stops)
            for row in batch:
                yield self._completion(row, stops)

    def room(self, requests: Sequence[Request]) -> list[int]:
        """Tokens that each request's prompt leaves in the model's context; below 1 it cannot be completed."""
        context = _context_length(self._model)
        prompts = encode_prompts(requests, self._tokenizer, self._render)
        return [context - len(prompt) for prompt in prompts]

    def _rows(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> tuple[list[_Row], list[Completion]]:
        """What can be completed, and the refusals of what cannot."""
        prompts = encode_prompts(requests, self._tokenizer, self._render)
        context = _context_length(self._model)
        rows: list[_Row] = []
        refused: list[Completion] = []
        for request, prompt in zip(requests, prompts, strict=True):
            if not prompt:
                raise RecordError(
                    f"record '{request.id}': the prompt is empty, and the tokenizer puts nothing before "
                    "it to start from; give a prompt, or remove the record"
                )
            if len(prompt) >= context:
                reason = (
                    f"the prompt has {len(prompt)} tokens, which leaves no room in the model's context of "
                    f"{context}"
                )
                if not self._refuses:
                    raise RecordError(
                        f"record '{request.id}': {reason}; shorten it, or remove the record"
                    )
                refused.append(Completion(request.id, request.sample, reason, "error", 0))
                continue
            limit = min(sampling.max_new_tokens, context - len(prompt))
            key = sample_key(
                seed=sampling.seed, purpose=sampling.purpose, id=request.id, sample=request.sample
            )
            rows.append(_Row(request, prompt, limit, key))
        return rows, refused

    def _decode(self, rows: list[_Row], sampling: Sampling, stops: _Stops) -> None:
        """Fill `tokens` and `finish` of every row."""
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                self._loop(rows, sampling, stops)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"generation: {len(rows)} rows of up to {len(rows[-1].prompt) + rows[-1].limit} tokens do not "
                "fit in memory; use a smaller batch_size or max_new_tokens"
            ) from error
        finally:
            self._model.train(was_training)

    def _loop(self, rows: list[_Row], sampling: Sampling, stops: _Stops) -> None:
        device = self._model.device
        tokens, mask = _left_pad([row.prompt for row in rows], device)
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        live = rows
        for step in range(max(row.limit for row in rows)):
            chosen = _choose(self._forward(tokens, mask, position, cache), live, step, sampling)
            self._advance(live, chosen.tolist(), stops)
            going = [i for i, row in enumerate(live) if row.finish is None]
            if not going:
                return
            tokens, position = chosen.unsqueeze(1), position[:, -1:] + 1
            if 2 * len(going) <= len(live) and _selectable(cache):
                index = torch.tensor(going, device=device)
                cache.batch_select_indices(index)
                tokens, position, mask = tokens[index], position[index], mask[index]
                live = [live[i] for i in going]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)

    def _forward(
        self, tokens: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache
    ) -> Tensor:
        """Logits of the last position, `[B, V]`."""
        optional = {"position_ids": position, "logits_to_keep": 1}
        return self._model(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        ).logits[:, -1]

    def _advance(self, rows: list[_Row], chosen: list[int], stops: _Stops) -> None:
        """Append each unfinished row's token and settle which rows are done."""
        written: list[_Row] = []
        for row, token in zip(rows, chosen, strict=True):
            if row.finish is not None:
                continue
            row.tokens.append(token)
            if token in stops.tokens:
                row.finish, row.stopped_by = "stop", stops.special.get(token)
                continue
            written.append(row)
            if len(row.tokens) >= row.limit:
                row.finish = "length"
        if stops.strings and written:
            self._stop_at_strings(written, stops)

    def _stop_at_strings(self, rows: list[_Row], stops: _Stops) -> None:
        """Finish the rows whose text now holds a stop string.

        Only the tail that a stop string can reach into is decoded at each step: a token is at least one byte
        of text, and a few tokens more keep the tail's own start out of the search.
        """
        reach = max(len(s.encode()) for s in stops.strings) + _CONTEXT
        tails = self._decode_texts([row.tokens[-reach:] for row in rows], stops)
        for row, tail in zip(rows, tails, strict=True):
            if not any(s in tail for s in stops.strings):
                continue
            text = self._text(row, stops)
            found = [(text.find(s), s) for s in stops.strings if s in text]
            if found:
                start, row.stopped_by = min(found, key=lambda pair: pair[0])
                row.text, row.finish = text[:start], "stop"

    def _text(self, row: _Row, stops: _Stops) -> str:
        """What the tokens add to the prompt's text, leading space included."""
        new = row.tokens[:-1] if row.tokens[-1] in stops.tokens else row.tokens
        context = row.prompt[-_CONTEXT:]
        before, both, alone = self._decode_texts([context, context + new, new], stops)
        return both[len(before) :] if both.startswith(before) else alone

    def _decode_texts(self, tokens: list[list[int]], stops: _Stops) -> list[str]:
        return self._tokenizer.batch_decode(
            tokens, skip_special_tokens=not stops.keep_special, clean_up_tokenization_spaces=False
        )

    def _completion(self, row: _Row, stops: _Stops) -> Completion:
        text = self._text(row, stops) if row.text is None else row.text
        return Completion(
            id=row.request.id,
            sample=row.request.sample,
            text=text,
            finish_reason=row.finish or "length",
            tokens=len(row.tokens),
            stopped_by=row.stopped_by,
            prompt_tokens=len(row.prompt),
        )


def end_tokens(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerFast
) -> frozenset[int]:
    """Tokens that end a text: the tokenizer's end of sequence and those of the generation config."""
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    ends = set(listed) if isinstance(listed, list) else {listed}
    ends.add(tokenizer.eos_token_id)
    return frozenset(token for token in ends if token is not None)


def _stops(sampling: Sampling, ends: frozenset[int], tokenizer: PreTrainedTokenizerFast) -> _Stops:
    """Stop strings that are special tokens may not show in the text: they stop as tokens."""
    strings = sampling.stop
    ids = tokenizer.get_vocab()
    special = {ids[s]: s for s in strings if s in tokenizer.all_special_tokens and s in ids}
    plain = tuple(s for s in strings if s not in special.values())
    return _Stops(ends | frozenset(special), plain, special, sampling.keep_special)


def _choose(logits: Tensor, rows: Sequence[_Row], step: int, sampling: Sampling) -> Tensor:
    """The next token of each row, `[B]`."""
    broken = logits.isnan().any(dim=-1)
    if bool(broken.any()):
        first = rows[int(broken.nonzero()[0])]
        raise NonFiniteError(
            f"record '{first.request.id}': the model's logits are not numbers at token {step + 1} of the "
            "completion; check its weights, or use dtype float32"
        )
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    uniform = torch.from_numpy(uniforms([row.key for row in rows], step))
    return draw_tokens(logits, uniform, temperature=sampling.temperature, top_p=sampling.top_p)


def _left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both `[B, longest]` int64; what is masked is token 0."""
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return tokens.to(device), mask.to(device)


def _selectable(cache: DynamicCache) -> bool:
    """Whether rows can leave the batch; the states of recurrent layers cannot be picked apart."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


def _forward_keywords(model: PreTrainedModel | PeftModel) -> frozenset[str]:
    """Names that the model's forward takes, looked up below a PEFT wrapper, which passes everything on."""
    return frozenset(inspect.signature(plain_model(model).forward).parameters)


def _context_length(model: PreTrainedModel | PeftModel) -> int:
    """Longest sequence the position encoding was made for; unbounded where the config names none."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "max_position_embeddings", None) or sys.maxsize
