"""What is evaluated: a run folder, a model or adapter folder, a hub id, or a model behind a server.

Models are imported where they are loaded: evaluating one behind a server needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from prefopt.errors import ConfigError, ModelError
from prefopt.generate.base import Generator
from prefopt.models.locate import ADAPTER_CONFIG, CONFIG
from prefopt.text.styles import PromptStyle, find_style, style_names
from prefopt.values import JsonValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prefopt.generate.local import LocalGenerator

RUN_FILE = "run.yaml"
FINISHED_FILE = "finished.json"
MODEL_FOLDER = "model"
_TOKENIZER_FILE = "tokenizer.json"


class Target(NamedTuple):
    """A model and where it came from."""

    model: str
    """Folder or hub id that is loaded."""
    name: str
    """For tables and folders."""
    run: Path | None
    """The run folder that trained it, where the user gave that."""


class Server(NamedTuple):
    """An OpenAI-compatible server."""

    url: str
    model: str
    """The model's name on the server."""
    endpoint: Literal["chat", "completions"] | None = None
    """None: `chat` for conversations, `completions` for prompts that are plain text."""
    patience: float = 600.0
    """Seconds for which a request is tried again (`prefopt.generate.openai`)."""
    extra_body: Mapping[str, JsonValue] | None = None
    """Further fields of each request."""


def find_target(given: str) -> Target:
    """The model that a path or hub id means: a run folder stands for the model it trained.

    Raises:
        ModelError: a run folder whose training has not finished.
    """
    path = Path(given).expanduser()
    is_model = (path / CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file()
    if path.is_dir() and not is_model and (path / RUN_FILE).is_file():
        if not (path / MODEL_FOLDER).is_dir() or not (path / FINISHED_FILE).is_file():
            raise ModelError(
                f"{path}: the run has not finished training, so there is no {MODEL_FOLDER}/ to evaluate; go on with "
                "`prefopt train ... --resume`, or give one of its checkpoints"
            )
        return Target(str(path / MODEL_FOLDER), path.resolve().name, path)
    full = path.resolve() if path.exists() else path
    is_of_run = full.name == MODEL_FOLDER and (full.parent / RUN_FILE).is_file()
    return Target(given, full.parent.name if is_of_run else full.name, None)


def find_device(name: str) -> str:
    """torch's name of the device; `auto` is the first GPU, or the CPU where there is none."""
    if name != "auto":
        return name

    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_style(name: str | None, tokenizer: PreTrainedTokenizerFast | None) -> PromptStyle:
    """The style of that name; without one `chat`, where the model has a chat template.

    Args:
        name: as the user gave it.
        tokenizer: the model's; None for a server, which applies its own template.

    Raises:
        ConfigError: no name, and no chat template to fall back on; or a style that needs the missing template.
    """
    untemplated = tokenizer is not None and not tokenizer.chat_template
    if name is None and untemplated:
        texts = [style for style in style_names() if not find_style(style).chat]
        raise ConfigError(
            f"the tokenizer has no chat template, so the prompt style has to be named: --style {' | '.join(texts)}"
        )
    style = find_style(name or "chat")
    if style.chat and untemplated:
        raise ConfigError(
            f"style {style.name!r} needs a chat template, and the tokenizer has none; use --style plain, or another "
            "text style"
        )
    return style


def find_tokenizer(target: Target, *, server: bool) -> PreTrainedTokenizerFast | None:
    """The target's tokenizer; None for a server's model of which there is no folder here.

    Raises:
        ModelError: the folder holds no usable tokenizer.
    """
    if server and not (Path(target.model) / _TOKENIZER_FILE).is_file():
        return None

    from prefopt.models.load import load_tokenizer

    return load_tokenizer(target.model)


def open_local(target: Target, *, device: str, dtype: str, batch_size: int) -> LocalGenerator:
    """The target's model in this process; a prompt that fills its context is refused, as servers do it.

    Raises:
        ModelError: it cannot be loaded.
        ConfigError: an unknown device or dtype, or a batch size below 1.
    """
    from prefopt.generate.local import LocalGenerator
    from prefopt.models.load import ModelSettings, load_model

    settings = ModelSettings(dtype=dtype, device=find_device(device))
    loaded = load_model(target.model, settings)
    return LocalGenerator(loaded.model, loaded.tokenizer, batch_size=batch_size, overlong="refuse")


def choose_endpoint(server: Server, style: PromptStyle) -> Literal["chat", "completions"]:
    """The server's endpoint for prompts of a style, where the user named none."""
    return server.endpoint or ("chat" if style.chat else "completions")


def open_server(
    server: Server, style: PromptStyle, tokenizer: PreTrainedTokenizerFast | None
) -> Generator:
    """The server's model.

    Raises:
        MissingExtraError: the client is not installed.
        ConfigError: the style is plain text, and the endpoint asked for takes conversations only.
    """
    from prefopt.generate.openai import OpenAIGenerator

    endpoint = choose_endpoint(server, style)
    if endpoint == "chat" and not style.chat:
        raise ConfigError(
            f"style {style.name!r} writes plain text, which the chat endpoint would wrap again; use --endpoint "
            "completions, or a chat style"
        )
    if endpoint == "completions" and style.chat and tokenizer is None:
        raise ConfigError(
            f"style {style.name!r} needs the model's chat template to write the text for --endpoint completions; give "
            "a folder with the model's tokenizer as TARGET and its name on the server with --model"
        )
    return OpenAIGenerator(
        server.model,
        base_url=server.url,
        endpoint=endpoint,
        tokenizer=tokenizer,
        patience=server.patience,
        extra_body=server.extra_body,
    )
