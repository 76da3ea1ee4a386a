"""`prefopt label`: a person marks the first wrong step of each solution, in a terminal or on a local web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

NAME = "label"
HELP = """\
Mark the first wrong step of each solution by hand.

FILE has one solution a line: id, question, text, and optionally gold (a worked solution) and answer; a build
writes it as errors.jsonl. Every label is on disk at once; stop whenever you like and start the same command again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file, where labels go, and how to ask."""
    parser.add_argument("file", metavar="FILE", type=Path, help="wrong solutions (errors.jsonl)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="LABELS",
        type=Path,
        help="file of labels, appended to (default: labels.jsonl beside FILE)",
    )
    parser.add_argument("--annotator", metavar="NAME", help="who labels (default: your user name)")
    parser.add_argument(
        "--skipped", action="store_true", help="show what was skipped or unclear again"
    )
    parser.add_argument("--web", action="store_true", help="a page in the browser")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="of the page (default: any free port)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where the page is served (127.0.0.1: this machine only)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Label until all is done or the person stops; returns 0."""
    from prefopt.errors import ConfigError
    from prefopt.label.labels import LabelStore, read_items
    from prefopt.label.terminal import label_in_terminal
    from prefopt.label.web import serve_labels
    from prefopt.progress import say

    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port {arguments.port}: give a number from 1 to 65535")
    items = read_items(arguments.file)
    output: Path = arguments.output or arguments.file.with_name("labels.jsonl")
    if output.resolve() == arguments.file.resolve():
        raise ConfigError(f"--output {output} is the file with the solutions; choose another")
    with LabelStore(output, annotator=arguments.annotator) as store:
        try:
            if arguments.web:
                serve_labels(
                    items,
                    store,
                    host=arguments.host,
                    port=arguments.port,
                    skipped=arguments.skipped,
                )
            else:
                label_in_terminal(items, store, skipped=arguments.skipped)
        except KeyboardInterrupt:
            say(f"\n{store.summary(items)}")
    print(output)
    return 0
