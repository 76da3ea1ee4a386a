"""Evaluations of agents in the report: one line for each run and split, whatever the file lacks."""

from __future__ import annotations

import json
from pathlib import Path

from prefopt.report.agents import HEADER, agent_rows
from prefopt.report.folder import read_runs
from prefopt.report.page import write_report

FACTS = {
    "name": "dmpo",
    "environment": "rooms",
    "splits": {
        "seen": {
            "tasks": 200,
            "reward": {"value": 0.75, "low": 0.7, "high": 0.8},
            "success": {"correct": 100, "total": 200, "value": 0.5, "low": 0.431, "high": 0.569},
            "steps": 7.25,
            "failures": 1,
        },
        "unseen": {"tasks": 20},
        "broken": 3,
    },
}
SEEN = [
    "dmpo", "rooms", "seen", "0.750", "0.700 to 0.800", "50.0% of 200", "43.1–56.9%", "7.25", "1",
]  # fmt: skip


def test_a_line_for_each_run_and_split(tmp_path: Path) -> None:
    (tmp_path / "dmpo").mkdir()
    (tmp_path / "dmpo" / "agent-evaluation.json").write_text(json.dumps(FACTS))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "run.yaml").write_text("method: sft\n")
    folders = [tmp_path / "dmpo", tmp_path / "sft"]
    rows = agent_rows(read_runs(folders))
    assert rows[0] == SEEN and len(rows[0]) == len(HEADER)
    assert rows[1] == ["dmpo", "rooms", "unseen", "–", "–", "– of 20", "–", "–", "–"]
    assert len(rows) == 2
    page = write_report(folders, tmp_path / "report.html").read_text()
    assert "In environments" in page and "43.1–56.9%" in page
    alone = write_report([tmp_path / "sft"], tmp_path / "sft.html").read_text()
    assert "In environments" not in alone


def test_a_broken_file_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "agent-evaluation.json").write_text("{")
    [run] = read_runs([tmp_path])
    assert agent_rows([run]) == []
    assert "agent-evaluation.json:1 is no valid JSON" in run.unread[0]
