"""The grading rules of Step-Controlled DPO: arXiv 2407.00782, mathllm/Step-Controlled_DPO at b7ee1dd, `compute_acc.py`.

Reproduced as they behave, with what is questionable about them: without a box the whole text is compared, the first of
several boxes on a text counts, values are rounded to two decimals (0.001 is 0.004), whole numbers and decimals round to
different strings (3.004 is not 3). For comparing with published numbers. Departures: LaTeX is read by math-verify's
parser and evaluated by sympy, where theirs evaluates Python; a comparison has a time limit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prefopt.grade import symbolic
from prefopt.grade.answers import read_answers
from prefopt.grade.step_dpo_rules import brace_fractions, read_fraction

if TYPE_CHECKING:
    from prefopt.grade.workers import Answer

_BOX = re.compile(r"oxed{(.*)}", re.DOTALL)
_BEFORE = (
    (" ", ""), ("\\,", ""), ("∞", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", ""), ("\\text", ""),
    ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
    ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", ""), ("{km}", ""), ("km", ""), ("\\!", ""),
    ("tfrac", "frac"), ("dfrac", "frac"), ("\\$", ""), ("$", ""), ("\\%", ""), ("{.", "{0."),
)  # fmt: skip
_ready: list[bool] = []


def load() -> None:
    """Import the LaTeX parser and sympy.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    symbolic.load()
    _ready.append(True)


def grade(problem: str, answer: str, output: str) -> Answer:
    """(correct, extracted, reason) by these rules; the problem does not matter.

    Raises:
        EngineNeededError: values have to be computed and `load` has not been called.
    """
    del problem
    gold, given = extract(_gold(answer)), extract(output)
    if not gold:
        return False, given or None, "unreadable gold"
    if not given:
        return False, None, "no answer"
    same = _same(_rounded_tuple(given), _rounded_tuple(gold))
    return same, given, "equal" if same else "different"


def extract(text: str) -> str:
    """The answer of a text in the one form that strings are compared in; empty if there is none."""
    text = text.lower().replace("{}", "")
    boxes = _BOX.findall(text)
    answer = boxes[-1] if boxes else text
    closing, opening = answer.find("}"), answer.find("{")
    if closing != -1 and (opening == -1 or closing < opening):
        answer = answer[:closing]
    answer = answer.split("=")[-1].split("\\approx")[-1]
    for old, new in _BEFORE:
        answer = answer.replace(old, new)
    if answer.startswith("."):
        answer = "0" + answer
    if "sqrt" in answer:
        answer = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", answer)
        answer = brace_fractions(answer)
    return "\\frac{1}{2}" if answer == "0.5" else read_fraction(answer, roots=False)


def _gold(answer: str) -> str:
    return (
        ",".join(read_answers(answer)) if answer.startswith("[") else answer.rsplit("####", 1)[-1]
    )


def _same(given: str, gold: str) -> bool:
    if given == gold:
        return True
    if "," in gold and set(gold.split(",")) == set(given.split(",")):
        return True
    wanted, found = _rounded(gold), _rounded(given)
    return wanted is not None and wanted == found


def _rounded_tuple(text: str) -> str:
    """A tuple with its entries rounded to two decimals; anything else as it is."""
    items = text[1:-1].split(",")
    if not (text.startswith("(") and text.endswith(")")) or len(items) < 2:
        return text
    rounded = [item if "infty" in item or item in {"a", "-a"} else _rounded(item) for item in items]
    if any(item is None for item in rounded):
        return text
    return f"({','.join(item for item in rounded if item is not None)})"


def _rounded(text: str) -> str | None:
    """The value of a formula at two decimals, as a string: `3` and `3.0` differ, as in the original."""
    from prefopt.grade.workers import EngineNeededError

    if not _ready:
        raise EngineNeededError
    # Their parser fails on fractions without braces.
    value = None if re.search(r"\\frac(?!\{)", text) else symbolic.value(text)
    return None if value is None else str(round(value, 2))
