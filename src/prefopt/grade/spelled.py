"""Numbers in words written in digits: `twenty-five` as 25, `5 million` as 5000000, `2 dozen` as 24.

Everything else in a text stays as it is. Nothing is compared here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fractions import Fraction

from prefopt.grade.numbers import SCALES, WORDS

_FRACTIONS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_WORD = "|".join([*WORDS, *(f"{scale}s?" for scale in SCALES)])
_GAP = r"(?:\s+|-)"
_PHRASE = re.compile(
    rf"(?i)(?<![\w\\.,^/])(?:an?(?={_GAP}(?:{'|'.join(SCALES)})\b)|{_DIGITS}|(?:{'|'.join(WORDS)})\b)"
    rf"(?:(?:{_GAP}|\s+and\s+)(?:{_WORD})\b)*(?![\w\\])"
)
_PART = re.compile(
    rf"(?i){_GAP}(half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?)\b"
)
_AND_PART = re.compile(
    r"(?i)(?<![\w.,/])(\d+)\s+and\s+(?:an?\s+(half|third|quarter)\b|(\d+/\d+)(?![\w.]))"
)
_LONE_PART = re.compile(r"(?i)(?<![\w-])(?:an?\s+)(half|third|quarter)(?=$|\s+of\b)")
_THOUSANDS = re.compile(
    r"(?i)(?<=\$)\s?(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s?(k|mn|mil|m|bn|b)(?![\w^])"
)
_LETTERS = {"k": 10**3, "m": 10**6, "b": 10**9}
_MONEY = re.compile(r"(?i)\$?(?<![\w.,])(\d+)\s+dollars?,?\s+(?:and\s+)?(\d{1,2})\s+cents?\b")
_COMPOUND = re.compile(
    r"(?i)(\d\s+(?:hours?|minutes?|feet|foot|pounds?|years?|weeks?|days?|meters?|kilograms?|gallons?)),?"
    r"\s+and\s+(?=\d+\s+(?:hours?|minutes?|seconds?|inch(?:es)?|ounces?|months?|days?|cm|centimeters?|grams?|quarts?)\b)"
)
_NEGATIVE = re.compile(
    r"(?i)\bnegative\s+(?=\$?[\d.\\])|(?:^|(?<=\bis\s)|(?<=\bof\s)|(?<=\bequals\s))minus\s+(?=\$?[\d.])"
)


def write_digits(text: str, *, keep: Collection[str] = ()) -> str:
    """A cleaned answer with its number words in digits.

    Scale words multiply (`5 hundred` is 500), parts divide (`two thirds` is 2/3), "negative" is a sign, and amounts
    such as `5 dollars 50 cents` become one. "one" alone stays: it is a pronoun as often as a number.

    Args:
        text: an answer that `clean` has seen.
        keep: scale words in which the problem counts, singular: with "dozen" `2 dozen eggs` is `2 eggs`.
    """
    if not re.search(r"[a-zA-Z]{3}|\$\s?-?[\d.,]+\s?[kKmMbB]", text):
        return text
    text, spelled = _replace(text, keep)
    for scale in keep:
        text = re.sub(rf"(?i)(?<=\d)\s*{scale}s?\b", "", text)
    text = _THOUSANDS.sub(lambda m: _plain(_value(m[1]) * _LETTERS[m[2][0].lower()]), text)
    text = _LONE_PART.sub(lambda m: f"1/{_FRACTIONS[m[1].lower()]}", text)
    text = _AND_PART.sub(lambda m: f"{m[1]} {m[3] or f'1/{_FRACTIONS[m[2].lower()]}'}", text)
    text = _MONEY.sub(lambda m: f"${m[1]}.{int(m[2]):02}", text)
    text = _COMPOUND.sub(r"\1 ", text)
    text = _NEGATIVE.sub("-", text)
    # eighteen (18)
    return re.sub(r"(?<![\d.])(\d+)\s+\(\1\)", r"\1", text) if spelled else text


def _replace(text: str, keep: Collection[str]) -> tuple[str, bool]:
    """The text with its phrases in digits, and whether there were any."""
    parts: list[str] = []
    position = done = 0
    # Beside digits a single word mostly counts something else: the last two people paid $18.
    beside = re.search(r"\d", text) is not None
    while (match := _PHRASE.search(text, position)) is not None:
        written, position = _read(text, match, keep)
        if written is None or (beside and match[0].lower() in WORDS and position == match.end()):
            continue
        parts += [text[done : match.start()], written]
        done = position
    return "".join([*parts, text[done:]]), bool(parts)


def _read(text: str, match: re.Match[str], keep: Collection[str]) -> tuple[str | None, int]:
    """What stands for a phrase (None: it stays as it is), and where to go on."""
    tokens = [
        (found[0].lower(), match.start() + found.end())
        for found in re.finditer(rf"{_DIGITS}|[a-zA-Z]+", match[0])
    ]
    value, used = _sum([token for token, _ in tokens], keep)
    first, end = tokens[0][0], tokens[max(used, 1) - 1][1]
    part = _PART.match(text, end) if first in WORDS and value > 0 and not value % 1 else None
    # Above one, only plurals are parts: a twenty-third is no fraction.
    if part and (value == 1) == (not part[1].lower().endswith("s")):
        name = part[1].lower()
        return f"{value}/{_FRACTIONS.get(name) or _FRACTIONS[name.removesuffix('s')]}", part.end()
    if used == 0 or (used == 1 and (first == "one" or first not in WORDS)):
        return None, end
    return _plain(value), end


def _sum(tokens: Sequence[str], keep: Collection[str]) -> tuple[Fraction, int]:
    """The value of the longest run of tokens that is a number, and its length."""
    total, group, above, used = Fraction(0), None, 10**15, 0
    for index, token in enumerate(tokens):
        scale = SCALES.get(token.removesuffix("s"))
        if token == "and":
            # One hundred and five, five million and twenty; not: two and three.
            if not total and (not group or group % 100):
                break
            continue
        if scale is None:
            value = Fraction(1) if token in {"a", "an"} else _value(token)
            if group is not None and not _follows(group, value):
                break
            group = value if group is None else group + value
        elif token.removesuffix("s") in keep or group is None or scale >= above:
            break
        elif scale == SCALES["hundred"] and group < 100:
            group *= scale
        else:
            total, group, above = total + group * scale, None, scale
        used = index + 1
    return total + (group or 0), used


def _follows(group: Fraction, value: Fraction) -> bool:
    """Whether a word adds to those before it: five after twenty, and anything below 100 after a hundred."""
    if group and group % 100 == 0:
        return 0 < value < 100
    return group % 100 >= 20 and group % 10 == 0 and 0 < value < 10


def _value(token: str) -> Fraction:
    known = WORDS.get(token)
    return Fraction(token.replace(",", "")) if known is None else Fraction(known)


def _plain(value: Fraction) -> str:
    """Exact decimal digits of a number that has them."""
    places = 0
    while value * 10**places % 1:
        places += 1
    sign = "-" if value < 0 else ""
    digits = str(int(abs(value) * 10**places)).zfill(places + 1)
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
