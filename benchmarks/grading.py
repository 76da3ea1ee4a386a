"""Rows graded per second on a mixed set: numbers, LaTeX, lists, words; right and wrong; a share that needs symbols.

    python benchmarks/grading.py --output benchmarks/results/grading-cpu.json

The start of the worker processes, which import sympy, is timed apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from vs_trl import machine

from prefopt.grade.maths import GradeItem, Grader, grader_names

KINDS = {
    "numbers": (("{n}", "So the total is {n}.\nThe answer is ${n}.00."), ("{n}", "\\boxed{{{m}}}")),
    "latex": (
        ("\\frac{{{n}}}{{7}}", "Hence $\\boxed{{\\dfrac{{{n}}}{{7}}}}$."),
        ("({n}, {m})", "The answer is $\\left({n},{m}\\right)$."),
        ("{n}\\text{{ cm}}^2", "\\boxed{{{n}}}"),
    ),
    "symbols": (
        ("{n}x^2+{m}x", "\\boxed{{x({n}x+{m})}}"),
        ("{n}\\sqrt{{3}}", "The answer is $\\sqrt{{3}}\\cdot {m}$."),
    ),
}
SHARES = {"numbers": 6, "latex": 3, "symbols": 1}


def main() -> None:
    """Time every rule set on every kind and on the mixture; print and write."""
    arguments = parse_arguments()
    results = {name: measure(name, arguments) for name in grader_names()}
    if arguments.output:
        facts = {
            "machine": machine("cpu", ("prefopt", "math-verify", "sympy")),
            "settings": {k: v for k, v in vars(arguments).items() if k != "output"},
            "rows_per_second": results,
        }
        Path(arguments.output).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000, help="of the mixture")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", help="JSON file for the results")
    return parser.parse_args()


def rows(kind: str, count: int) -> list[GradeItem]:
    """Different rows, half of them or so right."""
    patterns = KINDS[kind]
    items: list[GradeItem] = []
    for n in range(count):
        answer, output = patterns[n % len(patterns)]
        values = {"n": 2 * n + 3, "m": 2 * n + 3 + n % 2}
        items.append(GradeItem("", answer.format(**values), output.format(**values)))
    return items


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Rows per second by kind, and seconds until the engine is loaded."""
    total = sum(SHARES.values())
    by_kind = {k: rows(k, max(1, arguments.rows * s // total)) for k, s in SHARES.items()}
    mixture = [item for items in by_kind.values() for item in items]
    result: dict[str, float] = {}
    with Grader(name, workers=arguments.workers) as grader:
        start = time.perf_counter()
        grader.grade(by_kind["symbols"][: 8 * arguments.workers])
        result["seconds_to_start"] = round(time.perf_counter() - start, 2)
        for kind, items in {**by_kind, "mixture": mixture}.items():
            start = time.perf_counter()
            grader.grade(items)
            result[kind] = round(len(items) / (time.perf_counter() - start), 1)
    print(name, result, flush=True)
    return result


if __name__ == "__main__":
    main()
