"""Answers in words: names, days, yes and no, and numbers inside a sentence."""

from __future__ import annotations

import re

from prefopt.grade.numbers import Number, read_number, read_words

_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z])")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "max", "min", "gcd", "lcm", "mod", "det", "arcsin",
    "arccos", "arctan", "sqrt", "frac", "pi", "abs", "lim", "deg", "and", "or", "pmatrix", "begin", "end",
}  # fmt: skip
_NEGATIONS = {
    "not",
    "neither",
    "nor",
    "no",
    "never",
    "or",
    "cannot",
    "isn't",
    "doesn't",
    "nobody",
    "none",
}
_NUMBER = re.compile(
    r"-?\$?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?:\s?%)?"
    r"|\\frac\{-?\d+\}\{\d+\}"
)


def is_words(text: str) -> bool:
    """Whether an answer is words, not a formula: it has a word of three letters that is no function's name."""
    words = [w for w in _WORD.findall(_without_commands(text)) if w.lower() not in _FUNCTIONS]
    return any(len(word) >= 3 for word in words)


def same_words(gold: str, given: str) -> bool:
    """Whether a text says the gold words: the same ones but for case, articles and punctuation, or in a sentence.

    Inside a sentence they count only without a negation or an alternative.
    """
    wanted, found = _words(gold), _words(given)
    if not wanted or not found:
        return False
    if wanted == found or "".join(wanted) == "".join(found):
        return True
    if re.search(r"\d", gold) and re.findall(r"\d+", gold) != re.findall(r"\d+", given):
        return False
    if len(found) <= len(wanted):
        return False
    if found[: len(wanted)] == wanted:
        return not {"or"} & set(found) or {"nor"} & set(found) != set()
    inside = any(
        found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1)
    )  # fmt: skip
    return inside and not _NEGATIONS & (set(found) - set(wanted))


def numbers_in_prose(text: str) -> list[Number]:
    """The different numbers of a sentence, in order; after the last sign of equality if there is one."""
    text = text.rsplit("=", 1)[-1] if "=" in text else text
    numbers: list[Number] = []
    for match in _NUMBER.finditer(text):
        number = read_number(match[0].strip()) if re.search(r"\d", match[0]) else None
        if number is not None and number not in numbers:
            numbers.append(number)
    if not numbers:
        for word in _WORD.findall(text):
            value = read_words(word)
            if value is not None and Number(value) not in numbers:
                numbers.append(Number(value))
    return numbers


def _words(text: str) -> list[str]:
    text = re.sub(r"[{}()$\"'.!?*]", " ", _without_commands(text).lower()).replace(",", " ")
    return [
        word for word in text.split() if word not in {"the", "a", "an", "is", "it", "be", "that"}
    ]


def _without_commands(text: str) -> str:
    return re.sub(r"\\[a-zA-Z]+", " ", text)
