"""Model cards: complete, deterministic, escaped, publishable."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from prefopt.errors import StorageError
from prefopt.models.card import CardFacts, bibtex_from_reference, render_card, write_card

PAPER = "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290"
FACTS = CardFacts(
    method="dpo",
    paper=PAPER,
    base_model="Qwen/Qwen3-0.6B",
    summary="DPO on pairs.",
    datasets=("someone/pairs",),
    ledger={
        "source": "/home/me/data/pairs.jsonl",
        "read": 100,
        "kept": 90,
        "cut": 4,
        "dropped": 6,
        "reasons": {"prompt too long": 5, "empty": 1, "response cut": 4},
        "notes": {},
        "rows": [],
    },
    settings={"learning_rate": 5e-7, "columns": {"chosen": "good"}, "train_file": ["/a/b.jsonl"]},
    metrics={"eval_rewards/accuracies": 0.734375123, "step": 200},
    versions={"torch": "2.13.0", "prefopt": "0.1.0"},
)

EXPECTED = """\
---
library_name: transformers
pipeline_tag: text-generation
base_model: Qwen/Qwen3-0.6B
datasets:
- someone/pairs
tags:
- prefopt
- dpo
---

# Qwen/Qwen3-0.6B after dpo

Language model trained from [`Qwen/Qwen3-0.6B`](https://huggingface.co/Qwen/Qwen3-0.6B) with `dpo`: DPO on pairs.

## How to load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

## Data

Trained on `someone/pairs`.

| use | source | read | kept | cut | dropped | reasons |
|---|---|---:|---:|---:|---:|---|
| training | `pairs.jsonl` | 100 | 90 | 4 | 6 | empty: 1, prompt too long: 5, response cut: 4 |

Kept, cut and dropped add up to the rows read.

## Results

| metric | value |
|---|---:|
| `eval_rewards/accuracies` | 0.734375 |
| `step` | 200 |

## Settings

All settings that differ from their defaults:

| setting | value |
|---|---|
| `columns` | `{"chosen": "good"}` |
| `learning_rate` | `5e-07` |
| `train_file` | `["b.jsonl"]` |

## Versions and machine

- prefopt: 0.1.0
- torch: 2.13.0

## Citation

The method: Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290

```bibtex
@misc{dpo,
  note = {Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290},
  year = {2023},
  eprint = {2305.18290},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2305.18290}
}
```
"""


def test_card_says_everything(tmp_path: Path) -> None:
    file = write_card(tmp_path, FACTS)
    assert file == tmp_path / "README.md"
    assert file.read_text(encoding="utf-8") == EXPECTED


def test_adapter_of_a_local_model_names_no_local_path() -> None:
    facts = CardFacts(
        method="step_dpo",
        paper=PAPER,
        base_model="/home/me/models/base",
        is_adapter=True,
        hub_model_id="me/mine",
        settings={"output_dir": "~/runs/x"},
        datasets=("pairs.jsonl",),
        versions={},
        license="apache-2.0",
    )
    card = render_card(facts)
    front = YAML(typ="safe").load(card.split("---\n")[1])
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["prefopt", "step-dpo", "lora"],
    }
    assert "/home/me" not in card
    assert "PEFT adapter trained from `base` with `step_dpo`." in card
    assert 'model = AutoPeftModelForCausalLM.from_pretrained("me/mine")' in card
    assert "| `output_dir` | `x` |" in card
    assert "No counts were recorded." in card
    assert "No metrics were recorded." in card


def test_evaluation_data_has_its_own_row() -> None:
    counts = {"source": "eval.csv", "read": 2, "kept": 2, "cut": 0, "dropped": 0, "reasons": {}}
    card = render_card(CardFacts(method="sft", paper="", base_model="b/c", eval_ledger=counts))
    assert "| evaluation | `eval.csv` | 2 | 2 | 0 | 0 |  |" in card


def test_values_cannot_break_the_card() -> None:
    nasty = 'a | b\n---\n<script>alert("x")</script> `code` {{ 7 * 7 }} {% raw %}'
    facts = CardFacts(
        method="dpo",
        paper=nasty,
        base_model=nasty,
        title=nasty,
        summary=nasty,
        settings={nasty: nasty, "separator": "", "tick": "``"},
        ledger={"source": nasty, "read": 1, "reasons": {nasty: 1}},
        versions={"torch": nasty},
    )
    card = render_card(facts)
    front, body = card.removeprefix("---\n").split("\n---\n", maxsplit=1)
    assert YAML(typ="safe").load(front)["library_name"] == "transformers"
    plain = body.replace("``", "")
    assert "\n---\n" not in plain
    assert r"\`code\`" in body
    assert "{{ 7 * 7 }}" in body
    assert '| `separator` | `""` |' in body
    assert "| `tick` | ``` `` ``` |" in body
    prose = [line for line in body.splitlines() if line.startswith(("# ", "The method"))]
    assert prose
    assert not any("<script>" in line for line in prose)
    rows = [line for line in body.splitlines() if line.startswith("| ``")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)


def test_the_same_facts_give_the_same_bytes() -> None:
    assert render_card(FACTS) == render_card(FACTS)


def test_installed_versions_are_looked_up() -> None:
    card = render_card(CardFacts(method="dpo", paper=PAPER, base_model="a/b"))
    assert "- torch: 2." in card
    assert "- prefopt: 0." in card


def test_bibtex_of_a_reference_without_arxiv_number() -> None:
    assert bibtex_from_reference("step dpo", "Doe & Roe 1999, A_B") == (
        "@misc{step-dpo,\n  note = {Doe \\& Roe 1999, A\\_B},\n  year = {1999}\n}"
    )


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        write_card(tmp_path / "absent", FACTS)
    assert str(caught.value) == (
        f"cannot write the model card {tmp_path / 'absent' / 'README.md'}: No such file or directory"
    )
