"""A grid's results: what is there is found again, and a killed run loses at most its unfinished line."""

from __future__ import annotations

import json

from prefopt.evals.cells import Cells, difference_cells, mean_cell


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


def test_numbers_of_tables() -> None:
    assert mean_cell([0.5, None, 0.7, 0.6], digits=1, scale=100) == "60.0 ± 5.8"
    assert mean_cell([0.5, None], digits=3) == "0.500" and mean_cell([None], digits=3) == "-"
    # Student's t with 2 degrees of freedom: 2 ± 4.303 * 1 / sqrt(3), p = 0.074.
    assert difference_cells([1.0, 2.0, 3.0], digits=2) == ("+2.00 (-0.48 to +4.48)", "0.074")
    assert difference_cells([1.0], digits=2) == ("-", "-")
