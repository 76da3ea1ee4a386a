"""DICE as a user runs it: rounds with the right references, every kind of mix, killed in every stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.config import load_recipe
from prefopt.records import read_preferences
from tests.integration.runs import (
    ENVIRONMENT,
    Row,
    losses,
    read_json,
    read_rows,
    string_pairs,
    write_rows,
)
from tests.tiny import make_model_folder, make_tokenizer

pytestmark = pytest.mark.slow
PROMPTS, SAMPLES = 6, 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The policy, and the model that it was trained from."""
    root = tmp_path_factory.mktemp("models")
    return make_model_folder(root / "m0", "llama"), make_model_folder(root / "sft", "llama", seed=1)


def recipe(folder: Path, models: tuple[Path, Path], **build: Any) -> Path:
    folder.mkdir(exist_ok=True)
    section: Row = {
        "previous": str(models[1]),
        "offline": str(write_rows(folder / "offline.jsonl", string_pairs(PROMPTS))),
        "samples": SAMPLES,
        "min_valid": 2,
        "max_new_tokens": 8,
        "drop_cut": False,
        "min_characters": 0,
        "output_dir": str(folder / "data"),
        **build,
    }
    keys: Row = {
        "method": "dice",
        "model_name_or_path": str(models[0]),
        "build": section,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "logging_steps": 1,
        "output_dir": str(folder / "run"),
        "save_strategy": "no",
        "cache_dir": str(folder / "cache"),
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in keys.items()))
    return path


def test_a8_a9_two_rounds(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["run", str(path), "build.rounds=2"]) == 0
    runs = [tmp_path / "run" / f"round-{k}" for k in (1, 2)]
    first, second = (read_json(tmp_path / "data" / f"round-{k}" / "counts.json") for k in (1, 2))
    sft, start, trained = str(models[1]), str(models[0]), str(runs[0] / "model")
    assert first["models"] == {
        "policy": start, "reward_reference": sft, "training_reference": start, "beta": 0.1,
    }  # fmt: skip
    assert second["models"] == {
        "policy": trained, "reward_reference": start, "training_reference": trained, "beta": 0.1,
    }  # fmt: skip
    assert load_recipe(runs[1] / "run.yaml")["model_name_or_path"] == trained
    assert [losses(run)[0] for run in runs] == pytest.approx([0.6931472] * 2)
    for run in runs:
        assert "length gap over alpha" in (run / "report.html").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert (
        f"reward: 0.1 * (log {trained} - log {start}); trained from and against {trained}" in said
    )


def test_a_build_writes_what_the_page_says_and_is_found_again(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["build", str(path)]) == 0
    data = tmp_path / "data"
    kept = {p.name: p.read_bytes() for p in data.glob("*.json*")}
    facts = read_json(data / "counts.json")
    counts = facts["counts"]
    assert counts["samples"] == counts["samples with a reward"] == PROMPTS * SAMPLES
    assert counts["generated records in the mix"] == counts["offline records in the mix"] == 3
    mixed = read_preferences(data / "pairs.jsonl")
    assert len({record.prompt for record in mixed}) == PROMPTS
    assert all(len(r.pairs) == 1 and r.responses[0].score is None for r in mixed)
    samples = read_preferences(data / "samples.jsonl")
    assert [len(r.responses) for r in samples] == [SAMPLES] * PROMPTS
    for own in read_preferences(data / "generated.jsonl"):
        scores = {r.text: r.score for s in samples if s.prompt == own.prompt for r in s.responses}
        assert own.meta["rewards"] == [scores[r.text] for r in own.responses]
    curve = read_json(data / "alpha-curve.json")
    gaps = [abs(p["gap"]) for p in curve["points"] if p["gap"] is not None]
    assert abs(facts["length"]["gap"]) == min(gaps)
    assert (data / "alpha.png").read_bytes()[:4] == b"\x89PNG"
    before = rows(data)
    assert main(["build", str(path)]) == 0
    assert rows(data) == before
    assert {p.name: p.read_bytes() for p in data.glob("*.json*")} == kept
    # Another alpha needs no new sample and no new score.
    assert main(["build", str(path), "build.alpha=1", "build.alpha_unit=logp"]) == 0
    assert rows(data) == before
    assert read_json(data / "counts.json")["alpha"]["value"] == 0.1
    assert not (data / "alpha.png").exists()


def rows(data: Path) -> int:
    with sqlite3.connect(data / "journal.sqlite") as connection:
        return connection.execute("SELECT count(*) FROM completions").fetchone()[0]


def test_only_earlier_data_only_own_answers_and_held_out_prompts(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path, data = recipe(tmp_path, models), tmp_path / "data"
    assert main(["build", str(path), "build.gamma=1"]) == 0
    assert len(read_preferences(data / "pairs.jsonl")) == PROMPTS
    assert not (data / "samples.jsonl").exists(), "nothing is sampled for nothing"
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Say {i % 5}\n"} for i in range(7)])
    own = [f"build.prompts={prompts}", "build.offline=null", "build.gamma=0"]
    assert main(["build", str(path), *own]) == 0
    assert {r.prompt for r in read_preferences(data / "pairs.jsonl")} == {
        f"Say {i}\n" for i in range(5)
    }
    assert read_json(data / "counts.json")["counts"]["prompts that repeat an earlier one"] == 2
    assert main(["build", str(path), "build.held_out=0.5"]) == 0
    trained = {str(r.prompt) for r in read_preferences(data / "pairs.jsonl")}
    held = {str(r.prompt) for r in read_preferences(data / "held-out.jsonl")}
    assert trained
    assert held
    assert trained & held == set()


def test_counts_of_earlier_data_add_up(tmp_path: Path, models: tuple[Path, Path]) -> None:
    given = string_pairs(8)
    given += [{**given[0], "rejected": "another one"}]
    file = write_rows(tmp_path / "earlier.jsonl", given)
    path = recipe(tmp_path, models, offline=str(file), gamma=1, held_out=0.3)
    assert main(["build", str(path)]) == 0
    counts = read_json(tmp_path / "data" / "counts.json")["counts"]
    assert (counts["offline rows"], counts["offline records that repeat a prompt"]) == (9, 1)
    assert counts["offline records of held-out prompts"] > 0
    fates = [
        "rows without a usable pair", "records of held-out prompts", "records that repeat a prompt",
        "records in the mix", "records left over",
    ]  # fmt: skip
    assert sum(counts[f"offline {fate}"] for fate in fates) == 9


def test_a_wrong_reference_is_found_before_the_first_sample(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    words = make_tokenizer(["alpha", "beta", "gamma"])
    other = make_model_folder(tmp_path / "other", "llama", tokenizer=words)
    for previous, says in (
        (tmp_path / "gone", "does not exist"),
        (copy, "have the same weights: every reward would be 0"),
        (other, "different vocabularies"),
    ):
        assert main(["build", str(recipe(tmp_path, models, previous=str(previous)))]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
        assert rows(tmp_path / "data") == 0


def test_no_pair_is_one_line(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models, drop_cut=True, max_new_tokens=1)
    assert main(["build", str(path)]) == 2
    said = capsys.readouterr().err
    assert " samples cut at the token limit" in said
    assert f"{PROMPTS} prompts with fewer than 2 such samples" in said
    assert "no pair could be made; the counts above say where" in said.splitlines()[-1]
    assert not (tmp_path / "data" / "pairs.jsonl").exists()


def test_training_refuses_pairs_of_other_settings(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["build", str(path)]) == 0
    assert main(["train", str(path), "build.gamma=0.25"]) == 2
    assert "gamma: 0.5 -> 0.25" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from prefopt.cli.main import main
from prefopt.generate.journal import Journal

left, plain = int(sys.argv[1]), Journal.append

def append(self, *values):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    plain(self, *values)

Journal.append = append
sys.exit(main(["build", sys.argv[2]]))
"""


def test_kill_9_while_answering_and_under_either_model(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    whole = recipe(tmp_path / "whole", models)
    path = recipe(tmp_path / "killed", models)
    assert main(["build", str(whole)]) == 0
    count = PROMPTS * SAMPLES
    assert rows(tmp_path / "whole" / "data") == 3 * count
    at = 0
    for appended in (
        count - 5,
        15,
        count,
    ):  # in answers, then in rewards under the policy, under the reference
        done = build_in_a_process(path, appended)
        at += appended
        assert done == -signal.SIGKILL
        assert rows(tmp_path / "killed" / "data") == at, "nothing is lost and nothing repeated"
        assert not (tmp_path / "killed" / "data" / "pairs.jsonl").exists()
    assert build_in_a_process(path, -1) == 0
    assert rows(tmp_path / "killed" / "data") == 3 * count
    for name in ("pairs.jsonl", "samples.jsonl", "generated.jsonl", "alpha-curve.json"):
        one, other = (tmp_path / k / "data" / name for k in ("whole", "killed"))
        if name == "samples.jsonl":  # batches of another make-up round differently
            assert close(read_rows(one), read_rows(other))
        else:
            assert texts(one) == texts(other)


def build_in_a_process(path: Path, limit: int) -> int:
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(limit), str(path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    return done.returncode


def texts(path: Path) -> list[Any]:
    """What a file says beside its numbers."""
    if path.suffix == ".json":
        return [[p["pairs"], p["gap"]] for p in read_json(path)["points"]]
    return [[row["id"], row["prompt"], row["responses"], row["pairs"]] for row in read_rows(path)]


def close(one: list[Row], other: list[Row]) -> bool:
    def scores(found: list[Row]) -> list[float]:
        return [response["score"] for row in found for response in row["responses"]]

    return scores(one) == pytest.approx(scores(other), abs=1e-6)
