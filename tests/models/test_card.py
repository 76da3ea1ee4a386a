"""Model cards: complete, deterministic, escaped, publishable."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from prefopt.errors import StorageError
from prefopt.models.card import CardFacts, render_card, write_card
from prefopt.models.citation import TrainedObjective, bibtex_from_reference, trained_objective
from prefopt.objectives import find_objective, needs_of, objective_names, with_wpo

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


def used(*names: str, weights: tuple[float, ...] = ()) -> tuple[TrainedObjective, ...]:
    given = weights or (1.0,) * len(names)
    return tuple(
        trained_objective(find_objective(name), weight=weight)
        for name, weight in zip(names, given, strict=True)
    )


def card_of(method: str, paper: str, objectives: tuple, own: tuple) -> str:
    return render_card(
        CardFacts(method=method, paper=paper, base_model="a/b", objectives=objectives, own=own)
    )


def test_another_objective_is_named_and_cited_instead_of_the_method() -> None:
    card = card_of("dpo", PAPER, used("simpo"), used("dpo"))
    assert "# a/b after simpo\n" in card
    assert "with method `dpo` and objective `simpo`." in card
    assert YAML(typ="safe").load(card.split("---\n")[1])["tags"] == ["prefopt", "simpo"]
    assert "Rafailov" not in card
    assert "Objective simpo: Meng et al. 2024, arXiv 2405.14734.\n" in card
    assert "@misc{simpo,\n  note = {Meng et al. 2024, arXiv 2405.14734},\n" in card


def test_every_objective_of_a_mix_is_cited_once() -> None:
    mix = used("dpo", "bco_pair", "sft", weights=(0.8, 0.2, 1.0))
    card = card_of("dpo", PAPER, mix, used("dpo"))
    assert "with method `dpo` and objectives 0.8 `dpo` + 0.2 `bco_pair` + `sft`." in card
    assert f"The method: {PAPER}\n" in card
    assert "Objective dpo:" not in card
    assert "Objective sft: folklore; as an anchor: Pang et al. 2024, arXiv 2404.19733" in card
    assert [line for line in card.splitlines() if line.startswith("  eprint")] == [
        f"  eprint = {{{number}}},"
        for number in ("2305.18290", "2404.04656", "2411.10442", "2404.19733", "2405.16436")
    ]


def test_a_method_that_is_more_than_its_objective_is_always_cited() -> None:
    paper = "Lai et al. 2024, Step-DPO, arXiv 2406.18629"
    plain = card_of("step_dpo", paper, used("dpo"), used("dpo"))
    assert "with `step_dpo`." in plain
    assert f"The method: {paper}\n\nObjective dpo: Rafailov et al. 2023" in plain
    other = card_of("step_dpo", paper, used("cdpo"), used("dpo"))
    assert "# a/b after step_dpo with cdpo\n" in other
    assert f"The method: {paper}\n\nObjective cdpo: Mitchell 2023" in other


def test_the_own_objective_adds_only_what_the_paper_does_not_cover() -> None:
    paper = "Wang et al. 2024, ASFT, arXiv 2409.10571"
    card = card_of("asft", paper, used("asft"), used("asft"))
    assert "with `asft`." in card
    assert card.count("eprint = {2409.10571}") == 1
    assert (
        "@misc{asft-2,\n  note = {temperature: Gorbatovski et al. 2025, arXiv 2502.01237}" in card
    )
    assert card_of("dpo", PAPER, used("dpo"), used("dpo")) == card_of("dpo", PAPER, (), ())


def test_a_factor_of_the_own_objective_is_named() -> None:
    card = card_of("dpo", PAPER, used("dpo", weights=(0.5,)), used("dpo"))
    assert "with method `dpo` and objective 0.5 `dpo`." in card


def test_folklore_cites_nothing() -> None:
    assert "## Citation" not in card_of("sft", "", used("sft"), used("sft"))


@pytest.mark.parametrize("name", objective_names())
def test_every_objective_has_a_source(name: str) -> None:
    found = trained_objective(with_wpo_or_itself(name))
    assert found.name == name
    assert found.source.endswith(".")
    assert "Departures" not in found.source and "Peers" not in found.source


def with_wpo_or_itself(name: str):
    """Modified where that is possible: the docstring is found behind partials and modifiers."""
    objective = partial(find_objective(name))
    need = needs_of(objective)
    return with_wpo(objective) if need.view == "pairs" and not need.positional else objective
