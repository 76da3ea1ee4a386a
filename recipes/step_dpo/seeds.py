"""Step-DPO against DPO on the arithmetic world, several seeds and settings; prints the table of README.md.

    python recipes/step_dpo/seeds.py --output results.json

A seed changes problems, samples and the order of training; the base model is the same. Each cell is the mean accuracy
on 500 held-out problems over seeds, with its standard error, and the mean difference with a paired 95% interval
(Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from prefopt.demo import DemoSettings, run_demo

T_975 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""Student's t by degrees of freedom."""


def main() -> None:
    """Run all cells and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--problems", type=int, nargs="+", default=[350, 1000])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4])
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cells: list[dict[str, object]] = []
    for problems in arguments.problems:
        for rate in arguments.rates:
            runs = [run(seed, problems, rate, arguments.beta) for seed in range(arguments.seeds)]
            cells.append(
                {"problems": problems, "learning_rate": rate, "beta": arguments.beta, "runs": runs}
            )
            print(row(problems, rate, runs), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")


def run(seed: int, problems: int, rate: float, beta: float) -> dict[str, float]:
    """Accuracies of one seed and the number of pairs."""
    settings = DemoSettings()
    settings = replace(
        settings,
        seed=seed,
        problems=problems,
        test_problems=500,
        training={**settings.training, "learning_rate": rate, "beta": beta},
    )
    folder = Path(tempfile.mkdtemp())
    try:
        result = run_demo(folder, settings)
    finally:
        shutil.rmtree(folder)
    accuracies = {name: e.value for name, e in result.evaluations.items()}
    return {**accuracies, "pairs": result.counts["pairs"]}


def row(problems: int, rate: float, runs: list[dict[str, float]]) -> str:
    """One line of the table."""
    difference = [r["step_dpo"] - r["dpo"] for r in runs]
    half = T_975[len(runs) - 1] * error(difference)
    cells = [
        f"{100 * mean(runs, k):.1f} ± {100 * error([r[k] for r in runs]):.1f}"
        for k in ("base", "dpo", "step_dpo")
    ]
    return (
        f"| {problems} | {mean(runs, 'pairs'):.0f} | {rate:g} | {' | '.join(cells)} | "
        f"{100 * statistics.mean(difference):+.1f} ({100 * (statistics.mean(difference) - half):+.1f} to "
        f"{100 * (statistics.mean(difference) + half):+.1f}) |"
    )


def mean(runs: list[dict[str, float]], key: str) -> float:
    """Mean over seeds."""
    return statistics.mean(r[key] for r in runs)


def error(values: list[float]) -> float:
    """Standard error of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


if __name__ == "__main__":
    main()
