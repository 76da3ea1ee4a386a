"""Where things lie in a response: its steps, and the part of it that is known to be wrong. Texts only, no torch.

Positions are characters of the response as it is rendered, end-of-turn token included; they begin where prompt and
prefix end. The parts of a response cover it without gap or overlap, so that sums over parts add up to the response's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Literal, NamedTuple

from prefopt.errors import RecordError
from prefopt.records import Preference
from prefopt.text.steps import split_steps
from prefopt.values import JsonValue, describe, refuse

PartKind = Literal["step", "block", "execution", "turn", "line", "opening"]

NO_ANNOTATION = "neither 'step' nor 'error_span' in its meta"
NOT_WRONG = "'step' or 'error_span' of the record speak of another response"
AMBIGUOUS = "several rejected responses share one 'step' or 'error_span'; give a list with one for each response"
NO_MARKERS = "'step' is given but the text has no step markers; give 'error_span'"
EMPTY_STEP = "the wrong step has no text"

_BLOCK_END = "<|endofblock|>"
_BLOCK_START = re.compile(r"\s*<\|(text|code|execution)\|>")


class Part(NamedTuple):
    """A stretch of a response: one reasoning step, block, turn or line."""

    number: int | None
    """As in its marker, or counted from 1 with those of the prefix (lines: without); None for the opening."""
    kind: PartKind
    start: int
    end: int
    inner: tuple[int, int]
    """Its content: without the marker, without the line breaks at its end."""

    @property
    def ranked(self) -> bool:
        """Whether it is something the model decided: what precedes step 1 and interpreter output is not."""
        return self.kind not in {"opening", "execution"}


class ErrorSpan(NamedTuple):
    """The wrong stretch of a response."""

    start: int
    end: int
    part: int | None
    """Position of the part it begins in."""


class Located(NamedTuple):
    """The wrong stretch of a response, or why none is known."""

    span: ErrorSpan | None
    remark: str = ""


def split_parts(prefix: str, text: str, length: int) -> tuple[Part, ...]:
    """The parts of a response `text` that continues `prefix` and is rendered with `length` characters.

    Blocks (`<|text|>`, `<|code|>`, `<|execution|>`) where there are any, else steps announced by `Step k:`, else the
    lines that are not blank. A step whose marker ends the prefix begins with the response. The end-of-turn token
    belongs to the last part, but not to its content.
    """
    whole = prefix + text
    in_blocks = _BLOCK_END in whole
    found = _blocks(whole) if in_blocks else _marked_steps(whole) or _lines(text, len(prefix))
    start = len(prefix)
    parts = [_shift(part, start) for part in found if part.end > start]
    parts = parts or [Part(None, "opening", 0, length, (0, len(text)))]
    return (*parts[:-1], parts[-1]._replace(end=length))


def _shift(part: Part, by: int) -> Part:
    first, last = part.inner
    inner = (max(0, first - by), max(0, last - by))
    return part._replace(start=max(0, part.start - by), end=part.end - by, inner=inner)


def _blocks(whole: str) -> list[Part]:
    """Blocks with their markers; what follows the last one (the end of the message) belongs to it."""
    ends = [m.end() for m in re.finditer(re.escape(_BLOCK_END), whole)]
    if not _BLOCK_START.match(whole, ends[-1]):
        ends[-1] = len(whole)
    else:
        ends.append(len(whole))
    parts: list[Part] = []
    start = 0
    for number, end in enumerate(ends, start=1):
        opened = _BLOCK_START.match(whole, start)
        kind: PartKind = "execution" if opened and opened[1] == "execution" else "block"
        closed = whole.find(_BLOCK_END, start, end)
        inner = (opened.end() if opened else start, end if closed < 0 else closed)
        parts.append(Part(number, kind, start, end, inner))
        start = end
    return parts


def _marked_steps(whole: str) -> list[Part]:
    opening, steps = split_steps(whole)
    at = len(opening)
    parts = [Part(None, "opening", 0, at, (0, at))] if opening and steps else []
    for step in steps:
        first = at + len(step.marker)
        end = first + len(step.text)
        content = first + len(step.text.rstrip("\r\n"))
        parts.append(Part(step.number, "step", at, end, (first, content)))
        at = end
    return parts


def _lines(text: str, offset: int) -> list[Part]:
    """Lines with what separates them from the next; a response of blank lines has none."""
    starts = [m.start() for m in re.finditer(r"^[^\S\n]*\S.*", text, re.MULTILINE)]
    if not starts:
        return []
    starts[0] = 0
    parts: list[Part] = []
    for number, (start, end) in enumerate(
        zip(starts, [*starts[1:], len(text)], strict=True), start=1
    ):
        content = start + len(text[start:end].rstrip("\r\n"))
        inner = (offset + start, offset + content)
        parts.append(Part(number, "line", offset + start, offset + end, inner))
    return parts


def turn_parts(starts: Sequence[int], length: int) -> tuple[Part, ...]:
    """The assistant turns of a response of several messages, each with the messages up to the next."""
    bounds = [0, *starts[1:], length]
    return tuple(
        Part(number, "turn", start, end, (start, end))
        for number, (start, end) in enumerate(pairwise(bounds), start=1)
    )


def preferred(record: Preference) -> tuple[frozenset[int], frozenset[int]]:
    """Positions of the (chosen, rejected) responses of a record: by its pairs, else by its labels.

    A single response without pair or label is rejected where the record's `meta` says what is wrong with it.
    """
    if record.pairs:
        chosen = frozenset(pair.chosen for pair in record.pairs)
        return chosen, frozenset(pair.rejected for pair in record.pairs)
    labels = [response.label for response in record.responses]
    chosen = frozenset(i for i, label in enumerate(labels) if label is True)
    rejected = frozenset(i for i, label in enumerate(labels) if label is False)
    if len(labels) == 1 and not chosen and _annotation(record) is not None:
        rejected = frozenset({0})
    return chosen, rejected


def locate_error(record: Preference, response: int, parts: Sequence[Part]) -> Located:
    """The wrong stretch of one response, from the record's `meta`: its own, or a column of that name.

    `error_span`: [start, end) in characters of the response's text. `step`: number of the first wrong step; the
    span is then that step's content. Either may be a list with an entry (or null) for each response; a single one
    speaks of the rejected response. `error_span` wins where both are given.

    Raises:
        RecordError: a value of the wrong form, a step that the response does not have, a span outside of it.
    """
    where = record.origin or f"record '{record.id}'"
    given = _annotation(record)
    if given is None:
        return Located(None, NO_ANNOTATION)
    key, value = given
    if isinstance(value, list) and not (key == "error_span" and _is_span(value)):
        if len(value) != len(record.responses):
            refuse(value, f"meta.{key}", where, f"give {len(record.responses)}, one per response")
        value = value[response]
        if value is None:
            return Located(None, NOT_WRONG)
    else:
        chosen, rejected = preferred(record)
        wrong = rejected - chosen
        if response not in wrong:
            return Located(None, NOT_WRONG)
        if len(wrong) > 1:
            return Located(None, AMBIGUOUS)
    if key == "error_span":
        return Located(_given_span(value, record.responses[response].text, parts, where))
    return _span_of_step(value, parts, where)


def _annotation(record: Preference) -> tuple[Literal["error_span", "step"], JsonValue] | None:
    """What the record says is wrong, and by which key; a column called `meta` counts like the record's own.

    Cells of tables are texts, and so may be the objects of other files; those that hold JSON are parsed.
    """
    column = _parsed(record.meta.get("meta"))
    places: list[Mapping[str, JsonValue]] = [record.meta]
    if isinstance(column, dict):
        places.append(column)
    for key in ("error_span", "step"):
        for place in places:
            value = _parsed(place.get(key))
            if value not in (None, ""):
                return key, value
    return None


def _parsed(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _is_span(value: list[JsonValue]) -> bool:
    return len(value) == 2 and all(isinstance(v, int | float) for v in value)


def _given_span(value: JsonValue, text: str, parts: Sequence[Part], where: str) -> ErrorSpan:
    if not isinstance(value, list) or not _is_span(value):
        refuse(value, "meta.error_span", where, "give [start, end) in characters of the response")
    start, end = (_whole(v, "meta.error_span", where) for v in value)
    if not 0 <= start < end <= len(text):
        raise RecordError(
            f"{where}: 'meta.error_span' is [{start}, {end}], but the response has characters 0 to {len(text)}; "
            "give [start, end) in characters of the response's text, the prefix not counted"
        )
    part = next((i for i, p in enumerate(parts) if p.start <= start < p.end), None)
    return ErrorSpan(start, end, part)


def _span_of_step(value: JsonValue, parts: Sequence[Part], where: str) -> Located:
    number = _whole(value, "meta.step", where)
    if not any(part.kind in {"step", "block", "execution", "turn"} for part in parts):
        return Located(None, NO_MARKERS)
    numbers = {part.number: i for i, part in enumerate(parts)}
    if number not in numbers:
        known = [n for n in numbers if n is not None]
        raise RecordError(
            f"{where}: 'meta.step' is {number}, but the response has steps {min(known)} to {max(known)}; "
            "correct the number (prefix and response are counted together)"
        )
    at = numbers[number]
    start, end = parts[at].inner
    return Located(ErrorSpan(start, end, at)) if end > start else Located(None, EMPTY_STEP)


def _whole(value: JsonValue, name: str, where: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecordError(f"{where}: '{name}' is {describe(value)}; give a whole number")
    return value
