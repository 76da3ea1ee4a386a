"""Whole runs share tiny model folders, one thread (bits must not depend on the machine) and a private cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.integration.runs import ENVIRONMENT, Settings
from tests.tiny import Family, make_model_folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """The model folder of a family, made once."""
    root = tmp_path_factory.mktemp("models")

    def folder(family: Family) -> Path:
        path = root / family
        return path if path.exists() else make_model_folder(path, family)

    return folder


@pytest.fixture
def settings(tmp_path: Path, models: Callable[[Family], Path]) -> Settings:
    """A DPO recipe of six steps on twelve string pairs, without checkpoints."""
    return Settings.of(tmp_path, model=models("llama"))
