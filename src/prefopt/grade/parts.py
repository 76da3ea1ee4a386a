"""Answers taken apart: lists, brackets, matrices, sides of equations and choices. Nothing is compared here."""

from __future__ import annotations

import re
from typing import NamedTuple

_OPEN, _CLOSE = "([{", ")]}"


class Bracketed(NamedTuple):
    """Items between brackets: a tuple, an interval or a set."""

    opening: str
    closing: str
    items: list[str]

    @property
    def braces(self) -> bool:
        """Whether it is a set."""
        return self.opening == "\\{"

    @property
    def has_square(self) -> bool:
        """Whether an end is closed."""
        return "[" in self.opening or "]" in self.closing

    @property
    def is_interval(self) -> bool:
        """Whether it can be nothing but an interval."""
        return self.opening + self.closing in {"[)", "(]"} or any(
            "\\infty" in i for i in self.items
        )


class Sides(NamedTuple):
    """What stands between signs of equality."""

    parts: list[str]
    names_value: bool
    """Whether the first part is a name for the last, as in `x = 5` or `f(x) = 2x`."""


class Choice(NamedTuple):
    """An option of a multiple-choice question."""

    letter: str
    rest: str
    """The option itself, where it follows the letter."""


def split_top(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that are not inside brackets."""
    parts, depth, start, position = [""], 0, 0, 0
    parts.clear()
    while position < len(text):
        character = text[position]
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth = max(0, depth - 1)
        elif depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position].strip())
            position += len(separator)
            start = position
            continue
        position += 1
    return [*parts, text[start:].strip()]


def split_list(text: str) -> list[str]:
    """The items of a bare list: between commas, semicolons, "and", "or"; thousands separators do not split."""
    if re.fullmatch(r"[$-]*\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*(?:%|\D*)", text) or "\\begin" in text:
        return [text]
    marked = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?!\d{3},\d{1,2}(?!\d))", "\0", text)
    # Without spaces a run such as 1,2,300 is a list.
    if re.search(r"(?<![\d\0])\d{4,}\0|,\d{1,2},|\d,\d{1,2}(?!\d)", marked) and " " not in text:
        marked = text
    marked = re.sub(
        r"\s*[,;]?\s+(?:and|or)\s+|\\text\{\s*(?:and|or)\s*\}|(?<=\d)\s*(?:and|or)\s*(?=[-\d])",
        ",",
        marked,
    )
    marked = marked.replace(";", ",").replace("&", ",") if "\\\\" not in marked else marked
    items = [item.replace("\0", ",") for item in split_top(marked, ",")]
    items = [item for item in items if item]
    return items or [text]


def expand_signs(items: list[str]) -> list[str]:
    r"""The items with every `\pm` written out as two items."""
    expanded: list[str] = []
    for item in items:
        if "\\pm" not in item and "\\mp" not in item and "+/-" not in item:
            expanded.append(item)
            continue
        for plus, minus in (("+", "-"), ("-", "+")):
            signed = re.sub(r"(?:\\pm|\+/-)\s*", plus, re.sub(r"\\mp\s*", minus, item))
            expanded.append(re.sub(r"^(\s*[a-zA-Z]\s*=\s*)?\+", r"\1", signed))
    return expanded


def read_bracketed(text: str) -> Bracketed | None:
    """A tuple, interval or set of at least two items (a set: at least one); None for anything else."""
    text = re.sub(r"^[a-zA-Z]\s*\\in\s*", "", text)
    text = re.sub(r"^\([a-zA-Z, ]+\)\s*=\s*|^[a-zA-Z]\s*=\s*(?=[(\[])", "", text)
    opening = "\\{" if text.startswith("\\{") else text[:1]
    closing = "\\}" if text.endswith("\\}") else text[-1:]
    if opening not in {"(", "[", "\\{"} or closing not in {")", "]", "\\}"} or len(text) < 3:
        return None
    if (opening == "\\{") != (closing == "\\}"):
        return None
    inner = text[len(opening) : -len(closing)]
    if not balanced(inner):
        return None
    items = [item for item in split_top(inner, ",") if item]
    if len(items) < 2 and opening != "\\{":
        return None
    return Bracketed(opening, closing, items)


def read_matrix(text: str) -> list[list[str]] | None:
    """The cells of a matrix by rows; None for anything else."""
    match = re.fullmatch(
        r"(?:[A-Za-z]+(?:\^\{?-?\w+\}?)?\s*=\s*)?[(\[]?\s*\\begin\{pmatrix\}(.*)\\end\{pmatrix\}\s*[)\]]?",
        text,
        re.DOTALL,
    )
    if match is None or "\\begin" in match[1]:
        return None
    rows = [
        row for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?|\\cr|\\newline", match[1]) if row.strip()
    ]
    return [[cell.strip() for cell in row.split("&")] for row in rows] or None


def sides(text: str) -> Sides:
    """The parts of a chain of equalities; one part if there is none."""
    if re.search(r"\\(?:le|ge|ne|lt|gt)(?![a-zA-Z])|[<>]|\\begin", text):
        return Sides([text], names_value=False)
    parts = [
        part
        for piece in split_top(text.replace("\\approx", "=").replace("\\equiv", "\\EQUIV"), "=")
        if (part := piece.replace("\\EQUIV", "\\equiv").strip())
    ]
    if len(parts) < 2:
        return Sides(parts or [text], names_value=False)
    return Sides(parts, names_value=_is_name(parts[0]))


def read_choice(text: str) -> Choice | None:
    """The letter of an option, with what follows it; None for anything else."""
    text = re.sub(r"(?i)^(?:option|choice|answer)s?\s+(?=\(?[A-J]\b)", "", text)
    match = re.fullmatch(r"\(?\s*([A-Z])\s*\)?\s*[.:]?", text)
    if match:
        return Choice(match[1], "")
    match = re.match(
        r"\(\s*([A-Z])\s*\)\s*[.:]?\s*(?=[\w\\$-])|([A-J])\s*[):]\s*(?=\S)|([A-J])\.\s+(?=\S)", text
    )
    if match and "," not in text[: match.end()] and not text[match.end() :].startswith(("=", "^")):
        return Choice(match[1] or match[2] or match[3], text[match.end() :].strip())
    return None


def _is_name(text: str) -> bool:
    r"""A name for a value: `x`, `f(x)`, `x_1`, `\angle ABC`, `Area`; not a formula with signs or digits."""
    text = re.sub(
        r"\\(?:angle|triangle|overline|mathrm|vec|hat|bar|cos|sin|tan|theta|alpha|beta|gamma|phi|lambda|det)",
        "a",
        text,
    )
    text = re.sub(r"_\{?\w+\}?|\^\{-1\}", "", text)
    return re.fullmatch(r"[a-zA-Z][a-zA-Z'\s{}]*(?:\([\w\s,{}+\-/\\]*\))?", text) is not None


def balanced(text: str) -> bool:
    """Whether every bracket is closed, and none before it is opened."""
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0
