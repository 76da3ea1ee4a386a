"""`prefopt report`: one HTML page about one run or a comparison of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

NAME = "report"
HELP = """\
Write one HTML page about one run, or compare several.

The page holds its plots and styles and opens without a network; a summary is printed too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run folders and the page."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run folder (output_dir of a recipe)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the page (default: report.html in the run folder, for several runs in the current folder)",
    )
    parser.add_argument("--title", help="heading of the page")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, print a summary and the page's path; returns 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from prefopt.report.page import summary_table, write_report

    runs: list[Path] = arguments.runs
    output = arguments.output or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    page = write_report(runs, output, title=arguments.title)
    table = Table("run", "accuracy", "95% interval", "margin", "tokens saved", box=None)
    for row in summary_table(runs):
        table.add_row(*(Text(cell) for cell in row.cells()))
    Console().print(table)
    print(page)
    return 0
