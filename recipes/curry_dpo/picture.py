"""Picture of the study of Curry-DPO: what reward each arm buys with which KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefopt.evals.cells import Row, mean_and_error

STYLES = {
    "single pair, easiest": ("#0072b2", "v", "-"),
    "single pair, middle": ("#56b4e9", "v", "-"),
    "single pair, hardest": ("#999999", "v", "-"),
    "pooled": ("#009e73", "o", "-"),
    "single run": ("#e69f00", "o", "-"),
    "iterative, easy to hard": ("#d55e00", "s", "-"),
    "iterative, hard to easy": ("#cc79a7", "s", "--"),
    "iterative, random": ("#000000", "s", ":"),
}

TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)


def draw(by_beta: Mapping[float, Mapping[str, Sequence[Row]]], path: Path) -> None:
    """A line for each arm, a point on it for each beta: means over seeds with standard errors of both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for arm, (colour, marker, line) in STYLES.items():
        cells = [by_arm[arm] for by_arm in by_beta.values() if by_arm.get(arm)]
        if not cells:
            continue
        (x, dx), (y, dy) = (
            zip(*[_mean(rows, name) for rows in cells], strict=True) for name in ("kl", "reward")
        )
        axes.errorbar(
            x, y, xerr=dx, yerr=dy, label=arm, color=colour, marker=marker, linestyle=line,
            linewidth=1.2, elinewidth=0.7, markersize=5,
        )  # fmt: skip
    betas = ", ".join(f"{beta:g}" for beta in sorted(by_beta, reverse=True))
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("KL to SFT per prompt, nats")
    axes.set_ylabel("mean reward of samples")
    axes.set_title(f"beta {betas} from left to right", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _mean(rows: Sequence[Row], name: str) -> tuple[float, float]:
    return mean_and_error([row[name] for row in rows])
