"""What has to come out of the study of DICE at any size, tested on its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tables import USUAL, last_stages, stages

from prefopt.evals.cells import Row
from prefopt.grade.statistics import paired_t

KEPT = 0.10
"""Part of its length by which a policy may differ from the model that it started from."""


def gates(by_arm: Mapping[str, Sequence[Row]]) -> list[str]:
    """Markdown: each expectation, what was found (mean, 95% of Student's t over seeds), and whether it holds."""
    if not all(by_arm.get(arm) for arm in ("DPO", USUAL, "alpha 0")):
        return []
    start = last_stages(by_arm["DPO"])
    lines = ["| expected | found | holds |", "|---|---|---|"]
    policies = {"DPO": start} | {
        f"{USUAL}, round {number}": found for number, found in sorted(_rounds(by_arm[USUAL]))
    }
    for name, found in policies.items():
        gaps = [100 * row["agreement"] - 50 for row in found.values()]
        expected = (
            f"{name}: the reward agrees with the oracle more often than chance, points above 50"
        )
        lines.append(_line(expected, gaps, sign=1))
    before = start
    for number, found in sorted(_rounds(by_arm["alpha 0"])):
        gaps = [found[seed]["length"] - before[seed]["length"] for seed in found]
        lines.append(_line(f"alpha 0: answers grow in round {number}, characters", gaps, sign=1))
        before = found
    usual = last_stages(by_arm[USUAL])
    gaps = [before[s]["length_controlled"] - usual[s]["length_controlled"] for s in usual]
    expected = f"alpha 0 is below {USUAL} in length-controlled win rate, points"
    lines.append(_line(expected, gaps, sign=-1))
    changes = [usual[s]["length"] / start[s]["length"] - 1 for s in usual]
    farthest = max(changes, key=abs)
    holds = "yes" if abs(farthest) <= KEPT else "no"
    expected = f"{USUAL}: answers stay within {KEPT:.0%} of the start, the farthest seed"
    return [*lines, f"| {expected} | {farthest:+.1%} | {holds} |"]


def _rounds(rows: Sequence[Row]) -> list[tuple[int, dict[int, Row]]]:
    return list(stages(rows).items())


def _line(expected: str, gaps: Sequence[float], *, sign: int) -> str:
    if len(gaps) < 2:
        return f"| {expected} | {gaps[0]:+.1f} | - |"
    test = paired_t(gaps)
    holds = test.low > 0 if sign > 0 else test.high < 0
    found = f"{test.value:+.1f} ({test.low:+.1f} to {test.high:+.1f})"
    return f"| {expected} | {found} | {'yes' if holds else 'no'} |"
