"""Answers in words: names, days, yes and no, and numbers inside a sentence, with what changes or denies them."""

from __future__ import annotations

import re

from prefopt.grade.numbers import WORDS, Number, read_number, read_words

_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z])")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "max", "min", "gcd", "lcm", "mod", "det", "arcsin",
    "arccos", "arctan", "sqrt", "frac", "pi", "abs", "lim", "deg", "degree", "degrees", "and", "or", "pmatrix", "begin",
    "end",
}  # fmt: skip
_SHORT = {"up", "to", "no", "of", "at"}
_NEGATIONS = {"not", "neither", "nor", "no", "never", "or", "cannot", "nobody", "none"}
_DENIALS = {"not", "cannot", "wrong", "incorrect", "false", "impossible"}
_NUMBER = re.compile(
    r"-?\$?\s?(?:\d+\s+\d+/\d+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?(?:\s?%)?)"
    r"|-?(?:\d+\s*)?\\frac\{-?\d+\}\{\d+\}"
)
_SIGNS = r"[\s$*_({\\]*$"
_OF = rf"(?:[\s$]*\b(?:of|the|a|an|just|about|exactly|some|or|equal\s+to|by)\b)*{_SIGNS}"
_IS = rf"(?:\s+(?!but\b)[a-z']+){{0,2}}{_SIGNS}"
_BEFORE = re.compile(
    rf"""(?ix) (?:
        (?: \b(?:not|cannot|never|neither|nor|wrong|incorrect|false) | n't ) {_IS}
      | \b(?: than | (?:at|the) \s+ (?:least|most)
          | (?<!add\ )(?<!adds\ )(?<!sum\ )(?<!sums\ )(?<!comes\ ) up \s+ to
          | over | under | above | below | beyond | exceed(?:s|ing)? | nearly | almost | without
          | except (?:\s+ for)? | excluding | besides | (?:any|every|no)thing \s+ but | all \s+ but
          | as \s+ (?:many|much|few|little) \s+ as | half | twice | thrice | doubled? | tripled? | quadruple
          | (?:a|one|\d) [\s/-]+ (?:third|quarter|fourth|fifth|tenth) | (?:thirds|quarters|fourths|fifths|tenths)
          | square | cube | root | log(?:arithm)? | reciprocal | inverse | opposite | factorial | factors | divisors?
          | instead \s+ of | multiples? | power | past | no | plus | minus | times
          | divided \s+ by | multiplied \s+ by ) {_OF}
    )"""
)
"""What may stand right before a number so that it is no longer the value, up to the number."""
_COUNTS = "|".join(word for word in WORDS if word != "one")
_AFTER = re.compile(
    rf"""(?ix) [\s$*_)}}-]* (?:
        (?: hundreds? | thousands? | millions? | billions? | trillions? | dozens? | tens | grand | squared | cubed
          | factorial | halves | thirds | fourths | fifths | sixths | sevenths | eighths | ninths | tenths
          | (?:hundred|thousand)ths | doubled | tripled | halved | quadrupled | (?:raised \s+)? to \s+ the
          | or \s+ (?:more|less|fewer|so|higher|lower|greater|above|below) | and \s+ (?:up|above|below|more|over)
          | and \s+ an? \s+ (?:half|third|quarter) | plus | minus | divided | multiplied
          | times \s+ (?:itself|[b-z]\b) | to \s+ (?:one|\d+) | k | mn | bn ) \b
      | (?:[a-z]+ \s+){{0,2}} at \s+ (?:least|most) \b
      | (?:[a-z]+ \s+){{0,2}} (?:more|less|fewer|greater|larger|smaller) \s+ than \s+
          (?: half | twice | double | triple | that | it | this | [b-z] | one | {_COUNTS} ) \b
      | [a-z]+ ,? \s+ (?:and \s+)? (?:{_COUNTS}) \b
      | (?:hours?|minutes?|feet|foot|dollars?|pounds?|years?|weeks?|days?|meters?) ,? \s+ (?:and \s+)? \d
      | (?:[a-z]+ \s+){{0,3}} \(? in \s+ (?:hundreds|thousands|millions|billions) \b
      | (?:[a-z]+ \s+){{0,2}}
          (?: (?:is|are|was|were) (?:\s+not\b|n't) | (?:cannot | can't | could(?:\s+not|n't)) \s+ be )
          (?= \W*$ | \s+ (?:(?:the|a|our|my) \s+)? (?:answer|solution|right|correct|true|possible|valid|allowed|it)\b )
      | (?:[a-z]+ \s+){{0,2}} (?: wrong | incorrect ) \b
      | (?:[a-z]+ \s+){{0,2}} (?:is|are|was|seems|looks) \s+ (?:[a-z]+ \s+)? (?:false | impossible | too \s+ [a-z]+) \b
    )"""
)
"""What may follow a number to the same effect."""
_COMMAND = re.compile(
    r"\\(?!(?:frac|angle|triangle|overline|quad|text|approx|ldots)(?![a-zA-Z]))[a-zA-Z]+|[_^]"
)
_GLUED = re.compile(
    r"(?:cm|mm|km|kg|mg|ml|mph|ft|lbs?|hrs?|mins?|secs?|am|pm|st|nd|rd|th|m|g|s|h|L)(?![a-zA-Z])|[^\sa-zA-Z+*/^_!\\({]"
    r"|\s+(?![b-fi-kn-rt-z]\b)[^+*/^_!\\=]|\s*/\s?[a-zA-Z]|\s*$|\s+\\(?:angle|text|quad|ldots)|[.!]\s"
)
_CLAUSE = re.compile(
    r"""(?ix) \d [\d.,]* [\s$*]+ (?: [a-z-]+ \s+ )*? [a-z-]+ (?<!percent)(?<!cent)(?<!quarters) \s+
    (?: to (?=\s+[a-z]) | of | in | on | for | after | before | from | with | at | during | because | that | which | who
      | while | when | if | since | as | by (?=\s+[a-z]) ) \b
    | \d [\d.,]* [\s$*]+
      (?: of (?= \s+ (?: (?:the|these|those|them|her|his|its|their|our|all)\b | \d+\s+[a-z] ) )
        | for (?= \s+ (?!(?:every|each|per|one|an?)\b) (?: \d+\s+ )? [a-z] )
        | after | before | during | because | while | when | if | since ) \b"""
)
"""A number, mostly with its unit, up to a preposition: what follows is about it."""
_CONTRAST = re.compile(
    r"""(?ix) ^(?P<kept> .*? \w [^,;]*? )
    (?: \s*[,;(]\s* (?:(?:and|but)\s+)? not | \s+ (?:and|but) \s+ not | (?<=[\d)}]) \s+ not (?=\s+[-$]?\d)
      | \s*,?\s* \b(?: rather \s+ than | instead \s+ of | as \s+ opposed \s+ to ) )
    \s+ (?P<other> [^,;]+ )$"""
)


def is_words(text: str) -> bool:
    """Whether an answer is words, not a formula: it has a word of three letters that is no function's name."""
    words = [w for w in _WORD.findall(_without_commands(text)) if w.lower() not in _FUNCTIONS]
    return any(len(word) >= 3 or word.lower() in _SHORT for word in words)


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
        alternative = "or" in found and "nor" not in found
        return not alternative and found[len(wanted)] not in _DENIALS
    inside = any(
        found[i : i + len(wanted)] == wanted for i in range(len(found) - len(wanted) + 1)
    )  # fmt: skip
    return inside and not _NEGATIONS & (set(found) - set(wanted))


def without_contrast(text: str) -> str:
    """An answer without what it is said not to be: `6` for `6, not 7` and for `6 rather than 7`."""
    match = _CONTRAST.match(text)
    if match is None or not re.search(r"\d|^[A-Z]|^[a-z]+$", match["other"].strip()):
        return text
    # "5, not valid" takes the answer back.
    if re.match(
        r"(?:valid|possible|correct|right|allowed|real|sure|certain|defined|enough)\b",
        match["other"],
    ):
        return text
    return match["kept"].rstrip(" ,;(")


def widen(text: str, start: int, end: int) -> tuple[int, int]:
    """Where a number begins and ends with the words around it that change or deny it; (start, end) without such.

    Scales (`5 million`), comparisons (`at least 5`), factors (`half of 5`), signs of operations, negations (`not 5`,
    `5 is wrong`).
    """
    first = max(0, start - 80)
    before, after = _BEFORE.search(text[first:start]), _AFTER.match(text, end)
    return first + before.start() if before else start, after.end() if after else end


def main_clause(text: str) -> str:
    """A text up to the preposition after its first number and unit: `5 hours` of `5 hours to read 120 pages`."""
    clause = _CLAUSE.search(text)
    if clause is None or re.search(r"\bbut\b.*\d", text[clause.end() :]):
        return text
    return text[: clause.end()].rsplit(None, 1)[0]


def number_in_prose(text: str) -> Number | None:
    """The one number that a sentence states; after the last sign of equality if there is one.

    None if there are several, or words or signs change or deny it. What follows a preposition after the number and its
    unit does not count.
    """
    text = re.sub(r"\\(?:begin|end)\s*\{\w+\*?\}|\\\\", " ", text)
    whole = text.rsplit("=", 1)[-1]
    text = main_clause(whole)
    if _COMMAND.search(text):
        return None
    spans = [
        (match.start() + len(match[0]) - len(match[0].lstrip()), match.end())
        for match in _NUMBER.finditer(text)
        if re.search(r"\d", match[0])
    ]
    spelled = [
        match.span()
        for match in _WORD.finditer(text)
        if match[0].lower() in WORDS and (not spans or _counts(text, match))
    ]
    numbers = {_read(text[start:end]) for start, end in spans + spelled}
    if len(numbers) != 1:
        return None
    plain = all(_GLUED.match(text, end) and not _joined(text[:start]) for start, end in spans)
    unchanged = all(widen(whole, *span) == span for span in spans + spelled)
    return numbers.pop() if plain and unchanged else None


def _counts(text: str, word: re.Match[str]) -> bool:
    """Whether a number word beside digits is part of the value: after an operation or the unit of a larger number."""
    before, after = text[: word.start()], text[word.end() :]
    return bool(
        re.match(r"\s+(?:in|out\s+of|to|over|times|more|less|fewer)\b", after)
        or re.search(r"(?:\b(?:to|over|times|than|by|of)|[-+*/])\s*$", before)
        or re.search(r"\d\s+[a-zA-Z]+,?\s+(?:and\s+)?$", before)
    )


def _joined(before: str) -> bool:
    """Whether a number continues a formula or a name."""
    return bool(re.search(r"[a-zA-Z_^\\]$|[+*/^]\s*$", before))


def _read(text: str) -> Number | None:
    word = read_words(text)
    return read_number(text.strip()) if word is None else Number(word)


def _words(text: str) -> list[str]:
    text = re.sub(r"n't\b", " not", _without_commands(text).lower())
    text = re.sub(r"[{}()$\"'.!?*]", " ", text).replace(",", " ")
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text)
    return [
        word for word in text.split() if word not in {"the", "a", "an", "is", "it", "be", "that"}
    ]


def _without_commands(text: str) -> str:
    return re.sub(r"\\[a-zA-Z]+", " ", text)
