"""Code-integrated solutions: blocks of text, code and interpreter output, and their serialised form.

The format of MathCoder and Step-Controlled DPO (arXiv 2407.00782): `<|text|>...<|endofblock|>`,
`<|code|>...<|endofblock|>`, `<|execution|>...<|endofblock|>` in any order, without line breaks between them, closed
by `<|endofmessage|>`. What may be cut, compared or dropped is decided here; nothing is run and no model is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prefopt.errors import RecordError

BlockKind = Literal["text", "code", "execution"]

END_OF_BLOCK = "<|endofblock|>"
END_OF_MESSAGE = "<|endofmessage|>"
OPENINGS: dict[str, BlockKind] = {
    "<|text|>": "text",
    "<|code|>": "code",
    "<|execution|>": "execution",
}
"""What opens a block of each kind."""
SPECIAL_TOKENS = (
    "<|user|>", "<|system|>", "<|assistant|>", *OPENINGS, END_OF_BLOCK, END_OF_MESSAGE,
)  # fmt: skip
"""The tokens that a tokenizer needs so that each marker is one id."""
EMPTY_EXECUTION = "<empty_execution>"
"""Content of the execution block of code that shows nothing."""

_MAX_MESSAGES = 24
_MAX_CHARACTERS = 3000
_SIMILAR_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a solution."""

    kind: BlockKind
    content: str


class Fault(NamedTuple):
    """A piece of a text that is no block."""

    start: int
    """Character position in the text."""
    text: str
    """The piece, unchanged."""
    reason: str


class Parsed(NamedTuple):
    """A serialised solution taken apart."""

    blocks: tuple[Block, ...]
    """The whole blocks, in order."""
    ended: bool
    """Whether `<|endofmessage|>` closes the text."""
    faults: tuple[Fault, ...]
    """Everything else. Without faults `serialise(blocks)`, and `<|endofmessage|>` if `ended`, is the text."""


class _Piece(NamedTuple):
    start: int
    end: int
    block: Block | None
    """None: a fault, or the end of the message."""
    reason: str
    """What is wrong with it; empty for blocks and for the end of the message."""


def serialise(blocks: Sequence[Block]) -> str:
    """The blocks as one string, without line breaks between them and without `<|endofmessage|>`.

    Raises:
        RecordError: a content holds `<|endofblock|>` or `<|endofmessage|>`, so it could not be read back.
    """
    for number, block in enumerate(blocks):
        _refuse_markers(block.content, f"block {number} ({block.kind})", _ENDS)
    marks = {kind: mark for mark, kind in OPENINGS.items()}
    return "".join(f"{marks[block.kind]}{block.content}{END_OF_BLOCK}" for block in blocks)


_ENDS = (END_OF_BLOCK, END_OF_MESSAGE)


def _refuse_markers(text: str, what: str, markers: Sequence[str]) -> None:
    found = next((marker for marker in markers if marker in text), None)
    if found is not None:
        at = text.index(found)
        raise RecordError(
            f"{what}: its text holds the marker {found} at character {at}, which would be read as the structure "
            "of the conversation; take it out of the text"
        )


def conversation(system: str, question: str) -> str:
    """The prompt of a solution: system text and question, up to and including `<|assistant|>`.

    A solution is then `conversation(system, question) + serialise(blocks) + END_OF_MESSAGE`; the first blocks of
    it may be a record's `prefix`, the others its response.

    Raises:
        RecordError: one of the texts holds a marker of the format.
    """
    _refuse_markers(system, "system text", SPECIAL_TOKENS)
    _refuse_markers(question, "question", SPECIAL_TOKENS)
    end = END_OF_BLOCK + END_OF_MESSAGE
    return f"<|system|><|text|>{system}{end}<|user|><|text|>{question}{end}<|assistant|>"


def parse_blocks(text: str) -> Parsed:
    """The blocks of a serialised solution, and every piece that is none.

    A block runs from its opening to the next `<|endofblock|>`; other openings in between are part of its content
    (see `noise`). Pieces outside of blocks, blocks that are not closed and what follows `<|endofmessage|>` are
    faults.
    """
    pieces = list(_pieces(text))
    last = pieces[-1] if pieces else None
    return Parsed(
        blocks=tuple(p.block for p in pieces if p.block is not None),
        ended=last is not None and not last.reason and last.block is None,
        faults=tuple(Fault(p.start, text[p.start : p.end], p.reason) for p in pieces if p.reason),
    )


def execution_spans(text: str) -> list[tuple[int, int]]:
    """Character ranges of the execution blocks of a serialised solution, markers included.

    These are the tokens that the interpreter wrote and not the model: `Response.masked` of a record that is not
    to be scored on them. An execution block that is cut off at the end of the text counts.
    """
    opening = "<|execution|>"
    return [(p.start, p.end) for p in _pieces(text) if text.startswith(opening, p.start)]


def _pieces(text: str) -> Iterator[_Piece]:
    """The text cut into blocks, ends and faults; together they are the whole of it."""
    at = 0
    while at < len(text):
        piece = _piece_at(text, at)
        yield piece
        at = piece.end


def _piece_at(text: str, start: int) -> _Piece:
    if text.startswith(END_OF_MESSAGE, start):
        if start + len(END_OF_MESSAGE) == len(text):
            return _Piece(start, len(text), None, "")
        return _Piece(start, len(text), None, f"text after {END_OF_MESSAGE}")
    mark = next((mark for mark in OPENINGS if text.startswith(mark, start)), None)
    if mark is None:
        return _Piece(start, _first(text, (*OPENINGS, END_OF_MESSAGE), start), None, "no block")
    content = start + len(mark)
    end = _first(text, _ENDS, content)
    if not text.startswith(END_OF_BLOCK, end):
        return _Piece(start, end, None, f"a block without {END_OF_BLOCK}")
    block = Block(OPENINGS[mark], text[content:end])
    return _Piece(start, end + len(END_OF_BLOCK), block, "")


def _first(text: str, markers: Sequence[str], start: int) -> int:
    """Position of the first of the markers from `start`; the end of the text without any."""
    found = [at for at in (text.find(marker, start) for marker in markers) if at >= 0]
    return min(found, default=len(text))


def cut_points(blocks: Sequence[Block]) -> list[int]:
    """How many blocks of a solution may be kept while the rest is written anew, ascending: its `start_steps`.

    Always 0, the whole solution written anew; else every number that leaves at least two blocks and does not
    keep a code block last, for the model would have to make up its output. With the system message at position 0
    and the question at 1 that is `start_steps = i - 1` for the positions i of `[2, len - 3]` whose block is text or
    execution: all of them, as in the published code, where the paper draws one at random.
    """
    kept = range(1, len(blocks) - 1)
    return [0, *(count for count in kept if blocks[count - 1].kind != "code")]


def similar(first: Sequence[Block], second: Sequence[Block]) -> bool:
    """Whether two solutions count as the same: as many blocks, and less than 500 characters apart in length.

    The published criterion, which looks at no content.
    """
    lengths = [sum(len(block.content) for block in blocks) for blocks in (first, second)]
    return len(first) == len(second) and abs(lengths[0] - lengths[1]) < _SIMILAR_CHARACTERS


def noise(blocks: Sequence[Block]) -> str | None:
    """Why a solution is too noisy to be a rejected one; None when it is not.

    Noisy is: more than 24 messages, system text and question counted; a block of more than 3000 characters; or
    `<|execution|>` inside a block: interpreter output that the model made up.
    """
    if len(blocks) + 2 > _MAX_MESSAGES:
        return f"more than {_MAX_MESSAGES} messages"
    if any(len(block.content) > _MAX_CHARACTERS for block in blocks):
        return f"a block of more than {_MAX_CHARACTERS} characters"
    if any("<|execution|>" in block.content for block in blocks):
        return "made-up interpreter output"
    return None


def has_apology(blocks: Sequence[Block]) -> bool:
    """Whether "error" or "apolog" occurs in the blocks, in any case: such a solution is not preferred.

    Tracebacks count, and so does a "standard error" of statistics, as in the published code.
    """
    text = "".join(block.content for block in blocks).lower()
    return "error" in text or "apolog" in text
