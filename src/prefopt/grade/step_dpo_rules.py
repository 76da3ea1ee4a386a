"""The grading rules of Step-DPO's published evaluation: 2406.18629, dvlab-research/Step-DPO at c4902fd, `evaluation/`.

Reproduced as they behave, with what is questionable about them: 50 counts for 0.5, values within 0.001 are equal, only
as many answers as there are gold ones are looked at, from the end. For comparing with published numbers; the default
rules are stricter where these are loose and the other way round. Departures: LaTeX is read by math-verify's parser,
since the one used there needs an older runtime of the parser generator; a comparison has a time limit.
"""

from __future__ import annotations

import re
from math import isclose
from typing import TYPE_CHECKING

from prefopt.grade import symbolic
from prefopt.grade.answers import join_answers, read_answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefopt.grade.workers import Answer

_TOLERANCE = 1e-3
_NUMBER = re.compile(r"-?\d*\.?\d+")
_AFTER_UNITS = (
    ("\\$", ""), ("$", ""), ("x\\in", ""), ("\\%", "%"), (" .", " 0."), ("{.", "{0."), ("\\cdot", ""),
    ("infinity", "\\infty"),
)  # fmt: skip


def load() -> None:
    """Import the LaTeX parser and sympy.

    Raises:
        MissingExtraError: math-verify is not installed.
    """
    symbolic.load()
    _ready.append(True)


_ready: list[bool] = []


def grade(problem: str, answer: str, output: str) -> Answer:
    r"""(correct, extracted, reason) by these rules.

    Args:
        problem: decides whether commas separate answers.
        answer: the gold answer, used as it is (`\\text{}` is not taken off); a worked solution counts by its boxes.
        output: the model's text.

    Raises:
        EngineNeededError: symbols have to be compared and `load` has not been called.
    """
    gold = _gold(problem, answer)
    found = extract(problem, output)
    if not found:
        return False, None, "no answer"
    wanted, given = list(dict.fromkeys(gold)), list(dict.fromkeys(found))
    given = given[-len(wanted) :]
    same = _match(given, wanted)
    return same, ", ".join(given), "equal" if same else "different"


def gold_text(problem: str, answers: Sequence[str]) -> str:
    r"""The gold answer of a problem as the published code prepares it: read like the box of a solution.

    Given to `grade` as it stands in a file, `\text{Evelyn}` would not be the same as `Evelyn`.
    """
    if len(answers) > 1:
        return join_answers([normalise(answer) for answer in answers])
    found = [item for item in extract(problem, f"\\boxed{{{answers[0]}}}") if item]
    if not found:  # braces that do not balance
        return answers[0]
    return found[0] if len(found) == 1 else join_answers(found)


def extract(problem: str, text: str) -> list[str]:
    """All answers of a text in order, normalised."""
    answers: list[str] = []
    for candidate in _candidates(text):
        found = normalise(candidate.strip().lstrip(":").rstrip(".").rstrip("/"))
        if "separated by commas" in problem and not re.search(r"[()\[\]]", found):
            answers += [part.strip() for part in found.split(",")]
        elif re.search(r"\\text\{\s*and\s*\}", found):
            answers += [part.strip() for part in re.split(r"\\text\{\s*and\s*\}", found)]
        else:
            answers.append(found.strip())
    return answers


def normalise(text: str) -> str:
    """An answer in the one form that strings are compared in."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    if text.startswith("\\text{") and text.endswith("}"):
        text = text.removeprefix("\\text{")[:-1]
    text = re.sub(r"[tdc]frac", "frac", text)
    text = text.replace("\\left", "").replace("\\right", "")
    without_unit = re.sub(r"\\text{.*?}$", "", text).strip()
    text = without_unit or text
    text = text.replace("^{\\circ}", "").strip().replace("^\\circ", "").strip()
    text = re.sub(r"\{(c|m)?m\}(\^(2|3))?", "", text).strip()
    text = re.sub(r"p\.m\.$", "", text).strip()
    text = re.sub(r"(\d)\s*t$", r"\1", text).strip()
    for old, new in _AFTER_UNITS:
        text = text.replace(old, new)
    if "\\infty" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("\\mathbf", "").replace("\\mathrm", "")
    text = re.sub(r"\\mbox{.*?}", "", text)
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    text = re.sub(r"(\d+)\.0+([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0+$", r"\1", text)
    return _braced("0" + text if text.startswith(".") else text) if text else ""


def _braced(text: str) -> str:
    """Roots, tangents and fractions with braces, no spaces, no trailing punctuation."""
    for command in ("sqrt", "tan"):
        text = re.sub(rf"\\{command}(-?[0-9.a-zA-Z]+)", rf"\\{command}{{\1}}", text)
        text = re.sub(rf"\\{command}\s+(\w+)$", rf"\\{command}{{\1}}", text)
    text = read_fraction(brace_fractions(text.replace(" ", "")))
    return re.sub(r"(\\|,|\.)+$", "", text)


def brace_fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{72}` with braces around both parts; the text itself if a part is missing."""
    head, *tails = text.split("\\frac")
    pieces = [head]
    for tail in tails:
        if tail.startswith("{"):
            pieces.append(tail)
        elif len(tail) < 2:
            return text
        else:
            below = tail[1:] if tail[1] == "{" else f"{{{tail[1]}}}{tail[2:]}"
            pieces.append(f"{{{tail[0]}}}{below}")
    return "\\frac".join(pieces)


def read_fraction(text: str, *, roots: bool = True) -> str:
    r"""`a/b` of whole numbers (and of parts with roots) as `\frac{a}{b}`; any other text as it is."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        above, below = (part if roots and "sqrt" in part else str(int(part)) for part in parts)
    except ValueError:
        return text
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text


def _gold(problem: str, answer: str) -> list[str]:
    if "####" in answer:
        return [answer.rsplit("####", 1)[1].strip()]
    return extract(problem, answer) if "boxed" in answer else list(read_answers(answer))


def _candidates(text: str) -> list[str]:
    if "final answer is $" in text and "$. I hope" in text:
        return [text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()]
    if "boxed" in text:
        return [box for piece in text.split("boxed{")[1:] if (box := _box(piece)) is not None]
    if "he answer is" in text:
        return [text.rsplit("he answer is", 1)[1].strip()]
    if "```output" in text and (
        printed := text.rsplit("```output", 1)[1].partition("```")[0].strip()
    ):
        return [printed]
    numbers = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1:]


def _box(piece: str) -> str | None:
    depth = 0
    for position, character in enumerate(piece):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return (
                piece[: position + 1]
                if piece[position + 1 : position + 2] == "%"
                else piece[:position]
            )
    return None


def _match(given: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether every given answer is a wanted one, and the other way round."""
    hit = [[_same(a, b) for b in wanted] for a in given]
    return all(map(any, hit)) and all(any(row[j] for row in hit) for j in range(len(wanted)))


def _same(given: str, gold: str) -> bool:
    if "\\cup" in given and "\\cup" in gold:
        return _match(given.split("\\cup"), gold.split("\\cup"))
    a, b = _float(given), _float(gold)
    if a is not None and b is not None and abs(a - b) < _TOLERANCE:
        return True
    return (bool(gold) and given == gold) or _equal(given, gold)


def _equal(given: str, gold: str) -> bool:
    if given == gold:
        return True
    if "^{216}" in given:  # one output that hung their sympy
        return False
    a, b = _digits(given), _digits(gold)
    if a is not None and b is not None:
        return any(isclose(x, a, abs_tol=_TOLERANCE) for x in (b / 100, b, b * 100))
    if not given:
        return False
    given, gold = given.strip(), gold.strip()
    return (
        _equal_tuples(given, gold)
        or _equal_matrices(given, gold)
        or _equal_equations(given, gold)
        or _equal_symbols(given, gold)
    )


def _equal_tuples(given: str, gold: str) -> bool:
    """Position by position; the kind of the brackets is not looked at."""
    if not all(re.match(r"[(\[].+[)\]]", text) for text in (given, gold)):
        return False
    return _all_equal(given[1:-1].split(","), gold[1:-1].split(","))


def _equal_matrices(given: str, gold: str) -> bool:
    ends = tuple(f"\\end{{{kind}}}" for kind in ("pmatrix", "bmatrix"))
    starts = tuple(f"\\begin{{{kind}}}" for kind in ("pmatrix", "bmatrix"))
    if not all(text.startswith(starts) and text.endswith(ends) for text in (given, gold)):
        return False
    a, b = (_rows(text[len(starts[0]) : -len(ends[0])]) for text in (given, gold))
    return len(a) == len(b) and all(
        _all_equal(x.split("&"), y.split("&")) for x, y in zip(a, b, strict=True)
    )


def _rows(inner: str) -> list[str]:
    return [row.strip() for row in inner.split("\\\\") if row.strip()]


def _all_equal(given: Sequence[str], gold: Sequence[str]) -> bool:
    return len(given) == len(gold) and all(_equal(a, b) for a, b in zip(given, gold, strict=True))


def _equal_equations(given: str, gold: str) -> bool:
    a, b = given.split("="), gold.split("=")
    if len(a) == len(b) == 2:
        x, y = (f"{side[0].strip()} - ({side[1].strip()})" for side in (a, b))
        return _equal_symbols(x, y) or _equal_symbols(f"-({x})", y)
    if len(a) == 2 and len(b) == 1 and len(a[0].strip()) <= 2:
        return _equal(a[1], gold)
    if len(b) == 2 and len(a) == 1 and len(b[0].strip()) <= 2:
        return _equal(given, b[1])
    return False


def _equal_symbols(given: str, gold: str) -> bool:
    from prefopt.grade.workers import EngineNeededError

    if not _ready:
        raise EngineNeededError
    return symbolic.close(given, gold, _TOLERANCE)


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _digits(text: str) -> float | None:
    """The value of digits; a percentage as its hundredth."""
    text = text.replace(",", "")
    value = _float(text)
    if value is None and text.endswith("%"):
        value = _float(text[:-1].removesuffix("\\"))
        return None if value is None else value / 100
    return value
