"""What becomes of earlier data in a build of DICE: with gamma 1 no model has a part in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.records import Pair, Preference, read_preferences

Row = dict[str, Any]


def build(
    folder: Path, rows: list[Row], *overrides: str
) -> tuple[list[Preference], dict[str, int]]:
    """The mix and the counts."""
    offline = folder / "offline.jsonl"
    offline.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: Row = {
        "method": "dice",
        "model_name_or_path": "m0",
        "output_dir": str(folder / "run"),
        "build": {
            "previous": "sft",
            "offline": str(offline),
            "gamma": 1,
            "output_dir": str(folder / "data"),
        },
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["build", str(folder / "recipe.yaml"), *overrides]) == 0
    counts = json.loads((folder / "data" / "counts.json").read_text())["counts"]
    return read_preferences(folder / "data" / "pairs.jsonl"), counts


def record(number: int, **more: Any) -> Row:
    responses = [{"text": text} for text in ("one", "two", "three", "four")]
    return {"id": f"r{number}", "prompt": f"prompt {number}", "responses": responses, **more}


def test_weights_and_margins_stay_with_the_pair(tmp_path: Path) -> None:
    pair = {"chosen": 2, "rejected": 1, "weight": 3.0, "margin": 0.7}
    (found,), counts = build(tmp_path, [record(0, pairs=[pair])])
    assert found.pairs == (Pair(0, 1, weight=3.0, margin=0.7),)
    assert [r.text for r in found.responses] == ["three", "two"]
    assert counts["offline pairs after the first of their row"] == 0


def test_further_pairs_of_a_row_are_counted(tmp_path: Path) -> None:
    pairs = [{"chosen": 1, "rejected": 2}, {"chosen": 0, "rejected": 3}]
    mix, counts = build(tmp_path, [record(i, pairs=pairs) for i in range(6)])
    assert [r.text for r in mix[0].responses] == ["two", "three"], "the first pair"
    assert counts["offline rows without a usable pair"] == 0
    assert counts["offline records in the mix"] == 6
    assert counts["offline pairs after the first of their row"] == 6


STEPS = [
    {
        "prompt": f"sum {i % 2}",
        "prefix": f"Step {i}. ",
        "chosen": "right",
        "rejected": "wrong",
    }
    for i in range(6)
]


def test_rows_with_prefixes_of_their_own_are_all_in_the_mix(tmp_path: Path) -> None:
    mix, counts = build(tmp_path, STEPS)
    assert [r.prefix for r in mix] == [f"Step {i}. " for i in range(6)]
    assert counts["offline records that repeat a prompt"] == 0


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_question_is_never_held_out_in_part(share: float, tmp_path: Path) -> None:
    rows = [{**row, "prompt": f"sum {i}"} for row in STEPS for i in range(20)]
    mix, counts = build(tmp_path, rows, f"build.held_out={share}")
    kept = {str(r.prompt) for r in mix}
    assert 0 < len(kept) < 20
    assert counts["offline records of held-out prompts"] == 6 * (20 - len(kept))
