"""The build of DICE in the report: a line and a picture for each run whose build is still there."""

from __future__ import annotations

import json
from pathlib import Path

from prefopt.report.dice import HEADER, own_answers
from prefopt.report.folder import read_runs
from prefopt.report.page import write_report

FACTS = {
    "models": {"policy": "m0"},
    "alpha": {"value": 0.0023, "before_beta": 0.023, "unit": "reward per character"},
    "length": {
        "unit": "characters", "gap_without_alpha": 1031.0, "gap": -21.0, "chosen": 900.0, "rejected": 921.0,
    },
    "margin": {"mean": 1.25, "median": 1.0, "smallest": 0.1},
    "samples": {"different_per_prompt": 8.0, "duplicate_rate": 0.5},
}  # fmt: skip


def write_run(folder: Path, data: Path, model: str = "m0") -> Path:
    folder.mkdir()
    recipe = {"method": "dice", "model_name_or_path": model, "build": {"output_dir": str(data)}}
    (folder / "run.yaml").write_text(json.dumps(recipe))
    return folder


def test_a_line_and_a_picture_for_each_run_that_has_its_build(tmp_path: Path) -> None:
    data = tmp_path / "data-dice"
    data.mkdir()
    (data / "counts.json").write_text(json.dumps(FACTS))
    (data / "alpha.png").write_bytes(b"\x89PNG")
    named = tmp_path / "data-{method}"
    runs = [write_run(tmp_path / "one", named), write_run(tmp_path / "two", tmp_path / "gone")]
    (found,) = own_answers(read_runs(runs))
    assert found.cells == [
        "one", "0.0023", "0.023", "+1031.0", "−21.00", "900.0", "921.0", "1.25", "50.0%",
    ]  # fmt: skip
    assert len(found.cells) == len(HEADER)
    page = write_report(runs, tmp_path / "report.html").read_text()
    assert "Pairs of own answers" in page
    assert '<img src="data:image/png;base64,iVBORw==" alt="one: length gap over alpha"' in page
    page = write_report(runs[1:], tmp_path / "other.html").read_text()
    assert "Pairs of own answers" not in page


def test_a_build_of_another_model_or_without_own_answers_is_not_shown(tmp_path: Path) -> None:
    other, offline = tmp_path / "other", tmp_path / "offline"
    for folder, facts in ((other, FACTS), (offline, {"models": {"policy": "m0"}, "counts": {}})):
        folder.mkdir()
        (folder / "counts.json").write_text(json.dumps(facts))
    runs = [write_run(tmp_path / "a", other, model="m1"), write_run(tmp_path / "b", offline)]
    assert own_answers(read_runs(runs)) == []
