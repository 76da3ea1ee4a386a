"""The language of the program world: operations, the code that carries them out, and what such code computes.

An operation such as ``blend 3`` changes a number x, here to ``2 * x + 3``. Nothing is executed in this module: the
meaning of code is looked up among the expressions that the language has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

_TRACEBACK = (
    'Traceback (most recent call last):\n  File "<cell ',
    '>", line ',
    ", in <module>\n    ",
)
_NAME_ERROR = "\nNameError: name 'y' is not defined"


class Meaning(NamedTuple):
    """What an operation does."""

    expression: str
    """Python in `x`, with `{n}` for the operand."""
    apply: Callable[[int, int], int]
    """The same as a function of x and the operand, before the modulus is taken."""


OPERATIONS: Mapping[str, Meaning] = {
    "shift": Meaning("x + {n}", lambda x, n: x + n),
    "fold": Meaning("x - {n}", lambda x, n: x - n),
    "blend": Meaning("2 * x + {n}", lambda x, n: 2 * x + n),
    "stir": Meaning("2 * x - {n}", lambda x, n: 2 * x - n),
    "twist": Meaning("3 * x + {n}", lambda x, n: 3 * x + n),
    "knot": Meaning("3 * x - {n}", lambda x, n: 3 * x - n),
    "turn": Meaning("x * x + {n}", lambda x, n: x * x + n),
    "press": Meaning("x * x - {n}", lambda x, n: x * x - n),
    "flip": Meaning("{n} - x", lambda x, n: n - x),
    "swap": Meaning("{n} - 2 * x", lambda x, n: n - 2 * x),
    "bend": Meaning("{n} - 3 * x", lambda x, n: n - 3 * x),
    "weave": Meaning("{n} - x * x", lambda x, n: n - x * x),
}


class Use(NamedTuple):
    """An operation with its operand: what one step of a problem asks for, and the unit of misconceptions."""

    operation: str
    operand: int

    def __str__(self) -> str:
        return f"{self.operation} {self.operand}"


class Language:
    """The expressions for one modulus, and what they compute."""

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus
        self._results = {self.expression(use): self.results(use) for use in self.uses()}
        self._cell = re.compile(rf"(?:x = (\d+)\n)?x = \((.*)\) % {modulus}\nprint\(x\)")

    def uses(self) -> Iterator[Use]:
        """Every operation with every operand from 1 to the modulus minus 1."""
        return (Use(name, n) for name in OPERATIONS for n in range(1, self.modulus))

    def apply(self, use: Use, x: int) -> int:
        """The number that follows `x`."""
        return OPERATIONS[use.operation].apply(x, use.operand) % self.modulus

    def results(self, use: Use) -> tuple[int, ...]:
        """What the operation makes of each number from 0."""
        return tuple(self.apply(use, x) for x in range(self.modulus))

    def expression(self, use: Use) -> str:
        """The right Python expression."""
        return OPERATIONS[use.operation].expression.format(n=use.operand)

    def evaluate(self, expression: str, x: int) -> int | None:
        """What an expression of the language gives for `x`; None for any other text."""
        results = self._results.get(expression)
        return None if results is None else results[x]

    def same(self, first: str, second: str) -> bool:
        """Whether two expressions are one function: equal texts, or equal results for every x.

        ``x + 4`` and ``x - 16`` are the same modulo 20.
        """
        if first == second:
            return True
        return first in self._results and self._results[first] == self._results.get(second)

    def cell(self, expression: str, start: int | None = None) -> str:
        """The code of one step; that of the first one sets x to `start` before."""
        opening = "" if start is None else f"x = {start}\n"
        return f"{opening}x = ({expression}) % {self.modulus}\nprint(x)"

    def expression_span(self, cell: str) -> tuple[int, int]:
        """The characters of the expression in a cell; the whole cell where it has another form."""
        match = self._cell.fullmatch(cell)
        return match.span(2) if match else (0, len(cell))

    def same_cell(self, first: str, second: str) -> bool:
        """Whether two cells do the same: equal texts, or equal apart from expressions that are one function."""
        if first == second:
            return True
        one, other = self._cell.fullmatch(first), self._cell.fullmatch(second)
        if one is None or other is None:
            return False
        return one[1] == other[1] and self.same(one[2], other[2])

    def words(self) -> list[str]:
        """The tokens of all cells."""
        heads = ["x", "2 * x", "3 * x", "x * x"]
        heads += [broken(head) for head in heads]
        numbers = range(1, self.modulus)
        words = ["x = ", "x = (", f") % {self.modulus}", "\nprint(x)", "\n", *heads]
        words += [f" - {head}" for head in heads]
        words += [f" {sign} {n}" for sign in "+-" for n in numbers]
        carets = ("\n" + " " * (4 + column) + "^" for column in range(5, 15))
        return [*words, *_TRACEBACK, _NAME_ERROR, *carets]


def traceback(cell: str, number: int) -> str:
    """What the sandbox shows for a cell with a `broken` expression.

    Args:
        cell: the code.
        number: of the cell in its solution, from 1.
    """
    lines = cell.split("\n")
    at = next(k for k, line in enumerate(lines) if "y" in line)
    opening, middle, end = _TRACEBACK
    caret = " " * (4 + lines[at].index("y")) + "^"
    return f"{opening}{number}{middle}{at + 1}{end}{lines[at]}\n{caret}{_NAME_ERROR}"


def broken(expression: str) -> str:
    """The expression with `y`, which is no variable, for its first `x`: Python raises a NameError."""
    return expression.replace("x", "y", 1)
