"""`prefopt methods`: the training methods and objectives, or everything about one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from rich.console import Console
    from rich.table import Table

    from prefopt.config import Key, RunConfig
    from prefopt.runs.method import Method

NAME = "methods"
HELP = """\
List the training methods and objectives, or all about one of them.

Without NAME: summary, paper and own keys of each method, and one line about each objective (the values of
loss_type). With the NAME of a method: every key, default and meaning. With that of an objective: its formula,
sources and parameters. A name of both shows both."""

OBJECTIVES_TITLE = "Objectives (loss_type of pair methods)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the optional name."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a method or objective, e.g. dpo")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, or what is known about one name; returns 0.

    Raises:
        ConfigError: there is neither a method nor an objective of that name; names the nearest.
    """
    from rich.console import Console

    from prefopt.config import unknown_name
    from prefopt.methods.base import method_names
    from prefopt.objectives import objective_names

    console, name = Console(), arguments.name
    methods, objectives = method_names(), objective_names()
    if name is None:
        console.print(_methods_table())
        console.print()
        console.print(_objectives_table())
        return 0
    if name not in {*methods, *objectives}:
        raise unknown_name(
            "method or objective", name, list(dict.fromkeys([*methods, *objectives]))
        )
    if name in methods:
        _print_method(console, name)
    if name in methods and name in objectives:
        console.print()
    if name in objectives:
        _print_objective(console, name)
    return 0


def _print_method(console: Console, name: str) -> None:
    from prefopt.config import keys_of, sections_of
    from prefopt.methods.base import find_method

    method = find_method(name)
    console.print(f"{method.name}: {method.summary}", markup=False, highlight=False)
    if method.paper:
        console.print(method.paper, markup=False, highlight=False)
    for title, own in (("Keys of this method", True), ("Keys of every recipe", False)):
        keys = keys_of(method.config, own=own)
        if keys:
            console.print(_keys_table(title, keys))
        for section in sections_of(method.config) if own else ():
            console.print(_keys_table(f"Keys in the section {section.name}", section.keys))


def _print_objective(console: Console, name: str) -> None:
    """Its docstring as it stands, then the parameters with their defaults."""
    import inspect

    from prefopt.objectives import find_objective, parameters_of

    objective = find_objective(name)
    console.print(f"Objective {name}", markup=False, highlight=False)
    # Printed as written, so that formulas keep their lines.
    text = inspect.getdoc(objective) or ""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    defaults = parameters_of(objective)
    if defaults:
        listed = ", ".join(f"{key}={_literal(value)}" for key, value in defaults.items())
        console.print(f"\nDefaults: {listed}", markup=False, highlight=False, soft_wrap=True)


def _objectives_table() -> Table:
    import inspect

    from rich.table import Table
    from rich.text import Text

    from prefopt.objectives import find_objective, objective_names

    table = Table("objective", "summary", title=OBJECTIVES_TITLE, title_justify="left")
    table.columns[0].no_wrap = True
    for name in objective_names():
        summary = (inspect.getdoc(find_objective(name)) or "").partition("\n")[0]
        table.add_row(Text(name), Text(summary))
    return table


def _methods_table() -> Table:
    from rich.table import Table
    from rich.text import Text

    from prefopt.methods.base import find_method, method_names

    table = Table("method", "summary", "paper", "own keys", title="Methods", title_justify="left")
    for name in method_names():
        method = find_method(name)
        cells = (name, method.summary, method.paper or "-", "\n".join(_own_keys(method)) or "-")
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _own_keys(method: Method[RunConfig]) -> list[str]:
    """`key=default` of what sets a method apart: the keys of objectives only where it has another default."""
    from prefopt.config import keys_of
    from prefopt.runs.mix import ObjectiveKeys

    shared = {key.name: key.default for key in keys_of(ObjectiveKeys, own=True)}
    del shared["loss_type"]
    return [
        key.name if key.required else f"{key.name}={_default(key)}"
        for key in keys_of(method.config, own=True)
        if key.name not in shared or key.default != shared[key.name]
    ]


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
    return _literal(key.default)


def _literal(value: object) -> str:
    """A value as it would stand in a recipe."""
    import json

    return value if isinstance(value, str) and value else json.dumps(value)
