"""What the verbs that look at data share: how to name a source and how its rows become text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from prefopt.text.render import RenderSettings


class DataOptions(NamedTuple):
    """The options of a data source, checked."""

    split: str
    columns: dict[str, str]
    pairing: str


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare FILE, how to read it, and how it is formatted."""
    parser.add_argument(
        "file", metavar="FILE", help="data file, folder saved by datasets, or hub id"
    )
    parser.add_argument("--model", metavar="FOLDER", help="model or tokenizer folder: count tokens")
    parser.add_argument("--split", default="train", help="split of a saved or hub data set (train)")
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="what a column means, e.g. chosen=better; may be repeated",
    )
    parser.add_argument(
        "--pairing",
        default="best_vs_rest",
        choices=["best_vs_rest", "best_worst", "all", "adjacent"],
        help="pairs of ranked and scored lists (best_vs_rest)",
    )
    add_render_arguments(parser)


def add_render_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how records become text."""
    parser.add_argument(
        "--prompt-format",
        default="auto",
        choices=["auto", "chat", "text"],
        help="auto: strings stay text, conversations go through the chat template",
    )
    parser.add_argument(
        "--response-separator",
        default="",
        metavar="TEXT",
        help=r"between prompt and response (\n is a line break)",
    )
    parser.add_argument(
        "--chat-template", metavar="PATH", type=Path, help="instead of the tokenizer's own"
    )


def data_options(arguments: argparse.Namespace) -> DataOptions:
    """How the source is read.

    Raises:
        ConfigError: a `--column` is not of the form ROLE=NAME.
    """
    from prefopt.errors import ConfigError

    columns: dict[str, str] = {}
    given: Sequence[str] = arguments.column
    for pair in given:
        role, equals, name = pair.partition("=")
        if not (role and equals and name):
            raise ConfigError(f"--column {pair}: write ROLE=NAME, such as --column chosen=better")
        columns[role] = name
    return DataOptions(arguments.split, columns, arguments.pairing)


def render_settings(arguments: argparse.Namespace) -> RenderSettings:
    """How records become text; the template is the tokenizer's, see `open_tokenizer`."""
    from prefopt.text.render import RenderSettings

    separator: str = arguments.response_separator
    return RenderSettings(
        prompt_format=arguments.prompt_format,
        separator=separator.replace("\\n", "\n").replace("\\t", "\t"),
    )


def open_tokenizer(arguments: argparse.Namespace) -> PreTrainedTokenizerFast:
    """The tokenizer of `--model`, with the template of `--chat-template`."""
    from prefopt.models.load import load_tokenizer

    return load_tokenizer(arguments.model, chat_template=arguments.chat_template)
