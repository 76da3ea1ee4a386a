"""`prefopt eval --environment`: from a model folder to a table, files that resume, comparisons, errors in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.generate.journal import Journal
from tests.tiny import make_model_folder

SMALL = ["--option", "width=2", "height=2", "seen_tasks=6", "unseen_tasks=3"]
WORDS = [
    "--environment", "rooms", *SMALL, "--format", "action", "--max-new-tokens", "6",
    "--max-turns", "3", "--workers", "1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval")
    make_model_folder(path / "model", "llama", max_position_embeddings=4096)
    return path


def evaluate(folder: Path, *words: str) -> int:
    return main(["eval", str(folder / "model"), *WORDS, *words])


def count(folder: Path) -> int:
    with Journal(folder / "agent-evaluation.sqlite") as journal:
        return journal.count()


@pytest.mark.slow
def test_table_files_and_what_is_not_done_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert evaluate(folder, "--limit", "3", "--output", str(out)) == 0
    shown = capsys.readouterr().out
    assert "format errors" in shown and "0/3" in shown and f"results: {out}" in shown
    facts = json.loads((out / "agent-evaluation.json").read_text())
    assert (facts["name"], facts["environment"], list(facts["splits"])) == (
        "model",
        "rooms",
        ["seen", "unseen"],
    )
    settings = facts["settings"]
    assert settings["environment_options"] == {
        "width": 2, "height": 2, "seen_tasks": 6, "unseen_tasks": 3,
    }  # fmt: skip
    assert (settings["format"], settings["example"], settings["max_turns"]) == ("action", True, 3)
    rows = [json.loads(line) for line in (out / "trajectories.jsonl").read_text().splitlines()]
    assert [r["task"]["split"] for r in rows] == ["seen"] * 3 + ["unseen"] * 3
    assert facts["splits"]["seen"]["tasks"] == 3
    assert facts["events"]["resets"] == 7, "six tasks and the one of the example"
    # The same command generates and plays nothing again.
    before = count(out)
    assert evaluate(folder, "--limit", "3", "--output", str(out)) == 0
    assert count(out) == before
    assert json.loads((out / "agent-evaluation.json").read_text()) == facts
    # Other settings do not take its place unless that is said.
    capsys.readouterr()
    assert evaluate(folder, "--limit", "2", "--output", str(out)) == 2
    assert "other settings (then / now: limit 3 / 2)" in capsys.readouterr().err
    assert evaluate(folder, "--limit", "2", "--output", str(out), "--overwrite") == 0
    assert json.loads((out / "agent-evaluation.json").read_text())["settings"]["limit"] == 2


@pytest.mark.slow
def test_a_run_is_compared_with_its_start_and_told_what_it_was_trained_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = tmp_path / "run", tmp_path / "base"
    make_model_folder(run / "model", "llama", seed=1, max_position_embeddings=4096)
    (run / "run.yaml").write_text(
        "method: dmpo\nbuild: {environment: rooms, format: react, example: true, environment_options: "
        "{height: 2, width: 2, train_tasks: 9}}\n"
    )
    (run / "finished.json").write_text("{}")
    assert evaluate(folder, "--split", "seen", "--output", str(base)) == 0
    capsys.readouterr()
    assert main(["eval", str(run), *WORDS, "--split", "seen", "--against", str(base)]) == 0
    shown = capsys.readouterr().out
    assert f"seen against {base}: " in shown and "(McNemar)\n" in shown
    assert f"{base}: evaluated with other settings" not in shown
    assert "trained with format 'react', evaluated with 'action'" in shown
    assert "environment_options" not in shown, (
        "an agent sees the same, however many tasks there are"
    )
    assert (run / "agent-evaluation.json").is_file() and (run / "trajectories.jsonl").is_file()
    fewer_turns = [*WORDS, "--split", "seen", "--max-turns", "2", "--against", str(base)]
    assert main(["eval", str(run), *fewer_turns, "--overwrite"]) == 0
    shown = capsys.readouterr().out
    assert f"{base}: evaluated with other settings (there / here: max_turns 3 / 2)" in shown
    fewer = [*WORDS, "--split", "seen", "--limit", "2", "--against", str(base)]
    assert main(["eval", str(run), *fewer]) == 2
    assert "its 6 tasks of split 'seen' are not the 2" in capsys.readouterr().err
    other = [*WORDS, "--option", "seed=1", "--split", "seen"]
    assert main(["eval", str(run), *other, "--against", str(base)]) == 2
    assert "task 'seen-1' was another one, under other options" in capsys.readouterr().err
    assert main(["eval", str(run), *other, "--limit", "1", "--overwrite"]) == 0
    assert "trained with environment_options {" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--environment", "room"], "did you mean 'rooms'"),
        (["--environment", "rooms", "--split", "see"], "no split 'see'"),
        (["--environment", "rooms", "--split", "seen", "seen"], "split 'seen' is given twice"),
        (["--environment", "rooms", "--format", "re"], "format"),
        (["--environment", "rooms", "--option", "doors"], "write KEY=VALUE"),
        (["--environment", "rooms", "--option", "a=[1"], "the value cannot be read"),
        (["--environment", "rooms", "--option", "dors=1"], "no option 'dors'"),
        (["--environment", "rooms", "--limit", "0"], "limit is 0"),
        (
            ["--environment", "rooms", "--option", "width=2026-01-01"],
            'width is the text "2026-01-01"',
        ),
        (["--environment", "rooms", "--split", "train", "--limit", "1"], "no task but that of the"),
        (
            ["--environment", "tests.agents.counting:Counting", "--split", "s"],
            "no split 's'; it has",
        ),
        (["--environment", "rooms", "--option", "width=3.5"], "option width is the number 3.5"),
        (["--environment", ":X"], "Empty module name"),
        (["--environment", "rooms", "--workers", "0"], "workers is 0"),
        (["--environment", "rooms", "--style", "chat"], "--style means nothing to --environment"),
        (["--environment", "rooms", "--grader", "scdpo"], "--grader means nothing to --env"),
        (["sums.jsonl", "--environment", "rooms"], "sums.jsonl means nothing to --environment"),
        (["--environment", "rooms", "--harness", "gsm8k"], "--environment means nothing to"),
        (["--environment", "rooms", "--num-fewshot", "1"], "--num-fewshot belongs to --harness"),
        (["--environment", "rooms", "--against", "none"], "none: holds no trajectories.jsonl"),
        (["sums.jsonl", "--split", "seen"], "--split belongs to --environment NAME"),
        (["sums.jsonl", "--no-example"], "--no-example belongs to --environment NAME"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["eval", "model", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (folder / "evaluations").exists()
