"""`prefopt train`: train a model as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.cli._recipe import add_recipe_arguments, read_config

if TYPE_CHECKING:
    import argparse

NAME = "train"
HELP = """\
Train a model as a recipe says.

The run folder (output_dir) gets the resolved recipe, the ledger of the data, metrics, checkpoints, the
trained model and its card. On several GPUs: accelerate launch -m prefopt train RECIPE"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe and what to do about an earlier run in the same folder."""
    add_recipe_arguments(parser)
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint (resume_from_checkpoint=true)",
    )
    earlier.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what an earlier run left in the folder (overwrite_output_dir=true)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; returns 0."""
    overrides = list(arguments.overrides)
    if arguments.resume:
        overrides.append("resume_from_checkpoint=true")
    if arguments.overwrite:
        overrides.append("overwrite_output_dir=true")
    config = read_config(arguments.recipe, overrides)

    from prefopt.methods.base import train

    train(config)
    return 0
