"""`prefopt run`: data, training and further rounds of both, each from the model of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.config import load_recipe
from tests.generate.server import FakeServer
from tests.integration.runs import read_json
from tests.integration.test_build import PROBLEMS, recipe, script

pytestmark = pytest.mark.slow


def run(path: Path, *overrides: str) -> int:
    return main(["run", str(path), "max_steps=1", *overrides])


def digest(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_one_round_is_build_and_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        assert run(path) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "run" / "model")]
        assert (tmp_path / "data" / "pairs.jsonl").exists()
        before, asked = digest(tmp_path / "run"), len(server.asked)
        assert run(path) == 0, "a finished recipe is found again"
        assert len(server.asked) == asked
    assert "this run is already finished" in capsys.readouterr().err
    assert digest(tmp_path / "run") == before


def test_later_rounds_start_from_the_model_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        extra = ("build.rounds=2", "build.later_rounds.beta=0.7", "learning_rate=0.001")
        assert run(path, *extra) == 0
        # The server writes the same whatever the round, but each round asks it with a journal of its own.
        assert len(server.asked) == 2 * (PROBLEMS + 3 + 3 * 3)
        assert run(path, *extra) == 0
        assert len(server.asked) == 2 * (PROBLEMS + 3 + 3 * 3)
    folders = [tmp_path / "run" / f"round-{k}" for k in (1, 2)]
    assert capsys.readouterr().out.split() == [str(folder / "model") for folder in folders] * 2
    recipes: list[dict[str, Any]] = [dict(load_recipe(f / "run.yaml")) for f in folders]
    assert [r["beta"] for r in recipes] == [0.5, 0.7]
    assert recipes[0]["model_name_or_path"] == str(tmp_path / "model")
    assert recipes[1]["model_name_or_path"] == str(folders[0] / "model")
    assert (tmp_path / "data" / "round-2" / "pairs.jsonl").exists()
    first = [read_rows_of(folder)[0]["loss"] for folder in folders]
    assert first == pytest.approx([0.6931472] * 2), "policy and reference agree at every start"
    assert digest(folders[0]) != digest(folders[1])
    assert (tmp_path / "run" / "report.html").exists()
    assert read_json(folders[1] / "finished.json")["identity"]["model_name_or_path"].endswith(
        'round-1/model"'
    )


def read_rows_of(folder: Path) -> list[dict[str, Any]]:
    from tests.integration.runs import read_rows

    return read_rows(folder / "metrics.jsonl")


def test_an_adapter_goes_on_as_it_is_in_later_rounds(tmp_path: Path) -> None:
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        extra = ("build.rounds=2", "use_peft=true", "lora_r=2", "learning_rate=0.01")
        assert run(path, *extra) == 0
    second = tmp_path / "run" / "round-2"
    assert (second / "model" / "adapter_config.json").exists()
    assert read_rows_of(second)[0]["loss"] == pytest.approx(0.6931472), (
        "the reference is the adapter of round 1, not the model without it"
    )


@pytest.mark.parametrize(
    ("verb", "extra", "says"),
    [
        ("train", ["build.rounds=2"], "use `prefopt run`"),
        ("build", ["build.rounds=2"], "use `prefopt run`"),
        ("run", ["build.rounds=2", "train_file=x.jsonl"], "remove train_file"),
        ("run", ["build.rounds=2", "build.later_rounds.betta=1"], "betta"),
    ],
)
def test_mistakes_about_rounds_are_one_line(
    verb: str, extra: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(script) as server:
        path = recipe(tmp_path, server.url)
        assert main([verb, str(path), "max_steps=1", *extra]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ")
        assert says in said
        assert not server.asked
