"""The door to math-verify: whether two formulas mean the same. Runs in a worker process, which bounds its time.

math-verify's own time limits use signals, work in the main thread only and do not stop long computations inside one
operation; they are switched off here. Its comparison is not symmetric: the gold formula comes first.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from prefopt.errors import MissingExtraError
from prefopt.grade.numbers import read_number, rounds_to

if TYPE_CHECKING:
    from sympy import Expr

_PLACES = 12
"""Decimals at which math-verify rounds floats; its 6 make small numbers equal. Decimals mostly never get there."""

_LONGEST = 1500
"""Characters of a formula that is parsed."""


def load() -> None:
    """Import the engine, which takes seconds.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    require()
    import math_verify  # noqa: F401  # pyright: ignore[reportUnusedImport]


def require() -> None:
    """Nothing, if the engine is installed; it is not imported.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise MissingExtraError(
            "grading mathematics needs math-verify, which is not installed; run: pip install 'prefopt[maths]'"
        )


def equivalent(gold: str, given: str) -> bool:
    """Whether two cleaned formulas mean the same, by math-verify 0.9.

    Beyond it: an equation may be a multiple of the gold one, and a decimal that shows enough digits (`rounds_to`) may
    stand for an irrational number.
    """
    from math_verify import verify

    if max(len(gold), len(given)) > _LONGEST:
        return False
    wanted, found = _parse(gold), _parse(given)
    if not wanted or not found:
        return False
    if _same_decimal(wanted[0], given) or _same_decimal(found[0], gold):
        return True
    if verify([*wanted], [*found], _PLACES, timeout_seconds=None, allow_set_relation_comp=True):
        return True
    return _proportional(gold, given)


def close(gold: str, given: str, tolerance: float) -> bool:
    """Whether two formulas simplify to the same, or have values within a tolerance."""
    import sympy

    if max(len(gold), len(given)) > _LONGEST:
        return False
    wanted, found = _parse(gold), _parse(given)
    if not wanted or not found:
        return False
    try:
        difference = wanted[0] - found[0]  # pyright: ignore[reportOperatorIssue]
        return sympy.simplify(difference) == 0 or bool(abs(sympy.N(difference)) <= tolerance)
    except (
        ArithmeticError,
        AttributeError,
        NotImplementedError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return False


def value(text: str) -> float | int | None:
    """The value of a LaTeX formula; None if it has none. Whole numbers stay whole."""
    if len(text) > _LONGEST:
        return None
    parsed = _parse(text)
    try:
        if not parsed or not getattr(parsed[0], "is_number", False):
            return None
        exact = parsed[0].doit()
        return int(str(exact)) if exact.is_Integer else float(exact.evalf())  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    except (
        ArithmeticError,
        AttributeError,
        NotImplementedError,
        RecursionError,
        TypeError,
        ValueError,
    ):
        return None


def _parse(text: str) -> list[Expr]:
    from math_verify import LatexExtractionConfig, parse

    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        # math-verify drops the sign of degrees.
        text = re.sub(r"([\d.]+)\s*degrees", r"(\1 \\pi / 180)", text)
    text = re.sub(r"(?<=[\w)}])\s*!\s*", "! ", text.replace("$", " ").replace("...", r"\ldots "))
    return parse(
        f"\\boxed{{{text}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType] - documented, but annotated as int
    )


def _same_decimal(value: Expr, text: str) -> bool:
    """Whether a text is a decimal that an irrational value rounds to."""
    decimal = read_number(text)
    if decimal is None or decimal.places is None or not getattr(value, "is_number", False):
        return False
    exact = read_number(str(value.evalf(decimal.significant + 12)))
    return exact is not None and rounds_to(exact.value, decimal)


def _proportional(gold: str, given: str) -> bool:
    """Whether two equations are the same but for a factor."""
    import sympy

    if gold.count("=") != 1 or given.count("=") != 1:
        return False
    differences = [_difference(text) for text in (gold, given)]
    wanted, found = differences
    if wanted is None or found is None or wanted == 0 or found == 0:
        return False
    ratio = sympy.simplify(found / wanted)
    return bool(ratio.is_number and ratio != 0)


def _difference(equation: str) -> Expr | None:
    """Left minus right."""
    left, right = (_parse(side) for side in equation.split("="))
    if not left or not right:
        return None
    try:
        return left[0] - right[0]  # pyright: ignore[reportOperatorIssue]
    except TypeError:
        return None
