"""Curry-DPO through the real trainer: chains of stages, single runs, references, resuming, adapters."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM

from prefopt.build.curriculum import UNFIT
from prefopt.cli.main import main
from prefopt.config import load_recipe
from prefopt.errors import ConfigError, ResumeError
from prefopt.models.likelihood import response_logps
from prefopt.models.load import load_model, model_digest
from prefopt.records import Preference, Response, read_preferences
from tests.integration.runs import (
    Settings,
    kill_when,
    largest_difference,
    read_json,
    read_rows,
    run,
    string_pairs,
    weight_bytes,
    weights,
    write_rows,
)
from tests.integration.test_processes import TORCHRUN, WEIGHTS

LN_2 = math.log(2)


def lists(count: int = 8) -> list[dict[str, Any]]:
    """Three answers with scores each: two pairs, the one against the third is the easy one."""
    return [
        {
            "prompt": f"What is {i} + 4?\n",
            "responses": [f"The answer is {i + 4}.", f"The answer is {i + 5}", "no" * (i % 4 + 1)],
            "scores": [5, 4 - i / 10, 1],
        }
        for i in range(count)
    ]


@pytest.fixture
def curry(settings: Settings, tmp_path: Path) -> Settings:
    """Two stages of eight pairs, two steps each."""
    return settings.with_(
        method="curry_dpo",
        train_file=str(write_rows(tmp_path / "lists.jsonl", lists())),
        num_train_epochs=1.0,
    )


def first_row(folder: Path) -> dict[str, float]:
    return read_rows(folder / "metrics.jsonl")[0]


def identity(folder: Path) -> dict[str, str]:
    return read_json(folder / "finished.json")["identity"]


def digest_of(model: Path | str) -> str:
    return model_digest(load_model(model).model)


def sums(model: Path | str, records: Sequence[Preference]) -> list[list[float]]:
    """Log-probabilities of responses under a stored model."""
    loaded = load_model(model)
    rows = response_logps(loaded.model, loaded.tokenizer, records)
    return [[each.total for each in row] for row in rows]


def test_b1_one_pair_is_dpo_bit_for_bit(curry: Settings, tmp_path: Path) -> None:
    rows = [
        {"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "scores": [2, 1]}
        for r in string_pairs()
    ]
    one = curry.with_(train_file=str(write_rows(tmp_path / "one.jsonl", rows)), beta=0.1)
    plain = one.with_(method="dpo", output_dir=str(tmp_path / "dpo")).train()
    expected = weight_bytes(plain.model)
    assert weight_bytes(one.train().model) == expected
    single = one.with_(output_dir=str(tmp_path / "single"), schedule="single_run").train()
    assert weight_bytes(single.model) == expected
    assert first_row(single.folder)["loss"] == first_row(plain.folder)["loss"]


def test_b3_every_stage_starts_at_ln_2_from_the_model_before(
    curry: Settings, tmp_path: Path
) -> None:
    start = Path(curry["model_name_or_path"])
    before = weight_bytes(start)
    result = curry.train()
    stages = [tmp_path / "run" / f"stage-{k}" for k in (1, 2)]
    for stage in stages:
        row = first_row(stage)
        assert row["loss"] == pytest.approx(LN_2, abs=1e-7)
        assert (row["rewards/margins"], row["rewards/accuracies"]) == (0.0, 0.0)
    digests = [digest_of(start), digest_of(stages[0] / "model")]
    assert digests[0] != digests[1]
    assert [identity(s)["reference"] for s in stages] == digests
    assert [identity(s)["starting weights"] for s in stages] == digests
    told = read_json(result.folder / "finished.json")["links"]
    assert [(x["name"], x["reference"]) for x in told] == [
        ("stage-1", digests[0]),
        ("stage-2", digests[1]),
    ]
    assert weight_bytes(start) == before
    assert result.model == tmp_path / "run" / "model"
    assert weight_bytes(result.model) == weight_bytes(stages[1] / "model")
    assert result.report.exists()
    pairs = [r.id for r in read_preferences(tmp_path / "run" / "curriculum" / "stage-1.jsonl")]
    assert pairs == [f"lists:{i}/0-2" for i in range(1, 9)]
    index = read_json(tmp_path / "run" / "curriculum" / "curriculum.json")
    assert [(s["pairs"], s["ease_least"], s["ease_greatest"]) for s in index["stages"]] == [
        (8, 4, 4),
        (8, 1, pytest.approx(1.7)),
    ]


def test_b4_a_single_run_has_one_reference_and_drifts_from_it(
    curry: Settings, tmp_path: Path
) -> None:
    single = curry.with_(
        schedule="single_run",
        per_device_train_batch_size=8,
        save_strategy="steps",
        save_steps=1,
        beta=0.3,
    ).train()
    start = curry["model_name_or_path"]
    assert identity(single.folder)["reference"] == digest_of(start)
    rows = read_rows(single.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2], "a step for each stage"
    assert rows[0]["rewards/margins"] == 0.0
    second = read_preferences(single.folder / "curriculum" / "stage-2.jsonl")
    middle = sums(single.folder / "checkpoints" / "checkpoint-1", second)
    drift = [
        (p[0] - p[1]) - (r[0] - r[1]) for p, r in zip(middle, sums(start, second), strict=True)
    ]
    assert rows[1]["rewards/margins"] == pytest.approx(0.3 * sum(drift) / len(drift), abs=1e-5)
    assert abs(rows[1]["rewards/margins"]) > 1e-3


def test_b6_stages_that_change_nothing_are_the_identity(curry: Settings) -> None:
    """A learning rate below what float32 weights notice."""
    result = curry.with_(learning_rate=1e-30, weight_decay=0.0).train()
    before = weights(Path(curry["model_name_or_path"]))
    after = weights(result.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_b7_log_ratios_of_the_stages_add_up(curry: Settings, tmp_path: Path) -> None:
    result = curry.with_(learning_rate=1e-2).train()
    texts = tuple(Response(text) for text in ("The answer is 50.", "Paris", " or so"))
    held_out = [Preference("h", "What is 46 + 4?\n", texts)]
    total = [0.0] * len(texts)
    for name in ("stage-1", "stage-2"):
        folder = tmp_path / "run" / name
        reference = str(load_recipe(folder / "run.yaml")["model_name_or_path"])
        (after,), (before,) = sums(folder / "model", held_out), sums(reference, held_out)
        total = [t + a - b for t, a, b in zip(total, after, before, strict=True)]
    (last,) = sums(result.model, held_out)
    (first,) = sums(curry["model_name_or_path"], held_out)
    expected = [b - a for a, b in zip(first, last, strict=True)]
    assert total == pytest.approx(expected, abs=1e-9)
    assert min(abs(x) for x in expected) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["iterative", "single_run"])
def test_b8_killed_in_the_second_stage_and_resumed_to_the_same_bytes(
    schedule: str, curry: Settings, tmp_path: Path
) -> None:
    curry = curry.with_(
        schedule=schedule,
        per_device_train_batch_size=1,
        num_train_epochs=4.0,
        save_strategy="steps",
        save_steps=2,
        difficulty="reference_gap",
    )
    whole = curry.with_(
        output_dir=str(tmp_path / "whole"), cache_dir=str(tmp_path / "other")
    ).train()
    folder, step = {
        "iterative": (tmp_path / "run" / "stage-2", 4),
        "single_run": (tmp_path / "run", 36),
    }[schedule]
    recipe = curry.write(tmp_path / "recipe.yaml")
    kill_when((folder / "checkpoints" / f"checkpoint-{step}").exists, recipe)
    assert not (tmp_path / "run" / "finished.json").exists()
    refused = run(recipe)
    assert "already holds a run (unfinished" in refused.stderr
    resumed = run(recipe, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {folder / 'checkpoints'}" in resumed.stderr
    assert weight_bytes(tmp_path / "run" / "model") == weight_bytes(whole.model)
    if schedule == "iterative":
        assert f"{tmp_path / 'run' / 'stage-1'}: this run is already finished" in resumed.stderr
        told = [read_json(r / "finished.json")["links"] for r in (tmp_path / "run", whole.folder)]
        assert [x["reference"] for x in told[0]] == [x["reference"] for x in told[1]]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["iterative", "single_run"])
def test_b5_two_processes_are_one_run(schedule: str, curry: Settings, tmp_path: Path) -> None:
    # The first steps of AdamW, anew in each stage, are signs of the gradient unless epsilon is above its noise.
    curry = curry.with_(schedule=schedule, adam_epsilon=1e-4)
    whole = curry.with_(output_dir=str(tmp_path / "whole")).train()
    halves = curry.with_(per_device_train_batch_size=2, cache_dir=str(tmp_path / "empty"))
    done = run(halves.write(tmp_path / "recipe.yaml"), command=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert largest_difference(weights(whole.model), weights(tmp_path / "run" / "model")) < WEIGHTS
    assert done.stderr.count("stage 1 of 2: 8 pairs of 8 records") == 1


def test_an_adapter_goes_on_as_it_is(curry: Settings, tmp_path: Path) -> None:
    result = curry.with_(use_peft=True, lora_r=2, learning_rate=1e-2).train()
    assert (result.model / "adapter_config.json").exists()
    second = tmp_path / "run" / "stage-2"
    row = first_row(second)
    assert row["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert row["rewards/margins"] == 0.0, "the reference is the adapter of stage 1, not its base"
    assert load_recipe(second / "run.yaml")["use_peft"] is False
    assert digest_of(tmp_path / "run" / "stage-1" / "model") == identity(second)["reference"]


def test_a_finished_chain_is_found_again_and_no_other(
    curry: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = curry.train()
    stages = tmp_path / "run"
    files = {p: p.stat().st_mtime_ns for p in stages.rglob("*.safetensors")}
    with pytest.raises(ResumeError, match="already holds a run \\(finished\\); pass --resume"):
        curry.train()
    capsys.readouterr()
    again = curry.with_(resume_from_checkpoint=True)
    assert again.train() == result
    assert f"{stages}: all 2 trainings are already finished" in capsys.readouterr().err
    recipe = (stages / "run.yaml").read_bytes()
    with pytest.raises(ResumeError, match="the curriculum there was made .*\\(order\\)"):
        again.with_(order="hard_to_easy").train()
    with pytest.raises(ResumeError, match="not the same run: learning_rate"):
        again.with_(learning_rate=0.5).train()
    assert (stages / "run.yaml").read_bytes() == recipe
    (stages / "curriculum" / "stage-2.jsonl").write_text("{}\n")
    with pytest.raises(ResumeError, match=r"stage-2.jsonl: is not the file that this run wrote"):
        again.train()
    with pytest.raises(ConfigError, match="is a checkpoint of one training, and this recipe makes"):
        curry.with_(resume_from_checkpoint=str(stages / "stage-1" / "checkpoints" / "x")).train()
    assert {p: p.stat().st_mtime_ns for p in stages.rglob("*.safetensors")} == files


@pytest.mark.slow
def test_overwriting_starts_all_stages_anew(curry: Settings, tmp_path: Path) -> None:
    curry.train()
    other = curry.with_(overwrite_output_dir=True, seed=1)
    expected = curry.with_(output_dir=str(tmp_path / "other"), seed=1).train()
    assert weight_bytes(other.train().model) == weight_bytes(expected.model)
    own = str(tmp_path / "run" / "stage-2" / "model")
    with pytest.raises(ConfigError, match="--overwrite would delete .*stage-2/model"):
        other.with_(model_name_or_path=own).train()
    assert Path(own).exists()


@pytest.mark.slow
def test_what_goes_on_from_another_model_is_forgotten(curry: Settings, tmp_path: Path) -> None:
    """Stage 1 is trained again after a kill: an old stage 2 is not taken for its continuation."""
    expected = weight_bytes(curry.train().model)
    shutil.rmtree(tmp_path / "run" / "stage-1")
    second = tmp_path / "run" / "stage-2" / "finished.json"
    second.write_text(second.read_text().replace('"starting weights": "', '"starting weights": "0'))
    result = curry.with_(resume_from_checkpoint=True).train()
    assert weight_bytes(result.model) == expected


@pytest.mark.slow
def test_difficulties_by_models_are_their_log_probabilities(
    curry: Settings, tmp_path: Path
) -> None:
    """Compared with transformers' own logits, one sequence at a time."""
    start = curry["model_name_or_path"]
    other = Path(curry.with_(stages="pooled", learning_rate=1e-2).train().model)

    def gap(model: str | Path, record: Preference) -> float:
        loaded = load_model(start)
        network = AutoModelForCausalLM.from_pretrained(model)
        prompt, ends = len(loaded.tokenizer(str(record.prompt))["input_ids"]), []
        for response in record.responses:
            text = f"{record.prompt}{response.text}"
            ids = [*loaded.tokenizer(text)["input_ids"], loaded.tokenizer.eos_token_id]
            with torch.no_grad():
                logp = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            ends.append(sum(float(logp[i - 1, ids[i]]) for i in range(prompt, len(ids))))
        return ends[0] - ends[1]

    for number, (keys, expected) in enumerate(
        [
            ({"difficulty": "reference_gap"}, lambda r: gap(start, r)),
            (
                {"difficulty": "implicit_reward", "difficulty_policy": str(other), "beta": 0.5},
                lambda r: 0.5 * (gap(other, r) - gap(start, r)),
            ),
        ]
    ):
        folder = tmp_path / f"by-{number}"
        curry.with_(**keys, output_dir=str(folder), only="easiest", max_steps=1).train()
        records = read_preferences(folder / "curriculum" / "stage-1.jsonl")
        for record in records[:2]:
            assert record.meta["curriculum_ease"] == pytest.approx(expected(record), abs=1e-4)


def test_the_published_format_trains_as_it_says(curry: Settings, tmp_path: Path) -> None:
    def turns(i: int, rejected: str) -> dict[str, Any]:
        answer = {"role": "assistant", "chosen_content": "4", "rejected_content": rejected}
        return {"conversation": [{"role": "user", "content": f"What is {i} - {i - 4}?"}, answer]}

    rows = [{"hard": turns(i, "5"), "easy": turns(i, "no"), "medium": turns(i, "44")} for i in range(5, 9)]  # fmt: skip
    given = curry.with_(
        train_file=str(write_rows(tmp_path / "published.jsonl", rows)),
        stages="given",
        schedule="single_run",
        num_train_epochs=2.0,
    ).train()
    assert len(read_rows(given.folder / "metrics.jsonl")) == 6
    rejected = [
        {r.responses[1].text for r in read_preferences(given.folder / "curriculum" / f"stage-{k}.jsonl")}
        for k in (1, 2, 3)
    ]  # fmt: skip
    assert rejected == [{"no"}, {"44"}, {"5"}]


def test_run_trains_in_stages_too(
    curry: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = curry.write(tmp_path / "recipe.yaml")
    assert main(["run", str(path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "run" / "model")]
    assert (tmp_path / "run" / "stage-2" / "finished.json").exists()


def held_out(folder: Path, names: dict[str, str], *, swapped: bool = False) -> Path:
    """Pairs under columns of those names; `swapped` also has columns of the usual names that say the opposite."""
    rows: list[dict[str, Any]] = []
    for row in string_pairs(4):
        rows.append({names[key]: row[key] for key in ("prompt", "chosen", "rejected")})
        if swapped:
            rows[-1] |= {"chosen": row["rejected"], "rejected": row["chosen"]}
    return write_rows(folder / "held-out.jsonl", rows)


@pytest.mark.parametrize("schedule", ["iterative", "single_run"])
def test_evaluation_data_keep_their_own_columns(
    schedule: str, curry: Settings, tmp_path: Path
) -> None:
    names = {"prompt": "prompt", "chosen": "better", "rejected": "worse"}
    rows = [
        {names[key]: row[key] for key in ("prompt", "chosen", "rejected")} | {"stage": 1 + i % 2}
        for i, row in enumerate(string_pairs(8))
    ]
    result = curry.with_(
        train_file=str(write_rows(tmp_path / "train.jsonl", rows)),
        eval_file=str(held_out(tmp_path, names, swapped=True)),
        columns={"chosen": "better", "rejected": "worse"},
        schedule=schedule,
        stages="given",
        eval_strategy="epoch",
    ).train()
    written = read_preferences(result.folder / "curriculum" / "held-out.jsonl")
    assert [
        [r.responses[p].text for p in (r.pairs[0].chosen, r.pairs[0].rejected)] for r in written
    ] == [[r["chosen"], r["rejected"]] for r in string_pairs(4)]
    last = result.folder if schedule == "single_run" else result.folder / "stage-2"
    assert any("eval_loss" in row for row in read_rows(last / "metrics.jsonl"))
    ledgers = read_json(last / "data-ledger.json")
    assert (ledgers["eval"]["read"], ledgers["eval"]["kept"]) == (4, 4)
    index = read_json(result.folder / "curriculum" / "curriculum.json")
    assert index["held_out_ledger"]["read"] == 4


def test_a_split_of_a_data_set_is_evaluated(curry: Settings, tmp_path: Path) -> None:
    splits = DatasetDict()
    splits["train"] = Dataset.from_list(lists(4))
    splits["held"] = Dataset.from_list(lists(10)[8:])
    splits.save_to_disk(tmp_path / "saved")
    result = curry.with_(
        train_file=None,
        dataset_name=str(tmp_path / "saved"),
        eval_dataset_split="held",
        eval_strategy="epoch",
    ).train()
    written = read_preferences(result.folder / "curriculum" / "held-out.jsonl")
    assert [(r.prompt, len(r.pairs)) for r in written] == [
        ("What is 8 + 4?\n", 2),
        ("What is 9 + 4?\n", 2),
    ]
    assert "eval_loss" in read_rows(result.folder / "stage-1" / "metrics.jsonl")[-1]


def test_overwriting_spares_the_models_of_difficulties(curry: Settings, tmp_path: Path) -> None:
    curry.train()
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json")}
    again = curry.with_(overwrite_output_dir=True, learning_rate=1e-2)
    for keys, name in (
        ({"difficulty": "implicit_reward", "difficulty_policy": "model"}, "model"),
        ({"difficulty": "reference_gap", "difficulty_reference": "stage-1/model"}, "stage-1/model"),
    ):
        key = next(k for k in keys if k.startswith("difficulty_"))
        for schedule in ("iterative", "single_run"):
            read = again.with_(**{**keys, key: str(tmp_path / "run" / name)}, schedule=schedule)
            with pytest.raises(ConfigError, match=f"--overwrite would delete .*{name}, which this"):
                read.train()
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.json")} == files


def test_difficulties_are_measured_on_what_is_trained(curry: Settings, tmp_path: Path) -> None:
    """A response beyond max_length is cut, and a prompt without room for one drops its pairs, as in training."""
    rows = lists(3)
    rows[0]["responses"][2] = "no" * 400
    rows[1]["prompt"] = "What is it? " * 40
    path = str(write_rows(tmp_path / "long.jsonl", rows))
    long = curry.with_(train_file=path, difficulty="reference_gap", max_length=48, stages="pooled")
    result = long.train()
    index = read_json(result.folder / "curriculum" / "curriculum.json")
    assert (index["stages"][0]["pairs"], index["left_out"]) == (4, {f"{UNFIT}: prompt too long": 2})
    assert index["basis"]["lengths"] == [48, None, "drop", "cut"]
    loaded = load_model(curry["model_name_or_path"])
    (record,) = (
        r
        for r in read_preferences(result.folder / "curriculum" / "stage-1.jsonl")
        if len(r.responses[1].text) == 800
    )
    ends = []
    for response in record.responses:
        ids = loaded.tokenizer(f"{record.prompt}{response.text}")["input_ids"]
        ids = [*ids, loaded.tokenizer.eos_token_id][:48]
        prompt = len(loaded.tokenizer(str(record.prompt))["input_ids"])
        with torch.no_grad():
            logp = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        ends.append(sum(float(logp[i - 1, ids[i]]) for i in range(prompt, len(ids))))
    assert record.meta["curriculum_ease"] == pytest.approx(ends[0] - ends[1], abs=1e-4)


def test_a_model_that_cannot_read_the_text_is_refused(curry: Settings, tmp_path: Path) -> None:
    rows = lists(2)
    rows[0]["responses"][2] = "no" * 400
    path = str(write_rows(tmp_path / "long.jsonl", rows))
    with pytest.raises(ConfigError, match=r"and .* reads 256 tokens: set max_length: 256 or less"):
        curry.with_(train_file=path, difficulty="reference_gap").train()


def test_the_report_of_a_chain_has_all_its_stages(curry: Settings, tmp_path: Path) -> None:
    folder = curry.train().folder
    page = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert b"stage-1 and stage-2" in page
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "model")
    before = weight_bytes(folder / "stage-2" / "model")
    curry.with_(resume_from_checkpoint=True).train()
    assert (folder / "report.html").read_bytes() == page
    assert weight_bytes(folder / "model") == before
    shutil.rmtree(folder / "stage-1" / "model")
    with pytest.raises(ResumeError, match=r"stage-1/model: is gone, .* remove .*finished.json"):
        curry.with_(resume_from_checkpoint=True).train()
    (folder / "stage-1" / "finished.json").unlink()
    curry.with_(resume_from_checkpoint=True).train()
    assert weight_bytes(folder / "model") == before


def test_overwriting_leaves_nothing_of_a_longer_chain(curry: Settings, tmp_path: Path) -> None:
    folder = curry.train().folder
    (folder / "stage-2" / "mine.txt").write_text("keep")
    anew = curry.with_(overwrite_output_dir=True)
    assert anew.with_(stages="pooled").train().folder == folder
    assert [p.name for p in (folder / "stage-2").iterdir()] == ["mine.txt"]
    chain = read_json(folder / "chain.json")
    assert (chain["links"], chain["earlier"]) == (["stage-1"], [])
    with pytest.raises(ResumeError, match="holds several trainings one after another"):
        curry.with_(schedule="single_run", resume_from_checkpoint=True).train()
    anew.with_(schedule="single_run").train()
    assert not (folder / "stage-1").exists()
    assert not (folder / "chain.json").exists()


def test_a_changed_model_or_function_is_another_curriculum(
    curry: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measures = tmp_path / "changing_measures.py"
    measures.write_text("def f(record, pair):\n    return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = curry.with_(difficulty="changing_measures:f")
    own.train()
    measures.write_text("def f(record, pair):\n    return 2.0\n")
    with pytest.raises(ResumeError, match=r"made with other settings or data \(function\)"):
        own.with_(resume_from_checkpoint=True).train()
    copied = shutil.copytree(curry["model_name_or_path"], tmp_path / "measuring")
    by_model = curry.with_(
        difficulty="reference_gap", difficulty_reference=str(copied), output_dir=str(tmp_path / "b")
    )
    by_model.train()
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config + " ")
    with pytest.raises(ResumeError, match=r"\(reference_files\)"):
        by_model.with_(resume_from_checkpoint=True).train()
