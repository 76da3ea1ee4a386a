"""What temperature does to solutions and to tails after a correct front, on both worlds.

    python recipes/scdpo/temperatures.py --output temperatures

Whole solutions of held-out problems show how accuracy falls (figure 5 of the paper); tails after a random front of the
right solution show which errors a temperature makes: is the first new step wrong, or is the text unreadable? Rising
schedules are measured beside constant temperatures. Each line of results.jsonl is one cell; started again, the script
goes on where it stopped. At the end it draws temperatures.png and prints the tables of README.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tasks import CodeTask, Task, TextTask, Writing, find_schedule, open_sandbox, random_fronts

from prefopt.evals.cells import Cells, Row
from prefopt.generate.journal import Journal
from prefopt.generate.schedule import PRESETS
from prefopt.grade.statistics import wilson
from prefopt.models.load import load_model

CONSTANT = ["0", "0.6", "0.8", "1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7"]
RISING = ["paper", "code", "mathcoder-math", "internlm-math"]
COLOURS = {"right": "#2e9e5b", "first": "#e08a00", "unreadable": "#c2185b"}
COLUMNS = (
    *("whole: right", "whole: unreadable", "tails: right", "tails: unreadable"),
    *("tails: first new step wrong", "tails: wrong and readable"),
)
TITLES = {"text": "chain of thought", "code": "code-integrated"}


def main() -> None:
    """Measure what is missing, then draw and print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = Cells(arguments.output / "results.jsonl")
    with Journal(arguments.output / "journal.sqlite") as journal, open_sandbox() as sandbox:
        tasks = {"text": TextTask(journal), "code": CodeTask(sandbox, journal)}
        for name in arguments.tasks:
            measure_task(tasks[name], rows, arguments)
    wanted = [
        {"task": name, "schedule": s, "kind": kind, "problems": arguments.problems}
        for name in arguments.tasks
        for kind in ("whole", "tail")
        for s in arguments.schedules
    ]
    found = rows.of(wanted)
    draw(found, arguments.output / "temperatures.png")
    text = tables(found)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("temperatures"))
    found.add_argument("--tasks", nargs="+", choices=TITLES, default=list(TITLES))
    found.add_argument("--schedules", nargs="+", default=[*CONSTANT, *RISING])
    found.add_argument("--problems", type=int, default=500, help="held-out problems of a cell")
    return found


def measure_task(task: Task[Any], rows: Cells, arguments: argparse.Namespace) -> None:
    """All cells of one task."""
    problems = task.problems("test", arguments.problems, 0)
    wanted = {
        "whole": [Writing(problem) for problem in problems],
        "tail": random_fronts(task, problems, seed=0),
    }
    generator = task.generator(load_model(task.base()))
    for name in arguments.schedules:
        for kind, writings in wanted.items():
            key = {
                "task": task.name,
                "schedule": name,
                "kind": kind,
                "problems": arguments.problems,
            }
            if rows.has(key):
                continue
            start = time.perf_counter()
            done = task.write(writings, generator, find_schedule(name), purpose=f"{kind}/{name}")
            counts = {
                "right": sum(w.correct for w in done),
                "unreadable": sum(not w.readable for w in done),
                "first_wrong": sum(w.first_new_wrong for w in done),
                "first_wrong_readable": sum(w.first_new_wrong and w.readable for w in done),
                "usable": sum(not w.correct and w.readable for w in done),
            }
            rows.append({**key, **counts, "seconds": round(time.perf_counter() - start, 2)})
            print(line(rows.rows[-1]), flush=True)


def line(row: Row) -> str:
    """A cell for people."""
    shares = "  ".join(
        f"{key.replace('_', ' ')} {100 * row[key] / row['problems']:.1f}%"
        for key in ("right", "unreadable", "first_wrong")
    )
    return f"{row['task']:5} {row['kind']:6} {row['schedule']:15} {shares}  {row['seconds']:.1f} s"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: whole solutions, then tails, of each task; with 95% Wilson intervals."""
    parts: list[str] = []
    for task, title in TITLES.items():
        mine = {(row["kind"], row["schedule"]): row for row in rows if row["task"] == task}
        if not mine:
            continue
        parts += [
            f"**{title}**, {next(iter(mine.values()))['problems']} problems a cell",
            "",
            f"| temperature | {' | '.join(COLUMNS)} |",
            f"|{'---|' * 7}",
        ]
        for name in dict.fromkeys(row["schedule"] for row in mine.values()):
            whole, tail = mine.get(("whole", name)), mine.get(("tail", name))
            cells = [share(whole, "right"), share(whole, "unreadable")]
            cells += [share(tail, k) for k in ("right", "unreadable", "first_wrong", "usable")]
            parts.append(f"| {'greedy' if name == '0' else name} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def share(row: Row | None, key: str) -> str:
    """A percentage with its interval."""
    if row is None:
        return "-"
    low, high = wilson(row[key], row["problems"])
    return f"{100 * row[key] / row['problems']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each task: lines over constant temperatures, a cross for each rising schedule at its cap."""
    tasks = [task for task in TITLES if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(5.6 * len(tasks), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        mine = [row for row in rows if row["task"] == task]
        plot(axes, mine, "whole", "right", COLOURS["right"], "solutions right")
        plot(axes, mine, "tail", "first_wrong", COLOURS["first"], "tails: first new step wrong")
        plot(axes, mine, "tail", "unreadable", COLOURS["unreadable"], "tails: unreadable")
        axes.set_title(TITLES[task])
        axes.set_xlabel("temperature (crosses: rising schedules, at their cap)")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("share")
    figure.savefig(path, dpi=150)


def plot(axes: Axes, rows: Sequence[Row], kind: str, key: str, colour: str, label: str) -> None:
    """One measure over temperature."""
    mine = [row for row in rows if row["kind"] == kind]
    steady = sorted(
        (float(row["schedule"]), row[key] / row["problems"])
        for row in mine
        if row["schedule"] not in PRESETS
    )
    if steady:
        axes.plot(*zip(*steady, strict=True), color=colour, marker="o", markersize=3, label=label)
    rising = [
        (PRESETS[row["schedule"]].cap, row[key] / row["problems"])
        for row in mine
        if row["schedule"] in PRESETS
    ]
    if rising and kind == "tail":
        axes.scatter(*zip(*rising, strict=True), marker="x", color=colour, zorder=3)


if __name__ == "__main__":
    main()
