"""A grid's results: what is there is found again, and a killed run loses at most its unfinished line."""

from __future__ import annotations

import json

from prefopt.evals.cells import Cells


def test_rows_are_found_by_what_decides_them(tmp_path) -> None:
    cells = Cells(tmp_path / "results.jsonl")
    assert cells.rows == [] and not cells.has({"arm": "dpo"})
    for seed in (0, 1):
        cells.append({"arm": "dpo", "seed": seed, "reward": 1.0 + seed})
    again = Cells(tmp_path / "results.jsonl")
    assert again.rows == cells.rows
    assert again.has({"arm": "dpo", "seed": 1}) and not again.has({"arm": "dpo", "seed": 2})
    assert again.of([{"seed": 1}, {"seed": 5}]) == [{"arm": "dpo", "seed": 1, "reward": 2.0}]


def test_an_unfinished_line_is_dropped(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    Cells(path).append({"arm": "dpo", "seed": 0})
    text = path.read_text()
    path.write_text(text + '{"arm": "dpo", "se')
    assert Cells(path).rows == [json.loads(text)]
    assert path.read_text() == text
