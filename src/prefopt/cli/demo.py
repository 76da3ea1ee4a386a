"""`prefopt demo`: the main job from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

NAME = "demo"
HELP = """\
Show the main job on a small exact world: no data or model needed.

Trains a base model from scratch, collects its wrong solutions, locates the first wrong step, samples
corrections, trains DPO and Step-DPO on equally many pairs, evaluates all three and writes a report. Takes a few
minutes on two cores; started again, it goes on where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to write and the seed."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="default: runs/demo",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="problems and training order (default 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run, print the table and the path of the report; returns 0."""
    from rich.console import Console
    from rich.table import Table

    from prefopt.demo import DemoSettings, run_demo
    from prefopt.report.page import summary_table

    result = run_demo(arguments.output, DemoSettings(seed=arguments.seed))
    table = Table(title="accuracy on held-out problems, 95% intervals")
    for column in ("model", "accuracy", "interval", "final margin", "tokens saved"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in summary_table(result.runs):
        table.add_row(*row.cells())
    console = Console()
    console.print(table)
    console.print(f"report: {result.report}", soft_wrap=True)
    return 0
