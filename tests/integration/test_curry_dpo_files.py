"""Curry-DPO and its files: rows of one pair, text that is too long, curricula written over, evaluation data."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from prefopt.build.curriculum import UNFIT
from prefopt.config import parse
from prefopt.errors import ConfigError, ModelError, RecordError, ResumeError
from prefopt.methods.base import find_method
from prefopt.methods.curry_dpo import CurryDpoConfig, difficulty_of
from prefopt.models.load import load_model, model_digest
from prefopt.records import read_preferences
from prefopt.runs.curriculum_folder import keep_earlier
from prefopt.runs.difficulty import basis_of
from tests.integration.runs import Row, Settings, read_json, read_rows, weight_bytes, write_rows
from tests.tiny import make_model_folder

TIMES = {"seconds", "seconds_per_step"}


def ranked(i: int, answers: int = 3) -> Row:
    """A list of so many answers; the last one is the worst."""
    texts = [f"The answer is {i + 4 + k}{' or so' * k}." for k in range(answers)]
    return {
        "prompt": f"{i} + 4?\n",
        "responses": texts,
        "scores": [9 - 2 * k for k in range(answers)],
    }


@pytest.fixture
def curry(settings: Settings, tmp_path: Path) -> Settings:
    """Two stages of four pairs, a step each."""
    return settings.with_(
        method="curry_dpo",
        train_file=str(write_rows(tmp_path / "lists.jsonl", map(ranked, range(4)))),
        num_train_epochs=1.0,
    )


def stage_pairs(folder: Path) -> list[list[str]]:
    files = sorted((folder / "curriculum").glob("stage-*.jsonl"))
    return [[r.responses[1].text for r in read_preferences(path)] for path in files]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "curriculum").iterdir() if p.is_file()}


def turns(i: int, rejected: str) -> Row:
    answer = {"role": "assistant", "chosen_content": "4", "rejected_content": rejected}
    return {"conversation": [{"role": "user", "content": f"What is {i} - {i - 4}?"}, answer]}


def test_levels_of_the_published_format_are_pairs_of_one_prompt(
    curry: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"easy": turns(i, "no"), "medium": turns(i, "44"), "hard": turns(i, "5")} for i in range(5, 9)]  # fmt: skip
    result = curry.with_(
        train_file=str(write_rows(tmp_path / "published.jsonl", rows)),
        difficulty="reference_gap",
        schedule="single_run",
    ).train()
    said = capsys.readouterr().err
    assert "12 rows of one pair each are taken for the pairs of 4 prompts" in said
    assert "note: 12 of 12 records say their stage, which stages: ranks does not use" in said
    stages = [
        read_preferences(result.folder / "curriculum" / f"stage-{k}.jsonl") for k in (1, 2, 3)
    ]
    assert [len({str(r.prompt) for r in stage}) for stage in stages] == [4, 4, 4]
    assert {str(r.meta["stage"]) for stage in stages for r in stage} == {"easy", "medium", "hard"}
    eases = [{str(r.prompt): float(str(r.meta["curriculum_ease"])) for r in s} for s in stages]
    assert all(eases[0][p] > eases[1][p] > eases[2][p] for p in eases[0])
    assert [row["stage"] for row in read_rows(result.folder / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("align", ["hard", "easy"])
def test_a_stage_of_unusable_pairs_is_found_before_training(
    align: str, curry: Settings, tmp_path: Path
) -> None:
    """The one list of four answers would be alone in the first or the last stage."""
    long = ranked(9, 4) | {"prompt": "What is it? " * 40}
    path = str(write_rows(tmp_path / "long.jsonl", [*map(ranked, range(4)), long]))
    result = curry.with_(train_file=path, max_length=64, align=align).train()
    index = read_json(result.folder / "curriculum" / "curriculum.json")
    assert [stage["pairs"] for stage in index["stages"]] == [4, 4]
    assert index["left_out"] == {f"{UNFIT}: prompt too long": 3}
    assert (index["ledger"]["kept"], index["ledger"]["dropped"]) == (4, 1)
    strict = curry.with_(
        train_file=path, max_length=64, strict=True, output_dir=str(tmp_path / "s")
    )
    with pytest.raises(
        RecordError, match=r"strict forbids .*long.jsonl:5 dropped \(prompt too long"
    ):
        strict.train()
    assert not (tmp_path / "s" / "stage-1").exists()


def test_pairs_without_what_the_objective_needs_are_left_out(
    curry: Settings, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"q{i}?\n", "chosen": f"a{i}", "rejected": f"b{i}", "stage": 1 + i % 2}
        | ({} if i % 2 else {"margin": 1.0})
        for i in range(4)
    ]
    result = curry.with_(
        train_file=str(write_rows(tmp_path / "margins.jsonl", rows)),
        stages="given",
        loss_type="dpo_margin",
    ).train()
    index = read_json(result.folder / "curriculum" / "curriculum.json")
    assert [stage["pairs"] for stage in index["stages"]] == [2]
    assert index["left_out"] == {f"{UNFIT}: a pair without a margin left out": 2}


@pytest.mark.parametrize("schedule", ["iterative", "single_run"])
def test_a_failed_overwrite_leaves_the_curriculum(
    schedule: str, curry: Settings, tmp_path: Path
) -> None:
    own = curry.with_(schedule=schedule, eval_file=curry["train_file"], eval_strategy="epoch")
    result = own.train()
    before = contents(result.folder)
    assert set(before) == {"stage-1.jsonl", "stage-2.jsonl", "held-out.jsonl", "curriculum.json"}
    wrong = own.with_(
        overwrite_output_dir=True,
        stages="pooled",
        use_peft=True,
        lora_target_modules=["nothing_such"],
    )
    with pytest.raises(ModelError, match="nothing_such"):
        wrong.train()
    assert contents(result.folder) == before
    assert not (result.folder / "curriculum" / ".earlier").exists()
    assert (result.folder / "chain.json").exists() == (schedule == "iterative")
    if schedule == "iterative":
        assert read_json(result.folder / "chain.json")["links"] == ["stage-1", "stage-2"]
    assert own.with_(resume_from_checkpoint=True).train() == result
    other = own.with_(overwrite_output_dir=True, order="hard_to_easy").train()
    assert stage_pairs(other.folder) == stage_pairs(result.folder)
    assert contents(other.folder)["stage-1.jsonl"] != before["stage-1.jsonl"]
    assert not list((result.folder / "curriculum").glob(".earlier*"))


def test_an_overwrite_that_was_killed_before_it_began_is_undone(
    curry: Settings, tmp_path: Path
) -> None:
    result = curry.train()
    before = contents(result.folder)
    keep_earlier(result.folder)
    (result.folder / "curriculum" / "stage-1.jsonl").unlink()
    (result.folder / "curriculum" / "stage-9.jsonl").write_text("{}\n")
    (result.folder / "curriculum" / "mine.txt").write_text("keep")
    assert curry.with_(resume_from_checkpoint=True).train() == result
    assert contents(result.folder) == before | {"mine.txt": b"keep"}
    keep_earlier(result.folder)
    (result.folder / "stage-1" / "finished.json").touch()  # its training has begun
    curry.with_(resume_from_checkpoint=True).train()
    assert not list((result.folder / "curriculum").glob(".earlier*"))


def test_evaluation_data_belong_to_the_curriculum(curry: Settings, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held.jsonl", [ranked(7)])
    own = curry.with_(eval_file=str(held_out), eval_strategy="epoch")
    result = own.train()
    before = contents(result.folder)
    again = own.with_(resume_from_checkpoint=True)
    assert again.train() == result
    assert contents(result.folder) == before
    write_rows(held_out, [ranked(8)])
    with pytest.raises(ResumeError, match=r"made with other settings or data \(held_out\)"):
        again.train()
    with pytest.raises(ResumeError, match=r"made with other settings or data \(held_out\)"):
        again.with_(eval_file=None, eval_strategy="no").train()
    write_rows(held_out, [ranked(7)])
    (result.folder / "curriculum" / "held-out.jsonl").write_text("{}\n")
    with pytest.raises(ResumeError, match=r"held-out.jsonl: is not the file that this run wrote"):
        again.train()


def test_a_list_without_a_score_is_an_error_in_evaluation_too(
    curry: Settings, tmp_path: Path
) -> None:
    rows = [ranked(7), ranked(8) | {"scores": [9, None, 5]}]
    held_out = curry.with_(
        eval_file=str(write_rows(tmp_path / "held.jsonl", rows)), eval_strategy="epoch"
    )
    with pytest.raises(
        RecordError, match=r"held.jsonl:2: response 2 has neither a score nor a rank"
    ):
        held_out.train()
    result = held_out.with_(on_missing="drop").train()
    written = read_preferences(result.folder / "curriculum" / "held-out.jsonl")
    assert [[(p.chosen, p.rejected) for p in r.pairs] for r in written] == [
        [(0, 1), (0, 2)],
        [(0, 2)],
    ]
    pairs = [{"prompt": "7 + 4?\n", "chosen": "11", "rejected": "12", "score_chosen": None}]
    unscored = curry.with_(
        eval_file=str(write_rows(tmp_path / "pairs.jsonl", pairs)),
        eval_strategy="epoch",
        output_dir=str(tmp_path / "pairs"),
    )
    assert unscored.train().metrics["eval_loss"] > 0, "pairs need no scores to be evaluated on"


def test_a_single_run_evaluates_logs_and_saves_at_the_end_of_each_stage(
    curry: Settings, tmp_path: Path
) -> None:
    rows = [ranked(i, 4) for i in range(6)]
    path = str(write_rows(tmp_path / "six.jsonl", rows))
    recipe = curry.with_(
        train_file=path,
        eval_file=path,
        schedule="single_run",
        num_train_epochs=1.5,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=10,
    )
    whole = recipe.train()
    found = read_rows(whole.folder / "metrics.jsonl")
    # Three stages of six pairs, 1.5 passes in batches of 4: three steps each; a pass over all is six steps.
    assert [(r["step"], r["stage"], "eval_loss" in r) for r in found] == [
        (1, 1, False), (3, 1, True), (6, 2, True), (9, 3, True),
    ]  # fmt: skip
    assert [r["epoch"] for r in found] == [0.166667, 0.5, 1.0, 1.5]
    saved = sorted(p.name for p in (whole.folder / "checkpoints").iterdir())
    assert saved == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    untimed = [{k: v for k, v in row.items() if k not in TIMES} for row in found]
    timeless = {k: v for k, v in whole.metrics.items() if k not in TIMES}
    expected = weight_bytes(whole.model)
    for name in ("finished.json", "report.html"):
        (whole.folder / name).unlink()
    for name in ("model", "checkpoints/checkpoint-6", "checkpoints/checkpoint-9"):
        shutil.rmtree(whole.folder / name)
    resumed = recipe.with_(resume_from_checkpoint=True).train()
    assert {k: v for k, v in resumed.metrics.items() if k not in TIMES} == timeless
    assert weight_bytes(whole.model) == expected
    after = read_rows(whole.folder / "metrics.jsonl")
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in after] == untimed


def test_rows_of_one_stage_say_none(curry: Settings) -> None:
    result = curry.with_(stages="pooled").train()
    assert all("stage" not in row for row in read_rows(result.folder / "stage-1" / "metrics.jsonl"))


def test_a_stage_under_another_name_is_read_from_there(curry: Settings, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i} + 4?\n", "chosen": str(i + 4), "rejected": "no", "level": 2.0 - i % 2}
        | {"stage": "draft"}
        for i in range(4)
    ]
    pairs = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    result = curry.with_(
        train_file=str(write_rows(tmp_path / "levels.jsonl", rows)),
        eval_file=str(write_rows(tmp_path / "held.jsonl", pairs)),
        columns={"stage": "level"},
        stages="given",
        schedule="single_run",
    ).train()
    stages = [read_preferences(result.folder / "curriculum" / f"stage-{k}.jsonl") for k in (1, 2)]
    assert [[r.prompt for r in s] for s in stages] == [
        ["1 + 4?\n", "3 + 4?\n"],
        ["0 + 4?\n", "2 + 4?\n"],
    ]
    assert stages[1][0].meta == {"level": 2.0, "stage": "draft", "curriculum_stage": 2}
    plain = curry.with_(method="dpo", columns={"stage": "level"}, output_dir=str(tmp_path / "dpo"))
    with pytest.raises(
        ConfigError, match=r"columns.stage names .*'level', and method dpo trains in"
    ):
        plain.train()
    with pytest.raises(RecordError, match=r"columns.stage: lists.jsonl has no column 'level'"):
        curry.with_(
            stages="given", columns={"stage": "level"}, output_dir=plain["output_dir"]
        ).train()
    with pytest.raises(ConfigError, match="unknown role 'stages'; did you mean 'stage'"):
        curry.with_(columns={"stages": "level"}, overwrite_output_dir=True).train()


def hub_model(cache: Path, name: str, commits: dict[str, str], *, seed: int) -> None:
    """The cache of a hub model, whose branches are at these commits."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    for branch, commit in commits.items():
        (repository / "refs" / branch).write_text(commit * 40)
        if not (repository / "snapshots" / (commit * 40)).exists():
            make_model_folder(repository / "snapshots" / (commit * 40), "llama", seed=seed)


def test_the_revision_is_that_of_the_trained_model_alone(
    curry: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_model(tmp_path, "someone/start", {"tuned": "a"}, seed=1)
    hub_model(tmp_path, "someone/measure", {"main": "b"}, seed=2)
    hub_model(tmp_path, "someone/words", {"main": "d"}, seed=4)
    own = curry.with_(
        model_name_or_path="someone/start",
        model_revision="tuned",
        tokenizer_name_or_path="someone/words",
        difficulty="implicit_reward",
        difficulty_policy="someone/measure",
    )
    result = own.train()
    basis = read_json(result.folder / "curriculum" / "curriculum.json")["basis"]
    assert (basis["reference_files"], basis["policy_files"]) == ("a" * 40, "b" * 40)
    told = read_json(result.folder / "finished.json")["links"]
    start = tmp_path / "models--someone--start" / "snapshots" / ("a" * 40)
    assert told[0]["reference"] == model_digest(load_model(start).model)
    hub_model(tmp_path, "someone/measure", {"main": "c"}, seed=3)
    with pytest.raises(ResumeError, match=r"made with other settings or data \(policy_files\)"):
        own.with_(resume_from_checkpoint=True).train()


def test_the_base_of_an_adapter_counts_too(curry: Settings, tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base", "llama", seed=4)
    adapter = curry.with_(
        model_name_or_path=str(base), use_peft=True, lora_r=2, only="easiest"
    ).train()
    raw = curry.with_(difficulty="reference_gap", difficulty_reference=str(adapter.model))
    config = parse(raw, find_method("curry_dpo").config)
    assert isinstance(config, CurryDpoConfig)
    before = basis_of(difficulty_of(config), config)["reference_files"]
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert basis_of(difficulty_of(config), config)["reference_files"] != before
