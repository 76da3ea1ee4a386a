"""Values and their units: taken apart, and whether two of them are the same quantity."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from prefopt.grade.numbers import read_number
from prefopt.grade.parts import balanced
from prefopt.grade.prose import main_clause, widen


class Measured(NamedTuple):
    """A value and its unit, empty if there is none."""

    core: str
    unit: str


_CANONICAL = {
    "in": "inch", "inches": "inch", "feet": "foot", "ft": "foot", "yd": "yard", "mi": "mile", "cm": "centimeter",
    "centimetre": "centimeter", "mm": "millimeter", "millimetre": "millimeter", "m": "meter", "metre": "meter",
    "km": "kilometer", "kilometre": "kilometer", "g": "gram", "gm": "gram", "kg": "kilogram", "mg": "milligram",
    "lb": "pound", "oz": "ounce", "s": "second", "sec": "second", "min": "minute", "h": "hour", "hr": "hour",
    "l": "liter", "litre": "liter", "ml": "milliliter", "$": "dollar", "cent": "cent", "degree": "degree",
    "radian": "radian", "mph": "mph", "day": "day", "week": "week", "month": "month", "year": "year",
    "am": "am", "pm": "pm", "dollar": "dollar", "pence": "penny",
}  # fmt: skip
_KNOWN = {*_CANONICAL, *_CANONICAL.values()}
_UNIT = re.compile(
    r"""(?x)^(?P<core>.*?[\d)}%!]|.*?\\pi|.*?\\infty) \s*
    (?P<unit> (?<=[\s\d)}%])
      (?: (?<=\s)[a-zA-Z]{2,}
        | (?<=\s)[mgshLl](?![a-zA-Z])
        | (?<=\d)(?:cm|mm|km|kg|mg|ml|mph|ft|lbs?|hrs?|mins?|secs?|am|pm|st|nd|rd|th|m|g|degrees?)(?![a-zA-Z])
      ) .*)$"""
)
_MATHS_WORDS = {
    "and", "or", "to", "by", "sin", "cos", "tan", "log", "ln", "cot", "sec", "csc", "mod", "base", "if", "for", "plus",
    "minus", "times", "over", "hundred", "thousand", "million", "billion", "percent", "with", "remainder",
}  # fmt: skip


_CHINESE = re.compile(
    r"([-$]*[\d.,/]*\d)\s*([€£¥]|(?:(?![十百千万亿兆半多余几以上下不非或和与至到分点错负倍吗])[一-鿿]){1,4})"
)
"""A number and a unit without letters of ours that changes nothing about it."""
_SIZES = {
    "second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "month": 2_629_800, "year": 31_557_600,
}, {
    "millimeter": 1, "centimeter": 10, "meter": 1000, "kilometer": 10**6, "inch": Fraction("25.4"),
    "foot": Fraction("304.8"), "yard": Fraction("914.4"), "mile": 1_609_344,
}, {"milligram": 1, "gram": 1000, "kilogram": 10**6, "ounce": Fraction("28349.523125"),
   "pound": Fraction("453592.37")}, {
    "cent": 1, "dollar": 100}, {"milliliter": 1, "liter": 1000}  # fmt: skip
"""Units of one kind in terms of the smallest of them."""
_ROUNDED = Fraction(5, 100)
"""Relative difference up to which two values may be one quantity, rounded in the unit that was not asked for."""
_COUNTED = re.compile(
    r"\bhow\s+(?:many|much)\s+(?:(?:more|fewer|less|total|whole|full|extra|additional|other|square|cubic|of|the)\s+)*"
    r"([a-z]+)"
)
_EXPRESSED = re.compile(r"\bin\s+(?:(?:terms\s+of|square|cubic|whole|total)\s+)*([a-z]+)")


def split_unit(text: str) -> Measured:
    """A value and the words after it; the text itself and "" where nothing of the kind follows a value."""
    money = re.fullmatch(r"(-?)\s*(?:\$|USD|€|£)\s*(-?[\d.,]+)(.*)", text)
    if money and re.match(r"\s|/\s?[a-zA-Z]|$", money[3]) and _is_unit(text, money.end(2)):
        return Measured(money[1] + money[2], "dollar")
    based = re.fullmatch(r"(.*\w)\s*_\s*\{?\s*(\w+)\s*\}?|(.*\w)\s+(?:in\s+)?base[\s-]+(\w+)", text)
    if based and re.fullmatch(r"\(?[\dA-F]+\)?", based[1] or based[3] or ""):
        base = (based[2] or based[4]).lower()
        return Measured((based[1] or based[3]).strip("()"), f"base {_BASES.get(base, base)}")
    if (counted := _CHINESE.fullmatch(text)) is not None:
        return Measured(counted[1], counted[2])
    match = _UNIT.match(text)
    if match is None or "=" in match["unit"] or not balanced(match["core"]):
        return Measured(text, "")
    first = re.match(r"[a-zA-Z]+", match["unit"])
    angle = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", match["core"])
    if first is None or angle or first[0].lower() in _MATHS_WORDS:
        return Measured(text, "")
    if match["core"].endswith(("{", "^")) or re.search(
        r"[a-zA-Z]{3,}", re.sub(r"\\[a-zA-Z]+", "", match["core"])
    ):
        return Measured(text, "")
    core = match["core"].strip()
    if not _is_unit(text, match.end("core")):
        return Measured(text, "")
    return Measured(core, match["unit"].strip())


_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
          "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}  # fmt: skip


def _is_unit(text: str, position: int) -> bool:
    """Whether what follows a value at a position is a unit: no number, no operation, no denial."""
    # Digits are powers of a unit (cm^2) or mean that more than a unit follows (2 hours 15 minutes).
    unit = re.sub(r"\^\s*\{?\s*-?[123]\s*\}?", "", main_clause("1 " + text[position:]))[2:]
    if re.search(r"\d|[+*]|\\(?:times|cdot|frac|sqrt|pi)", unit):
        return False
    return widen(text, position, position) == (position, position)


def units_differ(gold: str, given: str) -> bool:
    """Whether both have units that are known, and different ones."""
    wanted, found = _canonical(gold), _canonical(given)
    return wanted is not None and found is not None and wanted != found


def asked_unit(problem: str) -> str | None:
    """The one known unit that a problem wants its answer in: `How many days`, `in meters`; None if there is no such."""
    for form in (_COUNTED, _EXPRESSED):
        words = [word for word in form.findall(problem.lower()) if word != "in"]
        units = {unit for word in words if (unit := _canonical(word)) is not None}
        if units:
            return units.pop() if len(units) == 1 else None
    return None


def restated(first: str, second: str, *, asked: str | None = None) -> list[str]:
    """Which of two texts may stand for both, if these are one quantity in two known units of a kind; else none.

    The one in the unit asked for; the other may be rounded then (18 days, 2.5 weeks). Without such a unit either one,
    if they are exactly equal.
    """
    texts = (first, second)
    measured = [split_unit(text) for text in texts]
    units = [_canonical(m.unit) if len(m.unit.split()) == 1 else None for m in measured]
    numbers = [read_number(m.core) for m in measured]
    for sizes in _SIZES:
        if units[0] == units[1] or not all(unit in sizes for unit in units):
            continue
        a, b = (
            number.value * sizes[str(unit)] if number else None
            for number, unit in zip(numbers, units, strict=True)
        )
        if a is None or b is None:
            return []
        if asked not in sizes:
            return list(texts) if a == b else []
        close = abs(a - b) <= _ROUNDED * abs(a)
        return [text for text, unit in zip(texts, units, strict=True) if close and unit == asked]
    return []


def _canonical(unit: str) -> str | None:
    if unit.startswith("base "):
        return unit
    words = re.findall(r"[a-zA-Z$]+", unit)
    if len(words) > 1 and words[0] in {"square", "cubic", "sq"}:
        words = words[1:]
    if not words:
        return None
    word = words[0] if words[0] in _KNOWN else words[0].lower()
    singular = word if word in _KNOWN else word.removesuffix("s")
    return _CANONICAL.get(singular, singular) if singular in _KNOWN else None
