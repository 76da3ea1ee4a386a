"""Numbers as people and models write them, read exactly, and when two of them are the same answer.

No floating point: every value is a fraction, so that no rounding can make different numbers equal.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

SIGNIFICANT = 5
"""Significant digits from which on a decimal counts as a number that no decimal can write, such as 1/3."""

PLACES = 4
"""Digits after the point from which on it does."""

_NOISE = Fraction(1, 10**8)
"""Relative difference that floating point may have left in a decimal of ten digits, six of them after the point."""

_LARGEST_POWER = 2000
_LONGEST = 4000
"""Characters; Python refuses to read whole numbers much longer."""

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_UNSIGNED = re.compile(
    rf"""(?x)
    (?P<mixed>\d+)\s*(?:\s|\+)\s*(?:(?P<ma>\d+)\s*/\s*(?P<mb>\d+)|\\frac\{{(?P<mc>\d+)\}}\{{(?P<md>\d+)\}})
    | (?P<packed>\d+)\\frac\{{(?P<pa>\d+)\}}\{{(?P<pb>\d+)\}}
    | \\frac\{{\s*(?P<fa>-?\s?(?:{_PLAIN}))\s*\}}\{{\s*(?P<fb>-?\s?(?:{_PLAIN}))\s*\}}
    | (?P<sa>{_PLAIN})\s*/\s*(?P<sb>{_PLAIN})
    | (?P<mantissa>{_PLAIN})\s*(?:(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{{?\s*(?P<e>-?\d+)\s*\}}?|[eE](?P<e2>[+-]?\d+))
    | (?P<base>{_PLAIN})\s*\^\s*\{{?\s*(?P<power>\d+)\s*\}}?
    | (?P<plain>{_PLAIN})
    """
)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
WORDS = {
    word: value
    for value, word in enumerate(_SMALL.split())
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}  # fmt: skip
"""Number words and their values."""

SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
"""Words that multiply the number before them."""


class Number(NamedTuple):
    """A number and how it was written."""

    value: Fraction
    """As written: 50 for 50%."""
    percent: bool = False
    places: int | None = None
    """Digits after the point of a decimal; None for whole numbers and fractions."""
    significant: int = 0
    """Significant digits of a decimal."""


def read_number(text: str) -> Number | None:
    """The number that a cleaned answer is, as a whole; None if it is anything else.

    Whole numbers with or without thousands separators, decimals, fractions, mixed numbers, powers of whole numbers,
    scientific notation, number words, currency signs, percent, scale words such as "1.5 million".
    """
    if len(text) > _LONGEST:
        return None
    text = text.strip().strip("()").strip() if re.fullmatch(r"\(\s*-?[\d.,]+\s*\)", text) else text
    sign, text = _sign(text)
    percent = False
    if ends := re.search(r"\s*(?:%|\bpercent\b|\bper cent\b)$", text, re.IGNORECASE):
        percent, text = True, text[: ends.start()]
    text = text.replace("$", "").strip()
    scale = 1
    words = re.fullmatch(
        r"(?i)(.*?[\d}])\s*(dozen|hundred|thousand|million|billion|trillion)", text
    )
    if words:
        text, scale = words[1], SCALES[words[2].lower()]
    match = _UNSIGNED.fullmatch(text.strip())
    if match is None:
        word = read_words(text)
        return None if word is None else Number(sign * word, percent)
    read = _read(match)
    if read is None:
        return None
    return Number(sign * scale * read.value, percent, read.places, read.significant)


def same_number(gold: Number, given: Number, *, asks_percent: bool = False) -> bool:
    """Whether a given number is the gold one.

    Equal values. A percent sign is a unit that may be missing on either side (50% for 50) or a factor of 1/100 (50%
    for 1/2); 0.5 for 50% counts only if the problem does not ask for a percentage. A decimal may stand for a gold
    number that no decimal can write (1/3) if it has at least five significant digits, four of them after the point, and
    is rounded or cut rightly.
    """
    if _close(gold.value, given):
        return True
    if gold.percent == given.percent:
        return False
    if given.percent:
        return _close(gold.value * 100, given)
    return not asks_percent and _close(gold.value / 100, given)


def rounds_to(value: Fraction, given: Number) -> bool:
    """Whether a decimal is a value rounded or cut at the digits it shows, and shows enough of them."""
    if given.places is None or given.places < PLACES or given.significant < SIGNIFICANT:
        return False
    return abs(value - given.value) < Fraction(1, 10**given.places)


def read_words(text: str) -> Fraction | None:
    """The value of a number word up to ninety-nine, of 'half', 'a third' and the like; None for other texts."""
    words = re.sub(r"[\s-]+", " ", text.lower()).strip().split(" ")
    if len(words) == 1 and words[0] in WORDS:
        return Fraction(WORDS[words[0]])
    if len(words) == 2 and words[0] in WORDS and words[1] in WORDS:
        tens, ones = WORDS[words[0]], WORDS[words[1]]
        if tens >= 20 and 0 < ones < 10:
            return Fraction(tens + ones)
    if len(words) == 2 and words[0] in WORDS and words[1] in SCALES:
        return Fraction(WORDS[words[0]] * SCALES[words[1]])
    if words == ["half"]:
        return Fraction(1, 2)
    parts = {"half": Fraction(1, 2), "third": Fraction(1, 3), "quarter": Fraction(1, 4)}
    if len(words) == 2 and words[0] in {"a", "one"} and words[1] in parts:
        return parts[words[1]]
    return None


def _close(gold: Fraction, given: Number) -> bool:
    if gold == given.value:
        return True
    if given.places is None:
        return False
    if (
        given.significant >= 10
        and given.places >= 6
        and abs(gold - given.value) <= _NOISE * abs(gold)
    ):
        return True
    return not _terminates(gold) and rounds_to(gold, given)


def _terminates(value: Fraction) -> bool:
    below = value.denominator
    for factor in (2, 5):
        while below % factor == 0:
            below //= factor
    return below == 1


def _sign(text: str) -> tuple[int, str]:
    sign = 1
    text = text.strip()
    while match := re.match(r"(?:([+-])|\$|\\\$|USD\b|€|£)\s*(?=[\d.\\$+({-])", text):
        sign = -sign if match[1] == "-" else sign
        text = text[match.end() :]
    return sign, text


def _read(match: re.Match[str]) -> Number | None:
    g = match.groupdict()
    if g["mixed"] is not None:
        return _mixed(g["mixed"], g["ma"] or g["mc"], g["mb"] or g["md"])
    if g["packed"] is not None:
        return _mixed(g["packed"], g["pa"], g["pb"])
    if g["fa"] is not None or g["sa"] is not None:
        above, below = _decimal(g["fa"] or g["sa"]), _decimal(g["fb"] or g["sb"])
        return Number(above.value / below.value) if below.value else None
    if g["mantissa"] is not None:
        exponent = int(g["e"] or g["e2"])
        if abs(exponent) > _LARGEST_POWER:
            return None
        return Number(_decimal(g["mantissa"]).value * Fraction(10) ** exponent)
    if g["base"] is not None:
        power = int(g["power"])
        base = _decimal(g["base"]).value
        # Huge powers are left to symbols.
        if power * max(1, len(str(base))) > _LARGEST_POWER:
            return None
        return Number(base**power)
    return _decimal(g["plain"])


def _mixed(whole: str, above: str, below: str) -> Number | None:
    # Above 1 the parts are factors: 2\frac{7}{3}.
    return (
        Number(int(whole) + Fraction(int(above), int(below))) if int(above) < int(below) else None
    )


def _decimal(text: str) -> Number:
    text = text.replace(",", "").replace(" ", "")
    negative = text.startswith("-")
    digits = text.lstrip("-")
    whole, _, places = digits.partition(".")
    value = Fraction(int((whole + places) or "0"), 10 ** len(places))
    if not places:
        return Number(-value if negative else value)
    return Number(
        -value if negative else value, places=len(places), significant=len((whole + places).lstrip("0"))
    )  # fmt: skip
