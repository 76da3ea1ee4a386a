"""What the verbs that take a recipe share: their arguments, and the way from a file to a checked config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.config import RunConfig


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare RECIPE and the overrides that may follow it."""
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="YAML file of settings")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="settings that replace those of the recipe, e.g. learning_rate=1e-6 columns.prompt=question",
    )


def read_config(recipe: Path, overrides: Sequence[str]) -> RunConfig:
    """The checked config of a recipe; its key `method` decides which further keys there are.

    Raises:
        StorageError: the file cannot be read.
        ConfigError: any mistake in it or in the overrides.
    """
    from prefopt.config import load_recipe, parse
    from prefopt.errors import ConfigError

    raw = load_recipe(recipe, overrides)

    from prefopt.methods.base import find_method, method_names  # after what needs no torch

    name = raw.get("method")
    where = raw.origins.get("method", raw.source)
    if not isinstance(name, str):
        found = f"is {name!r}" if "method" in raw else "is missing"
        raise ConfigError(f"{where}: key 'method' {found}; set one of {', '.join(method_names())}")
    try:
        method = find_method(name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return parse(raw, method.config)
