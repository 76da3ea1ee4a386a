"""`prefopt run`: all stages of a recipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prefopt.cli._recipe import add_recipe_arguments, read_config

if TYPE_CHECKING:
    import argparse

NAME = "run"
HELP = """\
Make the data, train, evaluate and report, as a recipe says.

The stages are those of `prefopt build`, `prefopt train` and `prefopt eval`, each left out where the recipe does not
have it. With build.rounds above 1 all of it is done again from the model of the round before. Started again, the
same command goes on where it stopped.

  accelerate launch --num_processes 8 -m prefopt run recipe.yaml

Several processes share the training; the first one makes the data and evaluates while the others wait."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe and what to do about an earlier training in the same folder."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew where the folder holds an earlier run (overwrite_output_dir=true)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run every stage, print the models; returns 0."""
    overrides = list(arguments.overrides)
    if arguments.overwrite:
        overrides.append("overwrite_output_dir=true")
    config = read_config(arguments.recipe, overrides)

    from prefopt.methods.base import run as run_stages

    done = run_stages(config)
    if int(os.environ.get("RANK", "0")) == 0:
        for each in done:
            print(each.run.model)
    return 0
