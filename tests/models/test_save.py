"""A folder appears whole or not at all; failures name the path and leave the older model as it was."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch

from prefopt.errors import ConfigError, StorageError
from prefopt.models.load import LoadedModel, LoraSettings, add_lora, load_model, weights_digest
from prefopt.models.save import push_model, save_model
from tests.tiny import make_model_folder

MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    return load_model(make_model_folder(tmp_path / "base", "llama"))


def test_folder_holds_an_ordinary_model_and_nothing_else(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    folder = save_model(loaded.model, loaded.tokenizer, tmp_path / "new" / "runs" / "model")
    assert folder == tmp_path / "new" / "runs" / "model"
    assert {path.name for path in folder.iterdir()} == MODEL_FILES
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert str(tmp_path) not in (folder / "config.json").read_text()


def test_adapter_folder_holds_the_adapter_only(tmp_path: Path, loaded: LoadedModel) -> None:
    wrapped = add_lora(loaded.model, LoraSettings(r=2))
    folder = save_model(wrapped, loaded.tokenizer, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_gathered_weights_are_saved_in_place_of_the_models_own(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    gathered = {name: value + 1 for name, value in loaded.model.state_dict().items()}
    folder = save_model(loaded.model, loaded.tokenizer, tmp_path / "model", state_dict=gathered)
    again = load_model(folder).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in gathered.items())


def test_existing_model_is_replaced_whole(tmp_path: Path, loaded: LoadedModel) -> None:
    folder = save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    (folder / "README.md").write_text("old card")
    wrapped = add_lora(loaded.model, LoraSettings(r=2))
    save_model(wrapped, loaded.tokenizer, folder)
    assert not (folder / "README.md").exists()
    assert not (folder / "config.json").exists()
    assert load_model(folder).is_adapter
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_what_a_killed_save_left_is_undone(tmp_path: Path, loaded: LoadedModel) -> None:
    folder = save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    folder.rename(tmp_path / ".model.old")
    (tmp_path / ".model.partial").mkdir()
    with _file_size_limit(50_000), pytest.raises(StorageError):
        save_model(loaded.model, loaded.tokenizer, folder)
    assert weights_digest(load_model(folder).model) == weights_digest(loaded.model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_unusual_generation_settings_do_not_stop_a_save(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base", "llama")
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (base / "generation_config.json").write_text(json.dumps(settings))
    model, tokenizer, _ = load_model(base)
    folder = save_model(model, tokenizer, tmp_path / "model")
    stored = json.loads((folder / "generation_config.json").read_text())
    assert {key: stored[key] for key in settings} == settings


def test_folder_with_other_files_is_never_replaced(tmp_path: Path, loaded: LoadedModel) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(StorageError) as caught:
        save_model(loaded.model, loaded.tokenizer, tmp_path / "thesis")
    assert str(caught.value) == (
        f"{tmp_path / 'thesis'} holds something else than a model (first chapter1.tex): choose another folder to "
        "save the model in, or empty it"
    )
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("below", ["", "model", "runs/model"])
def test_file_in_the_way_is_named(tmp_path: Path, loaded: LoadedModel, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError) as caught:
        save_model(loaded.model, loaded.tokenizer, file / below)
    assert str(caught.value) == f"{file} is a file: choose another folder to save the model in"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_missing_permission_is_named(tmp_path: Path, loaded: LoadedModel) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="Permission denied; check the path"):
        save_model(loaded.model, loaded.tokenizer, tmp_path / "locked" / "model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A file system of 3 MB and 13 entries, where mounting is allowed."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [mount or "", "-t", "tmpfs", "-o", "size=3m,nr_inodes=13", "tmpfs", str(folder)]
    if (
        not mount
        or not umount
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run([umount, "--lazy", str(folder)], check=True)


def test_full_disk_is_noticed_before_writing(small_disk: Path, loaded: LoadedModel) -> None:
    folder = save_model(loaded.model, loaded.tokenizer, small_disk / "model")
    (small_disk / "ballast").write_bytes(bytes(1_800_000))
    with pytest.raises(StorageError) as caught:
        save_model(loaded.model, loaded.tokenizer, folder)
    free = shutil.disk_usage(small_disk).free / 1e6
    assert str(caught.value) == (
        f"not enough space to save the model in {folder}: 1.2 MB needed, {free:.1f} MB free; free space or choose "
        "another output_dir"
    )
    assert weights_digest(load_model(folder).model) == weights_digest(loaded.model)


def test_disk_that_fills_up_while_writing_keeps_the_old_model(
    small_disk: Path, loaded: LoadedModel
) -> None:
    """There is space for bytes, so the check passes, but only for 4 of the 6 files of the new folder."""
    folder = save_model(loaded.model, loaded.tokenizer, small_disk / "model")
    with pytest.raises(StorageError) as caught:
        save_model(loaded.model, loaded.tokenizer, folder)
    message = str(caught.value)
    assert message.startswith(f"cannot save the model in {folder}: ")
    assert "disk is full" in message or "No space left on device" in message
    assert message.endswith("free space or choose another output_dir")
    assert [path.name for path in small_disk.iterdir()] == ["model"]
    assert weights_digest(load_model(folder).model) == weights_digest(loaded.model)


@contextmanager
def _file_size_limit(limit: int) -> Generator[None]:
    """Writes beyond `limit` bytes of a file fail, as on a full disk; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_write_keeps_the_old_model(tmp_path: Path, loaded: LoadedModel) -> None:
    folder = save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    with _file_size_limit(50_000), pytest.raises(StorageError) as caught:
        save_model(loaded.model, loaded.tokenizer, folder)
    assert str(caught.value).startswith(f"cannot save the model in {folder}: ")
    assert "File too large" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]
    assert weights_digest(load_model(folder).model) == weights_digest(loaded.model)


def test_push_without_a_token_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    with pytest.raises(ConfigError) as caught:
        push_model(tmp_path, "someone/model")
    assert str(caught.value) == (
        "push_to_hub needs a hub token: run `hf auth login` or set HF_TOKEN; "
        f"the model is safe in {tmp_path}"
    )


@pytest.mark.parametrize(
    ("constant", "value", "name", "kind", "message"),
    [
        (
            "ENDPOINT",
            "http://127.0.0.1:9",
            "someone/model",
            StorageError,
            "cannot push to someone/model (ConnectError): the model is safe in {0}; push it later with "
            "`hf upload someone/model {0}`",
        ),
        (
            "HF_HUB_OFFLINE",
            True,
            "someone/model",
            StorageError,
            "cannot push to someone/model (OfflineModeIsEnabled): the model is safe in {0}; push it later with "
            "`hf upload someone/model {0}`",
        ),
        (
            "ENDPOINT",
            "http://127.0.0.1:9",
            "some one/model",
            ConfigError,
            "hub_model_id 'some one/model' is no valid hub id (owner/name): the model is safe in {0}",
        ),
    ],
)
def test_push_that_cannot_work_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    value: str | bool,
    name: str,
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(huggingface_hub.constants, constant, value)
    with pytest.raises(kind) as caught:
        push_model(tmp_path, name)
    assert str(caught.value) == message.format(tmp_path)
