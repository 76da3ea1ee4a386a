"""Responses token by token: where each token lies in the text, and its log-probability under a model.

What is made of two models' log-probabilities is in `credit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.analysis.spans import (
    ErrorSpan,
    Located,
    Part,
    locate_error,
    preferred,
    split_parts,
    turn_parts,
)
from prefopt.errors import NonFiniteError, RecordError
from prefopt.models.likelihood import context_length
from prefopt.models.load import CausalModel
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Example, Layout, collate
from prefopt.pack.tree import TokenSequence, build_tree
from prefopt.records import Preference
from prefopt.text.render import RenderedResponse, RenderSettings, encode, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Which = Literal["rejected", "chosen", "all"]

_AS_IT_IS = RenderSettings()
_CHUNK = 256
"""Records tokenised in one call."""


class CreditText(NamedTuple):
    """One response, tokenised, with its steps and its error. N scored tokens."""

    id: str
    """Of its record."""
    response: int
    """Position in the record's responses."""
    role: str
    """`rejected`, `chosen`, `chosen and rejected` (of different pairs) or `response`."""
    text: str
    """What follows prompt and prefix, end-of-turn token included."""
    sequence: TokenSequence
    """Prompt and response."""
    offsets: tuple[tuple[int, int], ...]
    """[N] characters of `text` that each scored token covers, as the tokenizer tells them."""
    parts: tuple[Part, ...]
    located: Located

    @property
    def tokens(self) -> list[int]:
        """[N] ids of the scored tokens."""
        return [t for t, s in zip(*self.sequence[:2], strict=True) if s]

    @property
    def error(self) -> ErrorSpan | None:
        """The wrong stretch, where it is known."""
        return self.located.span

    def part_of_token(self) -> NDArray[np.int64]:
        """[N] position in `parts` of the part in which each token begins."""
        starts = [part.start for part in self.parts]
        first = np.array([start for start, _ in self.offsets], dtype=np.int64)
        return np.searchsorted(starts, first, side="right") - 1

    def in_error(self) -> BoolArray:
        """[N] whether the token overlaps the error span; False everywhere where none is known."""
        if self.error is None:
            return np.zeros(len(self.offsets), dtype=np.bool_)
        start, end, _ = self.error
        first, last = np.array(self.offsets, dtype=np.int64).reshape(-1, 2).T
        return (first < end) & ((last > start) | ((first == last) & (first >= start)))

    def written(self) -> BoolArray:
        """[N] whether the model writes the token: the output of an interpreter (`<|execution|>`) is not its own."""
        own = np.array([part.kind != "execution" for part in self.parts])
        return own[self.part_of_token()]


class PartCredit(NamedTuple):
    """The reward of one part of a response."""

    part: Part
    tokens: int
    total: float

    @property
    def mean(self) -> float:
        """Per token; NaN for a part without scored tokens."""
        return self.total / self.tokens if self.tokens else float("nan")


class ResponseCredit(NamedTuple):
    """The reward of every token of one response under one policy. N scored tokens, nats."""

    text: CreditText
    policy: FloatArray
    """[N] log-probabilities."""
    reference: FloatArray
    """[N]"""
    beta: float

    @property
    def rewards(self) -> FloatArray:
        """[N] ``beta (policy - reference)``."""
        return self.beta * (self.policy - self.reference)

    @property
    def total(self) -> float:
        """The implicit reward of the whole response: the sum over its tokens."""
        return float(self.rewards.sum())

    def parts(self) -> list[PartCredit]:
        """Reward of each part. Their totals add up to `total`: the log-ratios telescope (eq. 6)."""
        owner, count = self.text.part_of_token(), len(self.text.parts)
        tokens = np.bincount(owner, minlength=count)
        totals = np.bincount(owner, weights=self.rewards, minlength=count)
        return [
            PartCredit(part, int(n), float(total))
            for part, n, total in zip(self.text.parts, tokens, totals, strict=True)
        ]


def credit_texts(
    records: Sequence[Preference],
    tokenizer: PreTrainedTokenizerFast,
    *,
    which: Which = "rejected",
    render: RenderSettings = _AS_IT_IS,
) -> list[CreditText]:
    """The responses asked for, tokenised as in training, nothing cut or dropped.

    Raises:
        RecordError: there is no such response, a record cannot be rendered, or its annotation is wrong.
    """
    texts: list[CreditText] = []
    for start in range(0, len(records), _CHUNK):
        texts += _chunk_texts(records[start : start + _CHUNK], tokenizer, which, render)
    if not texts:
        remedy = "give a file with records" if which == "all" or not records else "use 'all'"
        kind = "" if which == "all" else f"{which} "
        raise RecordError(f"none of the {len(records)} records has a {kind}response; {remedy}")
    return texts


def _chunk_texts(
    records: Sequence[Preference],
    tokenizer: PreTrainedTokenizerFast,
    which: Which,
    settings: RenderSettings,
) -> list[CreditText]:
    wanted: list[tuple[Preference, int, str]] = []
    rendered: list[RenderedResponse] = []
    for record in records:
        roles = _roles(record)
        picked = [k for k, role in enumerate(roles) if which == "all" or which in role]
        texts = render(record, tokenizer, settings) if picked else []
        wanted += [(record, k, roles[k]) for k in picked]
        rendered += [texts[k] for k in picked]
    if not wanted:
        return []
    encoded = encode(rendered, tokenizer)
    offsets = tokenizer(
        [r.text for r in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )["offset_mapping"]
    return [
        _credit_text(*item, text, one.sequence, spans)
        for item, text, one, spans in zip(wanted, rendered, encoded, offsets, strict=True)
    ]


def _roles(record: Preference) -> list[str]:
    """What each response is, as words."""
    chosen, rejected = preferred(record)
    names = {
        (True, False): "chosen",
        (False, True): "rejected",
        (True, True): "chosen and rejected",
        (False, False): "response",
    }
    return [names[i in chosen, i in rejected] for i in range(len(record.responses))]


def _credit_text(
    record: Preference,
    response: int,
    role: str,
    rendered: RenderedResponse,
    sequence: TokenSequence,
    offsets: Sequence[tuple[int, int]],
) -> CreditText:
    if not any(sequence.scored):
        where = record.origin or f"record '{record.id}'"
        raise RecordError(f"{where}: response {response} has no tokens to score; remove it")
    context = rendered.context
    text = rendered.text[context:]
    head = len(sequence.tokens) - len(offsets)
    scored = [
        (max(0, start - context), max(0, end - context))
        for (start, end), counts in zip(offsets, sequence.scored[head:], strict=True)
        if counts
    ]
    if record.responses[response].turns:
        parts = turn_parts([span.start - context for span in rendered.spans], len(text))
    else:
        parts = split_parts(record.prefix, record.responses[response].text, len(text))
    located = locate_error(record, response, parts)
    return CreditText(record.id, response, role, text, sequence, tuple(scored), parts, located)


def text_logps(
    model: CausalModel,
    texts: Sequence[CreditText],
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[FloatArray]:
    """The log-probabilities [N] of the scored tokens of each text, in nats, without any [N, V] logits.

    Args:
        model: on its device; run in eval mode, without gradients, and left in the mode it was in.
        texts: responses.
        batch_size: responses run together, those of similar length.
        progress: is told (texts done, texts).

    Raises:
        RecordError: prompt and response are longer than the model's context.
        NonFiniteError: a log-probability is not finite.
    """
    _require_room(texts, context_length(model))
    found: dict[int, FloatArray] = {}
    scorer = Scorer(model)
    was_training = scorer.training
    scorer.eval()
    try:
        for part, values in _scored(scorer, texts, batch_size):
            for i, logps in zip(part, values, strict=True):
                if not np.isfinite(logps).all():
                    raise NonFiniteError(
                        f"record '{texts[i].id}', response {texts[i].response}: token "
                        f"{int(np.argmin(np.isfinite(logps)))} has a log-probability that is not finite; "
                        "check the model's weights, or load it in float32"
                    )
                found[i] = logps
            if progress is not None:
                progress(len(found), len(texts))
    finally:
        scorer.train(was_training)
    return [found[i] for i in range(len(texts))]


def _require_room(texts: Sequence[CreditText], context: int) -> None:
    for text in texts:
        length = len(text.sequence.tokens)
        if length > context:
            raise RecordError(
                f"record '{text.id}': prompt and response {text.response} have {length} tokens, and the model's "
                f"context is {context}; shorten them, or remove the record"
            )


def _scored(
    scorer: Scorer, texts: Sequence[CreditText], batch_size: int
) -> Iterator[tuple[list[int], list[FloatArray]]]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].sequence.tokens), reverse=True)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        examples = [_example(texts[i]) for i in part]
        batch = collate([[example] for example in examples], layout=Layout.ROWS)
        with torch.no_grad():
            logp = scorer(batch.to(scorer.model.device)).logp
        ends = np.cumsum([len(texts[i].offsets) for i in part])
        yield part, np.split(logp.double().cpu().numpy(), ends[:-1])


def _example(text: CreditText) -> Example:
    return Example(text.id, build_tree([text.sequence]), (), (), (), (None,), (None,), (None,))
