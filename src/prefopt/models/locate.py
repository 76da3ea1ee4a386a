"""Where a model is: a local folder, or a hub id that is downloaded once. Nothing is loaded here."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from prefopt.errors import ModelError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"

_TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken"]


class Located(NamedTuple):
    """A model folder and what the user calls it."""

    folder: Path
    name: str
    """The path or hub id as given; what error messages and saved adapters refer to."""


def looks_like_path(source: str) -> bool:
    """Whether `source` can only mean a local path, so that a typing error never becomes a network request.

    True for anything that exists, starts with `.`, `/` or `~`, has a backslash or more than one `/`, or has one
    `/` after a folder that exists. Hub ids are `name` or `owner/name`.
    """
    if source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1:
        return True
    return Path(source).exists() or ("/" in source and Path(source).parent.is_dir())


def locate(source: str | Path, *, revision: str | None = None) -> Located:
    """The local folder of a model, adapter or tokenizer. The network is used only for hub ids.

    Raises:
        ModelError: the path does not exist, is a file, or the hub has no such model or cannot be reached.
    """
    name = str(source)
    if not name.strip():
        raise ModelError("model_name_or_path is empty: give a model folder or a hub id")
    if isinstance(source, Path) or looks_like_path(name):
        return Located(_local_folder(Path(name).expanduser()), name)
    return Located(_download(name, revision), name)


def _local_folder(path: Path) -> Path:
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path} is a file: give the folder that holds {CONFIG} and the weights")
    siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    raise ModelError(f"model folder {path} does not exist: {hint}")


def _download(name: str, revision: str | None) -> Path:
    """Fetch config, tokenizer and weights of the top folder; safetensors where there are any."""
    try:
        folder = _snapshot(name, revision, [*_TEXT_FILES, "*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            folder = _snapshot(name, revision, [*_TEXT_FILES, "*.bin"])
    except GatedRepoError as error:
        raise ModelError(
            f"hub model {name!r} is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no folder {name!r} here and no such model on the hub: check the name, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"hub model {name!r} has no revision {revision!r}: check model_revision"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder here nor a valid hub id") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"no folder {name!r} here, and the hub cannot be reached or is switched off "
            f"({type(error).__name__}): give the path of a local model folder, or check the network"
        ) from error
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    return Path(
        snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters, without its final full stop."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip().rstrip(".:") if lines else ""
    return (text or type(error).__name__)[:200]
