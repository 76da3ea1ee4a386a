"""Options of the commands that let a model write: which one, where it runs, how its texts are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import argparse

    from prefopt.evals.writer import WriterSettings
    from prefopt.values import JsonValue

_SERVER_ONLY = (
    "endpoint",
    "tokenizer",
    "concurrency",
    "timeout",
    "patience",
    "extra_body",
    "known_as",
)
_LOCAL_ONLY = ("device", "dtype", "batch_size")


def add_writer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a server is used and how a model is loaded."""
    server = parser.add_argument_group("a model behind a server")
    server.add_argument(
        "--server", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1"
    )
    server.add_argument("--endpoint", choices=["chat", "completions"], help="(chat)")
    server.add_argument(
        "--tokenizer", metavar="DIR", help="its chat template writes the text for completions"
    )
    server.add_argument("--concurrency", type=int, metavar="N", help="requests at a time (16)")
    server.add_argument("--timeout", type=float, metavar="S", help="seconds for one reply (120)")
    server.add_argument(
        "--patience",
        type=float,
        metavar="S",
        help="how long a server in trouble is tried again (600); one that never answered, 10 at most",
    )
    add_extra_body(server)
    server.add_argument(
        "--known-as",
        metavar="URL",
        help="the first address of the same model: what the journal holds from there is used",
    )
    local = parser.add_argument_group("a model in this process")
    local.add_argument("--device", help="auto, cpu, cuda, cuda:1 (auto)")
    local.add_argument("--dtype", help="auto (as stored), float32, bfloat16, float16 (auto)")
    local.add_argument("--batch-size", type=int, metavar="N", help="rows decoded together (16)")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, tokens: int) -> None:
    """Declare how texts are drawn."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (0)"
    )
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus (1)")
    group.add_argument(
        "--max-new-tokens", type=int, default=tokens, metavar="N", help=f"longest text ({tokens})"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")


def add_extra_body(
    group: argparse._ArgumentGroup,  # pyright: ignore[reportPrivateUsage] - it has no public name
) -> None:
    """Declare fields of requests that only the user's server knows."""
    group.add_argument(
        "--extra-body",
        metavar="JSON",
        help="further fields of each request; null leaves one of ours out: '{\"temperature\": null}'",
    )


def writer_settings(arguments: argparse.Namespace, model: str) -> WriterSettings:
    """Who writes.

    Raises:
        ConfigError: an option that belongs to the other kind of model, or --extra-body is no JSON object.
    """
    from prefopt.errors import ConfigError
    from prefopt.evals.writer import WriterSettings

    remote = arguments.server is not None
    for option in _LOCAL_ONLY if remote else _SERVER_ONLY:
        if getattr(arguments, option) is not None:
            where = "a model in this process, and --server was given" if remote else "--server URL"
            raise ConfigError(f"--{option.replace('_', '-')} belongs to {where}; leave it out")
    chosen = {
        option: getattr(arguments, option)
        for option in (_SERVER_ONLY if remote else _LOCAL_ONLY)
        if getattr(arguments, option) is not None
    }
    if arguments.extra_body is not None:
        chosen["extra_body"] = read_fields(arguments.extra_body)
    return WriterSettings(model=model, server=arguments.server, **chosen)


def read_fields(text: str) -> dict[str, JsonValue]:
    """What `--extra-body` says.

    Raises:
        ConfigError: it is no JSON object.
    """
    import json

    from prefopt.errors import ConfigError

    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(
            f"--extra-body is {text!r}; give a JSON object in single quotes, such as '{{\"top_k\": 20}}'"
        )
    return cast("dict[str, JsonValue]", fields)
