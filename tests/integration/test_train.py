"""Runs from recipe to report, in process, on the model families, data forms and methods that users bring."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from prefopt.runs.train import RunResult
from tests.integration.runs import (
    Row,
    Settings,
    largest_difference,
    losses,
    read_json,
    read_rows,
    string_pairs,
    train_recipe,
    weight_bytes,
    weights,
    write_rows,
)
from tests.tiny import FAMILIES, Family

Models = Callable[[Family], Path]

FILES = {
    "run.yaml", "env.json", "data-ledger.json", "plan.json", "metrics.jsonl", "samples.jsonl", "finished.json",
    "model", "report.html",
}  # fmt: skip
PLAN = {
    "layout", "steps", "batch_size", "world_size", "examples", "responses", "pairs", "tokens_rows", "tokens_tree",
    "tokens_scored", "saved", "longest", "peak_memory_bytes",
}  # fmt: skip
REWARDS = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
LINE = {
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "seconds",
    "logps/chosen",
    "logps/rejected",
}
LEDGER = {"source", "read", "kept", "cut", "dropped", "reasons", "notes", "rows"}
SAMPLE = {
    "id",
    "prompt",
    "prefix",
    "chosen",
    "rejected",
    "reward_chosen",
    "reward_rejected",
    "margin",
}


def check_run_folder(result: RunResult, *, steps: int) -> None:
    """The files and keys that reports and users rely on."""
    folder = result.folder
    assert {p.name for p in folder.iterdir()} - {"checkpoints"} == FILES
    assert read_json(folder / "plan.json").keys() >= PLAN
    assert read_json(folder / "data-ledger.json")["train"].keys() == LEDGER
    assert read_json(folder / "env.json").keys() >= {
        "date",
        "python",
        "platform",
        "torch",
        "transformers",
    }
    lines = read_rows(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(line.keys() >= LINE | REWARDS for line in lines)
    assert all(sample.keys() == SAMPLE for sample in read_rows(folder / "samples.jsonl"))
    card = (folder / "model" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "dpo" in card and "arXiv" in card
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_of_every_family(family: Family, settings: Settings, models: Models):
    start = models(family)
    result = settings.with_(model_name_or_path=str(start), max_steps=4).train()
    check_run_folder(result, steps=4)
    assert losses(result.folder)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses(result.folder)[-1] < 0.68
    assert read_json(result.folder / "plan.json")["layout"] == "tree"
    before, after = weights(start), weights(result.model)
    assert before.keys() == after.keys()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert unchanged == []
    model, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        result.model, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    assert model(**tokenizer("What is 3", return_tensors="pt")).logits.isfinite().all()


# peft 0.18 reads a property that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_lora_leaves_an_adapter(family: Family, settings: Settings, models: Models):
    start = models(family)
    before = weight_bytes(start)
    changes = {"use_peft": True, "lora_r": 2, "max_steps": 4, "save_strategy": "epoch"}
    result = settings.with_(model_name_or_path=str(start), **changes).train()
    check_run_folder(result, steps=4)
    assert losses(result.folder)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert weight_bytes(start) == before
    assert (result.folder / "checkpoints" / "checkpoint-3" / "adapter_config.json").is_file()
    base = AutoModelForCausalLM.from_pretrained(start)
    prompt = AutoTokenizer.from_pretrained(result.model)("What is 3", return_tensors="pt")
    plain = base(**prompt).logits
    adapted = PeftModel.from_pretrained(base, str(result.model))(**prompt).logits
    assert float((plain - adapted).abs().max().detach()) > 1e-4


@pytest.mark.parametrize("reference", ["cached", "live", "adapter_off"])
def test_every_form_of_the_reference_trains_the_same(
    reference: str, settings: Settings, tmp_path: Path
):
    lora = settings.with_(use_peft=True, lora_r=2)
    expected = lora.with_(output_dir=str(tmp_path / "auto")).train()
    result = lora.with_(reference=reference).train()
    assert losses(result.folder) == pytest.approx(losses(expected.folder), abs=1e-6)


def plain_logp(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, response: str
) -> float:
    """Log-probability of response and end token, by an ordinary call on one row."""
    context = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([[*context, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return float(logps.gather(1, ids[0, 1:, None])[len(context) - 1 :].sum())


def test_rewards_are_those_of_plain_transformers(settings: Settings, models: Models):
    """Margins in samples.jsonl against the saved and the starting model, called row by row."""
    result = settings.with_(beta=0.3).train()
    policy = AutoModelForCausalLM.from_pretrained(result.model)
    start = AutoModelForCausalLM.from_pretrained(models("llama"))
    tokenizer = AutoTokenizer.from_pretrained(result.model)
    samples = read_rows(result.folder / "samples.jsonl")
    assert len(samples) == 12
    for sample in samples[:6]:
        rewards = [
            0.3 * (plain_logp(policy, tokenizer, *text) - plain_logp(start, tokenizer, *text))
            for text in (
                (sample["prompt"], sample["chosen"]),
                (sample["prompt"], sample["rejected"]),
            )
        ]
        assert [sample["reward_chosen"], sample["reward_rejected"]] == pytest.approx(
            rewards, abs=3e-5
        )
        assert sample["margin"] == pytest.approx(rewards[0] - rewards[1], abs=3e-5)


def test_sft_starts_at_the_mean_loss_of_plain_transformers(settings: Settings, models: Models):
    result = settings.with_(method="sft", per_device_train_batch_size=12, max_steps=3).train()
    model = AutoModelForCausalLM.from_pretrained(models("llama"))
    tokenizer = AutoTokenizer.from_pretrained(models("llama"))
    rows = string_pairs()
    total = sum(plain_logp(model, tokenizer, row["prompt"], row["chosen"]) for row in rows)
    count = sum(len(tokenizer(row["chosen"])["input_ids"]) + 1 for row in rows)
    assert losses(result.folder)[0] == pytest.approx(-total / count, abs=1e-5)
    assert losses(result.folder)[-1] < losses(result.folder)[0] - 0.1
    assert read_rows(result.folder / "samples.jsonl") == []
    assert not Path(settings["cache_dir"]).exists()


def conversations() -> list[Row]:
    rows: list[Row] = []
    for row in string_pairs():
        prompt = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["prompt"]},
        ]
        answers = {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
        rows.append({"prompt": prompt, **answers})
    return rows


def whole_conversations() -> list[Row]:
    """The prompt is what both have in common."""
    return [
        {k: [*row["prompt"], *row[k]] for k in ("chosen", "rejected")} for row in conversations()
    ]


def test_conversations_go_through_the_chat_template(settings: Settings, tmp_path: Path):
    explicit = write_rows(tmp_path / "explicit.jsonl", conversations())
    implicit = write_rows(tmp_path / "implicit.jsonl", whole_conversations())
    one = settings.with_(train_file=str(explicit), output_dir=str(tmp_path / "a")).train()
    two = settings.with_(train_file=str(implicit), output_dir=str(tmp_path / "b")).train()
    check_run_folder(one, steps=6)
    assert losses(one.folder)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert weight_bytes(one.model) == weight_bytes(two.model)
    sample = read_rows(one.folder / "samples.jsonl")[0]
    assert sample["prompt"].startswith("system: Be brief.\nuser: What is ")


def test_step_pairs_share_their_prefix(settings: Settings, tmp_path: Path):
    steps = [
        {
            "prompt": f"What is {i} + 4 - 2?\n",
            "initial_reason_steps": f"Step 1: {i} + 4 = {i + 4}.\n",
            "chosen": f"Step 2: {i + 4} - 2 = {i + 2}.",
            "rejected": f"Step 2: {i + 4} - 2 = {i + 3}.",
        }
        for i in range(12)
    ]
    result = settings.with_(train_file=str(write_rows(tmp_path / "steps.jsonl", steps))).train()
    check_run_folder(result, steps=6)
    assert losses(result.folder)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert read_json(result.folder / "plan.json")["saved"] > 0.4
    assert {s["prefix"] for s in read_rows(result.folder / "samples.jsonl")} == {
        row["initial_reason_steps"] for row in steps
    }


@pytest.mark.parametrize(
    ("pairing", "pairs", "responses"),
    [("best_vs_rest", 36, 48), ("all", 72, 48), ("best_worst", 12, 24)],
)
def test_ranked_lists_with_scores(
    pairing: str, pairs: int, responses: int, settings: Settings, tmp_path: Path
):
    """Responses that are in no pair are not computed."""
    rows = [
        {
            "prompt": f"What is {i} + 4?\n",
            "responses": [f"It is {i + 5}.", f"The answer is {i + 4}.", "No.", f"{i + 6}"],
            "scores": [2.0, 9.5, -1.0, 1.0],
        }
        for i in range(12)
    ]
    path = write_rows(tmp_path / "ranked.jsonl", rows)
    result = settings.with_(train_file=str(path), pairing=pairing).train()
    check_run_folder(result, steps=6)
    plan = read_json(result.folder / "plan.json")
    assert (plan["pairs"], plan["responses"], plan["examples"]) == (pairs, responses, 12)
    assert losses(result.folder)[0] == pytest.approx(math.log(2), abs=1e-5)
    chosen = {
        s["chosen"] for s in read_rows(result.folder / "samples.jsonl") if s["id"].endswith(":3")
    }
    assert "The answer is 6." in chosen


def as_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows))


def as_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


FORMS: dict[str, Callable[[Path, list[Row]], object]] = {
    "pairs.json": as_json,
    "pairs.csv": as_csv,
    "pairs.parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
    "saved": lambda path, rows: Dataset.from_list(rows).save_to_disk(path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_trains_the_same(form: str, settings: Settings, tmp_path: Path):
    FORMS[form](tmp_path / form, string_pairs())
    lines = settings.with_(output_dir=str(tmp_path / "lines")).train()
    other = settings.with_(train_file=str(tmp_path / form)).train()
    assert weight_bytes(lines.model) == weight_bytes(other.model)


def test_run_yaml_is_a_recipe_of_the_same_run(settings: Settings, tmp_path: Path):
    first = settings.with_(lr_scheduler_type="cosine", beta=0.25, seed=7).train()
    again = train_recipe(first.folder / "run.yaml", f"output_dir={tmp_path / 'again'}")
    assert weight_bytes(first.model) == weight_bytes(again.model)
    assert losses(first.folder) == losses(again.folder)
    other = train_recipe(first.folder / "run.yaml", f"output_dir={tmp_path / 'other'}", "seed=8")
    assert weight_bytes(first.model) != weight_bytes(other.model)


def test_evaluation_lines_and_ledgers(settings: Settings, tmp_path: Path):
    held_out = write_rows(tmp_path / "held_out.jsonl", string_pairs(17)[12:])
    steps = {"eval_strategy": "steps", "eval_steps": 2}
    result = settings.with_(eval_file=str(held_out), per_device_eval_batch_size=2, **steps).train()
    lines = [r for r in read_rows(result.folder / "metrics.jsonl") if "eval_loss" in r]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line.keys() >= {f"eval_{name}" for name in REWARDS} for line in lines)
    ledgers = read_json(result.folder / "data-ledger.json")
    assert (ledgers["train"]["kept"], ledgers["eval"]["kept"]) == (12, 5)
    samples = read_rows(result.folder / "samples.jsonl")
    assert {sample["id"] for sample in samples} == {f"held_out:{i}" for i in range(1, 6)}
    margin = sum(sample["margin"] for sample in samples) / 5
    assert lines[-1]["eval_rewards/margins"] == pytest.approx(margin, abs=1e-4)
    assert "eval_loss" in result.metrics


def test_runs_of_different_precision_in_one_process(settings: Settings, tmp_path: Path):
    full = settings.train()
    mixed = settings.with_(bf16=True, output_dir=str(tmp_path / "mixed")).train()
    assert losses(mixed.folder)[0] == pytest.approx(math.log(2), abs=0.02)
    assert losses(mixed.folder) != losses(full.folder)
    assert largest_difference(weights(full.model), weights(mixed.model)) < 0.2
    assert {t.dtype for t in weights(mixed.model).values()} == {torch.float32}


def test_cut_and_dropped_records_are_in_the_ledger(settings: Settings, tmp_path: Path):
    rows = [*string_pairs(), {"prompt": "Why?\n", "chosen": "Same.", "rejected": "Same."},
            {"prompt": "Long " * 80, "chosen": "Yes.", "rejected": "No."}]  # fmt: skip
    path = write_rows(tmp_path / "mixed.jsonl", rows)
    result = settings.with_(train_file=str(path), max_length=64).train()
    ledger = read_json(result.folder / "data-ledger.json")["train"]
    assert (ledger["read"], ledger["kept"] + ledger["cut"], ledger["dropped"]) == (14, 12, 2)
    assert read_json(result.folder / "plan.json")["examples"] == 12
