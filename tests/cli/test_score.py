"""`prefopt score`: other people's data with the reward of two models, and how well it agrees with theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file

from prefopt.cli.main import main
from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response, read_preferences, write_preferences
from prefopt.text.sources import load_preferences
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


RANKED: list[Row] = [
    {
        "prompt": f"Tell {i}\n",
        "responses": ["a b", "no " * 400, "b"],
        "ranks": [3, 2, 1],
    }
    for i in range(4)
]


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("third") / "m2", "llama", seed=2))


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


def score_again(models: list[str], source: Path, target: Path, *options: str) -> int:
    words = ["score", str(source), "--policy", models[0], "--reference", models[1]]
    return main([*words, "--output", str(target), *options])


def test_ranks_do_not_stay_beside_the_new_scores(models: list[str], tmp_path: Path) -> None:
    assert score(models, tmp_path, RANKED) == 0
    out = tmp_path / "out.jsonl"
    for record in read_preferences(out):
        assert [r.rank for r in record.responses] == [None] * 3
        assert [r.score is None for r in record.responses] == [False, True, False]
        assert record.meta["given_ranks"] == [3, 2, 1]
        assert "given_scores" not in record.meta
    loaded = load_preferences(out, ledger=Ledger("out"), pairing="best_worst").preferences
    for record in loaded:
        (pair,) = record.pairs
        chosen, rejected = (record.responses[k].score for k in (pair.chosen, pair.rejected))
        assert chosen is not None and rejected is not None and chosen > rejected


def test_what_people_said_outlives_any_number_of_scorings(
    models: list[str], third: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, one, two = (tmp_path / name for name in ("in.jsonl", "one.jsonl", "two.jsonl"))
    records = [
        Preference(
            "list", "Say\n", tuple(Response(t, score=s) for t, s in (("a", 3.0), ("b", 1.0)))
        ),
        Preference(
            "ranks", "Say it\n", tuple(Response(t, rank=k) for t, k in (("a", 1), ("b", 2)))
        ),
        Preference("pair", "Go\n", (Response("a"), Response("b")), (Pair(1, 0, weight=2.0),)),
    ]
    write_preferences(source, records)
    assert score_again(models, source, one, "--pairing", "best_worst") == 0
    capsys.readouterr()
    assert score_again([third, models[1]], source, two) == 0
    straight = capsys.readouterr().out
    assert score_again([third, models[1]], one, tmp_path / "again.jsonl") == 0
    assert capsys.readouterr().out == straight, "compared with people, not with the first model"
    scored, again = (read_preferences(p) for p in (two, tmp_path / "again.jsonl"))
    first = read_preferences(one)
    assert first[2].meta["given_pairs"] == [{"chosen": 1, "rejected": 0, "weight": 2.0}]
    for before, direct, found in zip(first, scored, again, strict=True):
        assert (found.responses, found.pairs) == (direct.responses, direct.pairs)
        (earlier,) = cast("list[Row]", found.meta["earlier_rewards"])
        assert earlier["policy"] == models[0] and earlier["pairing"] == "best_worst"
        assert earlier["scores"] == [r.score for r in before.responses]
        assert {**found.meta, "earlier_rewards": None} == {**direct.meta, "earlier_rewards": None}
    assert again[0].meta["given_scores"] == [3.0, 1.0]
    assert again[1].meta["given_ranks"] == [1, 2]
    assert again[2].pairs == (Pair(1, 0, weight=2.0),)


def test_a_key_of_ones_own_in_meta_is_not_overwritten(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = (Response("a", score=1.0), Response("b", score=2.0))
    source = tmp_path / "in.jsonl"
    write_preferences(source, [Preference("r", "Say\n", two, meta={"given_scores": "mine"})])
    assert score_again(models, source, tmp_path / "out.jsonl") == 2
    assert "meta has given_scores already" in capsys.readouterr().err.splitlines()[-1]
    broken: Row = {"given_scores": [1.0], "implicit_reward": {"beta": 0.1}}
    write_preferences(source, [Preference("r", "Say\n", two, meta=broken)])
    assert score_again(models, source, tmp_path / "out.jsonl") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "'meta.given_scores' is a list of 1 items; give one for each of the 2 responses" in said


def test_only_an_output_of_its_own_is_replaced(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("work of weeks\n")
    assert score(models, tmp_path, PAIRS) == 2
    assert "give another name, or --overwrite to replace it" in capsys.readouterr().err
    assert out.read_text() == "work of weeks\n"
    assert not (tmp_path / "out.jsonl.journal.sqlite").exists()
    assert score(models, tmp_path, PAIRS, "--overwrite") == 0
    assert len(read_preferences(out)) == 4
    assert score(models, tmp_path, PAIRS[:2]) == 0, "its own"
    assert len(read_preferences(out)) == 2


def test_the_standard_output_of_the_command_is_no_output_of_another(
    models: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where a shell has redirected it, it is a file that is there already."""
    assert score(models, tmp_path, PAIRS, "--output", "/dev/stdout") == 0
    found = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["prompt"] for line in found[:4]] == [row["prompt"] for row in PAIRS]


def test_a_model_that_only_looks_like_another_is_refused(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight that no text of these meets is another one."""
    other = shutil.copytree(models[0], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.embed_tokens.weight"][0] += 1e-3  # <bos>, which no prompt here begins with
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert score([models[0], str(other)], tmp_path, PAIRS) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "are the same model to all 8 responses" in said
    assert not (tmp_path / "out.jsonl").exists()


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
