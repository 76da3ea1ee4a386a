"""`prefopt doctor`: what it finds out and when it fails."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prefopt.cli import _machine as machine
from prefopt.cli.main import main


def test_packages_come_from_the_installed_metadata():
    found = {package.name: package for package in machine.packages()}
    assert {"torch", "transformers", "accelerate", "peft", "datasets", "tokenizers"} <= set(found)
    assert "trl" not in found
    assert all(package.fits for package in found.values())


def test_a_package_that_is_too_old_or_missing_does_not_fit():
    too_old = machine._package(Requirement("torch>=999"))
    missing = machine._package(Requirement("surely-no-such-package>=1"))
    assert (too_old.fits, too_old.wanted) == (False, ">=999")
    assert (missing.fits, missing.version) == (False, None)


def test_extras_come_with_the_command_that_installs_them():
    found = {extra.name: extra for extra in machine.extras()}
    assert {"tensorboard", "wandb", "mlflow", "trackio", "bench", "dev"} <= set(found)
    assert found["wandb"].command == 'pip install "prefopt[wandb]"'
    assert found["dev"].missing == ()  # this very test needs it


@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [
        ({}, 2, []),
        ({"OMP_NUM_THREADS": "2"}, 2, []),
        ({"OMP_NUM_THREADS": "8"}, 2, ["OMP_NUM_THREADS=8 is more than the 2 cores"]),
        ({"OMP_NUM_THREADS": "1"}, 2, ["OMP_NUM_THREADS=1 uses one of 2 cores"]),
        ({"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, 2, []),
        ({"TOKENIZERS_PARALLELISM": "false"}, 2, ["TOKENIZERS_PARALLELISM=false makes"]),
        ({"HF_HUB_OFFLINE": "1"}, 2, ["HF_HUB_OFFLINE is set"]),
    ],
)
def test_remarks_on_the_environment(environment, cores, expected):
    found = machine.remarks(environment, cores=cores)
    assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert machine.cache_folder({}) == Path("/somewhere/.cache/prefopt")
    assert machine.cache_folder({"PREFOPT_HOME": "~/p"}) == Path("/somewhere/p")


@pytest.mark.slow
def test_doctor_finds_this_installation_in_order(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "Everything is in order."
    for check in ("head", "tree"):
        assert re.search(rf"cpu +{check} +ok: .* \(bound 0\.0002\)", printed)


@pytest.mark.slow
def test_doctor_fails_when_the_cache_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    monkeypatch.setenv("PREFOPT_HOME", str(tmp_path))
    assert main(["doctor"]) == 1
    assert f"problem: the cache folder {tmp_path} cannot be written" in capsys.readouterr().out
