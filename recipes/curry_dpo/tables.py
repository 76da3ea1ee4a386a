"""Tables of the study of Curry-DPO: means over seeds, and differences of arms paired over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefopt.evals.cells import Row, difference_cells, mean_cell

CONTRASTS = (
    ("iterative, easy to hard", "single run"),
    ("iterative, easy to hard", "pooled"),
    ("single run", "pooled"),
    ("pooled", "single pair, easiest"),
    ("single pair, middle", "single pair, easiest"),
    ("single pair, hardest", "single pair, easiest"),
    ("iterative, easy to hard", "iterative, hard to easy"),
    ("iterative, easy to hard", "iterative, random"),
)
COLUMNS = {
    "reward": "reward",
    "kl": "KL to SFT",
    "easy": "right on easy pairs, %",
    "medium": "medium, %",
    "hard": "hard, %",
    "faithful": "faithful, %",
}
COMPARED = ("reward", "kl", "easy", "hard")
PERCENT = {"easy", "medium", "hard", "faithful"}


def arm_table(by_arm: Mapping[str, Sequence[Row]]) -> list[str]:
    """Mean over seeds and its standard error."""
    lines = [
        f"| arm | seeds | {' | '.join(COLUMNS.values())} |",
        f"|---|{'---:|' * (1 + len(COLUMNS))}",
    ]
    for arm, found in by_arm.items():
        cells = [
            mean_cell([row.get(k) for row in found], scale=form(k)[0], digits=form(k)[1])
            for k in COLUMNS
        ]
        lines.append(f"| {arm} | {len(found)} | {' | '.join(cells)} |")
    return lines


def contrast_table(by_arm: Mapping[str, Sequence[Row]]) -> list[str]:
    """Differences of two arms on the same seeds, with p-values."""
    head = [cell for name in COMPARED for cell in (COLUMNS[name], "p")]
    lines = [f"| difference | {' | '.join(head)} |", f"|---|{'---|---:|' * len(COMPARED)}"]
    for first, second in CONTRASTS:
        if by_arm.get(first) and by_arm.get(second):
            cells = [difference(by_arm[first], by_arm[second], name) for name in COMPARED]
            lines.append(f"| {first} - {second} | {' | '.join(cells)} |")
    return lines


def difference(first: Sequence[Row], second: Sequence[Row], column: str) -> str:
    """The mean difference with its interval, and its p-value."""
    other = {row["seed"]: row[column] for row in second}
    scale, digits = form(column)
    gaps = [scale * (row[column] - other[row["seed"]]) for row in first if row["seed"] in other]
    return " | ".join(difference_cells(gaps, digits=digits))


def form(column: str) -> tuple[float, int]:
    """What a number is multiplied with, and its digits."""
    return (100, 1) if column in PERCENT else (1, 3)
