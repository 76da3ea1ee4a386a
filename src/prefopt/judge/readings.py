"""What judges' texts say: a grade from 1 to 10, or which of two answers is better. Strict: in doubt, neither.

Each set of rules has a name, so that a result says how its texts were read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, Literal, NamedTuple, TypeVar

from prefopt.errors import ConfigError

T = TypeVar("T")

Preference = Literal["1", "2", "tie"]
"""The position of the better answer, or that neither is."""

_BRACKETS = re.compile(r"\[\[([^\[\]\n,]{1,20})\]\]")
"""Without commas: matrices that a judge quotes are no verdicts."""
_NUMBER = re.compile(r"\d{1,2}(?:\.\d{1,4})?")
_PUBLISHED = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")
_NAMES: dict[str, Preference] = {"1": "1", "2": "2", "tie": "tie", "a": "1", "b": "2", "c": "tie"}
LOWEST, HIGHEST = 1, 10


class Rules(NamedTuple, Generic[T]):
    """How a verdict is asked for and read."""

    name: str
    form: str
    """The sentence that tells the judge how to write it."""
    read: Callable[[str], T | None]
    """The verdict of a text; None where there is none to be read."""
    last: bool
    """Whether the verdict comes last, so that a text that was cut off has none."""


def _inside(text: str, meaning: Callable[[str], T | None]) -> list[T | None]:
    """What stands in double brackets, in order; None for what means nothing."""
    return [meaning(found.strip()) for found in _BRACKETS.findall(text)]


def _agreed(text: str, meaning: Callable[[str], T | None]) -> T | None:
    found = set(_inside(text, meaning))
    return found.pop() if len(found) == 1 else None


def _final(text: str, meaning: Callable[[str], T | None]) -> T | None:
    found = _inside(text, meaning)
    return found[-1] if found else None


def _grade(word: str) -> float | None:
    if _NUMBER.fullmatch(word.removesuffix("/10").strip()) is None:
        return None
    value = float(word.removesuffix("/10").strip())
    return value if LOWEST <= value <= HIGHEST else None


def _named(word: str) -> Preference | None:
    return _NAMES.get(word.lower())


def _published_grade(text: str) -> float | None:
    """FastChat's rule: the first number in double brackets, else in single ones; it has no limits, ours are kept."""
    found = _PUBLISHED[0].search(text) or _PUBLISHED[1].search(text)
    value = None if found is None else float(found[1])
    return value if value is not None and LOWEST <= value <= HIGHEST else None


def _published_preference(text: str) -> Preference | None:
    """FastChat's rule: `[[A]]` if it stands anywhere, else `[[B]]`, else `[[C]]`."""
    return next((_NAMES[k.lower()] for k in "ABC" if f"[[{k}]]" in text), None)


def _bare(text: str) -> Preference | None:
    """The whole text is the verdict. `m` and `M` are AlpacaEval's names of the two outputs."""
    word = text.strip().strip("\"'`*.[]() ")
    return {"m": "1", "M": "2"}.get(word) or _named(word)  # pyright: ignore[reportReturnType] - literals


_GRADE_FORM = (
    "Then write your grade, a number from 1 (useless) to 10 (could not be better), in double brackets on a line of its "
    "own, such as [[5]]."
)
_PAIR_FORM = (
    "Then write your verdict in double brackets on a line of its own: [[1]] if the first answer is better, [[2]] if "
    "the second is, [[tie]] if neither is."
)
_LETTER_FORM = (
    "Then write your verdict in double brackets on a line of its own: [[A]] if the first answer is better, [[B]] if "
    "the second is, [[C]] if neither is."
)
_BARE_FORM = (
    "Do not explain. Write one character only: 1 if the first answer is better, 2 if the second is."
)

GRADES: dict[str, Rules[float]] = {
    rules.name: rules
    for rules in (
        Rules[float]("agreed", _GRADE_FORM, lambda text: _agreed(text, _grade), last=True),
        Rules[float]("last", _GRADE_FORM, lambda text: _final(text, _grade), last=True),
        Rules[float]("fastchat", _GRADE_FORM, _published_grade, last=False),
    )
}
"""`agreed`: everything in double brackets is one and the same grade. `last`: the last of them counts. `fastchat`: the
published rule."""
PREFERENCES: dict[str, Rules[Preference]] = {
    rules.name: rules
    for rules in (
        Rules[Preference]("agreed", _PAIR_FORM, lambda text: _agreed(text, _named), last=True),
        Rules[Preference]("last", _PAIR_FORM, lambda text: _final(text, _named), last=True),
        Rules[Preference]("fastchat", _LETTER_FORM, _published_preference, last=False),
        Rules[Preference]("bare", _BARE_FORM, _bare, last=False),
    )
}
"""As for grades; `bare`: the text is the verdict and nothing else, as AlpacaEval's judges write it."""


def find_rules(name: str, known: dict[str, Rules[T]]) -> Rules[T]:
    """The rules of that name.

    Raises:
        ConfigError: there are none; the known ones are listed.
    """
    if name not in known:
        raise ConfigError(f"judge: rules is {name!r}; known are {', '.join(known)}")
    return known[name]
