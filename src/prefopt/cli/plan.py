"""`prefopt plan`: what a recipe would do, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.cli._recipe import add_recipe_arguments, read_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

NAME = "plan"
HELP = """\
Show what a recipe would do, without training.

Reads and tokenises the data as training would and prints steps, tokens, what sharing prefixes saves, the
longest record and an estimate of the peak memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe."""
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns 0."""
    config = read_config(arguments.recipe, arguments.overrides)

    from rich.console import Console
    from rich.table import Table

    from prefopt.methods.base import plan

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in plan_lines(plan(config)):
        table.add_row(name, value)
    Console().print(table)
    return 0


def plan_lines(plan: Mapping[str, object]) -> list[tuple[str, str]]:
    """The plan for people, (what, how much); keys as in `plan.json`, absent ones are left out."""
    lines: list[tuple[str, str]] = []
    for key, name in (
        ("layout", "layout"),
        ("steps", "optimiser steps"),
        ("batch_size", "records per step"),
        ("world_size", "processes"),
        ("examples", "records"),
        ("responses", "responses"),
        ("pairs", "pairs"),
        ("tokens_rows", "tokens in separate rows"),
        ("tokens_tree", "tokens stored as trees"),
        ("tokens_scored", "tokens scored"),
    ):
        if plan.get(key) is not None:
            lines.append((name, _number(plan[key])))
    rows, tree = plan.get("tokens_rows"), plan.get("tokens_tree")
    if isinstance(rows, int) and isinstance(tree, int) and rows:
        lines.append(("saved by sharing", f"{100 * (rows - tree) / rows:.1f}%"))
    longest = plan.get("longest")
    if isinstance(longest, dict):
        lines.append(
            ("longest record", f"{_number(longest.get('tokens'))} tokens ({longest.get('id')})")
        )
    return [*lines, *_memory_lines(plan)]


def _memory_lines(plan: Mapping[str, object]) -> list[tuple[str, str]]:
    peak, parts = plan.get("peak_memory_bytes"), plan.get("memory")
    if not isinstance(peak, int | float):
        return []
    lines = [("peak memory, estimated", f"{_bytes(peak)} per process")]
    if isinstance(parts, dict):
        lines += [(f"  {name}", _bytes(value)) for name, value in parts.items()]
    return lines


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
