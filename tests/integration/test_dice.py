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
from prefopt.models.load import LoraSettings, add_lora, load_model
from prefopt.records import read_preferences
from prefopt.report.dice import own_answers
from prefopt.report.folder import read_runs
from prefopt.report.numerals import MISSING
from prefopt.train.folder import RunFolder
from tests.integration.runs import (
    ENVIRONMENT,
    Row,
    errors_in,
    losses,
    read_json,
    read_rows,
    string_pairs,
    weight_bytes,
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


def test_records_of_more_pairs_than_the_mix_has_room_for_are_one_line(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    two = write_rows(tmp_path / "two.jsonl", string_pairs(2))
    path = recipe(tmp_path, models, offline=str(two), pairing="topk", top=2, samples=8)
    assert main(["build", str(path)]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert "no whole record fits into the mix: at gamma 0.5 it has room for new pairs (1)" in line


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
    return in_a_process(KILLED, str(limit), str(path))


def in_a_process(script: str, *words: str) -> int:
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    return done.returncode


KILLED_RUN = """
import os, signal, sys
from prefopt.cli.main import main
from prefopt.generate.journal import Journal
from prefopt.runs import rounds
from prefopt.train import loop

places = {
    "building": (Journal, "append"),
    "before training": (rounds, "train_method"),
    "in training": (loop, "write_checkpoint"),
    "between rounds": (rounds, "_prepared"),
}
owner, name = places[sys.argv[1]]
left, plain = int(sys.argv[2]), getattr(owner, name)

def counted(*values, **named):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return plain(*values, **named)

setattr(owner, name, counted)
sys.exit(main(["run", *sys.argv[3:]]))
"""
THREE_STEPS = ["build.rounds=2", "max_steps=3", "save_strategy=steps", "save_steps=1"]


@pytest.fixture(scope="module")
def uninterrupted(
    models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[bytes]:
    """The weights of both rounds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert main(["run", str(recipe(folder, models)), *THREE_STEPS]) == 0
    return weights_of_rounds(folder)


def weights_of_rounds(folder: Path) -> list[bytes]:
    return [weight_bytes(folder / "run" / f"round-{k}" / "model") for k in (1, 2)]


@pytest.mark.parametrize(
    ("stage", "before", "there", "not_yet"),
    [
        ("building", 30, "data/round-1/journal.sqlite", "data/round-1/pairs.jsonl"),
        ("before training", 0, "data/round-1/pairs.jsonl", "run/round-1/run.yaml"),
        ("in training", 2, "run/round-1/checkpoints/checkpoint-2", "run/round-1/finished.json"),
        ("between rounds", 1, "run/round-1/finished.json", "data/round-2"),
    ],
    ids=["building", "before training", "in training", "between rounds"],
)
def test_kill_9_of_a_run_in_every_stage(
    stage: str,
    before: int,
    there: str,
    not_yet: str,
    tmp_path: Path,
    models: tuple[Path, Path],
    uninterrupted: list[bytes],
) -> None:
    words = [str(recipe(tmp_path, models)), *THREE_STEPS]
    assert in_a_process(KILLED_RUN, stage, str(before), *words) == -signal.SIGKILL
    assert (tmp_path / there).exists() and not (tmp_path / not_yet).exists()
    assert main(["run", *words]) == 0
    assert weights_of_rounds(tmp_path) == uninterrupted
    for number in (1, 2):
        journal = tmp_path / "data" / f"round-{number}"
        assert rows(journal) == 3 * PROMPTS * SAMPLES, "nothing twice"


@pytest.fixture(scope="module")
def finished(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, of which nothing may change."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", str(recipe(folder, models)), "build.rounds=2"]) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and "journal" not in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (["build.alpha=0.01"], 'build.alpha: "auto" -> 0.01'),
        (["build.gamma=0", "seed=7"], "seed: 42 -> 7; build.gamma: 0.5 -> 0.0"),
        (["max_length=512"], "max_length: 1024 -> 512"),
    ],
)
def test_other_settings_are_refused_before_data_are_replaced(
    changes: list[str], difference: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    words = [str(finished / "recipe.yaml"), "build.rounds=2", *changes]
    assert main(["run", *words]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert f"run of other settings or data than this recipe's ({difference})" in line
    assert f"{finished / 'run' / 'round-1'}: holds a finished run" in line
    assert "pass --overwrite to start anew, or set another output_dir" in line
    assert content(finished) == before


def test_what_decides_nothing_can_be_changed_afterwards(finished: Path) -> None:
    trained = weights_of_rounds(finished)
    words = ["build.rounds=3", "build.batch_size=3", "build.later_rounds={build: {batch_size: 2}}"]
    assert main(["run", str(finished / "recipe.yaml"), *words, "logging_steps=5"]) == 0
    assert weights_of_rounds(finished) == trained
    assert (finished / "run" / "round-3" / "finished.json").exists()


def test_other_content_is_refused_and_overwriting_starts_anew(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["run", str(path)]) == 0
    before = content(tmp_path)
    offline = tmp_path / "offline.jsonl"
    text = offline.read_text()
    offline.write_text(text.replace("or so", "or more"))
    assert main(["run", str(path)]) == 2
    said = errors_in(capsys.readouterr().err)[0]
    assert f"({offline}: its content is not what it was)" in said
    offline.write_text(text)
    assert content(tmp_path) == before
    assert main(["run", str(path), "build.alpha=0.01", "--overwrite"]) == 0
    assert read_json(tmp_path / "data" / "counts.json")["alpha"]["value"] == 0.01
    assert load_recipe(tmp_path / "run" / "run.yaml")["build"]["alpha"] == 0.01  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportArgumentType, reportCallIssue]


def test_a_round_that_got_nowhere_answers_with_the_model_that_is_there(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    """Not with that of a first round which has been removed since, though folders and settings are called the same."""
    path, data = recipe(tmp_path, models), tmp_path / "data" / "round-2"
    assert main(["run", str(path), "build.rounds=2"]) == 0
    before = read_json(data / "inputs.json")
    (tmp_path / "run" / "round-2" / "finished.json").unlink()  # as if killed without a checkpoint
    shutil.rmtree(tmp_path / "run" / "round-1")
    assert main(["run", str(path), "build.rounds=2", "learning_rate=0.5"]) == 0
    assert rows(data) >= (3 + 2) * PROMPTS * SAMPLES, "all answered, and scored, anew"
    after, trained = read_json(data / "inputs.json"), str(tmp_path / "run" / "round-1" / "model")
    assert {name for name in before if before[name] != after[name]} == {trained}


def test_a_finished_round_is_not_that_of_another_model(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, trained = recipe(tmp_path, models), tmp_path / "run" / "round-1" / "model"
    words = ["run", str(path), "build.rounds=2", "build.later_rounds={learning_rate: 0.001}"]
    assert main(words) == 0
    shutil.rmtree(trained.parent)
    before = content(tmp_path / "data" / "round-2")
    assert main([*words, "learning_rate=0.5"]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert f"{tmp_path / 'run' / 'round-2'}: holds a finished run of other settings or data" in line
    assert f"({trained}: its content is not what it was), and building would replace" in line
    assert content(tmp_path / "data" / "round-2") == before


def test_another_previous_model_of_the_same_name_is_refused(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sft = shutil.copytree(models[1], tmp_path / "sft")
    path = recipe(tmp_path, (models[0], sft))
    assert main(["run", str(path)]) == 0
    shutil.rmtree(sft)
    make_model_folder(sft, "llama", seed=2)
    before = content(tmp_path)
    assert main(["run", str(path)]) == 2
    assert f"({sft}: its content is not what it was)" in errors_in(capsys.readouterr().err)[0]
    assert main(["train", str(path), "--overwrite"]) == 2
    assert f"({sft}: its content is not what it was)" in errors_in(capsys.readouterr().err)[0]
    assert content(tmp_path) == before


def test_the_length_of_training_decides_the_data_unless_the_section_has_one(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models, gamma=0, max_new_tokens=20)
    assert main(["build", str(path)]) == 0
    assert main(["train", str(path), "max_length=36"]) == 2
    assert "(max_length: 1024 -> 36)" in errors_in(capsys.readouterr().err)[0]
    assert main(["build", str(path), "max_length=36"]) == 0
    assert "  max_length: 1024 -> 36\n" in capsys.readouterr().err
    own = ["build.max_length=40", "max_length=41"]
    assert main(["build", str(path), *own]) == 0
    assert main(["train", str(path), *own, "max_length=42"]) == 0
    (row,) = own_answers(read_runs([tmp_path / "run"]))
    assert row.cells[0] == "run", "the report knows that too"


def test_rounds_that_are_overwritten_go_on_after_a_kill(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["run", str(path), "build.rounds=2"]) == 0
    words = [str(path), "build.rounds=2", "learning_rate=0.01"]
    killed = in_a_process(KILLED_RUN, "between rounds", "1", *words, "--overwrite")
    assert killed == -signal.SIGKILL
    first = content(tmp_path / "run" / "round-1")
    assert not (tmp_path / "run" / "round-2" / "finished.json").exists()
    assert main(["run", *words]) == 0
    assert content(tmp_path / "run" / "round-1") == first, "not trained twice"
    assert load_recipe(tmp_path / "run" / "round-2" / "run.yaml")["learning_rate"] == 0.01


def test_what_is_left_of_a_removed_round_is_no_run(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path, run = recipe(tmp_path, models), tmp_path / "run"
    words = ["run", str(path), "max_steps=2", "save_strategy=steps", "save_steps=1"]
    assert main(words) == 0
    (run / "finished.json").unlink()
    (run / ".removing").touch()  # as a removal leaves it that is killed
    assert main([*words, "learning_rate=0.01"]) == 0
    assert load_recipe(run / "run.yaml")["learning_rate"] == 0.01
    assert not (run / ".removing").exists()


@pytest.mark.parametrize("key", ["model_name_or_path", "build.previous"])
def test_overwriting_never_removes_a_model_that_is_read(
    key: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, last = content(finished), finished / "run" / "round-2" / "model"
    words = [str(finished / "recipe.yaml"), "build.rounds=2", f"{key}={last}"]
    assert main(["run", *words, "--overwrite"]) == 2
    assert f"--overwrite would delete {last}, which this run reads" in capsys.readouterr().err
    assert content(finished) == before


def test_data_stay_in_the_folder_of_the_run_or_are_moved(
    tmp_path: Path,
    models: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, data = recipe(tmp_path, models), tmp_path / "data"
    assert main(["run", str(path)]) == 0
    assert main(["run", str(path), f"build.output_dir={tmp_path / 'new'}"]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert f"run whose data were built in {data}, and they are not in build.output_dir" in line
    assert not (tmp_path / "new").exists(), "nothing is sampled first"
    monkeypatch.chdir(tmp_path)
    trained = weight_bytes(tmp_path / "run" / "model")
    assert main(["run", str(path), "build.output_dir=data"]) == 0
    data.rename(tmp_path / "new")
    assert main(["run", str(path), "build.output_dir=new"]) == 0
    assert capsys.readouterr().err.count("this run is already finished") == 2
    assert weight_bytes(tmp_path / "run" / "model") == trained


def test_runs_can_be_moved_and_named_otherwise(
    tmp_path: Path,
    models: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third round's reward is relative to the first round's model, which has moved too."""
    path = recipe(tmp_path, models)
    words = ["run", str(path), "build.rounds=3"]
    assert main(words) == 0
    before = content(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "output_dir=run"]) == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main([*words, "output_dir=moved"]) == 0
    assert capsys.readouterr().err.count("this run is already finished") == 6
    assert content(tmp_path / "data") == before
    assert not (tmp_path / "run").exists()


def test_data_of_a_finished_run_stay_as_they_were_edited(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, pairs = recipe(tmp_path, models), tmp_path / "data" / "pairs.jsonl"
    assert main(["build", str(path)]) == 0
    edited = b"".join(pairs.read_bytes().splitlines(keepends=True)[:-1])
    pairs.write_bytes(edited)
    assert main(["train", str(path)]) == 0
    assert main(["run", str(path)]) == 0
    said = capsys.readouterr().err
    assert "this run is already finished" in said
    assert f"note: {pairs} has changed since it was built; without it, it is made again" in said
    assert pairs.read_bytes() == edited


def test_data_are_not_replaced_under_a_run_that_is_being_trained(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, pairs = recipe(tmp_path, models), tmp_path / "data" / "pairs.jsonl"
    assert main(["build", str(path)]) == 0
    before = pairs.read_bytes()
    working = RunFolder(tmp_path / "run")
    working.acquire()
    try:
        for words in ([], ["--overwrite"]):
            assert main(["run", str(path), "build.gamma=0", *words]) == 2
            assert "another run is working here" in capsys.readouterr().err
    finally:
        working.release()
    assert pairs.read_bytes() == before


def test_the_model_of_a_run_may_be_named_otherwise(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, models)
    assert main(["run", str(path)]) == 0
    policy = str(load_recipe(tmp_path / "run" / "run.yaml")["model_name_or_path"])
    shutil.copytree(policy, tmp_path / "moved")
    assert main(["run", str(path), f"model_name_or_path={tmp_path / 'moved'}"]) == 0
    assert "this run is already finished" in capsys.readouterr().err


def test_damaged_data_of_a_finished_run_are_made_again(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, pairs = recipe(tmp_path, models), tmp_path / "data" / "pairs.jsonl"
    assert main(["run", str(path)]) == 0
    whole = pairs.read_bytes()
    pairs.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert main(["run", str(path)]) == 2
    said = capsys.readouterr().err
    assert "has changed since it was built; without it, it is made again" in said
    assert "not the same run: data: " in said
    pairs.unlink()
    assert main(["run", str(path)]) == 0
    assert "this run is already finished" in capsys.readouterr().err
    assert pairs.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["learning_rate=0.002"], "run of other settings than this recipe's (learning_rate: 0.001 -> 0.002); restore"),
        (["build.rounds=1", "train_file=other.jsonl"], "train_file is 'other.jsonl', and `prefopt run` would make the "
         "data of the section `build` for nothing: remove train_file, or use `prefopt train`"),
        (["eval_file=gone.jsonl", "learning_rate=0.002", "--overwrite"], "gone.jsonl: no such file"),
        (["reference_model=./gone", "--overwrite"], "model folder gone does not exist"),
    ],
)  # fmt: skip
def test_mistakes_outside_the_build_are_found_before_it(
    changes: list[str], says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    assert main(["run", str(finished / "recipe.yaml"), "build.rounds=2", *changes]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert says in line
    assert content(finished) == before


def test_other_files_of_the_build_can_be_trained_on(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, own = recipe(tmp_path, models), tmp_path / "data" / "generated.jsonl"
    words = ["run", str(path), f"train_file={own}"]
    assert main(words) == 0
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"data: {own}, on which the run in" in said and "already finished" in said


def test_the_report_shows_no_numbers_of_another_build(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path, run = recipe(tmp_path, models), tmp_path / "run"
    assert main(["run", str(path)]) == 0
    (row,) = own_answers(read_runs([run]))
    assert row.cells[1] != MISSING and row.picture
    assert main(["build", str(path), "build.batch_size=3"]) == 0
    assert own_answers(read_runs([run])) == [row]
    assert main(["build", str(path), "build.alpha=0.01"]) == 0
    (row,) = own_answers(read_runs([run]))
    assert row.cells[0] == "run (the build there has other settings)"
    assert set(row.cells[1:]) == {MISSING} and not row.picture


def test_answers_that_training_would_cut_have_no_reward(
    tmp_path: Path, models: tuple[Path, Path]
) -> None:
    path = recipe(tmp_path, models, gamma=0)
    words = [str(path), "build.max_new_tokens=20", "max_length=36"]
    assert main(["run", *words]) == 0
    counts = read_json(tmp_path / "data" / "counts.json")["counts"]
    assert counts["samples without reward: truncated"] == 20
    ledger = read_json(tmp_path / "run" / "data-ledger.json")["train"]
    assert (ledger["kept"], ledger["cut"]) == (ledger["read"], 0)


def test_an_adapter_that_was_not_trained_is_found_before_the_first_sample(
    tmp_path: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(str(models[0]))
    add_lora(loaded.model, LoraSettings(r=2)).save_pretrained(str(tmp_path / "fresh"))
    loaded.tokenizer.save_pretrained(tmp_path / "fresh")
    path = recipe(tmp_path, (tmp_path / "fresh", models[0]), gamma=0)
    assert main(["build", str(path)]) == 2
    assert "have the same weights: every reward would be 0" in capsys.readouterr().err
    assert rows(tmp_path / "data") == 0


def texts(path: Path) -> list[Any]:
    """What a file says beside its numbers."""
    if path.suffix == ".json":
        return [[p["pairs"], p["gap"]] for p in read_json(path)["points"]]
    return [[row["id"], row["prompt"], row["responses"], row["pairs"]] for row in read_rows(path)]


def close(one: list[Row], other: list[Row]) -> bool:
    def scores(found: list[Row]) -> list[float]:
        return [response["score"] for row in found for response in row["responses"]]

    return scores(one) == pytest.approx(scores(other), abs=1e-6)
