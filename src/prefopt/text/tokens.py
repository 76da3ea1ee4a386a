"""Rendered texts as token sequences: encoded once as a whole, scored tokens found by character offsets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from prefopt.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

_SPACE_MARKS = "ĠĊĉčĂ▁"
"""How byte-level and SentencePiece vocabularies write white space at the edges of a token."""


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
    begins_with_bos: bool
    """Whether the first token is the BOS token, which a cut of the prompt's beginning keeps."""
    headless: bool
    """Whether the response begins with the sequence, so that its first token could not be scored."""


def tokenize(rendered: RenderedResponse, tokenizer: PreTrainedTokenizerFast) -> TokenSequence:
    """The text as tokens; those that overlap a span are scored (see `encode`)."""
    return encode([rendered], tokenizer)[0].sequence


def encode(
    rendered: Sequence[RenderedResponse], tokenizer: PreTrainedTokenizerFast
) -> list[EncodedResponse]:
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
    bos = _added_bos(tokenizer)
    encodings = _encode(tokenizer, [r.text for r in rendered], special=False)
    return [
        _score(r, encoding, tokenizer, None if r.special else bos)
        for r, encoding in zip(rendered, encodings, strict=True)
    ]


def _encode(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, special: bool
) -> Sequence[Encoding]:
    output = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return output.encodings or []


def _added_bos(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id that the tokenizer puts before ordinary texts; None when it puts none."""
    bos = tokenizer.bos_token_id
    if not isinstance(bos, int):
        return None
    return bos if _encode(tokenizer, ["a"], special=True)[0].ids[:1] == [bos] else None


def _score(
    rendered: RenderedResponse,
    encoding: Encoding,
    tokenizer: PreTrainedTokenizerFast,
    bos: int | None,
) -> EncodedResponse:
    ids = encoding.ids
    located = _Located(rendered.text, encoding, ids, tokenizer)
    head = [bos] if bos is not None and ids[:1] != [bos] else []
    scored = [False] * (len(ids) + len(head))
    turn = [-1] * len(scored)
    context = located.first_after(rendered.context) + len(head)
    for span in rendered.spans:
        at_context = span.start == rendered.context
        start = context if at_context else located.first_after(span.start) + len(head)
        stop = located.first_beyond(span.end) + len(head)
        if stop > start:
            scored[start:stop] = [True] * (stop - start)
            turn[start:stop] = [span.turn] * (stop - start)
    headless = bool(scored) and scored[0]
    if headless:
        scored[0], turn[0] = False, -1
    tokens = head + ids
    begins = bool(tokens) and tokens[0] == tokenizer.bos_token_id
    return EncodedResponse(TokenSequence(tokens, scored, turn), context, begins, headless)


class _Located:
    """Finds the tokens of a text by character position.

    The list of all offsets, hundreds of small tuples a response, is only made where one look-up in the
    encoding does not answer: at white space, which byte-level tokenizers may leave out of the offsets.
    """

    def __init__(
        self, text: str, encoding: Encoding, ids: list[int], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        self.text = text
        self.encoding = encoding
        self.ids = ids
        self.tokenizer = tokenizer

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        return self.encoding.offsets

    def first_after(self, position: int) -> int:
        """Index of the first token that reaches beyond `position`.

        A token whose trimmed white space lies beyond the position is found by its own spelling.
        """
        if position < len(self.text) and not self.text[position].isspace():
            covering: int | None = self.encoding.char_to_token(position)
            if covering is not None:
                return covering
        at = bisect_right(self.offsets, position, key=_token_end)
        if at > 0 and position < len(self.text) and self.text[position].isspace():
            start, end = self.offsets[at - 1]
            if end > start and not self.text[end - 1].isspace():
                piece = str(self.tokenizer.convert_ids_to_tokens(self.ids[at - 1]))
                if end + len(piece) - len(piece.rstrip(_SPACE_MARKS)) > position:
                    return at - 1
        return at

    def first_beyond(self, position: int) -> int:
        """Index of the first token that starts at `position` or later.

        White space of no width that ends there lies before it.
        """
        if position >= len(self.text):
            return len(self.ids)
        at = bisect_left(self.offsets, position, key=_token_start)
        while at < len(self.offsets) and self.offsets[at] == (position, position):
            at += 1
        return at


def _token_end(offset: tuple[int, int]) -> int:
    return offset[1]


def _token_start(offset: tuple[int, int]) -> int:
    return offset[0]
