"""Whether a given answer is the gold one: structure first, exact numbers next, symbols last.

Lists, sets, tuples, intervals, unions, matrices and equations are taken apart and compared part by part; a part is
compared as a string, as an exact number or as words. Only what is none of these goes to `Symbolic`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from prefopt.grade.notation import compact
from prefopt.grade.numbers import read_number, same_number
from prefopt.grade.parts import (
    Bracketed,
    expand_signs,
    read_bracketed,
    read_choice,
    read_matrix,
    sides,
    split_list,
    split_top,
)
from prefopt.grade.prose import is_words, number_in_prose, same_words
from prefopt.grade.units import asked_unit, restated, split_unit, units_differ

Symbolic = Callable[[str, str], bool]
"""(gold, given) -> whether two formulas mean the same."""


class Question(NamedTuple):
    """What of a problem matters for comparing answers to it."""

    asks_percent: bool = False
    asks_factors: bool = False
    asks_expanded: bool = False
    asks_bound: bool = False
    """Whether it is the least or the most of something, so that `at least 5` states it."""
    unit: str | None = None
    """The one unit that the answer is asked for in, if it is known."""
    scales: frozenset[str] = frozenset()
    """Scale words in which the answer is counted: dozen, million."""
    mentioned: frozenset[str] = frozenset()
    """Scale words in which the problem gives numbers, so that the answer may count in them."""


ANY = Question()
"""A problem of which nothing is known."""


def read_question(problem: str) -> Question:
    """What a problem asks for, as far as it decides about the form of the answer."""
    lower = problem.lower()
    return Question(
        asks_percent=bool(re.search(r"percent|\\?%", lower)),
        asks_factors=bool(re.match(r"\W*(?:completely )?factor\b", lower)),
        asks_expanded=bool(re.match(r"\W*expand\b", lower)),
        asks_bound=bool(
            re.search(r"\b(?:least|most|minimum|maximum|smallest|largest|fewest|greatest)\b", lower)
        ),
        unit=asked_unit(problem),
        scales=frozenset(
            re.findall(
                r"\b(?:how\s+many|how\s+much|in|the\s+number\s+of)\s+(dozen|hundred|thousand|million|billion)s?\b",
                lower,
            )
        ),
        mentioned=frozenset(
            re.findall(r"\d\s+(dozen|hundred|thousand|million|billion|trillion)s?\b", lower)
        ),
    )


def equal(gold: str, given: str, symbolic: Symbolic, question: Question = ANY) -> bool:
    """Whether two cleaned answers are equal. Not symmetric: units, names and signs may be missing in one of them."""
    if not gold or not given:
        return False
    if compact(gold) == compact(given):
        return True
    if _wrong_form(gold, given, question):
        return False
    if (choice := _same_choice(gold, given, symbolic, question)) is not None:
        return choice
    same = partial(equal, symbolic=symbolic, question=question)
    lists = partial(_same_lists, question=question)
    for compare in (_same_matrices, _same_unions, _same_sides, lists):
        verdict = compare(gold, given, same)
        if verdict is not None:
            return verdict
    return _same_leaf(gold, given, symbolic, question)


def _wrong_form(gold: str, given: str, question: Question) -> bool:
    """Whether the answer is the problem again: not factored where factors are asked for, and the reverse."""
    product = re.compile(r"\)\s*(?:\(|\^|\\left\()|[\dA-Za-z]\s*\(.*\)$|\([^()]*\)\s*[A-Za-z]")
    if question.asks_factors and product.search(gold):
        return "(" not in given
    if question.asks_expanded and "(" not in gold:
        return bool(product.search(given))
    return False


def _same_choice(gold: str, given: str, symbolic: Symbolic, question: Question) -> bool | None:
    """For multiple choice; None if neither answer is a choice."""
    wanted = read_choice(gold)
    found = read_choice(given)
    if wanted is not None and not wanted.rest:
        return found.letter == wanted.letter if found else None
    if wanted is not None and found is not None:
        return wanted.letter == found.letter
    if wanted is not None:
        return equal(wanted.rest, given, symbolic, question)
    if found is not None and found.rest:
        return equal(gold, found.rest, symbolic, question)
    return None


def _same_matrices(gold: str, given: str, same: Callable[[str, str], bool]) -> bool | None:
    wanted = read_matrix(gold)
    if wanted is None:
        return None
    found = read_matrix(given)
    if found is None:
        # A vector may be written as a row of coordinates, or in a list.
        flat = [cell for row in wanted for cell in row]
        coordinates = read_bracketed(given)
        if min(len(wanted), len(wanted[0])) == 1 and coordinates and "=" not in given:
            return _same_in_order(flat, coordinates.items, same)
        return None if "matrix" in given else False
    if [len(row) for row in wanted] != [len(row) for row in found]:
        return False
    return all(
        _same_in_order(a, b, same) for a, b in zip(wanted, found, strict=True)
    )  # fmt: skip


def _same_unions(gold: str, given: str, same: Callable[[str, str], bool]) -> bool | None:
    wanted, found = split_top(gold, "\\cup"), split_top(given, "\\cup")
    if len(wanted) == 1 or len(found) == 1:
        return None
    return _same_as_sets(wanted, found, same)


def _same_sides(gold: str, given: str, same: Callable[[str, str], bool]) -> bool | None:
    """Equations: a name before the sign may be missing on one side; a chain of equal values counts by its last."""
    if len(split_list(gold)) > 1 or len(split_list(given)) > 1:
        return None
    wanted, found = sides(gold), sides(given)
    if len(wanted.parts) == 1 and len(found.parts) == 1:
        return None
    if len(wanted.parts) == 1:
        if same(gold, found.parts[-1]):
            return True
        return _rounded_end(gold, found.parts, same)
    if len(found.parts) == 1:
        return same(wanted.parts[-1], given) if wanted.names_value else False
    if wanted.names_value and found.names_value:
        if compact(wanted.parts[0]).lower() == compact(found.parts[0]).lower():
            return same(wanted.parts[-1], found.parts[-1])
        if same(wanted.parts[-1], found.parts[-1]) and not re.search(r"[a-zA-Z]", wanted.parts[-1]):
            # Only a name of more than a letter (Area = 5) can stand for the same thing as another.
            return len(compact(wanted.parts[0])) > 2 or len(compact(found.parts[0])) > 2
    return None


def _rounded_end(gold: str, parts: Sequence[str], same: Callable[[str, str], bool]) -> bool:
    """`1/3 = 0.33`: the exact value counts if the last one is it, rounded."""
    last = read_number(parts[-1])
    if last is None or last.places is None or len(parts) < 2:
        return False
    exact = read_number(parts[-2])
    if exact is not None:
        tolerance = 10 ** (-last.places)
        return abs(exact.value - last.value) <= tolerance and same(gold, parts[-2])
    return bool(re.search(r"\\(?:sqrt|pi|frac)", parts[-2])) and same(gold, parts[-2])


def _same_lists(
    gold: str, given: str, same: Callable[[str, str], bool], *, question: Question
) -> bool | None:
    """Tuples and intervals in order, bare lists and sets in any; None if neither side is a list."""
    wanted, found = read_bracketed(gold), read_bracketed(given)
    if wanted and found:
        return _same_bracketed(wanted, found, same)
    gold_items, given_items = expand_signs(split_list(gold)), expand_signs(split_list(given))
    if wanted:
        if len(given_items) > 1:
            return not wanted.is_interval and _same_in_order(wanted.items, given_items, same)
        return False if len(wanted.items) > 1 and _is_value(given) else None
    if found and len(gold_items) > 1:
        return not found.has_square and _same_as_sets(gold_items, found.items, same)
    if len(gold_items) == 1 and len(given_items) > 1 and re.fullmatch(r"-?\d+(?:,\d{3})+", gold):
        gold_items = gold.split(",")  # 70,110 may be two numbers
    if found and len(found.items) > 1 and _is_value(gold):
        return False
    if len(gold_items) == 1 and (len(given_items) == 1 or _is_remark(gold, given_items)):
        return None
    if len(gold_items) == 1 and len(given_items) == 2:
        either = restated(*given_items, asked=question.unit)
        if either:
            return any(same(gold, item) for item in either)
    return _same_as_sets(gold_items, given_items, same)


_NO_VALUE = re.compile(
    r"[<>=]|\\(?:le|ge|lt|gt|in|ne|pm|mp|cup|cap|emptyset)(?![a-zA-Z])|(?<!\\)\b[a-zA-Z]"
)


def _is_value(text: str) -> bool:
    """Whether a text is one number or calculation, not a list, a relation, a name or words."""
    return len(split_list(text)) == 1 and _NO_VALUE.search(text) is None


def _is_remark(gold: str, items: Sequence[str]) -> bool:
    """Whether words are followed by a remark about them, not by more answers: `Evelyn, who ran fastest`."""
    return is_words(gold) and all(len(item.split()) > 1 for item in items[1:])


def _same_bracketed(
    wanted: Bracketed, found: Bracketed, same: Callable[[str, str], bool]
) -> bool | None:
    if len(wanted.items) != len(found.items):
        return False
    if wanted.braces or found.braces:
        return (wanted.braces == found.braces or not found.has_square) and _same_as_sets(
            wanted.items, found.items, same
        )
    if len(wanted.items) == 2 and (wanted.opening, wanted.closing) != (
        found.opening,
        found.closing,
    ):
        return False
    return _same_in_order(wanted.items, found.items, same)


def _same_in_order(
    wanted: Sequence[str], found: Sequence[str], same: Callable[[str, str], bool]
) -> bool:
    return len(wanted) == len(found) and all(
        same(a, b) for a, b in zip(wanted, found, strict=True)
    )  # fmt: skip


def _same_as_sets(
    wanted: Sequence[str], found: Sequence[str], same: Callable[[str, str], bool]
) -> bool:
    """Every gold item is given and every given item is gold; repetitions do not count."""
    if len(wanted) > 64 or len(found) > 64:
        return _same_in_order(wanted, found, same)
    hit = [[same(a, b) for b in found] for a in wanted]
    return all(any(row) for row in hit) and all(
        any(row[j] for row in hit) for j in range(len(found))
    )  # fmt: skip


def _same_leaf(gold: str, given: str, symbolic: Symbolic, question: Question) -> bool:
    wanted, found = read_number(gold), read_number(given)
    if wanted is None or found is None:
        gold_unit, given_unit = split_unit(gold), split_unit(given)
        if units_differ(gold_unit.unit, given_unit.unit):
            return False
        if (gold_unit.core, given_unit.core) != (gold, given):
            return equal(gold_unit.core, given_unit.core, symbolic, question)
    if wanted is not None and found is not None:
        return same_number(wanted, found, asks_percent=question.asks_percent)
    if is_words(gold) or (is_words(given) and wanted is None):
        return same_words(gold, given)
    if wanted is not None and is_words(given):
        stated = number_in_prose(given)
        return stated is not None and same_number(
            wanted, stated, asks_percent=question.asks_percent
        )
    return symbolic(_without_separators(gold), _without_separators(given))


_SEPARATED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def _without_separators(text: str) -> str:
    """A formula without the commas of its thousands; in round brackets they may separate arguments."""
    if "," not in text or re.search(r"\([^()]*,|_\{[^{}]*,", text):
        return text
    return _SEPARATED.sub(lambda m: m[0].replace(",", ""), text)
