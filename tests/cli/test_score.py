"""`prefopt score`: other people's data with the reward of two models, and how well it agrees with theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.records import read_preferences
from tests.tiny import make_model_folder

Row = dict[str, Any]
PAIRS: list[Row] = [
    {"prompt": f"{i} + 4?\n", "chosen": f"It is {i + 4}.", "rejected": f"It is {i} or so, yes."}
    for i in range(4)
]
LISTS: list[Row] = [
    {"prompt": "Say\n", "responses": ["a b", "b a b", "c"], "scores": [3.0, 1.0, 2.0]},
    {"prompt": "Tell\n", "responses": ["a", "no " * 400], "scores": [1.0, 2.0]},
]
LABELS: list[Row] = [
    {"prompt": "Say\n", "completion": f"yes {i}", "label": i % 2 == 0} for i in range(4)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [str(make_model_folder(root / f"m{seed}", "llama", seed=seed)) for seed in (0, 1)]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(models: list[str], folder: Path, rows: list[Row], *options: str) -> int:
    source = write(folder / "in.jsonl", rows)
    out = ["--output", str(folder / "out.jsonl")]
    return main(
        ["score", str(source), "--policy", models[0], "--reference", models[1], *out, *options]
    )


def test_pairs_get_scores_and_are_compared(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(models, tmp_path, PAIRS, "--beta", "0.5") == 0
    said = capsys.readouterr().out.splitlines()
    records = read_preferences(tmp_path / "out.jsonl")
    right = sum((r.responses[0].score or 0) > (r.responses[1].score or 0) for r in records)
    assert said[0] == "8 of 8 responses have a score"
    assert said[1].startswith(
        f"pairs: chosen scores higher than rejected: {25 * right:.2f}% ({right} of 4), 95% interval"
    )
    facts: Any = records[0].meta["implicit_reward"]
    assert facts["beta"] == 0.5
    first = facts["policy_logps"][0] - facts["reference_logps"][0]
    assert records[0].responses[0].score == pytest.approx(0.5 * first)
    before = (tmp_path / "out.jsonl").read_bytes()
    assert score(models, tmp_path, PAIRS, "--beta", "0.5") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_lists_keep_their_own_scores_beside_the_new_ones_and_can_be_paired_anew(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(models, tmp_path, LISTS) == 0
    said = capsys.readouterr().out
    assert "4 of 5 responses have a score\n  no score: truncated: 1\n" in said
    assert "of 3), 95% interval" in said, "every two that differ"
    assert "1 without a score, left out" in said
    first, second = read_preferences(tmp_path / "out.jsonl")
    assert first.meta["given_scores"] == [3.0, 1.0, 2.0]
    assert first.pairs == (), "a pair by the annotation could contradict the new scores"
    assert second.responses[1].score is None
    assert score(models, tmp_path, LISTS, "--pairing", "best_worst") == 0
    first, second = read_preferences(tmp_path / "out.jsonl")
    (pair,) = first.pairs
    found = [r.score or 0.0 for r in first.responses]
    assert (found[pair.chosen], found[pair.rejected]) == (max(found), min(found))
    assert second.pairs == ()


def test_labels_are_compared_with_the_sign(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(models, tmp_path, LABELS) == 0
    assert "labels: desirable just where the score is above 0: " in capsys.readouterr().out
    assert [r.responses[0].label for r in read_preferences(tmp_path / "out.jsonl")] == [
        True,
        False,
    ] * 2


@pytest.mark.parametrize("reference", ["same", "gone"])
def test_a_wrong_reference_is_refused_before_anything_is_scored(
    reference: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = models[0] if reference == "same" else str(tmp_path / "gone")
    assert score([models[0], other], tmp_path, PAIRS) == 2
    said = capsys.readouterr().err
    assert {"same": "have the same weights: every reward", "gone": "gone does not exist"}[
        reference
    ] in said.splitlines()[-1]
    assert not (tmp_path / "out.jsonl.journal.sqlite").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--beta", "0"], "beta is 0.0; use a number above 0"),
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--output", "in.jsonl"], "is the input file; give another name"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    says: str,
    models: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert score(models, tmp_path, PAIRS, *options) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert says in line
