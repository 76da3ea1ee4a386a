"""Picture of the study of DICE: lengths over the rounds, and the three win rates after the last one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tables import last_stages, stages

from prefopt.evals.cells import Row, mean_and_error

COLOURS = {
    "alpha auto": "#0072b2",
    "alpha 0": "#d55e00",
    "twice alpha": "#56b4e9",
    "gamma 0": "#009e73",
    "gamma 1": "#999999",
}
RATES = {
    "raw": ("judge with a taste for length", "s"),
    "length_controlled": ("the same, length-controlled", "o"),
    "true": ("without the taste", "x"),
}


def draw(by_arm: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Means over seeds with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms = [arm for arm in COLOURS if by_arm.get(arm)]
    start = [_mean(found.values(), "length") for found in stages(by_arm.get("DPO", ())).values()]
    for arm in arms:
        rounds = stages(by_arm[arm])
        means = start + [_mean(found.values(), "length") for _, found in sorted(rounds.items())]
        x = range(1 - len(start), len(rounds) + 1)
        left.errorbar(
            list(x), [m for m, _ in means], yerr=[e for _, e in means],
            label=arm, color=COLOURS[arm], marker="o", markersize=4, linewidth=1.2,
        )  # fmt: skip
    left.set_xticks(range(3), ["DPO", "round 1", "round 2"])
    left.set_ylabel("length of answers, characters")
    left.legend(fontsize=8, loc="upper left")
    for rate, (label, marker) in RATES.items():
        cells = [_mean(last_stages(by_arm[arm]).values(), rate) for arm in arms]
        right.errorbar(
            range(len(arms)), [m for m, _ in cells], yerr=[e for _, e in cells],
            label=label, color="black", marker=marker, linestyle="none", fillstyle="none",
        )  # fmt: skip
    right.axhline(50, color="0.6", linewidth=0.8)
    right.set_xticks(range(len(arms)), arms, fontsize=8)
    right.set_ylabel("win rate over DPO after the last round, %")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _mean(rows: Iterable[Row], name: str) -> tuple[float, float]:
    return mean_and_error([row[name] for row in rows])
