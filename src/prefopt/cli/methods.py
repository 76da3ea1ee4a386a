"""`prefopt methods`: the training methods, or every key of one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

    from prefopt.config import Key

NAME = "methods"
HELP = """\
List the training methods, or all recipe keys of one method.

Without NAME: summary, paper and own keys of each method. With NAME: every key, default and meaning."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the optional name."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a method, e.g. dpo")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns 0."""
    from rich.console import Console

    console = Console()
    if arguments.name is None:
        console.print(_methods_table())
        return 0

    from prefopt.config import keys_of
    from prefopt.methods.base import find_method

    method = find_method(arguments.name)
    console.print(f"{method.name}: {method.summary}", markup=False, highlight=False)
    if method.paper:
        console.print(method.paper, markup=False, highlight=False)
    for title, own in (("Keys of this method", True), ("Keys of every recipe", False)):
        keys = keys_of(method.config, own=own)
        if keys:
            console.print(_keys_table(title, keys))
    return 0


def _methods_table() -> Table:
    from rich.table import Table
    from rich.text import Text

    from prefopt.config import keys_of
    from prefopt.methods.base import find_method, method_names

    table = Table("method", "summary", "paper", "own keys", title_justify="left")
    for name in method_names():
        method = find_method(name)
        keys = [
            key.name if key.required else f"{key.name}={_default(key)}"
            for key in keys_of(method.config, own=True)
        ]
        cells = (name, method.summary, method.paper or "-", "\n".join(keys) or "-")
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _keys_table(title: str, keys: list[Key]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("key", "default", "meaning", title=title, title_justify="left")
    table.columns[0].no_wrap = True
    for key in keys:
        default = "(required)" if key.required else _default(key)
        table.add_row(*(Text(cell) for cell in (key.name, default, key.description)))
    return table


def _default(key: Key) -> str:
    """The default as it would stand in a recipe."""
    import json

    return key.default if isinstance(key.default, str) and key.default else json.dumps(key.default)
