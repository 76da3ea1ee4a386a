"""Who writes texts for `prefopt judge` and `prefopt generate`: a model in this process, or one behind a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.errors import ConfigError
from prefopt.evals.earlier import require_replaceable
from prefopt.evals.files import read_facts
from prefopt.evals.target import Server, find_device, find_target
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.progress import say
from prefopt.values import JsonValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """A model, and how it is reached."""

    model: str
    """Run folder, model or adapter folder, hub id; with a server the name there."""
    server: str | None = None
    """Address, usually ending in /v1; None: the model is loaded in this process."""
    endpoint: Literal["chat", "completions"] = "chat"
    tokenizer: str | None = None
    """Folder whose chat template writes the text for `completions`."""
    concurrency: int = 16
    timeout: float = 120.0
    patience: float = Server("", "").patience
    extra_body: Mapping[str, JsonValue] | None = None
    known_as: str | None = None
    """As for `prefopt.generate.openai.OpenAIGenerator`, all five."""
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16


class Opened(NamedTuple):
    """Someone who writes."""

    generator: Generator
    talks: bool
    """Whether conversations can be put: a server, or a tokenizer with a chat template."""


def open_writer(settings: WriterSettings) -> Opened:
    """The generator; what does not fit into a local model's context is refused, as servers do it.

    Raises:
        ModelError: the model or tokenizer cannot be loaded.
        ConfigError: a setting is out of range, or the address is none.
        MissingExtraError: the client of servers is not installed.
    """
    return _open_local(settings) if settings.server is None else _open_remote(settings)


def tell_of_strangers(journal: Journal, generator: Generator) -> None:
    """A line where a journal holds texts, but none by this model on this server: perhaps it has only moved."""
    count = journal.strangers(generator.identity)
    if count:
        say(
            f"{journal.path}: holds {count:,} texts by another model or address, which are not used; if this is the "
            "same model at a new address, give its first one with --known-as"
        )


def require_same_writer(
    folder: Path,
    settings: Mapping[str, JsonValue],
    *,
    overwrite: bool,
    file: str,
    known_as: str | None,
) -> None:
    """As `prefopt.evals.earlier.require_replaceable`; the message names the address that earlier texts are known by.

    Args:
        folder, settings, overwrite, file: as there.
        known_as: the address that this run was given in place of its server's.

    Raises:
        ConfigError, RecordError: as there.
    """
    try:
        require_replaceable(folder, settings, overwrite=overwrite, file=file)
    except ConfigError as error:
        facts = read_facts(folder, file)
        before = facts.get("settings")
        if not isinstance(before, dict) or before.get("generator") == settings.get("generator"):
            raise
        known, here = facts.get("known_as") or before.get("server"), settings.get("server")
        if known is None or here is None or known == (known_as or here):
            raise
        raise ConfigError(
            f"{error}; if this is the same model at a new address, give --known-as {known}"
        ) from None


def _open_remote(settings: WriterSettings) -> Opened:
    from prefopt.generate.openai import OpenAIGenerator

    tokenizer: PreTrainedTokenizerFast | None = None
    if settings.tokenizer is not None:
        if settings.endpoint == "chat":
            raise ConfigError(
                "--tokenizer writes the text for --endpoint completions; the chat endpoint uses the server's own"
            )
        from prefopt.models.load import load_tokenizer

        tokenizer = load_tokenizer(settings.tokenizer)
    generator = OpenAIGenerator(
        settings.model,
        base_url=str(settings.server),
        endpoint=settings.endpoint,
        tokenizer=tokenizer,
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        patience=settings.patience,
        extra_body=settings.extra_body,
        known_as=settings.known_as,
    )
    templated = tokenizer is not None and bool(tokenizer.chat_template)
    return Opened(generator, settings.endpoint == "chat" or templated)


def _open_local(settings: WriterSettings) -> Opened:
    from prefopt.generate.local import LocalGenerator
    from prefopt.models.load import ModelSettings, load_model

    target = find_target(settings.model)
    loaded = load_model(
        target.model, ModelSettings(dtype=settings.dtype, device=find_device(settings.device))
    )
    generator = LocalGenerator(
        loaded.model, loaded.tokenizer, batch_size=settings.batch_size, overlong="refuse"
    )
    return Opened(generator, bool(loaded.tokenizer.chat_template))
