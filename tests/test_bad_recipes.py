"""Every wrong recipe, or right recipe on wrong data or model, is one `error:` line with a remedy, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prefopt.cli.main import main
from tests.tiny import make_model_folder, make_tokenizer

Row = dict[str, Any]


class Case(NamedTuple):
    """What is wrong, and what the one line must say."""

    changes: Row
    expected: tuple[str, ...]
    rows: list[Row] | None = None
    """Instead of the pairs."""
    prepare: Callable[[Path], object] = lambda folder: None
    """Done in the working directory before the run."""
    words: tuple[str, ...] = ()


def pairs(count: int = 8) -> list[Row]:
    return [
        {"prompt": f"{i} + 4?\n", "chosen": f"It is {i + 4}.", "rejected": f"It is {i + 5}."}
        for i in range(count)
    ]


def chats(count: int = 8) -> list[Row]:
    return [
        {
            k: [{"role": "user" if k == "prompt" else "assistant", "content": v}]
            for k, v in row.items()
        }
        for row in pairs(count)
    ]


def write_rows(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def damage_cache(folder: Path) -> None:
    """Every file of a reference cache that a first run made becomes something else."""
    assert main(["train", "recipe.yaml", "output_dir=first"]) == 0
    for file in (folder / "cache" / "reference").iterdir():
        file.write_bytes(b"no database" * 100)


def a_file_named_notes(folder: Path) -> None:
    (folder / "notes").write_text("mine")


ALIKE = [row | {"rejected": row["chosen"]} for row in pairs()]
ONE_SIDED = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs()]
DROPPED = "error: data.jsonl: none of 8 records can be used: dropped 8: "

CASES: dict[str, Case] = {
    # Keys and values
    "unknown key": Case(
        {"learning_rat": 1e-3}, ("recipe.yaml:", "unknown key 'learning_rat'", "learning_rate")
    ),
    "key of another library": Case({"lr": 1e-3}, ("unknown key 'lr'", "learning_rate")),
    "key of another method": Case({"method": "sft", "beta": 0.1}, ("unknown key 'beta'",)),
    "wrong type": Case(
        {"per_device_train_batch_size": "eight"},
        ('per_device_train_batch_size is "eight"', "whole number"),
    ),
    "out of range": Case({"beta": -0.1}, ("beta is -0.1", "> 0")),
    "unknown method": Case({"method": "dop"}, ("unknown method 'dop': did you mean 'dpo'?",)),
    "loss_type with weights": Case({"loss_type": [{"dpo": 1}]}, ("loss_type",)),
    "loss_type nested": Case({"loss_type": [["dpo"]]}, ("loss_type",)),
    "idle coefficient": Case(
        {"loss_type": ["f_dpo"], "f_alpha_divergence_coef": 0.3},
        ("f_alpha_divergence_coef", "no effect"),
    ),
    "objective twice": Case({"loss_type": ["dpo", "dpo"]}, ("names an objective twice",)),
    "TRL's name": Case(
        {"loss_type": "exo_pair"}, ("unknown objective 'exo_pair': here it is exo",)
    ),
    "no method": Case({"method": None}, ("key 'method'", "set one of asft")),
    "unknown layout": Case({"layout": "trees"}, ('layout is "trees"', "tree, packed")),
    "unknown tracker": Case({"report_to": "tensorbord"}, ("report_to", "tensorboard")),
    "unknown column role": Case({"columns": {"winner": "chosen"}}, ("winner", "chosen")),
    "no data": Case({"train_file": None}, ("no training data: set train_file",)),
    "evaluation without data": Case(
        {"eval_strategy": "epoch"}, ("eval_strategy 'epoch' needs data", "eval_file")
    ),
    "resume and overwrite": Case({}, ("not allowed with",), words=("--resume", "--overwrite")),
    "bad override": Case({}, ("command line: 'seed' is no override", "key=value"), words=("seed",)),
    # Files
    "training file absent": Case(
        {"train_file": "dtaa.jsonl"}, ("dtaa.jsonl", "did you mean", "data.jsonl")
    ),
    "evaluation file absent": Case(
        {"eval_file": "evil.jsonl", "eval_strategy": "epoch"}, ("evil.jsonl",)
    ),
    "training file empty": Case({}, ("data.jsonl: there are no rows",), rows=[]),
    "output is a file": Case(
        {"output_dir": "notes"},
        ("notes: cannot make output_dir (File exists); choose another",),
        prepare=a_file_named_notes,
    ),
    "output under a file": Case(
        {"output_dir": "notes/run"},
        ("notes/run: cannot make output_dir",),
        prepare=a_file_named_notes,
    ),
    "cache is a file": Case(
        {"cache_dir": "notes"}, ("notes", "set cache_dir"), prepare=a_file_named_notes
    ),
    "cache damaged": Case(
        {},
        ("the reference cache cannot be read", "delete the file"),
        prepare=damage_cache,
    ),
    "template absent": Case(
        {"chat_template": "chat.jinja"}, ("chat_template chat.jinja cannot be read",)
    ),
    "template as text": Case(
        {"chat_template": "{% for message in messages %}\n{{ message.content }}{% endfor %}" * 9},
        (
            "chat_template '{% for message in messages %} ",
            "is the text of a template: write it to a file",
        ),
    ),
    "checkpoint absent": Case(
        {"resume_from_checkpoint": "run/checkpoints/checkpoint-3"},
        ("checkpoint-3: there is no such checkpoint; run/checkpoints has none",),
    ),
    "checkpoint is a model": Case(
        {"resume_from_checkpoint": "model"}, ("model: half-written checkpoint",)
    ),
    # Model
    "model absent": Case(
        {"model_name_or_path": "./modle"},
        ("model folder modle does not exist: did you mean model?",),
    ),
    "model without weights": Case(
        {},
        ("model has no weights",),
        prepare=lambda folder: (folder / "model/model.safetensors").unlink(),
    ),
    "model without tokenizer": Case(
        {},
        ("model has no tokenizer", "tokenizer_name_or_path"),
        prepare=lambda folder: [p.unlink() for p in (folder / "model").glob("tokenizer*")],
    ),
    "unknown attention": Case({"attn_implementation": "flash"}, ("attn_implementation 'flash'",)),
    "packed without FlexAttention": Case({"layout": "packed"}, ("layout packed", "flex_attention")),
    "more tokens than positions": Case(
        {"model_name_or_path": "gpt2", "max_length": 2048},
        (
            "the longest response ends at token",
            "GPT2LMHeadModel has 256 positions",
            "max_length: 256",
        ),
        rows=[row | {"prompt": "Why? " * 200} for row in pairs()],
        prepare=lambda folder: make_model_folder(folder / "gpt2", "gpt2"),
    ),
    "unknown LoRA target": Case(
        {"use_peft": True, "lora_target_modules": "q_porj"}, ("q_porj", "did you mean q_proj?")
    ),
    "adapter_off without adapter": Case(
        {"reference": "adapter_off"}, ("reference: adapter_off", "use_peft: true")
    ),
    "reference absent": Case(
        {"reference_model": "./teacher"}, ("model folder teacher does not exist",)
    ),
    # Data
    "all pairs alike": Case({}, (DROPPED, "chosen equals rejected (data.jsonl:1, "), rows=ALIKE),
    "all pairs alike after the cut": Case(
        {"max_length": 8}, (DROPPED, "identical after the cut"), rows=pairs()
    ),
    "all prompts too long": Case({"max_length": 4}, (DROPPED, "prompt too long")),
    "a prompt too long, as an error": Case(
        {"max_length": 4, "overlong_prompt": "error"},
        ("data.jsonl:1: the prompt has", "overlong_prompt: drop"),
    ),
    "strict and one row dropped": Case(
        {"strict": True},
        ("data.jsonl:9 dropped (chosen equals rejected)", "turn strict off"),
        rows=[*pairs(), ALIKE[0]],
    ),
    "no pairs for DPO": Case(
        {}, ("method dpo trains on pairs and no record has one",), rows=ONE_SIDED
    ),
    "no known columns": Case({}, ("data.jsonl", "columns"), rows=[{"a": "x", "b": "y"}]),
    "column of the mapping absent": Case({"columns": {"chosen": "better"}}, ("better",)),
    "no chat template": Case(
        {"model_name_or_path": "base"},
        ("chat template", "chat_template"),
        rows=chats(),
        prepare=lambda folder: make_model_folder(
            folder / "base", "llama", tokenizer=make_tokenizer(chat_template=None)
        ),
    ),
    "text and conversations mixed": Case(
        {}, ("data.jsonl:1", "conversation"), rows=[*pairs(4), *chats(4)]
    ),
    "evaluation without pairs": Case(
        {"eval_file": "sft.jsonl", "eval_strategy": "epoch"},
        ("sft.jsonl: method dpo trains on pairs",),
        prepare=lambda folder: write_rows(folder / "sft.jsonl", ONE_SIDED),
    ),
    # Training
    "learning rate far too high": Case(
        {"learning_rate": 1e30, "max_steps": 20, "max_grad_norm": None},
        (
            "step 2: the loss is not finite; records of the micro-batch: data:",
            "lower learning_rate",
        ),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("bad") / "model", "llama")


@pytest.fixture
def workplace(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, no access to any hub, and the recipe still to be written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(model, tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, workplace: Path, capsys: pytest.CaptureFixture[str]
):
    case = CASES[name]
    recipe: Row = {
        "method": "dpo",
        "model_name_or_path": "./model",
        "train_file": "data.jsonl",
        "learning_rate": 1e-3,
        "max_steps": 2,
        "output_dir": "run",
        "cache_dir": "cache",
    }
    recipe = {k: v for k, v in (recipe | case.changes).items() if v is not None or k not in recipe}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in recipe.items())
    (workplace / "recipe.yaml").write_text(text)
    write_rows(workplace / "data.jsonl", pairs() if case.rows is None else case.rows)
    case.prepare(workplace)
    capsys.readouterr()
    code = main(["train", "recipe.yaml", *case.words])
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert code == 2
    assert [line for line in lines if "error:" in line] == lines[-1:]
    assert lines[-1].startswith("error: ")
    assert [part for part in case.expected if part not in lines[-1]] == []
    assert "Traceback" not in printed.err and printed.out == ""


def test_recipe_that_is_absent_comes_with_the_nearest_name(workplace: Path, capsys):
    (workplace / "recipe.yaml").write_text("method: dpo\n")
    assert main(["train", "recpie.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: recpie.yaml: no such recipe; did you mean 'recipe.yaml'?\n"
    )


def test_several_mistakes_are_one_error_with_a_line_each(workplace: Path, capsys):
    (workplace / "recipe.yaml").write_text("method: dpo\nlr: 1\nseed: x\n")
    assert main(["train", "recipe.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: recipe.yaml: 3 mistakes"
    assert [line[:15] for line in lines[1:]] == [
        "  recipe.yaml:2",
        "  recipe.yaml:3",
        "  recipe.yaml: ",
    ]


def test_nothing_is_written_for_a_recipe_that_cannot_run(workplace: Path, capsys):
    (workplace / "recipe.yaml").write_text(
        "method: dpo\nmodel_name_or_path: ./modle\ntrain_file: data.jsonl\noutput_dir: run\n"
    )
    write_rows(workplace / "data.jsonl", pairs())
    assert main(["train", "recipe.yaml"]) == 2
    assert [p for p in (workplace / "run").rglob("*") if p.is_file()] == []


def test_table_is_long_enough():
    assert len(CASES) >= 40
