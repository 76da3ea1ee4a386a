"""Rendered texts as token sequences: encoded once as a whole, scored tokens found by character offsets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from prefopt.errors import ModelError
from prefopt.values import JsonValue

_SPACE_MARKS = "ĠĊĉčĂ▁"
"""How byte-level and SentencePiece vocabularies write white space at the edges of a token."""


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    @property
    def is_fast(self) -> bool: ...
    @property
    def bos_token(self) -> str | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token(self) -> str | None: ...

    def __call__(
        self,
        text: list[str],
        *,
        add_special_tokens: bool,
        return_offsets_mapping: bool,
        return_attention_mask: bool,
        verbose: bool,
    ) -> Mapping[str, list[list[int]]]: ...

    def convert_ids_to_tokens(self, ids: int) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, JsonValue]],
        *,
        tools: JsonValue,
        chat_template: str | None,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str: ...


class Span(NamedTuple):
    """A scored range of characters."""

    start: int
    end: int
    turn: int
    """Assistant turn of the response, from 0."""


class RenderedResponse(NamedTuple):
    """One response with its prompt as the text that is encoded."""

    text: str
    spans: tuple[Span, ...]
    """What is scored, in order."""
    special: bool
    """Whether a chat template wrote the text, special tokens included: then no BOS is added."""
    context: int
    """Characters of prompt and prefix, which every response of the record shares."""
    notes: tuple[str, ...] = ()
    """Remarks for the ledger."""


class TokenSequence(NamedTuple):
    """One response with its prompt, tokenised as a whole."""

    tokens: Sequence[int]
    scored: Sequence[bool]
    """Whether the token's log-probability counts. The first token of a sequence can never be scored."""
    turn: Sequence[int]
    """Assistant turn of a scored token, from 0; -1 for unscored tokens."""


class EncodedResponse(NamedTuple):
    """A token sequence and where its prompt ends."""

    sequence: TokenSequence
    context: int
    """Tokens of prompt and prefix; a token that reaches into the response is the response's."""
    headless: bool
    """Whether the response begins with the sequence, so that its first token could not be scored."""


def tokenize(rendered: RenderedResponse, tokenizer: Tokenizer) -> TokenSequence:
    """The text as tokens; those that overlap a span are scored (see `encode`)."""
    return encode([rendered], tokenizer)[0].sequence


def encode(rendered: Sequence[RenderedResponse], tokenizer: Tokenizer) -> list[EncodedResponse]:
    """Each text as tokens, in order, encoded in one call and never truncated.

    A token is scored iff it overlaps a span, so one that merges the end of the prompt with the beginning of
    the response belongs to the response. The first token of a sequence has no predictor and is never scored.

    Raises:
        ModelError: the tokenizer gives no offsets (it is no fast tokenizer).
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which cannot tell which characters a token "
            "covers; use a fast one (a folder with tokenizer.json)"
        )
    if not rendered:
        return []
    output = tokenizer(
        [r.text for r in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    bos = _added_bos(tokenizer)
    return [
        _score(r, ids, offsets, tokenizer, None if r.special else bos)
        for r, ids, offsets in zip(
            rendered, output["input_ids"], output["offset_mapping"], strict=True
        )
    ]


def _added_bos(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer puts before ordinary texts; None when it puts none."""
    if tokenizer.bos_token_id is None:
        return None
    probe = tokenizer(
        ["a"],
        add_special_tokens=True,
        return_offsets_mapping=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"][0]
    return tokenizer.bos_token_id if probe and probe[0] == tokenizer.bos_token_id else None


_Offsets = Sequence[Sequence[int]]


def _score(
    rendered: RenderedResponse,
    ids: list[int],
    offsets: _Offsets,
    tokenizer: Tokenizer,
    bos: int | None,
) -> EncodedResponse:
    head = [bos] if bos is not None and ids[:1] != [bos] else []
    scored = [False] * (len(ids) + len(head))
    turn = [-1] * len(scored)
    for span in rendered.spans:
        start = _first_after(span.start, rendered.text, ids, offsets, tokenizer) + len(head)
        stop = _first_beyond(span.end, rendered.text, offsets) + len(head)
        if stop > start:
            scored[start:stop] = [True] * (stop - start)
            turn[start:stop] = [span.turn] * (stop - start)
    headless = bool(scored) and scored[0]
    if headless:
        scored[0], turn[0] = False, -1
    context = _first_after(rendered.context, rendered.text, ids, offsets, tokenizer) + len(head)
    return EncodedResponse(TokenSequence(head + ids, scored, turn), context, headless)


def _token_end(offset: Sequence[int]) -> int:
    return offset[1]


def _token_start(offset: Sequence[int]) -> int:
    return offset[0]


def _first_after(
    position: int, text: str, ids: list[int], offsets: _Offsets, tokenizer: Tokenizer
) -> int:
    """Index of the first token that reaches beyond `position`.

    Byte-level tokenizers may leave white space out of the offsets. A token whose trimmed white space lies
    beyond the position is found by its own spelling.
    """
    at = bisect_right(offsets, position, key=_token_end)
    if at > 0 and position < len(text) and text[position].isspace():
        start, end = offsets[at - 1]
        if end > start and not text[end - 1].isspace():
            piece = tokenizer.convert_ids_to_tokens(ids[at - 1])
            if end + len(piece) - len(piece.rstrip(_SPACE_MARKS)) > position:
                return at - 1
    return at


def _first_beyond(position: int, text: str, offsets: _Offsets) -> int:
    """Index of the first token that starts at `position` or later; trimmed white space before it does not."""
    if position >= len(text):
        return len(offsets)
    at = bisect_left(offsets, position, key=_token_start)
    while at < len(offsets) and tuple(offsets[at]) == (position, position):
        at += 1
    return at
