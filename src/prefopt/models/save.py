"""Writing models: a folder appears whole or not at all, and an older one stays until the new one is safe on disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - the HTTP library behind it changes
)
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.errors import ConfigError, StorageError
from prefopt.models.digest import adapter_bytes, model_bytes
from prefopt.models.locate import ADAPTER_CONFIG, CONFIG
from prefopt.models.quiet import quiet_transformers

_HEADROOM = 1 << 20
"""Bytes for configuration, tokenizer and file headers in the space check."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """The folder, now holding an ordinary Hugging Face model, or a PEFT adapter if `model` is a PEFT model.

    Everything is written to a hidden sibling (`.NAME.partial`), flushed to the disk and renamed into place; a
    previous model folder of that name is set aside (`.NAME.old`) and deleted last. One process writes a folder.

    Args:
        model: what to save, not wrapped for distributed training.
        tokenizer: saved beside the weights.
        folder: made with its parents; an existing model folder is replaced.
        state_dict: the gathered weights where the model's own are sharded.

    Raises:
        StorageError: no space, no permission, or `folder` holds something that is no model. The previous folder
            is as it was and nothing partial is left.
    """
    folder = Path(folder)
    partial, old = _sibling(folder, "partial"), _sibling(folder, "old")
    with _readable_errors(folder):
        _check_no_file_in_the_way(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_interrupted(folder, partial, old)
        _check_replaceable(folder)
        _check_space(folder, model)
        try:
            _write(model, tokenizer, partial, state_dict)
            _flush(partial)
            _swap(partial, folder, old)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.parent / f".{folder.name}.{suffix}"


def _clear_interrupted(folder: Path, partial: Path, old: Path) -> None:
    """Undo what a killed save left: restore a folder that was set aside, delete half-written ones."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _check_no_file_in_the_way(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path} is a file: choose another folder to save the model in")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    if names and not names & {CONFIG, ADAPTER_CONFIG}:
        raise StorageError(
            f"{folder} holds something else than a model (first {min(names)}): choose another folder to save the "
            "model in, or empty it"
        )


def _check_space(folder: Path, model: PreTrainedModel | PeftModel) -> None:
    needed = adapter_bytes(model) if isinstance(model, PeftModel) else model_bytes(model)
    needed += _HEADROOM
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise StorageError(
            f"not enough space to save the model in {folder}: {_size(needed)} needed, {_size(free)} free; "
            "free space or choose another output_dir"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _write(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state_dict: Mapping[str, Tensor] | None,
) -> None:
    given = None if state_dict is None else dict(state_dict)
    with quiet_transformers():
        if isinstance(model, PeftModel):
            # "auto" would ask the hub for the base model's vocabulary size; embeddings are never resized here.
            model.save_pretrained(str(folder), state_dict=given, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)
        else:
            model.save_pretrained(str(folder), state_dict=given)
        tokenizer.save_pretrained(str(folder))


def _flush(folder: Path) -> None:
    """Force files and directory entries to the disk, so that a rename never outlives its content."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(partial: Path, folder: Path, old: Path) -> None:
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _fsync(folder.parent)


@contextmanager
def _readable_errors(folder: Path) -> Generator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        full = error.errno in _FULL
        reason = "the disk is full" if full else (error.strerror or str(error))
        remedy = "free space" if full else "check the path and its permissions"
        raise StorageError(
            f"cannot save the model in {folder}: {reason}; {remedy} or choose another output_dir"
        ) from error
    except SafetensorError as error:
        # safetensors reports system errors as text only.
        raise StorageError(
            f"cannot save the model in {folder}: {error}; free space or choose another output_dir"
        ) from error


def require_hub_token() -> None:
    """Nothing when there is a hub token; `ConfigError` before a run whose result could not be uploaded."""
    if get_token() is None:
        raise ConfigError("push_to_hub needs a hub token: run `hf auth login` or set HF_TOKEN")


def push_model(folder: Path | str, hub_model_id: str, *, private: bool = True) -> str:
    """The address of the hub repository that now holds the files of `folder`.

    Raises:
        ConfigError: no token, a token without the right to write, or an invalid `hub_model_id`.
        StorageError: the hub cannot be reached or refused the upload. The local folder is untouched.
    """
    folder = Path(folder)
    safe = f"the model is safe in {folder}"
    token = get_token()
    if token is None:
        raise ConfigError(
            f"push_to_hub needs a hub token: run `hf auth login` or set HF_TOKEN; {safe}"
        )
    api = HfApi(token=token)
    try:
        repository = api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Upload model"
        )
    except HFValidationError as error:
        raise ConfigError(
            f"hub_model_id {hub_model_id!r} is no valid hub id (owner/name): {safe}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise ConfigError(
                f"hub_model_id {hub_model_id!r}: the hub token may not write there (HTTP {status}): {safe}"
            ) from error
        raise StorageError(_push_failure(hub_model_id, f"HTTP {status}", folder)) from error
    except (HTTPError, OSError) as error:
        raise StorageError(_push_failure(hub_model_id, type(error).__name__, folder)) from error
    return str(repository)


def _push_failure(hub_model_id: str, reason: str, folder: Path) -> str:
    return (
        f"cannot push to {hub_model_id} ({reason}): the model is safe in {folder}; push it later with "
        f"`hf upload {hub_model_id} {folder}`"
    )
