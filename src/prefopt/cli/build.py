"""`prefopt build`: make the preference data that a recipe describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.cli._recipe import add_recipe_arguments, read_config

if TYPE_CHECKING:
    import argparse

NAME = "build"
HELP = """\
Make the preference data that the section `build` of a recipe describes.

Samples, grades, judges and pairs as the method says. Everything generated is kept in a journal in the folder of the
build: started again, the same command goes on where it stopped and repeats nothing. `prefopt train` with the same
recipe then trains on what was built."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe."""
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build; returns 0."""
    config = read_config(arguments.recipe, arguments.overrides)

    from prefopt.methods.base import build

    print(build(config))
    return 0
